"""Probers on real UDP sockets, for tests: members on addresses of loopback, a clock that a test moves, an attacker.

Addresses of loopback stand in for mesh addresses: 127.x.y.z for v4, and other ones, v4-mapped, for v6. Monotonic time
moves only when a test says so; packets fly in real time.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from ipaddress import IPv4Address, IPv6Address

import pytest_asyncio

from meshctl.agent.prober import Prober
from meshctl.agent.responder import Drop
from meshctl.crypto.identity import Identity
from meshctl.crypto.probe import PairKey, pair_key
from meshctl.mesh import judges, limits, probe
from meshctl.mesh.catalogue import Verdict
from meshctl.mesh.model import Endpoint, Node, NodeId, Roster

MESH = "mesh00000001"
LOST_S = limits.ECHO_LOST_AFTER_S + 0.1


async def until(true: Callable[[], object], why: str, within_s: float = 5.0) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, why
        await asyncio.sleep(0.002)


class Clock:
    """Monotonic seconds that a test moves; wall nanoseconds with an offset."""

    def __init__(self) -> None:
        self.now, self.off_s = 1000.0, 0.0

    def monotonic(self) -> float:
        return self.now

    def wall_ns(self) -> int:
        return time.time_ns() + int(self.off_s * 1e9)


class Member:
    """A node and its prober. `seen` is what peers said of its endpoint, `muted` whom it may not ping."""

    def __init__(self, number: int, net: tuple[int, int]) -> None:
        self.identity, self.clock = Identity.generate(), Clock()
        self.node = Node(
            id=self.identity.id,
            name=f"n{number}",
            address4=IPv4Address(f"127.{net[0]}.{net[1]}.{number}"),
            address6=IPv6Address(f"::ffff:127.{net[0] + 1}.{net[1]}.{number}"),
            statement=self.identity.state(MESH, 1),
        )
        self.seen: dict[NodeId, Endpoint] = {}
        self.muted: set[NodeId] = set()
        self.prober = self.boot()

    def boot(self) -> Prober:
        return Prober(
            self.identity,
            lambda peer: Endpoint(IPv4Address("192.0.2.9"), 51820),
            self.seen.__setitem__,
            lambda peer: peer not in self.muted,
            monotonic=self.clock.monotonic,
            wall_ns=self.clock.wall_ns,
        )

    @property
    def raw(self) -> bytes:
        return probe.raw_id(self.node.id)

    def key(self, peer: Member) -> PairKey:
        return pair_key(self.identity.probe, self.node.statement, peer.node.statement)

    def path(self, peer: Member) -> Verdict:
        return judges.path(peer.node.id, self.prober.echo(peer.node.id), now=self.clock.now).verdict

    async def round(self, *peers: Member) -> None:
        """One turn; waits for the answers of `peers` that answer."""
        sent = {peer: self.prober.echo(peer.node.id).tested_at for peer in peers}
        self.clock.now += limits.WATCH_EVERY_S
        self.prober.turn()
        for peer, before in sent.items():
            await until(lambda p=peer, b=before: self.prober.echo(p.node.id).tested_at != b, "no answer")  # type: ignore[misc]

    async def lose(self, times: int = 1) -> None:
        """Turns whose pings nobody answers in time."""
        for _ in range(times):
            self.prober.turn()
            self.clock.now += LOST_S
            self.prober.expire(self.clock.now)


class Mesh:
    def __init__(self, size: int) -> None:
        net = 64 + 2 * secrets.randbelow(64), secrets.randbelow(256)
        self.members = [Member(number, net) for number in range(1, size + 1)]
        self.share()

    def share(self) -> None:
        roster = Roster("i", 1, {m.node.id: m.node for m in self.members})
        for member in self.members:
            member.prober.update(member.node, roster)

    def bind(self) -> None:
        for member in self.members:
            member.prober.bind()


@pytest_asyncio.fixture
async def mesh() -> AsyncIterator[Mesh]:
    made = Mesh(3)
    made.bind()
    yield made
    for member in made.members:
        member.prober.close()


class Attacker:
    """Raw sockets on somebody's addresses and the probe port. Hears both families, sends on v4."""

    def __init__(self, member: Member) -> None:
        self.inbox: list[bytes] = []
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
        self.socks = [socket.socket(family, kind) for family in (socket.AF_INET, socket.AF_INET6)]
        for sock, address in zip(self.socks, (member.node.address4, member.node.address6), strict=True):
            sock.bind((str(address), limits.PROBE_PORT))

    def __enter__(self) -> Attacker:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self.socks:
            sock.close()

    def send(self, datagram: bytes, to: Member) -> None:
        self.socks[0].sendto(datagram, (str(to.node.address4), limits.PROBE_PORT))

    async def flood(self, to: Member, magic: bytes, sizes: Sequence[int]) -> None:
        """2,000 pieces of garbage under this magic; the loop turns in between, and they are counted."""
        for turn in range(400):
            for size in sizes:
                self.send(magic + secrets.token_bytes(size), to)
            if turn % 20 == 0:
                await asyncio.sleep(0)
        await until(lambda: sum(to.prober.drops.values()) >= 100, "they are counted")
        assert set(to.prober.drops) <= {Drop.MALFORMED, Drop.STRANGER, Drop.MISDIRECTED}

    async def receive(self) -> bytes:
        await until(lambda: not self.is_silent(), "nothing came")
        return self.inbox.pop()

    def is_silent(self) -> bool:
        for sock in self.socks:
            try:
                self.inbox.append(sock.recv(256))
            except BlockingIOError:
                pass
        return not self.inbox


async def dropped(victim: Member, reason: Drop, count: int = 1) -> None:
    await until(lambda: victim.prober.drops[reason] >= count, f"not dropped as {reason}: {victim.prober.drops}")
    assert victim.prober.drops == {reason: count}
