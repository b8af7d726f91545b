"""A mesh without a wire: real Enrolment, Members, Feed, Book over a registry in memory, on a clock tests move (NET-2).

    async with world() as mesh: a = await mesh.member("a"); await mesh.caught_up(); a.sync(mesh.first); mesh.agrees(a)

Any number of coordinators share the registry. What a stream does (frames since a cursor, a snapshot when asked again)
is done here by `Computer.sync`, frame by frame, so that a test can break it anywhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from coordinator import founding, records
from coordinator.enrol import Authority, Enrolment
from coordinator.feed import Feed
from coordinator.fellowship import fellowship
from coordinator.fleet import Beat
from coordinator.keyring import Keyring, SealedRegistry
from coordinator.members import Members
from coordinator.presence import PresenceTable
from coordinator.records import NodeRecord
from coordinator.registry import NODES
from coordinator.rotations import Rotations
from coordinator.service.sessions import MeshService
from meshctl.agent.book import Book
from meshctl.crypto.identity import JOIN_CONTEXT, RENEW_CONTEXT, Identity
from meshctl.errors import EnvironmentFault
from meshctl.events import Event
from meshctl.mesh import interface, journal, topology
from meshctl.mesh.model import Candidate, Endpoint, MeshInfo, Node, NodeId, Origin, Roster
from meshctl.mesh.token import JoinToken
from meshctl.wire import codec, session
from meshctl.wire.codec import JoinAsk, Membership
from meshctl.wire.session import DownFrame
from tests.harness.memory_registry import Line, MemoryRegistry

SOURCE = IPv4Address("192.0.2.10")
START = 1_800_000_000.0


class Clock:
    """Wall time that moves when it is told to."""

    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Heard:
    """Implements meshctl.events.Events: a list. While `full`, the disk refuses every commit."""

    def __init__(self) -> None:
        self.all: list[Event] = []
        self.durable: list[Event] = []
        self.full = False

    def emit(self, event: Event) -> int:
        self.all.append(event)
        return len(self.all)

    async def commit(self, event: Event) -> int:
        number = self.emit(event)
        await asyncio.sleep(0)
        if self.full:
            raise EnvironmentFault("cannot write the event log: no space left on device", "make room")
        self.durable = list(self.all)
        return number

    def kinds(self) -> list[str]:
        return [event.kind for event in self.all]


class FixedKek:
    """Implements coordinator.keyring.Kek."""

    def parameters(self) -> None:
        return None

    def key(self, parameters: object) -> bytes:
        return bytes(32)


class Coordinator:
    """One replica: its picture, its verbs, and the task that follows the registry."""

    def __init__(
        self, authority: Authority, sealed: SealedRegistry, line: Line, events: Heard, clock: Clock, home: str
    ) -> None:
        self.line = line
        self.steady = Clock(0.0)  # of this process alone
        self.presence = PresenceTable(self.steady)
        self.cut: list[NodeId] = []
        self.on_gone: list[Callable[[NodeId], object]] = [self.presence.forget, self.cut.append]
        self.feed = Feed(sealed, self.on_gone)
        about = Beat(home, "0", clock(), (f"{home}:7443",))
        self.fellows = fellowship(authority.mesh, about, sealed, self.feed, self.presence, self.steady)
        self.fleet, self.herald, self.asks = self.fellows.fleet, self.fellows.herald, self.fellows.asks
        self.questions = self.fellows.questions
        self.views = self.fellows.views
        self.asymmetry = self.views.asymmetry
        self.on_gone += [self.fleet.forget, self.views.matrix.forget, self.views.findings.forget]
        self.enrolment = Enrolment(authority, sealed, self.feed, events, clock)
        self.members = Members(authority.mesh, sealed, self.feed, events, clock)
        self.mesh = authority.mesh
        self.rotations = Rotations(authority.mesh, sealed, self.feed, events, clock, self.fleet.is_connected)
        told = self.members, events, self.asymmetry, self.views.matrix, self.rotations, self.views.pulse
        parts = *told, self.views.findings, self.fellows.post
        self.service = MeshService(authority.mesh, self.feed, self.presence, *parts)
        self._task: asyncio.Task[None] | None = None

    def follow(self) -> None:
        """Let the watch run."""
        if self._task is None:
            self._task = asyncio.ensure_future(self.feed.run())

    def listen(self, seconds: float) -> None:
        """So much time goes by in which this coordinator hears itself, and whatever others have said by now."""
        for _ in range(int(seconds)):
            self.steady.now += 1.0
            self.fleet._echoed = self.steady.now
            self.fleet.tick()

    async def lag(self) -> None:
        """The watch hears nothing until `follow`."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None


@dataclass
class Computer:
    """A machine that may become a node: its keys, its book, its last certificate."""

    name: str
    mesh: MeshInfo
    identity: Identity = field(default_factory=Identity.generate)
    certificate: bytes = b""
    book: Book = field(init=False)
    moved: int = 0  # nodes that came over its streams

    def __post_init__(self) -> None:
        self.book = Book(self.mesh.id)

    @property
    def id(self) -> NodeId:
        return self.identity.id

    def ask(self, coordinator: Coordinator, token: JoinToken, **changes: Any) -> JoinAsk:
        """A join request that is in order, but for `changes`."""
        statement = self.identity.state(self.mesh.id, 1)
        ask = JoinAsk(coordinator.enrolment.nonce(), token.id, token.secret, self.name, (), statement, ())
        return replace(ask, **changes)

    async def join(self, coordinator: Coordinator, token: JoinToken, **changes: Any) -> Membership:
        body = codec.encode_join(self.ask(coordinator, token, **changes))
        signature = self.identity.sign(JOIN_CONTEXT + body)
        joined = await coordinator.enrolment.join(codec.decode_join(body), body, signature, SOURCE)
        self.certificate = joined.certificate
        return joined

    async def renew(self, coordinator: Coordinator, last: bytes | None = None) -> bytes:
        nonce = coordinator.enrolment.nonce()
        claim = self.identity.state(self.mesh.id, 1)
        body = codec.encode_renew(nonce, claim, self.certificate if last is None else last)
        signature = self.identity.sign(RENEW_CONTEXT + body)
        parts = codec.decode_renew(body)
        return await coordinator.enrolment.renew(*parts, body, signature, SOURCE)

    async def begin(self, coordinator: Coordinator) -> int:
        """Where a stream to `coordinator` would begin."""
        roster = self.book.roster
        return await coordinator.service.cursor((roster.incarnation, roster.revision, self.book.map_hash))

    def frames(self, coordinator: Coordinator, cursor: int) -> list[DownFrame]:
        return [session.decode_down(raw) for raw in coordinator.feed.frames(cursor)]

    async def sync(self, coordinator: Coordinator) -> int:
        """Resume and take what comes; when it does not fit, ask again, once -> how often it had to ask."""
        cursor = await self.begin(coordinator)
        for asked in range(2):
            if cursor >= coordinator.feed.revision and cursor:
                return asked
            fits = [self.take(frame) for frame in self.frames(coordinator, cursor)]
            if all(fits):
                return asked
            cursor = 0
        raise AssertionError("a snapshot did not fit")

    def take(self, frame: DownFrame) -> bool:
        self.moved += len(frame.put)
        return self.book.take(frame, self.mesh.incarnation)

    def restart(self) -> None:
        """The agent starts anew from its last-known-good map."""
        saved = self.book.saved()
        self.book = Book(self.mesh.id)
        self.book.restore(saved)

    def digest(self, mesh: MeshInfo, roster: Roster) -> bytes:
        """Of what the kernel of this node would hold."""
        me = topology.Me(self.id, self.identity.wireguard, "mesh0", 51820, 1420)
        return interface.digest(topology.desired(mesh, roster, me, roster.nodes[self.id]).peers.values())


class World:
    """The registry and everybody around it."""

    def __init__(
        self, registry: MemoryRegistry, keyring: Keyring, sealed: SealedRegistry, authority: Authority, clock: Clock
    ) -> None:
        self.keyring = keyring
        self.registry, self.sealed, self.authority, self.clock = registry, sealed, authority, clock
        self.mesh = authority.mesh
        self.events = Heard()
        self.coordinators: list[Coordinator] = []
        self.made = 0

    @property
    def first(self) -> Coordinator:
        return self.coordinators[0]

    async def coordinator(self) -> Coordinator:
        """Another replica on the same registry."""
        self.made += 1
        line = Line(self.registry)
        sealed = SealedRegistry(line, self.keyring)
        made = Coordinator(self.authority, sealed, line, self.events, self.clock, f"co{self.made}")
        await made.feed.load()
        made.follow()
        self.coordinators.append(made)
        return made

    async def restart(self, at: int = 0) -> Coordinator:
        """A coordinator goes, and a new process takes its place."""
        await self.coordinators[at].lag()
        fresh = await self.coordinator()
        self.coordinators[at] = self.coordinators.pop()
        return fresh

    async def token(self, uses: int = 1, life_s: float = 3600.0, tags: Sequence[str] = (), **more: Any) -> JoinToken:
        return await self.first.members.create_token(
            life_s, uses, tuple(tags), more.get("ephemeral", False), "", "operator:0"
        )

    def computer(self, name: str) -> Computer:
        return Computer(name, self.mesh)

    async def member(self, name: str, at: int = 0) -> Computer:
        """A computer that has joined."""
        made = self.computer(name)
        await made.join(self.coordinators[at], await self.token())
        return made

    async def heard(self) -> None:
        """Every coordinator whose line is whole says what is new, and all hear it; a second goes by."""
        for one in self.coordinators:
            if not one.line.cut and not one.line.full:
                await one.herald.speak()
        await self.caught_up()
        for one in self.coordinators:
            one.steady.now += 1.0
            one.fleet.tick()

    async def caught_up(self) -> None:
        """Every coordinator that follows has heard of everything."""
        async with asyncio.timeout(10):
            for one in self.coordinators:
                if not one.line.cut:
                    await one.feed.reached(self.registry.revision)

    async def nodes(self) -> dict[NodeId, Node]:
        """The truth: all members in the registry."""
        found, _ = await self.sealed.list(NODES)
        nodes = [records.decode(r.value, NodeRecord).node(joined=r.created) for r in found]
        return {node.id: node for node in nodes}

    async def agrees(self, computer: Computer, at: int = 0) -> None:
        """The book is the registry, and the coordinator knows what this node's kernel must hold."""
        truth, roster = await self.nodes(), computer.book.roster
        assert roster.nodes == truth
        total = sum(journal.chunk_hash(codec.encode_node(node)) for node in truth.values())
        assert computer.book.map_hash == (total % (1 << 256)).to_bytes(32, "big")
        if computer.id in truth:
            expected = self.coordinators[at].feed.expected_digest(computer.id, roster.revision)
            assert expected == computer.digest(self.mesh, roster)

    async def close(self) -> None:
        for one in self.coordinators:
            await one.lag()


@asynccontextmanager
async def world(coordinators: int = 1, prefix: str = "10.77.0.0/16") -> AsyncIterator[World]:
    """A founded mesh with its coordinators following; all tasks are ended afterwards."""
    registry, clock = MemoryRegistry(), Clock()
    keyring = await Keyring.create(registry, FixedKek())
    sealed = SealedRegistry(registry, keyring)
    await founding.found(sealed, "prod", IPv4Network(prefix), ["192.0.2.1:7443"], now=clock())
    made = World(registry, keyring, sealed, await founding.authority(sealed), clock)
    try:
        for _ in range(coordinators):
            await made.coordinator()
        yield made
    finally:
        await made.close()


def endpoint(port: int, host: int = 1) -> Candidate:
    """An endpoint that a node tells of itself."""
    return Candidate(Endpoint(IPv4Address(f"198.51.100.{host}"), port), Origin.LOCAL)
