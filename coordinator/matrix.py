"""Keeps the rows that nodes report, as the bytes they came in: who tested whom, when, worst finding (NET-7).

In memory, of the nodes that are connected here; the rows at other coordinators would cost etcd a megabyte for every
thousand nodes, so they are named as not shown instead. A row is put in the order of the map when somebody asks. Judges
nothing: mesh/matrix.py compares the two sides of a pair.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from coordinator.feed import Feed
from coordinator.fleet import Fleet
from coordinator.presence import PresenceTable
from meshctl.mesh import matrix
from meshctl.mesh.matrix import Grid, Line, MatrixRow
from meshctl.mesh.model import NodeId

_MAPS: Final = 16  # that rows may still speak of: a change or two are on the way while the mesh changes
_AHEAD: Final = 1024  # nodes by which a node's map may be ahead of ours


class Matrix:
    """`take` each row; `grid` when somebody asks."""

    def __init__(
        self, feed: Feed, presence: PresenceTable, fleet: Fleet, steady: Callable[[], float] = time.monotonic
    ) -> None:
        self._feed, self._presence, self._fleet, self._steady = feed, presence, fleet, steady
        self._rows: dict[NodeId, tuple[MatrixRow, float]] = {}
        self._maps: dict[bytes, tuple[NodeId, ...]] = {}
        self._revision = -1

    def take(self, node: NodeId, row: MatrixRow) -> None:
        """What `node` says of the others. One that is longer than any map could be is not kept."""
        if len(row.cells) <= len(self._feed.members) + _AHEAD:
            self._rows[node] = row, self._steady()
            self._order()

    def forget(self, node: NodeId) -> None:
        """The node is gone from the mesh."""
        self._rows.pop(node, None)

    def grid(self, mesh: str) -> Grid:
        """All of it, in the order of names."""
        now, members = self._steady(), self._feed.members
        ids = sorted(members, key=lambda node: members[node].node.name)
        by_id = self._order()
        place = {node: index for index, node in enumerate(by_id)}
        columns = [place[node] for node in ids]
        empty = bytes(len(ids))
        lines, cells = [], bytearray()
        for node in ids:
            held = self._rows.get(node) if self._presence.is_connected(node) else None
            then = self._maps.get(held[0].roster) if held else None
            known = held is not None and then is not None and len(held[0].cells) == len(then)
            if held and then and known:
                said = matrix.align(held[0].cells, then, by_id)
                cells += bytes(map(said.__getitem__, columns))
            else:
                cells += empty
            lines.append(self._line(node, members[node].node.name, known=known, heard_s=now - held[1] if held else 0.0))
        return Grid(mesh, self._feed.revision, tuple(lines), bytes(cells))

    def _line(self, node: NodeId, name: str, *, known: bool, heard_s: float) -> Line:
        if self._presence.is_connected(node):
            return Line(node, name, known, heard_s, connected=True)
        found = self._fleet.where(node)
        return Line(node, name, False, 0.0, connected=found is not None, via=found[0].beat.name if found else "")

    def _order(self) -> tuple[NodeId, ...]:
        """The ids of our map, sorted, and remembered under their fingerprint: rows name it."""
        if self._revision != self._feed.revision:
            ids = tuple(sorted(self._feed.members))
            key = matrix.fingerprint(ids)
            self._maps.pop(key, None)
            self._maps[key] = ids
            while len(self._maps) > _MAPS:
                del self._maps[next(iter(self._maps))]
            self._revision = self._feed.revision
        return next(reversed(self._maps.values()))
