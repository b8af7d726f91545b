"""A registry in memory with etcd's semantics: generations restart after a delete, history can be compacted.

Passes the same contract suite as the real adapter (tests/contract/test_registry.py). For tests and simulations only.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator

from coordinator.registry import (
    Changes,
    Committed,
    Compacted,
    Conflict,
    Delete,
    Deleted,
    Endpoint,
    Expect,
    Health,
    Op,
    Put,
    Record,
    Registry,
    check,
)
from meshctl.errors import EnvironmentFault, UnreachableError


class MemoryRegistry:
    """Implements coordinator.registry.Registry."""

    def __init__(self) -> None:
        self.revision = 1
        self._records: dict[str, Record] = {}
        self._history: list[tuple[int, Record | Deleted]] = []
        self._compacted = 0
        self._changed = asyncio.Condition()

    async def read(self, *paths: str) -> tuple[Record | None, ...]:
        await asyncio.sleep(0)
        return tuple(self._records.get(path) for path in paths)

    async def list(self, prefix: str) -> tuple[tuple[Record, ...], int]:
        await asyncio.sleep(0)
        return tuple(self._records[p] for p in sorted(self._records) if p.startswith(prefix)), self.revision

    async def commit(self, *ops: Op) -> Committed | Conflict:
        check(ops)
        await asyncio.sleep(0)
        for op in ops:
            known = self._records.get(op.path)
            expected = op.generation if isinstance(op, Expect) else op.generation_expected
            if (known.generation if known else 0) != expected:
                return Conflict(op.path)
        if not all(isinstance(op, Expect) for op in ops):
            self.revision += 1
        for op in ops:
            if isinstance(op, Put):
                self._put(op)
            elif isinstance(op, Delete) and self._records.pop(op.path, None):
                self._history.append((self.revision, Deleted(op.path, self.revision)))
        async with self._changed:
            self._changed.notify_all()
        return Committed(self.revision)

    def _put(self, op: Put) -> None:
        old = self._records.get(op.path)
        created = old.created if old else self.revision
        record = Record(op.path, op.value, op.generation_expected + 1, created, self.revision)
        self._records[op.path] = record
        self._history.append((self.revision, record))

    async def watch(self, prefix: str, from_revision: int) -> AsyncGenerator[Changes | Compacted, None]:
        while True:
            if from_revision <= self._compacted:
                yield Compacted(self._compacted)
                return
            batch = [(at, event) for at, event in self._history if at >= from_revision]
            from_revision = max(from_revision, self.revision + 1)
            for revision, events in itertools.groupby(batch, key=lambda entry: entry[0]):
                if found := tuple(event for _, event in events if event.path.startswith(prefix)):
                    yield Changes(revision, found)
            async with self._changed:
                while self.revision < from_revision:
                    await self._changed.wait()

    async def compact(self, revision: int) -> None:
        """Forget history up to and including `revision`, as etcd's compaction does."""
        self._compacted = revision
        self._history = [entry for entry in self._history if entry[0] > revision]

    async def health(self) -> Health:
        return Health(True, "in memory")

    async def endpoints(self) -> tuple[Endpoint, ...]:
        return (Endpoint("memory", True, leader=True, version="0"),)

    async def close(self) -> None:
        return None


class Line:
    """One coordinator's connection to a registry. While `cut` nothing passes; while `full` nothing can be written."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.full = False
        self._whole = asyncio.Event()
        self._whole.set()
        self.wrote = 0  # records

    @property
    def cut(self) -> bool:
        return not self._whole.is_set()

    @cut.setter
    def cut(self, cut: bool) -> None:
        if cut:
            self._whole.clear()
        else:
            self._whole.set()

    def _check(self) -> None:
        if self.cut:
            raise UnreachableError("etcd does not answer", "check that etcd runs and has a majority")

    async def read(self, *paths: str) -> tuple[Record | None, ...]:
        self._check()
        return await self._registry.read(*paths)

    async def list(self, prefix: str) -> tuple[tuple[Record, ...], int]:
        self._check()
        return await self._registry.list(prefix)

    async def commit(self, *ops: Op) -> Committed | Conflict:
        self._check()
        if self.full:
            raise EnvironmentFault("etcd is full and takes no writes", "etcdctl compact REVISION")
        done = await self._registry.commit(*ops)
        self.wrote += sum(isinstance(op, Put) for op in ops) if isinstance(done, Committed) else 0
        return done

    async def watch(self, prefix: str, from_revision: int) -> AsyncGenerator[Changes | Compacted, None]:
        async for news in self._registry.watch(prefix, from_revision):
            await self._whole.wait()
            yield news

    async def health(self) -> Health:
        return Health(not self.full, "in memory") if not self.cut else Health(False, "cut", answers=False)

    async def endpoints(self) -> tuple[Endpoint, ...]:
        return (Endpoint("memory", not self.cut, leader=not self.cut, words="cut" if self.cut else ""),)

    async def close(self) -> None:
        return None
