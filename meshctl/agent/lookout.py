"""Sees on the wire that a peer's WireGuard has taken its next key: by the first handshake initiation under it (NET-5).

"Go" says that a peer is about to switch, and the map that it has; both come by way of an agent, and how long its
machine takes between two steps nobody knows. The initiation comes from WireGuard itself, and only the key's owner can
make it. From then on a handshake of ours cannot cross one of the peer: that one is spent, and the next is 5 s away.
What the peer sent under its old key is let in first: a WireGuard that is not given the CPU may not have read it yet.

Raw UDP sockets, with a filter in the kernel for initiations, open only while a next statement is known. WireGuard gets
the packet all the same; whether it believes it is not decided here. Needs CAP_NET_RAW; without it, "go" has to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Mapping
from typing import Final

from meshctl.agent import sockets
from meshctl.agent.tap import attach
from meshctl.crypto import noise
from meshctl.mesh import bpf, frames, rotation
from meshctl.mesh.keys import PrivateKey, PublicKey
from meshctl.mesh.model import NodeId

Expected = Mapping[PublicKey, tuple[NodeId, int]]  # by next key: whose, and the serial of the statement

_READS_PER_WAKE: Final = 16
_OPENED_PER_S: Final = 200  # a fifth of a millisecond each: who floods us with initiations only makes us slower to see
_LOOK_EVERY_S: Final = 0.005  # for what WireGuard has not read
_PACKET_BYTES: Final = 2048
_FLAGS: Final = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_FAMILIES: Final = ((4, socket.AF_INET), (6, socket.AF_INET6))


class Lookout:
    """`expect` next keys, with every map."""

    def __init__(self, port: int, own: Callable[[], PrivateKey]) -> None:
        """`port` is WireGuard's and `own` its key; `on_seen` hears whose next statement (serial) is in force, once
        what was sent under the one before is likely to be here.
        """
        self.on_seen: Callable[[NodeId, int], object] = lambda *_: None
        self._port, self._own = port, own
        self._expected: Expected = {}
        self._sockets: list[socket.socket] = []
        self._second, self._opened = 0, 0

    def expect(self, expected: Expected) -> None:
        """These keys, and no others any more."""
        self._expected = expected
        if expected and not self._sockets:
            self._open()
        elif not expected:
            self._close()

    def _close(self) -> None:
        for sock in self._sockets:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()
        self._sockets = []

    def _open(self) -> None:
        for version, family in _FAMILIES:
            with contextlib.suppress(OSError):  # not allowed, or a host without IPv6
                sock = socket.socket(family, _FLAGS, socket.IPPROTO_UDP)
                self._sockets.append(sock)
                attach(sock, bpf.initiations(version, self._port))
                asyncio.get_running_loop().add_reader(sock, self._readable, sock)

    def _readable(self, sock: socket.socket) -> None:
        for _ in range(_READS_PER_WAKE):
            try:
                packet = sock.recv(_PACKET_BYTES)
            except OSError:
                return
            second = int(time.monotonic())
            if second != self._second:
                self._second, self._opened = second, 0
            # The message is the end of the packet: no header of IPv6 comes with it, and one of IPv4 may have options.
            message = packet[-frames.INITIATION_BYTES :]
            self._opened += 1
            if self._opened > _OPENED_PER_S:
                continue
            key = noise.initiator(message, self._own())
            if key and key in self._expected:
                at = time.monotonic() + rotation.HOLD_S
                asyncio.get_running_loop().call_later(rotation.SETTLED_S, self._settle, at, *self._expected[key])

    def _settle(self, at: float, peer: NodeId, serial: int) -> None:
        """Tell once WireGuard has read its mail, at `at` (monotonic) in any case."""
        if time.monotonic() < at and sockets.unread(self._port):
            asyncio.get_running_loop().call_later(_LOOK_EVERY_S, self._settle, at, peer, serial)
        else:
            self.on_seen(peer, serial)
