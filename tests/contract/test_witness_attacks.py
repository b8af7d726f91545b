"""Witnesses under attack: strangers, forgeries, floods; a tap that is held open no longer than somebody is entitled to
(NET-7, OPS-4).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable
from ipaddress import ip_network

import pytest
import pytest_asyncio

from meshctl.agent import witness as agent
from meshctl.agent.responder import Drop
from meshctl.agent.tap import Tap
from meshctl.agent.witness import Witness
from meshctl.mesh import witness
from meshctl.mesh.witness import Head, Kind, Report, Sight, Standing
from tests.harness.probing import Attacker, Member, Mesh, dropped, mesh, until  # noqa: F401 - a fixture

pytestmark = pytest.mark.root
TAG = bytes(16)


class Ground:
    """Two members; a has a witness with a real tap, b is whoever the test plays."""

    def __init__(self, members: list[Member]) -> None:
        self.a, self.b, self.c = members
        self.b.prober.close()
        self.tap = Tap("lo", 51820, lambda: (ip_network("10.77.0.0/16"),))
        self.speaker = Witness(
            self.a.prober, self.tap, self.a.node.id, lambda _: None, monotonic=self.a.clock.monotonic
        )
        self.experiment = secrets.token_bytes(8)

    def head(self, kind: Kind, number: int = 0, **changes: object) -> Head:
        head = Head(kind, Standing.OPEN, self.b.raw, self.a.raw, self.experiment, number)
        return head._replace(**changes)

    def sealed(self, kind: Kind, number: int = 0, **changes: object) -> bytes:
        return self.b.key(self.a).seal(witness.pack(self.head(kind, number, **changes)))

    async def opened(self, attacker: Attacker) -> None:
        attacker.send(self.sealed(Kind.ASK), self.a)
        head, _ = witness.parse(await attacker.receive())
        assert (head.kind, head.standing, head.experiment) == (Kind.READY, Standing.OPEN, self.experiment)

    async def report(self, attacker: Attacker, *digests: bytes) -> Report:
        attacker.send(self.b.key(self.a).seal(witness.pack_query(self.head(Kind.QUERY), digests)), self.a)
        return witness.report_of(await attacker.receive())


@pytest_asyncio.fixture
async def ground(mesh: Mesh) -> AsyncIterator[Ground]:  # noqa: F811
    made = Ground(mesh.members)
    yield made
    for watch in list(made.speaker._watches.items()):
        made.speaker._end(*watch)


Lie = Callable[[Ground], bytes]


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (lambda g: witness.pack(g.head(Kind.ASK)) + TAG, Drop.FORGED),
        (lambda g: g.sealed(Kind.ASK, sender=bytes(15)), Drop.STRANGER),
        (lambda g: g.sealed(Kind.ASK, receiver=g.c.raw), Drop.MISDIRECTED),
        (lambda g: g.c.key(g.a).seal(witness.pack(g.head(Kind.ASK, sender=g.c.raw))), Drop.SOURCE),
        (lambda g: g.sealed(Kind.ASK) + bytes(1), Drop.MALFORMED),
        (lambda g: witness.MAGIC + bytes(8000), Drop.MALFORMED),
        (lambda g: witness.pack(g.head(Kind.CANARY)) + bytes(900), Drop.FORGED),
    ],
    ids=["forged", "of a stranger", "misdirected", "from another's address", "too long", "huge", "forged canary"],
)
async def test_what_is_not_a_peers_is_dropped_and_opens_nothing(ground: Ground, lie: Lie, reason: Drop) -> None:
    with Attacker(ground.b) as attacker:
        attacker.send(lie(ground), ground.a)
        await dropped(ground.a, reason)
        assert attacker.is_silent()
    assert not ground.tap.is_open


async def test_a_peer_is_answered_with_no_more_than_it_sent_and_closes_what_it_opened(ground: Ground) -> None:
    with Attacker(ground.b) as attacker:
        await ground.opened(attacker)
        assert ground.tap.is_open
        for _ in range(2):
            attacker.send(ground.sealed(Kind.CANARY, 5) + witness.padding(400), ground.a)
        attacker.send(ground.sealed(Kind.CANARY, 7, experiment=bytes(8)), ground.a)  # of no experiment that runs
        report = await ground.report(attacker, bytes(16))
        assert (report.delivered, report.sights[0]) == ({5: 2}, Sight())
        attacker.send(ground.sealed(Kind.DONE), ground.a)
        await until(lambda: not ground.tap.is_open, "it closes")


async def test_a_peer_that_asks_on_and_on_is_told_that_it_is_enough(ground: Ground) -> None:
    with Attacker(ground.b) as attacker:
        await ground.opened(attacker)
        attacker.send(ground.sealed(Kind.ASK, experiment=bytes(8)), ground.a)
        assert witness.parse(await attacker.receive())[0].standing is Standing.BUSY  # another one, too soon
        for _ in range(60):
            attacker.send(ground.sealed(Kind.ASK), ground.a)
        await until(lambda: ground.a.prober.drops[Drop.RATE] >= 10, "no answer beyond those an experiment needs")
        ground.a.clock.now += 1.0
        ground.experiment = secrets.token_bytes(8)
        attacker.inbox.clear()
        while not attacker.is_silent():
            attacker.inbox.clear()
        await ground.opened(attacker)  # ends the one before
        assert len(ground.speaker._watches) == 1


async def test_a_peer_that_falls_silent_leaves_no_tap_open(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "WATCHED_S", 0.1)
    with Attacker(ground.b) as attacker:
        await ground.opened(attacker)
        await until(lambda: not ground.tap.is_open, "it closes by itself")


async def test_a_flood_costs_a_counter(ground: Ground) -> None:
    """Garbage under the magic; the loop goes on, and a peer is answered in between."""
    begun = time.process_time()
    with Attacker(ground.b) as attacker:
        await attacker.flood(ground.a, witness.MAGIC, (0, 10, 60, 188, 900))
        await ground.opened(attacker)
    assert time.process_time() - begun < 5
