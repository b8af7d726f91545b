"""Pre-shared keys under attack, on real sockets: strangers, forgeries, replays, floods; what a peer may make us do, and
that a flood costs a counter (NET-6, OPS-4).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio

from meshctl.agent.psk import PresharedKeys
from meshctl.agent.psk_exchange import Ports
from meshctl.agent.responder import Drop
from meshctl.agent.store import Store
from meshctl.crypto import kem
from meshctl.eventlog import Unheard
from meshctl.mesh import psk_packets
from meshctl.mesh.model import NodeId
from meshctl.mesh.psk_packets import MAGIC, Head, Kind, Letter, halves
from tests.harness.probing import MESH, Attacker, Member, Mesh, dropped, mesh, until  # noqa: F401 - a fixture

TAG = bytes(16)


class Ground:
    """Three members; `a` follows `b`, `a` runs the exchange on a real store, `b` is whoever the test plays."""

    def __init__(self, members: list[Member], directory: Path) -> None:
        self.b, self.a, self.c = sorted(members, key=lambda member: member.raw)
        self.b.prober.close()
        self.store, self.sequence = Store(directory), 0
        self.store.prepare()
        self.posted: list[Letter] = []
        self.speaker = PresharedKeys(self.a.node.id, self.store, 86400.0)
        passed = asyncio.Event()
        wake = SimpleNamespace(set=lambda: asyncio.get_running_loop().call_soon(lambda: (passed.set(), passed.clear())))
        reconciler: Any = SimpleNamespace(  # a device that has whatever it is told
            wake=wake, passed=passed, holds=lambda *_: True, outcome=SimpleNamespace(sessions={}, revision=1)
        )
        peers, me = [self.b.node, self.c.node], SimpleNamespace(id=MESH)
        ports = Ports(
            self.store, self.a.prober, reconciler, lambda: peers, lambda: me,  # type: ignore[arg-type,return-value]
            Unheard(), self.posted.append, monotonic=self.a.clock.monotonic,
        )  # fmt: skip
        self.speaker.connect(ports)

    def head(self, kind: Kind, version: int = 0, **changes: Any) -> Head:
        self.sequence += 1
        head = Head(kind, 0, False, self.b.raw, self.a.raw, self.sequence, 0, bytes(8), 0, 0, version)
        return head._replace(**changes)

    def sealed(self, head: Head, body: bytes = b"") -> bytes:
        return self.b.key(self.a).seal(psk_packets.pack(head, body))

    def offer(self, version: int = 1, public: bytes | None = None) -> list[bytes]:
        public = kem.Offer().public if public is None else public
        exchange = kem.exchange_of(public)
        return [
            self.sealed(self.head(Kind.OFFER, version, part=part, exchange=exchange), body)
            for part, body in enumerate(halves(public))
        ]

    @property
    def keys(self) -> int:
        """On disk."""
        return sum(len(bunch.keys) for bunch in self.store.bunches().values())


@pytest_asyncio.fixture
async def ground(mesh: Mesh, tmp_path: Path) -> AsyncIterator[Ground]:  # noqa: F811
    made = Ground(mesh.members, tmp_path)
    await made.speaker._look()
    yield made
    made.speaker._exchange.close()


Lie = Callable[[Ground], bytes]


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (lambda g: psk_packets.pack(g.head(Kind.STATE)) + TAG, Drop.FORGED),
        (lambda g: g.sealed(g.head(Kind.STATE, sender=bytes(15))), Drop.STRANGER),
        (lambda g: g.sealed(g.head(Kind.STATE, receiver=g.c.raw)), Drop.MISDIRECTED),
        (lambda g: g.c.key(g.a).seal(psk_packets.pack(g.head(Kind.STATE, sender=g.c.raw))), Drop.SOURCE),
        (lambda g: g.sealed(g.head(Kind.STATE)) + bytes(1), Drop.MALFORMED),
        (lambda g: MAGIC + bytes(8000), Drop.MALFORMED),
        (lambda g: g.sealed(g.head(Kind.OFFER, 1, part=2), bytes(592)), Drop.MALFORMED),
        (lambda g: g.sealed(g.head(Kind.SET)), Drop.MALFORMED),
        (lambda g: g.sealed(g.head(Kind.STATE, now=3)), Drop.MALFORMED),
    ],
    ids=[
        "forged", "of a stranger", "misdirected", "from another's address", "too long", "huge", "third half",
        "to set nothing", "a version without a mark",
    ],
)  # fmt: skip
async def test_what_is_not_a_peers_is_dropped_and_files_nothing(ground: Ground, lie: Lie, reason: Drop) -> None:
    with Attacker(ground.b) as attacker:
        attacker.send(lie(ground), ground.a)
        await dropped(ground.a, reason)
        assert attacker.is_silent()
    assert not ground.keys
    assert not ground.speaker._talk.heard


async def agree(ground: Ground, attacker: Attacker) -> None:
    """As a genuine leader does it."""
    offer, found = kem.Offer(), dict[int, bytes]()
    for _ in range(5):  # a packet finds no room behind a flood
        for datagram in ground.offer(1, offer.public):
            attacker.send(datagram, ground.a)
        with contextlib.suppress(AssertionError):
            await until(lambda: not attacker.is_silent(), "an answer comes", 1.0)
            break
    while len(found) < 2:
        await until(lambda: not attacker.is_silent(), "the other half comes")
        head, body = psk_packets.parse(attacker.inbox.pop())
        found |= {head.part: body} if head.kind is Kind.ANSWER else {}
    ciphertext = found[0] + found[1]
    key = kem.preshared_key(
        offer.open(ciphertext), offer.public, ciphertext, mesh=MESH, leader=ground.b.raw, follower=ground.a.raw,
        version=1,
    )  # fmt: skip
    assert not ground.speaker.keys  # on file, not in force
    attacker.send(ground.sealed(ground.head(Kind.SET, 1, exchange=kem.mark(key, ground.b.raw, 1))), ground.a)
    await until(lambda: ground.speaker.keys.get(ground.b.node.id) == key, "it is set")


@pytest.fixture(autouse=True)
def whole_packets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attacker's sockets read more than an echo."""

    def is_silent(self: Attacker) -> bool:
        for sock in self.socks:
            try:
                self.inbox.append(sock.recv(2048))
            except BlockingIOError:
                pass
        return not self.inbox

    monkeypatch.setattr(Attacker, "is_silent", is_silent)


async def test_a_leader_is_answered_its_key_filed_and_set_when_it_shows_that_it_has_it(ground: Ground) -> None:
    with Attacker(ground.b) as attacker:
        await agree(ground, attacker)


async def test_a_set_without_the_key_sets_nothing(ground: Ground) -> None:
    with Attacker(ground.b) as attacker:
        for datagram in ground.offer():
            attacker.send(datagram, ground.a)
        await until(lambda: not attacker.is_silent(), "it is answered")
        assert ground.keys == 1
        attacker.send(ground.sealed(ground.head(Kind.SET, 1, exchange=b"guessed!")), ground.a)
        await until(lambda: ground.keys == 0, "the two have different keys under one number: it is given up")
        assert not ground.speaker.keys


async def test_replayed_packets_are_dropped(ground: Ground) -> None:
    with Attacker(ground.b) as attacker:
        datagram = ground.sealed(ground.head(Kind.STATE, ask=True))
        for _ in range(5):
            attacker.send(datagram, ground.a)
        await until(lambda: ground.a.prober.drops[Drop.REPLAYED] == 4, f"{ground.a.prober.drops}")


async def test_a_coordinator_that_alters_or_misdirects_letters_or_writes_its_own_files_nothing(ground: Ground) -> None:
    ground.a.clock.now += 1000  # the tunnel was silent for so long
    genuine = ground.offer()
    for number, letter in enumerate(
        (
            Letter(ground.b.node.id, bytes([*genuine[0][:-1], genuine[0][-1] ^ 1])),
            Letter(ground.b.node.id, psk_packets.pack(ground.head(Kind.STATE, ask=True)) + TAG),
            Letter(ground.c.node.id, genuine[0]),
            Letter(NodeId("a" * 24), genuine[0]),
            Letter(ground.b.node.id, b""),
            Letter(ground.b.node.id, bytes(8000)),
        ),
        1,
    ):
        ground.speaker.take(letter)
        assert ground.a.prober.drops.total() == number
    assert not ground.posted
    assert not ground.keys
    for datagram in genuine:
        ground.speaker.take(Letter(ground.b.node.id, datagram))
    await until(lambda: len(ground.posted) == 2, "the genuine one is answered, the same way")
    assert ground.keys == 1


async def test_a_letter_is_not_read_while_the_tunnel_carries_packets(ground: Ground) -> None:
    ground.a.prober.is_proven = lambda _: True  # type: ignore[method-assign]
    for datagram in ground.offer():
        ground.speaker.take(Letter(ground.b.node.id, datagram))
    assert not ground.keys
    assert not ground.posted
    assert ground.a.prober.drops[Drop.UNASKED] == 2


async def test_an_offer_of_bytes_that_are_no_key_is_counted(ground: Ground) -> None:
    with Attacker(ground.b) as attacker:
        for datagram in ground.offer(1, b"\xff" * 1184):
            attacker.send(datagram, ground.a)
        await until(lambda: ground.a.prober.drops[Drop.MALFORMED] == 1, f"{ground.a.prober.drops}")
    assert not ground.keys


async def test_a_peer_that_offers_on_and_on_makes_one_write_at_a_time_and_no_pile(ground: Ground) -> None:
    with Attacker(ground.b) as attacker:
        for version in range(1, 60):
            for datagram in ground.offer(version):
                attacker.send(datagram, ground.a)
            ground.a.clock.now += 0.05
            await asyncio.sleep(0)
        await until(lambda: ground.a.prober.drops[Drop.RATE] >= 20, f"{ground.a.prober.drops}")
        await asyncio.gather(*ground.speaker._exchange._tasks)
        assert ground.keys <= 1  # what was never acknowledged makes room
        assert len(ground.speaker._talk._halves) <= 1


async def test_a_flood_costs_a_counter(ground: Ground) -> None:
    begun = time.process_time()
    with Attacker(ground.b) as attacker:
        await attacker.flood(ground.a, MAGIC, (0, 10, 85, 677, 900))
        await agree(ground, attacker)
    assert time.process_time() - begun < 5
