"""What a tap sees: IP packets, the UDP datagrams in them, the WireGuard messages in those; and bytes to put on a wire.

Pure bytes in, values out. Whatever the bytes are, nothing here raises: what cannot be read is None. Knows no socket.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from typing import Final, NamedTuple

from meshctl.mesh.model import Endpoint

INITIATION, RESPONSE, COOKIE, TRANSPORT = 1, 2, 3, 4  # WireGuard's message types
INITIATION_BYTES: Final = 148
TRANSPORT_HEAD_BYTES: Final = 16  # type, receiver's index, counter; the inner packet follows, enciphered
TRANSPORT_BYTES: Final = 32  # of a transport message without an inner packet: head and tag
UDP_HEAD_BYTES: Final = 8
IPV4_HEAD_BYTES: Final = 20  # without options
_UDP: Final = 17
_V4: Final = struct.Struct(">BBHHHBBH4s4s")
_HEAD: Final = struct.Struct("<III")
_TRANSPORT: Final = struct.Struct("<IIQ")


class Datagram(NamedTuple):
    """One UDP datagram as an interface carried it. Addresses are raw: thousands are looked at."""

    source: bytes
    source_port: int
    target: bytes
    target_port: int
    payload: bytes

    @property
    def came_from(self) -> Endpoint:
        """The source."""
        return Endpoint(ip_address(self.source), self.source_port)

    @property
    def goes_to(self) -> Endpoint:
        """The destination."""
        return Endpoint(ip_address(self.target), self.target_port)


class Transport(NamedTuple):
    """A WireGuard transport message."""

    receiver: int  # index of its session
    counter: int
    payload: bytes


def addresses(packet: bytes) -> tuple[bytes, bytes] | None:
    """(source, destination) of an IP packet, raw."""
    if len(packet) >= 20 and packet[0] >> 4 == 4:
        return packet[12:16], packet[16:20]
    if len(packet) >= 40 and packet[0] >> 4 == 6:
        return packet[8:24], packet[24:40]
    return None


def datagram(packet: bytes) -> Datagram | None:
    """The UDP datagram in an IP packet, if there is a whole one. Its length is what the IP header says: frames are
    padded, and one that the kernel merged from several may say more than its UDP header.
    """
    ends = addresses(packet)
    if ends is None:
        return None
    if packet[0] >> 4 == 4:
        start, end = (packet[0] & 15) * 4, int.from_bytes(packet[2:4], "big")
        fragment = int.from_bytes(packet[6:8], "big") & 0x3FFF  # more to come, or an offset
        if packet[9] != _UDP or start < 20 or fragment:
            return None
    else:
        start, end = 40, 40 + int.from_bytes(packet[4:6], "big")
        if packet[6] != _UDP:
            return None
    end = min(end, len(packet))
    if end < start + UDP_HEAD_BYTES:
        return None
    source_port, target_port = struct.unpack_from(">HH", packet, start)
    return Datagram(ends[0], source_port, ends[1], target_port, packet[start + UDP_HEAD_BYTES : end])


def messages(payload: bytes) -> list[bytes]:
    """The WireGuard messages in what a tap shows as one datagram: the kernel may have merged (GRO) or not yet split
    (GSO) several of one size to one receiver, of which only the last may be shorter.
    """
    head = payload[:8]  # type and receiver's index: 64 bits that enciphered bytes repeat by accident never
    if len(head) < 8 or head[0] != TRANSPORT:
        return [payload]
    size = payload.find(head, TRANSPORT_BYTES)
    if size < 0:
        return [payload]
    return [payload[at : at + size] for at in range(0, len(payload), size)]


def transport(payload: bytes) -> Transport | None:
    """A transport message, or None."""
    if len(payload) < TRANSPORT_BYTES:
        return None
    kind, index, counter = _TRANSPORT.unpack_from(payload)
    return Transport(index, counter, payload) if kind == TRANSPORT else None


def answer_to(payload: bytes, index: int) -> int:
    """RESPONSE or COOKIE when it answers the initiation that named `index`, else 0."""
    if len(payload) < 12:
        return 0
    kind, first, second = _HEAD.unpack_from(payload)
    if kind == RESPONSE and second == index:
        return RESPONSE
    return COOKIE if kind == COOKIE and first == index else 0


def padded(inner_bytes: int) -> int:
    """Size of the transport message for an inner packet of so many bytes: WireGuard pads to 16."""
    return TRANSPORT_BYTES + (inner_bytes + 15) // 16 * 16


def find_run(seen: Iterable[Transport], sizes: Sequence[int]) -> tuple[Transport, ...]:
    """The messages with these very sizes under consecutive counters of one session, in that order; empty if there is
    no such run, or more than one. That is how a node knows its own packets: what others send in between breaks it.
    """
    unique = {(message.receiver, message.counter): message for message in seen}
    found = []
    for receiver, counter in unique:
        run = [unique.get((receiver, counter + step)) for step in range(len(sizes))]
        whole = tuple(message for message in run if message is not None)
        if [len(message.payload) for message in whole] == list(sizes):
            found.append(whole)
    return found[0] if len(found) == 1 else ()


def flipped(message: bytes, first: int, second: int) -> bytes:
    """The message with the lowest bit of two of its bytes turned over."""
    altered = bytearray(message)
    altered[first] ^= 1
    altered[second] ^= 1
    return bytes(altered)


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def udp(source: bytes, source_port: int, target: bytes, target_port: int, payload: bytes) -> bytes:
    """UDP header and payload, with the checksum over the pseudo-header of either family (RFC 768, RFC 8200)."""
    length = UDP_HEAD_BYTES + len(payload)
    pseudo = struct.pack(">IHBB", length, 0, 0, _UDP) if len(source) == 16 else struct.pack(">BBH", 0, _UDP, length)
    ports = struct.pack(">HHH", source_port, target_port, length)
    total = checksum(source + target + pseudo + ports + b"\0\0" + payload) or 0xFFFF
    return ports + total.to_bytes(2, "big") + payload


def ipv4(source: bytes, target: bytes, body: bytes, ident: int) -> bytes:
    """An IPv4 packet that carries UDP."""
    fields = (0x45, 0, IPV4_HEAD_BYTES + len(body), ident, 0, 64, _UDP)
    head = _V4.pack(*fields, 0, source, target)
    return _V4.pack(*fields, checksum(head), source, target) + body
