"""Who has applied a revision? Asked of one coordinator, answered by all of them, through etcd (ACC-5, OPS-2).

    ask/<id>                  the revision, written by the coordinator that was asked; taken down when it has its answer
    ask/<id>/<coordinator>    the nodes that told that coordinator that they applied it, by name

An answer names nodes instead of counting them: a count could only be compared with a roll of another moment, and a node
that moves would be taken for one that applied. What is named stays true, whoever dies later. Nothing is concluded from
silence: who is not named is waited for, and told to people as not having applied it.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from coordinator import records
from coordinator.feed import Feed
from coordinator.fleet import Fleet
from coordinator.presence import PresenceTable
from coordinator.registry import ASKS, COMMIT_OPS, Committed, Delete, Expect, Put, Record, Registry
from meshctl.errors import MeshError, UnreachableError
from meshctl.mesh import limits
from meshctl.mesh.model import NodeId

POLL_S: Final = 0.02  # how often the one who waits counts
ANSWER_EVERY_S: Final = 0.2
ASK_AGAIN_S: Final = 0.5
KEEP_S: Final = 60.0  # a question outlives its time by this much before others take it down
MOST: Final = 40_000  # nodes in one answer: 24 bytes each, within COMMIT_BYTES


@dataclass(frozen=True, slots=True)
class Ask:
    """The question."""

    revision: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Answer:
    """Ids of nodes, one after the other without a gap: each has NODE_ID_CHARS."""

    applied: str

    def nodes(self) -> set[NodeId]:
        """As a set."""
        size = limits.NODE_ID_CHARS
        return {NodeId(self.applied[at : at + size]) for at in range(0, len(self.applied), size)}


@dataclass(frozen=True, slots=True)
class Outcome:
    """`applied` members did; `waiting` have not said so."""

    applied: int
    waiting: tuple[NodeId, ...]
    seconds: float


class Asks:
    """Of the coordinator called `me`: asks for its operators, answers for those of others."""

    def __init__(self, me: str, registry: Registry, feed: Feed, presence: PresenceTable, fleet: Fleet) -> None:
        self._me, self._registry, self._feed, self._presence, self._fleet = me, registry, feed, presence, fleet
        self._open: dict[str, tuple[Ask, Record, float]] = {}  # questions of others, and when we heard of each
        self._own: set[str] = set()
        self._said: dict[str, tuple[str, int]] = {}  # our answer to each, and its generation
        self._wanted = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        feed.board.on_change.append(self._changed)

    # ---- asking ------------------------------------------------------------------------------------------------------

    async def applied(self, revision: int, timeout_s: float) -> Outcome:
        """Wait until every member of now has applied `revision`, or for `timeout_s`.

        Raises UnreachableError when not even this coordinator hears of the revision in that time.
        """
        begun, asked, again_at = time.monotonic(), "", 0.0
        try:
            async with asyncio.timeout(timeout_s):
                await self._feed.reached(revision)
        except TimeoutError:
            what = f"this coordinator has not heard of revision {revision} yet"
            raise UnreachableError(what, "is etcd healthy? mesh-coordinator status") from None
        asked_of = set(self._feed.members)
        waiting = set(asked_of)
        try:
            while True:
                waiting &= self._feed.members.keys()
                waiting -= self._presence.that_applied(revision)
                waiting -= self._answered(asked)
                now = time.monotonic()
                if not waiting or now - begun >= timeout_s:
                    asked_of &= self._feed.members.keys()
                    return Outcome(len(asked_of) - len(waiting), tuple(sorted(waiting)), now - begun)
                if not asked and now >= again_at and self._fleet.others():
                    asked, again_at = await self._ask(Ask(revision, timeout_s)), now + ASK_AGAIN_S
                await asyncio.sleep(POLL_S)
        finally:
            if asked:
                task = asyncio.ensure_future(self._close(asked))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _ask(self, ask: Ask) -> str:
        """The question's path; empty when it could not be written."""
        path = ASKS + secrets.token_hex(6)
        self._own.add(path)
        with suppress(MeshError):
            if isinstance(await self._registry.commit(Put(path, records.encode(ask), 0)), Committed):
                return path
        return ""

    def _answered(self, asked: str) -> set[NodeId]:
        found: set[NodeId] = set()
        if asked:
            for path, record in self._feed.board.held.items():
                if path.startswith(asked + "/"):
                    found |= records.decode(record.value, Answer).nodes()
        return found

    async def _close(self, asked: str) -> None:
        with suppress(MeshError):
            found, _ = await self._registry.list(asked)
            await self._delete(found)
        self._own.discard(asked)

    async def _delete(self, found: tuple[Record, ...]) -> None:
        for start in range(0, len(found), COMMIT_OPS):
            await self._registry.commit(*(Delete(r.path, r.generation) for r in found[start : start + COMMIT_OPS]))

    # ---- answering ---------------------------------------------------------------------------------------------------

    def _changed(self, path: str, record: Record | None) -> None:
        if not path.startswith(ASKS) or "/" in path.removeprefix(ASKS):
            return
        if record is None:
            self._open.pop(path, None)
            self._said.pop(path, None)
        else:
            with suppress(MeshError):
                self._open[path] = records.decode(record.value, Ask), record, self._fleet.clock
        if self._open:
            self._wanted.set()
        else:
            self._wanted.clear()

    async def run(self) -> None:
        """For ever. An answer that could not be written is written the next time."""
        while True:
            await self._wanted.wait()
            with suppress(MeshError):
                await self.answer()
            await asyncio.sleep(ANSWER_EVERY_S)

    async def answer(self) -> None:
        """Once, to every question of others: who has told us that they applied it."""
        for path, (ask, at, _) in list(self._open.items()):
            if path in self._own:
                continue
            text = "".join(sorted(self._presence.that_applied(ask.revision))[:MOST])
            said, generation = self._said.get(path, ("", 0))
            if text == said:
                continue
            put = Put(f"{path}/{self._me}", records.encode(Answer(text)), generation)
            if isinstance(await self._registry.commit(put, Expect(path, at.generation)), Committed):
                self._said[path] = text, generation + 1
            else:  # the question is gone, or an answer of ours whose confirmation was lost stands
                (mine,) = await self._registry.read(put.path)
                self._said[path] = "", mine.generation if mine else 0

    async def sweep(self) -> None:
        """Take down questions whose asker died: long past their time, by our own listening."""
        for path, (ask, _, heard) in list(self._open.items()):
            if self._fleet.clock - heard > ask.timeout_s + KEEP_S:
                found, _ = await self._registry.list(path)
                await self._delete(found)
