"""Joins both ends of each pair: A says it cannot reach B, what does B say of A? (NET-7, MESH-ASY-001)

Keeps who accuses whom, as reports come in; the judgement is mesh/integrity.py's. A node that lies in one direction is
caught by the other end.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection

from coordinator.feed import Feed
from coordinator.presence import PresenceTable
from meshctl.mesh import catalogue, judges
from meshctl.mesh.catalogue import Verdict
from meshctl.mesh.integrity import Row
from meshctl.mesh.model import NodeId
from meshctl.wire.codec import FindingRow

_UNREACHED = catalogue.PATH, catalogue.HANDSHAKE, catalogue.ROTATION  # whichever code names the silence


class Asymmetry:
    """`take` each node's findings; `of` a node tells which of its pairs disagree."""

    def __init__(self, feed: Feed, presence: PresenceTable) -> None:
        self._feed, self._presence = feed, presence
        self._says: dict[NodeId, frozenset[NodeId]] = {}
        self._accused: defaultdict[NodeId, set[NodeId]] = defaultdict(set)
        self._since: dict[tuple[NodeId, NodeId], float] = {}

    def take(self, node: NodeId, findings: Collection[FindingRow]) -> None:
        """Whom `node` cannot reach now."""
        said = self._says.get(node, frozenset())
        if not findings and not said:
            return
        says = frozenset(
            NodeId(f.subject)
            for f in findings
            if f.code in _UNREACHED and f.verdict == Verdict.FAILED and f.subject
        )
        for peer in said - says:
            self._accused[peer].discard(node)
        for peer in says - said:
            self._accused[peer].add(node)
        self._says[node] = says
        now = time.time()
        for peer in says ^ said:
            if self._differ(node, peer):
                self._since.setdefault(_pair(node, peer), now)
            else:
                self._since.pop(_pair(node, peer), None)

    def forget(self, node: NodeId) -> None:
        """The node is gone from the mesh."""
        self.take(node, ())
        self._says.pop(node, None)
        self._accused.pop(node, None)
        for pair in [pair for pair in self._since if node in pair]:
            del self._since[pair]

    def of(self, node: NodeId) -> tuple[FindingRow, ...]:
        """One row per pair of `node` whose ends disagree for longer than the check's grace."""
        now, rows = time.time(), []
        for peer in self._says.get(node, frozenset()) ^ self._accused.get(node, set()):
            reading = judges.asymmetry(peer, self._row(node, peer), self._row(peer, node), now=now)
            pair = _pair(node, peer)
            if reading.verdict is not Verdict.FAILED:
                self._since.pop(pair, None)
                continue
            since = self._since.setdefault(pair, now)
            if now - since >= catalogue.CATALOGUE[catalogue.ASYMMETRY].grace_s:
                rows.append(FindingRow(reading.code, peer, str(reading.verdict), since, now, reading.evidence))
        return tuple(rows)

    def pairs(self) -> int:
        """How many pairs disagree for longer than the grace."""
        return len({_pair(node, NodeId(row.subject)) for node in self._says for row in self.of(node)})

    def _differ(self, node: NodeId, peer: NodeId) -> bool:
        return (peer in self._says.get(node, ())) != (node in self._says.get(peer, ()))

    def _row(self, node: NodeId, peer: NodeId) -> Row | None:
        held = self._presence.get(node)
        if held is None or not held.connected or not held.reported:
            return None
        verdict = Verdict.FAILED if peer in self._says.get(node, frozenset()) else Verdict.OK
        return Row(catalogue.PATH, peer, verdict, held.reported, "")


def _pair(one: NodeId, other: NodeId) -> tuple[NodeId, NodeId]:
    return min(one, other), max(one, other)
