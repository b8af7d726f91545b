"""What two agents say to each other about an experiment on the wire: fixed binary packets inside the tunnel (NET-7).

They share the port of the echoes, under a magic of their own. Layout, big endian:

    magic "MKW1" 4 | kind 1 | standing 1 | sender 15 | receiver 15 | experiment 8 | number 4 || tag 16       64 bytes
    canary: the same, then padding that is made for being altered and is under no tag
    query:  the same without tag, 8 digests of 16 bytes, zeros || tag 16                                   192 bytes
    report: the same without tag, drops 4, clear packets 2, addresses of one of them 16 + 16 (IPv4 as mapped), for each
            digest of the query: seen on the wire 1, let through 1, from the current endpoint 1, then for each of 64
            canary numbers: delivered 1, zeros || tag 16                                                   192 bytes

No answer is larger than its question. Parsing verifies no tag (crypto/probe.py) and touches no table. No clock here.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

from meshctl.errors import ProtocolError
from meshctl.mesh.frames import IPV4_HEAD_BYTES, UDP_HEAD_BYTES
from meshctl.mesh.probe import TAG_BYTES

MAGIC: Final = b"MKW1"
_HEAD: Final = struct.Struct(">4sBB15s15s8sI")
HEAD_BYTES: Final = _HEAD.size + TAG_BYTES
DIGESTS: Final = 8
DIGEST_BYTES: Final = 16
NUMBERS: Final = 64  # canaries of one experiment
_FINDINGS: Final = struct.Struct(f">IH16s16s{3 * DIGESTS}s{NUMBERS}s")
_LONG_BYTES: Final = _HEAD.size + DIGESTS * DIGEST_BYTES
LONG_BYTES: Final = _LONG_BYTES + TAG_BYTES
_PATTERN: Final = b"\x00\x00\xff\xff"
INNER_HEAD_BYTES: Final = IPV4_HEAD_BYTES + UDP_HEAD_BYTES + HEAD_BYTES  # before a canary's padding
_MOST: Final = 255


class Kind(IntEnum):
    """What a packet says."""

    ASK = 1  # open your tap for this experiment
    READY = 2  # `standing` says whether it is
    CANARY = 3
    QUERY = 4
    REPORT = 5
    DONE = 6  # close it


class Standing(IntEnum):
    """How a witness answers an ASK."""

    OPEN = 0
    BUSY = 1
    POWERLESS = 2  # no CAP_NET_RAW there
    BROKEN = 3  # its tap could not be opened


_KINDS: Final = {int(kind): kind for kind in Kind}
_STANDINGS: Final = {int(standing): standing for standing in Standing}
_LONG: Final = frozenset({Kind.QUERY, Kind.REPORT})


class Head(NamedTuple):
    """What every packet begins with; sender and receiver are raw ids."""

    kind: Kind
    standing: Standing
    sender: bytes
    receiver: bytes
    experiment: bytes
    number: int = 0


class Sight(NamedTuple):
    """What a witness saw of one message. Counts end at 255."""

    wire: int = 0  # on its wire, before any firewall
    passed: int = 0  # behind its firewall, on the way to WireGuard's port
    current: bool = False  # from where its WireGuard believes the sender


class Report(NamedTuple):
    """What a witness tells: of the messages asked for, of the canaries delivered, of packets in clear."""

    drops: int
    clear: int
    clear_source: bytes  # of one of them, 16 bytes; IPv4 as the IPv6 address it maps to
    clear_target: bytes
    sights: tuple[Sight, ...]
    delivered: Mapping[int, int]  # by number, where not 0


def pack(head: Head) -> bytes:
    """The bytes before the tag."""
    return _HEAD.pack(MAGIC, *head)


def padding(count: int) -> bytes:
    """So many bytes, a multiple of 4: `altered_at` may be turned over without changing the checksum of the inner UDP
    datagram, as one 16-bit word grows by what the other shrinks.
    """
    return _PATTERN * (count // 4)


def altered_at(overhead: int) -> tuple[int, int]:
    """Where two bytes of the padding stand in a canary's transport message, whose inner packet follows `overhead`."""
    start = overhead + INNER_HEAD_BYTES
    return start + 1, start + 3


def pack_query(head: Head, digests: Sequence[bytes]) -> bytes:
    """The bytes before the tag."""
    return (pack(head) + b"".join(digests)).ljust(_LONG_BYTES, b"\0")


def pack_report(head: Head, report: Report) -> bytes:
    """The bytes before the tag."""
    sights = bytes(n for s in report.sights for n in (min(s.wire, _MOST), min(s.passed, _MOST), int(s.current)))
    delivered = bytes(min(report.delivered.get(number, 0), _MOST) for number in range(NUMBERS))
    facts = _FINDINGS.pack(
        min(report.drops, 0xFFFFFFFF), min(report.clear, 0xFFFF), report.clear_source, report.clear_target, sights,
        delivered,
    )  # fmt: skip
    return (pack(head) + facts).ljust(_LONG_BYTES, b"\0")


def parse(datagram: bytes) -> tuple[Head, bytes]:
    """(head, the bytes its tag is in and over). Raises ProtocolError on anything that no `pack` would have written."""
    if len(datagram) < HEAD_BYTES or not datagram.startswith(MAGIC):
        raise ProtocolError("not a witness packet of a version this release knows")
    _, kind, standing, sender, receiver, experiment, number = _HEAD.unpack_from(datagram)
    if kind not in _KINDS or standing not in _STANDINGS or sender == receiver:
        raise ProtocolError("a witness packet of no kind, or to its own sender")
    head = Head(_KINDS[kind], _STANDINGS[standing], sender, receiver, experiment, number)
    if head.kind is Kind.CANARY:
        return head, datagram[:HEAD_BYTES]
    if len(datagram) != (LONG_BYTES if head.kind in _LONG else HEAD_BYTES):
        raise ProtocolError("a witness packet of the wrong size")
    return head, datagram


def digests_of(query: bytes) -> tuple[bytes, ...]:
    """What a query asks for, in its order; zeros are no digest and are asked for all the same."""
    start = _HEAD.size
    return tuple(query[at : at + DIGEST_BYTES] for at in range(start, start + DIGESTS * DIGEST_BYTES, DIGEST_BYTES))


def report_of(datagram: bytes) -> Report:
    """The report in a packet that `parse` took for one."""
    drops, clear, source, target, sights, delivered = _FINDINGS.unpack_from(datagram, _HEAD.size)
    return Report(
        drops, clear, source, target,
        tuple(Sight(sights[at], sights[at + 1], bool(sights[at + 2])) for at in range(0, 3 * DIGESTS, 3)),
        {number: count for number, count in enumerate(delivered) if count},
    )  # fmt: skip
