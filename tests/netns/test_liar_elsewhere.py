"""A node that lies is connected to another coordinator than the one that it does not answer: it is caught all the same
(NET-7, OPS-2, MESH-ASY-001). Real processes: an etcd of three, two coordinators, two nodes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from coordinator.testimony import audit
from meshctl.mesh.catalogue import ASYMMETRY, HANDSHAKE, PATH
from meshctl.wire.codec import FindingRow
from tests.harness.mesh import PORT, READY_S, Node, until
from tests.harness.replicas import Replica, Replicas

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def lab() -> Iterator[Replicas]:
    with Replicas() as made:
        made.members("a", "b")
        yield made


def asymmetric(at: Replica) -> dict[str, list[FindingRow]]:
    """What a coordinator finds of the pairs of each of its nodes."""
    found = {name: [row for row in state.findings if row.code == ASYMMETRY] for name, state in at.nodes().items()}
    return {name: rows for name, rows in found.items() if rows}


def told(node: Node) -> list[tuple[str, bool]]:
    """What `meshctl health --mesh` says of asymmetric pairs: the peer, and whether a node signed that."""
    found = json.loads(node.meshctl("health", "--mesh", "--json").stdout)["findings"]
    return [(one["subject"], one["signed"]) for one in found if one["code"] == ASYMMETRY]


def test_liar_at_another_coordinator_is_caught_by_its_own_once(
    lab: Replicas, record_property: Callable[[str, object], None]
) -> None:
    a, b = lab.nodes
    lab.send(lab.one, a, b)
    b.stop()
    b.program = (sys.executable, "-m", "tests.attacks.liar")
    away = f"tcp dport {PORT} ip daddr {lab.one.address.rpartition(':')[0]} reject with tcp reset"
    chain = "type filter hook output priority 0"
    b.ns.command("nft", "-f", "-", stdin=f"table inet away {{ chain o {{ {chain}; {away}; }}; }}\n")
    b.up()
    until(lambda: lab.one.has("a") and lab.two.has("b"), READY_S, f"each is at its own coordinator: {b.tail()}")
    until(lambda: a.proves("b") and b.proves("a"), READY_S, "all is well")
    begun = time.monotonic()
    drop = f"ip saddr {b.address} ip daddr {a.address} udp dport 51820 drop"
    chain = "type filter hook forward priority 0"
    lab.hub.command("nft", "-f", "-", stdin=f"table bridge liar {{ chain f {{ {chain}; {drop}; }}; }}\n")
    try:
        until(lambda: bool(asymmetric(lab.two)), 90, f"the liar is caught: {a.status()['findings']}")
        record_property("figure", f"a liar at another coordinator is caught after {time.monotonic() - begun:.1f} s")
        ((name, (row,)),) = asymmetric(lab.two).items()
        ids = {name: state.node.id for name, state in lab.one.nodes().items()}
        assert (name, row.subject) == ("b", ids["a"])
        assert row.evidence == f"a at {lab.one.address} says failed, b here says ok"
        assert asymmetric(lab.one) == {}, "once"
        until(lambda: told(b) == [(row.subject, False)], READY_S, "the accused hears of it, unsigned")
        assert told(a) == []
        lines = (lab.one.data / "events.jsonl").read_bytes().splitlines()
        accused = [claim for claim in map(audit, lines) if claim and claim.code in (PATH, HANDSHAKE)]
        assert {(claim.node, claim.subject) for claim in accused} == {(ids["a"], ids["b"])}, "and it is signed"
    finally:
        lab.hub.command("nft", "delete", "table", "bridge", "liar")
    until(lambda: not asymmetric(lab.two), 90, "it is over")
