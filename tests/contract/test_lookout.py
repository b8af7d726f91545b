"""Whether a peer's WireGuard has taken its next key, seen on the wire: by a real one's handshake, and by nothing else
(NET-5, MESH-ROT-001).
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio

from meshctl.agent import sockets, tap
from meshctl.agent.lookout import Lookout
from meshctl.crypto import noise
from meshctl.crypto.identity import Identity, public_key
from meshctl.crypto.noise import initiation
from meshctl.mesh import rotation
from meshctl.mesh.keys import PrivateKey, PublicKey
from meshctl.mesh.model import NodeId
from tests.harness.mesh import until
from tests.harness.netns import Namespace, unique, veth

pytestmark = pytest.mark.root
PORT, PEER, SERIAL = 51820, NodeId("peer"), 7
ENDS = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::2")}
OURS, NEXT, OLD = (Identity.generate().wireguard for _ in range(3))


class Ground:
    """Two machines on a cable; a looks out for the peer's next key."""

    def __init__(self, a: Namespace, b: Namespace) -> None:
        self.a, self.b = a, b
        self.seen: list[float] = []
        self.lookout = Lookout(PORT, lambda: OURS)
        self.lookout.on_seen = self._saw

    def _saw(self, peer: NodeId, serial: int) -> None:
        assert (peer, serial) == (PEER, SERIAL)
        self.seen.append(time.monotonic())

    async def until(self, true: Callable[[], object], why: str) -> None:
        deadline = time.monotonic() + 5
        while not true():
            assert time.monotonic() < deadline, why
            await asyncio.sleep(0.005)

    async def looking(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """`work` on the event loop of a, which expects the next key meanwhile."""

        async def run() -> None:
            self.lookout.expect({public_key(NEXT): (PEER, SERIAL)})
            try:
                await work()
            finally:
                self.lookout.expect({})

        await self.a.run(run())

    def send(self, payload: bytes, version: int = 4) -> None:
        """From b's port, as its WireGuard would."""
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        source, target = (socket.inet_pton(family, end) for end in ENDS[version][::-1])
        with self.b.entered():
            tap.inject(source, PORT, target, PORT, payload)

    async def nothing(self) -> None:
        """Of all that was sent before nothing is seen: the genuine one that comes now is the first."""
        self.send(hello(NEXT))
        await self.until(lambda: self.seen, "the genuine one is seen")
        assert len(self.seen) == 1


def hello(key: PrivateKey, to: PrivateKey = OURS) -> bytes:
    return initiation(key, public_key(to), 1, unix_ns=time.time_ns())


@pytest_asyncio.fixture
async def ground() -> AsyncIterator[Ground]:
    with Namespace() as a, Namespace() as b:
        veth(a, ["192.0.2.1/24", "2001:db8::1/64"], b, ["192.0.2.2/24", "2001:db8::2/64"])
        yield Ground(a, b)


@pytest.mark.parametrize("version", [4, 6])
async def test_real_wireguard_that_takes_its_next_key_is_seen(ground: Ground, version: int) -> None:
    name, at = unique("mn-"), ENDS[version][0]
    ground.b.command("wireguard-go", name)
    until(lambda: Path(f"/var/run/wireguard/{name}.sock").exists(), 10, "wireguard-go serves")

    def switch(key: PrivateKey) -> None:
        words = "private-key", "/dev/stdin", "listen-port", str(PORT), "peer", str(public_key(OURS))
        ground.b.command("wg", "set", name, *words, stdin=key.reveal())
        ground.b.command("wg", "set", name, *words[4:], "persistent-keepalive", "0")
        endpoint = f"[{at}]:{PORT}" if version == 6 else f"{at}:{PORT}"
        # A keepalive that is switched on is sent at once: it begins a handshake.
        ground.b.command("wg", "set", name, *words[4:], "endpoint", endpoint, "persistent-keepalive", "25")

    async def work() -> None:
        ground.b.command("ip", "link", "set", name, "up")
        await asyncio.to_thread(switch, OLD)  # whose handshakes are nobody's business
        await asyncio.to_thread(switch, NEXT)
        await ground.until(lambda: ground.seen, "its handshake is seen")
        assert len(ground.seen) == 1

    try:
        await ground.looking(work)
    finally:
        ground.b.command("ip", "link", "delete", name, check=False)


async def test_who_knows_public_keys_only_cannot_pretend_that_a_peer_has_switched(ground: Ground) -> None:
    theirs = hello(NEXT)

    async def work() -> None:
        ground.send(hello(Identity.generate().wireguard))  # a stranger's
        ground.send(hello(NEXT, to=OLD))  # genuine, to somebody else
        for place in (4, 8, 40, 88, 104, 120):  # one bit of each field
            ground.send(theirs[:place] + bytes([theirs[place] ^ 1]) + theirs[place + 1 :])
        ground.send(theirs[:-1])
        ground.send(b"\x02" + theirs[1:])
        await ground.nothing()

    await ground.looking(work)


async def test_flood_of_initiations_does_not_starve_the_agent(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    junk = [hello(Identity.generate().wireguard) for _ in range(200)]

    async def work() -> None:
        opened = 0

        def initiator(message: bytes, ours: PrivateKey) -> PublicKey | None:
            nonlocal opened
            opened += 1
            return noise.initiator(message, ours)

        monkeypatch.setattr("meshctl.agent.lookout.noise", SimpleNamespace(initiator=initiator))
        begun = time.monotonic()
        for _ in range(10):
            for message in junk:
                ground.send(message)
            await asyncio.sleep(0)
        while not ground.seen:  # each second has its budget
            assert time.monotonic() - begun < 10
            ground.send(hello(NEXT))
            await asyncio.sleep(0.05)
        assert opened <= 200 * (time.monotonic() - begun + 1), "of 2,000 and more"

    await ground.looking(work)


async def test_what_wireguard_has_not_read_yet_is_let_in_first_but_not_for_ever(ground: Ground) -> None:
    async def work() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as slow:  # in place of a WireGuard that is not scheduled
            slow.bind(("192.0.2.1", PORT))
            ground.send(b"packet under the old key")
            ground.send(hello(NEXT))
            await ground.until(lambda: sockets.unread(PORT) > 300, "both have come")
            begun = time.monotonic()
            await ground.until(lambda: ground.seen, "told all the same")
            assert ground.seen.pop() - begun > rotation.HOLD_S / 2
            assert (slow.recv(100), len(slow.recv(200)), sockets.unread(PORT)) == (b"packet under the old key", 148, 0)
            ground.send(hello(NEXT))
            await ground.until(lambda: sockets.unread(PORT), "it has come")
            assert not ground.seen
            slow.recv(200)
            begun = time.monotonic()
            await ground.until(lambda: ground.seen, "told once it was read")
            assert ground.seen[0] - begun < rotation.HOLD_S

    await ground.looking(work)


async def test_it_looks_only_while_a_next_key_is_known(ground: Ground) -> None:
    async def work() -> None:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            ground.lookout.expect({public_key(NEXT): (PEER, SERIAL)})
            assert len(os.listdir("/proc/self/fd")) == before + 2, "one for each family"
            ground.lookout.expect({})
            assert len(os.listdir("/proc/self/fd")) == before

    await ground.a.run(work())


async def test_agent_that_may_not_open_raw_sockets_goes_by_what_it_is_told(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> socket.socket:
        raise PermissionError

    async def work() -> None:
        monkeypatch.setattr("meshctl.agent.lookout.socket.socket", refused)
        before = len(os.listdir("/proc/self/fd"))
        ground.lookout.expect({public_key(NEXT): (PEER, SERIAL)})
        assert len(os.listdir("/proc/self/fd")) == before
        ground.lookout.expect({})

    await ground.a.run(work())
