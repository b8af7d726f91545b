"""Several coordinators that know each other through the registry alone: who is where, and who is gone (OPS-2, NET-2).

Time is each coordinator's own and moves when a test says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from coordinator import feed, herald, upkeep
from coordinator.fleet import BEAT_EVERY_S, NAMED, SILENT_S, beat_path
from coordinator.registry import COORDINATORS, Put
from meshctl.errors import ConflictError
from meshctl.mesh import limits
from tests.harness.fellows import connect, says, silence
from tests.harness.world import World, world


@pytest_asyncio.fixture
async def mesh() -> AsyncIterator[World]:
    """Two coordinators that have heard of each other."""
    async with world(coordinators=2) as made:
        await made.heard()
        yield made


# ---- who is where ----------------------------------------------------------------------------------------------------


async def test_node_is_seen_from_every_coordinator_with_its_verdict(mesh: World) -> None:
    (a,) = await connect(mesh, 1, "a")
    one, two = mesh.coordinators
    seen, near = one.views.node(a.id), two.views.node(a.id)
    assert (seen.connected, seen.verdict, seen.digest_ok, seen.via) == (True, "ok", True, "co2:7443")
    assert (seen.applied, near.applied, near.via, near.release) == (two.feed.revision, two.feed.revision, "", "1.0")
    says(two, a, "failed")
    await mesh.heard()
    assert one.views.node(a.id).verdict == "failed"
    two.presence.closed(a.id, now=mesh.clock())
    await mesh.heard()
    assert not one.views.node(a.id).connected
    assert not one.fleet.is_connected(a.id)


async def test_node_that_lags_elsewhere_is_seen_to_lag(mesh: World) -> None:
    a, b = await connect(mesh, 1, "a", "b")
    applied = mesh.coordinators[1].presence[a.id].applied
    await connect(mesh, 0, "c")
    says(mesh.coordinators[1], b)
    await mesh.heard()
    seen = {name: mesh.first.views.node(node.id) for name, node in (("a", a), ("b", b))}
    assert (seen["a"].applied, seen["a"].digest_ok) == (applied, False)
    assert (seen["b"].applied, seen["b"].digest_ok) == (mesh.first.feed.revision, True)
    state = mesh.first.views.overview()
    assert (state.connected, state.converged, state.oldest, state.newest) == (3, 2, applied, mesh.first.feed.revision)
    assert state.releases == (("1.0", 3),)


async def test_killed_coordinator_and_its_nodes_are_gone_after_a_while(mesh: World) -> None:
    (a,) = await connect(mesh, 1, "a")
    one, dead = mesh.coordinators
    await silence(mesh, dead, SILENT_S - 2)
    assert one.fleet.is_connected(a.id)
    for _ in range(4):
        await mesh.heard()
    assert not one.fleet.is_connected(a.id)
    assert [c.silent for c in one.views.overview().coordinators] == [False, True]
    one.presence.opened(a.id, "192.0.2.1", now=mesh.clock())
    assert one.fleet.is_connected(a.id)


@pytest.mark.parametrize("first", ["time passes", "it hears itself"])
async def test_coordinator_that_was_paused_blames_nobody(mesh: World, first: str) -> None:
    """It wakes after an hour: it cannot have heard the others, so it must not take them or their nodes for gone."""
    (a,) = await connect(mesh, 1, "a", ephemeral=True)
    one = mesh.first
    one.steady.now += 3600
    if first == "it hears itself":
        await one.herald.speak()
        await mesh.caught_up()
    one.fleet.tick()
    assert one.fleet.is_connected(a.id)
    await upkeep.remove_absent(one.members, one.feed, one.fleet)
    await mesh.heard()
    assert a.id in await mesh.nodes()


async def test_coordinator_cut_off_from_etcd_blames_nobody(mesh: World) -> None:
    (a,) = await connect(mesh, 1, "a", ephemeral=True)
    one = mesh.first
    one.line.cut = True
    for _ in range(2 * int(limits.EPHEMERAL_AWAY_S)):
        one.steady.now += 1
        one.fleet.tick()
    assert one.fleet.is_connected(a.id)
    assert one.fleet.clock < SILENT_S + 5
    await one.views.pulse.ask()
    assert one.views.pulse.age_s > limits.REGISTRY_OLD_S, "and says so to its nodes"
    one.line.cut = False
    await mesh.heard()
    await one.views.pulse.ask()
    assert one.views.pulse.age_s == 0
    await upkeep.remove_absent(one.members, one.feed, one.fleet)
    assert a.id in await mesh.nodes()


async def test_etcd_that_takes_no_writes_makes_nobody_absent(mesh: World) -> None:
    (a,) = await connect(mesh, 1, "a", ephemeral=True)
    for one in mesh.coordinators:
        one.line.full = True
    for _ in range(2 * int(limits.EPHEMERAL_AWAY_S)):
        await mesh.heard()
    one = mesh.first
    assert one.fleet.is_connected(a.id)
    await one.views.pulse.ask()
    assert (one.feed.following, one.views.pulse.age_s) == (False, 0), "not ready; but no fresher map exists elsewhere"


async def test_ephemeral_node_is_absent_only_when_no_coordinator_has_it(mesh: World) -> None:
    a, b = await connect(mesh, 1, "a", "b", ephemeral=True)
    one, two = mesh.coordinators
    for _ in range(int(limits.EPHEMERAL_AWAY_S) + 60):
        await mesh.heard()
    await upkeep.remove_absent(one.members, one.feed, one.fleet)
    assert len(await mesh.nodes()) == 2
    two.presence.closed(a.id, now=mesh.clock())
    for _ in range(int(limits.EPHEMERAL_AWAY_S) + 2):
        await mesh.heard()
    await asyncio.gather(*(upkeep.remove_absent(c.members, c.feed, c.fleet) for c in mesh.coordinators[:1]))
    assert set(await mesh.nodes()) == {b.id}


async def test_rotation_waits_for_a_node_that_is_connected_elsewhere(mesh: World) -> None:
    (a,) = await connect(mesh, 1, "a")
    assert mesh.first.rotations.targets(["a"], (), everybody=False) == (a.id,)
    assert mesh.first.rotations.is_connected(a.id)


# ---- notes -----------------------------------------------------------------------------------------------------------


async def test_notes_of_coordinators_wake_no_stream_and_move_no_map(mesh: World) -> None:
    one = mesh.first
    revision, tick = one.feed.revision, one.feed._tick
    moved: list[int] = []
    one.feed.on_move.append(lambda: moved.append(1))
    for _ in range(20):
        await mesh.heard()
    await one.feed.reached(mesh.registry.revision)
    assert one.feed.seen > revision
    assert (one.feed.revision, one.feed._tick is tick, moved) == (revision, True, [])


async def test_what_does_not_change_is_not_written(mesh: World) -> None:
    nodes = await connect(mesh, 0, *(f"n{number}" for number in range(40)))
    one = mesh.first
    before = one.line.wrote
    for _ in range(int(10 * BEAT_EVERY_S)):
        await mesh.heard()
    assert one.line.wrote - before == 10, "ten beats, and no roll"
    before = one.line.wrote
    says(one, nodes[0], "degraded")
    await one.herald.speak()
    assert one.line.wrote - before == 1, "one part of the roll"


async def test_successor_takes_its_predecessors_notes_down(mesh: World) -> None:
    (a,) = await connect(mesh, 1, "a")
    one, dead = mesh.coordinators
    await dead.lag()
    mesh.coordinators.remove(dead)
    mesh.made -= 1  # the same home
    heir = await mesh.coordinator()
    assert one.fleet.is_connected(a.id)
    await heir.herald.succeed()
    await mesh.heard()
    assert not one.fleet.is_connected(a.id)
    assert len(one.views.overview().coordinators) == 2


async def test_coordinator_that_stops_says_so(mesh: World) -> None:
    (a,) = await connect(mesh, 1, "a")
    one, leaver = mesh.coordinators
    await leaver.herald.leave()
    await mesh.caught_up()
    assert not one.fleet.is_connected(a.id)
    assert len(one.views.overview().coordinators) == 1
    assert not [path for path in mesh.registry._records if path.startswith(COORDINATORS + leaver.fleet.me)]


async def test_notes_of_the_dead_are_taken_down_once_by_all(mesh: World) -> None:
    await mesh.coordinator()
    await mesh.heard()
    dead = mesh.coordinators[2]
    await silence(mesh, dead, upkeep.NOTES_KEPT_S + SILENT_S + 2)
    await asyncio.gather(*(upkeep.take_down_old_notes(c.fleet, c.herald) for c in mesh.coordinators))
    await mesh.caught_up()
    assert all(len(one.views.overview().coordinators) == 2 for one in mesh.coordinators)
    assert beat_path(dead.fleet.me) not in mesh.registry._records


async def test_notes_that_somebody_took_down_are_written_anew(mesh: World) -> None:
    (a,) = await connect(mesh, 1, "a")
    one, two = mesh.coordinators
    await one.herald.take_down(lambda path: path.startswith(COORDINATORS + two.fleet.me))
    await mesh.caught_up()
    assert not one.fleet.is_connected(a.id)
    two.herald._stale.add(a.id[:1])
    two.steady.now += BEAT_EVERY_S
    with pytest.raises(ConflictError, match="wrote our notes"):
        await mesh.heard()
    await mesh.heard()  # a second later
    assert one.fleet.is_connected(a.id)


async def test_coordinator_of_another_release_that_speaks_otherwise_breaks_nothing(mesh: World) -> None:
    await mesh.sealed.commit(Put(beat_path("stranger"), b'{"beats": 7}', 0))
    await mesh.sealed.commit(Put(f"{COORDINATORS}stranger/mood", b"[]", 0))
    await mesh.heard()
    assert len(mesh.first.views.overview().coordinators) == 2
    restarted = await mesh.restart()
    assert [other.id for other in restarted.fleet.others()] == sorted(restarted.fleet._others)


async def test_history_compacted_while_a_coordinator_left(mesh: World) -> None:
    (a,) = await connect(mesh, 1, "a")
    one, two = mesh.coordinators
    await one.lag()
    await two.herald.leave()
    await mesh.registry.compact(mesh.registry.revision)
    one.follow()
    async with asyncio.timeout(5):
        while one.fleet.is_connected(a.id):
            await asyncio.sleep(0)


# ---- figures ---------------------------------------------------------------------------------------------------------


async def test_beat_names_some_of_many_laggards(mesh: World) -> None:
    nodes = await connect(mesh, 0, *(f"n{number:03}" for number in range(NAMED + 20)))
    await connect(mesh, 1, "late")
    beat = mesh.first.herald.beat()
    assert (beat.behind, len(beat.laggards)) == (len(nodes), NAMED)
    assert mesh.coordinators[1].views.overview().converged == 1


async def test_convergence_counts_from_the_oldest_change_and_not_the_time_away(mesh: World) -> None:
    (a,) = await connect(mesh, 0, "a")
    one = mesh.first
    one.steady.now += 10
    await connect(mesh, 1, "b")
    one.steady.now += 0.5
    await connect(mesh, 1, "c")
    before = one.fellows.convergence.samples
    heard_at = one.fellows.convergence._changes[-2][1]
    says(one, a)
    assert one.fellows.convergence.samples == before + 1
    assert one.fellows.convergence._samples[-1] == one.steady.now - heard_at
    one.presence.closed(a.id, now=mesh.clock())
    await connect(mesh, 1, "d")
    one.steady.now += 1000
    one.presence.opened(a.id, "192.0.2.1", now=mesh.clock())
    says(one, a)
    assert one.fellows.convergence.samples == before + 1
    buckets, total = one.fellows.convergence.histogram()
    assert buckets[-1] == ("+Inf", float(before + 1))
    assert total == pytest.approx(sum(one.fellows.convergence._samples))


# ---- a watch that hangs ----------------------------------------------------------------------------------------------


class _Hanging:
    """A registry whose first watch never brings anything: it is on a member of etcd that stands still."""

    def __init__(self, registry: object) -> None:
        self._registry, self.opened = registry, 0

    async def _nothing(self) -> AsyncIterator[object]:
        await asyncio.Event().wait()
        yield

    def watch(self, prefix: str, from_revision: int) -> object:
        self.opened += 1
        return self._nothing() if self.opened == 1 else self._registry.watch(prefix, from_revision)  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> object:
        return getattr(self._registry, name)


async def test_watch_that_hangs_is_found_by_our_own_words_and_opened_anew(
    mesh: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads work, so etcd looks well; but what we say does not come back. Nodes would be kept on an old map."""
    monkeypatch.setattr(feed, "WATCH_LATE_S", 0.05)
    monkeypatch.setattr(herald, "SAY_EVERY_S", 0.02)
    one = mesh.first
    await one.lag()
    hanging = _Hanging(one.feed._registry)
    one.feed._registry = hanging  # type: ignore[assignment]
    one.follow()
    a = await mesh.member("a", at=1)
    one.steady.now += BEAT_EVERY_S
    saying = asyncio.ensure_future(one.herald.run())
    async with asyncio.timeout(5):
        while hanging.opened < 2 or a.id not in one.feed.members:
            await asyncio.sleep(0.01)
    saying.cancel()
    b = await mesh.member("b", at=1)  # and the watch brings what is new
    await one.feed.reached(mesh.registry.revision)
    assert b.id in one.feed.members
