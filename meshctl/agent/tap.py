"""A tap on the wire of this host: every interface but the mesh's, for the seconds of an experiment (NET-7).

Two kinds of socket: a packet socket sees frames before any firewall and after it outwards; raw UDP sockets see what the
firewall let in, on its way to WireGuard's port. Filters in the kernel keep what is not needed away. It sends what an
experiment injects, too. It judges nothing, stores no content longer than it is open, and needs CAP_NET_RAW.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from array import array
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from meshctl.errors import EnvironmentFault
from meshctl.mesh import bpf, frames
from meshctl.mesh.frames import Datagram
from meshctl.mesh.model import Network

NO_RIGHT: Final = "no CAP_NET_RAW"
_GIVE: Final = "give the agent CAP_NET_RAW: the experiments on the wire need it"
_ETH_P_ALL: Final = 3
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33
_BUFFER_BYTES: Final = 4 << 20
_FRAME_BYTES: Final = 1 << 16  # a frame merged by the kernel has up to 64 kB
_READS_PER_WAKE: Final = 64  # a busy wire must not starve the other loops of the process
_FRAMES_MOST: Final = 50_000  # then it is deaf: half a second of reading in Python, and an agent has other work
_FLAGS: Final = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_ARPHRD_LOOPBACK: Final = 772


class Seen(NamedTuple):
    """One WireGuard message that passed, or a plain one to its port."""

    outgoing: bool
    behind: bool  # behind the firewall, before WireGuard
    datagram: Datagram
    message: bytes


class Leak(NamedTuple):
    """A packet on a wire with a mesh address of its own."""

    source: bytes
    target: bytes


class Tap:
    """`hold` keeps it open; `on_seen` and `on_leak` are told of what passes meanwhile. Many may hold one tap."""

    def __init__(self, interface: str, port: int, prefixes: Callable[[], Sequence[Network]]) -> None:
        self.on_seen: list[Callable[[Seen], None]] = []
        self.on_leak: list[Callable[[Leak], None]] = []
        self.missed = 0  # packets that the kernel had no room for, or that came when there were too many
        self._interface, self._port, self._prefixes = interface, port, prefixes
        self._wire: socket.socket | None = None
        self._behind: list[socket.socket] = []
        self._holders = self._frames = 0
        self._inside: tuple[tuple[bytes, bytes], ...] = ()  # network and mask of each mesh prefix

    @property
    def is_open(self) -> bool:
        """Whether somebody holds it."""
        return self._holders > 0

    def hold(self) -> None:
        """Open, or stay open for one more. Raises EnvironmentFault."""
        if not self._holders:
            self._open()
        self._holders += 1

    def release(self) -> None:
        """The last holder closes it."""
        self._holders -= 1
        if not self._holders:
            self._close()

    def drops(self) -> int:
        """Packets missed since it was opened."""
        if self._wire:
            # Reading them resets them.
            _, dropped = struct.unpack("=II", self._wire.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
            self.missed += dropped
        return self.missed

    def _open(self) -> None:
        self.missed = self._frames = 0
        prefixes = self._prefixes()
        self._inside = tuple((p.network_address.packed, p.netmask.packed) for p in prefixes)
        try:
            index = socket.if_nametoindex(self._interface)
            # What it hears before the filter is there is looked at as everything else, and dismissed.
            self._wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | _FLAGS, socket.htons(_ETH_P_ALL))
            attach(self._wire, bpf.tap(index, self._port, prefixes))
            for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6)):
                with contextlib.suppress(OSError) if version == 6 else contextlib.nullcontext():  # a host without IPv6
                    self._behind.append(socket.socket(family, socket.SOCK_RAW | _FLAGS, socket.IPPROTO_UDP))
                    attach(self._behind[-1], bpf.behind(version, self._port))
        except PermissionError as error:
            self._close()
            raise EnvironmentFault(NO_RIGHT, _GIVE) from error
        except OSError as error:
            self._close()
            raise EnvironmentFault(f"the wire cannot be tapped: {error.strerror or error}") from error
        loop = asyncio.get_running_loop()
        for sock in (self._wire, *self._behind):
            with contextlib.suppress(OSError):  # more room than net.core.rmem_max, if we may
                sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
            loop.add_reader(sock, self._readable, sock)

    def _close(self) -> None:
        socks = (*([self._wire] if self._wire else ()), *self._behind)
        self._wire, self._behind = None, []
        for sock in socks:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()

    def _readable(self, sock: socket.socket) -> None:
        for _ in range(_READS_PER_WAKE):
            try:
                packet, address = sock.recvfrom(_FRAME_BYTES)
            except OSError:
                return
            self._frames += 1
            if self._frames > _FRAMES_MOST:
                self.missed += 1
                asyncio.get_running_loop().remove_reader(sock)
                return
            if sock is self._wire:
                self._framed(packet, address)
            else:
                self._passed(packet, sock.family, address)

    def _framed(self, packet: bytes, address: tuple[str, int, int, int, bytes]) -> None:
        name, _, kind, hardware, _ = address
        if name == self._interface:  # made anew meanwhile, under another index
            return
        ends = frames.addresses(packet)
        if ends and hardware != _ARPHRD_LOOPBACK and any(map(self._is_inside, ends)):
            for told in self.on_leak:
                told(Leak(*ends))
        if datagram := frames.datagram(packet):
            self._tell(datagram, outgoing=kind == socket.PACKET_OUTGOING, behind=False)

    def _passed(self, packet: bytes, family: int, address: tuple[str, int]) -> None:
        if family == socket.AF_INET:
            if datagram := frames.datagram(packet):
                self._tell(datagram, outgoing=False, behind=True)
        elif len(packet) >= frames.UDP_HEAD_BYTES:
            source_port, target_port = struct.unpack_from(">HH", packet)
            source = socket.inet_pton(family, address[0].partition("%")[0])
            payload = packet[frames.UDP_HEAD_BYTES :]
            self._tell(Datagram(source, source_port, b"", target_port, payload), outgoing=False, behind=True)

    def _tell(self, datagram: Datagram, *, outgoing: bool, behind: bool) -> None:
        if self._port not in (datagram.source_port, datagram.target_port):
            return
        for message in frames.messages(datagram.payload):
            seen = Seen(outgoing, behind, datagram, message)
            for told in self.on_seen:
                told(seen)

    def _is_inside(self, address: bytes) -> bool:
        return any(
            len(address) == len(net) and all(a & m == n for a, n, m in zip(address, net, mask, strict=True))
            for net, mask in self._inside
        )


def inject(source: bytes, source_port: int, target: bytes, target_port: int, payload: bytes) -> None:
    """Send UDP from a port that is somebody else's socket. Raises EnvironmentFault."""
    family = socket.AF_INET6 if len(source) == 16 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_RAW | _FLAGS, socket.IPPROTO_UDP) as sock:
            attach(sock, bpf.assemble(bpf.NOTHING))  # it sends only
            sock.bind((socket.inet_ntop(family, source), 0))
            body = frames.udp(source, source_port, target, target_port, payload)
            sock.sendto(body, (socket.inet_ntop(family, target), 0))
    except OSError as error:
        raise _unsent(error) from error


def forge(interface: str, target: str, packet: bytes) -> None:
    """Send a whole IPv4 packet by `interface`, whatever its source. Raises EnvironmentFault."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW | _FLAGS, socket.IPPROTO_RAW) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0")
            sock.sendto(packet, (target, 0))
    except OSError as error:
        raise _unsent(error) from error


def _unsent(error: OSError) -> EnvironmentFault:
    if isinstance(error, PermissionError):
        return EnvironmentFault(NO_RIGHT, _GIVE)
    return EnvironmentFault(f"an experiment's packet cannot be sent: {error.strerror or error}")


def attach(sock: socket.socket, program: bytes) -> None:
    """Have the kernel filter what a socket gets. Raises OSError.

    By array and not by ctypes, which wants memory that is writable and executable: the unit forbids that.
    """
    held = array("B", program)
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", len(program) // 8, held.buffer_info()[0]))
