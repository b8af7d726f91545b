"""The Mesh service: one stream per node carries the map down and reports up (NET-2).

A stream is a cursor into the feed's shared log: when its turn comes it is sent everything since, as bytes that all
streams share.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import grpc

from coordinator.asymmetry import Asymmetry
from coordinator.feed import Feed
from coordinator.findings import Findings
from coordinator.matrix import Matrix
from coordinator.members import Members
from coordinator.passes import Passes
from coordinator.peer import PeerIdentity
from coordinator.post import Post
from coordinator.presence import PresenceTable
from coordinator.pulse import Pulse
from coordinator.records import Why
from coordinator.rotations import Rotations
from coordinator.service import calls
from meshctl.errors import ConflictError, EnvironmentFault, MeshError, ProtocolError, RefusedError, UnreachableError
from meshctl.events import Event, Events, SessionClosed, SessionOpened
from meshctl.mesh.model import MeshInfo, NodeId
from meshctl.mesh.psk_packets import Letter
from meshctl.mesh.rotation import Order, Turn
from meshctl.wire import codec, operator, session, turns
from meshctl.wire.codec import FindingRow
from meshctl.wire.session import UpFrame

Context = grpc.aio.ServicerContext[Any, Any]
JUST_JOINED_S = 3.0  # a node may connect here before our watch has told of its join at another coordinator
LETTERS_KEPT = session.LETTERS_PER_FRAME  # while a stream writes; what is too much is lost
LETTERS_PER_S = 40.0  # of one stream, sustained; what is too much is lost
REPORTS_PER_S = 20.0  # of one stream, sustained; a healthy agent sends one per change


class MeshService:
    """Session and Leave."""

    def __init__(
        self,
        mesh: MeshInfo,
        feed: Feed,
        presence: PresenceTable,
        members: Members,
        events: Events,
        asymmetry: Asymmetry,
        matrix: Matrix,
        rotations: Rotations,
        pulse: Pulse,
        findings: Findings,
        post: Post,
        crowded: Callable[[], bool] = lambda: False,
    ) -> None:
        """`crowded`: whether many are about to join."""
        self._pulse, self._findings, self._post = pulse, findings, post
        post.deliver = self._deliver
        self._mesh, self._feed, self._presence, self._members, self._events = mesh, feed, presence, members, events
        self._asymmetry, self._matrix, self._rotations = asymmetry, matrix, rotations
        self._streams: dict[NodeId, _Stream] = {}  # the newest of each node
        self.crowded, self.passes = crowded, Passes(lambda: len(feed.members), crowded)
        feed.on_turn.append(self._turned)
        feed.on_mesh.append(self._mesh_changed)
        feed.on_move.append(self.passes.moved)
        feed.on_loss.append(self.passes.hurry)

    def handlers(self) -> Any:
        """Session works on bytes: what the feed encoded once is what grpc sends."""
        return grpc.method_handlers_generic_handler(
            "meshctl.wire.v1.Mesh",
            {
                "Session": grpc.stream_stream_rpc_method_handler(self.session, session.parse_up, None),
                "Leave": grpc.unary_unary_rpc_method_handler(self.leave, session.parse_nothing, session.serialize),
            },
        )

    async def leave(self, _request: Any, context: Context) -> Any:
        """The calling node goes."""
        try:
            node, who = calls.calling_node(context, self._mesh.id)
            _, revision = await self._members.depart(node, Why.LEFT, "", f"node:{node}", who.address)
            return operator.done(revision, "left")
        except MeshError as error:
            await calls.refuse(context, error)

    async def session(self, requests: AsyncIterator[Any], context: Context) -> None:
        """One node's stream, until it ends or is cut."""
        try:
            node, who = calls.calling_node(context, self._mesh.id)
            await self._known(node)
            first = session.decode_up(await anext(requests))
            if first.resume is None:
                raise ProtocolError("a session begins with Resume")
            cursor = await self.cursor(first.resume)
        except StopAsyncIteration:
            return
        except MeshError as error:
            await calls.refuse(context, error)
        opened = time.time()
        self._presence.opened(node, str(who.address), first.release, now=opened)
        self._events.emit(SessionOpened(actor=f"node:{node}", source=who.address, node=node, revision=first.resume[1]))
        stream = self._streams[node] = _Stream(self, node, who, context, cursor, first.protocol)
        why = "ended"
        try:
            await stream.run(requests)
        except MeshError as error:
            why = error.what
            await calls.refuse(context, error)
        finally:
            if self._streams.get(node) is stream:
                del self._streams[node]
            self._presence.closed(node, now=time.time())
            lasted = time.time() - opened
            self._events.emit(
                SessionClosed(actor=f"node:{node}", source=who.address, node=node, why=why, lasted_s=lasted)
            )

    async def _known(self, node: NodeId) -> None:
        try:
            async with asyncio.timeout(JUST_JOINED_S):
                while node not in self._feed.members:
                    if stone := self._feed.gone.get(node):
                        raise RefusedError(
                            f"this node was {stone.why}", "meshctl leave --force, then join with a new token"
                        )
                    await self._feed.changed(self._feed.revision)
        except TimeoutError:
            raise RefusedError(
                "this mesh does not know this node", "meshctl leave --force, then join with a new token"
            ) from None

    async def cursor(self, resume: tuple[str, int, bytes]) -> int:
        """Where a stream begins: at the node's own revision when that is a place in our log, else at nothing.

        Raises UnreachableError while our own watch is behind the node: nobody is sent back in time.
        """
        incarnation, revision, map_hash = resume
        if incarnation != self._mesh.incarnation or revision == 0:
            return 0
        try:
            async with asyncio.timeout(JUST_JOINED_S):
                await self._feed.reached(revision)
        except TimeoutError:
            what = f"this coordinator has not heard of revision {revision} yet"
            raise UnreachableError(what, "another coordinator may be further; is etcd healthy?") from None
        # At or beyond the last change the hash alone decides: after a restart our log may end before a swept tombstone.
        return revision if revision < self._feed.revision or map_hash == self._feed.journal.hash else 0

    async def take(self, node: NodeId, who: PeerIdentity, up: UpFrame, protocol: int = codec.PROTOCOL) -> None:
        """One report of a node, with which `protocol` was agreed."""
        held = self._presence.get(node)
        if held is None:
            return
        if up.applied is not None:
            found = await self._believed(node, who, up, protocol)
            self._presence.report(node, up.applied, found, now=time.time())
            self._asymmetry.take(node, found)
        if up.row is not None:
            self._matrix.take(node, up.row)
        self._post.take(node, up.letters)
        if up.candidates is not None:
            await self._members.set_candidates(node, up.candidates, who.address)
        if up.rotation is not None:
            with suppress(UnreachableError, ConflictError, EnvironmentFault):  # the node says it again
                await self._rotations.hear(node, up.rotation)

    async def _believed(self, node: NodeId, who: PeerIdentity, up: UpFrame, protocol: int) -> tuple[FindingRow, ...]:
        def tell(event: Event) -> None:
            self._events.emit(replace(event, source=who.address))

        if protocol < codec.SIGNED:
            return self._findings.take_unsigned(node, up.findings or (), tell)
        return await self._findings.take(node, up.findings or (), up.closed, tell)

    def order(self, node: NodeId) -> Order | None:
        """What the open rotation asks of a node."""
        return self._rotations.order(node)

    def _turned(self, before: Turn | None, now: Turn) -> None:
        for node in {now.node, before.node if before else now.node}:
            if stream := self._streams.get(node):
                stream.wake()

    def _deliver(self, node: NodeId, letter: Letter) -> bool:
        stream = self._streams.get(node)
        if stream and len(stream.letters) < LETTERS_KEPT:
            stream.letters.append(letter)
            stream.wake()
        return stream is not None

    def _mesh_changed(self) -> None:
        for stream in self._streams.values():
            stream.wake()

    @property
    def mesh(self) -> MeshInfo:
        """Its record as it is now: nodes learn of further coordinators."""
        return self._feed.mesh or self._mesh

    def welcome(self, node: NodeId, who: PeerIdentity, order: Order | None, protocol: int) -> bytes:
        """First frame. It says whose turn it is, or a node in the middle of its own would take it for ended."""
        heard, revision = self._findings.heard(node), self._feed.revision
        first = session.welcome_frame(self.mesh, str(who.address), revision, heard, protocol, now=time.time())
        return first + turns.order_frame(order)

    def heartbeat(self, node: NodeId) -> bytes:
        """Our clock, our revision, what we find, and how old it may be."""
        found, age = self._asymmetry.of(node), self._pulse.age_s
        heard = self._findings.heard(node)
        return session.heartbeat_frame(self._feed.revision, found, age, heard, now=time.time())

    @property
    def feed(self) -> Feed:
        """The shared log."""
        return self._feed


class _Stream:
    """One stream's cursor, and the two halves that move it."""

    def __init__(
        self, service: MeshService, node: NodeId, who: PeerIdentity, context: Context, cursor: int, protocol: int
    ) -> None:
        self._protocol = protocol
        self._service, self._node, self._who, self._context, self._cursor = service, node, who, context, cursor
        self._feed, self._passes = service.feed, service.passes
        self._again = self._woken = False
        self.letters: list[Letter] = []
        self._order: Order | None = None
        self._mesh = service.mesh  # as the welcome tells it
        self._loop = asyncio.get_running_loop()
        self.rest: asyncio.Future[bool] = self._loop.create_future()

    def is_behind(self) -> bool:
        """Whether the log holds something for it."""
        return self._cursor < self._feed.revision or self._cursor == 0

    def wake(self) -> None:
        """There may be something to say besides the map."""
        self._woken = True
        if not self.rest.done():
            self.rest.set_result(False)

    async def run(self, requests: AsyncIterator[Any]) -> None:
        self._order = self._service.order(self._node)
        await self._context.write(self._service.welcome(self._node, self._who, self._order, self._protocol))
        self._passes.add(self)
        sender = asyncio.ensure_future(self._send())
        try:
            await self._receive(requests)
        finally:
            self._passes.remove(self)
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)

    async def _send(self) -> None:
        self.wake()  # who has just come waits for no pass: others that come now are sent the same bytes
        while True:
            beat = await self.rest
            self._woken = False
            if self._again:
                self._again, self._cursor = False, 0
            if self.is_behind():
                if self._cursor == 0:
                    frames, reached = self._feed.beginning(crowded=self._service.crowded())
                else:
                    frames, reached = self._feed.frames(self._cursor), self._feed.revision
                for frame in frames:
                    await self._context.write(frame)
                self._cursor = reached
            if (mesh := self._service.mesh) is not self._mesh:
                await self._context.write(session.mesh_frame(mesh))
                self._mesh = mesh
            if (order := self._service.order(self._node)) != self._order:  # after the map that it is about
                await self._context.write(turns.order_frame(order))
                self._order = order
            if self.letters:
                letters, self.letters = self.letters, []
                await self._context.write(session.letters_frame(letters))
            if beat:
                await self._context.write(self._service.heartbeat(self._node))
            self.rest = self._loop.create_future()
            if self._woken:
                self.rest.set_result(False)
            elif self.is_behind():  # the map moved while it wrote
                self._passes.moved()
            self._passes.rests(self)

    async def _receive(self, requests: AsyncIterator[Any]) -> None:
        allowance, letters, last = REPORTS_PER_S, LETTERS_PER_S, time.monotonic()
        async for raw in requests:
            now = time.monotonic()
            allowance = min(REPORTS_PER_S * 2, allowance + (now - last) * REPORTS_PER_S) - 1
            letters, last = min(LETTERS_PER_S * 2, letters + (now - last) * LETTERS_PER_S), now
            if allowance < 0:
                raise ProtocolError("this node reports too often", "upgrade meshctl on it")
            up = session.decode_up(raw)
            if up.letters:
                up = replace(up, letters=up.letters[: int(letters)])
                letters -= len(up.letters)
            if up.again:
                self._again = True
                self.wake()
            await self._service.take(self._node, self._who, up, self._protocol)
