"""The size echo: a packet of a chosen size whose answer says what of it arrived (NET-7, PATH-002, INT-001).

Layout, big endian; the tag covers the header alone (crypto/probe.py), so that an altered payload is answered, too:

    magic "MKS1" 4 | kind 1 (1 ping, 2 pong, 3 busy) | sender 15 | receiver 15 | nonce 8 | back 2 | mtu 2 | route 2 |
    heard 2 | digest 16 | arrived 16 || tag 16 || payload, random

`back`: bytes of the datagram that a ping asks for, else 0. Busy: too much was asked for, and no payload comes.
`digest` is that of the payload as it was sent, `arrived` that of the ping's as it came (in a pong alone). Of the
sender: `mtu` of its mesh interface; `route`, the limit of its own route to the receiver (0: none); `heard`, the largest
packet that it knows to arrive from the receiver (0: all do).

Any bytes parse or are refused. Parsing verifies no tag and reads no payload. Nothing here knows a clock or a socket.
"""

from __future__ import annotations

import hashlib
import struct
from enum import IntEnum
from typing import Final, NamedTuple

from meshctl.errors import ProtocolError
from meshctl.mesh.probe import TAG_BYTES

MAGIC: Final = b"MKS1"
DIGEST_BYTES: Final = 16
_HEAD: Final = struct.Struct(">4sB15s15sQHHHH16s16s")
_NOTHING: Final = bytes(DIGEST_BYTES)
HEADER_BYTES: Final = _HEAD.size + TAG_BYTES
LARGEST_BYTES: Final = 9216  # a jumbo frame; the prober reads no more
OVERHEAD_BYTES: Final = {4: 28, 6: 48}  # IP and UDP, by version


class Kind(IntEnum):
    """What a packet asks for."""

    PING = 1
    PONG = 2
    BUSY = 3


_KINDS: Final = {int(kind): kind for kind in Kind}


class Head(NamedTuple):
    """What stands before the payload; `sender` and `receiver` are raw ids."""

    kind: Kind
    sender: bytes
    receiver: bytes
    nonce: int
    back: int
    mtu: int
    route: int
    heard: int
    digest: bytes
    arrived: bytes = _NOTHING


def digest(payload: bytes) -> bytes:
    """What two ends compare. It need not be secret: the header that carries it has a tag."""
    return hashlib.blake2s(payload, digest_size=DIGEST_BYTES, person=b"mkc/size").digest()


def pack(head: Head) -> bytes:
    """The bytes before the tag."""
    return _HEAD.pack(MAGIC, *head)


def parse(datagram: bytes) -> Head:
    """The header of `datagram`, tag unread. Raises ProtocolError on anything that `pack` would not have written."""
    if not HEADER_BYTES <= len(datagram) <= LARGEST_BYTES or not datagram.startswith(MAGIC):
        raise ProtocolError("not a size echo of a version this release knows")
    _, kind, sender, receiver, nonce, back, mtu, route, heard, sent, arrived = _HEAD.unpack_from(datagram)
    if kind not in _KINDS or sender == receiver:
        raise ProtocolError("a size echo of no kind, or to its own sender")
    if kind == Kind.PING:
        legal = HEADER_BYTES <= back <= LARGEST_BYTES and arrived == _NOTHING
    else:
        legal = back == 0 and (kind == Kind.PONG or (len(datagram) == HEADER_BYTES and arrived == _NOTHING))
    if not legal:
        raise ProtocolError("a size echo that asks for an impossible answer")
    return Head(_KINDS[kind], sender, receiver, nonce, back, mtu, route, heard, sent, arrived)


class Allowance:
    """Bytes that may still be spent: so many a second, and so many at once. Times are the caller's seconds."""

    __slots__ = ("_at", "_burst", "_left", "_per_s")

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s, self._burst, self._left = per_s, burst, burst
        self._at = float("-inf")

    def take(self, size: int, *, now: float) -> bool:
        """Whether `size` bytes are allowed now; they are spent then."""
        left = min(self._left + max(now - self._at, 0) * self._per_s, self._burst)
        self._at = max(now, self._at)
        self._left = left - size if size <= left else left
        return size <= left
