"""What it means here that a peer has another key: follow it at the right moment, and measure how long we stood still
(NET-5, MESH-ROT-001).

Its handshake under the next key is seen on the wire, or it said "go" through the tunnel and a moment has passed, or the
map says that its key changed, whichever comes first: all end in the book, and then here.
The reconciler moves the peer; nothing here touches WireGuard.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from meshctl.agent.book import Book
from meshctl.agent.lookout import Lookout
from meshctl.agent.prober import Prober
from meshctl.agent.reconcile import Reconciler
from meshctl.mesh import rotation
from meshctl.mesh.keys import PublicKey
from meshctl.mesh.model import NodeId


class Moves:
    """`noticed` it of every map, `measure` now and then; `at` and `gap` are for reading."""

    def __init__(
        self,
        book: Book,
        reconciler: Reconciler,
        prober: Prober,
        lookout: Lookout,
        changed: Callable[[], None],
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`changed` hears that a peer was followed before the map says so."""
        self._book, self._reconciler, self._prober, self._lookout = book, reconciler, prober, lookout
        self._changed, self._wall = changed, wall
        self._keys: dict[NodeId, PublicKey] = {}
        self._moved: dict[NodeId, float] = {}  # unix seconds
        self._unmeasured: set[NodeId] = set()
        self._gaps: dict[NodeId, float] = {}
        lookout.on_seen = self.follow

    def at(self, peer: NodeId) -> float:
        """When the peer's key last changed, in unix seconds; 0: not since this process began."""
        return self._moved.get(peer, 0.0)

    def gap(self, peer: NodeId) -> float:
        """For how many seconds packets to the peer then stood still; 0: not measured."""
        return self._gaps.get(peer, 0.0)

    def go(self, peer: NodeId, serial: int, hold_s: float) -> None:
        """The peer switches: follow it once it surely has, if that is not seen before."""
        asyncio.get_running_loop().call_later(min(hold_s, rotation.GRANT_S), self.follow, peer, serial)

    def follow(self, peer: NodeId, serial: int) -> None:
        """Now. Nothing happens unless its next statement, verified before, has this serial."""
        if self._book.promote(peer, serial):
            self._changed()

    def noticed(self) -> bool:
        """The map moved -> whether there is something to measure."""
        now, before = self._wall(), self._keys
        nodes = self._book.roster.nodes.values()
        self._keys = {node.id: node.statement.wireguard for node in nodes}
        self._lookout.expect({node.next.wireguard: (node.id, node.next.serial) for node in nodes if node.next})
        for node in before.keys() & self._keys.keys():
            if before[node] != self._keys[node]:
                self._moved[node] = now
                self._unmeasured.add(node)
                self._prober.measured(node, 0.0)
        for kept in (self._moved, self._gaps):
            for gone in kept.keys() - self._keys.keys():
                del kept[gone]
        self._unmeasured &= self._keys.keys()
        return bool(self._unmeasured)

    def measure(self) -> bool:
        """Look for the new sessions of peers that moved -> whether some are still missing. The peer is told in the next
        echo; who does not come back within seconds is not measured.
        """
        for node in list(self._unmeasured):
            session, at = self._reconciler.outcome.sessions.get(self._keys[node]), self._moved[node]
            if session and session.last_handshake > at:
                self._gaps[node] = session.last_handshake - at
                self._prober.measured(node, self._gaps[node])
                self._unmeasured.discard(node)
            elif self._wall() - at > rotation.BACK_AFTER_S:
                self._unmeasured.discard(node)
        if self._unmeasured:
            self._reconciler.wake.set()
        return bool(self._unmeasured)
