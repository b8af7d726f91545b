"""The node's own copy of the map: takes frames, verifies every key statement, pins what it saw (NET-2, NET-4).

No I/O. A statement that does not verify keeps its node out of the roster and is reported; the rest of the frame
counts. Any doubt about completeness (a delta that starts elsewhere, a hash that does not match) asks for a snapshot
and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from meshctl.agent.store import SavedMap
from meshctl.crypto import identity
from meshctl.errors import MeshError
from meshctl.mesh import journal
from meshctl.mesh.model import Gone, Node, NodeId, Put, Roster, node_id
from meshctl.mesh.statement import Statement
from meshctl.wire import codec
from meshctl.wire.session import DownFrame

Chunk = tuple[Node, bytes]  # a node, and the bytes in which it came


class Book:
    """`roster` holds verified nodes only; `chunks` all nodes as they came, for the hash and the store."""

    def __init__(self, mesh_id: str) -> None:
        self.mesh_id = mesh_id
        self.roster = Roster()
        self.refused: dict[str, str] = {}
        self._chunks: dict[str, bytes] = {}
        self._hash = 0
        self._pinned: dict[NodeId, Statement] = {}
        self._coming: dict[NodeId, Statement] = {}  # next statements that were verified
        self._ahead: set[NodeId] = set()  # nodes whose next statement is in force before the registry knows
        self._pending: list[DownFrame] = []

    @property
    def map_hash(self) -> bytes:
        """Of the nodes as they came."""
        return (self._hash % (1 << 256)).to_bytes(32, "big")

    def saved(self) -> SavedMap:
        """For the store."""
        pinned = (self._pinned.get(NodeId(node)) for node in {*self.refused, *self._ahead})
        held = tuple(statement.signed for statement in pinned if statement)
        return SavedMap(self.roster.incarnation, self.roster.revision, tuple(self._chunks.values()), held)

    def restore(self, saved: SavedMap) -> None:
        """Begin from the last-known-good map; it was sealed by ourselves, its statements are verified all the same."""
        for statement in map(Statement, saved.pinned):  # a lie that was on disk when we stopped must not outlive them
            identity.check(statement, self.mesh_id)
            self._pinned[node_id(statement.device_key)] = statement
        self._replace([(codec.decode_node(chunk), chunk) for chunk in saved.nodes], saved.revision, saved.incarnation)

    def promote(self, node: NodeId, serial: int) -> bool:
        """The node says that its next statement is in force; False when we hold no such one, or believe it already."""
        held = self.roster.nodes.get(node)
        if held is None or held.next is None or held.next.serial != serial:
            return False
        self._pinned[node] = held.next
        self._ahead.add(node)
        changed = Put(replace(held, statement=held.next, next=None))
        self.roster = self.roster.apply([changed], self.roster.revision)
        return True

    def take(self, frame: DownFrame, incarnation: str) -> bool:
        """Take a frame of the map. False: it does not fit what we hold, ask for a snapshot; nothing was changed."""
        if self._pending and frame.snapshot:
            self._pending.clear()
        self._pending.append(frame)
        if frame.more:
            return True
        parts, self._pending = self._pending, []
        puts = [(codec.decode_node(chunk), chunk) for part in parts for chunk in part.put]  # all of it, or nothing
        gone = [node for part in parts for node in part.gone]
        if parts[0].snapshot:
            if _hash_after({}, 0, puts, []) != frame.map_hash:
                return False
            self._replace(puts, frame.to_revision, incarnation)
            return True
        if frame.from_revision != self.roster.revision or incarnation != self.roster.incarnation:
            return False
        if _hash_after(self._chunks, self._hash, puts, gone) != frame.map_hash:
            return False
        self._apply(puts, gone, frame.to_revision)
        return True

    def _replace(self, puts: Sequence[Chunk], revision: int, incarnation: str) -> None:
        self._chunks, self._hash, self.refused = {}, 0, {}
        self.roster = Roster(incarnation, revision)
        self._apply(puts, [], revision)

    def _apply(self, puts: Sequence[Chunk], gone: Sequence[str], revision: int) -> None:
        changes: list[Put | Gone] = []
        for node, chunk in puts:
            self._swap(node.id, chunk)
            verified = self._verify(node)
            changes.append(Put(verified) if verified else Gone(node.id))
        for name in gone:
            self._swap(name, None)
            self.refused.pop(name, None)
            self._ahead.discard(NodeId(name))
            self._coming.pop(NodeId(name), None)
            changes.append(Gone(NodeId(name)))
        self.roster = self.roster.apply(changes, revision)

    def _swap(self, node: str, chunk: bytes | None) -> None:
        old = self._chunks.pop(node, None)
        self._hash -= journal.chunk_hash(old) if old is not None else 0
        if chunk is not None:
            self._chunks[node] = chunk
            self._hash += journal.chunk_hash(chunk)

    def _verify(self, node: Node) -> Node | None:
        """The node with a statement we accept: the new one, the pinned one when the new one is refused, or none.

        What its owner has put in force through the tunnel (`promote`) counts before the registry knows of it.
        """
        pinned, told = self._pinned.get(node.id), node
        self.refused.pop(node.id, None)
        self._ahead.discard(node.id)
        if node.next and pinned and pinned.body == node.next.body:
            self._ahead.add(node.id)
            return replace(node, statement=pinned, next=None)
        if node.next and not self._is_believed(node.next, node.statement.serial):
            node = replace(node, next=None)
        if pinned and pinned.body == told.statement.body:  # a node that came back signs the same anew
            return node
        try:
            identity.check(node.statement, self.mesh_id, seen_serial=pinned.serial + 1 if pinned else 0)
        except MeshError as error:
            self.refused[node.id] = error.what
            return replace(node, statement=pinned) if pinned else None
        self._pinned[node.id] = node.statement
        return node

    def _is_believed(self, coming: Statement, serial: int) -> bool:
        """Whether a next statement is genuine and above `serial`; verified once. A refused one is told, not used."""
        node = node_id(coming.device_key)
        known = self._coming.get(node)
        if known and known.body == coming.body:
            return True
        try:
            identity.check(coming, self.mesh_id, seen_serial=serial + 1)
        except MeshError as error:
            self.refused[node] = error.what
            return False
        self._coming[node] = coming
        return True


def _hash_after(chunks: Mapping[str, bytes], total: int, puts: Sequence[Chunk], gone: Sequence[str]) -> bytes:
    """Hash of a map once `puts` and `gone` are applied to it."""
    after: dict[str, bytes | None] = {**{node.id: chunk for node, chunk in puts}, **dict.fromkeys(gone)}
    for node, chunk in after.items():
        old = chunks.get(node)
        total += journal.chunk_hash(chunk) if chunk is not None else 0
        total -= journal.chunk_hash(old) if old is not None else 0
    return (total % (1 << 256)).to_bytes(32, "big")
