"""Numbered datagrams over the mesh and over the bare wire at once, and what the mesh alone lost of them (NET-4).

    mesh, wire, sent = await lost_during(lab, weather)

The bare wire is the control: what a loaded test machine loses there is not the mesh's.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from tests.harness.mesh import Lab
from tests.harness.netns import Namespace

PORT = 40000


class Flow:
    """100 numbered datagrams a second to an echo at the other end, until told to stop."""

    def __init__(self, here: Namespace, source: str, there: Namespace, target: str) -> None:
        self._here, self._source, self._there, self._target = here, source, there, target
        self.sent, self.back = 0, set[bytes]()
        self._stopped = False

    async def _echo(self) -> socket.socket:
        sock = _bound(self._target)
        asyncio.get_running_loop().add_reader(sock, lambda: sock.sendto(*sock.recvfrom(64)))
        return sock

    async def _send(self) -> None:
        sock, loop = _bound(self._source, 0), asyncio.get_running_loop()
        loop.add_reader(sock, lambda: self.back.add(sock.recv(64)))
        while not self._stopped:
            self.sent += 1
            sock.sendto(self.sent.to_bytes(8, "big"), (self._target, PORT))
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)
        loop.remove_reader(sock)
        sock.close()

    async def _close(self, sock: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(sock)
        sock.close()

    async def __aenter__(self) -> Flow:
        self._far = await self._there.run(self._echo())
        self._sending = asyncio.ensure_future(self._here.run(self._send()))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopped = True
        await self._sending
        await self._there.run(self._close(self._far))

    @property
    def lost(self) -> int:
        return self.sent - len(self.back)


def _bound(address: str, port: int = PORT) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    sock.bind((address, port))
    return sock


async def lost_during(lab: Lab, weather: Callable[[], object]) -> tuple[int, int, int]:
    """(lost in the mesh, lost on the bare wire, sent) between the first two machines."""
    a, b = lab.nodes[:2]
    async with (
        Flow(a.ns, a.address, b.ns, b.address) as wire,
        Flow(a.ns, a.mesh_address(), b.ns, b.mesh_address()) as mesh,
    ):
        await asyncio.to_thread(weather)
    return mesh.lost, wire.lost, mesh.sent
