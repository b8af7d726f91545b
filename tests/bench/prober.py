"""What an echo costs, both ends in one process on loopback, beside a bare UDP echo in the same run (NET-7, OPS-3).

    python tests/bench/prober.py

Prints microseconds of CPU per echo (ping sent, answered, answer taken), the same for a bare UDP echo, their ratio, and
what a node with 100 and 1,000 peers pays for the schedule, as a share of one core: its pings, its answers to others'.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import socket
import time
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from meshctl.agent.prober import Prober
from meshctl.crypto.identity import Identity
from meshctl.mesh import integrity, judges, limits, probe
from meshctl.mesh.catalogue import CATALOGUE, Verdict
from meshctl.mesh.integrity import Reading
from meshctl.mesh.model import Endpoint, Node, NodeId, Roster
from meshctl.mesh.probe import Echo
from meshctl.mesh.schedule import schedule

ECHOES, AT_ONCE = 20_000, 4


def resident_mb() -> float:
    """Of this process, now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


class Ticking:
    """Monotonic time that jumps between echoes, so that the rate of answers is never what is measured."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def node(identity: Identity, number: int) -> Node:
    place = f"{number // 200}.{1 + number % 200}"
    v4, v6 = IPv4Address(f"127.77.{place}"), IPv6Address(f"::ffff:127.78.{place}")
    return Node(identity.id, f"n{number}", v4, v6, identity.state("mesh00000001", 1))


def bare_echo_us(echoes: int) -> float:
    """Two plain sockets, blocking, packets of the same size: the floor."""
    a, b = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    with a, b:
        a.bind(("127.77.250.1", 0))
        b.bind(("127.77.250.2", 0))
        payload, to_b = bytes(probe.PACKET_BYTES), b.getsockname()
        start = time.process_time()
        for _ in range(echoes):
            a.sendto(payload, to_b)
            datagram, sender = b.recvfrom(256)
            b.sendto(datagram, sender)
            a.recvfrom(256)
        return (time.process_time() - start) / echoes * 1e6


async def echo_us(echoes: int) -> float:
    """Two probers; AT_ONCE echoes in flight, as when a round goes out."""
    identities = [Identity.generate(), Identity.generate()]
    nodes = [node(identity, number) for number, identity in enumerate(identities)]
    roster, clock, seen = Roster("i", 1, {n.id: n for n in nodes}), Ticking(), Endpoint(IPv4Address("192.0.2.1"), 51820)
    probers = [Prober(i, lambda _: seen, lambda *_: None, monotonic=clock) for i in identities]
    for prober, me in zip(probers, nodes, strict=True):
        prober.update(me, roster)
        prober.bind()
    a, peer = probers[0], nodes[1].id
    start = time.process_time()
    while a.received < echoes:
        clock.now += 1.0
        goal = a.received + AT_ONCE
        a.kick([peer] * AT_ONCE)
        deadline = time.monotonic() + 5
        while a.received < goal:
            assert time.monotonic() < deadline, f"echoes are lost: {a.drops} {probers[1].drops}"
            await asyncio.sleep(0)
    spent = time.process_time() - start
    for prober in probers:
        prober.close()
    return spent / a.received * 1e6


def round_us(peers: int, rounds: int = 30) -> tuple[float, float, float, float, float]:
    """A node with `peers`: us of a turn without sockets, us of judging, echoes a round, first roster in ms and MB."""
    me, clock = Identity.generate(), Ticking()
    mine = node(me, 0)
    gc.collect()
    before = resident_mb()
    others = [node(Identity.generate(), number + 1) for number in range(peers)]
    roster = Roster("i", 1, {n.id: n for n in (mine, *others)})
    prober = Prober(me, lambda _: None, lambda *_: None, monotonic=clock)
    start = time.process_time()
    prober.update(mine, roster)
    prober.turn()
    update_ms = (time.process_time() - start) * 1e3
    start = time.process_time()
    for _ in range(rounds):
        clock.now += limits.WATCH_EVERY_S
        prober.turn()
    turn = (time.process_time() - start) / rounds * 1e6
    ids: list[NodeId] = [n.id for n in others]
    echo = Echo(16, 16, rtt_s=0.004, last_ok_at=clock.now, tested_at=clock.now)
    expected = integrity.expected(ids)
    deep = ((code, who) for code, who in expected if CATALOGUE[code].deep)
    held = {(code, who): Reading(code, who, Verdict.OK, clock.now, "tried") for code, who in deep}
    start = time.process_time()
    for _ in range(10):
        judged = [judge(peer, echo, now=clock.now) for peer in ids for judge in (judges.path, judges.identity)]
        judged += [judges.handshake(peer, 60.0, True, now=clock.now) for peer in ids]
        judged += [judges.rotation(peer, None, 60.0, None, now=clock.now) for peer in ids]
        held.update([(reading[:2], reading) for reading in judged])
        rows = integrity.evaluate(held, expected, coverage_s=60, deep_s=1e5, now=clock.now)
        integrity.track((), rows, now=clock.now)
    judging = (time.process_time() - start) / 10 * 1e6
    plan = schedule(roster.nodes, me.id)
    per_round = len(plan.watch) + sum(map(len, plan.sweep)) / len(plan.sweep)
    return turn, judging, per_round, update_ms, resident_mb() - before


def main() -> None:
    asyncio.run(echo_us(2000))
    ratios = []
    for _ in range(3):
        bare, full = bare_echo_us(ECHOES), asyncio.run(echo_us(ECHOES))
        ratios.append((full / bare, full, bare))
    ratio, full, bare = sorted(ratios)[1]
    print(f"echo, both ends     {full:6.1f} us CPU")
    print(f"bare UDP echo       {bare:6.1f} us CPU   ratio {ratio:.2f}")
    for peers in (100, 1000):
        turn, judging, per_round, update_ms, grown_mb = round_us(peers)
        # A node pays one echo's worth for each it asks: half of it for its own pings, half for answering as many.
        core = (per_round * full + turn) / (limits.WATCH_EVERY_S * 1e6)
        judged = judging / (limits.WATCH_EVERY_S * 1e6)
        print(
            f"{peers:5} peers: {per_round:5.1f} echoes a round; probing {core:.3%} of a core,"
            f" judging every round {judged:.3%}; first roster {update_ms:.1f} ms, {grown_mb:.1f} MB"
        )


if __name__ == "__main__":
    main()
