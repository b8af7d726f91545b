"""Rows of nodes that are connected to other coordinators, asked for when an operator asks (NET-7, OPS-2).

One question through etcd to all (questions.py), for WITHIN_S at most, and only when somebody else has members; nothing
is written or kept otherwise. Each answers once, in one record, with the rows that it has: what that record cannot hold
is counted (wire/rows.py). Operators who ask meanwhile, or soon after, share the outcome. How old a row is, each
coordinator tells by its own steady clock; the milliseconds that an answer takes do not count. Knows no verdicts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from coordinator.feed import Feed
from coordinator.fleet import Fleet
from coordinator.matrix import AHEAD, Elsewhere, Matrix
from coordinator.questions import POLL_S, ROWS, Answerer, Ask, Questions
from coordinator.registry import COMMIT_BYTES
from meshctl.errors import ProtocolError
from meshctl.mesh.matrix import FULL, GARBLED, SILENT, MatrixRow
from meshctl.wire import rows

WITHIN_S: Final = 2.0
SHARED_S: Final = 1.0
SHARED_BYTES: Final = 64 * 1024  # of answers give another second: a day of asking fills no etcd, which keeps an hour
MOST: Final = COMMIT_BYTES - 4096  # of an answer; the rest is room for its seal


class Gather:
    """`rows` when an operator asks."""

    def __init__(
        self, questions: Questions, matrix: Matrix, feed: Feed, fleet: Fleet, steady: Callable[[], float]
    ) -> None:
        self._questions, self._matrix, self._feed, self._fleet, self._steady = questions, matrix, feed, fleet, steady
        self._last: asyncio.Task[Elsewhere] | None = None
        questions.answerers[ROWS] = Answerer(lambda _: rows.pack(matrix.share(), MOST), once=True)

    async def rows(self) -> Elsewhere:
        """What others tell. Whoever asked goes away without disturbing those who wait for the same."""
        if self._last is None:
            members = self._feed.members
            asked = {other.id for other in self._fleet.others() if any(node in members for node, _ in other.nodes())}
            if not asked:
                return Elsewhere()
            self._last = asyncio.ensure_future(self._ask(asked))
        return await asyncio.shield(self._last)

    async def _ask(self, waiting: set[str]) -> Elsewhere:
        found, path, size = Elsewhere(why=dict.fromkeys(waiting, SILENT)), "", 0
        try:
            async with asyncio.timeout(WITHIN_S):
                path = await self._questions.put(Ask(0, WITHIN_S, ROWS))
                while path and waiting:
                    self._matrix.remember()
                    answers = self._questions.answers(path)
                    for who in waiting & answers.keys():
                        size += len(answers[who])
                        found.why[who] = self._take(answers[who], found)
                    waiting = waiting & {other.id for other in self._fleet.others()} - answers.keys()
                    if waiting:
                        await asyncio.sleep(POLL_S)
        except TimeoutError:
            pass
        finally:
            if path:
                self._questions.withdraw(path)
            asyncio.get_running_loop().call_later(SHARED_S + size / SHARED_BYTES, self._forget)
        return found

    def _take(self, answer: bytes, into: Elsewhere) -> str:
        """The newest of each member's rows -> why there may be others."""
        members, now = self._feed.members, self._steady()
        try:
            share = rows.unpack(answer, len(members) + AHEAD)
        except ProtocolError:
            return GARBLED
        for node, heard_s, cells in share.rows:
            known = into.rows.get(node)
            if node in members and (known is None or known[1] < now - heard_s):
                into.rows[node] = MatrixRow(share.roster, cells), now - heard_s
        return FULL if share.left_out else ""

    def _forget(self) -> None:
        self._last = None
