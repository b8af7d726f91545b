"""The registry's contract, kept in memory and by etcd alike; then what only a real etcd can suffer (OPS-2)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from uuid import uuid4

import pytest

from coordinator import etcd as adapter
from coordinator.registry import (
    COMMIT_BYTES,
    ROOT,
    Changes,
    Committed,
    Compacted,
    Conflict,
    Delete,
    Deleted,
    Expect,
    Put,
    Record,
    Registry,
)
from meshctl.errors import ProtocolError
from tests.harness.etcd import RealEtcd, etcd
from tests.harness.memory_registry import MemoryRegistry

__all__ = ["etcd"]
from tests.harness.registries import collect, connected


@dataclass
class Store:
    registry: Registry
    at: str  # a prefix of its own
    compact: Callable[[int], Awaitable[None]]

    async def put(self, name: str, value: bytes) -> int:
        """Write whatever is there; the revision."""
        (old,) = await self.registry.read(self.at + name)
        done = await self.registry.commit(Put(self.at + name, value, old.generation if old else 0))
        assert isinstance(done, Committed)
        return done.revision


@pytest.fixture(params=["memory", "etcd"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    prefix = f"{ROOT}test/{uuid4().hex}/"
    if request.param == "memory":
        memory = MemoryRegistry()
        yield Store(memory, prefix, memory.compact)
        return
    real: RealEtcd = request.getfixturevalue("etcd")

    async def compact(revision: int) -> None:
        await asyncio.to_thread(real.ctl, "compact", str(revision))

    async with connected(real) as registry:
        yield Store(registry, prefix, compact)


async def test_record_lives_and_dies_with_its_generations(store: Store) -> None:
    path, registry = store.at + "a", store.registry
    assert await registry.read(path) == (None,)
    made = await registry.commit(Put(path, b"one", 0))
    assert isinstance(made, Committed)
    assert await registry.read(path) == (Record(path, b"one", 1, made.revision, made.revision),)
    changed = await registry.commit(Put(path, b"two", 1))
    assert isinstance(changed, Committed)
    assert await registry.read(path) == (Record(path, b"two", 2, made.revision, changed.revision),)
    assert isinstance(await registry.commit(Delete(path, 2)), Committed)
    assert await registry.read(path) == (None,)
    again = await registry.commit(Put(path, b"three", 0))
    assert isinstance(again, Committed)
    assert await registry.read(path) == (Record(path, b"three", 1, again.revision, again.revision),)
    assert made.revision < changed.revision < again.revision


async def test_commit_on_an_old_generation_changes_nothing_and_names_the_path(store: Store) -> None:
    a, b = store.at + "a", store.at + "b"
    await store.put("a", b"1")
    await store.put("a", b"2")
    assert await store.registry.commit(Put(b, b"new", 0), Put(a, b"3", 1)) == Conflict(a)
    assert await store.registry.commit(Put(b, b"new", 0), Delete(a, 1)) == Conflict(a)
    assert await store.registry.commit(Put(a, b"made twice", 0)) == Conflict(a)
    assert await store.registry.commit(Delete(b, 1)) == Conflict(b)
    found = await store.registry.read(a, b)
    assert found[0] is not None
    assert found[0].value == b"2"
    assert found[1] is None


async def test_expectation_guards_a_commit_without_changing_its_record(store: Store) -> None:
    a, b = store.at + "a", store.at + "b"
    await store.put("a", b"1")
    assert await store.registry.commit(Expect(a, 0), Put(b, b"x", 0)) == Conflict(a)
    assert await store.registry.commit(Expect(a, 2), Put(b, b"x", 0)) == Conflict(a)
    assert isinstance(await store.registry.commit(Expect(a, 1), Put(b, b"x", 0)), Committed)
    assert isinstance(await store.registry.commit(Expect(a, 1), Expect(store.at + "none", 0)), Committed)
    found = await store.registry.read(a, b)
    assert [record and record.generation for record in found] == [1, 1]


async def test_fifty_commits_on_one_generation_admit_one(store: Store) -> None:
    await store.put("token", b"unused")
    tries = [
        store.registry.commit(Put(store.at + "token", b"by %d" % n, 1), Put(f"{store.at}node{n}", b"%d" % n, 0))
        for n in range(50)
    ]
    done = await asyncio.gather(*tries)
    winners = [n for n, one in enumerate(done) if isinstance(one, Committed)]
    assert len(winners) == 1
    assert all(one == Conflict(store.at + "token") for n, one in enumerate(done) if n not in winners)
    records, _ = await store.registry.list(store.at)
    assert [(r.path, r.value) for r in records] == [
        (f"{store.at}node{winners[0]}", b"%d" % winners[0]),
        (store.at + "token", b"by %d" % winners[0]),
    ]


async def test_list_is_of_one_moment_though_longer_than_a_page(store: Store) -> None:
    names = [f"{store.at}{n:05}" for n in range(2 * adapter.LIST_PAGE + 500)]
    for begin in range(0, len(names), 100):
        await store.registry.commit(*(Put(name, name.encode(), 0) for name in names[begin : begin + 100]))
    stop = asyncio.Event()

    async def churn() -> None:
        turn = 1
        while not stop.is_set():
            ends = (Put(names[0], b"%d" % turn, turn), Put(names[-1], b"%d" % turn, turn))
            assert isinstance(await store.registry.commit(*ends), Committed)
            turn += 1

    churning = asyncio.create_task(churn())
    try:
        for _ in range(5):
            records, revision = await store.registry.list(store.at)
            assert [record.path for record in records] == names
            assert records[0].generation == records[-1].generation
            assert records[0].revision <= revision
    finally:
        stop.set()
        await churning


async def test_empty_list_still_has_a_revision_to_watch_from(store: Store) -> None:
    records, revision = await store.registry.list(store.at)
    assert records == ()
    await store.put("a", b"1")
    (event,) = await collect(store.registry.watch(store.at, revision + 1), until=lambda seen: len(seen) == 1)
    assert event.path == store.at + "a"


async def test_watch_sees_past_and_present_in_order_and_nothing_else(store: Store) -> None:
    first = await store.put("k0", b"0")
    for n in range(1, 100):
        await store.put(f"k{n % 7}", b"%d" % n)
    neighbour = replace(store, at=store.at.rstrip("/") + "0/")

    async def go_on() -> None:
        for n in range(100, 200):
            await neighbour.put("other", b"%d" % n)
            await store.put(f"k{n % 7}", b"%d" % n)
        await store.registry.commit(Delete(store.at + "k0", 29))

    writing = asyncio.create_task(go_on())
    events = await collect(store.registry.watch(store.at, first), until=lambda seen: isinstance(seen[-1], Deleted))
    await writing
    assert [e.value for e in events if isinstance(e, Record)] == [b"%d" % n for n in range(200)]
    assert events[-1].path == store.at + "k0"
    assert [e.generation for e in events if isinstance(e, Record) and e.path.endswith("k0")] == list(range(1, 30))


async def test_watch_never_shows_half_a_commit(store: Store) -> None:
    _, revision = await store.registry.list(store.at)
    for n in range(20):
        await store.registry.commit(*(Put(f"{store.at}{part}", b"%d" % n, n) for part in "abc"))
    seen = 0
    async with asyncio.timeout(10), aclosing(store.registry.watch(store.at, revision + 1)) as changes:
        async for news in changes:
            assert isinstance(news, Changes)
            assert len(news.events) % 3 == 0
            seen += len(news.events)
            if seen == 60:
                break


async def test_watch_behind_a_compaction_says_so_and_ends(store: Store) -> None:
    first = await store.put("a", b"1")
    for n in range(5):
        last = await store.put("a", b"again %d" % n)
    await store.compact(last)
    async with asyncio.timeout(10):
        news = [news async for news in store.registry.watch(store.at, first)]
    assert news == [Compacted(last)]
    records, revision = await store.registry.list(store.at)
    assert [record.value for record in records] == [b"again 4"]
    await store.put("a", b"after")
    (event,) = await collect(store.registry.watch(store.at, revision + 1), until=lambda seen: len(seen) == 1)
    assert isinstance(event, Record)
    assert event.value == b"after"


async def test_what_can_never_be_committed_is_refused_before_it_is_sent(store: Store) -> None:
    a = store.at + "a"
    for ops in (
        [],
        [Put(f"{a}{n}", b"", 0) for n in range(129)],
        [Put(a, bytes(1024 * 1024 + 1), 0)],
        [Put(a, b"1", 0), Expect(a, 0)],
    ):
        with pytest.raises(ProtocolError):
            await store.registry.commit(*ops)
    assert isinstance(await store.registry.commit(*(Put(f"{a}{n}", bytes(8192), 0) for n in range(128))), Committed)


async def test_largest_commit_is_taken_and_seen_whole(store: Store) -> None:
    """An answer between coordinators may be one record of that size."""
    guard, big = await store.put("guard", b"1"), bytes(range(256)) * (COMMIT_BYTES // 256)
    done = await store.registry.commit(Put(store.at + "big", big, 0), Expect(store.at + "guard", 1))
    assert isinstance(done, Committed)
    async with asyncio.timeout(10), aclosing(store.registry.watch(store.at, guard + 1)) as watch:
        async for news in watch:
            assert isinstance(news, Changes)
            assert [event.value for event in news.events if isinstance(event, Record)] == [big]
            break


async def test_health_is_in_words(store: Store) -> None:
    health = await store.registry.health()
    assert health.ok
    assert health.words


# --- what only a real etcd can suffer ---
