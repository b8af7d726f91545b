"""What watch tells: each kind of change between two pictures, and silence where only ages moved (MON-6)."""

from __future__ import annotations

from typing import Any

from meshctl.mesh.changes import changes
from tests.cli.test_inspect import FINDING, PICTURE, picture


def told(before: Any, after: Any) -> list[str]:
    return list(changes(before, after))


def peer(**changed: Any) -> dict[str, Any]:
    return {**PICTURE["peers"][0], **changed}


def link(**changed: Any) -> dict[str, Any]:
    return {**PICTURE["link"], **changed}


def test_first_look_says_how_things_are_and_ages_are_no_change() -> None:
    assert told(None, picture()) == ["gpu-a1 in mesh secretproject: ok, 1 of 1 peers ok"]
    older = picture(peers=[peer(rtt_ms=9.0, handshake_age_s=99.0)], link=link(age_s=99.0), rows=[])
    assert told(picture(), older) == []


def test_first_look_names_open_findings() -> None:
    first = told(None, picture(verdict="degraded", findings=[FINDING]))
    assert first[1:] == ["! MESH-PATH-001 gpu-b7 opened: 3 echoes in a row unanswered -> is the peer up?"]


def test_findings_open_move_and_close() -> None:
    bad = picture(verdict="degraded", findings=[FINDING])
    assert told(picture(), bad) == [
        "verdict ok -> degraded", "! MESH-PATH-001 gpu-b7 opened: 3 echoes in a row unanswered -> is the peer up?",
    ]  # fmt: skip
    assert told(bad, picture()) == ["verdict degraded -> ok", "MESH-PATH-001 gpu-b7 closed after 4 min"]
    softer = picture(verdict="degraded", findings=[{**FINDING, "verdict": "degraded", "evidence": "20 % lost"}])
    assert told(bad, softer) == ["! MESH-PATH-001 gpu-b7 failed -> degraded: 20 % lost"]


def test_peers_come_go_move_and_fail() -> None:
    other = peer(id="x", name="gpu-c2", address4="10.77.0.3", state="unknown")
    assert told(picture(), picture(peers=[peer(), other])) == ["gpu-c2 (10.77.0.3) is new: unknown"]
    assert told(picture(peers=[peer(), other]), picture()) == ["gpu-c2 (10.77.0.3) is gone from the mesh"]
    assert told(picture(), picture(peers=[peer(state="failed")])) == ["! gpu-b7 ok -> failed"]
    assert told(picture(peers=[peer(state="failed")]), picture()) == ["gpu-b7 failed -> ok"]
    moved = told(picture(), picture(peers=[peer(endpoint=None)]))
    assert moved == ["gpu-b7 moved from 203.0.113.7:51820 to nowhere"]


def test_coordinator_and_agent_go_and_come_back() -> None:
    lost = picture(link=link(connected=False, error="h:1 does not answer"))
    assert told(picture(), lost) == [
        "! coordinator coord.example.org:7443 lost: h:1 does not answer; the mesh works on"
    ]
    assert told(lost, picture()) == ["coordinator coord.example.org:7443 connected"]
    assert told(picture(), picture(link=link(coordinator="b:1"))) == ["coordinator b:1 connected"]
    assert told(picture(), None) == ["! the agent does not answer"]
    assert told(None, None) == []
