"""A fault on a real mesh becomes a signed line of the coordinator's log; a copy that lies is caught (NET-7, MON-1)."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator.testimony import audit
from meshctl.mesh.catalogue import HANDSHAKE, PATH
from meshctl.mesh.evidence import Claim
from tests.harness.mesh import COORDINATOR, READY_S, Lab, Node, until

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        made.members("a", "b", "c")
        yield made


def lines(lab: Lab) -> list[bytes]:
    log: Path = lab.coordinator.data / "events.jsonl"
    return log.read_bytes().splitlines()


def claims(lab: Lab, about: str, *, closed: bool) -> list[Claim]:
    """What its log proves by now about the reachability of a node; raises when a line does not verify."""
    told = [claim for claim in map(audit, lines(lab)) if claim]
    return [one for one in told if one.closed is closed and one.subject == about and one.code in (PATH, HANDSHAKE)]


def sayers(lab: Lab, about: str, *, closed: bool) -> set[str]:
    return {one.node for one in claims(lab, about, closed=closed)}


def verified(lab: Lab, log: Path) -> subprocess.CompletedProcess[str]:
    return lab.coordinator.run(*COORDINATOR, "findings", "verify", str(log))


def health(node: Node) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(node.meshctl("health", "--mesh", "--json").stdout)["findings"]
    return found


def test_dead_node_is_a_signed_line_of_each_peer_and_an_altered_copy_is_caught(
    lab: Lab, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    a, _, c = lab.nodes
    until(lambda: all(n.proves(*(o.name for o in lab.nodes if o is not n)) for n in lab.nodes), 40, "all is well")
    ids = {name: state.node.id for name, state in lab.coordinator.nodes().items()}
    begun = time.monotonic()
    c.ns.command("nft", "add table inet wire")
    c.ns.command("nft", "add chain inet wire in { type filter hook input priority 0; }")
    c.ns.command("nft", "add rule inet wire in udp dport 51820 drop")
    try:
        until(lambda: sayers(lab, ids["c"], closed=False) == {ids["a"], ids["b"]}, 40, "both say so")
        record_property("figure", f"a dead path is a signed line of both peers after {time.monotonic() - begun:.1f} s")
        found = [finding for finding in health(a) if finding["subject"] == ids["c"]]
        assert found
        assert all(finding["signed"] is True for finding in found)
        listed = json.loads(lab.coordinator.command("nodes", "list", "--json").stdout)
        told = {node["name"]: node["findings"] for node in listed}
        assert all(finding["signature"] and finding["number"] for finding in told["a"])
    finally:
        c.ns.command("nft", "delete table inet wire")
    until(lambda: sayers(lab, ids["c"], closed=True) == {ids["a"], ids["b"]}, 90, "it is over")
    good = verified(lab, lab.coordinator.data / "events.jsonl")
    assert (good.returncode, " 0 do not" in good.stderr) == (0, True), good.stderr
    copy = tmp_path / "events.jsonl"
    copy.write_bytes(b"\n".join(line.replace(ids["c"].encode(), ids["b"].encode()) for line in lines(lab)))
    bad = verified(lab, copy)
    assert (bad.returncode, "! line" in bad.stdout) == (8, True), bad.stdout


def test_coordinator_that_restarts_believes_open_findings_again(lab: Lab) -> None:
    a, _, c = lab.nodes
    ids = {name: state.node.id for name, state in lab.coordinator.nodes().items()}
    before = len(claims(lab, ids["c"], closed=False))
    c.stop()
    c.drop_interface()
    try:
        until(lambda: len(claims(lab, ids["c"], closed=False)) > before, 40, "c is gone, and so they sign")
        lab.coordinator.stop()
        lab.coordinator.start()

        def believed() -> bool:
            return any(f.subject == ids["c"] and f.signature for f in lab.coordinator.nodes()["a"].findings)

        until(believed, READY_S, "what was signed before is believed anew")
        assert [finding["signed"] for finding in health(a) if finding["subject"] == ids["c"]]
        assert "node-finding.refused" not in (lab.coordinator.data / "events.jsonl").read_text()
    finally:
        c.up()
    until(lambda: a.proves("c"), 60, "it is back")
