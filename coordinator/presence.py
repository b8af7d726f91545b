"""Who is connected here, what each node applied, and what it reported: memory only (NET-2, NET-7).

What other coordinators are told of it is herald.py's business.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from meshctl.mesh.model import NodeId
from meshctl.wire.codec import FindingRow

RELEASE = re.compile(r"[0-9A-Za-z.+-]{1,32}")  # what a node says of itself becomes a label of a metric


@dataclass(slots=True)
class Presence:
    """One node as this coordinator knows it. Times in unix seconds, but for `opened`, which is steady."""

    since: float
    connected: bool = True
    address: str = ""
    applied: int = 0
    digest: bytes = b""
    verdict: str = "unknown"
    findings: tuple[FindingRow, ...] = ()
    reported: float = 0.0
    streams: int = 0
    release: str = ""
    opened: float = 0.0


class PresenceTable:
    """All nodes that connected since this coordinator started."""

    def __init__(self, steady: Callable[[], float] = time.monotonic) -> None:
        self._nodes: dict[NodeId, Presence] = {}
        self._steady = steady
        self.version = 0  # another one whenever somebody came or went, or said something new of what it applied
        self.on_closed: list[Callable[[NodeId], object]] = []  # told of each node whose last stream ended
        self.on_change: list[Callable[[NodeId], object]] = []  # told of each that came, went or changed its verdict
        self.on_applied: list[Callable[[Presence, int], object]] = []  # told of it, and of what was applied before

    def __getitem__(self, node: NodeId) -> Presence:
        return self._nodes[node]

    def get(self, node: NodeId) -> Presence | None:
        """None: never connected here."""
        return self._nodes.get(node)

    def connected(self) -> Iterator[tuple[NodeId, Presence]]:
        """Nodes with a live stream."""
        return ((node, p) for node, p in self._nodes.items() if p.connected)

    def is_connected(self, node: NodeId) -> bool:
        """Whether the node has a live stream here."""
        held = self._nodes.get(node)
        return held is not None and held.connected

    def opened(self, node: NodeId, address: str, release: str = "", *, now: float) -> None:
        """A stream began. A node that moves may overlap with itself for a moment."""
        held = self._nodes.setdefault(node, Presence(now))
        if not held.connected or held.streams == 0:
            held.since, held.opened = now, self._steady()
        held.streams += 1
        held.connected, held.address = True, address
        held.release = release if RELEASE.fullmatch(release) else "unknown"
        self._tell(node)

    def closed(self, node: NodeId, *, now: float) -> None:
        """A stream ended."""
        held = self._nodes.get(node)
        if held:
            held.streams -= 1
            if held.streams == 0:
                held.connected, held.since = False, now
                for act in self.on_closed:
                    act(node)
                self._tell(node)

    def report(
        self, node: NodeId, applied: tuple[int, bytes, str], findings: tuple[FindingRow, ...], *, now: float
    ) -> None:
        """What a node says: revision applied, digest of its kernel, verdict; and what it found."""
        held = self._nodes[node]
        before, verdict = held.applied, held.verdict
        news = applied != (before, held.digest, verdict)
        held.applied, held.digest, held.verdict = applied
        held.findings, held.reported = findings, now
        self.version += news
        if held.applied > before:
            for act in self.on_applied:
                act(held, before)
        if held.verdict != verdict:
            self._tell(node)

    def forget(self, node: NodeId) -> None:
        """The node is gone from the mesh."""
        if self._nodes.pop(node, None):
            self._tell(node)

    def that_applied(self, revision: int) -> set[NodeId]:
        """Nodes that told us, by now, that they applied `revision`. What was applied stays applied."""
        return {node for node, held in self._nodes.items() if held.applied >= revision}

    def _tell(self, node: NodeId) -> None:
        self.version += 1
        for act in self.on_change:
            act(node)
