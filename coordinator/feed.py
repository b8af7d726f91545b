"""One watch on the registry, one shared log for all streams (NET-2, NET-4, OPS-2).

The feed is this coordinator's whole picture: who is a member, who is gone, which tokens and policy there are. It is
rebuilt from the registry after a start or a compaction and moves forward only by what the watch says. It writes
nothing.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from coordinator import records
from coordinator.board import Board
from coordinator.records import MeshRecord, NodeRecord, Tombstone
from coordinator.registry import GONE, MESH, NODES, PLAN, ROOT, TURN, Changes, Compacted, Deleted, Record, Registry
from meshctl.errors import RefusedError
from meshctl.mesh import interface, topology
from meshctl.mesh.journal import Journal
from meshctl.mesh.model import MeshInfo, Node, NodeId
from meshctl.mesh.rotation import Plan, Turn
from meshctl.wire import codec, session

WATCH_LATE_S = 1.0  # it brings a commit after some milliseconds
SHARED_S = 0.5  # as passes are apart in a crowd, at least
FRAMES_KEPT = 64  # cursors at one revision
DIGESTS_KEPT = 256  # a node that reports a revision older than that many changes is lagging anyway


@dataclass(slots=True)
class Member:
    """A living node: its record, its view for peers, its line in every other kernel."""

    record: NodeRecord
    node: Node
    line: int
    generation: int


@dataclass(slots=True)
class _Digests:
    total: int = 0
    at: OrderedDict[int, int] = field(default_factory=OrderedDict)


class Feed:
    """`await feed.load()` once, then `await feed.run()` for ever; sessions wait on `changed(after)`.

    `on_gone` are told of each node that stops being a member, and may grow until `run`.
    """

    def __init__(self, registry: Registry, on_gone: Sequence[Callable[[NodeId], object]] = ()) -> None:
        self.journal = Journal()
        self.members: dict[NodeId, Member] = {}
        self.gone: dict[NodeId, Tombstone] = {}
        self.by_name: dict[str, NodeId] = {}
        self.mesh: MeshInfo | None = None  # known once loaded
        self.on_mesh: list[Callable[[], object]] = []  # told when its record has changed
        self.plan: Plan | None = None
        self.turn: Turn | None = None
        self.board = Board()
        self.on_turn: list[Callable[[Turn | None, Turn], object]] = []  # told of the turn before and the one now
        self.on_move: list[Callable[[], object]] = []  # told when the map has moved
        self.on_loss: list[Callable[[], object]] = []  # told before that, when a node is in it no more
        self.loaded = False
        self.following = False  # whether the registry answers: what we serve may be old otherwise
        self.seen = 0  # last registry revision this feed has heard of, whether it touched the map or not
        self._registry, self._on_gone = registry, on_gone
        self._digests = _Digests()
        self._addresses: set[IPv4Address] | None = None  # made when somebody asks
        self._shared: tuple[list[bytes], int, float] | None = None  # a whole map, its revision, until when it serves
        self._frames: OrderedDict[tuple[int, int], list[bytes]] = OrderedDict()
        self._tick: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._heard: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._loading, self._late = asyncio.Lock(), asyncio.Event()
        self._told = -1  # revision of the map at the last wake

    async def load(self) -> None:
        """The whole registry at one revision: at start and after a compaction."""
        found, revision = await self._registry.list(ROOT)
        for record in sorted(found, key=lambda r: r.revision):
            self._put(record)
        paths = {record.path for record in found}
        for node in [n for n in self.members if NODES + n not in paths]:
            self._remove(node, revision)
        for node in [n for n in self.gone if GONE + n not in paths]:
            self._forget(node)
        self._addresses = None
        self.board.only(paths)
        self._digests.at.clear()  # of the moments in between we know nothing
        self._digests.at[self.revision] = self._digests.total
        self.loaded = True
        self._advance(revision)

    async def run(self) -> None:
        """Follow the watch; after a compaction read everything again. One that is late is opened anew."""
        while True:
            self._late.clear()
            tasks = [asyncio.ensure_future(self._follow()), asyncio.ensure_future(self._late.wait())]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                ended, _ = await asyncio.gather(*tasks, return_exceptions=True)
            if isinstance(ended, Exception):
                raise ended

    async def _follow(self) -> None:
        async with aclosing(self._registry.watch(ROOT, self.seen + 1)) as watch:
            async for news in watch:
                match news:
                    case Compacted():
                        await self.load()
                        return
                    case Changes(revision, events):
                        for event in events:
                            if event.revision <= self.seen:  # a load has overtaken the watch: never go back
                                continue
                            if isinstance(event, Deleted):
                                self._deleted(event.path, event.revision)
                            else:
                                self._put(event)
                        self._advance(revision)

    def _put(self, record: Record) -> None:
        if record.path.startswith(NODES):
            held = records.decode(record.value, NodeRecord)
            node = held.node(joined=record.created)
            line = interface.digest_line(node.statement.wireguard, topology.peer(node).allowed_ips)
            old = self.members.get(node.id)
            self._digests.total += line - (old.line if old else 0)
            self.members[node.id] = Member(held, node, line, record.generation)
            self.by_name[node.name] = node.id
            stone = self.gone.pop(node.id, None)
            if any(before and before.address4 != node.address4 for before in (old and old.node, stone)):
                self._addresses = None
            elif self._addresses is not None:
                self._addresses.add(node.address4)
            self._record(record.revision, node.id, codec.encode_node(node))
        elif record.path.startswith(GONE):
            stone = records.decode(record.value, Tombstone)
            self.gone[stone.id], self._addresses = stone, None
            self._remove(stone.id, record.revision)
        elif Board.has_room_for(record.path):
            self.board.put(record)
        elif record.path == MESH:
            self.mesh = records.decode(record.value, MeshRecord).info
            for tell in self.on_mesh:
                tell()
        elif record.path == PLAN:
            self.plan = records.decode(record.value, Plan)
        elif record.path == TURN:
            before, self.turn = self.turn, records.decode(record.value, Turn)
            for act in self.on_turn:
                act(before, self.turn)

    def _deleted(self, path: str, revision: int) -> None:
        if path.startswith((NODES, GONE)):
            self._addresses = None
        if path.startswith(NODES):
            self._remove(NodeId(path.removeprefix(NODES)), revision)
        elif path.startswith(GONE):
            self._forget(NodeId(path.removeprefix(GONE)))
        elif Board.has_room_for(path):
            self.board.drop(path)

    def _forget(self, node: NodeId) -> None:
        if self.gone.pop(node, None) and node not in self.members:
            self.journal.forget(node)

    def _remove(self, node: NodeId, revision: int) -> None:
        member = self.members.pop(node, None)
        if member:
            self._shared = None
            for tell in self.on_loss:
                tell()
            self._digests.total -= member.line
            if self.by_name.get(member.node.name) == node:
                del self.by_name[member.node.name]
        self._record(revision, node, None)
        if member:
            for act in self._on_gone:
                act(node)

    def _record(self, revision: int, node: NodeId, chunk: bytes | None) -> None:
        self.journal.record(revision, node, chunk)
        self._digests.at[revision] = self._digests.total
        while len(self._digests.at) > DIGESTS_KEPT:
            self._digests.at.popitem(last=False)

    def _advance(self, revision: int) -> None:
        """All up to `revision` was heard. Streams are woken when the map moved, not by what coordinators note."""
        self.seen = max(self.seen, revision)
        heard, self._heard = self._heard, asyncio.get_running_loop().create_future()
        heard.set_result(None)
        if self._told != self.revision:
            self._told = self.revision
            self._wake()

    def _wake(self) -> None:
        tick, self._tick = self._tick, asyncio.get_running_loop().create_future()
        tick.set_result(None)
        self._frames.clear()  # of a revision that nobody will be sent any more
        for act in self.on_move:
            act()

    @property
    def revision(self) -> int:
        """Of the map: the last change that streams can see."""
        return self.journal.revision

    async def changed(self, after: int) -> None:
        """Return once the map is beyond revision `after`."""
        while self.revision <= after:
            await asyncio.shield(self._tick)

    async def reached(self, revision: int) -> None:
        """Return once this feed has seen the registry's `revision` (read your own write)."""
        while self.seen < revision:
            await asyncio.shield(self._heard)

    async def caught_up(self, revision: int) -> None:
        """The same, after a commit of our own: a watch that stands still (it may hang on a member of etcd that hangs)
        is overtaken by reading everything, and opened anew.
        """
        while self.seen < revision:
            with suppress(TimeoutError):
                async with asyncio.timeout(WATCH_LATE_S):
                    await self.reached(revision)
            async with self._loading:
                if self.seen < revision:
                    await self.load()
                    self._late.set()

    def frames(self, cursor: int) -> list[bytes]:
        """Everything since `cursor` as frames; the same bytes for all streams that stand there."""
        key = cursor, self.revision
        if key not in self._frames:
            resumable = cursor > 0 and self.journal.can_resume(cursor)
            changes = self.journal.since(cursor) if resumable else self.journal.snapshot()
            made = session.frames(changes, cursor, self.revision, self.journal.hash, snapshot=not resumable)
            self._frames[key] = made
            while len(self._frames) > FRAMES_KEPT:
                self._frames.popitem(last=False)
        return self._frames[key]

    def beginning(self, *, crowded: bool) -> tuple[list[bytes], int]:
        """The whole map for who holds nothing, and its revision. In a crowd, of which each changes the map, all who
        come within a moment are sent one and the same, in which nobody is who has gone; the rest follows with the next
        pass.
        """
        now = asyncio.get_running_loop().time()
        if self._shared and crowded and now < self._shared[2] and self.journal.can_resume(self._shared[1]):
            return self._shared[:2]
        made = self.frames(0), self.revision
        self._shared = (*made, now + SHARED_S) if crowded else None
        return made

    def expected_digest(self, node: NodeId, revision: int) -> bytes | None:
        """What the kernel of `node` should hold at `revision` of the map; None when that is too long ago to say."""
        member = self.members.get(node)
        total = self._digests.at.get(min(revision, self.revision))
        if member is None or total is None:
            return None
        return ((total - member.line) % (1 << 256)).to_bytes(32, "big")

    @property
    def addresses_taken(self) -> Collection[IPv4Address]:
        """Of members, and of the gone while their tombstones stand."""
        if self._addresses is None:
            self._addresses = {m.node.address4 for m in self.members.values()}
            self._addresses.update(stone.address4 for stone in self.gone.values())
        return self._addresses

    def find(self, name: str) -> Member:
        """A member by name or id. Raises RefusedError, telling a node that is gone from one that never was."""
        # The id first: a node may call itself by another's id, and must not be taken for it.
        member = self.members.get(NodeId(name)) or self.members.get(self.by_name.get(name, NodeId("")))
        if member:
            return member
        for stone in self.gone.values():
            if name in (stone.name, stone.id):
                raise RefusedError(f"node {name} was {stone.why} already", "mesh-coordinator nodes list")
        raise RefusedError(f"this mesh has no node {name!r}", "mesh-coordinator nodes list")
