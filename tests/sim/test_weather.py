"""Weather over a mesh without a wire: storms of joins, coordinators that die, lag and lose history, all at once (NET-2,
NET-4, ACC-5, OPS-2)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from coordinator import upkeep
from coordinator.records import Why
from meshctl.errors import MeshError, RefusedError
from meshctl.mesh import limits
from tests.harness.world import SOURCE, Computer, World, endpoint, world

OPERATOR = "operator:0"


async def everybody_agrees(mesh: World, nodes: list[Computer]) -> None:
    await mesh.caught_up()
    for at, one in enumerate(mesh.coordinators):
        for node in nodes:
            await node.sync(one)
            await mesh.agrees(node, at)


async def test_two_hundred_nodes_join_while_coordinators_come_and_go() -> None:
    async with world(coordinators=2) as mesh:
        dice, token = random.Random(11), await mesh.token(uses=200)
        nodes = [mesh.computer(f"n{number:03}") for number in range(200)]

        async def storm() -> None:
            await asyncio.gather(*(node.join(mesh.coordinators[n % 2], token) for n, node in enumerate(nodes)))

        joining = asyncio.ensure_future(storm())
        while not joining.done():
            for _ in range(1000):  # some joins go by
                await asyncio.sleep(0)
            other = await mesh.coordinator()
            for node in dice.sample(nodes, 5):
                await node.sync(other)
            await other.lag()
            mesh.coordinators.remove(other)
        await joining
        assert len(await mesh.nodes()) == 200
        await everybody_agrees(mesh, nodes[:10])


async def test_history_is_compacted_in_the_middle_of_a_storm() -> None:
    async with world(coordinators=2) as mesh:
        token = await mesh.token(uses=60)
        nodes = [mesh.computer(f"n{number}") for number in range(60)]
        slow = mesh.coordinators[1]
        for number, node in enumerate(nodes):
            if number % 20 == 5:
                await slow.lag()
            if number % 20 == 15:
                await mesh.registry.compact(mesh.registry.revision)
                slow.follow()
            await node.join(mesh.first, token)
            if number % 3 == 2:
                await mesh.first.members.depart(nodes[number - 1].id, Why.REMOVED, "", OPERATOR)
        await everybody_agrees(mesh, [nodes[0], nodes[59], nodes[5]])


async def test_all_nodes_reconnect_at_once_and_no_map_moves() -> None:
    async with world() as mesh:
        nodes = [await mesh.member(f"n{number}") for number in range(50)]
        await everybody_agrees(mesh, nodes)
        moved = sum(node.moved for node in nodes)
        for _ in range(3):
            await mesh.restart()
            await everybody_agrees(mesh, nodes)
        assert sum(node.moved for node in nodes) == moved


async def test_node_wanders_between_coordinators_that_are_never_equally_far() -> None:
    async with world(coordinators=3) as mesh:
        dice = random.Random(5)
        nodes = [await mesh.member(f"n{number}") for number in range(6)]
        watcher, revision = nodes[0], 0
        for step in range(120):
            one = dice.choice(mesh.coordinators)
            match dice.randrange(3):
                case 0:
                    await one.lag()
                case 1:
                    one.follow()
                case 2:
                    mesh.first.follow()
                    await mesh.first.feed.reached(mesh.registry.revision)
                    await mesh.first.members.set_candidates(dice.choice(nodes).id, [endpoint(step + 1)], SOURCE)
            if one.feed.seen >= watcher.book.roster.revision:
                await watcher.sync(one)
            assert watcher.book.roster.revision >= revision
            revision = watcher.book.roster.revision
        for one in mesh.coordinators:
            one.follow()
        await everybody_agrees(mesh, nodes)


async def test_disk_that_is_full_now_and_then_loses_nobody() -> None:
    async with world() as mesh:
        dice, nodes = random.Random(3), [mesh.computer(f"n{number}") for number in range(30)]
        token = await mesh.token(uses=30)
        for node in nodes:
            for attempt in range(40):
                mesh.events.full = dice.random() < 0.6
                try:
                    await node.join(mesh.first, token)
                    break
                except MeshError:
                    assert attempt < 39
        mesh.events.full = False
        assert len(await mesh.nodes()) == 30
        await everybody_agrees(mesh, nodes)


# ---- what a coordinator does by itself -------------------------------------------------------------------------------


async def ephemeral(mesh: World, name: str) -> Computer:
    node = mesh.computer(name)
    await node.join(mesh.first, await mesh.token(ephemeral=True))
    return node


@pytest.mark.parametrize(
    ("absence_s", "kept"), [(limits.EPHEMERAL_AWAY_S - 1, True), (limits.EPHEMERAL_AWAY_S + 1, False)]
)
async def test_ephemeral_node_that_stays_away_is_removed_and_others_are_not(absence_s: float, kept: bool) -> None:
    async with world() as mesh:
        one, presence, now = mesh.first, mesh.first.presence, mesh.clock()
        steady, here, away, never = (
            await mesh.member("steady"), *[await ephemeral(mesh, name) for name in ("here", "away", "never")]
        )  # fmt: skip
        for node in (steady, here, away):
            presence.opened(node.id, "", now=now)
        for node in (steady, away):
            presence.closed(node.id, now=now)
        await upkeep.remove_absent(one.members, one.feed, one.fleet)  # it sees for the first time that one never came
        mesh.clock.now += 100 * absence_s  # a clock that jumps removes nobody
        one.listen(absence_s)
        await upkeep.remove_absent(one.members, one.feed, one.fleet)
        left = {steady.id, here.id} | ({away.id, never.id} if kept else set())
        assert (await mesh.nodes()).keys() == left


async def test_coordinator_that_was_down_longer_than_the_absence_gives_nodes_time_to_come_back() -> None:
    async with world() as mesh:
        await ephemeral(mesh, "a")
        fresh = await mesh.restart()
        mesh.clock.now += 10 * limits.EPHEMERAL_AWAY_S
        fresh.listen(limits.EPHEMERAL_AWAY_S - 1)
        await upkeep.remove_absent(fresh.members, fresh.feed, fresh.fleet)
        assert len(await mesh.nodes()) == 1


async def test_one_failure_of_upkeep_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "EVERY_S", 0.0)
    async with world() as mesh:
        calls = 0

        async def sweep() -> int:
            nonlocal calls
            calls += 1
            raise RefusedError("etcd is away")

        one = mesh.first
        one.members.sweep = sweep  # type: ignore[method-assign]
        parts = one.members, one.feed, one.fleet, one.herald, one.questions, one.fellows.post, one.rotations
        task = asyncio.ensure_future(upkeep.run(*parts, 0.0))
        await _until(lambda: calls > 3)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)
