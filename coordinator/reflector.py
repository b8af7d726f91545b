"""Answers netcheck over UDP: tells a machine where its packets come from, on two ports (NET-8, OPS-4).

STUN Binding (mesh/stun.py), on the port number of the TLS front and on a second one. An answer that is to come from
another port comes from a third, to which nobody ever writes, and not from the second as in RFC 5780: a Linux NAT that
has refused a packet from the second port shows its machine there under a changed port, and an easy NAT would look hard.

Whoever asks is a stranger, and a source address proves nothing: no answer is larger than its question or goes anywhere
but back, and nothing is kept or logged for one packet. A fixed table of allowances, by source network, bounds what one
network can ask for or be sent by a forger. A flood is left in the kernel's queue, because this shares the event loop
with all the mesh's streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address
from typing import Final

from meshctl.errors import ProtocolError
from meshctl.mesh import stun
from meshctl.mesh.model import Endpoint
from meshctl.mesh.sizing import Allowance

READS_PER_WAKE: Final = 32
READS_PER_S: Final = 3_200.0  # of one socket
READS_BURST: Final = 256.0
PAUSE_S: Final = 0.02  # until a socket that brought more is looked at again
NETWORKS: Final = 1024  # places in the table; networks that share one share its allowance
NETWORK_BYTES: Final = {4: 3, 6: 7}  # a /24 and a /56
PER_NETWORK_PER_S: Final = 50.0
PER_NETWORK_BURST: Final = 400.0  # ten machines at once: a netcheck asks for 13 answers, for 40 where packets are lost
TOTAL_PER_S: Final = 2_000.0
TOTAL_BURST: Final = 4_000.0
_READ_BYTES: Final = stun.LARGEST_BYTES + 4  # what is longer is cut, and so refused
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(20)
# linux/in.h, linux/in6.h: IP_PKTINFO twice, IPV6_RECVPKTINFO and IPV6_PKTINFO. An answer leaves from the address asked.
_TELL: Final = {socket.AF_INET: (socket.IPPROTO_IP, 8), socket.AF_INET6: (socket.IPPROTO_IPV6, 49)}
_FROM: Final = {socket.AF_INET: (socket.IPPROTO_IP, 8), socket.AF_INET6: (socket.IPPROTO_IPV6, 50)}
_INFO4, _INFO6 = struct.Struct("=I4s4s"), struct.Struct("=16sI")


class Drop(StrEnum):
    """Why a datagram was ignored: a bounded code for metrics."""

    MALFORMED = "malformed"  # no Binding request
    UNSUPPORTED = "unsupported"  # asks for what we do not do, such as an answer to somewhere else
    SHORT = "short"  # an answer would be longer
    RATE = "rate"  # too much from one network
    BUSY = "busy"  # too much from all
    UNSENT = "unsent"  # ours: the kernel did not take the answer


@dataclass(frozen=True, slots=True)
class Figures:
    """Counts since the start, for metrics."""

    answered: int
    dropped: Mapping[Drop, int]


class Judge:
    """Which datagram is answered, and with what. Constant memory; times are the caller's seconds."""

    def __init__(self, salt: bytes) -> None:
        """`salt`: random, so that nobody can choose whose allowance a forged source shares."""
        self._salt = salt
        self._networks = [Allowance(PER_NETWORK_PER_S, PER_NETWORK_BURST) for _ in range(NETWORKS)]
        self._total = Allowance(TOTAL_PER_S, TOTAL_BURST)

    def answer(
        self, datagram: bytes, source: Endpoint, here: Endpoint, other: Endpoint | None, third: int, *, now: float
    ) -> tuple[bytes, bool] | Drop:
        """(the answer, whether it leaves from the `third` port), from cheap checks to dear ones."""
        try:
            asked = stun.parse(datagram)
        except ProtocolError:
            return Drop.MALFORMED
        if asked.kind is not stun.Kind.REQUEST or not source.port:
            return Drop.MALFORMED
        if asked.unknown or asked.change_address:
            return Drop.UNSUPPORTED
        network = source.address.packed[: NETWORK_BYTES[source.address.version]]
        if not self._networks[hash(self._salt + network) % NETWORKS].take(1, now=now):
            return Drop.RATE
        if not self._total.take(1, now=now):
            return Drop.BUSY
        origin = Endpoint(here.address, third) if asked.change_port else here
        told = stun.answer(asked.transaction, len(datagram), source, origin, other)
        return Drop.SHORT if told is None else (told, asked.change_port)


class _Port:
    """One UDP socket that is read; `other` is the second one of its address, `third` the one that only sends."""

    def __init__(self, reflector: Reflector, sock: socket.socket, third: socket.socket) -> None:
        self.sock, self.number = sock, int(sock.getsockname()[1])
        self.third, self.silent = third, int(third.getsockname()[1])
        self.other: _Port | None = None
        self._reflector, self._loop = reflector, asyncio.get_running_loop()
        self._reads = Allowance(READS_PER_S, READS_BURST)
        self._resume: asyncio.TimerHandle | None = None
        self._loop.add_reader(sock, self._read)

    def close(self) -> None:
        if self._resume:
            self._resume.cancel()
        self._loop.remove_reader(self.sock)
        self.sock.close()
        self.third.close()

    def _read(self) -> None:
        now = self._reflector.monotonic()
        for _ in range(READS_PER_WAKE):
            if not self._reads.take(1, now=now):
                self._loop.remove_reader(self.sock)
                self._resume = self._loop.call_later(PAUSE_S, self._loop.add_reader, self.sock, self._read)
                return
            try:
                datagram, ancillary, _, source = self.sock.recvmsg(_READ_BYTES, _ANCILLARY_BYTES)
            except OSError:  # nothing left, or an error that the next read does not have
                return
            self._reflector.take(self, datagram, ancillary, source)


class Reflector:
    """The sockets. `monotonic` gives seconds."""

    def __init__(self, salt: bytes, monotonic: Callable[[], float]) -> None:
        self._judge, self.monotonic = Judge(salt), monotonic
        self._ports: list[_Port] = []
        self._answered = 0
        self._dropped: Counter[Drop] = Counter()

    @property
    def figures(self) -> Figures:
        """The figures of this moment."""
        return Figures(self._answered, dict(self._dropped))

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """(host, port) of every socket."""
        return [port.sock.getsockname()[:2] for port in self._ports]

    async def start(self, addresses: Sequence[tuple[str, int]], second: int | None) -> list[str]:
        """Listen on every (host, port), and on the port `second` of the same hosts; None: the next one of each.

        What cannot be had is told in sentences: a coordinator serves its mesh without it.
        """
        troubles: list[str] = []
        for host, number in addresses:
            beside = number + 1 if second is None else second
            first = await self._open(host, number, troubles)
            if first and beside <= 0xFFFF and (then := await self._open(host, beside, troubles)):
                first.other, then.other = then, first
        return troubles

    def stop(self) -> None:
        """Close the sockets."""
        for port in self._ports:
            port.close()
        self._ports.clear()

    async def _open(self, host: str, number: int, troubles: list[str]) -> _Port | None:
        try:
            kind = socket.SOCK_DGRAM
            found = await asyncio.get_running_loop().getaddrinfo(host, number, type=kind, flags=socket.AI_PASSIVE)
            with contextlib.ExitStack() as stack:
                pair = [stack.enter_context(_socket(found[0][0])) for _ in range(2)]
                for sock, own in zip(pair, (number, 0), strict=True):
                    sock.bind((found[0][4][0], own, *found[0][4][2:]))
                stack.pop_all()
        except OSError as error:
            troubles.append(f"UDP port {number} of {host} is not to be had: {error.strerror}")
            return None
        self._ports.append(_Port(self, *pair))
        return self._ports[-1]

    def take(self, port: _Port, datagram: bytes, ancillary: list[tuple[int, int, bytes]], source: tuple) -> None:  # type: ignore[type-arg]
        """One datagram, whoever sent it."""
        local = _local(port.sock.family, ancillary)
        if local is None:
            self._dropped[Drop.MALFORMED] += 1
            return
        address, back = local
        here = Endpoint(ip_address(address), port.number)
        other = Endpoint(here.address, port.other.number) if port.other else None
        sender = Endpoint(ip_address(source[0].partition("%")[0]), source[1])
        told = self._judge.answer(datagram, sender, here, other, port.silent, now=self.monotonic())
        if isinstance(told, Drop):
            self._dropped[told] += 1
            return
        data, change = told
        out = port.third if change else port.sock
        try:
            out.sendmsg([data], [(*_FROM[out.family], back)], 0, source)
        except OSError:
            self._dropped[Drop.UNSENT] += 1
        else:
            self._answered += 1


def _socket(family: socket.AddressFamily) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setblocking(False)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.setsockopt(*_TELL[family], 1)
    return sock


def _local(family: int, ancillary: Sequence[tuple[int, int, bytes]]) -> tuple[bytes, bytes] | None:
    """Of what the kernel says about a packet: (the address asked, what makes an answer leave from it)."""
    for level, kind, data in ancillary:
        if family == socket.AF_INET and (level, kind) == _FROM[socket.AF_INET] and len(data) >= _INFO4.size:
            local = _INFO4.unpack_from(data)[1]
            return local, _INFO4.pack(0, local, bytes(4))
        if family == socket.AF_INET6 and (level, kind) == _FROM[socket.AF_INET6] and len(data) >= _INFO6.size:
            local, index = _INFO6.unpack_from(data)
            return local, _INFO6.pack(local, index if local[0] == 0xFE else 0)  # a link-local one is one link's
    return None
