"""Who stands behind a node id and behind a key: joins the roster with what WireGuard reports (NET-2, NET-8)."""

from __future__ import annotations

from collections.abc import Callable, Set

from meshctl.agent.book import Book
from meshctl.agent.reconcile import Reconciler
from meshctl.mesh.keys import PublicKey
from meshctl.mesh.model import Endpoint, Node, NodeId


class Peers:
    """Questions of the prober, answered from the book and the reconciler's last look."""

    def __init__(self, book: Book, reconciler: Callable[[], Reconciler], me: NodeId) -> None:
        self._book, self._reconciler, self._me = book, reconciler, me

    def others(self) -> list[Node]:
        """All nodes but this one."""
        return [node for node in self._book.roster.nodes.values() if node.id != self._me]

    def endpoint_of(self, peer: NodeId) -> Endpoint | None:
        """Where our WireGuard sees a peer; None without a session."""
        node = self._book.roster.nodes.get(peer)
        session = self._reconciler().outcome.sessions.get(node.statement.wireguard) if node else None
        # Before a handshake it is where we try, which may be nobody's: told to the peer, it would look like a NAT.
        return session.endpoint if session and session.last_handshake else None

    def may_ping(self, peer: NodeId) -> bool:
        """Not before it is our turn to start the handshake (mesh/liveness.py)."""
        node = self._book.roster.nodes.get(peer)
        return node is not None and self._reconciler().is_started(node.statement.wireguard)

    def behind(self, keys: Set[PublicKey]) -> list[NodeId]:
        """The nodes that hold these WireGuard keys."""
        return [node.id for node in self._book.roster.nodes.values() if node.statement.wireguard in keys]
