"""After any weather, a book that takes frames from any cursor is the registry again (NET-2, NET-4, OPS-2).

The oracle is the registry itself, read whole; the steps are joins, departures, changes, cut connections, restarts of
nodes and coordinators, lagging watches, compactions and sweeps, in any order hypothesis finds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator import records
from coordinator.records import NodeRecord, Tombstone, Why
from coordinator.registry import GONE, NODES
from coordinator.service import sessions
from meshctl.errors import RefusedError, UnreachableError
from meshctl.mesh import limits
from tests.harness.world import SOURCE, Computer, World, endpoint, world

MACHINES = 6
machine = st.integers(0, MACHINES - 1)
place = st.integers(0, 1)
STEP = st.one_of(
    st.tuples(st.just("join"), machine, place),
    st.tuples(st.just("join"), machine, place),
    st.tuples(st.sampled_from(["remove", "leave"]), machine, place),
    st.tuples(st.just("revoke"), machine, place),
    st.tuples(st.just("change"), machine, st.integers(1, 9)),
    st.tuples(st.just("sync"), machine, place),
    st.tuples(st.just("sync"), machine, place),
    st.tuples(st.just("cut"), machine, st.integers(0, 3)),
    st.tuples(st.just("reboot"), machine, place),
    st.tuples(st.sampled_from(["lag", "follow", "compact", "restart", "sweep"]), machine, place),
)
DEPARTURES = {"remove": Why.REMOVED, "leave": Why.LEFT, "revoke": Why.REVOKED}


@pytest.fixture(autouse=True)
def _small_frames() -> Iterator[None]:
    with (
        mock.patch.object(limits, "SNAPSHOT_NODES_PER_FRAME", 2),
        mock.patch.object(sessions, "JUST_JOINED_S", 0.0),
    ):
        yield


class Weather:
    """Does one step after the other to a mesh of two coordinators."""

    def __init__(self, mesh: World) -> None:
        self.mesh = mesh
        self.computers = [mesh.computer(f"n{number}") for number in range(MACHINES)]
        self.addresses: dict[str, str] = {}

    async def act(self, step: tuple[str, int, int]) -> None:
        what, who, where = step
        node = self.computers[who]
        at = self.mesh.coordinators[where % 2]
        match what:
            case "join" | "remove" | "leave" | "revoke" | "change":
                await self._change(what, node, where)
            case "sync":
                await self._sync(node, where)
            case "cut":
                for frame in node.frames(at, await self._begin(node, where % 2) or 0)[:where]:
                    node.take(frame)
            case "reboot":
                node.restart()
            case "lag":
                await at.lag()
            case "follow":
                at.follow()
            case "compact":
                await self.mesh.registry.compact(self.mesh.registry.revision)
            case "restart":
                await self.mesh.restart(where)
            case "sweep":
                self.mesh.clock.now += limits.TOMBSTONE_LIFE_S + 1
                await at.members.sweep()
        for one in self.computers:
            self._whole(one)
        await self._addresses()

    async def _change(self, what: str, node: Computer, where: int) -> None:
        """A write needs a coordinator that hears its own writes."""
        at = self.mesh.coordinators[where % 2]
        at.follow()
        async with asyncio.timeout(10):
            await at.feed.reached(self.mesh.registry.revision)
            try:
                if what == "join":
                    await node.join(at, await at.members.create_token(60, 1, (), False, "", "operator:0"))
                elif what == "change":
                    await at.members.set_candidates(node.id, [endpoint(where)], SOURCE)
                else:
                    await at.members.depart(node.id, DEPARTURES[what], "", "operator:0")
            except RefusedError:
                pass  # not a member, or never again

    async def _begin(self, node: Computer, where: int) -> int | None:
        try:
            return await node.begin(self.mesh.coordinators[where])
        except UnreachableError:
            return None

    async def _sync(self, node: Computer, where: int) -> None:
        """What a coordinator knows reaches the book, unless it knows less than the book does."""
        at = self.mesh.coordinators[where]
        before = node.book.roster.revision
        if await self._begin(node, where) is None:
            assert before > at.feed.seen
            return
        await node.sync(at)
        assert node.book.map_hash == at.feed.journal.hash
        assert set(node.book.roster.nodes) == set(at.feed.members)
        moved = node.moved
        await node.sync(at)
        assert node.moved == moved  # a resume at the same map moves nothing

    def _whole(self, node: Computer) -> None:
        """A book never holds less than what its frames said, and refuses nobody honest."""
        assert not node.book.refused
        assert len(node.book.saved().nodes) == len(node.book.roster.nodes)

    async def _addresses(self) -> None:
        """No two share an address, also with the dead, and nobody's address moves while his tombstone stands."""
        found, _ = await self.mesh.sealed.list("/meshctl/v1/")
        held = [records.decode(r.value, NodeRecord) for r in found if r.path.startswith(NODES)]
        dead = [records.decode(r.value, Tombstone) for r in found if r.path.startswith(GONE)]
        now = {one.id: str(one.address4) for one in (*held, *dead)}
        assert len(set(now.values())) == len(held) + len(dead)
        assert all(now[node] == before for node, before in self.addresses.items() if node in now)
        self.addresses = now

    async def settle(self) -> None:
        """The weather clears: everybody ends with the registry's own map, at either coordinator."""
        for at in self.mesh.coordinators:
            at.follow()
        await self.mesh.member("last")
        await self.mesh.caught_up()
        truth = await self.mesh.nodes()
        for at, one in enumerate(self.mesh.coordinators):
            assert one.feed.members.keys() == truth.keys()
            assert one.feed.journal.hash == self.mesh.first.feed.journal.hash
            for node in self.computers:
                await node.sync(one)
                await self.mesh.agrees(node, at)


@settings(max_examples=50, deadline=None)
@given(steps=st.lists(STEP, max_size=30))
def test_any_weather_ends_with_the_registry_in_every_book(steps: list[tuple[str, int, int]]) -> None:
    async def run() -> None:
        async with world(coordinators=2) as mesh:
            weather = Weather(mesh)
            for step in steps:
                await weather.act(step)
            await weather.settle()

    asyncio.run(run())


@settings(max_examples=25, deadline=None)
@given(
    joins=st.integers(1, 12),
    departures=st.lists(st.tuples(st.integers(0, 11), st.sampled_from(list(DEPARTURES.values()))), max_size=8),
    chosen=st.integers(0, 1000),
)
def test_a_holder_of_any_revision_catches_up_in_one_delta(
    joins: int, departures: list[tuple[int, Why]], chosen: int
) -> None:
    """A witness that syncs after every change keeps all its books; each of them is a place to resume from."""

    async def run() -> None:
        async with world() as mesh:
            witness = await mesh.member("witness")
            places = []

            async def look() -> None:
                assert await witness.sync(mesh.first) == 0
                places.append(witness.book.saved())

            for number in range(joins):
                await mesh.member(f"n{number}")
                await look()
            for number, why in departures:
                if f"n{number}" in mesh.first.feed.by_name:
                    await mesh.first.members.depart(f"n{number}", why, "", "operator:0")
                    await look()
            late = mesh.computer("late")
            late.book.restore(places[chosen % len(places)])
            first = late.frames(mesh.first, await late.begin(mesh.first))[0]
            assert not first.snapshot
            assert await late.sync(mesh.first) == 0
            await mesh.agrees(late)

    asyncio.run(run())
