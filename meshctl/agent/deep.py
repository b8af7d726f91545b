"""The deep experiments: what is too dear to try with every echo, one peer after the other (NET-7).

An experiment tries one peer and returns Readings; it never judges another check. They run alone, one peer at a time, by
the schedule, at once for a peer that is new, soon for one whose keys changed and for all of them when our own did, and
again for one with which something is wrong: of those the one that was tried longest ago, every AGAIN_EVERY_S, and the
first time at once. What could not be told is tried again once. Nothing here knows what an experiment does.

While keys change on one node after the other, it rests: a tap reads every packet of ours just when packets wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

from meshctl.agent import tick
from meshctl.errors import MeshError
from meshctl.mesh import schedule
from meshctl.mesh.catalogue import Verdict
from meshctl.mesh.integrity import Key, Reading
from meshctl.mesh.model import Node, NodeId
from meshctl.mesh.spans import short

LOOK_EVERY_S: Final = 2.0  # for who is new
AGAIN_EVERY_S: Final = 10.0  # one of the peers with which something is wrong
WITHIN_S: Final = 30.0  # for one experiment with one peer
CALM_S: Final = 3.0  # after a key changed: in a rotation the next one does after a second or two
RESTED_S: Final = 15.0  # but a long rotation is no excuse for not looking: one experiment, then it rests again
_ASKED_MOST: Final = 64  # one at a time is tried: more are in their turn before that
_WRONG: Final = (Verdict.FAILED, Verdict.DEGRADED)


class Experiment(Protocol):
    """One or more claims about a peer, tried together."""

    codes: tuple[str, ...]

    async def run(self, peer: Node) -> Sequence[Reading]:
        """Try it now, seconds at most. May raise MeshError: that is `unknown`, with its words."""


class Deep:
    """`run` it; `readings` are the latest of every peer and code."""

    def __init__(
        self,
        experiments: Sequence[Experiment],
        peers: Callable[[], Iterable[Node]],
        is_proven: Callable[[NodeId], bool],
        me: NodeId,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`peers` are all the others now; `is_proven` says whether an echo came back lately: else there is no point."""
        self.readings: dict[Key, Reading] = {}
        self._experiments, self._peers, self._is_proven, self._me = experiments, peers, is_proven, me
        self._monotonic = monotonic
        self._tried: dict[NodeId, bytes] = {}  # fingerprint of the statement that a peer had when last tried
        self._changed: frozenset[tuple[NodeId, bytes]] = frozenset()  # who has another one since then
        self._changed_at = self._resting_since = float("-inf")
        self._turn, self._next_at = 0, monotonic()
        self._again_at = self._next_at
        self._asked: set[NodeId] = set()

    @property
    def period_s(self) -> float:
        """Seconds within which every peer is tried."""
        return schedule.deep_period_s(1 + sum(1 for _ in self._peers()))

    def soon(self, peer: NodeId) -> None:
        """There is a reason to try this peer before its turn; as one of those with which something is wrong."""
        if len(self._asked) < _ASKED_MOST:
            self._asked.add(peer)

    def anew(self) -> None:
        """Our own key changed: every peer is as one that has not been tried."""
        self._tried = dict.fromkeys(self._tried, b"")

    async def run(self) -> None:
        """For ever."""
        while True:
            peer = self._due()
            if peer is None:
                now = asyncio.get_running_loop().time()
                await asyncio.sleep(tick.following(now, LOOK_EVERY_S) - now)
                continue
            await self.examine(peer)

    async def examine(self, peer: Node) -> None:
        """All experiments with one peer."""
        self._tried.pop(peer.id, None)  # the order is that of trying
        self._tried[peer.id] = peer.statement.fingerprint
        self._asked.discard(peer.id)
        self._resting_since = self._monotonic()
        for experiment in self._experiments:
            try:
                async with asyncio.timeout(WITHIN_S):
                    found = await experiment.run(peer)
            except (MeshError, TimeoutError) as error:
                why = error.what if isinstance(error, MeshError) else f"not done within {WITHIN_S:.0f} s"
                now = self._monotonic()
                found = [Reading(code, peer.id, Verdict.UNKNOWN, now, short(why)) for code in experiment.codes]
            for reading in found:
                before = self.readings.get(reading[:2])
                if reading.verdict is Verdict.UNKNOWN and (before is None or before.verdict is not Verdict.UNKNOWN):
                    self.soon(peer.id)  # it may be the moment's; once, as it may also be for good
                elif reading.verdict in _WRONG and (before is None or before.verdict not in _WRONG):
                    self._again_at = self._monotonic()  # chance, or a remedy that is in force by now: look at once
                self.readings[reading[:2]] = reading

    def _due(self) -> Node | None:
        """Who has not been tried, or not with its present key, else whose turn it is."""
        peers = {node.id: node for node in self._peers()}
        for gone in self._tried.keys() - peers.keys():
            del self._tried[gone]
            self._asked.discard(gone)
            self.readings = {key: reading for key, reading in self.readings.items() if key[1] != gone}
        untried = [n for n in peers.values() if self._tried.get(n.id) != n.statement.fingerprint]
        now, resting = self._monotonic(), self._is_resting(untried)
        for node in untried:
            if self._is_proven(node.id) and (not resting or node.id not in self._tried):
                return node
        if resting:
            return None
        if now >= self._again_at:
            wrong = self._asked | {NodeId(r.subject) for r in self.readings.values() if r.verdict in _WRONG}
            for node_id in self._tried:
                if node_id in wrong and self._is_proven(node_id):
                    self._again_at = now + AGAIN_EVERY_S
                    return peers[node_id]
        if not peers or now < self._next_at:
            return None
        self._next_at = max(self._next_at + schedule.deep_every_s(len(peers) + 1), now)
        self._turn += 1
        due = peers[schedule.deep((*peers, self._me), self._me, self._turn)]
        return due if self._is_proven(due.id) else None

    def _is_resting(self, untried: Iterable[Node]) -> bool:
        """Whether keys have just changed, and more may."""
        now, before = self._monotonic(), self._changed
        self._changed = frozenset((n.id, n.statement.fingerprint) for n in untried if n.id in self._tried)
        if self._changed - before:
            if now - self._changed_at >= CALM_S:
                self._resting_since = now
            self._changed_at = now
        return now - self._changed_at < CALM_S and now - self._resting_since < RESTED_S
