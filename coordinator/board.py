"""The notice board: what coordinators write for each other in etcd, as this one's watch brought it (OPS-2).

Three kinds of notes: what each coordinator says of itself (fleet.py reads it, herald.py writes it), questions that all
of them answer (questions.py), and letters between nodes (post.py). The board keeps the newest of each and tells
listeners; it looks into none and writes nothing. Notes are no part of the map: no stream is woken by one.
"""

from __future__ import annotations

from collections.abc import Callable, Container

from coordinator.registry import ASKS, COORDINATORS, POST, Record


class Board:
    """`held` by path; `on_change` is told of each note that came (with its record) or went (without)."""

    def __init__(self) -> None:
        self.held: dict[str, Record] = {}
        self.on_change: list[Callable[[str, Record | None], object]] = []

    @staticmethod
    def has_room_for(path: str) -> bool:
        """Whether a record at `path` is a note."""
        return path.startswith((COORDINATORS, ASKS, POST))

    def put(self, record: Record) -> None:
        """A note was written. One that we hold already (a list read anew) is no news."""
        known = self.held.get(record.path)
        if known is None or known.revision < record.revision:
            self.held[record.path] = record
            self._tell(record.path, record)

    def drop(self, path: str) -> None:
        """A note was taken down."""
        if self.held.pop(path, None):
            self._tell(path, None)

    def only(self, paths: Container[str]) -> None:
        """The registry was read as a whole: what is not there any more was taken down meanwhile."""
        for path in [path for path in self.held if path not in paths]:
            self.drop(path)

    def _tell(self, path: str, record: Record | None) -> None:
        for act in self.on_change:
            act(path, record)
