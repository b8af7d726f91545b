"""Two agents' halves of the exchange of pre-shared keys on a wire and a clock that a test moves (NET-6).

The code of the agent runs as it is, tags included. Made here are the wire, which may lose, double and hold back
packets; the disk, which may be full; and WireGuard, reduced to what matters: a handshake succeeds when both devices
have the same pre-shared key at that moment, and the end that answers stamps it when the next packet comes.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from types import SimpleNamespace
from typing import Any, Final

from meshctl.agent.psk import PresharedKeys
from meshctl.agent.psk_exchange import Ports
from meshctl.agent.responder import Drop, Pair
from meshctl.crypto.identity import Identity
from meshctl.crypto.probe import pair_key
from meshctl.errors import EnvironmentFault
from meshctl.eventlog import Unheard
from meshctl.mesh import limits
from meshctl.mesh.interface import Session
from meshctl.mesh.keys import PresharedKey
from meshctl.mesh.model import Node, NodeId
from meshctl.mesh.probe import raw_id
from meshctl.mesh.psk import Bunch
from meshctl.mesh.psk_packets import MAGIC, Letter

MESH: Final = "mesh00000001"
Weather = Callable[[bytes], int]  # how many copies of a packet arrive


@dataclass
class Disk:
    """What survives a crash. `full`: nothing is written."""

    bunches: dict[NodeId, Bunch] = field(default_factory=dict)
    full: bool = False
    writes: int = 0

    def save(self, peer: NodeId, bunch: Bunch) -> None:
        if self.full:
            raise EnvironmentFault("the disk is full", "free some space")
        self.writes += 1
        self.bunches[peer] = bunch


class End:
    """One machine: disk and device survive its agent."""

    def __init__(self, number: int, world: World) -> None:
        self.identity, self.world, self.disk = Identity.generate(), world, Disk()
        self.node = Node(
            id=self.identity.id, name=f"n{number}", address4=IPv4Address(f"127.9.9.{number}"),
            address6=IPv6Address(f"fd00::{number}"), statement=self.identity.state(MESH, 1),
        )  # fmt: skip
        self.raw, self.device, self.handshake_at = raw_id(self.node.id), None, 0.0
        self.device: PresharedKey | None
        self.sent, self.unset = 0, False  # `unset`: the device takes nothing for now
        self.drops: Counter[Drop] = Counter()
        self.agent: PresharedKeys | None = None

    def start(self, other: End, period_s: float = 86400.0) -> None:
        """An agent, from what is on disk."""
        world, peer = self.world, other.node
        pair = Pair(
            peer, lambda: pair_key(self.identity.probe, self.node.statement, peer.statement), 1,
            (self.node.statement.fingerprint, peer.statement.fingerprint), now=world.now,
        )  # fmt: skip
        wire = SimpleNamespace(sendto=lambda datagram, _: world.carry(self, other, datagram))
        self.others: dict[bytes, Callable[..., None]] = {}
        prober: Any = SimpleNamespace(
            others=self.others, drops=self.drops, coverage_s=5.0, pair=lambda _: pair,
            pair_of=lambda raw: pair if raw == pair.raw else None, socket_for=lambda _: wire,
            is_proven=lambda _: world.up,
        )  # fmt: skip
        store: Any = SimpleNamespace(
            save_bunch=self.disk.save, bunches=lambda: dict(self.disk.bunches),
            forget_bunch=lambda peer: self.disk.bunches.pop(peer, None),
        )  # fmt: skip
        self.agent = PresharedKeys(self.node.id, store, period_s)
        ports = Ports(
            store, prober, self._reconciler(peer), lambda: [peer], lambda: SimpleNamespace(id=MESH),  # type: ignore[arg-type,return-value]
            Unheard(), lambda letter: world.post(self, letter), monotonic=lambda: world.now, wall=lambda: world.now,
        )  # fmt: skip
        self.agent.connect(ports)
        self.device = self.agent.keys.get(peer.id) if not self.unset else self.device  # the first pass

    def _reconciler(self, peer: Node) -> Any:
        end, ready = self, asyncio.Event()

        class Reconciler:
            passed = ready

            @property
            def outcome(self) -> Any:
                session = Session(None, end.handshake_at, 0, end.sent)
                return SimpleNamespace(sessions={peer.statement.wireguard: session}, revision=1)

            class wake:
                @staticmethod
                def set() -> None:
                    assert end.agent
                    if not end.unset:
                        end.device = end.agent.keys.get(peer.id)
                    asyncio.get_running_loop().call_soon(lambda: (ready.set(), ready.clear()))

            @staticmethod
            def holds(_: object, key: PresharedKey | None) -> bool:
                return end.device == key

        return Reconciler()

    def kill(self) -> None:
        """As `kill -9` does: what is not on disk or in the device is gone."""
        if self.agent:
            for task in self.agent._exchange._tasks:
                task.cancel()
        self.agent = None

    def bunch(self, other: End) -> Bunch:
        return self.disk.bunches.get(other.node.id, Bunch())


class World:
    """`a` leads. `weather` says how many copies of each packet arrive, `late` holds some back."""

    def __init__(self, period_s: float = 86400.0) -> None:
        self.now, self.period_s = 1_000_000.0, period_s
        self.weather: Weather = lambda _: 1
        self.handshakes = True
        self.coordinator, self.posted = False, 0  # whether it carries letters; how many were given to it
        self.letters: list[tuple[End, Letter]] = []
        ends = sorted((End(number, self) for number in (1, 2)), key=lambda end: end.raw)
        self.a, self.b = ends
        self.flying: list[tuple[End, bytes, str]] = []
        self.unconfirmed: float | None = None  # a handshake that one end answered and has not stamped yet
        self.session_at = self.now
        for end in ends:
            end.handshake_at = self.now
        self.boot(self.a)
        self.boot(self.b)

    def boot(self, end: End) -> None:
        end.start(self.other(end), self.period_s)

    def other(self, end: End) -> End:
        return self.b if end is self.a else self.a

    @property
    def up(self) -> bool:
        """Whether the tunnel carries packets."""
        return self.now - self.session_at < limits.REJECT_AFTER_S

    def carry(self, sender: End, to: End, datagram: bytes) -> None:
        if self.up:
            self.flying += [(to, datagram, str(sender.node.address4))] * self.weather(datagram)

    def post(self, sender: End, letter: Letter) -> None:
        """By way of a coordinator."""
        self.posted += 1
        if self.coordinator:
            copies = self.weather(letter.sealed)
            self.letters += [(self.other(sender), letter._replace(peer=sender.node.id))] * copies

    def deliver(self, order: Callable[[int], int] = lambda _: 0) -> None:
        """All that flies; `order` picks the next of so many."""
        letters, self.letters = self.letters, []
        for to, letter in letters:
            if to.agent:
                to.agent.take(letter)
        for _ in range(200):
            if not self.flying:
                return
            to, datagram, source = self.flying.pop(order(len(self.flying)))
            if to.agent:
                to.others[MAGIC](datagram, (source, 0), socket.socket)  # type: ignore[arg-type]

    async def settle(self) -> None:
        """Whatever an agent has begun comes to its end."""
        for _ in range(50):
            tasks = [t for e in (self.a, self.b) if e.agent for t in e.agent._exchange._tasks if not t.done()]
            if not tasks and not self.flying:
                return
            self.deliver()
            if tasks:
                await asyncio.wait(tasks, timeout=2)

    async def tick(self, seconds: float = 1.0) -> None:
        """Time passes at both ends, and what is due is done."""
        self.now += seconds
        self.shake()
        for end in (self.a, self.b):
            end.sent += 100
            if end.agent:
                if self.now >= end.agent._look_at:
                    end.agent._look_at = self.now + (2.0 if await end.agent._look() else 10.0)
                end.agent._speak()
                await end.agent._exchange.reap()

    def shake(self) -> None:
        """A handshake, when one is due and both devices have the same key; its answerer stamps it a moment later."""
        if self.unconfirmed is not None and self.up:
            self.b.handshake_at, self.unconfirmed = self.now, None
        due = self.now - self.session_at > limits.REKEY_AFTER_S
        if self.handshakes and due and int(self.now) % 5 == 0 and self.a.device == self.b.device:
            self.session_at = self.a.handshake_at = self.unconfirmed = self.now

    async def run(self, seconds: float) -> None:
        """In good weather or bad."""
        for _ in range(int(seconds)):
            await self.tick()
            self.deliver()
            await self.settle()

    async def comes(self, true: Callable[[], object], within_s: float) -> None:
        """Run until it does."""
        begun = self.now
        while not true():
            assert self.now - begun < within_s, (self.a.bunch(self.b), self.b.bunch(self.a), self.up)
            await self.run(1)

    def agreed(self, least: int = 1) -> bool:
        """Both have the same, at least of this version, proven at both ends."""
        one, two = self.a.bunch(self.b), self.b.bunch(self.a)
        same = one.key is not None and one.key == two.key == self.a.device == self.b.device
        return same and one.now == two.now >= least and one.proven and two.proven

    def check(self) -> None:
        """The law: the files have a key in common, or neither was ever proven; none is never in force after a proof."""
        one, two = self.a.bunch(self.b), self.b.bunch(self.a)
        fresh = one.good == 0 and two.good == 0
        assert fresh or {k.key.raw for k in one.keys} & {k.key.raw for k in two.keys}, (one, two)
        for end, bunch in ((self.a, one), (self.b, two)):
            assert not bunch.good or end.device is not None or end.unset, bunch
            assert len(bunch.keys) <= 4
