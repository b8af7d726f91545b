"""Findings as evidence: what a coordinator believes of its nodes, refuses, keeps and writes down (NET-7, MON-1).

Real nodes' ledgers and keys against a coordinator's service; the attacker is a member that says what it likes.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
import pytest_asyncio

from coordinator.findings import BURST, PER_S, Why
from coordinator.peer import PeerIdentity
from coordinator.records import Why as Gone
from coordinator.testimony import (
    NodeFindingClosed,
    NodeFindingDropped,
    NodeFindingOpened,
    NodeFindingRefused,
    audit,
    event_of,
)
from meshctl.agent.ledger import Ledger
from meshctl.crypto.identity import FINDING_CONTEXT, Identity
from meshctl.events import Event
from meshctl.mesh.catalogue import CLOCK, KEY, PATH
from meshctl.mesh.evidence import SIGNED_OPEN
from meshctl.wire import codec, session
from meshctl.wire.codec import FindingRow
from meshctl.wire.session import UpFrame
from tests.harness.fellows import connect
from tests.harness.world import Computer, World, world

KINDS = NodeFindingOpened, NodeFindingClosed, NodeFindingDropped, NodeFindingRefused
FOUND = FindingRow(PATH, "", "failed", 1_800_000_000.0, 1_800_000_001.0, "3 echoes unanswered")


class Scene:
    """A mesh, and a node `a` that reports to its first coordinator."""

    def __init__(self, mesh: World, a: Computer, b: Computer) -> None:
        self.mesh, self.a, self.b = mesh, a, b
        self.ledger = Ledger(a.identity, lambda: mesh.mesh.id, mesh.clock)

    async def says(self, rows: tuple[FindingRow, ...], closed: tuple[FindingRow, ...] = (), **how: int) -> None:
        """As it would come over the wire."""
        one, who = self.mesh.first, PeerIdentity(IPv4Address("192.0.2.1"), "spiffe://")
        up = UpFrame(applied=(one.feed.revision, b"", "ok"), findings=rows, closed=closed)
        await one.service.take(self.a.id, who, session.decode_up(session.encode_up(up)), **how)

    async def tells(self, *rows: FindingRow) -> None:
        """What an honest node does."""
        await self.says(*self.ledger.tell(rows, {}))

    def believed(self) -> list[tuple[str, str]]:
        return [(row.code, row.subject) for row in self.mesh.first.presence[self.a.id].findings]

    def told(self) -> list[Event]:
        return [event for event in self.mesh.events.all if isinstance(event, KINDS)]

    def refused(self) -> dict[str, int]:
        return {why: count for why, count in self.mesh.first.views.findings.refused.items() if count}

    def sign(self, row: FindingRow, number: int, by: Identity | None = None, closed: bool = False) -> FindingRow:
        row = replace(row, number=number)
        claim = row.claim(self.mesh.mesh.id, self.a.id, closed=closed)
        return replace(row, signature=(by or self.a.identity).sign(FINDING_CONTEXT + claim.body))


@pytest_asyncio.fixture
async def scene() -> AsyncIterator[Scene]:
    async with world() as mesh:
        yield Scene(mesh, *await connect(mesh, 0, "a", "b"))


# ---- the weather -----------------------------------------------------------------------------------------------------


async def test_finding_opens_worsens_and_closes_each_with_a_line_that_verifies(scene: Scene) -> None:
    dead = replace(FOUND, subject=scene.b.id)
    for rows in ((dead,), (dead,), (replace(dead, evidence="still"),), (replace(dead, verdict="degraded"),), ()):
        await scene.tells(*rows)
    opened, worse, closed = scene.told()
    assert [type(e) for e in (opened, worse, closed)] == [NodeFindingOpened, NodeFindingOpened, NodeFindingClosed]
    assert isinstance(opened, NodeFindingOpened)
    assert (opened.subject, opened.verdict, opened.source) == (scene.b.id, "failed", IPv4Address("192.0.2.1"))
    assert (scene.believed(), scene.refused()) == ([], {})
    assert scene.mesh.first.views.findings.signed == 3


async def test_coordinator_that_starts_anew_believes_what_was_signed_before(scene: Scene) -> None:
    await scene.tells(FOUND)
    await scene.mesh.restart()
    scene.mesh.first.presence.opened(scene.a.id, "", now=scene.mesh.clock())
    scene.ledger.begin(scene.mesh.first.views.findings.heard(scene.a.id))
    await scene.tells(FOUND)
    assert (scene.believed(), scene.refused()) == ([(PATH, "")], {})
    assert [type(e) for e in scene.told()] == [NodeFindingOpened] * 2


async def test_node_that_was_elsewhere_for_a_while_is_understood(scene: Scene) -> None:
    """At the other coordinator one finding closed and another opened: this one hears of both when it comes back."""
    await scene.tells(FOUND)
    scene.ledger.begin(0)
    scene.ledger.tell((replace(FOUND, code=KEY),), {})
    scene.ledger.begin(scene.mesh.first.views.findings.heard(scene.a.id))
    await scene.tells(replace(FOUND, code=KEY), replace(FOUND, code=CLOCK))
    assert (scene.believed(), scene.refused()) == ([(KEY, ""), (CLOCK, "")], {})
    assert [type(e) for e in scene.told()] == [
        NodeFindingOpened, NodeFindingClosed, NodeFindingOpened, NodeFindingOpened
    ]  # fmt: skip


async def test_node_that_restarts_with_an_older_clock_is_believed_after_the_welcome(scene: Scene) -> None:
    await scene.tells(FOUND)
    scene.mesh.clock.now -= 3600
    scene.ledger = Ledger(scene.a.identity, lambda: scene.mesh.mesh.id, scene.mesh.clock)
    scene.ledger.begin(scene.mesh.first.views.findings.heard(scene.a.id))
    await scene.tells(FOUND)
    assert (scene.believed(), scene.refused()) == ([(PATH, "")], {})


async def test_restarted_node_says_no_more_of_a_finding_and_the_log_tells_so(scene: Scene) -> None:
    await scene.tells(FOUND)
    await scene.says(())
    _, dropped = scene.told()
    assert isinstance(dropped, NodeFindingDropped)
    assert (dropped.code, dropped.number, scene.believed()) == (PATH, int(scene.mesh.clock() * 1000), [])


async def test_report_of_a_session_that_has_ended_comes_late_and_silences_nothing_for_good(scene: Scene) -> None:
    await scene.tells(FOUND)
    await scene.says(())
    await scene.tells(FOUND)
    assert (scene.believed(), scene.refused()) == ([(PATH, "")], {})
    assert [type(e) for e in scene.told()] == [NodeFindingOpened, NodeFindingDropped, NodeFindingOpened]
    await scene.tells()
    await scene.says((scene.sign(FOUND, 5),))
    assert (scene.believed(), scene.refused()) == ([], {Why.REPLAYED: 1}), "what was said to be over is over"


async def test_node_of_an_earlier_release_is_believed_unsigned_as_before(scene: Scene) -> None:
    await scene.says((replace(FOUND, number=9, signature=b"x" * 64),), protocol=1)
    (row,) = scene.mesh.first.presence[scene.a.id].findings
    assert (row.code, row.number, row.signature) == (PATH, 0, b"")
    assert (scene.told(), scene.refused()) == ([], {})


async def test_node_that_goes_back_to_an_earlier_release_takes_no_signature_along(scene: Scene) -> None:
    await scene.tells(FOUND)
    await scene.says((FOUND,), protocol=codec.PROTOCOL_MIN)
    assert [type(e) for e in scene.told()] == [NodeFindingOpened, NodeFindingDropped]
    assert [row.signature for row in scene.mesh.first.presence[scene.a.id].findings] == [b""]


async def test_whole_mesh_out_of_reach_costs_little(
    scene: Scene, record_property: Callable[[str, object], None]
) -> None:
    rows = tuple(replace(FOUND, subject=f"peer{n}") for n in range(SIGNED_OPEN))
    begun = time.process_time()
    told = scene.ledger.tell(rows, {})
    signing = time.process_time() - begun
    begun = time.process_time()
    await scene.says(*told)
    first = time.process_time() - begun
    begun = time.process_time()
    await scene.says(*scene.ledger.tell(rows, {}))
    again = time.process_time() - begun
    assert len(scene.believed()) == SIGNED_OPEN
    each = f"{signing / SIGNED_OPEN * 1e6:.0f} us to sign, {first / SIGNED_OPEN * 1e6:.0f} us to take"
    record_property("figure", f"a signed finding: {each}, {again / SIGNED_OPEN * 1e6:.1f} us when it is said again")
    assert again < first / 3


# ---- the attacks -----------------------------------------------------------------------------------------------------


async def test_forged_signature_is_refused_and_told_once_a_minute(scene: Scene) -> None:
    bad = scene.sign(FOUND, 5)
    bad = replace(bad, signature=bytes(64))
    for _ in range(50):
        await scene.says((bad,))
    (refused,) = scene.told()
    assert isinstance(refused, NodeFindingRefused)
    assert (refused.why, refused.number, scene.believed()) == (Why.FORGED, 5, [])
    assert scene.refused() == {Why.FORGED: 50}
    await scene.says((scene.sign(FOUND, 5),))
    assert scene.believed() == [(PATH, "")], "what was refused takes no number"


async def test_other_nodes_signature_is_refused(scene: Scene) -> None:
    await scene.says((scene.sign(FOUND, 5, by=scene.b.identity),))
    assert (scene.believed(), scene.refused()) == ([], {Why.FORGED: 1})


async def test_other_nodes_genuine_finding_is_not_this_ones(scene: Scene) -> None:
    theirs = Ledger(scene.b.identity, lambda: scene.mesh.mesh.id, scene.mesh.clock)
    await scene.says(*theirs.tell((FOUND,), {}))
    assert (scene.believed(), scene.refused()) == ([], {Why.FORGED: 1})


async def test_signature_for_another_mesh_is_refused(scene: Scene) -> None:
    elsewhere = Ledger(scene.a.identity, lambda: "another-mesh", scene.mesh.clock)
    await scene.says(*elsewhere.tell((FOUND,), {}))
    assert (scene.believed(), scene.refused()) == ([], {Why.FORGED: 1})


@pytest.mark.parametrize("change", [
    {"evidence": "all is well"}, {"verdict": "degraded"}, {"code": KEY}, {"since": 1.0}, {"at": 1.0}, {"number": 6},
    {"subject": "b"},
], ids=str)  # fmt: skip
async def test_altered_finding_is_refused(scene: Scene, change: dict[str, object]) -> None:
    await scene.says((replace(scene.sign(FOUND, 5), **change),))  # type: ignore[arg-type]
    assert (scene.believed(), scene.refused()) == ([], {Why.FORGED: 1})


async def test_evidence_altered_after_it_was_believed_changes_nothing(scene: Scene) -> None:
    genuine = scene.sign(FOUND, 5)
    await scene.says((genuine,))
    await scene.says((replace(genuine, evidence="all is well"),))
    assert [row.evidence for row in scene.mesh.first.presence[scene.a.id].findings] == [FOUND.evidence]
    assert scene.refused() == {Why.REPLAYED: 1}


async def test_replayed_opening_and_closing_are_refused(scene: Scene) -> None:
    opened, closed = scene.sign(FOUND, 5), scene.sign(replace(FOUND, verdict="ok"), 6, closed=True)
    await scene.says((opened,))
    await scene.says((), (closed,))
    await scene.says((opened,))
    assert (scene.believed(), scene.refused()) == ([], {Why.REPLAYED: 1}), "what is over does not open again"
    anew = scene.sign(FOUND, 7)
    await scene.says((anew,))
    await scene.says((anew,), (closed,))
    assert (scene.believed(), scene.refused()) == ([(PATH, "")], {Why.REPLAYED: 2}), "an old closing closes nothing new"


async def test_opening_passed_off_as_a_closing_is_refused(scene: Scene) -> None:
    opened = scene.sign(FOUND, 5)
    await scene.says((opened,))
    await scene.says((opened,), (scene.sign(FOUND, 6),))
    assert (scene.believed(), scene.refused()) == ([(PATH, "")], {Why.FORGED: 1})


@pytest.mark.parametrize("change", [
    {"number": 0}, {"number": 2**63}, {"signature": b"x" * 63}, {"signature": b"x" * 100_000}, {"code": "C" * 5000},
    {"subject": "s" * 5000}, {"verdict": "no such\n"}, {"since": float("nan")}, {"at": float("inf")}, {"since": -1.0},
    {"since": 1e300},
], ids=lambda change: str(change)[:30])  # fmt: skip
async def test_oversized_and_malformed_findings_are_refused(scene: Scene, change: dict[str, object]) -> None:
    await scene.says((replace(scene.sign(FOUND, 5), **change),))  # type: ignore[arg-type]
    assert (scene.believed(), scene.refused()) == ([], {Why.MALFORMED: 1})
    assert all(len(event.code) <= 64 and len(event.subject) <= 64 for event in scene.told())  # type: ignore[attr-defined]


async def test_unsigned_finding_of_a_release_that_signs_is_refused(scene: Scene) -> None:
    await scene.says((FOUND,))
    assert (scene.believed(), scene.refused()) == ([], {Why.UNSIGNED: 1})


async def test_member_cannot_flood_the_log_until_the_evidence_of_others_is_rotated_away(scene: Scene) -> None:
    number = 0
    for _ in range(20):
        rows = []
        for n in range(SIGNED_OPEN):
            number += 1
            rows.append(scene.sign(replace(FOUND, subject=f"s{n}"), number))
        await scene.says(tuple(rows))
    opened = [event for event in scene.told() if isinstance(event, NodeFindingOpened)]
    assert len(opened) == BURST
    assert set(scene.refused()) == {Why.TOO_MANY}
    assert len(scene.told()) == BURST + 1
    scene.mesh.first.steady.now += 10
    scene.mesh.first.views.findings.refused.clear()
    await scene.says(tuple(rows))
    assert scene.mesh.first.views.findings.signed == BURST + 10 * PER_S, "and later it is heard again"


async def test_member_that_says_and_unsays_the_same_floods_no_log_either(scene: Scene) -> None:
    rows = tuple(scene.sign(replace(FOUND, subject=f"s{n}"), n + 1) for n in range(SIGNED_OPEN))
    for _ in range(20):
        await scene.says(rows)
        await scene.says(())
    assert len([event for event in scene.told() if isinstance(event, NodeFindingOpened)]) == BURST
    assert len(scene.told()) == 2 * BURST + 1


async def test_what_one_node_holds_is_bounded_and_forgotten_with_it(scene: Scene) -> None:
    rows = tuple(scene.sign(replace(FOUND, subject=f"s{n}"), n + 1) for n in range(2 * SIGNED_OPEN))
    await scene.says(rows)
    assert scene.mesh.first.views.findings.open == SIGNED_OPEN
    await scene.mesh.first.members.depart(scene.a.id, Gone.REVOKED, "", "operator:0")
    await scene.mesh.caught_up()
    assert scene.mesh.first.views.findings.open == 0


async def test_line_of_the_log_is_what_an_auditor_reads(scene: Scene) -> None:
    row = scene.sign(FOUND, 5)
    claim = row.claim(scene.mesh.mesh.id, scene.a.id, closed=False)
    await scene.says((row,))
    (event,) = scene.told()
    assert replace(event, source=None) == event_of(claim, scene.a.identity.device_key, row.signature)
    assert audit(b"{}") is None
