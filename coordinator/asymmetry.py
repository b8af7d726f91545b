"""Joins both ends of each pair: A says it cannot reach B, what does B say of A? (NET-7, MESH-ASY-001)

Keeps who accuses whom, as reports come in; the judgement is mesh/integrity.py's. A node that lies in one direction is
caught by the other end.

Where the ends are connected to two coordinators, each publishes in its beat whom its nodes cannot reach at the others,
and **the coordinator of the accused opens**, alone: it has all of the accused's own words, while the other could take a
list that was cut, or a beat that is late, for "all is well". So such a pair is told to one node and counted once. Its
grace is longer by two beats: what both ends say at once is heard at different times.
"""

from __future__ import annotations

import heapq
import time
from collections import defaultdict
from collections.abc import Collection, Iterator

from coordinator.feed import Feed
from coordinator.fleet import ACCUSED, BEAT_EVERY_S, Fleet, Other
from coordinator.presence import PresenceTable
from meshctl.mesh import catalogue, judges
from meshctl.mesh.catalogue import Verdict
from meshctl.mesh.integrity import Row
from meshctl.mesh.model import NodeId
from meshctl.wire.codec import FindingRow

_UNREACHED = catalogue.PATH, catalogue.HANDSHAKE, catalogue.ROTATION  # whichever code names the silence


class Asymmetry:
    """`take` each node's findings; `of` a node tells which of its pairs disagree."""

    def __init__(self, feed: Feed, presence: PresenceTable, fleet: Fleet) -> None:
        self._feed, self._presence, self._fleet = feed, presence, fleet
        self._says: dict[NodeId, dict[NodeId, float]] = {}  # whom it cannot reach, since it said so
        self._accused: defaultdict[NodeId, set[NodeId]] = defaultdict(set)
        self._since: dict[tuple[NodeId, NodeId], float] = {}
        self._abroad: dict[NodeId, dict[NodeId, float]] = {}  # ours -> nodes elsewhere that disagree with it, since

    def take(self, node: NodeId, findings: Collection[FindingRow]) -> None:
        """Whom `node` cannot reach now."""
        said = self._says.get(node, {})
        if not findings and not said:
            return
        now = time.time()
        says = {
            peer: said.get(peer, now)
            for f in findings
            if f.code in _UNREACHED and f.verdict == Verdict.FAILED and (peer := NodeId(f.subject))
        }
        for peer in said.keys() - says.keys():
            self._accused[peer].discard(node)
        for peer in says.keys() - said.keys():
            self._accused[peer].add(node)
        self._says[node] = says
        for peer in says.keys() ^ said.keys():
            if self._differ(node, peer):
                self._since.setdefault(_pair(node, peer), now)
            else:
                self._since.pop(_pair(node, peer), None)

    def forget(self, node: NodeId) -> None:
        """The node is gone from the mesh."""
        self.take(node, ())
        self._says.pop(node, None)
        self._accused.pop(node, None)
        self._abroad.pop(node, None)
        for pair in [pair for pair in self._since if node in pair]:
            del self._since[pair]

    def of(self, node: NodeId) -> tuple[FindingRow, ...]:
        """One row per pair of `node` whose ends disagree for longer than the check's grace."""
        now, rows = time.time(), []
        for peer in self._says.get(node, {}).keys() ^ self._accused.get(node, set()):
            reading = judges.asymmetry(peer, self._row(node, peer), self._row(peer, node), now=now)
            pair = _pair(node, peer)
            if reading.verdict is not Verdict.FAILED:
                self._since.pop(pair, None)
                continue
            since = self._since.setdefault(pair, now)
            if now - since >= catalogue.CATALOGUE[catalogue.ASYMMETRY].grace_s:
                rows.append(FindingRow(reading.code, peer, str(reading.verdict), since, now, reading.evidence))
        return *rows, *self._from_abroad(node, now=now)

    def pairs(self) -> int:
        """How many pairs disagree for longer than the grace; of those with an end elsewhere, the accused here."""
        ours = {NodeId(node) for other in self._fleet.others() for node in other.beat.unreached}
        nodes = self._says.keys() | {node for node in ours if self._presence.is_connected(node)}
        return len({_pair(node, NodeId(row.subject)) for node in nodes for row in self.of(node)})

    # ---- other coordinators ------------------------------------------------------------------------------------------

    def unreached(self) -> tuple[dict[str, tuple[str, ...]], bool]:
        """Nodes connected elsewhere -> ours that cannot reach them; the newest ACCUSED pairs, and whether it is cut."""
        elsewhere: dict[NodeId, bool] = {}
        found: list[tuple[float, NodeId, NodeId]] = []
        for node, says in self._says.items():
            if says and self._presence.is_connected(node):
                for peer, since in says.items():
                    if peer not in elsewhere:
                        here = self._presence.is_connected(peer)
                        elsewhere[peer] = not here and self._fleet.where(peer) is not None
                    if elsewhere[peer]:
                        found.append((since, peer, node))
        told: dict[str, list[str]] = {}
        for _, peer, node in heapq.nlargest(ACCUSED, found):
            told.setdefault(peer, []).append(node)
        return {peer: tuple(nodes) for peer, nodes in told.items()}, len(found) > ACCUSED

    def _from_abroad(self, node: NodeId, *, now: float) -> Iterator[FindingRow]:
        before, held = self._abroad.get(node, {}), {}
        for peer, other in self._accusers(node):
            theirs = Row(catalogue.PATH, node, Verdict.FAILED, now, "")
            reading = judges.asymmetry(peer, self._row(node, peer), theirs, now=now)
            if reading.verdict is not Verdict.FAILED:
                continue
            held[peer] = since = before.get(peer, now)
            if now - since >= catalogue.CATALOGUE[catalogue.ASYMMETRY].grace_s + 2 * BEAT_EVERY_S:
                ends = f"{self._name(node)} here says {Verdict.OK}"
                words = f"{self._name(peer)} at {other.beat.name} says {Verdict.FAILED}, {ends}"
                yield FindingRow(reading.code, peer, str(reading.verdict), since, now, words)
        if held:
            self._abroad[node] = held
        else:
            self._abroad.pop(node, None)

    def _accusers(self, node: NodeId) -> Iterator[tuple[NodeId, Other]]:
        """Members connected elsewhere, and there alone, that cannot reach `node` as their coordinator last said."""
        for other in self._fleet.others():
            for name in other.beat.unreached.get(node, ()):
                peer = NodeId(name)
                if peer in self._feed.members and other.find(peer) and not self._presence.is_connected(peer):
                    yield peer, other

    def _name(self, node: NodeId) -> str:
        member = self._feed.members.get(node)
        return member.node.name if member else node

    def _differ(self, node: NodeId, peer: NodeId) -> bool:
        return (peer in self._says.get(node, ())) != (node in self._says.get(peer, ()))

    def _row(self, node: NodeId, peer: NodeId) -> Row | None:
        held = self._presence.get(node)
        if held is None or not held.connected or not held.reported:
            return None
        verdict = Verdict.FAILED if peer in self._says.get(node, {}) else Verdict.OK
        return Row(catalogue.PATH, peer, verdict, held.reported, "")


def _pair(one: NodeId, other: NodeId) -> tuple[NodeId, NodeId]:
    return min(one, other), max(one, other)
