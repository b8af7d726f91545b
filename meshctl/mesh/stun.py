"""STUN, as much of it as netcheck and a coordinator need: Binding requests and their answers (RFC 8489, RFC 5780).

Layout, big endian; attributes are padded to four bytes, a FINGERPRINT, if there is one, comes last and must be right:

    type 2 | length 2 | magic cookie 2112A442 | transaction 12 || attributes: type 2 | length 2 | value

Of RFC 5780 there are CHANGE-REQUEST (of the port), OTHER-ADDRESS, RESPONSE-ORIGIN and PADDING. There is no MESSAGE-
INTEGRITY: 96 random bits of transaction tell an answer from a stranger's packet. An answer is never longer than its
request, so a request brings room with it (PADDING, or anything else): attributes that do not fit are left out, and
where not even the mapped address fits there is no answer. Any bytes parse or are refused. Meets NET-8.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple

from meshctl.errors import ProtocolError
from meshctl.mesh.model import Endpoint

HEADER_BYTES: Final = 20
TRANSACTION_BYTES: Final = 12
LARGEST_BYTES: Final = 1480  # an Ethernet packet without its IPv4 header
REQUEST_BYTES: Final = 128  # of a plain request: room for every attribute of an answer over IPv6
_COOKIE: Final = 0x2112A442
_MOST_ATTRIBUTES: Final = 16
_HEAD: Final = struct.Struct(">HHI12s")
_ATTRIBUTE: Final = struct.Struct(">HH")
_FINGERPRINT_XOR: Final = 0x5354554E
_CHANGE_ADDRESS, _CHANGE_PORT = 4, 2  # RFC 5780, 7.2


class Kind(IntEnum):
    """What a message is."""

    REQUEST = 0x0001
    ANSWER = 0x0101


class _Type(IntEnum):
    """Attributes that are read or written; those below 0x8000 must be understood."""

    MAPPED_ADDRESS = 0x0001
    CHANGE_REQUEST = 0x0003
    XOR_MAPPED_ADDRESS = 0x0020
    PADDING = 0x0026
    FINGERPRINT = 0x8028
    RESPONSE_ORIGIN = 0x802B
    OTHER_ADDRESS = 0x802C


_KINDS: Final = {int(kind): kind for kind in Kind}
_KNOWN: Final = frozenset(int(what) for what in _Type)


class Message(NamedTuple):
    """One message that parsed. `mapped` is where the sender's packets come from, as the other end sees it; `other` its
    second address. `unknown`: an attribute that must be understood, and is not.
    """

    kind: Kind
    transaction: bytes
    mapped: Endpoint | None = None
    other: Endpoint | None = None
    change_port: bool = False
    change_address: bool = False
    unknown: bool = False


def request(transaction: bytes, size: int = REQUEST_BYTES, *, change_port: bool = False) -> bytes:
    """A Binding request of `size` bytes, a multiple of four; `change_port` asks for an answer from the other port."""
    body = _attribute(_Type.CHANGE_REQUEST, _CHANGE_PORT.to_bytes(4, "big")) if change_port else b""
    room = size - HEADER_BYTES - len(body) - _ATTRIBUTE.size
    if room < 0 or size % 4 or size > LARGEST_BYTES:
        raise ValueError(f"no Binding request has {size} bytes")
    return _message(Kind.REQUEST, transaction, body + _attribute(_Type.PADDING, bytes(room)))


def answer(transaction: bytes, room: int, mapped: Endpoint, origin: Endpoint, other: Endpoint | None) -> bytes | None:
    """The answer of at most `room` bytes, with the most important first; None when the mapped address does not fit."""
    attributes = [_address(_Type.XOR_MAPPED_ADDRESS, mapped, transaction)]
    attributes += [_address(_Type.OTHER_ADDRESS, other)] if other else []
    attributes.append(_address(_Type.RESPONSE_ORIGIN, origin))
    body, left = b"", room - HEADER_BYTES
    for attribute in attributes:
        if len(body) + len(attribute) > left:
            break
        body += attribute
    return _message(Kind.ANSWER, transaction, body) if body else None


def parse(datagram: bytes) -> Message:
    """Raises ProtocolError for what is no Binding request or success answer."""
    if not HEADER_BYTES <= len(datagram) <= LARGEST_BYTES:
        raise ProtocolError("not of a STUN message's size")
    number, length, cookie, transaction = _HEAD.unpack_from(datagram)
    kind = _KINDS.get(number)
    if kind is None or cookie != _COOKIE or length != len(datagram) - HEADER_BYTES or length % 4:
        raise ProtocolError("not a STUN Binding message")
    values: dict[int, bytes] = {}
    for what, value in _attributes(datagram):
        values.setdefault(what, value)  # RFC 8489, 14: of several, the first
    change = values.get(_Type.CHANGE_REQUEST, bytes(4))
    if len(change) != 4:
        raise ProtocolError("a CHANGE-REQUEST of no sane size")
    return Message(
        kind, transaction, _endpoint(values.get(_Type.XOR_MAPPED_ADDRESS), transaction),
        _endpoint(values.get(_Type.OTHER_ADDRESS)),
        bool(change[3] & _CHANGE_PORT), bool(change[3] & _CHANGE_ADDRESS),
        any(what < 0x8000 and what not in _KNOWN for what in values),
    )  # fmt: skip


def _attributes(datagram: bytes) -> Iterator[tuple[int, bytes]]:
    at = HEADER_BYTES
    for _ in range(_MOST_ATTRIBUTES):
        if at == len(datagram):
            return
        what, length = _ATTRIBUTE.unpack_from(datagram, at)  # sizes are multiples of four, so a head is never cut
        begin, end = at + _ATTRIBUTE.size, at + _ATTRIBUTE.size + length
        if end > len(datagram):
            raise ProtocolError("a STUN attribute that ends behind its message")
        if what == _Type.FINGERPRINT:
            right = zlib.crc32(datagram[:at]) ^ _FINGERPRINT_XOR
            if end != len(datagram) or datagram[begin:end] != right.to_bytes(4, "big"):
                raise ProtocolError("a FINGERPRINT that is wrong, or not the last attribute")
        yield what, datagram[begin:end]
        at = end + -length % 4
    if at != len(datagram):
        raise ProtocolError("more STUN attributes than anybody needs")


def _message(kind: Kind, transaction: bytes, body: bytes) -> bytes:
    return _HEAD.pack(kind, len(body), _COOKIE, transaction) + body


def _attribute(what: _Type, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(what, len(value)) + value + bytes(-len(value) % 4)


def _mask(transaction: bytes | None, size: int) -> tuple[int, int]:
    """What address and port are XORed with (RFC 8489, 14.2); nothing where there is no transaction."""
    if transaction is None:
        return 0, 0
    whole = _COOKIE.to_bytes(4, "big") + transaction
    return int.from_bytes(whole[:size], "big"), _COOKIE >> 16


def _address(what: _Type, endpoint: Endpoint, transaction: bytes | None = None) -> bytes:
    size, family = (4, 1) if endpoint.address.version == 4 else (16, 2)
    mask, port = _mask(transaction, size)
    address = (int(endpoint.address) ^ mask).to_bytes(size, "big")
    return _attribute(what, struct.pack(">HH", family, endpoint.port ^ port) + address)


def _endpoint(value: bytes | None, transaction: bytes | None = None) -> Endpoint | None:
    """Raises ProtocolError."""
    if value is None:
        return None
    size = {1: 4, 2: 16}.get(value[1] if len(value) > 1 else 0)
    if size is None or len(value) != 4 + size:
        raise ProtocolError("a STUN address of no family")
    mask, port = _mask(transaction, size)
    number = int.from_bytes(value[4:], "big") ^ mask
    address = IPv4Address(number) if size == 4 else IPv6Address(number)
    return Endpoint(address, int.from_bytes(value[2:4], "big") ^ port)
