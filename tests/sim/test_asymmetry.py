"""Pairs whose ends are connected to two coordinators and disagree: opened once, by the coordinator of the accused, with
both ends named (NET-7, OPS-2, MESH-ASY-001). Time moves when a test says so.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from coordinator import asymmetry, records
from coordinator.fleet import ACCUSED, BEAT_EVERY_S, SILENT_S, Beat, beat_path
from meshctl.mesh.catalogue import ASYMMETRY, CATALOGUE, HANDSHAKE, PATH
from meshctl.mesh.model import NodeId
from meshctl.wire.codec import FindingRow
from tests.harness.fellows import connect, says, silence
from tests.harness.world import Clock, Computer, Coordinator, World, world

GRACE_S = CATALOGUE[ASYMMETRY].grace_s + 2 * BEAT_EVERY_S


class Scene:
    """`a` is connected to the first of two coordinators, `b` and `c` to the second."""

    def __init__(self, mesh: World, clock: Clock, a: Computer, b: Computer, c: Computer) -> None:
        self.mesh, self.clock, self.a, self.b, self.c = mesh, clock, a, b, c
        self.one, self.two = mesh.coordinators

    def cannot_reach(self, node: Computer, *peers: Computer, code: str = PATH) -> None:
        at = self.one if node is self.a else self.two
        says(at, node, "degraded" if peers else "ok")
        found = [FindingRow(code, peer.id, "failed", 0.0, 0.0, "3 echoes unanswered") for peer in peers]
        at.asymmetry.take(node.id, found)

    async def passes(self, seconds: float) -> None:
        """All talk and listen meanwhile, and every node is told what is found, as heartbeats do."""
        for _ in range(int(seconds)):
            self.clock.now += 1.0
            await self.mesh.heard()
            self.found()

    def found(self) -> dict[str, tuple[str, ...]]:
        """Who is told of whom."""
        names = {node.id: node.name for node in (self.a, self.b, self.c)}
        told: dict[str, tuple[str, ...]] = {}
        for node in (self.a, self.b, self.c):
            rows = [row for one in (self.one, self.two) for row in one.asymmetry.of(node.id)]
            if rows:
                told[node.name] = tuple(names[NodeId(row.subject)] for row in rows)
        return told

    def counted(self) -> tuple[int, int]:
        return self.one.asymmetry.pairs(), self.two.asymmetry.pairs()


@pytest_asyncio.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    async with world(coordinators=2) as mesh:
        await mesh.heard()
        clock = Clock()
        monkeypatch.setattr(asymmetry, "time", type("Time", (), {"time": clock}))
        (a,), (b, c) = await connect(mesh, 0, "a"), await connect(mesh, 1, "b", "c")
        await mesh.heard()
        yield Scene(mesh, clock, a, b, c)


async def written(mesh: World, at: Coordinator) -> Beat:
    """What stands in the registry."""
    (record,) = await mesh.sealed.read(beat_path(at.fleet.me))
    assert record
    return records.decode(record.value, Beat)


# ---- the finding -----------------------------------------------------------------------------------------------------


async def test_lie_in_one_direction_across_coordinators_opens_once_and_names_both_ends(scene: Scene) -> None:
    scene.cannot_reach(scene.a, scene.b)
    await scene.passes(BEAT_EVERY_S + 1)
    assert (scene.found(), scene.counted()) == ({}, (0, 0)), "within its grace"
    await scene.passes(GRACE_S)
    assert scene.found() == {"b": ("a",)}, "to the accused, which says that all is well, and to nobody else"
    assert scene.counted() == (0, 1)
    (row,) = scene.two.asymmetry.of(scene.b.id)
    assert (row.code, row.verdict) == (ASYMMETRY, "failed")
    assert row.evidence == "a at co1:7443 says failed, b here says ok"
    assert [f.subject for f in scene.two.views.node(scene.b.id).findings] == [scene.a.id]
    scene.cannot_reach(scene.a)
    await scene.passes(BEAT_EVERY_S + 1)
    assert (scene.found(), scene.counted()) == ({}, (0, 0))


async def test_the_other_way_round_the_other_coordinator_opens(scene: Scene) -> None:
    scene.cannot_reach(scene.b, scene.a, code=HANDSHAKE)
    await scene.passes(BEAT_EVERY_S + 1 + GRACE_S)
    assert (scene.found(), scene.counted()) == ({"a": ("b",)}, (1, 0))


async def test_dead_path_that_both_ends_see_is_no_disagreement(scene: Scene) -> None:
    scene.cannot_reach(scene.a, scene.b)
    await scene.passes(BEAT_EVERY_S)
    scene.cannot_reach(scene.b, scene.a)
    await scene.passes(2 * GRACE_S)
    assert (scene.found(), scene.counted()) == ({}, (0, 0))


async def test_ends_that_recover_one_beat_apart_are_not_called_liars(scene: Scene) -> None:
    scene.cannot_reach(scene.a, scene.b)
    scene.cannot_reach(scene.b, scene.a)
    await scene.passes(GRACE_S)
    scene.cannot_reach(scene.b)  # and the beat of the first is five seconds old
    await scene.passes(BEAT_EVERY_S)
    scene.cannot_reach(scene.a)
    await scene.passes(GRACE_S)
    assert scene.found() == {}


async def test_accusation_that_comes_again_has_a_new_grace(scene: Scene) -> None:
    scene.cannot_reach(scene.a, scene.b)
    await scene.passes(GRACE_S - 5)
    scene.cannot_reach(scene.a)
    await scene.passes(BEAT_EVERY_S + 1)
    scene.cannot_reach(scene.a, scene.b)
    await scene.passes(BEAT_EVERY_S + 10)
    assert scene.found() == {}


async def test_node_that_moves_to_the_other_coordinator_takes_its_grievance_along(scene: Scene) -> None:
    scene.cannot_reach(scene.a, scene.b)
    await scene.passes(BEAT_EVERY_S + 1 + GRACE_S)
    scene.one.presence.closed(scene.a.id, now=scene.clock())
    await scene.passes(BEAT_EVERY_S + 1)
    assert scene.found() == {}, "who is connected nowhere accuses nobody"
    scene.two.presence.opened(scene.a.id, "", now=scene.clock())
    says(scene.two, scene.a)
    scene.two.asymmetry.take(scene.a.id, [FindingRow(PATH, scene.b.id, "failed", 0.0, 0.0, "")])
    await scene.passes(GRACE_S)
    assert scene.found() == {"a": ("b",), "b": ("a",)}, "both are here now: both are told"
    assert scene.counted() == (0, 1)


async def test_coordinator_that_died_accuses_nobody_any_more(scene: Scene) -> None:
    scene.cannot_reach(scene.a, scene.b)
    await scene.passes(BEAT_EVERY_S + 1 + GRACE_S)
    assert scene.found()
    await silence(scene.mesh, scene.one, SILENT_S + 2)
    assert not scene.two.asymmetry.of(scene.b.id)


async def test_node_that_has_left_is_accused_by_nobody_and_accuses_nobody(scene: Scene) -> None:
    scene.cannot_reach(scene.a, scene.b)
    await scene.passes(BEAT_EVERY_S + 1 + GRACE_S)
    scene.two.asymmetry.forget(scene.b.id)
    scene.two.presence.forget(scene.b.id)
    await scene.passes(BEAT_EVERY_S + 1)
    assert (scene.found(), scene.counted()) == ({}, (0, 0))
    assert not (await written(scene.mesh, scene.one)).unreached, "it is connected nowhere"


# ---- what it costs ---------------------------------------------------------------------------------------------------


async def test_accusations_travel_with_beats_and_cause_none(scene: Scene) -> None:
    await scene.passes(2 * BEAT_EVERY_S)
    before = scene.mesh.registry.revision
    await scene.passes(20 * BEAT_EVERY_S)
    quiet = scene.mesh.registry.revision - before
    says(scene.one, scene.a, "degraded")
    await scene.passes(BEAT_EVERY_S)
    before = scene.mesh.registry.revision
    for turn in range(20 * int(BEAT_EVERY_S)):
        found = [FindingRow(PATH, (scene.b, scene.c)[turn % 2].id, "failed", 0.0, 0.0, "")]
        scene.one.asymmetry.take(scene.a.id, found)
        await scene.passes(1)
    assert scene.mesh.registry.revision - before <= quiet + 2


async def test_dead_nodes_and_pairs_of_one_coordinator_take_no_room(scene: Scene) -> None:
    scene.cannot_reach(scene.b, scene.c)
    scene.one.presence.closed(scene.a.id, now=scene.clock())
    scene.two.asymmetry.take(scene.c.id, [FindingRow(PATH, scene.a.id, "failed", 0.0, 0.0, "")])
    await scene.passes(BEAT_EVERY_S + 1)
    assert (await written(scene.mesh, scene.two)).unreached == {}


async def test_mesh_torn_in_two_names_the_newest_pairs_and_says_that_it_is_cut(scene: Scene) -> None:
    """Everybody at one coordinator has lost everybody at the other."""
    here = [NodeId(f"{n:024d}") for n in range(20)]
    there = [NodeId(f"z{n:023d}") for n in range(20)]
    for node in there:
        scene.two.presence.opened(node, "", now=scene.clock())
    for node in here:
        scene.one.presence.opened(node, "", now=scene.clock())
    await scene.mesh.heard()
    for node in here:
        scene.clock.now += 1
        scene.one.asymmetry.take(node, [FindingRow(PATH, peer, "failed", 0.0, 0.0, "") for peer in there])
    await scene.passes(BEAT_EVERY_S + 1)
    beat = await written(scene.mesh, scene.one)
    assert sum(len(nodes) for nodes in beat.unreached.values()) == ACCUSED
    assert beat.unreached_cut
    assert {node for nodes in beat.unreached.values() for node in nodes} == set(here[-13:]), "the newest"
    assert len(records.encode(beat)) < 16_000


async def test_coordinator_of_the_release_before_reads_the_beat(scene: Scene) -> None:
    scene.cannot_reach(scene.a, scene.b)
    await scene.passes(BEAT_EVERY_S + 1)
    (record,) = await scene.mesh.sealed.read(beat_path(scene.one.fleet.me))
    assert record
    assert b'"unreached":{' in record.value
    old = record.value.replace(b'"unreached"', b'"unheard_of"')
    assert records.decode(old, Beat).unreached == {}
