"""Who has applied a revision? Asked of one coordinator, answered by all of them (ACC-5, OPS-2): see questions.py.

An answer names nodes instead of counting them: a count could only be compared with a roll of another moment, and a node
that moves would be taken for one that applied. What is named stays true, whoever dies later. Nothing is concluded from
silence: who is not named is waited for, and told to people as not having applied it.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Final

from coordinator import records
from coordinator.feed import Feed
from coordinator.fleet import Fleet
from coordinator.presence import PresenceTable
from coordinator.questions import APPLIED, POLL_S, Answerer, Ask, Questions
from meshctl.errors import UnreachableError
from meshctl.mesh import limits
from meshctl.mesh.model import NodeId

ASK_AGAIN_S: Final = 0.5
MOST: Final = 40_000  # nodes in one answer: 24 bytes each, within COMMIT_BYTES


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
    """Asks for operators of this coordinator, and answers for those of others."""

    def __init__(self, questions: Questions, feed: Feed, presence: PresenceTable, fleet: Fleet) -> None:
        self._questions, self._feed, self._presence, self._fleet = questions, feed, presence, fleet
        questions.answerers[APPLIED] = Answerer(self._say)

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
                    asked, again_at = await self._questions.put(Ask(revision, timeout_s)), now + ASK_AGAIN_S
                await asyncio.sleep(POLL_S)
        finally:
            if asked:
                self._questions.withdraw(asked)

    def _answered(self, asked: str) -> set[NodeId]:
        answers = self._questions.answers(asked).values() if asked else ()
        return {node for value in answers for node in records.decode(value, Answer).nodes()}

    def _say(self, ask: Ask) -> bytes:
        text = "".join(sorted(self._presence.that_applied(ask.revision))[:MOST])
        return records.encode(Answer(text)) if text else b""
