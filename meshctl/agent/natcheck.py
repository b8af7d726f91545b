"""Asks coordinators over UDP where this machine's packets come from, what gets in, and how large they may be (NET-8).

STUN (mesh/stun.py) from one socket per IP version, on WireGuard's port where it is free: what a NAT shows to one
destination and to another can only be compared for one socket. Writes to the coordinators' own addresses alone. Each
try has a transaction of its own, so an answer tells its round trip; an answer counts if it comes from the address that
was asked. Judges nothing (mesh/nat.py does).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any, Final, NamedTuple

from meshctl.errors import ProtocolError
from meshctl.mesh import stun
from meshctl.mesh.model import Endpoint
from meshctl.mesh.nat import ANSWERED, REFUSED, SILENT, Look
from meshctl.mesh.sizing import OVERHEAD_BYTES

TRIES_S: Final = (0.25, 0.5, 0.75, 1.0)  # what is waited for after each
PROBE_TRIES_S: Final = (0.3, 0.5, 0.7)  # once an answer has come
SIZES: Final = (1500, 1492, 1480, 1460, 1440, 1420, 1400, 1380, 1360, 1280)  # Ethernet, PPPoE, tunnels; ours; IPv6's
_READS: Final = 64
_VERSIONS: Final = {socket.AF_INET: 4, socket.AF_INET6: 6}
# linux/in.h, linux/in6.h: IP_MTU, IP_MTU_DISCOVER, IP_RECVERR and their siblings; 3 is IP_PMTUDISC_PROBE: never split.
_LEVEL: Final = {socket.AF_INET: socket.IPPROTO_IP, socket.AF_INET6: socket.IPPROTO_IPV6}
_MTU: Final = {socket.AF_INET: 14, socket.AF_INET6: 24}
_MTU_DISCOVER: Final = {socket.AF_INET: 10, socket.AF_INET6: 23}
_RECVERR: Final = {socket.AF_INET: 11, socket.AF_INET6: 25}
_EXTENDED_ERROR: Final = struct.Struct("=IBBBBII")  # linux/errqueue.h
_PROBE = 3

Address = tuple[Any, ...]  # as sockets have it: (host, port) or (host, port, flow, scope)


class Local(NamedTuple):
    """Our end towards an address: host, and the path MTU as the kernel knows it (bytes)."""

    host: str
    mtu: int


class _Answer(NamedTuple):
    mapped: Endpoint
    second: int
    rtt_s: float


@dataclass(slots=True)
class _Asked:
    to: Address
    change: bool  # it is to come from a port that nobody wrote to
    at: float
    answer: asyncio.Future[_Answer | str]


def local(family: socket.AddressFamily, to: Address) -> Local | str:
    """Sends nothing. An error's words when there is no way there."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(to)
            return Local(str(probe.getsockname()[0]), probe.getsockopt(_LEVEL[family], _MTU[family]))
    except OSError as error:
        return error.strerror or str(error)


class _Asker:
    """One socket; use as a context manager."""

    def __init__(self, family: socket.AddressFamily, wanted: int) -> None:
        self._waiting: dict[bytes, _Asked] = {}
        self._loop = asyncio.get_running_loop()
        self._sock = socket.socket(family, socket.SOCK_DGRAM)
        level = _LEVEL[family]
        if family == socket.AF_INET6:
            self._sock.setsockopt(level, socket.IPV6_V6ONLY, 1)
        self._sock.setsockopt(level, _MTU_DISCOVER[family], _PROBE)
        self._sock.setsockopt(level, _RECVERR[family], 1)
        self._sock.setblocking(False)
        try:
            self._sock.bind(("", wanted))
        except OSError:  # WireGuard has it, or it is for root
            self._sock.bind(("", 0))
        self.port = int(self._sock.getsockname()[1])

    def __enter__(self) -> _Asker:
        self._loop.add_reader(self._sock, self._read)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.remove_reader(self._sock)
        self._sock.close()

    async def ask(
        self, to: Address, tries_s: Sequence[float], *, size: int = stun.REQUEST_BYTES, change: bool = False
    ) -> _Answer | str:
        """The answer, or: refused, silent, an error's words. `change`: another port is to answer."""
        future: asyncio.Future[_Answer | str] = self._loop.create_future()
        mine: list[bytes] = []
        try:
            for wait_s in tries_s:
                mine.append(os.urandom(stun.TRANSACTION_BYTES))
                self._waiting[mine[-1]] = _Asked(to, change, time.monotonic(), future)
                if words := self._send(stun.request(mine[-1], size, change_port=change), to):
                    return words
                await asyncio.wait((future,), timeout=wait_s)
                if future.done():
                    return future.result()
            return SILENT
        finally:
            for transaction in mine:
                self._waiting.pop(transaction, None)

    def _send(self, datagram: bytes, to: Address) -> str:
        """Empty, or why the kernel did not take it."""
        for last in (False, True):
            try:
                self._sock.sendto(datagram, to)
            except BlockingIOError:
                return ""  # as good as lost; it is tried again
            except OSError as error:
                self._refusals()  # an earlier packet's error may be what was reported
                if last or error.errno in {errno.EMSGSIZE, errno.EPERM}:
                    return error.strerror or str(error)
            else:
                return ""
        return ""

    def _read(self) -> None:
        for _ in range(_READS):
            try:
                datagram, source = self._sock.recvfrom(2048)
            except BlockingIOError:
                break
            except OSError:  # the error of an earlier packet
                continue
            with contextlib.suppress(ProtocolError):
                self._take(stun.parse(datagram), source)
        self._refusals()

    def _take(self, message: stun.Message, source: Address) -> None:
        asked = self._waiting.get(message.transaction)
        if asked is None or asked.answer.done() or message.kind is not stun.Kind.ANSWER or message.mapped is None:
            return
        if source[0] != asked.to[0] or (source[1] == asked.to[1]) is asked.change:
            return
        second = message.other.port if message.other else 0
        asked.answer.set_result(_Answer(message.mapped, second, time.monotonic() - asked.at))

    def _refusals(self) -> None:
        """What ICMP said of packets that were sent."""
        for _ in range(_READS):
            try:
                _, ancillary, _, to = self._sock.recvmsg(2048, 512, socket.MSG_ERRQUEUE)
            except OSError:
                return
            for _, _, data in ancillary:
                number = _EXTENDED_ERROR.unpack_from(data)[0] if len(data) >= _EXTENDED_ERROR.size else 0
                if number == errno.ECONNREFUSED:
                    for asked in self._waiting.values():
                        if asked.to[:2] == to[:2] and not asked.answer.done():
                            asked.answer.set_result(REFUSED)


async def measure(
    targets: Mapping[str, Iterable[tuple[socket.AddressFamily, Address]]], wanted: int
) -> dict[str, tuple[Look, ...]]:
    """Per coordinator, by name, what each of its addresses says; within eight seconds. `wanted`: WireGuard's port."""
    with contextlib.ExitStack() as stack:
        askers: dict[socket.AddressFamily, _Asker] = {}
        looks: dict[str, list[asyncio.Task[Look]]] = {}
        missing: dict[str, list[Look]] = {}
        async with asyncio.TaskGroup() as group:
            for name, addresses in targets.items():
                for family, to in addresses:
                    here = local(family, to)
                    if isinstance(here, str):
                        missing.setdefault(name, []).append(Look(name, _VERSIONS[family], here))
                        continue
                    if family not in askers:
                        askers[family] = stack.enter_context(_Asker(family, wanted))
                    work = _look(askers[family], name, _VERSIONS[family], here, to)
                    looks.setdefault(name, []).append(group.create_task(work))
        # A machine without IPv6 lacks nothing as long as the coordinator has another address.
        done = {name: tuple(task.result() for task in tasks) for name, tasks in looks.items()}
        return {name: done.get(name) or tuple(missing.get(name, ())) for name in targets}


async def _look(asker: _Asker, name: str, version: int, here: Local, to: Address) -> Look:
    source = str(Endpoint(ip_address(here.host.partition("%")[0]), asker.port))
    answer = await asker.ask(to, TRIES_S)
    if isinstance(answer, str):
        return Look(name, version, answer, source)
    look = Look(name, version, ANSWERED, source, str(answer.mapped), rtt_s=answer.rtt_s)
    patience = [max(wait_s, 2 * answer.rtt_s) for wait_s in PROBE_TRIES_S]
    unasked, width = await asyncio.gather(
        asker.ask(to, patience, change=True), _width(asker, version, here, to, patience)
    )
    look = replace(look, unasked=not isinstance(unasked, str))
    if answer.second:
        again = await asker.ask((to[0], answer.second, *to[2:]), patience)
        look = replace(look, seen_second="" if isinstance(again, str) else str(again.mapped))
    return replace(look, passes=width[0], lost=width[1])


async def _width(
    asker: _Asker, version: int, here: Local, to: Address, patience: Sequence[float]
) -> tuple[int | None, int | None]:
    """(largest IP packet that is answered, the next larger one that is not), None where there is none."""
    full = min(here.mtu, SIZES[0])
    sizes = [full, *(size for size in SIZES if size < full)]
    passed: set[int] = set()
    for _ in range(2):  # what is lost is asked for once more: loss of one packet in ten looks like a hole, too
        asked = [size for size in sizes if size > max(passed, default=0)]
        payload = [(size - OVERHEAD_BYTES[version]) // 4 * 4 for size in asked]  # STUN counts in fours
        answers = await asyncio.gather(*(asker.ask(to, patience, size=size) for size in payload))
        passed |= {size for size, answer in zip(asked, answers, strict=True) if not isinstance(answer, str)}
        if full in passed:
            return full, None
    if not passed:
        return None, None
    return max(passed), min(size for size in sizes if size > max(passed))
