"""The tap and its filters on real wires: a cable and loopback, both families, merged frames, firewalls (NET-7)."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from ipaddress import ip_network
from typing import Any

import pytest
import pytest_asyncio

from meshctl.agent import tap
from meshctl.agent.tap import Leak, Seen, Tap
from meshctl.mesh import frames
from tests.harness.netns import Namespace, veth

pytestmark = pytest.mark.root
PORT = 51820
PREFIXES = (ip_network("10.77.0.0/16"), ip_network("fd77::/64"))
ENDS = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::2")}
UDP_SEGMENT = 103
_ETH = {4: 0x0800, 6: 0x86DD}


class Ground:
    """Two machines on a cable; a has a tap, and `mesh0` is another cable that plays the mesh's interface."""

    def __init__(self, a: Namespace, b: Namespace) -> None:
        self.a, self.b = a, b
        self.tap = Tap("mesh0", PORT, lambda: PREFIXES)
        self.seen: list[Seen] = []
        self.leaks: list[Leak] = []
        self.tap.on_seen.append(self.seen.append)
        self.tap.on_leak.append(self.leaks.append)

    async def until(self, true: Callable[[], object], why: str) -> None:
        deadline = time.monotonic() + 5
        while not true():
            assert time.monotonic() < deadline, (why, self.seen, self.leaks)
            await asyncio.sleep(0.005)

    def send(self, ns: Namespace, payload: bytes, *, version: int = 4, port: int = PORT, to: str = "") -> None:
        """From b's port, as somebody else's WireGuard would."""
        source, target = (socket.inet_pton(_family(version), end) for end in ENDS[version][::-1])
        with ns.entered():
            tap.inject(source, PORT, socket.inet_pton(_family(version), to) if to else target, port, payload)

    async def count(self, payload: bytes) -> tuple[int, int]:
        """How often it was seen on the wire and behind the firewall."""
        came = [s for s in self.seen if s.message == payload and not s.outgoing]
        return sum(not s.behind for s in came), sum(s.behind for s in came)

    async def held(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """`work` with the tap open, on the event loop of a."""

        async def run() -> None:
            self.tap.hold()
            try:
                await work()
            finally:
                self.tap.release()

        await self.a.run(run())


def _family(version: int) -> socket.AddressFamily:
    return socket.AF_INET if version == 4 else socket.AF_INET6


@pytest_asyncio.fixture
async def ground() -> AsyncIterator[Ground]:
    with Namespace() as a, Namespace() as b:
        veth(a, ["192.0.2.1/24", "2001:db8::1/64"], b, ["192.0.2.2/24", "2001:db8::2/64"])
        veth(a, ["10.77.0.1/24", "fd77::1/64"], b, ["10.77.0.2/24", "fd77::2/64"], "mesh0")
        yield Ground(a, b)


def firewall(ns: Namespace) -> None:
    ns.command(
        "nft",
        "-f",
        "-",
        stdin=f"""table inet t {{
        chain c {{
            type filter hook input priority 0
            udp dport {PORT} drop
        }}
    }}
    """,
    )


@pytest.mark.parametrize("version", [4, 6])
async def test_a_datagram_is_seen_on_the_wire_and_behind_the_firewall_unless_that_took_it(
    ground: Ground, version: int
) -> None:
    async def work() -> None:
        ground.send(ground.b, b"first", version=version)
        await ground.until(lambda: len(ground.seen) == 2, "seen twice")
        assert await ground.count(b"first") == (1, 1)
        assert {seen.datagram.came_from.port for seen in ground.seen} == {PORT}
        firewall(ground.a)
        ground.send(ground.b, b"second", version=version)
        ground.send(ground.b, b"of another port", version=version, port=9)
        await ground.until(lambda: any(seen.message == b"of another port" for seen in ground.seen), "both were sent")
        assert await ground.count(b"second") == (1, 0)

    await ground.held(work)
    assert not ground.leaks


async def test_loopback_is_seen_once_each_way_and_what_is_inside_it_is_no_leak(ground: Ground) -> None:
    async def work() -> None:
        for target in ("127.0.0.1", "10.77.0.1"):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.sendto(target.encode(), (target, PORT))
            await ground.until(lambda: len(ground.seen) >= 3, "going, coming, let in")
            assert await ground.count(target.encode()) == (1, 1)
            ground.seen.clear()

    await ground.held(work)
    assert not ground.leaks


async def test_messages_that_the_kernel_merged_are_told_apart(ground: Ground) -> None:
    """Segmentation offload: one frame on the tap, several datagrams on the wire."""
    made = [struct.pack("<IIQ", 4, 7, counter) + bytes(size - 16) for counter, size in enumerate((96, 96, 96, 64))]

    async def work() -> None:
        with ground.b.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.SOL_UDP, UDP_SEGMENT, 96)
            sock.sendto(b"".join(made), (ENDS[4][0], PORT))
        await ground.until(lambda: sum(seen.behind for seen in ground.seen) == 4, "all are let in")
        for message in made:
            assert await ground.count(message) == (1, 1)

    await ground.held(work)


@pytest.mark.parametrize(
    ("source", "target", "leak"),
    [
        ("10.77.0.9", "192.0.2.1", True),
        ("192.0.2.2", "10.77.0.1", True),
        ("10.78.0.9", "192.0.2.1", False),
        ("fd77::9", "2001:db8::1", True),
        ("2001:db8::2", "fd77::1", True),
        ("fd77:0:0:1::9", "2001:db8::1", False),
    ],
)
@pytest.mark.parametrize("interface", ["under0", "mesh0"])
async def test_mesh_addresses_are_noticed_on_every_interface_but_the_meshs(
    ground: Ground, source: str, target: str, leak: bool, interface: str
) -> None:
    version = 6 if ":" in source else 4
    ends = [socket.inet_pton(_family(version), end) for end in (source, target)]
    body = frames.udp(ends[0], 9, ends[1], 9, b"in clear")
    if version == 4:
        packet = frames.ipv4(*ends, body, 1)
    else:
        packet = bytes((0x60, 0, 0, 0)) + len(body).to_bytes(2, "big") + bytes((17, 64)) + ends[0] + ends[1] + body

    async def work() -> None:
        with ground.b.entered(), socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0) as sock:
            sock.sendto(packet, (interface, _ETH[version], 0, 0, b"\xff" * 6))
        ground.send(ground.b, b"afterwards")
        await ground.until(lambda: any(seen.message == b"afterwards" for seen in ground.seen), "all was looked at")
        wanted = [Leak(*ends)] if leak and interface == "under0" else []
        assert [found for found in ground.leaks if found == Leak(*ends)] == wanted

    await ground.held(work)


async def test_what_is_missed_is_counted(ground: Ground) -> None:
    """More than there is room for while nobody reads."""

    async def work() -> None:
        with ground.b.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for _ in range(30_000):
                sock.sendto(b"x" * 100, (ENDS[4][0], PORT))
        assert ground.tap.drops() > 0
        assert ground.tap.drops() > 0  # also when asked again: the kernel forgets

    await ground.held(work)


async def test_two_holders_share_it(ground: Ground) -> None:
    async def work() -> None:
        ground.tap.hold()
        ground.tap.release()
        assert ground.tap.is_open

    await ground.held(work)
    assert not ground.tap.is_open
