"""The echo: one fixed binary packet, and what is known of a peer from echoes (NET-7).

Ping and pong have the same size, so that nobody is amplified at. Layout, big endian, 102 bytes:

    magic "MKP1" 4 | kind 1 (1 ping, 2 pong, 3 go) | sender 15 | receiver 15 | sequence 4 | round 4 | clock 8 |
    echoed clock 8 | endpoint of the receiver, as the sender's WireGuard sees it: family 1 (0 unknown, 4, 6),
    address 16, port 2 | serial 4 | span 4 || tag 16

Serial and span are about rotations. In ping and pong: the highest serial of the receiver's statements that the sender
holds, and for how many microseconds its packets stood still when the receiver's key last changed. In a go: the sender's
next statement is in force, and how long the receiver is to wait before it follows.

Node ids are their 15 raw bytes. Clocks are the sender's wall clock in nanoseconds; the echoed one is that of the last
packet the sender had from the receiver: in a pong the ping it answers, in a ping the proof that the last answer
arrived. So exchanges led by one side show both sides both directions. The tag covers everything before it
(crypto/probe.py).

Every valid packet has exactly one encoding. Parsing verifies no tag and touches no table. Nothing here knows a clock.
"""

from __future__ import annotations

import base64
import struct
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple

from meshctl.errors import ProtocolError
from meshctl.mesh.model import Address, Endpoint, NodeId

TAG_BYTES: Final = 16
_BODY: Final = struct.Struct(">4sB15s15sIIQQB16sHII")
_MAGIC: Final = b"MKP1"
DOWN_AFTER: Final = 3  # echoes lost in a row; at 2 s each a dead peer is noticed in 6 to 8 s
LOSSY_ABOVE: Final = 0.10  # two of the last 16 echoes; one may be chance
_WINDOW: Final = 16  # tests counted for loss: half a minute at 2 s
_WINDOW_MASK: Final = (1 << _WINDOW) - 1
PACKET_BYTES: Final = _BODY.size + TAG_BYTES
_V4_REST: Final = bytes(12)
Place = tuple[int, bytes, int]
NOWHERE: Final[Place] = (0, bytes(16), 0)


class Kind:
    """What a packet asks for. Plain numbers: an enumeration costs as much as the rest of the parsing."""

    PING: Final = 1
    PONG: Final = 2
    GO: Final = 3


_KINDS: Final = frozenset((Kind.PING, Kind.PONG, Kind.GO))


class Packet(NamedTuple):
    """One echo packet, field by field as on the wire; `sender` and `receiver` are raw ids."""

    kind: int
    sender: bytes
    receiver: bytes
    sequence: int
    round: int
    clock_ns: int
    echo_ns: int = 0
    family: int = NOWHERE[0]
    address: bytes = NOWHERE[1]
    port: int = NOWHERE[2]
    serial: int = 0
    span_us: int = 0

    @property
    def endpoint(self) -> Endpoint | None:
        """Where the sender's WireGuard sees the receiver. Raises ProtocolError, but never for a packet from `parse`."""
        return _endpoint(self.family, self.address, self.port)


@dataclass(slots=True)
class Echo:
    """What echoes say of one peer, counted as they end. `sent` and `received` count the last finished tests; times are
    monotonic seconds. Smoothing is RFC 6298's for the round trip and RFC 3550's for jitter.
    """

    sent: int = 0
    received: int = 0
    missed: int = 0  # tests lost in a row, up to now
    rtt_s: float | None = None  # smoothed
    jitter_s: float = 0.0
    offset_s: float | None = None  # the peer's wall clock minus ours
    last_ok_at: float | None = None  # both directions were proven
    tested_at: float | None = None  # a test ended, one way or the other
    forged: int = 0  # packets from its address with a wrong tag
    forged_at: float | None = None
    seen: Endpoint | None = None  # where the peer's WireGuard sees us
    _bits: int = field(default=0, repr=False)
    _since: float = field(default=float("-inf"), repr=False)  # when the count began

    @property
    def loss(self) -> float:
        """Share of the counted tests that were lost, 0 to 1."""
        return 1 - self.received / self.sent if self.sent else 0.0

    @property
    def is_suspect(self) -> bool:
        """Worth more tests than the schedule's: something was lost, but the peer is not known to be down."""
        return self.missed < DOWN_AFTER and (self.missed > 0 or self.loss > LOSSY_ABOVE)

    def answered(self, rtt_s: float, offset_s: float, *, now: float) -> None:
        """A pong came."""
        self._appeared(now=now)
        if self.rtt_s is None:
            self.rtt_s = rtt_s
        else:
            self.jitter_s += (abs(rtt_s - self.rtt_s) - self.jitter_s) / 16
            self.rtt_s += (rtt_s - self.rtt_s) / 8
        self.missed, self.offset_s, self.last_ok_at = 0, offset_s, now
        self._count(1, now=now)

    def lost(self, asked_at: float, *, now: float) -> None:
        """No pong came in time. One that was asked for before the peer appeared says nothing."""
        if asked_at >= self._since:
            self.missed += 1
            self._count(0, now=now)

    def proven(self, *, now: float) -> None:
        """The peer's ping echoed our last packet: both directions work, and the peer did the asking."""
        self._appeared(now=now)
        self.missed, self.last_ok_at, self.tested_at = 0, now, now

    def was_forged(self, *, now: float) -> None:
        """A packet from the peer's address had a wrong tag."""
        self.forged, self.forged_at = self.forged + 1, now

    def _appeared(self, *, now: float) -> None:
        """The first proof ever, or after a whole window of losses, starts the count: absence is not loss."""
        if self.missed >= _WINDOW or self.last_ok_at is None:
            self.sent = self.received = self._bits = 0
            self._since = now

    def _count(self, answered: int, *, now: float) -> None:
        self._bits = (self._bits << 1 | answered) & _WINDOW_MASK
        self.sent, self.received, self.tested_at = min(self.sent + 1, _WINDOW), self._bits.bit_count(), now


def raw_id(node: NodeId) -> bytes:
    """The 15 bytes that a node id spells. Raises ProtocolError."""
    try:
        raw = base64.b32decode(node.upper())
    except ValueError as error:
        raise ProtocolError(f"{node!r} is not a node id") from error
    if len(raw) != 15:
        raise ProtocolError(f"{node!r} is not a node id")
    return raw


def pack(packet: Packet) -> bytes:
    """The bytes before the tag."""
    return _BODY.pack(_MAGIC, *packet)


def parse(datagram: bytes) -> Packet:
    """The packet in `datagram`, tag unread. Raises ProtocolError on anything that `pack` would not have written."""
    if len(datagram) != PACKET_BYTES or not datagram.startswith(_MAGIC):
        raise ProtocolError("not an echo packet of a version this release knows")
    packet = Packet(*_BODY.unpack_from(datagram)[1:])
    if packet.kind not in _KINDS or packet.sender == packet.receiver:
        raise ProtocolError("an echo packet of no kind, or to its own sender")
    _endpoint(packet.family, packet.address, packet.port)
    return packet


def place(endpoint: Endpoint | None) -> Place:
    """Family, address and port as packets carry them."""
    if endpoint is None:
        return NOWHERE
    address = endpoint.address
    return address.version, address.packed.ljust(16, b"\0"), endpoint.port


@lru_cache(maxsize=8)  # peers see us at few places, packet after packet; not more, as strangers' packets come by too
def _endpoint(family: int, address: bytes, port: int) -> Endpoint | None:
    if (family, address, port) == NOWHERE:
        return None
    where: Address
    if family == 4 and port and address.endswith(_V4_REST):
        where = IPv4Address(address[:4])
    elif family == 6 and port:
        where = IPv6Address(address)
    else:
        raise ProtocolError("an echo packet with an impossible endpoint")
    return Endpoint(where, port)
