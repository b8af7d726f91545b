"""The shared log of the roster: what changed since revision r? One log for all streams, conflated by construction
(NET-2).

Each node appears once, at its last change, so the log is as long as the roster plus its tombstones and never needs a
snapshot to catch up with itself: after a restart it is rebuilt from the registry and old cursors still work. Values are
the encoded bytes of each node, made once. `floor` is the oldest revision a cursor may have: tombstones below were
swept.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right, insort
from collections.abc import Iterator

_MODULUS = 1 << 256


def chunk_hash(chunk: bytes) -> int:
    """The summand of a map's hash: SHA-256 of one encoded node."""
    return int.from_bytes(hashlib.sha256(chunk).digest(), "big")


class Journal:
    """Latest encoded state of every node, ordered by the revision of its last change. `None` is a tombstone."""

    def __init__(self) -> None:
        self.revision = 0
        self.floor = 0
        self._latest: dict[str, tuple[int, bytes | None]] = {}
        self._order: list[tuple[int, str]] = []
        self._stale = 0
        self._hash = 0

    def __len__(self) -> int:
        return sum(chunk is not None for _, chunk in self._latest.values())

    @property
    def hash(self) -> bytes:
        """Hash of the map: the sum over all encoded nodes. A node that holds the same map has the same."""
        return (self._hash % _MODULUS).to_bytes(32, "big")

    def record(self, revision: int, node: str, chunk: bytes | None) -> bool:
        """Take one change; False when it changes nothing that streams must see. Revisions never go back."""
        known = self._latest.get(node)
        old = known[1] if known else None
        self.revision = max(self.revision, revision)
        if known and old == chunk:
            return False
        if known:
            self._stale += 1
        self._latest[node] = (revision, chunk)
        insort(self._order, (revision, node))
        self._hash += (chunk_hash(chunk) if chunk is not None else 0) - (chunk_hash(old) if old is not None else 0)
        if self._stale > 64 and self._stale > len(self._latest):
            self._order = sorted((at, name) for name, (at, _) in self._latest.items())
            self._stale = 0
        return True

    def since(self, revision: int) -> Iterator[tuple[str, bytes | None]]:
        """What a holder of the map at `revision` lacks: each node once, in order of change."""
        for at, node in self._order[bisect_right(self._order, (revision, "\x7f")) :]:
            latest, chunk = self._latest[node]
            if latest == at:
                yield node, chunk

    def snapshot(self) -> Iterator[tuple[str, bytes]]:
        """All living nodes."""
        return ((node, chunk) for node, (_, chunk) in self._latest.items() if chunk is not None)

    def forget(self, node: str) -> None:
        """Drop a swept tombstone: cursors older than its revision need a snapshot."""
        known = self._latest.get(node)
        if known and known[1] is None:
            del self._latest[node]
            self._order = [entry for entry in self._order if entry[1] != node]
            self.floor = max(self.floor, known[0])

    def can_resume(self, revision: int) -> bool:
        """Whether a delta from `revision` is possible."""
        return self.floor <= revision <= self.revision
