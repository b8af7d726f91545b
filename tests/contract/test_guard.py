"""What really leaves and arrives, counted at the other end of the cable: no packet of the mesh in clear (NET-4).

Every zero has its positive control in the same test: without the guard the same packet is seen.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator

import pytest

from meshctl.agent.device import Device
from meshctl.agent.firewall import Firewall, guard_script
from meshctl.mesh.interface import network
from tests.harness.ground import PREFIXES, RealGround, desired, peer, real_ground, settle
from tests.harness.netns import Namespace, unique, veth

pytestmark = pytest.mark.root

_ETH_P_ALL = 3
_PORT = 4242
PEER4, PEER6 = (str(ip.network_address) for ip in peer(1).allowed_ips)


@pytest.fixture(params=["userspace", "kernel"])
def ground(request: pytest.FixtureRequest) -> Iterator[RealGround]:
    yield from real_ground(request.param)


class Tap:
    """Counts UDP packets to a port on the far end of a cable, below any firewall there."""

    def __init__(self, where: Namespace, device: str = "under0") -> None:
        with where.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL))
            self._socket.bind((device, _ETH_P_ALL))

    def sees(self, address: str, send: Callable[[], None], *, patience_s: float = 0.3) -> bool:
        """Whether a packet to `address` arrives after `send`."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        wanted, at = socket.inet_pton(family, address), (24 if family == socket.AF_INET6 else 16)
        send()
        deadline = time.monotonic() + patience_s
        while (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                packet = self._socket.recv(2048)
            except TimeoutError:
                break
            if packet[at : at + len(wanted)] == wanted:
                return True
        return False

    def close(self) -> None:
        self._socket.close()


def _send(address: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sender:
        try:
            sender.sendto(b"in clear", (address, _PORT))
        except PermissionError:
            pass  # the guard tells the sender


@pytest.mark.parametrize("without_interface", [False, True], ids=["interface", "no-interface"])
async def test_clear_route_planted_for_a_mesh_address(ground: RealGround, without_interface: bool) -> None:
    device = await ground.open()
    await settle(device, desired(ground.name, peer(1)))
    if without_interface:
        ground.delete_link()
    tap = Tap(ground.far)
    ground.near.command("ip", "route", "add", f"{PEER4}/32", "via", "192.0.2.2")
    ground.near.command("ip", "route", "add", f"{PEER6}/128", "via", "2001:db8::2")
    for address in (PEER4, PEER6):
        assert not tap.sees(address, lambda address=address: _send(address))
    assert await device.drops() == 2
    await Firewall(ground.name).remove()
    for address in (PEER4, PEER6):
        assert tap.sees(address, lambda address=address: _send(address), patience_s=5), "the control must be seen"
    tap.close()
    await device.destroy()


async def test_rerouted_by_a_mark_behind_the_routing_table(ground: RealGround) -> None:
    device = await ground.open()
    await settle(device, desired(ground.name, peer(1)))
    tap = Tap(ground.far)
    chain = f"chain out {{ type route hook output priority -150\nip daddr {PEER4} meta mark set 7\n}}"
    marker = f"table ip marker {{ {chain}\n}}\n"
    ground.near.command("nft", "-f", "-", stdin=marker)
    ground.near.command("ip", "rule", "add", "fwmark", "7", "table", "100")
    ground.near.command("ip", "route", "add", "default", "via", "192.0.2.2", "table", "100")
    await _guarded_then_not(device, ground, lambda: tap.sees(PEER4, lambda: _send(PEER4)))
    tap.close()
    await device.destroy()


async def test_forwarded_for_a_neighbour(ground: RealGround) -> None:
    device = await ground.open()
    await settle(device, desired(ground.name, peer(1)))
    with Namespace() as neighbour:
        veth(ground.near, ["203.0.113.1/24"], neighbour, ["203.0.113.2/24"], name="inner0")
        neighbour.command("ip", "route", "add", "default", "via", "203.0.113.1")
        ground.near.command("sysctl", "-qw", "net.ipv4.ip_forward=1")
        ground.near.command("ip", "route", "add", f"{PEER4}/32", "via", "192.0.2.2")
        tap = Tap(ground.far)

        def send() -> None:
            with neighbour.entered():
                _send(PEER4)

        await _guarded_then_not(device, ground, lambda: tap.sees(PEER4, send))
        tap.close()
    await device.destroy()


async def test_mesh_source_arriving_by_the_underlay(ground: RealGround) -> None:
    device = await ground.open()
    await settle(device, desired(ground.name, peer(1)))
    ground.near.command("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.under0.rp_filter=0")
    ground.far.command("ip", "address", "add", f"{PEER4}/32", "dev", "lo")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as inside:
        inside.bind(("192.0.2.1", _PORT))
        inside.settimeout(0.3)

        def delivered() -> bool:
            with ground.far.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as spoof:
                spoof.bind((PEER4, 0))
                spoof.sendto(b"spoofed", ("192.0.2.1", _PORT))
            try:
                return inside.recv(100) == b"spoofed"
            except TimeoutError:
                return False

        await _guarded_then_not(device, ground, delivered)
    await device.destroy()


async def _guarded_then_not(device: Device, ground: RealGround, seen: Callable[[], bool]) -> None:
    assert not seen()
    assert await device.drops() == 1
    await Firewall(ground.name).remove()
    assert seen(), "the control must be seen"


async def test_guard_loaded_early_is_taken_over_as_it_is(ground: RealGround) -> None:
    ground.near.command("nft", "-f", "-", stdin=guard_script(ground.name, PREFIXES))
    assert await Firewall(ground.name).guarded() == frozenset(PREFIXES)
    device = await ground.open()
    await settle(device, desired(ground.name))
    await device.destroy()


async def test_two_meshes_guard_apart(ground: RealGround) -> None:
    one, other = Firewall(unique("a-")), Firewall(unique("a."))
    await one.guard(PREFIXES[:1])
    await other.guard([network("10.99.0.0/16"), network("10.98.0.1/32")])
    assert await one.guarded() == frozenset(PREFIXES[:1])
    assert await other.guarded() == {network("10.99.0.0/16"), network("10.98.0.1/32")}
    await one.remove()
    await one.remove()
    assert await one.guarded() == frozenset()
    assert await other.guarded()
