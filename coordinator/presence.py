"""Who is connected here, what each node applied, and what it reported: memory only, never etcd (NET-2, NET-7)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from meshctl.mesh.model import NodeId
from meshctl.wire.codec import FindingRow


@dataclass(slots=True)
class Presence:
    """One node as this coordinator knows it. Times in unix seconds."""

    since: float
    connected: bool = True
    address: str = ""
    applied: int = 0
    digest: bytes = b""
    verdict: str = "unknown"
    findings: tuple[FindingRow, ...] = ()
    reported: float = 0.0
    streams: int = 0


class PresenceTable:
    """All nodes that connected since this coordinator started."""

    def __init__(self) -> None:
        self._nodes: dict[NodeId, Presence] = {}

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

    def opened(self, node: NodeId, address: str, *, now: float) -> None:
        """A stream began. A node that moves may overlap with itself for a moment."""
        held = self._nodes.setdefault(node, Presence(now))
        if not held.connected or held.streams == 0:
            held.since = now
        held.streams += 1
        held.connected, held.address = True, address

    def closed(self, node: NodeId, *, now: float) -> None:
        """A stream ended."""
        held = self._nodes.get(node)
        if held:
            held.streams -= 1
            if held.streams == 0:
                held.connected, held.since = False, now

    def forget(self, node: NodeId) -> None:
        """The node is gone from the mesh."""
        self._nodes.pop(node, None)

    def stragglers(self, revision: int, members: Iterable[NodeId]) -> list[NodeId]:
        """Members that have not told us that they applied `revision`: a node out of our reach still has its tunnels."""
        return [n for n in members if not (p := self._nodes.get(n)) or not p.connected or p.applied < revision]
