"""Letters between nodes whose tunnel is down: by stream, or through etcd to another coordinator (NET-6, OPS-2)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest_asyncio

from coordinator import post
from coordinator.post import BATCH, SHARE
from coordinator.registry import POST
from coordinator.service.sessions import LETTERS_KEPT, _Stream
from meshctl.errors import UnreachableError
from meshctl.mesh.model import NodeId
from meshctl.mesh.psk_packets import Letter
from meshctl.wire import session
from tests.harness.fellows import connect
from tests.harness.front import until
from tests.harness.world import Computer, Coordinator, World, world

SLOTS = 2  # of two coordinators


@pytest_asyncio.fixture
async def mesh(monkeypatch: Any) -> AsyncIterator[World]:
    """Two coordinators that have heard of each other, and carry letters."""
    monkeypatch.setattr(post, "EVERY_S", 0.01)
    async with world(coordinators=2) as made:
        await made.heard()
        loops = [asyncio.ensure_future(one.fellows.post.run()) for one in made.coordinators]
        yield made
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)


def inbox(one: Coordinator) -> list[tuple[NodeId, Letter]]:
    """Everything that is delivered there from now on; who is not connected there gets nothing."""
    got: list[tuple[NodeId, Letter]] = []

    def deliver(node: NodeId, letter: Letter) -> bool:
        here = one.presence.is_connected(node)
        if here:
            got.append((node, letter))
        return here

    one.fellows.post.deliver = deliver
    return got


def slots(mesh: World) -> list[str]:
    return [path for path in mesh.registry._records if path.startswith(POST)]


def send(one: Coordinator, of: Computer, to: Computer, *said: bytes) -> None:
    one.fellows.post.take(of.id, [Letter(to.id, what) for what in said])


async def test_a_letter_goes_down_the_stream_of_the_node_it_is_for_and_touches_no_etcd(mesh: World) -> None:
    a, b = await connect(mesh, 0, "a", "b")
    got, before = inbox(mesh.first), mesh.registry.revision
    send(mesh.first, a, b, b"hello")
    assert got == [(b.id, Letter(a.id, b"hello"))], "and says who sent it, not what he says of himself"
    assert mesh.registry.revision == before


async def test_a_letter_to_a_node_at_another_coordinator_goes_through_etcd_and_so_does_the_answer(mesh: World) -> None:
    (a,), (b,) = await connect(mesh, 0, "a"), await connect(mesh, 1, "b")
    one, two = mesh.coordinators
    here, there = inbox(one), inbox(two)
    for number in range(3):
        send(one, a, b, b"%d" % number)
        await until(lambda number=number: len(there) == number + 1, 5)
        send(two, b, a, b"answer")
        await until(lambda number=number: len(here) == number + 1, 5)
    assert there == [(b.id, Letter(a.id, b"%d" % number)) for number in range(3)]
    assert here == [(a.id, Letter(b.id, b"answer"))] * 3
    assert len(slots(mesh)) == SLOTS, "written over, not collected"


async def test_letters_are_sealed_in_etcd(mesh: World) -> None:
    (a,), (b,) = await connect(mesh, 0, "a"), await connect(mesh, 1, "b")
    there = inbox(mesh.coordinators[1])
    send(mesh.first, a, b, b"in the open")
    await until(lambda: len(there) == 1, 5)
    (path,) = slots(mesh)
    stored = mesh.registry._records[path].value
    assert b"in the open" not in stored
    assert a.id.encode() not in stored


async def test_letters_to_nobody_to_the_departed_and_to_the_absent_are_lost(mesh: World) -> None:
    a, b = await connect(mesh, 0, "a", "b")
    got, before = inbox(mesh.first), mesh.registry.revision
    mesh.first.presence.closed(b.id, now=mesh.clock())
    send(mesh.first, a, b, b"away")
    mesh.first.fellows.post.take(a.id, [Letter(NodeId("nobody"), b"x"), Letter(NodeId(""), b"x")])
    assert not got
    assert mesh.registry.revision == before


async def test_a_flood_of_one_node_leaves_room_for_others_and_a_full_batch_drops(mesh: World) -> None:
    (a, b, c), (far,) = await connect(mesh, 0, "a", "b", "c"), await connect(mesh, 1, "far")
    there = inbox(mesh.coordinators[1])
    send(mesh.first, a, far, *[b"flood"] * 1000)
    send(mesh.first, b, far, b"one")
    send(mesh.first, c, far, *[b"more"] * 1000)
    await until(lambda: len(there) == BATCH, 5)
    assert [letter.sealed for _, letter in there].count(b"flood") == SHARE
    assert (far.id, Letter(b.id, b"one")) in there


async def test_etcd_away_loses_letters_and_a_slot_that_was_swept_is_written_anew(mesh: World) -> None:
    (a,), (b,) = await connect(mesh, 0, "a"), await connect(mesh, 1, "b")
    one, two = mesh.coordinators
    there = inbox(two)
    send(one, a, b, b"first")
    await until(lambda: len(there) == 1, 5)

    async def refuse(*_: object) -> None:
        raise UnreachableError("etcd is away")

    genuine, one.fellows.post._registry = one.fellows.post._registry, SimpleNamespace(commit=refuse)  # type: ignore[assignment]
    send(one, a, b, b"lost")
    await until(lambda: not one.fellows.post._leaving, 5)
    one.fellows.post._registry = genuine
    await two.herald.take_down(two.fellows.post.is_left)
    assert slots(mesh), "its coordinator lives"
    await one.herald.leave()
    await mesh.caught_up()
    await two.herald.take_down(two.fellows.post.is_left)
    assert not slots(mesh)
    await mesh.heard()
    send(one, a, b, b"again")
    await until(lambda: len(there) == 2, 5)
    assert there[-1] == (b.id, Letter(a.id, b"again"))


async def test_a_node_that_takes_nothing_is_kept_no_more_than_a_frame_of_letters(mesh: World) -> None:
    a, b = await connect(mesh, 0, "a", "b")
    service = mesh.first.service
    stream = service._streams[b.id] = _Stream(service, b.id, SimpleNamespace(), SimpleNamespace(), 0, 2)  # type: ignore[arg-type]
    for number in range(100):
        send(mesh.first, a, b, b"%d" % number)
    assert len(stream.letters) == LETTERS_KEPT == session.LETTERS_PER_FRAME
