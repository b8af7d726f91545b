"""The registry on a real etcd that is killed, cut off, full, forged or put back (OPS-2, OPS-4, ENC-3)."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from coordinator import etcd as adapter
from coordinator.etcd import EtcdRegistry
from coordinator.registry import (
    ROOT,
    Committed,
    Conflict,
    Deleted,
    Put,
    Record,
)
from meshctl.errors import EnvironmentFault, TrustError, UnreachableError
from tests.harness.etcd import Proxy, RealEtcd, etcd

__all__ = ["etcd"]
from tests.harness.registries import collect, connected


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
                for n in range(200):  # etcd learns its size every 100 ms only
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
