"""Probers under attack: forged, replayed, reflected, swapped and flooded (NET-7)."""

from __future__ import annotations

import gc
import secrets
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace

from meshctl.agent.responder import Drop
from meshctl.mesh import judges, probe
from meshctl.mesh.catalogue import Verdict
from meshctl.mesh.probe import Kind, Packet
from tests.harness.probing import Attacker, Member, Mesh, dropped, until


def ping(sender: Member, receiver: Member, sequence: int = 7, **changes: object) -> Packet:
    return Packet(Kind.PING, sender.raw, receiver.raw, sequence, 1, time.time_ns())._replace(**changes)


async def test_forged_tag_is_not_answered_and_is_told(mesh: Mesh) -> None:
    a, b, _ = mesh.members
    b.prober.close()
    with Attacker(b) as attacker:
        attacker.send(probe.pack(ping(b, a)) + bytes(16), a)
        await dropped(a, Drop.FORGED)
        assert attacker.is_silent()
    assert judges.identity(b.node.id, a.prober.echo(b.node.id), now=a.clock.now).verdict is Verdict.FAILED


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
        proven = replace(a.prober.echo(b.node.id))
        a.clock.now += 1
        attacker.send(datagram, a)
        await dropped(a, Drop.UNASKED)
    assert a.prober.echo(b.node.id) == proven


async def test_pings_replayed_as_if_the_peer_had_restarted_with_an_earlier_clock_prove_nothing(mesh: Mesh) -> None:
    a, b, _ = mesh.members
    b.prober.close()
    with Attacker(b) as attacker:
        hail = b.key(a).seal(probe.pack(ping(b, a)))
        attacker.send(hail, a)
        first = probe.parse(await attacker.receive())
        proof = b.key(a).seal(probe.pack(ping(b, a, 8, echo_ns=first.clock_ns)))
        attacker.send(proof, a)
        await attacker.receive()
        proven = replace(a.prober.echo(b.node.id))
        assert proven.last_ok_at == a.clock.now
        a.clock.now += 3600
        attacker.send(b.key(a).seal(probe.pack(ping(b, a, 1000))), a)
        await attacker.receive()
        attacker.send(hail, a)
        await dropped(a, Drop.REPLAYED)
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
            for burst in range(1000):
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
