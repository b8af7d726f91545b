"""Questions that one coordinator puts to all of them, and their answers, through etcd (ACC-5, NET-7, OPS-2).

    ask/<id>                  the question, written by the coordinator that was asked; taken down when it has its answer
    ask/<id>/<coordinator>    what that coordinator answers

Sealed as all records are, to their path and to how often it was written: who writes to etcd makes up no answer. He can
take notes away, which is silence, and put an old question back, which is answered as any other; ids are random, so an
old answer stands under a question that nobody asks any more. An answer is committed only while its question stands.
Knows the kinds of questions by name alone: asks.py and gather.py say what is answered and what follows from it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NamedTuple

from coordinator import records
from coordinator.board import Board
from coordinator.fleet import Fleet
from coordinator.registry import ASKS, COMMIT_OPS, Committed, Delete, Expect, Put, Record, Registry
from meshctl.errors import MeshError

POLL_S: Final = 0.02  # how often the one who waits looks
ANSWER_EVERY_S: Final = 0.2
KEEP_S: Final = 60.0  # a question outlives its time by this much before others take it down
LONGEST_S: Final = 3600.0  # that anybody waits

APPLIED: Final = "applied"
ROWS: Final = "rows"


@dataclass(frozen=True, slots=True)
class Ask:
    """The question: `what` is its kind, `revision` of use to APPLIED alone."""

    revision: int
    timeout_s: float
    what: str = APPLIED


class Answerer(NamedTuple):
    """`say` gives the answer as of now, empty while there is nothing to say; said `once`, or anew when it changed."""

    say: Callable[[Ask], bytes]
    once: bool = False


class Questions:
    """Of the coordinator called `me`. A kind that has no entry in `answerers` is left to others."""

    def __init__(self, me: str, registry: Registry, board: Board, fleet: Fleet) -> None:
        self.answerers: dict[str, Answerer] = {}
        self._me, self._registry, self._board, self._fleet = me, registry, board, fleet
        self._open: dict[str, tuple[Ask, Record]] = {}  # that stand
        self._own: set[str] = set()
        self._said: dict[str, tuple[bytes, int]] = {}  # our answer to each, and its generation
        self._since: dict[str, float] = {}  # when a sweep first met each
        self._wanted = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        board.on_change.append(self._changed)

    # ---- asking ------------------------------------------------------------------------------------------------------

    async def put(self, ask: Ask) -> str:
        """The question's path; empty when it could not be written. One whose writer is cancelled is taken down."""
        path = ASKS + secrets.token_hex(6)
        self._own.add(path)
        try:
            if isinstance(await self._registry.commit(Put(path, records.encode(ask), 0)), Committed):
                return path
        except MeshError:
            pass
        except asyncio.CancelledError:
            self.withdraw(path)
            raise
        self._own.discard(path)
        return ""

    def answers(self, path: str) -> dict[str, bytes]:
        """What was answered so far, by the id of the coordinator."""
        start = path + "/"
        return {p.removeprefix(start): r.value for p, r in self._board.held.items() if p.startswith(start)}

    def withdraw(self, path: str) -> None:
        """Take the question and its answers down, while the caller goes on: he may be in a hurry, or cancelled."""
        task = asyncio.ensure_future(self._withdraw(path))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _withdraw(self, path: str) -> None:
        with suppress(MeshError):
            await self._take_down(path)
        self._own.discard(path)

    async def _take_down(self, path: str) -> None:
        await self._registry.commit(Delete(path, 1))  # first: whoever answers after that is refused
        found, _ = await self._registry.list(path)
        for start in range(0, len(found), COMMIT_OPS):
            await self._registry.commit(*(Delete(r.path, r.generation) for r in found[start : start + COMMIT_OPS]))

    # ---- answering ---------------------------------------------------------------------------------------------------

    def _changed(self, path: str, record: Record | None) -> None:
        if not path.startswith(ASKS) or path != _question(path):
            return
        if record is None:
            self._open.pop(path, None)
            self._said.pop(path, None)
        else:
            with suppress(MeshError):
                self._open[path] = records.decode(record.value, Ask), record
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
        """Once, to every question of others."""
        for path, (ask, at) in list(self._open.items()):
            answerer = self.answerers.get(ask.what)
            said, generation = self._said.get(path, (b"", 0))
            if path in self._own or answerer is None or (said and answerer.once):
                continue
            value = answerer.say(ask)
            if value == said:
                continue
            put = Put(f"{path}/{self._me}", value, generation)
            if isinstance(await self._registry.commit(put, Expect(path, at.generation)), Committed):
                now = value, generation + 1
            else:  # the question is gone, or an answer of ours whose confirmation was lost stands
                (mine,) = await self._registry.read(put.path)
                now = (mine.value, mine.generation) if mine else (b"", 0)
            if path in self._open:
                self._said[path] = now

    async def sweep(self) -> None:
        """Take down questions whose asker died, and answers that one left: long past their time, by our listening."""
        clock, standing = self._fleet.clock, {_question(path) for path in self._board.held if path.startswith(ASKS)}
        self._since = {path: self._since.get(path, clock) for path in standing}
        for path, since in self._since.items():
            if clock - since > self._time_of(path) + KEEP_S:
                await self._take_down(path)

    def _time_of(self, path: str) -> float:
        if path in self._open:
            return self._open[path][0].timeout_s
        return LONGEST_S if path in self._board.held else 0.0  # of a release that we do not know; its asker is gone


def _question(path: str) -> str:
    """The question that a path under ASKS belongs to."""
    return ASKS + path.removeprefix(ASKS).partition("/")[0]
