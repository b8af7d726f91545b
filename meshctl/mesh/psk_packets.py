"""What the two ends of a pair say to each other about their pre-shared keys: fixed packets inside the tunnel (NET-6).

They share the port of the echoes, under a magic of their own. Layout, big endian:

    magic "MKQ1" 4 | kind 1 | part 1 | ask 1 | sender 15 | receiver 15 | sequence 4 | now 4 | mark 8 | next 4 | good 4 |
    version 4 | exchange 8 || body || tag 16

Every packet tells what its sender has: `now`, the version its WireGuard holds (0: none), with a mark that only who has
the same key can make (crypto/kem.py); `next`, the highest other version on file; `good`, the last one that a handshake
proved. `ask`: a STATE is wanted. `version` and `exchange` say what a packet is about: in an OFFER and an ANSWER the
exchange is named by the hash of the encapsulation key, in a SET stands the mark of the version to be set.

    STATE, SET, DONE: no body                                                                                 89 bytes
    OFFER:  half of an ML-KEM-768 encapsulation key, 592 bytes                                               681 bytes
    ANSWER: half of an ML-KEM-768 ciphertext, 544 bytes                                                      633 bytes

In halves, because the sockets never fragment and a path may take no more than 1280 bytes. Parsing verifies no tag and
touches no table. Nothing here knows a clock or a socket.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

from meshctl.errors import ProtocolError
from meshctl.mesh.model import NodeId
from meshctl.mesh.probe import TAG_BYTES

MAGIC: Final = b"MKQ1"
MARK_BYTES: Final = 8
PARTS: Final = 2
ENCAPSULATION_KEY_BYTES: Final = 1184  # FIPS 203, table 3
CIPHERTEXT_BYTES: Final = 1088
_HEAD: Final = struct.Struct(">4sBBB15s15sII8sIII8s")
HEAD_BYTES: Final = _HEAD.size + TAG_BYTES
_NO_MARK: Final = bytes(MARK_BYTES)


class Letter(NamedTuple):
    """One packet, tag and all, as a coordinator carries it: to `peer` on its way up, from `peer` on its way down."""

    peer: NodeId
    sealed: bytes


class Kind(IntEnum):
    """What a packet says."""

    STATE = 1
    OFFER = 2
    ANSWER = 3
    SET = 4
    DONE = 5


_KINDS: Final = {int(kind): kind for kind in Kind}
_BODY_BYTES: Final = {Kind.OFFER: ENCAPSULATION_KEY_BYTES // PARTS, Kind.ANSWER: CIPHERTEXT_BYTES // PARTS}
LARGEST_BYTES: Final = HEAD_BYTES + max(_BODY_BYTES.values())


class Head(NamedTuple):
    """What stands before the body; sender and receiver are raw ids."""

    kind: Kind
    part: int
    ask: bool
    sender: bytes
    receiver: bytes
    sequence: int
    now: int
    mark: bytes
    next: int
    good: int
    version: int = 0
    exchange: bytes = _NO_MARK


def pack(head: Head, body: bytes = b"") -> bytes:
    """The bytes before the tag."""
    return _HEAD.pack(MAGIC, *head) + body


def halves(whole: bytes) -> tuple[bytes, bytes]:
    """A key or ciphertext as it travels."""
    middle = len(whole) // PARTS
    return whole[:middle], whole[middle:]


def parse(datagram: bytes) -> tuple[Head, bytes]:
    """(head, body). Raises ProtocolError on anything that `pack` would not have written."""
    if not HEAD_BYTES <= len(datagram) <= LARGEST_BYTES or not datagram.startswith(MAGIC):
        raise ProtocolError("not a packet about pre-shared keys of a version this release knows")
    _, number, part, ask, sender, receiver, *rest = _HEAD.unpack_from(datagram)
    kind = _KINDS.get(number)
    if kind is None or ask > 1 or sender == receiver or len(datagram) != HEAD_BYTES + _BODY_BYTES.get(kind, 0):
        raise ProtocolError("a packet about pre-shared keys of no kind, of a wrong size, or to its own sender")
    head = Head(kind, part, bool(ask), sender, receiver, *rest)
    if part >= (PARTS if kind in _BODY_BYTES else 1):
        raise ProtocolError("a packet about pre-shared keys with a part too many")
    if (head.now == 0) != (head.mark == _NO_MARK) or (kind is not Kind.STATE) != (head.version > 0):
        raise ProtocolError("a packet about pre-shared keys without the version it must name")
    return head, datagram[_HEAD.size : -TAG_BYTES]
