"""Ground to stand a device on: a person with `wg` and a peer that answers, for fake and real WireGuard alike."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import cache
from ipaddress import IPv4Interface, IPv6Interface
from typing import Protocol

import pytest

from meshctl.agent.device import Device, open_device
from meshctl.agent.firewall import table
from meshctl.mesh.interface import Interface, Observation, Peer, Route, network
from meshctl.mesh.keys import PrivateKey, PublicKey
from meshctl.mesh.model import Endpoint, Network
from meshctl.mesh.plan import AddPeer, diff
from meshctl.mesh.topology import FAIL_CLOSED_METRIC
from tests.harness.fake_kernel import FakeDevice, FakeKernel, clamped, public
from tests.harness.netns import Namespace, unique, veth

PREFIXES = (network("10.77.0.0/16"), network("fd77::/64"))
OWN = clamped(PrivateKey(b"\x11" * 32))
FAR = clamped(PrivateKey(b"\x22" * 32))
FAR_ENDPOINT = Endpoint.parse("192.0.2.2:51999")
PATIENCE_S = 30.0  # an emulated kernel is slow; conditions are polled


def peer(number: int) -> Peer:
    """A peer that never answers."""
    ips = network(f"10.77.{number // 250 + 1}.{number % 250 + 1}/32"), network(f"fd77::{number + 256:x}/128")
    return Peer(PublicKey((number + 1).to_bytes(2, "big") * 16), ips)


def desired(name: str, *peers: Peer, port: int = 51998, mtu: int = 1380) -> Interface:
    """An interface in both families, with fail-closed routes and guard."""
    return Interface(
        name, OWN, port, mtu, True,
        frozenset({IPv4Interface("10.77.0.1/32"), IPv6Interface("fd77::1/128")}),
        frozenset(r for p in PREFIXES for r in (Route(p), Route(p, unreachable=True, metric=FAIL_CLOSED_METRIC))),
        frozenset(PREFIXES), {p.public_key: p for p in peers},
    )  # fmt: skip


async def settle(device: Device, want: Interface, alive: frozenset[PublicKey] = frozenset()) -> Observation:
    """One pass of the reconciler; the second must be empty."""
    await device.apply_all(diff((await device.observe()).interface, want, alive=alive))
    seen = await device.observe()
    assert [str(step) for step in diff(seen.interface, want, alive=alive)] == []
    return seen


async def drained(device: Device) -> None:
    """Until the echo of our own changes has passed."""
    while True:
        try:
            async with asyncio.timeout(0.2):
                await device.changed()
        except TimeoutError:
            return


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """Poll, with a deadline."""
    deadline = time.monotonic() + PATIENCE_S
    while not await condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        await asyncio.sleep(0.02)


class Ground(Protocol):
    """Where one device stands, and what others can do to it there."""

    name: str

    async def open(self) -> Device: ...
    async def answering(self, device: Device) -> Peer:
        """A peer of `device` that has just completed a handshake started by AddPeer."""
        ...

    def allow(self, key: PublicKey, ips: tuple[Network, ...]) -> None: ...
    def forget(self, key: PublicKey) -> None: ...
    def delete_link(self) -> None: ...
    def down(self) -> None: ...
    def flush_guard(self) -> None: ...
    def left_behind(self) -> tuple[int, bool]:
        """(number of fail-closed routes, whether the guard stands)."""
        ...


class FakeGround:
    """In memory."""

    def __init__(self) -> None:
        self.kernel = FakeKernel()
        self.name = self.kernel.name
        self.allow, self.forget = self.kernel.allow, self.kernel.forget
        self.delete_link, self.down, self.flush_guard = (
            self.kernel.delete_link,
            self.kernel.down,
            self.kernel.flush_guard,
        )

    async def open(self) -> Device:
        """A device on the fake machine."""
        return FakeDevice(self.kernel)

    async def answering(self, device: Device) -> Peer:
        """See Ground."""
        far = Peer(public(FAR), (network("10.77.9.9/32"),), FAR_ENDPOINT)
        await device.apply_all([AddPeer(far)])
        assert self.kernel.handshakes[-1] == (far.public_key, FAR_ENDPOINT)
        self.kernel.answer(far.public_key, time.time())
        return far

    def left_behind(self) -> tuple[int, bool]:
        """See Ground."""
        return len(self.kernel.unreachable), bool(self.kernel.guarded)


class RealGround:
    """A namespace of its own; the far end of its cable is another one. The caller has entered `near`."""

    def __init__(self, kind: str, near: Namespace, far: Namespace) -> None:
        self.kind, self.near, self.far, self.name = kind, near, far, unique()
        veth(near, ["192.0.2.1/24", "2001:db8::1/64"], far, ["192.0.2.2/24", "2001:db8::2/64"])

    async def open(self) -> Device:
        """A device in the near namespace."""
        return await open_device(self.name, self.kind)  # type: ignore[arg-type]

    async def answering(self, device: Device) -> Peer:
        """See Ground. The far end is a device of the same kind."""
        name = unique()

        async def prepare() -> Device:
            remote = await open_device(name, self.kind)  # type: ignore[arg-type]
            me = Peer(public(OWN), (network("10.77.0.1/32"),))
            want = Interface(name, FAR, FAR_ENDPOINT.port, 1380, True, peers={me.public_key: me})
            await remote.apply_all(diff(None, want))
            return remote

        remote = await self.far.run(prepare())
        far = Peer(public(FAR), (network("10.77.9.9/32"),), FAR_ENDPOINT)
        await device.apply_all([AddPeer(far)])

        async def shaken() -> bool:
            session = (await device.observe()).sessions.get(far.public_key)
            return session is not None and session.last_handshake > 0

        await until(shaken, "a handshake started by adding a peer with an endpoint")
        await self.far.run(remote.close())
        return far

    def allow(self, key: PublicKey, ips: tuple[Network, ...]) -> None:
        """`wg set`."""
        self.near.command("wg", "set", self.name, "peer", str(key), "allowed-ips", ",".join(map(str, ips)))

    def forget(self, key: PublicKey) -> None:
        """`wg set peer remove`."""
        self.near.command("wg", "set", self.name, "peer", str(key), "remove")

    def delete_link(self) -> None:
        """`ip link del`."""
        self.near.command("ip", "link", "del", self.name)

    def down(self) -> None:
        """`ip link set down`."""
        self.near.command("ip", "link", "set", self.name, "down")

    def flush_guard(self) -> None:
        """`nft flush ruleset`, what a firewall's restart does."""
        self.near.command("nft", "flush", "ruleset")

    def left_behind(self) -> tuple[int, bool]:
        """See Ground."""
        routes = "".join(
            self.near.command("ip", family, "route", "show", "type", "unreachable") for family in ("-4", "-6")
        )
        listed = self.near.command("nft", "list", "table", "inet", table(self.name), check=False)
        return routes.count("unreachable"), bool(listed)


@cache
def kernel_has_wireguard() -> bool:
    """Making a link of this type loads the module where there is one."""
    with Namespace() as scratch:
        command = ["ip", "-n", scratch.name, "link", "add", unique(), "type", "wireguard"]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0


def real_ground(kind: str) -> Iterator[RealGround]:
    """Entered, and cleaned up afterwards; skips where the kernel has no WireGuard."""
    if kind == "kernel" and not kernel_has_wireguard():
        pytest.skip("absent: WireGuard in this kernel; tests/vm runs this suite on one that has")
    with Namespace() as near, Namespace() as far, near.entered():
        yield RealGround(kind, near, far)
