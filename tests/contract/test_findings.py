"""Signed findings over the real wire: the agent's follower, a node that forges, an agent and a coordinator of the
release before (NET-7, MON-1)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.testimony import NodeFindingClosed, NodeFindingOpened, NodeFindingRefused
from meshctl.crypto.identity import FINDING_CONTEXT, verify
from meshctl.mesh import limits
from meshctl.mesh.catalogue import KEY, PATH
from meshctl.wire import codec, operator, session
from meshctl.wire.codec import FindingRow
from meshctl.wire.session import UpFrame
from meshctl.wire.v1 import mesh_pb2 as pb
from tests.harness.front import until
from tests.harness.served import WITHIN_S, Live, Served, serving

FOUND = FindingRow(PATH, "x", "failed", 1.0, 2.0, "3 echoes unanswered")


@pytest.fixture
async def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    monkeypatch.setattr(limits, "HEARTBEAT_S", 0.05)
    async with serving(tmp_path / "run") as made:
        yield made


def says(node: Live, *found: FindingRow) -> None:
    node.findings = found
    node.follower.dirty.set()


def kinds(served: Served) -> list[str]:
    return [event.kind for event in served.mesh.events.all if event.kind.startswith("node-finding")]


def resume(node: Live, **hello: int) -> pb.Up:
    book = node.book
    up = session.encode_up(UpFrame(resume=(book.roster.incarnation, book.roster.revision, book.map_hash)))
    for name, value in hello.items():
        setattr(up.resume.hello, name, value)
    return up


async def test_followers_finding_reaches_operators_with_a_signature_that_verifies(served: Served) -> None:
    a = await served.live("a")
    says(a, FOUND)
    await until(lambda: kinds(served) == [NodeFindingOpened.kind], WITHIN_S)
    (state,) = operator.states(await served.operate("NodeList", operator.nothing()))
    (row,) = state.findings
    claim = row.claim(served.mesh.mesh.id, a.computer.id, closed=False)
    verify(state.node.statement.device_key, FINDING_CONTEXT + claim.body, row.signature)
    assert (PATH, "x") in a.follower.link.signed
    says(a, FOUND, replace(FOUND, code=KEY))
    await until(lambda: len(kinds(served)) == 2, WITHIN_S)
    a.follower.reconnect.set()
    await until(lambda: served.mesh.events.kinds().count("session.closed") == 2, WITHIN_S)
    says(a)
    await until(lambda: kinds(served)[2:] == [NodeFindingClosed.kind] * 2, WITHIN_S)
    assert not a.follower.link.signed
    await until(lambda: bool(a.follower.link.beat and a.follower.link.beat.heard > row.number), WITHIN_S)
    assert served.mesh.first.views.findings.refused.total() == 0


async def test_forger_keeps_its_stream_and_is_believed_nothing(served: Served) -> None:
    a = await served.live("a")
    async with served.open(a) as wire:
        call = wire.stream_stream(session.METHOD, session.serialize_up, None)()  # type: ignore[misc,call-arg]
        await call.write(resume(a))
        forged = replace(FOUND, code=KEY, number=2**61, signature=bytes(64))
        up = UpFrame(applied=(a.book.roster.revision, b"", "ok"), findings=(forged,))
        await call.write(session.encode_up(up))
        await until(lambda: kinds(served) == [NodeFindingRefused.kind], WITHIN_S)
        assert not served.mesh.first.presence[a.computer.id].findings
        says(a, FOUND)
        await until(lambda: NodeFindingOpened.kind in kinds(served), WITHIN_S)
        assert session.decode_down(await call.read()).beat
        call.cancel()


async def test_agent_of_the_release_before_is_believed_unsigned_and_told_which_protocol_holds(served: Served) -> None:
    a = await served.node("a")
    async with served.open(a) as wire:
        call = wire.stream_stream(session.METHOD, session.serialize_up, None)()  # type: ignore[misc,call-arg]
        await call.write(resume(a, protocol_min=1, protocol_max=1))
        welcome = pb.Down.FromString(await call.read())
        assert (welcome.protocol, welcome.heartbeat.heard) == (1, 0)
        await call.write(session.encode_up(UpFrame(applied=(1, b"", "degraded"), findings=(FOUND,))))
        presence = served.mesh.first.presence
        await until(lambda: presence[a.computer.id].findings == (FOUND,), WITHIN_S)
        assert kinds(served) == []
        call.cancel()


async def test_agent_that_asks_for_protocol_2_is_not_believed_unsigned(served: Served) -> None:
    a = await served.node("a")
    async with served.open(a) as wire:
        call = wire.stream_stream(session.METHOD, session.serialize_up, None)()  # type: ignore[misc,call-arg]
        await call.write(resume(a, protocol_min=1, protocol_max=99))
        assert pb.Down.FromString(await call.read()).protocol == codec.PROTOCOL
        await call.write(session.encode_up(UpFrame(applied=(1, b"", "degraded"), findings=(FOUND,))))
        await until(lambda: kinds(served) == [NodeFindingRefused.kind], WITHIN_S)
        assert not served.mesh.first.presence[a.computer.id].findings
        call.cancel()


async def test_coordinator_of_the_release_before_reads_the_findings_as_it_always_did(served: Served) -> None:
    """It knows the first six fields of a finding, and says nothing of what it heard."""
    a = await served.live("a")
    says(a, FOUND)
    await until(lambda: (PATH, "x") in a.follower.link.signed, WITHIN_S)
    message = session.encode_up(UpFrame(applied=(1, b"", "ok"), findings=tuple(a.follower.link.signed.values())))
    (told,) = message.findings
    assert (told.code, told.subject, told.verdict, told.since, told.at, told.evidence) == (
        FOUND.code, FOUND.subject, FOUND.verdict, FOUND.since, FOUND.at, FOUND.evidence,
    )  # fmt: skip
