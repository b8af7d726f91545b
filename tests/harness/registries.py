"""What the registry's tests share: a connection that closes itself, and a watch read up to a point."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

from coordinator.etcd import EtcdRegistry
from coordinator.registry import (
    Changes,
    Compacted,
    Deleted,
    Record,
)
from tests.harness.etcd import Proxy, RealEtcd, etcd

__all__ = ["etcd"]


@asynccontextmanager
async def connected(real: RealEtcd | Proxy) -> AsyncIterator[EtcdRegistry]:
    registry = await EtcdRegistry.connect(real.address)
    try:
        yield registry
    finally:
        await registry.close()


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
