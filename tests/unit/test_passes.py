"""Turns of the streams: one pass at a time, conflated, in slices, with pauses; nobody stuck holds the others (NET-2).

The event loop runs on a clock of its own here: waiting takes no time, and a pause has its exact length.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator

import pytest

from coordinator import passes as passes_module
from coordinator.passes import Passes
from meshctl.mesh import limits, pacing


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time jumps to the next timer when nothing else is left to do."""

    def __init__(self) -> None:
        super().__init__()
        self._at = 0.0

    def time(self) -> float:
        return self._at

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self._at = max(self._at, self._scheduled[0]._when)  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


class Reader:
    """A stream that takes `takes_s` to write what it is given, or for ever."""

    def __init__(self, passes: Passes, registry: Registry, takes_s: float | None = 0.01) -> None:
        self.passes, self.registry, self.takes_s = passes, registry, takes_s
        self.cursor, self.frames, self.beats = 0, 0, 0
        self.rest: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        passes.add(self)
        self.task = asyncio.ensure_future(self.run())

    def is_behind(self) -> bool:
        return self.cursor < self.registry.revision

    async def run(self) -> None:
        while True:
            self.beats += await self.rest
            if self.is_behind():
                reached = self.registry.revision
                await asyncio.sleep(1e9 if self.takes_s is None else self.takes_s)
                self.cursor, self.frames = reached, self.frames + 1
            self.rest = asyncio.get_running_loop().create_future()
            if self.is_behind():
                self.passes.moved()
            self.passes.rests(self)


class Registry:
    revision, is_crowded = 0, False


def on_a_clock(test: Callable[[Passes, Registry], Coroutine[None, None, None]]) -> Callable[[], None]:
    def run() -> None:
        async def body() -> None:
            registry = Registry()
            try:
                await test(Passes(lambda: 0, lambda: registry.is_crowded), registry)
            finally:
                for task in asyncio.all_tasks() - {asyncio.current_task()}:
                    task.cancel()

        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(body())

    return run


def now() -> float:
    return asyncio.get_running_loop().time()


def change(passes: Passes, registry: Registry) -> None:
    registry.revision += 1
    passes.moved()


@on_a_clock
async def test_first_change_after_a_quiet_time_waits_for_nothing(passes: Passes, registry: Registry) -> None:
    readers = [Reader(passes, registry) for _ in range(3)]
    for _ in range(3):
        await asyncio.sleep(5)
        change(passes, registry)
        await asyncio.sleep(0.011)
        assert all(reader.cursor == registry.revision for reader in readers)
    assert [reader.frames for reader in readers] == [3, 3, 3]


@on_a_clock
async def test_steady_change_is_conflated_and_leaves_time_for_others(passes: Passes, registry: Registry) -> None:
    readers = [Reader(passes, registry) for _ in range(1000)]
    for _ in range(1000):
        change(passes, registry)
        await asyncio.sleep(0.001)
    await asyncio.sleep(1)
    slices = -(-1000 // passes_module.WRITING)
    passing = slices * 0.01
    assert all(reader.cursor == registry.revision for reader in readers)
    assert max(reader.frames for reader in readers) <= 2 + 1.25 / (passing + pacing.pause_s(passing))


@on_a_clock
async def test_storm_of_joins_has_the_time_between_few_passes_and_its_end_is_told_at_once(
    passes: Passes, registry: Registry
) -> None:
    registry.is_crowded = True
    reader = Reader(passes, registry)
    change(passes, registry)
    await asyncio.sleep(0.011)
    assert reader.cursor == 1, "the first one waits for nothing"
    for _ in range(1000):
        change(passes, registry)
        await asyncio.sleep(0.001)
    assert 2 <= reader.frames <= 1 + 1.0 // passes_module.CROWDED_S
    change(passes, registry)
    registry.is_crowded = False
    await asyncio.sleep(passes_module.CROWD_LOOK_S + 0.02)
    assert reader.cursor == registry.revision


@on_a_clock
async def test_revocation_in_a_storm_of_joins_waits_for_nobody(passes: Passes, registry: Registry) -> None:
    registry.is_crowded = True
    reader = Reader(passes, registry)
    for _ in range(2):
        change(passes, registry)
        await asyncio.sleep(0.1)
    assert reader.cursor == 1, "kept back"
    registry.revision += 1
    passes.hurry()
    passes.moved()
    await asyncio.sleep(passes_module.CROWD_LOOK_S + 0.011)
    assert reader.cursor == registry.revision


@on_a_clock
async def test_revocation_in_the_middle_of_a_pass_does_not_wait_for_the_crowd_either(
    passes: Passes, registry: Registry
) -> None:
    registry.is_crowded = True
    reader, slow = Reader(passes, registry), Reader(passes, registry, 0.3)
    change(passes, registry)
    await asyncio.sleep(0.1)
    assert (reader.cursor, slow.rest.done()) == (1, True), "the pass has not ended"
    passes.hurry()
    change(passes, registry)
    await asyncio.sleep(0.2 + pacing.pause_s(0.3) + passes_module.CROWD_LOOK_S + 0.02)
    assert reader.cursor == 2


@on_a_clock
async def test_passes_of_a_large_mesh_are_farther_apart_in_a_storm_of_joins(passes: Passes, registry: Registry) -> None:
    registry.is_crowded = True
    reader = Reader(passes, registry)
    Reader(passes, registry, 0.3)
    change(passes, registry)
    await asyncio.sleep(0.31)
    change(passes, registry)
    await asyncio.sleep(passes_module.CROWDED_PART * 0.3 - 0.1)
    assert reader.cursor == 1
    await asyncio.sleep(0.2)
    assert reader.cursor == 2


@on_a_clock
async def test_only_so_many_write_at_a_time(passes: Passes, registry: Registry) -> None:
    readers = [Reader(passes, registry, 1.0) for _ in range(2 * passes_module.WRITING)]
    change(passes, registry)
    await asyncio.sleep(0.1)
    assert 0 < sum(reader.rest.done() for reader in readers) < passes_module.WRITING + passes_module.SLICE


@on_a_clock
async def test_stuck_readers_are_left_behind(passes: Passes, registry: Registry) -> None:
    for _ in range(2 * passes_module.WRITING):
        Reader(passes, registry, None)
    good = [Reader(passes, registry) for _ in range(10)]
    change(passes, registry)
    await asyncio.sleep(5 * passes_module.STUCK_S)
    assert all(reader.cursor == 1 for reader in good)
    await asyncio.sleep(60)
    change(passes, registry)
    await asyncio.sleep(0.1)
    assert all(reader.cursor == 2 for reader in good), "who is stuck already costs the next pass nothing"


@on_a_clock
async def test_stream_that_ends_in_the_middle_of_a_pass_does_not_hold_it(passes: Passes, registry: Registry) -> None:
    ends, stays = Reader(passes, registry, 1.0), Reader(passes, registry)
    change(passes, registry)
    await asyncio.sleep(0.1)
    ends.task.cancel()
    passes.remove(ends)
    change(passes, registry)
    await asyncio.sleep(1)
    assert (stays.cursor, len(passes)) == (2, 1)


@on_a_clock
async def test_news_during_a_write_is_not_forgotten(passes: Passes, registry: Registry) -> None:
    slow = Reader(passes, registry, 0.2)
    slow.rest.set_result(False)  # woken for itself, by an order, while there was nothing new
    registry.revision = 1
    await asyncio.sleep(0.1)
    change(passes, registry)  # the pass finds it writing
    await asyncio.sleep(2)
    assert slow.cursor == registry.revision == 2


@on_a_clock
async def test_heartbeats_come_at_each_streams_own_phase_whatever_else_is_sent(
    passes: Passes, registry: Registry
) -> None:
    readers = [Reader(passes, registry) for _ in range(passes_module.SPOKES)]
    begun = now()
    for _ in range(100):
        change(passes, registry)
        await asyncio.sleep(limits.HEARTBEAT_S / 10)
    assert {reader.beats for reader in readers} <= {9, 10, 11}
    assert now() - begun == pytest.approx(10 * limits.HEARTBEAT_S)


def test_large_meshes_beat_and_report_slowly_enough() -> None:
    assert pacing.heartbeat_s(3) == limits.HEARTBEAT_S
    for nodes in (1, 100, 1000, 5000, 20_000):
        assert nodes / pacing.heartbeat_s(nodes) <= limits.HEARTBEATS_PER_S
        assert pacing.silence_s(nodes) > 3 * pacing.heartbeat_s(nodes)
        assert nodes / max(pacing.report_within_s(nodes), 1e-9) == pytest.approx(limits.REPORTS_PER_S)
    assert pacing.report_within_s(3) < 0.001, "in a small mesh nobody waits"
    assert pacing.report_after_s(5000, 60.0, chance=1.0) == pacing.report_within_s(5000)
    assert pacing.report_after_s(5000, 0.5, chance=1.0) == 5000 / limits.STEADY_REPORTS_PER_S - 0.5
    assert pacing.report_after_s(5000, float("inf"), chance=0.0) == 0.0


@pytest.fixture(autouse=True)
def _no_loop_stays_open() -> Iterator[None]:
    yield
    asyncio.set_event_loop(None)
