"""A mesh whose keys rotate, without a wire: real registry, coordinators, books and rotors, and a WireGuard of rules.

    async with turning(3) as mesh: mesh.cut(a, b); await mesh.open(); await mesh.run(30); mesh.disagreeing()

Time moves only with `run`, in ticks. A session is there when both kernels hold each other's key and the path is whole;
it carries "go" and echoes. What a stream does (map, order, report) happens at each tick for nodes with a coordinator.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

from meshctl.agent.follow import Link
from meshctl.agent.join import Member
from meshctl.agent.moves import Moves
from meshctl.agent.rotate import Rotor
from meshctl.agent.store import SavedMembership, SavedRotation
from meshctl.crypto.identity import Identity, public_key
from meshctl.errors import MeshError
from meshctl.mesh import judges, rotation
from meshctl.mesh.catalogue import Verdict
from meshctl.mesh.interface import Session
from meshctl.mesh.keys import PrivateKey, PublicKey
from meshctl.mesh.model import NodeId
from meshctl.mesh.probe import Echo
from meshctl.mesh.rotation import Plan, Stage
from tests.harness.world import START, Computer, Coordinator, World, world

TICK_S = 0.25
REKEY_S, REJECT_S = 120.0, 180.0


@dataclass
class Disk:
    """Implements what a Rotor asks of a Store; survives crashes."""

    kept: Identity
    turn: SavedRotation | None = None

    def identity(self) -> Identity:
        if self.turn and self.turn.stage == Stage.SWITCHED:
            return replace(self.kept, wireguard=PrivateKey(self.turn.next))
        return self.kept

    def rotation(self) -> SavedRotation | None:
        return self.turn

    def save_rotation(self, saved: SavedRotation) -> None:
        self.turn = saved

    def save_identity(self, identity: Identity) -> None:
        self.kept = identity

    def end_rotation(self) -> None:
        self.turn = None


class Keeper:
    """Implements what a Rotor asks of a Keeper."""

    def __init__(self, member: Member) -> None:
        self.member = member

    def stated(self, serial: int, key_made_at: float | None) -> None:
        self.member = replace(self.member, saved=replace(self.member.saved, serial=serial))


@dataclass
class Pair:
    """What a node knows of a peer by echoes."""

    held: int = 0
    agreed_at: float | None = None
    ok_at: float | None = None
    span: float = 0.0


@dataclass
class Kernel:
    """WireGuard: the key in force, and peers with the time of their last handshake (0: none yet)."""

    private: PrivateKey
    peers: dict[PublicKey, float] = field(default_factory=dict)

    @property
    def public(self) -> PublicKey:
        return public_key(self.private)


class Turner:
    """One node: a computer with a kernel and a rotor, and the fakes that tie them together."""

    def __init__(self, mesh: Turning, computer: Computer, member: Member) -> None:
        self.mesh, self.computer = mesh, computer
        self.disk, self.keeper, self.link = Disk(computer.identity), Keeper(member), Link()
        self.kernel = Kernel(computer.identity.wireguard)
        self.pairs: dict[NodeId, Pair] = {}
        self.at, self.online, self.up, self.blind = 0, True, True, False
        self.boot()

    def boot(self) -> None:
        """The agent starts: what was in memory is gone, disk and kernel are not."""
        self.up, self.told, self.pairs = True, None, {}
        prober = SimpleNamespace(
            held=lambda n: self.pair(n).held, agreed_at=lambda n: self.pair(n).agreed_at, kick=lambda _: None,
            span_s=lambda n: self.pair(n).span, measured=lambda n, s: None, go=self.go,
            echo=lambda n: Echo(last_ok_at=self.pair(n).ok_at),
        )  # fmt: skip
        self.reconciler = SimpleNamespace(
            outcome=SimpleNamespace(sessions={}, alive=frozenset(), read_at=0.0), wake=asyncio.Event(), pass_s=0.0,
            switch_key=self.switch_key,
        )  # fmt: skip
        self.look()
        wall = lambda: START + self.mesh.now  # noqa: E731
        fakes: Any = self.computer.book, self.reconciler, prober
        fakes += (SimpleNamespace(expect=lambda _: None),)
        self.moves = Moves(*fakes, lambda: self.moves.noticed(), wall=wall)
        more: Any = self.keeper, self.computer.book, self.link, self.reconciler, prober, self.moves
        disk: Any = self.disk
        self.rotor = Rotor(
            disk, *more, self.mesh.world.events, changed=lambda: None, tell=lambda: None,
            monotonic=lambda: self.mesh.now, wall=wall,
        )  # fmt: skip
        self.moves.noticed()

    def pair(self, peer: NodeId) -> Pair:
        return self.pairs.setdefault(peer, Pair())

    def go(self, holds: Iterable[tuple[NodeId, float]], serial: int) -> None:
        for peer, hold in holds:
            other = self.mesh.nodes.get(peer)
            if other and other.up and self.mesh.carries(self, other):
                follow = partial(other.moves.follow, self.computer.id, serial)
                self.mesh.later.append((self.mesh.now + hold, follow))

    async def switch_key(self, key: PrivateKey, first: Callable[[], None]) -> float:
        first()
        self.kernel.private = key
        self.mesh.switches.append((self.mesh.now, self.computer.name))
        return START + self.mesh.now

    def look(self) -> None:
        """The kernel as the agent sees it; one that is blind keeps what it saw."""
        if self.blind:
            return
        wall = START + self.mesh.now
        rows = {k: Session(None, START + at if at else 0.0, 0, 0) for k, at in self.kernel.peers.items()}
        fresh = frozenset(k for k, s in rows.items() if s.last_handshake and wall - s.last_handshake < REJECT_S)
        self.reconciler.outcome = SimpleNamespace(sessions=rows, alive=fresh, read_at=self.mesh.now)

    def reconcile(self) -> None:
        """The kernel is made what the book and the rotor say."""
        self.kernel.private = self.rotor.identity.wireguard
        wanted = {n.statement.wireguard for n in self.computer.book.roster.nodes.values() if n.id != self.computer.id}
        self.kernel.peers = {key: self.kernel.peers.get(key, 0.0) for key in wanted}
        self.look()

    async def stream(self, coordinator: Coordinator) -> None:
        """What the session with a coordinator brings."""
        self.link.connected = True
        with suppress(MeshError):
            if await self.computer.sync(coordinator) or True:
                self.moves.noticed()
        self.link.order = coordinator.rotations.order(self.computer.id)

    async def report(self, coordinator: Coordinator) -> None:
        if self.rotor.report is not None and self.rotor.report is not self.told:
            self.told = self.rotor.report
            with suppress(MeshError):
                await coordinator.rotations.hear(self.computer.id, self.rotor.report)

    def verdict(self, peer: Turner) -> Verdict:
        """What this node would tell of a peer: of its path, and of MESH-ROT-001."""
        now, known = self.mesh.now, self.pair(peer.computer.id)
        if known.ok_at is None or now - known.ok_at > 10:
            return Verdict.FAILED
        moved = self.rotor.moved_at(peer.computer.id)
        node = self.computer.book.roster.nodes[peer.computer.id]
        at = self.kernel.peers.get(node.statement.wireguard, 0.0)
        changed = None if moved is None else START + now - moved
        agreed = None if known.agreed_at is None else now - known.agreed_at
        return judges.rotation(peer.computer.id, changed, now - at if at else None, agreed, now=now).verdict


class Turning:
    """All of it."""

    def __init__(self, made: World) -> None:
        self.world, self.now = made, 1000.0
        self.nodes: dict[NodeId, Turner] = {}
        self.cuts: set[frozenset[NodeId]] = set()
        self.later: list[tuple[float, Callable[[], None]]] = []
        self.switches: list[tuple[float, str]] = []
        self.sessions: dict[frozenset[PublicKey], float] = {}  # of two keys: when the handshake was
        self.watch()

    def watch(self) -> None:
        """Coordinators believe what the tick says of who is connected."""
        for coordinator in self.world.coordinators:
            coordinator.rotations.is_connected = lambda n: n in self.nodes and self.nodes[n].up and self.nodes[n].online  # type: ignore[method-assign]

    async def add(self, name: str) -> Turner:
        computer = await self.world.member(name)
        await self.world.caught_up()
        node = self.world.first.feed.members[computer.id].node
        saved = SavedMembership(b"", b"", b"", 1, "mesh0", 51820)
        await computer.sync(self.world.first)
        self.nodes[computer.id] = Turner(self, computer, Member(self.world.mesh, node, b"", saved))
        return self.nodes[computer.id]

    def carries(self, a: Turner, b: Turner) -> bool:
        """Whether packets get from `a` to `b` under the keys that their kernels have now."""
        held = b.kernel.public in a.kernel.peers and a.kernel.public in b.kernel.peers
        at = self.sessions.get(frozenset({a.kernel.public, b.kernel.public}), 0.0)
        whole = frozenset({a.computer.id, b.computer.id}) not in self.cuts
        return held and whole and bool(at) and self.now - at < REJECT_S

    def _wireguard(self) -> None:
        nodes = list(self.nodes.values())
        for place, a in enumerate(nodes):
            for b in nodes[place + 1 :]:
                keys = frozenset({a.kernel.public, b.kernel.public})
                mutual = b.kernel.public in a.kernel.peers and a.kernel.public in b.kernel.peers
                if not mutual or frozenset({a.computer.id, b.computer.id}) in self.cuts:
                    continue
                if self.now - self.sessions.get(keys, float("-inf")) > REKEY_S:
                    self.sessions[keys] = self.now
                    a.kernel.peers[b.kernel.public] = b.kernel.peers[a.kernel.public] = self.now
                if a.up and b.up:
                    self._echo(a, b)
                    self._echo(b, a)

    def _echo(self, asking: Turner, answering: Turner) -> None:
        known, me = asking.pair(answering.computer.id), asking.computer.id
        told = answering.computer.book.roster.nodes.get(me)
        mine = asking.computer.book.roster.nodes.get(answering.computer.id)
        known.ok_at = self.now
        if told:
            known.held = max(known.held, told.newest)
            both = told.statement.body == asking.rotor.statement.body
            if both and mine and mine.statement.body == answering.rotor.statement.body:
                known.agreed_at, known.span = self.now, 0.01

    async def run(self, seconds: float) -> None:
        """Let time pass."""
        for _ in range(round(seconds / TICK_S)):
            self.now += TICK_S
            self.world.clock.now = START + self.now
            due = [act for at, act in self.later if at <= self.now]
            self.later = [(at, act) for at, act in self.later if at > self.now]
            for act in due:
                act()
            await self._tick()

    async def _tick(self) -> None:
        members = await self.world.nodes()
        for gone in self.nodes.keys() - members.keys():
            del self.nodes[gone]
        coordinators = self.world.coordinators
        for node in list(self.nodes.values()):
            if not node.up:
                continue
            if node.online:
                await node.stream(coordinators[node.at % len(coordinators)])
            else:
                node.link.connected, node.link.order = False, None
            node.reconcile()
        self._wireguard()
        for node in list(self.nodes.values()):
            if node.up:
                node.look()
                node.moves.measure()
                await node.rotor._once()
                if node.online:
                    await node.report(coordinators[node.at % len(coordinators)])
        for coordinator in coordinators:
            with suppress(MeshError):
                await coordinator.rotations.look(now=self.now)
        await self.world.caught_up()

    async def open(self, *names: str, force: bool = False) -> Plan | None:
        """An operator orders a rotation of these nodes, or of all; None when it is refused."""
        rotations = self.world.first.rotations
        with suppress(MeshError):
            targets = rotations.targets(names, (), everybody=not names)
            return await rotations.open(targets, force=force, reason="", actor="operator:0")
        return None

    def disagreeing(self) -> list[tuple[Turner, Turner]]:
        """Pairs, seen from each end, whose kernel does not hold the key that the other's kernel has."""
        nodes = list(self.nodes.values())
        return [(a, b) for a in nodes for b in nodes if a is not b and b.kernel.public not in a.kernel.peers]


@asynccontextmanager
async def turning(size: int, coordinators: int = 2) -> AsyncIterator[Turning]:
    """A mesh of so many nodes, all pairs up."""
    begun = time.monotonic()
    async with world(coordinators=coordinators) as made:
        mesh = Turning(made)
        for number in range(size):
            await mesh.add(f"n{number}")
        await mesh.run(2.0)
        assert time.monotonic() - begun < 60
        yield mesh


assert rotation.GRANT_S > TICK_S
