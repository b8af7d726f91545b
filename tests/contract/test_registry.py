"""The registry's contract, kept in memory and by etcd alike; then what only a real etcd can suffer (OPS-2)."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import pytest

from coordinator import etcd as adapter
from coordinator.etcd import EtcdRegistry
from coordinator.registry import (
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
from meshctl.errors import EnvironmentFault, ProtocolError, TrustError, UnreachableError
from tests.harness.etcd import Proxy, RealEtcd, etcd
from tests.harness.memory_registry import MemoryRegistry

__all__ = ["etcd"]


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


@asynccontextmanager
async def connected(real: RealEtcd | Proxy) -> AsyncIterator[EtcdRegistry]:
    registry = await EtcdRegistry.connect(real.address)
    try:
        yield registry
    finally:
        await registry.close()


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


async def collect(watch: AsyncGenerator[Changes | Compacted, None], until: Callable[[list[Record | Deleted]], bool]):
    """Events of a watch, in order, until enough; checks that revisions only grow."""
    seen: list[Record | Deleted] = []
    revision = 0
    async with asyncio.timeout(30), aclosing(watch) as changes:
        async for news in changes:
            assert isinstance(news, Changes)
            assert news.revision > revision
            assert news.revision == news.events[-1].revision
            revision = news.revision
            seen += news.events
            if until(seen):
                break
    return seen


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


async def test_health_is_in_words(store: Store) -> None:
    health = await store.registry.health()
    assert health.ok
    assert health.words


# --- what only a real etcd can suffer ---


async def test_etcd_killed_twice_under_a_watch_loses_and_repeats_no_event(etcd: RealEtcd) -> None:
    prefix, count = f"{ROOT}test/{uuid4().hex}/", 300
    async with connected(etcd) as writer, connected(etcd) as watcher:
        _, revision = await watcher.list(prefix)

        async def write() -> None:
            for n in range(count):
                if n in (100, 200):
                    await etcd.restart()
                assert isinstance(await writer.commit(Put(f"{prefix}{n:04}", b"%d" % n, 0)), Committed)

        writing = asyncio.create_task(write())
        events = await collect(watcher.watch(prefix, revision + 1), until=lambda seen: len(seen) >= count)
        await writing
    assert [event.path for event in events] == [f"{prefix}{n:04}" for n in range(count)]


async def test_commit_rides_out_a_restart_of_etcd(etcd: RealEtcd) -> None:
    async with connected(etcd) as registry:
        path = f"{ROOT}test/{uuid4().hex}"
        etcd.kill()
        commit = asyncio.create_task(registry.commit(Put(path, b"x", 0)))
        await etcd.restart()
        assert isinstance(await commit, Committed)


async def test_connection_cut_in_the_middle_of_history_loses_no_event(etcd: RealEtcd) -> None:
    """etcd sends long histories in parts, each with the revision of *now*: going on from there would skip the rest."""
    prefix, revisions = f"{ROOT}test/{uuid4().hex}/", 4000
    async with connected(etcd) as direct, Proxy(etcd) as proxy, connected(proxy) as registry:
        _, revision = await direct.list(prefix)
        for begin in range(0, revisions, 50):
            await asyncio.gather(
                *(direct.commit(Put(f"{prefix}{n:05}", b"%d" % n + bytes(2000), 0)) for n in range(begin, begin + 50))
            )
        cut = 0

        def enough(seen: list[Record | Deleted]) -> bool:
            nonlocal cut
            if cut < 3 and len(seen) < revisions:
                proxy.cut()
                cut += 1
            return len(seen) >= revisions

        events = await collect(registry.watch(prefix, revision + 1), until=enough)
    assert cut > 0
    assert len({event.path for event in events}) == len(events) == revisions
    assert [event.revision for event in events] == sorted(event.revision for event in events)


async def appeared(direct: EtcdRegistry, path: str) -> Record:
    """The record at `path`, once there is one."""
    async with asyncio.timeout(10):
        while True:
            (made,) = await direct.read(path)
            if made:
                return made
            await asyncio.sleep(0.01)


async def test_answer_lost_is_not_a_second_decision(etcd: RealEtcd) -> None:
    path = f"{ROOT}test/{uuid4().hex}"
    async with connected(etcd) as direct, Proxy(etcd) as proxy, connected(proxy) as registry:
        await registry.read(path)
        proxy.muted = True
        attempt = asyncio.create_task(registry.commit(Put(path, b"sealed with a random nonce", 0)))
        made = await appeared(direct, path)
        proxy.cut()
        assert await attempt == Committed(made.revision)
        assert await direct.read(path) == (made,)


async def test_answer_lost_and_overtaken_is_a_conflict(etcd: RealEtcd) -> None:
    path = f"{ROOT}test/{uuid4().hex}"
    async with connected(etcd) as direct, Proxy(etcd) as proxy, connected(proxy) as registry:
        await registry.read(path)
        proxy.muted = True
        attempt = asyncio.create_task(registry.commit(Put(path, b"ours", 0)))
        await appeared(direct, path)
        assert isinstance(await direct.commit(Put(path, b"theirs", 1)), Committed)
        proxy.cut()
        assert await attempt == Conflict(path)


async def test_etcd_away_is_said_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "OPERATION_S", 0.5)
    with RealEtcd(tmp_path) as real:
        async with connected(real) as registry:
            await registry.read(ROOT)
            real.kill()
            with pytest.raises(UnreachableError, match="does not answer"):
                await asyncio.wait_for(registry.commit(Put(ROOT + "x", b"x", 0)), 4)
            assert not (await registry.health()).ok


async def test_one_of_two_endpoints_away_is_no_outage(etcd: RealEtcd, tmp_path: Path) -> None:
    with RealEtcd(tmp_path) as nobody:
        away = nobody.address.endpoints
    both = replace(etcd.address, endpoints=away + etcd.address.endpoints)
    registry = await EtcdRegistry.connect(both)
    try:
        for _ in range(10):
            assert await registry.read(ROOT + "none") == (None,)
    finally:
        await registry.close()


@pytest.mark.parametrize("forged", ["ca", "client", "name"])
async def test_stranger_at_either_end_is_a_matter_of_trust(etcd: RealEtcd, tmp_path: Path, forged: str) -> None:
    with RealEtcd(tmp_path) as other:
        wrong = replace(etcd.address, certificate=other.address.certificate, key=other.address.key)
        if forged == "ca":
            wrong = replace(etcd.address, ca=other.address.ca)
        if forged == "name":
            wrong = replace(etcd.address, server_name="etcd.example")
        registry = await EtcdRegistry.connect(wrong)
        try:
            with pytest.raises(TrustError, match="do not trust each other"):
                await asyncio.wait_for(registry.read(ROOT), 5)
        finally:
            await registry.close()


async def test_missing_certificate_file_is_named(etcd: RealEtcd, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match=r"nothing\.pem"):
        await EtcdRegistry.connect(replace(etcd.address, ca=tmp_path / "nothing.pem"))


async def test_full_etcd_says_how_to_empty_it(tmp_path: Path) -> None:
    with RealEtcd(tmp_path, "--quota-backend-bytes=1000000") as real:
        async with connected(real) as registry:

            async def fill() -> None:
                for n in range(20):
                    await registry.commit(Put(f"{ROOT}test/{n}", bytes(300_000), 0))

            with pytest.raises(EnvironmentFault, match="is full") as caught:
                await fill()
            assert "etcdctl alarm disarm" in caught.value.hint
            health = await registry.health()
            assert not health.ok
            assert "NOSPACE" in health.words


async def test_registry_that_went_back_is_not_followed(etcd: RealEtcd, tmp_path: Path) -> None:
    path = f"{ROOT}test/{uuid4().hex}"
    async with connected(etcd) as registry:
        assert isinstance(await registry.commit(Put(path, b"x", 0)), Committed)
        await asyncio.to_thread(etcd.ctl, "snapshot", "save", str(tmp_path / "old"))
        last = await registry.commit(Put(path, b"y", 1))
        assert isinstance(last, Committed)
    restored = tmp_path / "restored"
    with RealEtcd(restored) as real:
        real.kill()
        shutil.rmtree(restored / "etcd")
        peer = f"https://127.0.0.1:{real.layout.peer_port}"
        words = ("--name=embedded", f"--initial-cluster=embedded={peer}", f"--initial-advertise-peer-urls={peer}")
        real.ctl("snapshot", "restore", str(tmp_path / "old"), f"--data-dir={restored / 'etcd'}", *words)
        real.start()
        async with connected(real) as registry, asyncio.timeout(10):
            with pytest.raises(TrustError, match="went back"):
                await anext(registry.watch(ROOT, last.revision + 1))
