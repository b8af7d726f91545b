"""One suite for every Device: the fake, wireguard-go in a namespace, and the kernel's WireGuard where there is one.

NET-1 (same behaviour, same tests), NET-3 (nothing is reset that did not need to change), NET-4 (what stays when we go).
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Interface, ip_address
from pathlib import Path

import pytest

from meshctl.agent.device import open_device
from meshctl.agent.userspace import socket_path
from meshctl.errors import EnvironmentFault, UsageError
from meshctl.mesh.interface import Peer, Route, network
from meshctl.mesh.keys import PresharedKey, PublicKey
from meshctl.mesh.model import Endpoint
from meshctl.mesh.plan import AddAddress, AddPeer, AddRoute, RestartPeer, SetListenPort, SetUp, UpdatePeer, diff
from tests.harness.fake_kernel import public
from tests.harness.ground import (
    OWN,
    PREFIXES,
    FakeGround,
    Ground,
    RealGround,
    desired,
    drained,
    peer,
    real_ground,
    settle,
    until,
)

root = pytest.mark.root
REAL = [pytest.param("userspace", marks=root), pytest.param("kernel", marks=root)]


@pytest.fixture(params=["fake", *REAL])
def ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    if request.param == "fake":
        yield FakeGround()
    else:
        yield from real_ground(request.param)


@pytest.fixture(params=REAL)
def real(request: pytest.FixtureRequest) -> Iterator[RealGround]:
    yield from real_ground(request.param)


async def test_from_nothing_in_one_pass(ground: Ground) -> None:
    device = await ground.open()
    assert (await device.observe()).interface is None
    seen = (await settle(device, desired(ground.name, peer(1), peer(2)))).interface
    assert seen == desired(ground.name, peer(1), peer(2))
    await device.destroy()
    assert ground.left_behind() == (0, False)


async def test_nothing_changed_is_the_same_answer(ground: Ground) -> None:
    device = await ground.open()
    first = await settle(device, desired(ground.name, peer(1)))
    again = await device.observe()
    assert again.interface == first.interface
    assert again.sessions == first.sessions
    await device.destroy()


async def test_a_thousand_peers_in_one_pass(ground: Ground) -> None:
    device = await ground.open()
    seen = await settle(device, desired(ground.name, *map(peer, range(1000))))
    assert seen.interface
    assert len(seen.interface.peers) == len(seen.sessions) == 1000
    await device.destroy()


async def test_peers_come_change_and_go_while_another_is_talking(ground: Ground) -> None:
    device = await ground.open()
    await settle(device, desired(ground.name, peer(1)))
    far = await ground.answering(device)
    before = (await device.observe()).sessions[far.public_key]
    alive = frozenset({far.public_key})
    changed = replace(peer(1), allowed_ips=(network("10.77.200.1/32"), *peer(1).allowed_ips), keepalive_s=25)
    for peers in ((far, peer(1), peer(2)), (far, changed, peer(2)), (far, peer(2)), (far,)):
        await settle(device, desired(ground.name, *peers), alive)
        after = (await device.observe()).sessions[far.public_key]
        assert after.last_handshake == before.last_handshake
        assert after.rx_bytes >= before.rx_bytes > 0
    await device.destroy()


async def test_two_peers_swap_their_addresses(ground: Ground) -> None:
    device = await ground.open()
    one, two = peer(1), peer(2)
    await settle(device, desired(ground.name, one, two))
    swapped = replace(one, allowed_ips=two.allowed_ips), replace(two, allowed_ips=one.allowed_ips)
    await settle(device, desired(ground.name, *swapped))
    await device.destroy()


async def test_preshared_key_comes_changes_and_goes(ground: Ground) -> None:
    device = await ground.open()
    for psk in (PresharedKey(b"p" * 32), PresharedKey(b"q" * 32), None):
        seen = (await settle(device, desired(ground.name, replace(peer(1), preshared_key=psk)))).interface
        assert seen
        assert seen.peers[peer(1).public_key].preshared_key == psk
    await device.destroy()


async def test_endpoints_of_both_families(ground: Ground) -> None:
    device = await ground.open()
    for text in ("192.0.2.9:4500", "[2001:db8::9]:4501"):
        seen = await settle(device, desired(ground.name, replace(peer(1), endpoint=Endpoint.parse(text))))
        assert str(seen.sessions[peer(1).public_key].endpoint) == text
    await device.destroy()


async def test_a_person_with_wg_is_seen_and_repaired(ground: Ground) -> None:
    device = await ground.open()
    want = desired(ground.name, peer(1), peer(2))
    await settle(device, want)
    stranger = PublicKey(b"s" * 32)
    ground.allow(stranger, peer(1).allowed_ips)
    ground.forget(peer(2).public_key)
    steps = diff((await device.observe()).interface, want)
    assert {type(step).__name__ for step in steps} == {"AddPeer", "UpdatePeer", "RemovePeer"}
    await settle(device, want)
    await device.destroy()


async def test_a_person_claims_a_network_around_others(ground: Ground) -> None:
    device = await ground.open()
    want = desired(ground.name, peer(1), peer(2))
    await settle(device, want)
    ground.allow(PublicKey(b"s" * 32), (network("10.77.0.0/16"),))
    ground.allow(peer(1).public_key, (*peer(1).allowed_ips, network("10.64.0.0/10")))
    await settle(device, want)
    await device.destroy()


async def test_updating_an_absent_peer_does_not_make_one(ground: Ground) -> None:
    device = await ground.open()
    want = desired(ground.name)
    await settle(device, want)
    await device.apply_all([UpdatePeer(peer(1), ("allowed_ips",))])
    assert diff((await device.observe()).interface, want) == ()
    await device.destroy()


async def test_own_key_is_no_peer(ground: Ground) -> None:
    device = await ground.open()
    want = desired(ground.name)
    await settle(device, want)
    await device.apply_all([AddPeer(Peer(public(OWN), (network("10.77.3.3/32"),)))])
    assert diff((await device.observe()).interface, want) == ()
    await device.destroy()


async def test_interface_deleted_fails_closed_and_comes_back(ground: Ground) -> None:
    device = await ground.open()
    want = desired(ground.name, peer(1))
    await settle(device, want)
    ground.delete_link()
    assert (await device.observe()).interface is None
    assert ground.left_behind() == (2, True)
    await settle(device, want)
    await device.destroy()


async def test_link_taken_down_loses_routes_and_gets_them_back(ground: Ground) -> None:
    device = await ground.open()
    want = desired(ground.name, peer(1))
    await settle(device, want)
    ground.down()
    kinds = {type(step) for step in diff((await device.observe()).interface, want)}
    assert {SetUp, AddRoute, AddAddress} == kinds
    await settle(device, want)
    await device.destroy()


async def test_guard_flushed_is_announced_and_repaired(ground: Ground) -> None:
    device = await ground.open()
    want = desired(ground.name)
    await settle(device, want)
    await drained(device)
    ground.flush_guard()
    async with asyncio.timeout(5):
        await device.changed()
    assert [str(s) for s in diff((await device.observe()).interface, want)] == [
        f"guard 10.77.0.0/16, fd77::/64: only {ground.name} may carry them"
    ]
    await settle(device, want)
    await device.destroy()


async def test_mtu_port_and_addresses_change_in_place(ground: Ground) -> None:
    device = await ground.open()
    await settle(device, desired(ground.name, peer(1)))
    for want in (
        desired(ground.name, peer(1), port=51997, mtu=1300),
        replace(desired(ground.name, peer(1)), addresses=frozenset({IPv4Interface("10.77.0.7/32")})),
        replace(desired(ground.name, peer(1)), routes=frozenset({Route(PREFIXES[0])}), guarded=frozenset(PREFIXES[:1])),
    ):
        assert (await settle(device, want)).interface == want
    await device.destroy()


async def test_a_narrow_peer_has_routes_of_its_own_with_their_mtu(ground: Ground) -> None:
    device = await ground.open()
    plain = desired(ground.name, peer(1))
    await settle(device, plain)
    there = [network("10.77.1.2/32"), network("fd77::101/128")]
    for mtus in ((1300, 1300), (576, 1280), (1364, 1364)):
        narrow = frozenset(Route(prefix, mtu=mtu) for prefix, mtu in zip(there, mtus, strict=True))
        want = replace(plain, routes=plain.routes | narrow)
        steps = diff((await device.observe()).interface, want)
        assert [str(step) for step in steps] == [
            f"add route {prefix} for packets up to {mtu} bytes" for prefix, mtu in zip(there, mtus, strict=True)
        ]
        assert (await settle(device, want)).interface == want
    assert [str(step) for step in diff((await device.observe()).interface, plain)] == [
        f"remove route {prefix}" for prefix in there
    ]
    assert (await settle(device, plain)).interface == plain
    await device.destroy()


async def test_a_route_mtu_is_locked_and_holds_for_its_peer_alone(real: RealGround) -> None:
    device = await real.open()
    plain = desired(real.name, peer(1))
    await settle(device, replace(plain, routes=plain.routes | {Route(network("10.77.1.2/32"), mtu=1300)}))
    assert "mtu lock 1300" in real.near.command("ip", "route", "show", "10.77.1.2/32")
    assert "mtu" not in real.near.command("ip", "route", "get", "10.77.1.3")
    # What a person sets in its place is taken back.
    real.near.command("ip", "route", "replace", "10.77.1.2/32", "dev", real.name, "mtu", "1000")
    steps = [str(s) for s in diff((await device.observe()).interface, plain)]
    assert steps == ["remove route 10.77.1.2/32"]
    await device.destroy()


async def test_port_zero_picks_one(ground: Ground) -> None:
    device = await ground.open()
    await settle(device, desired(ground.name))
    await device.apply_all([SetListenPort(0)])
    seen = (await device.observe()).interface
    assert seen
    assert seen.listen_port not in (0, 51998)
    await device.destroy()


async def test_the_failing_step_is_named(ground: Ground) -> None:
    device = await ground.open()
    with pytest.raises(EnvironmentFault, match=r"could not add address 10\.77\.0\.9/32"):
        await device.apply_all([AddAddress(IPv4Interface("10.77.0.9/32")), AddPeer(peer(1))])
    with pytest.raises(EnvironmentFault, match="could not add peer " + re.escape(str(peer(1).public_key))):
        await device.apply_all([AddPeer(peer(1)), AddPeer(peer(2))])
    await device.destroy()


async def test_agent_restarts_and_finds_its_sessions(ground: Ground) -> None:
    device = await ground.open()
    await settle(device, desired(ground.name, peer(1)))
    far = await ground.answering(device)
    before = (await device.observe()).sessions[far.public_key]
    await device.close()
    device = await ground.open()
    seen = await device.observe()
    assert diff(seen.interface, desired(ground.name, peer(1), far), alive=frozenset({far.public_key})) == ()
    assert seen.sessions[far.public_key].last_handshake == before.last_handshake
    await device.destroy()


async def test_restart_of_a_peer_starts_its_handshake_at_once(real: RealGround) -> None:
    device = await real.open()
    with real.far.entered():
        silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with silent:
        silent.bind(("192.0.2.2", 0))
        silent.setblocking(False)
        at = Endpoint(ip_address("192.0.2.2"), silent.getsockname()[1])
        loop = asyncio.get_running_loop()
        # From nothing: the very first attempt must not be lost to a link that is not up yet.
        await device.apply_all(diff(None, desired(real.name, replace(peer(1), endpoint=at))))
        for attempt in (
            None,
            RestartPeer(replace(peer(1), endpoint=at)),
            RestartPeer(replace(peer(1), endpoint=at, keepalive_s=25)),
        ):
            if attempt:
                await device.apply_all([attempt])
            async with asyncio.timeout(2):
                packet = await loop.sock_recv(silent, 200)
            assert (packet[0], len(packet)) == (1, 148)  # a handshake initiation
    seen = (await device.observe()).interface
    assert seen
    assert seen.peers[peer(1).public_key].keepalive_s == 25
    await device.destroy()


async def test_foreign_routes_and_addresses_of_the_link_are_seen(real: RealGround) -> None:
    device = await real.open()
    want = desired(real.name)
    await settle(device, want)
    real.near.command("ip", "address", "add", "10.77.5.5/24", "dev", real.name)
    real.near.command("ip", "route", "add", "198.51.100.0/24", "dev", real.name, "metric", "7")
    real.near.command("ip", "route", "add", "unreachable", "203.0.113.0/24")  # somebody else's: not ours to see
    steps = [str(step) for step in diff((await device.observe()).interface, want)]
    assert steps == ["remove route 198.51.100.0/24", "remove address 10.77.5.5/24"]
    await settle(device, want)
    await device.destroy()
    assert "203.0.113.0/24" in real.near.command("ip", "route")


async def test_a_weakened_guard_is_no_guard(real: RealGround) -> None:
    device = await real.open()
    want = desired(real.name)
    await settle(device, want)
    name = f"meshctl_{real.name}"
    for weakening in (
        f"insert rule inet {name} leaving accept",
        f"flush chain inet {name} arriving",
        f"delete element inet {name} guarded4 {{ 10.77.0.0/16 }}",
    ):
        real.near.command("nft", weakening)
        assert len(diff((await device.observe()).interface, want)) == 1
        await settle(device, want)
    await device.destroy()


async def test_underlay_is_described(real: RealGround) -> None:
    device = await real.open()
    await settle(device, desired(real.name))
    real.near.command("ip", "link", "set", "under0", "mtu", "1440")
    assert await device.underlay_mtu() == 1440
    real.near.command("ip", "route", "add", "default", "via", "192.0.2.2")
    real.near.command("ip", "link", "add", "other0", "mtu", "1290", "up", "type", "bridge")
    assert await device.underlay_mtu() == 1440
    expected = {("192.0.2.1", "192.0.2.0/24"), ("2001:db8::1", "2001:db8::/64")}
    assert {(str(a), str(n)) for a, n in await device.local_networks()} == expected
    await device.destroy()


async def test_route_leaks_are_named(real: RealGround) -> None:
    device = await real.open()
    await settle(device, desired(real.name))
    good, hijacked, v6 = map(ip_address, ("10.77.1.1", "10.77.1.2", "fd77::102"))
    real.near.command("ip", "route", "add", "10.77.1.2/32", "via", "192.0.2.2")
    assert await device.route_leaks([good, hijacked, v6]) == (hijacked,)
    real.delete_link()
    assert await device.route_leaks([good, v6]) == ()  # unreachable: it goes nowhere
    await device.destroy()


@root
@pytest.mark.parametrize("real", ["userspace"], indirect=True)
async def test_wireguard_go_dies_and_the_next_pass_brings_it_back(real: RealGround) -> None:
    device = await real.open()
    want = desired(real.name, peer(1))
    await settle(device, want)
    os.kill(_daemon(real.name), 9)

    async def gone() -> bool:
        return (await device.observe()).interface is None

    await until(gone, "the interface of a killed wireguard-go disappears")
    await settle(device, want)
    await device.destroy()
    await until(
        lambda: asyncio.to_thread(lambda: not socket_path(real.name).exists()), "wireguard-go ends with its interface"
    )


def _daemon(interface: str) -> int:
    command = f"wireguard-go\0{interface}\0".encode()
    return next(int(p.parent.name) for p in Path("/proc").glob("[0-9]*/cmdline") if p.read_bytes() == command)


async def test_bad_names_are_refused_before_anything_is_tried() -> None:
    for name in ("", "../etc", 'a"b', "sixteen-letters-", "-x"):
        with pytest.raises(UsageError, match="no interface name"):
            await open_device(name)
