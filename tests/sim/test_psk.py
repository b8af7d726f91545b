"""Two ends that agree on pre-shared keys in any weather: packets lost, doubled, overtaken; either agent killed at any
point, disks full, handshakes that fail. They always keep a key in common, and end with the same, proven (NET-6).
"""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshctl.mesh.catalogue import Verdict
from meshctl.mesh.model import NodeId
from meshctl.mesh.psk import Bunch
from meshctl.mesh.psk_packets import Kind, parse
from tests.harness.psk_world import End, World


async def agreed_world(period_s: float = 86400.0) -> World:
    world = World(period_s)
    await world.run(150)
    assert world.agreed(), (world.a.bunch(world.b), world.b.bunch(world.a))
    return world


async def test_a_pair_agrees_at_once_and_the_next_handshake_proves_it() -> None:
    world = World()
    await world.run(12)
    assert world.a.device == world.b.device is not None
    assert not world.agreed()
    await world.run(140)
    assert world.agreed()
    assert [len(end.bunch(world.other(end)).keys) for end in (world.a, world.b)] == [1, 1]
    writes = world.a.disk.writes, world.b.disk.writes
    await world.run(600)
    assert (world.a.disk.writes, world.b.disk.writes) == writes  # at rest


async def test_a_key_as_old_as_it_may_be_is_renewed_and_an_old_one_forgotten() -> None:
    world = await agreed_world(period_s=200.0)
    await world.comes(lambda: world.agreed(least=4), 1500)


def unheard(world: World) -> None:
    """The leader does not hear that the follower has set a key."""
    follower = world.b.raw

    def weather(datagram: bytes) -> int:
        head, _ = parse(datagram)
        return int(head.sender != follower or head.kind is Kind.ANSWER)

    world.weather = weather


async def parted() -> World:
    """The follower has set version 2, the leader has it on file alone."""
    world = await agreed_world(period_s=200.0)
    unheard(world)
    while world.b.bunch(world.a).now == 1:
        await world.run(1)
    await world.run(5)
    one, two = world.a.bunch(world.b), world.b.bunch(world.a)
    assert (one.now, one.next, two.now) == (1, 2, 2)
    return world


async def test_killed_between_the_two_sets_and_back_at_once() -> None:
    world = await parted()
    world.a.kill()
    world.weather = lambda _: 1
    world.boot(world.a)
    await world.comes(lambda: world.agreed(least=2), 400)


async def test_killed_between_the_two_sets_and_away_until_sessions_end() -> None:
    world = await parted()
    world.a.kill()
    await world.run(150)  # a handshake was due, and the follower went back to what was proven
    assert world.b.bunch(world.a).now == 1
    assert world.up
    world.weather, old = (lambda _: 1), world.a.device
    await world.run(120)
    assert world.b.device == old
    world.boot(world.a)
    await world.comes(lambda: world.agreed(least=2), 400)


async def test_a_first_version_that_fails_gives_way_to_none_but_a_proven_one_never_does() -> None:
    world = World()
    await world.run(1)  # they have asked each other how they stand
    unheard(world)
    await world.run(20)
    assert world.b.device is not None
    assert world.a.device is None
    world.a.kill()
    await world.run(300)
    assert world.up
    assert world.b.device is None
    world.weather = lambda _: 1
    world.boot(world.a)
    await world.run(200)
    assert world.agreed()
    world.handshakes = False
    for _ in range(40):
        await world.run(50)
        world.check()


async def test_a_machine_restored_from_a_backup_agrees_anew_while_the_tunnel_stands() -> None:
    world = await agreed_world(period_s=200.0)
    backup = dict(world.a.disk.bunches)
    await world.comes(lambda: world.agreed(least=2), 500)
    before = world.b.bunch(world.a).now
    world.a.kill()
    world.a.disk.bunches = backup
    world.boot(world.a)
    await world.comes(lambda: world.agreed(least=before + 1), 500)


def rebooted(world: World, end: End, backup: dict[NodeId, Bunch]) -> None:
    """With what it had on disk some time ago, and without its sessions."""
    end.kill()
    end.disk.bunches = dict(backup)
    world.session_at = float("-inf")
    end.handshake_at = 0.0
    world.boot(end)


async def test_a_machine_that_lost_its_keys_stays_apart_without_a_coordinator_and_none_is_never_tried() -> None:
    world = await agreed_world()
    rebooted(world, world.a, {})
    for _ in range(10):
        await world.run(60)
        assert world.b.device is not None
    assert not world.up
    assert world.posted < 20, "six tries, then one in two minutes"
    world.coordinator = True
    await world.comes(lambda: world.up, 150)
    await world.comes(lambda: world.agreed(least=2), 300)


@pytest.mark.parametrize("who", ["the leader", "the follower"])
@pytest.mark.parametrize("kept", ["nothing", "old keys"])
async def test_a_machine_restored_from_a_backup_agrees_by_letter_once_sessions_have_ended(who: str, kept: str) -> None:
    world = await agreed_world(period_s=400.0)
    end = world.a if who == "the leader" else world.b
    backup = dict(end.disk.bunches) if kept == "old keys" else {}
    await world.comes(lambda: world.agreed(least=2), 900)
    assert not world.posted, "nobody writes while the tunnel stands"
    world.coordinator = True
    rebooted(world, end, backup)
    before = world.other(end).bunch(end).now
    await world.comes(lambda: world.up, 60)
    await world.comes(lambda: world.agreed(least=before + 1), 300)
    written = world.posted
    await world.run(100)
    assert world.posted == written


async def test_letters_lost_doubled_and_a_coordinator_away_for_a_while_only_take_longer() -> None:
    chance = random.Random(7)
    world = await agreed_world()
    world.weather = lambda _: chance.choices((0, 1, 2), (3, 6, 1))[0]
    rebooted(world, world.b, {})
    for _ in range(20):
        world.coordinator = chance.random() < 0.5
        await world.run(30)
    world.coordinator = True
    await world.comes(world.agreed, 900)


async def test_a_full_disk_acknowledges_nothing_sets_nothing_and_is_tried_again() -> None:
    for end_of in (lambda w: w.a, lambda w: w.b):
        world = World()
        end: End = end_of(world)
        end.disk.full = True
        await world.run(60)
        assert world.a.device is None
        assert end.device is None
        end.disk.full = False
        await world.run(160)
        assert world.agreed()


async def test_an_interface_that_takes_no_key_for_a_while_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshctl.agent.psk_exchange.APPLIED_WITHIN_S", 0.01)
    world = World()
    world.b.unset = True
    await world.run(15)
    assert world.a.device is None
    world.b.unset = False
    await world.run(160)
    assert world.agreed()


async def test_a_peer_of_an_earlier_release_is_unknown_rarely_asked_and_agrees_once_it_is_upgraded() -> None:
    world = World()
    world.b.kill()
    said: list[Kind] = []
    world.weather = lambda datagram: said.append(parse(datagram)[0].kind) or 1  # type: ignore[func-returns-value]
    await world.run(150)
    assert world.a.agent
    (reading,) = world.a.agent.readings.values()
    assert reading.verdict is Verdict.UNKNOWN
    assert "as of an earlier release" in reading.evidence
    assert set(said) == {Kind.STATE}
    assert len(said) <= 8
    world.boot(world.b)
    await world.run(15)
    assert world.a.device == world.b.device is not None


async def _storm(seed: int) -> None:
    chance = random.Random(seed)
    world = await agreed_world(period_s=200.0)
    world.weather = lambda _: chance.choices((0, 1, 2), (3, 6, 1))[0]
    world.coordinator = chance.random() < 0.5
    for _ in range(60):
        match chance.randrange(8):
            case 0:
                end = chance.choice((world.a, world.b))
                end.kill()
                if chance.random() < 0.5:
                    world.check()
                    await world.run(chance.choice((1, 20, 200)))
                world.boot(end)
            case 1:
                chance.choice((world.a, world.b)).disk.full = chance.random() < 0.3
            case 2:
                world.handshakes = chance.random() < 0.7
            case _:
                for _ in range(chance.choice((1, 3, 15, 60))):
                    await world.tick()
                    world.deliver(chance.randrange)
                    if chance.random() < 0.8:  # else a kill may come in the middle
                        await world.settle()
        world.check()
    for end in (world.a, world.b):
        end.disk.full = False
        if end.agent is None:
            world.boot(end)
    world.weather, world.handshakes = (lambda _: 1), True
    for _ in range(120):
        await world.run(30)
        world.check()
        if world.agreed():
            return
    raise AssertionError((world.a.bunch(world.b), world.b.bunch(world.a), world.up))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32))
def test_any_weather_leaves_a_key_in_common_and_ends_in_agreement(seed: int) -> None:
    asyncio.run(_storm(seed))
