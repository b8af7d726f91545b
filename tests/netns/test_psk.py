"""Pre-shared keys between real agents on a real WireGuard: agreed, proven by a handshake, renewed, kept; and every
moment at which a crash could part the two ends (NET-6, MESH-ENC-002).

A handshake is due every two minutes. Where a test cannot wait for it, a peer is removed with `wg set`, which ends the
session; the agent puts it back, and a handshake follows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.harness.mesh import READY_S, Lab, Node, until

pytestmark = pytest.mark.root


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def held(node: Node, peer: Node) -> str:
    """What WireGuard has for this peer."""
    lines = node.run("wg", "show", node.interface, "preshared-keys").stdout.split("\n")
    return dict(line.split("\t") for line in lines if line).get(peer.key(), "(none)")


def told(node: Node, peer: Node) -> dict[str, Any]:
    return node.peer(peer.name).get("psk") or {"version": 0, "proven": False}


def agreed(a: Node, b: Node, version: int = 1) -> bool:
    """Both kernels have the same key, of this version or a later one."""
    same = held(a, b) == held(b, a) != "(none)"
    return same and told(a, b)["version"] == told(b, a)["version"] >= version


def proven(a: Node, b: Node) -> bool:
    return agreed(a, b) and told(a, b)["proven"] and told(b, a)["proven"]


def end_session(node: Node, peer: Node) -> None:
    node.run("wg", "set", node.interface, "peer", peer.key(), "remove")


def test_a_pair_agrees_after_a_join_and_a_handshake_proves_it(lab: Lab) -> None:
    a, b = lab.members("a", "b")
    until(lambda: agreed(a, b), READY_S, f"{told(a, b)} {told(b, a)} {a.tail()} {b.tail()}")
    print(told(a,b), told(b,a))
