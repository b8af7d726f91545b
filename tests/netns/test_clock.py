"""Clocks that are days off, and machines that were off for days: everybody joins, renews and connects all the same (ACC-4, NET-4).

A machine's agent and its WireGuard share one clock, and a test cannot move one machine's alone; so it is the coordinator whose clock
is moved (libfaketime), which to every node is the same three days. Certificates then say what they would say.
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
    pytest.mark.skipif(LIBRARY is None, reason="absent: libfaketime (apt-get install --no-install-recommends faketime)"),
]


def moved(days: int) -> dict[str, str]:
    """Environment of a process whose wall clock is off; its monotonic one runs true."""
    return {"LD_PRELOAD": str(LIBRARY), "FAKETIME": f"{days:+d}d", "FAKETIME_DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1"}


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


@pytest.mark.parametrize("days", [3, -3], ids=["three days slow", "three days fast"])
def test_node_whose_clock_is(days: int) -> None:
    """It joins, renews, proves its peers, and says MESH-CLK-001 with the evidence."""
    with lab_with_clock(days) as lab:
        a, b = lab.members("a", "b")
        assert abs(certificate_left_s(a) - days * DAY_S - DAY_S) < 600, "issued by the coordinator's clock"
        until(lambda: a.events("certificate.renewed"), READY_S, f"it renews: {a.tail()}")
        until(lambda: row(a, "MESH-CLK-001").get("verdict") == "failed", READY_S, f"it says so: {row(a, 'MESH-CLK-001')}")
        said = str(row(a, "MESH-CLK-001")["evidence"])
        assert (f"{'behind' if days > 0 else 'ahead of'} the coordinator") in said, said
        assert re.search(r"259\d{3}|3(\.0)? d", said), said
        until(lambda: a.status()["link"]["connected"] and b.status()["link"]["connected"], READY_S, "it follows")
        until(lambda: a.proves("b") and b.proves("a"), READY_S, "the mesh works")


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
    """The nodes' certificates have ended in between, the tunnels have not."""
    lab = three_days_ago
    a, b = lab.members("a", "b")
    until(lambda: (a.state / "map").exists() and (b.state / "map").exists(), READY_S, "both have the map")
    lab.coordinator.stop()
    until(lambda: not a.status()["link"]["connected"] and not b.status()["link"]["connected"], READY_S, "both notice")
    assert certificate_left_s(a) < -1.9 * DAY_S
    until(lambda: a.proves("b", younger_than_s=1.0) and b.proves("a", younger_than_s=1.0), READY_S, "the mesh works")
    restart_with_clock(lab, 0)
    for node in (a, b):
        until(lambda node=node: certificate_left_s(node) > 0.9 * DAY_S, 60, f"{node.name} renews: {node.tail()}")  # type: ignore[misc]
        until(lambda node=node: node.status()["link"]["connected"], 60, f"{node.name} follows: {node.tail()}")  # type: ignore[misc]
        until(lambda node=node: node.proves("a" if node is b else "b"), READY_S, "and the tunnel stands")  # type: ignore[misc]
        node.stop()


def test_certificate_has_ended_by_the_coordinators_clock_alone() -> None:
    """The node's clock stands still in the past: by its own reckoning it needs no renewal, and the front lets it in no more."""
    with Lab() as lab:
        a, b = lab.members("a", "b")
        assert certificate_left_s(a) > 0.9 * DAY_S
        restart_with_clock(lab, 3)
        for node in (a, b):
            until(lambda node=node: node.events("certificate.renewed"), 90, f"{node.name} renews: {node.tail()}")  # type: ignore[misc]
            until(lambda node=node: node.status()["link"]["connected"], 60, f"{node.name} follows: {node.tail()}")  # type: ignore[misc]
