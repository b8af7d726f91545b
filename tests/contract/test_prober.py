"""Probers on real UDP sockets: weather and attacks (NET-7).

Addresses of loopback stand in for mesh addresses: 127.x.y.z for v4, and other ones, v4-mapped, for v6. Monotonic time
moves only when a test says so; packets fly in real time.
"""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import socket
import subprocess
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest
import pytest_asyncio

from meshctl.agent.prober import Prober
from meshctl.agent.responder import Drop
from meshctl.crypto.identity import Identity
from meshctl.crypto.probe import PairKey, pair_key
from meshctl.mesh import integrity, limits, probe, statement
from meshctl.mesh.integrity import Verdict
from meshctl.mesh.model import Endpoint, Node, NodeId, Roster
from meshctl.mesh.probe import Kind, Packet
from meshctl.mesh.statement import Statement
from tests.harness.netns import Namespace

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
        return integrity.path(peer.node.id, self.prober.echo(peer.node.id), now=self.clock.now).verdict

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


# ---- weather ---------------------------------------------------------------------------------------------------------


async def test_echo_proves_both_directions_on_both_families(mesh: Mesh) -> None:
    a, b, c = mesh.members
    for _ in range(2):
        await a.round(b, c)
    echo = a.prober.echo(b.node.id)
    assert (echo.sent, echo.received, echo.missed) == (2, 2, 0)
    assert echo.offset_s is not None
    assert abs(echo.offset_s) < 0.5
    assert a.path(b) is a.path(c) is Verdict.OK
    assert a.seen == dict.fromkeys((b.node.id, c.node.id), Endpoint(IPv4Address("192.0.2.9"), 51820))
    assert not a.prober.drops + b.prober.drops


async def test_pings_led_by_one_side_prove_the_path_to_the_other_too(mesh: Mesh) -> None:
    a, b, _ = mesh.members
    await a.round(b)
    assert b.prober.echo(a.node.id).last_ok_at is None, "the first ping only shows that the peer can reach us"
    await a.round(b)
    assert b.prober.sent == 0
    assert b.path(a) is Verdict.OK


async def test_peer_silent_then_back(mesh: Mesh) -> None:
    a, b, c = mesh.members
    await a.round(b)
    b.prober.close()
    seen = []
    for _ in range(3):
        await a.lose()
        seen.append(a.path(b))
    assert seen == [Verdict.DEGRADED, Verdict.DEGRADED, Verdict.FAILED]
    b.prober.bind()
    await a.round(b, c)
    assert a.path(b) is Verdict.DEGRADED, "it lost three of the last echoes"
    for _ in range(16):
        await a.round(b)
    assert a.path(b) is Verdict.OK


async def test_half_of_the_echoes_are_lost(mesh: Mesh) -> None:
    a, b, _ = mesh.members
    for _ in range(8):
        b.prober.bind()
        await a.round(b)
        b.prober.close()
        await a.lose()
    echo = a.prober.echo(b.node.id)
    assert (echo.sent, echo.received) == (16, 8)
    assert a.path(b) is Verdict.DEGRADED


async def test_clock_of_a_peer_is_60_s_off(mesh: Mesh) -> None:
    a, b, c = mesh.members
    b.clock.off_s = 60.0
    await a.round(b, c)
    await b.round(a, c)
    offset = a.prober.echo(b.node.id).offset_s
    assert offset is not None
    assert abs(offset - 60) < 0.5

    def clock_of(member: Member) -> Verdict:
        offsets = [echo.offset_s for echo in member.prober.echoes().values() if echo.offset_s is not None]
        return integrity.clock(None, offsets, now=0).verdict

    assert clock_of(b) is Verdict.FAILED
    assert integrity.clock(0.0, [offset, 0.0, 0.0], now=0).verdict is Verdict.OK


async def test_late_answer_counts_as_lost(mesh: Mesh) -> None:
    a, b, _ = mesh.members
    a.prober.turn()
    a.clock.now += LOST_S
    await until(lambda: a.prober.drops[Drop.LATE] == 2, "both answers are late")
    a.prober.expire(a.clock.now)
    assert (a.prober.echo(b.node.id).missed, a.prober.echo(b.node.id).received) == (1, 0)


async def test_restarted_peer_is_answered_at_once_and_so_is_one_whose_clock_went_back(mesh: Mesh) -> None:
    a, b, _ = mesh.members
    await b.round(a)
    for hours, silence in ((0, 1.0), (-5, 31.0)):
        b.prober.close()
        b.clock.off_s, a.clock.now = 3600.0 * hours + silence, a.clock.now + silence
        b.prober = b.boot()
        mesh.share()
        b.prober.bind()
        await b.round(a)
    assert not a.prober.drops


async def test_silent_until_allowed(mesh: Mesh) -> None:
    a, b, c = mesh.members
    a.muted = {b.node.id}
    await a.round(c)
    assert (a.prober.sent, a.prober.echo(b.node.id).tested_at) == (1, None)
    a.muted.clear()
    await a.round(b)


async def test_new_statement_of_either_end_changes_the_key_and_keeps_the_counters(mesh: Mesh) -> None:
    a, b, _ = mesh.members
    await a.round(b)
    a.node = replace(a.node, statement=a.identity.state(MESH, 2))
    a.prober.update(a.node, Roster("i", 2, {m.node.id: m.node for m in mesh.members}))
    await a.lose()
    await until(lambda: b.prober.drops[Drop.FORGED], "b still holds the old statement")
    mesh.share()
    await a.round(b)
    assert a.prober.echo(b.node.id).sent == 3


async def test_peer_with_a_crafted_probe_key_is_never_proven_and_breaks_nothing(mesh: Mesh) -> None:
    a, b, c = mesh.members
    body = statement.body(MESH, b.identity.device_key, b.node.statement.wireguard, bytes(32), 2)
    b.node = replace(b.node, statement=Statement(body + b.identity.sign(body)))
    a.prober.update(a.node, Roster("i", 2, {m.node.id: m.node for m in mesh.members}))
    await a.round(c)
    assert a.prober.echo(b.node.id).tested_at is None


async def test_wait_for_a_proof(mesh: Mesh) -> None:
    a, b, c = mesh.members
    assert await a.prober.wait_proven(b.node.id, 5.0) == b.node.id
    assert await a.prober.wait_proven(None, 5.0) in {b.node.id, c.node.id}
    c.prober.close()
    assert await a.prober.wait_proven(c.node.id, 0.05) is None


async def test_gone_peer_is_forgotten(mesh: Mesh) -> None:
    a, b, c = mesh.members
    await a.round(b, c)
    a.prober.update(a.node, Roster("i", 2, {m.node.id: m.node for m in (a, b)}))
    assert set(a.prober.echoes()) == {b.node.id}
    await c.lose()
    await dropped(a, Drop.STRANGER)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes a network namespace")
async def test_waits_for_its_addresses_and_binds_again_when_they_vanish() -> None:
    with Namespace() as ns:
        members = Mesh(2).members
        for number, member in enumerate(members, 1):
            member.node = replace(
                member.node, address4=IPv4Address(f"10.9.8.{number}"), address6=IPv6Address(f"fd00:9::{number}")
            )
        roster = Roster("i", 1, {m.node.id: m.node for m in members})
        probers = [Prober(m.identity, lambda _: None, m.seen.__setitem__) for m in members]
        for member, prober in zip(members, probers, strict=True):
            prober.update(member.node, roster)
        a, b = probers

        def addresses(verb: str, number: int) -> None:
            for address in (f"10.9.8.{number}/32", f"fd00:9::{number}/128"):
                subprocess.run(["ip", "-n", ns.name, "address", verb, address, "dev", "lo"], check=True)

        async def story() -> None:
            async with asyncio.TaskGroup() as group:
                loops = [group.create_task(prober.run()) for prober in probers]
                assert await a.wait_proven(None, 0.3) is None
                addresses("add", 1)
                addresses("add", 2)
                assert await a.wait_proven(members[1].node.id, 5.0)
                addresses("del", 1)
                assert await a.wait_proven(None, 0.6) is None
                addresses("add", 1)
                assert await a.wait_proven(members[1].node.id, 5.0)
                assert await b.wait_proven(members[0].node.id, 5.0)
                for loop in loops:
                    loop.cancel()

        await ns.run(story())


# ---- attacks ---------------------------------------------------------------------------------------------------------


def ping(sender: Member, receiver: Member, sequence: int = 7, **changes: object) -> Packet:
    return Packet(Kind.PING, sender.raw, receiver.raw, sequence, 1, time.time_ns())._replace(**changes)


async def test_forged_tag_is_not_answered_and_is_told(mesh: Mesh) -> None:
    a, b, _ = mesh.members
    b.prober.close()
    with Attacker(b) as attacker:
        attacker.send(probe.pack(ping(b, a)) + bytes(16), a)
        await dropped(a, Drop.FORGED)
        assert attacker.is_silent()
    assert integrity.identity(b.node.id, a.prober.echo(b.node.id), now=a.clock.now).verdict is Verdict.FAILED


async def test_replayed_ping_is_answered_once(mesh: Mesh) -> None:
    a, b, _ = mesh.members
    b.prober.close()
    with Attacker(b) as attacker:
        datagram = b.key(a).seal(probe.pack(ping(b, a)))
        attacker.send(datagram, a)
        answer = probe.parse(await attacker.receive())
        assert (answer.kind, answer.sender, answer.sequence) == (Kind.PONG, a.raw, 7)
        attacker.send(datagram, a)
        await dropped(a, Drop.REPLAYED)
        assert attacker.is_silent()


async def test_replayed_pong_proves_nothing(mesh: Mesh) -> None:
    a, b, _ = mesh.members
    b.prober.close()
    with Attacker(b) as attacker:
        a.prober.kick([b.node.id])
        asked = probe.parse(await attacker.receive())
        pong = Packet(Kind.PONG, b.raw, a.raw, asked.sequence, asked.round, time.time_ns(), asked.clock_ns)
        datagram = b.key(a).seal(probe.pack(pong))
        attacker.send(datagram, a)
        await until(lambda: a.prober.echo(b.node.id).received == 1, "the genuine one counts")
        proven = a.prober.echo(b.node.id)
        a.clock.now += 1
        attacker.send(datagram, a)
        await dropped(a, Drop.UNASKED)
    assert a.prober.echo(b.node.id) == proven


async def test_replayed_ping_after_a_long_silence_proves_nothing(mesh: Mesh) -> None:
    a, b, _ = mesh.members
    b.prober.close()
    with Attacker(b) as attacker:
        attacker.send(b.key(a).seal(probe.pack(ping(b, a))), a)
        first = probe.parse(await attacker.receive())
        proof = b.key(a).seal(probe.pack(ping(b, a, 8, echo_ns=first.clock_ns)))
        attacker.send(proof, a)
        await attacker.receive()
        proven = a.prober.echo(b.node.id)
        assert proven.last_ok_at == a.clock.now
        a.clock.now += 3600
        attacker.send(proof, a)
        await attacker.receive()
    assert a.prober.echo(b.node.id) == proven


async def test_packet_from_the_future_is_not_believed(mesh: Mesh) -> None:
    """A pong to a ping that was not sent yet, and one that claims another clock than was asked with."""
    a, b, _ = mesh.members
    b.prober.close()
    with Attacker(b) as attacker:
        a.prober.kick([b.node.id])
        asked = probe.parse(await attacker.receive())
        for sequence, clock_ns in ((asked.sequence + 1, asked.clock_ns), (asked.sequence, asked.clock_ns + 10**9)):
            pong = Packet(Kind.PONG, b.raw, a.raw, sequence, asked.round, time.time_ns(), clock_ns)
            attacker.send(b.key(a).seal(probe.pack(pong)), a)
        await dropped(a, Drop.UNASKED, 2)
    assert a.prober.echo(b.node.id).tested_at is None


async def test_identity_swap_is_refused(mesh: Mesh) -> None:
    """C answers in its own name from B's address, and B's packets meant for C are brought to A."""
    a, b, c = mesh.members
    b.prober.close()
    with Attacker(b) as attacker:
        attacker.send(c.key(a).seal(probe.pack(ping(c, a))), a)
        await dropped(a, Drop.SOURCE)
        a.prober.drops.clear()
        attacker.send(b.key(c).seal(probe.pack(ping(b, c))), a)
        await dropped(a, Drop.MISDIRECTED)
        assert attacker.is_silent()
    assert a.prober.echo(b.node.id).forged == a.prober.echo(c.node.id).forged == 0


async def test_own_ping_reflected_is_refused(mesh: Mesh) -> None:
    a, b, _ = mesh.members
    b.prober.close()
    with Attacker(b) as attacker:
        a.prober.kick([b.node.id])
        attacker.send(await attacker.receive(), a)
        await dropped(a, Drop.STRANGER)


async def test_strangers_packet_is_refused(mesh: Mesh) -> None:
    a, b, _ = mesh.members
    stranger = Member(9, (10, 0))
    b.prober.close()
    with Attacker(b) as attacker:
        attacker.send(stranger.key(a).seal(probe.pack(ping(stranger, a))), a)
        await dropped(a, Drop.STRANGER)


async def test_truncated_and_oversized_packets_are_refused(mesh: Mesh) -> None:
    a, b, _ = mesh.members
    b.prober.close()
    datagram = b.key(a).seal(probe.pack(ping(b, a)))
    with Attacker(b) as attacker:
        for wrong in (b"", datagram[:1], datagram[:-1], datagram + b"\0", datagram * 2, datagram * 600):
            attacker.send(wrong, a)
        await dropped(a, Drop.MALFORMED, 6)
        assert attacker.is_silent()


async def test_peer_that_asks_too_often_is_answered_at_a_bounded_rate(mesh: Mesh) -> None:
    a, b, _ = mesh.members
    b.prober.close()
    with Attacker(b) as attacker:
        for sequence in range(100):
            attacker.send(b.key(a).seal(probe.pack(ping(b, a, sequence))), a)
        await until(lambda: a.prober.replies + a.prober.drops.total() == 100, "all were handled")
        assert (a.prober.replies, a.prober.drops) == (20, {Drop.RATE: 80})


async def test_flood_of_garbage_is_bounded_and_does_not_deafen(mesh: Mesh) -> None:
    a, b, c = mesh.members
    b.prober.close()
    genuine = b.key(a).seal(probe.pack(ping(b, a)))
    kinds: list[Callable[[], bytes]] = [
        lambda: secrets.token_bytes(64),
        lambda: secrets.token_bytes(probe.PACKET_BYTES),
        lambda: genuine[:5] + secrets.token_bytes(probe.PACKET_BYTES - 5),
        lambda: genuine[:-16] + secrets.token_bytes(16),
        lambda: genuine[:59] + b"\6" + secrets.token_bytes(probe.PACKET_BYTES - 60),  # an endpoint never seen before
    ]

    def held() -> int:
        gc.collect()  # empties the interpreter's free lists too: 256 kB of them are no leak
        return tracemalloc.get_traced_memory()[0]

    with Attacker(b) as attacker:
        tracemalloc.start()
        try:
            before = held()
            for burst in range(200):
                for number in range(100):
                    attacker.send(kinds[number % 5](), a)
                await until(lambda done=100 * (burst + 1): a.prober.drops.total() == done, "read all")  # type: ignore[misc]
            kept = held() - before
        finally:
            tracemalloc.stop()
        assert kept < 16 * 1024
        assert set(a.prober.drops) <= {Drop.MALFORMED, Drop.STRANGER, Drop.FORGED}
        assert attacker.is_silent()
    await a.round(c)
    assert a.path(c) is Verdict.OK
