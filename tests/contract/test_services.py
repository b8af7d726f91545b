"""The services as nodes, strangers and operators meet them: real gRPC, real TLS front, the agent's own client (NET-2,
ACC-3, ACC-4, ACC-5, MON-6, OPS-4)."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from coordinator.front import Why
from coordinator.service import sessions
from meshctl.agent import join
from meshctl.agent.store import Store
from meshctl.config import AgentConfig
from meshctl.crypto import pki
from meshctl.errors import ProtocolError, RefusedError, UnreachableError
from meshctl.events import SessionClosed
from meshctl.mesh import catalogue, limits
from meshctl.mesh.token import JoinToken
from meshctl.wire import codec, operator, overview, session
from meshctl.wire.codec import FindingRow
from meshctl.wire.session import UpFrame
from meshctl.wire.v1 import mesh_pb2 as pb
from meshctl.wire.v1 import mesh_pb2_grpc as rpc
from tests.harness.front import until
from tests.harness.served import WITHIN_S, Live, Served, ended, failure, serving

Code = grpc.StatusCode


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path / "run") as made:
        yield made


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats often, so that tests wait little."""
    monkeypatch.setattr(limits, "HEARTBEAT_S", 0.05)


def stream(wire: grpc.aio.Channel) -> Any:
    """A session whose messages are raw bytes."""
    return wire.stream_stream(session.METHOD, None, None)()


async def read(call: Any, wanted: Callable[[session.DownFrame], bool]) -> session.DownFrame:
    async with asyncio.timeout(WITHIN_S):
        while True:
            frame = session.decode_down(await call.read())
            if wanted(frame):
                return frame


def resume(node: Live) -> bytes:
    book = node.book
    at = book.roster.incarnation, book.roster.revision, book.map_hash
    return session.serialize_up(session.encode_up(UpFrame(resume=at)))


# ---- following -------------------------------------------------------------------------------------------------------


async def test_node_gets_a_snapshot_then_deltas_and_operators_see_it_applied(served: Served) -> None:
    a = await served.live("a")
    b = await served.live("b")
    await until(lambda: a.names == b.names == {"a", "b"}, WITHIN_S)
    assert [frame.snapshot for frame in a.book.frames] == [True, False]
    done = await served.operate("NodeRemove", operator.named("b"))
    reply = await served.operate("Applied", operator.applied_request(done.revision, WITHIN_S))
    assert (reply.applied, list(reply.stragglers)) == (1, [])
    assert a.names == {"a"}
    (state,) = operator.states(await served.operate("NodeList", operator.nothing()))
    assert (state.connected, state.applied, state.digest_ok, state.seen_address) == (
        True,
        done.revision,
        True,
        "127.0.0.1",
    )
    status = overview.status(await served.operate("Status", operator.nothing()))
    assert (status.nodes, status.connected, status.converged, status.etcd) == (1, 1, 1, "in memory")


async def test_node_that_applies_nothing_is_named_as_straggler(served: Served) -> None:
    a = await served.live("a")
    a.report = lambda: None  # type: ignore[method-assign]
    a.follower._report = a.report
    await served.node("b")
    reply = await served.operate("Applied", operator.applied_request(served.mesh.first.feed.revision, 0.1))
    assert sorted(reply.stragglers) == ["a", "b (not connected)"]
    assert (reply.applied, reply.waiting) == (0, 2)


@pytest.mark.usefixtures("quick")
async def test_resume_at_the_same_map_moves_nothing_and_heartbeats_go_on(served: Served) -> None:
    a = await served.live("a")
    frames = len(a.book.frames)
    for _ in range(3):
        sessions_before = served.mesh.events.kinds().count("session.opened")
        a.follower.reconnect.set()
        await until(lambda n=sessions_before: served.mesh.events.kinds().count("session.opened") >= n + 2, WITHIN_S)  # type: ignore[misc]
        beat = a.follower.link.beat_at
        await until(lambda at=beat: a.follower.link.connected and a.follower.link.beat_at > at, WITHIN_S)  # type: ignore[misc]
    assert len(a.book.frames) == frames
    assert abs(a.follower.link.clock_offset_s) < 5
    assert a.follower.link.seen_address == "127.0.0.1"
    await served.node("b")
    await until(lambda: a.names == {"a", "b"}, WITHIN_S)
    assert not a.book.frames[-1].snapshot


async def test_snapshot_that_is_asked_for_again_comes_at_once(served: Served) -> None:
    a = await served.live("a")
    async with served.open(a) as wire:
        call = stream(wire)
        await call.write(resume(a))
        await read(call, lambda f: f.mesh is not None)
        for _ in range(3):  # and not with the next heartbeat, ten seconds later
            await call.write(session.serialize_up(session.encode_up(UpFrame(again=True))))
            begun = time.monotonic()
            assert (await read(call, lambda f: f.moves_map)).snapshot
            assert time.monotonic() - begun < limits.HEARTBEAT_S / 2
        call.cancel()


async def test_book_that_went_wrong_heals_by_itself(served: Served) -> None:
    a = await served.live("a")
    a.book._hash += 1  # a flipped bit in memory
    await served.node("b")
    await until(lambda: a.names == {"a", "b"}, WITHIN_S)
    assert a.book.frames[-1].snapshot
    assert a.book.map_hash == served.mesh.first.feed.journal.hash


@pytest.mark.usefixtures("quick")
async def test_both_ends_of_a_pair_are_joined_and_sent_back(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "meshctl.mesh.catalogue.CATALOGUE",
        {code: replace(check, grace_s=0.0) for code, check in catalogue.CATALOGUE.items()},
    )
    a, b = await served.live("a"), await served.live("b")
    a.findings = (FindingRow("MESH-PATH-001", b.computer.id, "failed", 1.0, 2.0, "3 echoes unanswered"),)
    a.follower.dirty.set()
    for node, peer in ((a, b), (b, a)):
        await until(lambda n=node: bool(n.follower.link.beat and n.follower.link.beat.findings), WITHIN_S)  # type: ignore[misc]
        beat = node.follower.link.beat
        assert beat is not None
        assert [(row.code, row.subject) for row in beat.findings] == [("MESH-ASY-001", peer.computer.id)]
    a.findings = ()
    a.follower.dirty.set()
    await until(lambda: bool(a.follower.link.beat and not a.follower.link.beat.findings), WITHIN_S)


# ---- going -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
async def test_revoked_node_is_cut_and_learns_why(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshctl.agent.follow.FAILURES_BEFORE_ASKING", 1)
    a, b = await served.live("a"), await served.live("b")
    await served.operate("Revoke", operator.named("b", "stolen"))
    await until(lambda: a.names == {"a"}, WITHIN_S)
    await until(lambda: not b.follower.link.connected, WITHIN_S)
    await until(lambda: "no member any more (revoked)" in b.follower.link.last_error, WITHIN_S)
    assert b.names == {"a", "b"}  # losing the coordinator takes nothing away
    async with served.open(b) as wire:
        code, _ = await failure(rpc.MeshStub(wire).Leave(codec.leave_request()))
    assert code is Code.UNAVAILABLE
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await served.operate("Revoke", operator.named("b"))
    assert refused.value.details() == "node b was revoked already\nmesh-coordinator nodes list"


async def test_node_leaves_and_hears_the_answer(served: Served) -> None:
    a = await served.live("a")
    b = await served.node("b")
    await join.leave(b.member, b.computer.identity)
    await until(lambda: a.names == {"a"}, WITHIN_S)
    left = served.mesh.events.durable[-1]
    assert (left.kind, left.actor, str(left.source)) == ("node.left", f"node:{b.computer.id}", "127.0.0.1")


# ---- who may do what -------------------------------------------------------------------------------------------------


async def test_agent_joins_over_the_wire_and_is_refused_in_the_coordinators_words(
    served: Served, tmp_path: Path
) -> None:
    made = await served.mesh.token()
    token = JoinToken(made.ca_key, made.mesh, made.id, made.secret, (served.address,))
    config, store = AgentConfig(state_dir=tmp_path / "node"), Store(tmp_path / "node")
    member, resumed = await join.join(config, store, token, "a", (), ())
    assert (member.node.name, resumed) == ("a", False)
    (store.directory / "membership").unlink()  # the answer was lost: the same command goes on
    again, resumed = await join.join(config, store, token, "a", (), ())
    assert (again.node, resumed) == (member.node, True)
    with pytest.raises(RefusedError, match="used already") as refused:
        await join.join(config, Store(tmp_path / "other"), token, "b", (), ())
    assert "token create" in refused.value.hint
    fresh = await join.renew(
        store, replace(member, mesh=replace(member.mesh, coordinators=(served.address,))), store.identity()
    )
    assert pki.expiry(fresh.certificate) >= pki.expiry(member.certificate)


async def test_stranger_reaches_enrolment_and_nothing_else(served: Served) -> None:
    async with served.open() as wire:
        challenge = await rpc.EnrolmentStub(wire).Begin(codec.hello(), timeout=WITHIN_S)
        assert challenge.mesh_id == served.mesh.mesh.id
        call = stream(wire)
        assert await ended(call) == (Code.UNAUTHENTICATED, "this call needs a node's certificate\nmeshctl join TOKEN")
        code, _ = await failure(rpc.MeshStub(wire).Leave(codec.leave_request()))
        assert code is Code.UNAUTHENTICATED
        code, _ = await failure(rpc.OperatorStub(wire).TokenList(operator.nothing()))
        assert code is Code.UNIMPLEMENTED


async def test_node_is_no_operator(served: Served) -> None:
    a = await served.node("a")
    async with served.open(a) as wire:
        for method, request in (
            ("Status", operator.nothing()),
            ("Revoke", operator.named("a")),
            ("TokenCreate", operator.token_request(60, 1, (), False, "")),
        ):
            code, _ = await failure(getattr(rpc.OperatorStub(wire), method)(request))
            assert code is Code.UNIMPLEMENTED


async def test_call_that_did_not_come_through_the_front_is_nobody(served: Served) -> None:
    async with grpc.aio.insecure_channel(f"unix:{served.sockets / 'backend.sock'}") as wire:
        for call in (rpc.EnrolmentStub(wire).Begin(codec.hello()), rpc.MeshStub(wire).Leave(codec.leave_request())):
            code, words = await failure(call)
            assert code is Code.UNAUTHENTICATED
            assert "did not come through the TLS front" in words


async def test_node_that_is_not_known_yet_is_waited_for_and_then_refused(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "JUST_JOINED_S", 0.3)
    other = await served.mesh.coordinator()
    ghost = await served.node("a")
    ghost.computer = served.mesh.computer("ghost")
    certificate = pki.issue_node(
        served.mesh.authority.ca_key, served.mesh.mesh.ca, served.mesh.mesh.id, ghost.computer.identity.device_key,
        ghost.computer.id, now=time.time(),
    )  # fmt: skip
    ghost.member = replace(ghost.member, certificate=certificate)
    async with served.open(ghost) as wire:
        call = stream(wire)
        await call.write(resume(ghost))
        assert await ended(call) == (
            Code.PERMISSION_DENIED,
            "this mesh does not know this node\nmeshctl leave --force, then join with a new token",
        )
        monkeypatch.setattr(sessions, "JUST_JOINED_S", WITHIN_S)
        call = stream(wire)
        await call.write(resume(ghost))
        await ghost.computer.join(other, await served.mesh.token())
        assert (await read(call, lambda f: f.moves_map)).snapshot
        call.cancel()


async def test_health_is_answered_through_the_front(served: Served) -> None:
    async with served.open() as wire:
        answer = await health_pb2_grpc.HealthStub(wire).Check(health_pb2.HealthCheckRequest(), timeout=WITHIN_S)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


# ---- bad input -------------------------------------------------------------------------------------------------------

GARBAGE = b"\xff\xff\xff\xff"


@pytest.mark.parametrize("first", [True, False])
async def test_garbage_in_a_stream_ends_it_with_a_word_and_no_traceback(
    served: Served, first: bool, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    a = await served.node("a")
    async with served.open(a) as wire:
        call = stream(wire)
        if not first:
            await call.write(resume(a))
            await read(call, lambda f: f.moves_map)
        await call.write(GARBAGE)
        code, words = await ended(call)
    assert code is Code.INVALID_ARGUMENT
    assert "malformed" in words
    await until(lambda: not any(True for _ in served.mesh.first.presence.connected()), WITHIN_S)
    shown = caplog.text + "".join(capfd.readouterr())
    assert "Traceback" not in shown


async def test_garbage_in_a_request_is_refused_with_a_word_and_no_traceback(
    served: Served, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    async with served.open() as wire:
        for method in ("Begin", "Join", "Renew"):
            call = wire.unary_unary(f"/meshctl.wire.v1.Enrolment/{method}")(GARBAGE)
            code, words = await failure(call)
            assert (code, "malformed request" in words) == (Code.INVALID_ARGUMENT, True)
        for body in (GARBAGE, b"", b"\x0a\x03abc"):
            for method in ("Join", "Renew"):
                code, words = await failure(getattr(rpc.EnrolmentStub(wire), method)(codec.signed(body, bytes(64))))
                assert code in {Code.INVALID_ARGUMENT, Code.UNAUTHENTICATED}, words
    shown = caplog.text + "".join(capfd.readouterr())
    assert "Traceback" not in shown


async def test_oversized_messages_end_before_and_after_authentication(served: Served) -> None:
    a = await served.node("a")
    large, huge = bytes(limits.PRE_AUTH_MESSAGE_BYTES + 1), bytes(limits.UP_MESSAGE_BYTES + 1)
    hello = pb.Hello(protocol_max=1, release="x" * len(large))
    both = (codec.signed(large, b""), codec.signed(b"", large))
    for method, request in [("Begin", hello), *(("Join", one) for one in both), *(("Renew", one) for one in both)]:
        async with served.open() as wire:
            code, words = await failure(getattr(rpc.EnrolmentStub(wire), method)(request))
            assert (code, "before authentication" in words) == (Code.INVALID_ARGUMENT, True)
    async with served.open() as wire:
        code, _ = await failure(rpc.EnrolmentStub(wire).Join(codec.signed(huge, b"")))
        assert code is Code.UNAVAILABLE  # the front cuts a stranger who sends that much
    assert served.front.connections.cut[Why.TOO_MUCH] == 1
    async with served.open(a) as wire:
        call = stream(wire)
        await call.write(resume(a))
        await call.write(huge)
        code, _ = await ended(call)
        assert code is Code.RESOURCE_EXHAUSTED


async def test_protocol_of_another_age_hears_both_ranges(served: Served) -> None:
    a = await served.node("a")
    strange = pb.Hello(protocol_min=7, protocol_max=9, release="9.9")
    async with served.open() as wire:
        code, words = await failure(rpc.EnrolmentStub(wire).Begin(strange))
        assert code is Code.INVALID_ARGUMENT
        assert "speaks protocol 7 to 9" in words
        assert "speaks 1" in words
    async with served.open(a) as wire:
        call = stream(wire)
        await call.write(pb.Up(resume=pb.Resume(hello=strange)).SerializeToString())
        code, words = await ended(call)
        assert (code, "speaks protocol 7 to 9" in words) == (Code.INVALID_ARGUMENT, True)


async def test_session_begins_with_resume_and_reports_have_a_pace(served: Served) -> None:
    a = await served.node("a")
    report = session.serialize_up(session.encode_up(UpFrame(applied=(1, b"", "ok"))))
    async with served.open(a) as wire:
        call = stream(wire)
        await call.write(report)
        assert await ended(call) == (Code.INVALID_ARGUMENT, "a session begins with Resume\n")
        call = stream(wire)
        await call.write(resume(a))
        with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
            for _ in range(200):
                await call.write(report)
        await ended(call)  # the code may be lost: the client was still writing
        closed = [e.why for e in served.mesh.events.all if isinstance(e, SessionClosed)]
        assert closed == ["this node reports too often"]


async def test_node_ahead_of_this_coordinator_is_sent_elsewhere(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "JUST_JOINED_S", 0.1)
    a = await served.live("a")
    b = await served.node("b")
    b.book.roster = replace(a.book.roster, revision=10**9)
    with pytest.raises(UnreachableError, match="has not heard of revision 1000000000"):
        await b.follower._session(served.address)


async def test_coordinator_that_sends_nonsense_is_left_alone(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    a = await served.node("a")
    monkeypatch.setattr(
        served.mesh.first.feed,
        "frames",
        lambda _: [pb.Down(snapshot=True, to_revision=9, map_hash=b"x").SerializeToString()],
    )
    with pytest.raises(ProtocolError, match="do not match their hash"):
        async with asyncio.timeout(WITHIN_S):
            await a.follower._session(served.address)
    assert not a.book.roster.revision
