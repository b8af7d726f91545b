"""Probers in bad weather: silence, loss, wrong clocks, vanishing addresses (NET-7)."""

from __future__ import annotations

import asyncio
import os
import subprocess
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest

from meshctl.agent.prober import Prober
from meshctl.agent.responder import Drop
from meshctl.mesh import judges, statement
from meshctl.mesh.catalogue import Verdict
from meshctl.mesh.model import Endpoint, Roster
from meshctl.mesh.statement import Statement
from tests.harness.netns import Namespace
from tests.harness.probing import LOST_S, MESH, Member, Mesh, dropped, until


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
    assert seen == [Verdict.OK, Verdict.DEGRADED, Verdict.FAILED], "one of the first few is chance"
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
        return judges.clock(None, offsets, now=0).verdict

    assert clock_of(b) is Verdict.FAILED
    assert judges.clock(0.0, [offset, 0.0, 0.0], now=0).verdict is Verdict.OK


async def test_late_answer_counts_as_lost(mesh: Mesh) -> None:
    a, b, _ = mesh.members
    a.prober.turn()
    a.clock.now += LOST_S
    await until(lambda: a.prober.drops[Drop.LATE] == 2, "both answers are late")
    a.prober.expire(a.clock.now)
    assert (a.prober.echo(b.node.id).missed, a.prober.echo(b.node.id).received) == (1, 0)


async def test_restarted_peer_is_answered_at_once(mesh: Mesh) -> None:
    a, b, _ = mesh.members
    await b.round(a)
    restart(mesh, b, off_s=1.0)
    await b.round(a)
    assert not a.prober.drops


async def test_clock_was_set_back_while_the_peer_restarted_its_second_ping_is_answered(mesh: Mesh) -> None:
    a, b, _ = mesh.members
    await b.round(a)
    restart(mesh, b, off_s=-5 * 3600.0)
    b.prober.kick([a.node.id])
    await dropped(a, Drop.REPLAYED)
    await b.round(a)


def restart(mesh: Mesh, member: Member, *, off_s: float) -> None:
    member.prober.close()
    member.clock.off_s = off_s
    member.prober = member.boot()
    mesh.share()
    member.prober.bind()


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
@pytest.mark.skipif(os.geteuid() != 0, reason="absent: root, to make a network namespace")
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
