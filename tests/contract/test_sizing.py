"""Size echoes on real sockets: sizes and digests told, strangers and greed refused, bad paths found (NET-7).

A filter in front of a member's handler stands for the path: it drops or alters datagrams as a middlebox does.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio

from meshctl.agent.pathmtu import PathTrial
from meshctl.agent.responder import Drop
from meshctl.agent.sizing import ALLOWED_BURST, ALLOWED_PER_S, Sizing
from meshctl.agent.store import Store
from meshctl.errors import EnvironmentFault, UnreachableError
from meshctl.mesh import sizing, topology
from meshctl.mesh.catalogue import INTACT, PATH_MTU, Verdict
from meshctl.mesh.integrity import Reading
from meshctl.mesh.interface import Route
from meshctl.mesh.model import NodeId
from meshctl.mesh.sizing import HEADER_BYTES, LARGEST_BYTES, MAGIC, Head, Kind
from tests.harness.probing import Attacker, Member, Mesh, until

Way = Callable[[bytes], bytes | None]  # what arrives of a datagram
FULL = 1420


@dataclass
class Kernel:
    """What the reconciler knows of the interface, for a trial without one."""

    mtu: int = FULL
    routes: frozenset[Route] = frozenset()
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class End:
    """A member with size echoes, and the path to it."""

    def __init__(self, member: Member, others: list[Member], directory: Path) -> None:
        self.member, self.others, self.kernel = member, others, Kernel()
        self.store = Store(directory / member.node.id)
        self.path: Way = lambda datagram: datagram
        self.news: list[NodeId] = []
        self.begin()

    def begin(self) -> None:
        """As an agent starts."""
        peers = [other.node for other in self.others if other is not self.member]
        prober = self.member.prober
        self.trial = PathTrial(
            self.member.node.id, prober, self.kernel, self.store, lambda: peers, time.monotonic  # type: ignore[arg-type]
        )  # fmt: skip
        self.sizing: Sizing = self.trial.sizing
        self.sizing.on_narrow = self.news.append
        handler = prober.others[MAGIC]

        def arrive(datagram: bytes, *rest: object) -> None:
            if arrived := self.path(datagram):
                handler(arrived, *rest)  # type: ignore[arg-type]

        prober.others[MAGIC] = arrive

    async def run(self, peer: End) -> dict[str, Reading]:
        return {reading.code: reading for reading in await self.trial.run(peer.member.node)}

    async def reconcile(self) -> None:
        """As the reconciler does, when woken."""
        assert self.kernel.wake.is_set()
        self.kernel.wake.clear()
        nodes = {other.node.id: other.node for other in self.others}
        routes = (topology.narrow(nodes[peer], size, self.kernel.mtu) for peer, size in self.trial.narrow)
        self.kernel.routes = frozenset[Route]().union(*routes)


@pytest_asyncio.fixture
async def ends(mesh: Mesh, tmp_path: Path) -> AsyncIterator[tuple[End, End]]:
    a, b = (End(member, mesh.members, tmp_path) for member in mesh.members[:2])
    yield a, b


def over(most: int) -> Way:
    """A path that takes IP packets up to `most` bytes, padded to 16 as WireGuard does."""
    return lambda datagram: datagram if -(-(len(datagram) + 28) // 16) * 16 <= most else None


def flip(datagram: bytes) -> bytes:
    return datagram if len(datagram) < 600 else datagram[:-1] + bytes([datagram[-1] ^ 1])


# ---- one exchange ----------------------------------------------------------------------------------------------------


async def test_sizes_and_digests_of_both_directions(ends: tuple[End, End]) -> None:
    a, b = ends
    b.kernel.mtu = 1300
    line = a.sizing.line(b.member.node.id)
    for out, back in ((200, 200), (1420, 200), (200, 1420), (LARGEST_BYTES + 28, LARGEST_BYTES + 28)):
        assert await a.sizing.exchange(line, out, back, 2.0) == (True, True, 1300, 0, False)
    b.path = flip
    assert await a.sizing.exchange(line, 1420, 200, 2.0) == (False, True, 1300, 0, False)
    a.path = flip
    assert await a.sizing.exchange(line, 200, 1420, 2.0) == (True, False, 1300, 0, False)
    a.path = lambda datagram: datagram[:-1]
    assert await a.sizing.exchange(line, 200, 1420, 2.0) == (True, False, 1300, 0, False)
    b.path = lambda datagram: None
    assert await a.sizing.exchange(line, 200, 200, 0.05) is None
    assert not a.sizing._asked
    assert not a.member.prober.drops + b.member.prober.drops


async def test_where_only_ipv6_is_there_it_is_used(ends: tuple[End, End]) -> None:
    a, b = ends
    a.member.prober.close(socket.AF_INET)
    line = a.sizing.line(b.member.node.id)
    assert (line.sock.family, line.overhead) == (socket.AF_INET6, 48)
    assert "1420 bytes pass outbound, 1420 inbound" in (await a.run(b))[PATH_MTU].evidence
    b.path = lambda datagram: datagram if len(datagram) + 48 <= 1296 else None
    assert "over 1296 of 1420 bytes vanish outbound" in (await a.run(b))[PATH_MTU].evidence


async def test_without_a_socket_or_a_peer_there_is_a_reason(ends: tuple[End, End]) -> None:
    a, b = ends
    with pytest.raises(EnvironmentFault, match="no mesh address"):
        a.sizing.line(NodeId("nobody"))
    line = a.sizing.line(b.member.node.id)
    a.member.prober.close()
    with pytest.raises(EnvironmentFault, match="no mesh address"):
        a.sizing.line(b.member.node.id)
    with pytest.raises(EnvironmentFault, match="a packet of 200 bytes was not sent"):
        await a.sizing.exchange(line, 200, 200, 1.0)
    assert not a.sizing._asked


# ---- strangers, forgers, gluttons ------------------------------------------------------------------------------------


def ping(sender: Member, receiver: Member, back: int = HEADER_BYTES, **changes: object) -> bytes:
    head = Head(Kind.PING, sender.raw, receiver.raw, secrets.randbits(64), back, FULL, 0, 0, sizing.digest(b"x"))
    return sender.key(receiver).seal(sizing.pack(head._replace(**changes))) + b"x"


async def test_what_is_not_a_peers_own_packet_is_dropped_and_counted(mesh: Mesh, ends: tuple[End, End]) -> None:
    a, b = ends
    stranger = Mesh(1).members[0]
    third = mesh.members[2]
    good = ping(a.member, b.member)
    bent = bytearray(good)
    bent[60] ^= 1
    a.member.prober.close()
    with Attacker(a.member) as attacker:
        for datagram, reason in (
            (good[: HEADER_BYTES - 1], Drop.MALFORMED),
            (MAGIC + os.urandom(200), Drop.MALFORMED),
            (ping(stranger, b.member), Drop.STRANGER),
            (ping(a.member, third), Drop.MISDIRECTED),
            (ping(third, b.member), Drop.SOURCE),
            (bytes(bent), Drop.FORGED),
            (ping(a.member, b.member, kind=Kind.PONG, back=0), Drop.UNASKED),
        ):
            before = b.member.prober.drops[reason]
            attacker.send(datagram, b.member)
            await until(lambda r=reason, n=before: b.member.prober.drops[r] > n, f"not dropped: {reason}")  # type: ignore[misc]
        assert attacker.is_silent()
        attacker.send(good, b.member)
        assert sizing.parse(await attacker.receive()).arrived == sizing.digest(b"x")


async def test_answer_of_another_member_to_a_nonce_it_saw_is_not_taken(mesh: Mesh, ends: tuple[End, End]) -> None:
    a, b = ends
    third = mesh.members[2]
    b.path = lambda _: None
    asking = asyncio.ensure_future(a.sizing.exchange(a.sizing.line(b.member.node.id), 200, 200, 0.3))
    await until(lambda: a.sizing._asked, "asked")
    (nonce,) = a.sizing._asked
    third.prober.close()
    with Attacker(third) as attacker:
        attacker.send(ping(third, a.member, kind=Kind.PONG, back=0, nonce=nonce), a.member)
        await until(lambda: a.member.prober.drops[Drop.UNASKED] == 1, "not dropped")
    assert await asking is None


async def test_greed_is_answered_with_a_header(ends: tuple[End, End]) -> None:
    a, b = ends
    line, begun = a.sizing.line(b.member.node.id), time.monotonic()
    got, busy = 0, 0
    for _ in range(60):
        answer = await a.sizing.exchange(line, 200, LARGEST_BYTES + 28, 2.0)
        assert answer
        busy += answer.busy
        got += 0 if answer.busy else LARGEST_BYTES
    assert got <= ALLOWED_BURST + ALLOWED_PER_S * (time.monotonic() - begun)
    assert busy >= 20
    assert b.member.prober.drops == {Drop.RATE: busy}
    assert set(b.sizing._allowances) == {a.member.raw}


async def test_a_hundred_thousand_pieces_of_garbage_cost_a_counter_each(ends: tuple[End, End]) -> None:
    _, b = ends
    sock = b.member.prober.socket_for("127.0.0.1")
    assert sock
    source = str(ends[0].member.node.address4), 51871
    bits = [MAGIC + os.urandom(n) for n in range(300)]
    begun = time.process_time()
    for number in range(100_000):
        b.sizing.receive(bits[number % len(bits)], source, sock)
    assert time.process_time() - begun < 3.0
    assert sum(b.member.prober.drops.values()) == 100_000
    assert not b.sizing._allowances


# ---- the experiment --------------------------------------------------------------------------------------------------


async def test_healthy_pair(ends: tuple[End, End]) -> None:
    a, b = ends
    b.kernel.mtu = 8920
    found = await a.run(b)
    assert {reading.verdict for reading in found.values()} == {Verdict.OK}
    assert "1420 bytes pass outbound, 8920 inbound" in found[PATH_MTU].evidence
    assert "4 payloads each way" in found[INTACT].evidence
    assert not a.kernel.wake.is_set()


async def test_an_agent_that_has_made_no_pass_yet_is_no_narrow_path(ends: tuple[End, End]) -> None:
    a, b = ends
    b.kernel.mtu = 0
    with pytest.raises(UnreachableError, match="does not know its own MTU yet"):
        await a.run(b)


async def test_jumbo_frames_that_the_path_does_not_carry(ends: tuple[End, End]) -> None:
    a, b = ends
    a.kernel.mtu, b.path = 8920, over(1440)
    found = (await a.run(b))[PATH_MTU]
    assert (found.verdict, "over 1440 of 8920 bytes vanish outbound" in found.evidence) == (Verdict.FAILED, True)
    assert a.trial.narrow == ((b.member.node.id, 1440),)


async def test_narrow_outbound_then_routed_then_wide_again(ends: tuple[End, End]) -> None:
    a, b = ends
    b.path = over(1344)
    found = (await a.run(b))[PATH_MTU]
    assert (found.verdict, "over 1344 of 1420 bytes vanish outbound" in found.evidence) == (Verdict.FAILED, True)
    assert "inbound" not in found.evidence
    await a.reconcile()
    assert {route.mtu for route in a.kernel.routes} == {1344}
    a.begin()  # a restart: what was learned is on disk
    found = (await a.run(b))[PATH_MTU]
    assert found.verdict is Verdict.DEGRADED
    assert not a.kernel.wake.is_set()
    b.path = lambda datagram: datagram
    assert (await a.run(b))[PATH_MTU].verdict is Verdict.OK
    await a.reconcile()
    assert not a.kernel.routes


async def test_narrow_inbound_is_told_to_the_peer_and_degraded_when_it_keeps_to_it(ends: tuple[End, End]) -> None:
    a, b = ends
    a.path = over(1344)
    found = (await a.run(b))[PATH_MTU]
    assert (found.verdict, "over 1344 of 1420 bytes vanish inbound" in found.evidence) == (Verdict.FAILED, True)
    assert b.news == [a.member.node.id]
    assert "over 1344 of 1420 bytes vanish outbound" in (await b.run(a))[PATH_MTU].evidence
    assert (await a.run(b))[PATH_MTU].verdict is Verdict.FAILED, "the peer's route is not in force yet"
    await b.reconcile()
    assert (await a.run(b))[PATH_MTU].verdict is Verdict.DEGRADED
    told = len(b.news)
    assert (await a.run(b))[PATH_MTU].verdict is Verdict.DEGRADED
    assert len(b.news) == told, "who keeps to it is not told again"
    a.path = lambda datagram: datagram
    assert (await a.run(b))[PATH_MTU].verdict is Verdict.OK


async def test_altered_payload_names_its_direction(ends: tuple[End, End]) -> None:
    a, b = ends
    b.path = flip
    found = await a.run(b)
    assert found[PATH_MTU].verdict is Verdict.OK
    assert found[INTACT].verdict is Verdict.FAILED
    assert "3 of 4 payloads altered outbound, in packets of 640 to 1420 bytes" in found[INTACT].evidence
    assert "inbound" not in found[INTACT].evidence


async def test_where_small_packets_are_lost_too_nothing_is_said(ends: tuple[End, End]) -> None:
    a, b = ends
    heard = 0

    def dying(datagram: bytes) -> bytes | None:
        nonlocal heard
        heard += 1
        return datagram if heard <= 2 else None

    b.path = dying
    found = await a.run(b)
    assert found[PATH_MTU].verdict is Verdict.UNKNOWN
    assert "small packets are lost too" in found[PATH_MTU].evidence
    assert a.trial.narrow == ()
    with pytest.raises(UnreachableError, match="no size echo is answered"):
        await a.run(b)


async def test_an_allowance_that_ends_during_the_search_is_no_narrow_path(
    ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = ends
    monkeypatch.setattr("meshctl.agent.sizing.ALLOWED_BURST", 9000.0)
    monkeypatch.setattr("meshctl.agent.sizing.ALLOWED_PER_S", 0.0)
    a.path = over(1344)
    with pytest.raises(UnreachableError, match="answers no more"):
        await a.run(b)
    assert a.trial.narrow == ()


async def test_random_loss_is_not_a_narrow_path(ends: tuple[End, End]) -> None:
    a, b = ends
    dice = iter(b"\0\1\1\0\1\1\1\0\1\1" * 200)
    b.path = lambda datagram: datagram if next(dice) else None  # three of ten
    for _ in range(3):
        assert (await a.run(b))[PATH_MTU].verdict is Verdict.OK
    assert a.trial.narrow == ()
