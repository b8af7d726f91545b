"""Clocks that are days off, machines that were off for days: all join, renew and connect all the same (ACC-4, NET-4).

A machine's agent and its WireGuard share one clock, and a test cannot move one machine's alone; so it is the
coordinator whose clock is moved (libfaketime), which to every node is the same three days.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from meshctl.agent.join import Member
from meshctl.agent.store import Store
from meshctl.crypto import pki
from tests.harness.mesh import READY_S, Lab, Node, until

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
DAY_S = 86400
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        LIBRARY is None, reason="absent: libfaketime (apt-get install --no-install-recommends faketime)"
    ),
]


def moved(days: int) -> dict[str, str]:
    """Environment of a process whose wall clock is off; its monotonic one runs true."""
    return {
        "LD_PRELOAD": str(LIBRARY),
        "FAKETIME": f"{days:+d}d",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }


@contextmanager
def lab_with_clock(days: int) -> Iterator[Lab]:
    with Lab() as lab:
        restart_with_clock(lab, days)
        yield lab


def restart_with_clock(lab: Lab, days: int) -> None:
    lab.coordinator.stop()
    lab.coordinator.environment = moved(days) if days else {}
    lab.coordinator.start()


def row(node: Node, code: str) -> dict[str, object]:
    return next((r for r in node.status().get("rows", []) if r["code"] == code), {})


def certificate_left_s(node: Node) -> float:
    return pki.expiry(Member.load(Store(node.state)).certificate) - time.time()


def says_so(node: Node, word: str) -> None:
    """MESH-CLK-001 failed, with the evidence."""
    until(lambda: row(node, "MESH-CLK-001").get("verdict") == "failed", READY_S, f"{row(node, 'MESH-CLK-001')}")
    said = str(row(node, "MESH-CLK-001")["evidence"])
    assert word in said, said
    assert re.search(r"259\d{3}|3(\.0)? d", said), said


def test_clock_falls_three_days_behind() -> None:
    """By a node's own reckoning its certificate is young, but the front lets it in no more: it renews and follows. So
    do machines that join now.
    """
    with Lab() as lab:
        a, b = lab.members("a", "b")
        assert certificate_left_s(a) > 0.9 * DAY_S
        restart_with_clock(lab, 3)
        for node in (a, b):
            until(lambda node=node: node.events("certificate.renewed"), 90, f"{node.name} renews: {node.tail()}")
            until(lambda node=node: node.status()["link"]["connected"], 60, f"{node.name} follows: {node.tail()}")
            says_so(node, "behind the coordinator")
        c = lab.member("c")
        until(lambda: c.proves("a", "b") and a.proves("b", "c"), READY_S, f"the mesh works: {c.tail()}")
        assert abs(certificate_left_s(c) - 4 * DAY_S) < 600, "issued by the coordinator's clock"
        says_so(c, "behind the coordinator")


@pytest.fixture(scope="module")
def three_days_ago() -> Iterator[Lab]:
    """A mesh whose coordinator lives three days ago: what it certifies ended two days ago."""
    with lab_with_clock(-3) as lab:
        yield lab


def test_node_was_off_for_three_days(three_days_ago: Lab) -> None:
    lab = three_days_ago
    sleeper = lab.machine("sleeper")
    assert sleeper.join(lab.coordinator.token()).returncode == 0
    restart_with_clock(lab, 0)
    assert certificate_left_s(sleeper) < -1.9 * DAY_S
    sleeper.up()
    until(lambda: certificate_left_s(sleeper) > 0.9 * DAY_S, READY_S, f"renewed after its end: {sleeper.tail()}")
    until(lambda: sleeper.status()["link"]["connected"], READY_S, f"and connected: {sleeper.tail()}")
    assert sleeper.events("certificate.renewed")[0]["late"]
    sleeper.stop()
    restart_with_clock(lab, -3)


def test_coordinator_was_off_for_three_days(three_days_ago: Lab) -> None:
    """Clocks three days ahead of it join and renew; then their certificates have ended, and the tunnels have not."""
    lab = three_days_ago
    a, b = lab.members("a", "b")
    until(lambda: a.events("certificate.renewed"), READY_S, f"it renews, again and again: {a.tail()}")
    says_so(a, "ahead of the coordinator")
    until(lambda: (a.state / "map").exists() and (b.state / "map").exists(), READY_S, "both have the map")
    lab.coordinator.stop()
    until(lambda: not a.status()["link"]["connected"] and not b.status()["link"]["connected"], READY_S, "both notice")
    assert certificate_left_s(a) < -1.9 * DAY_S
    until(lambda: a.proves("b", younger_than_s=1.0) and b.proves("a", younger_than_s=1.0), READY_S, "the mesh works")
    restart_with_clock(lab, 0)
    for node in (a, b):
        until(lambda node=node: certificate_left_s(node) > 0.9 * DAY_S, 60, f"{node.name} renews: {node.tail()}")
        until(lambda node=node: node.status()["link"]["connected"], 60, f"{node.name} follows: {node.tail()}")
        until(lambda node=node: node.proves("a" if node is b else "b"), READY_S, "and the tunnel stands")
        node.stop()
