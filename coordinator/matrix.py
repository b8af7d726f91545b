"""Keeps the rows that nodes report, as the bytes they came in: who tested whom, when, worst finding (NET-7).

In memory, of the nodes that are connected here. Rows at other coordinators are with those, who tell them when somebody
asks (gather.py): kept in etcd they would cost it a megabyte for every thousand nodes, again and again. A row is put in
the order of the map when somebody asks. Judges nothing: mesh/matrix.py compares the two sides of a pair.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from coordinator.feed import Feed
from coordinator.fleet import Fleet
from coordinator.presence import PresenceTable
from meshctl.mesh import matrix
from meshctl.mesh.matrix import Grid, Held, Line, MatrixRow, Share
from meshctl.mesh.model import NodeId

_MAPS: Final = 16  # that rows may still speak of: a change or two are on the way while the mesh changes
AHEAD: Final = 1024  # nodes by which a node's map may be ahead of ours


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """What other coordinators told: rows, with when each was heard on our steady clock; of each coordinator, by its id,
    why rows of it are missing (a word of mesh/matrix.py, or empty).
    """

    rows: dict[NodeId, tuple[MatrixRow, float]] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)


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
        if len(row.cells) <= len(self._feed.members) + AHEAD:
            self._rows[node] = row, self._steady()
            self.remember()

    def forget(self, node: NodeId) -> None:
        """The node is gone from the mesh."""
        self._rows.pop(node, None)

    def share(self) -> Share:
        """The rows of nodes that are connected here, in the order of our map: another coordinator may not remember an
        older one that a row speaks of.
        """
        now, by_id = self._steady(), self.remember()
        rows = []
        for node in by_id:
            held = self._rows.get(node) if self._presence.is_connected(node) else None
            said = self._aligned(held[0], by_id) if held else None
            if held and said is not None:
                rows.append(Held(node, now - held[1], said))
        return Share(next(reversed(self._maps)), tuple(rows))

    def grid(self, mesh: str, elsewhere: Elsewhere) -> Grid:
        """All of it, in the order of names."""
        now, members = self._steady(), self._feed.members
        ids = sorted(members, key=lambda node: members[node].node.name)
        by_id = self.remember()
        place = {node: index for index, node in enumerate(by_id)}
        columns = [place[node] for node in ids]
        empty = bytes(len(ids))
        lines, cells = [], bytearray()
        for node in ids:
            here = self._presence.is_connected(node)
            found = None if here else self._fleet.where(node)
            held = self._rows.get(node) if here else elsewhere.rows.get(node) if found else None
            said = self._aligned(held[0], by_id) if held else None
            cells += empty if said is None else bytes(map(said.__getitem__, columns))
            line = Line(
                id=node,
                name=members[node].node.name,
                known=said is not None,
                heard_s=now - held[1] if held else 0.0,
                connected=here or found is not None,
                via=found[0].beat.name if found else "",
                why=elsewhere.why.get(found[0].id, "") if found and said is None else "",
            )
            lines.append(line)
        return Grid(mesh, self._feed.revision, tuple(lines), bytes(cells))

    def _aligned(self, row: MatrixRow, by_id: tuple[NodeId, ...]) -> bytes | None:
        """In the order of our map; None for a row of a map that we do not know."""
        then = self._maps.get(row.roster)
        return matrix.align(row.cells, then, by_id) if then is not None and len(row.cells) == len(then) else None

    def remember(self) -> tuple[NodeId, ...]:
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
