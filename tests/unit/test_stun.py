"""STUN's bytes: the vectors of RFC 5769, what is refused, and that no answer outgrows its question (NET-8)."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshctl.errors import ProtocolError
from meshctl.mesh import stun
from meshctl.mesh.model import Endpoint

# RFC 5769, 2.1 to 2.3.
REQUEST = bytes.fromhex(
    "000100582112a442b7e7a701bc34d686fa87dfae802200105354554e207465737420636c69656e74002400046e0001ff"
    "80290008932ff9b151263b36000600096576746a3a68367659202020000800149aeaa70cbfd8cb56781ef2b5b2d3f249"
    "c1b571a280280004e57a3bcf"
)
ANSWER4 = bytes.fromhex(
    "0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000080001a147e112a643"
    "000800142b91f599fd9e90c38c7489f92af9ba53f06be7d780280004c07d4c96"
)
ANSWER6 = bytes.fromhex(
    "010100482112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000140002a1470113a9fa"
    "a5d3f179bc25f4b5bed2b9d900080014a382954e4be67bf11784c97c8292c275bfe3ed4180280004c8fb0b4c"
)
TRANSACTION = bytes.fromhex("b7e7a701bc34d686fa87dfae")
HERE = Endpoint(ip_address("203.0.113.1"), 7443)
SECOND = Endpoint(ip_address("203.0.113.1"), 7444)
ENDPOINTS = st.builds(Endpoint, st.ip_addresses(), st.integers(1, 0xFFFF))


def test_vectors_of_the_standard_are_read() -> None:
    request = stun.parse(REQUEST)
    assert (request.kind, request.transaction, request.unknown) == (stun.Kind.REQUEST, TRANSACTION, True)
    assert stun.parse(ANSWER4).mapped == Endpoint(ip_address("192.0.2.1"), 32853)
    assert stun.parse(ANSWER6).mapped == Endpoint(ip_address("2001:db8:1234:5678:11:2233:4455:6677"), 32853)


def test_mapped_address_is_written_as_the_standard_does() -> None:
    for vector, size in ((ANSWER4, 32), (ANSWER6, 44)):
        mapped = stun.parse(vector).mapped
        assert mapped
        told = stun.answer(TRANSACTION, size, mapped, HERE, None)
        assert told
        assert (len(told), told[20:] in vector) == (size, True)


@pytest.mark.parametrize("vector", [REQUEST, ANSWER4, ANSWER6], ids=["request", "answer4", "answer6"])
def test_flipped_bit_is_noticed_where_there_is_a_fingerprint(vector: bytes) -> None:
    for at in (*range(8, 20), *range(len(vector) - 4, len(vector))):  # the transaction, the fingerprint
        flipped = bytearray(vector)
        flipped[at] ^= 1
        with pytest.raises(ProtocolError, match="FINGERPRINT"):
            stun.parse(bytes(flipped))


@pytest.mark.parametrize(
    "datagram",
    [
        b"",
        b"meshctl netcheck",
        bytes(20),
        REQUEST[:-4],
        REQUEST + bytes(4),
        stun.request(TRANSACTION)[:-1],
        b"\x00\x11" + stun.request(TRANSACTION)[2:],  # an indication
        b"\x01\x11" + stun.request(TRANSACTION)[2:],  # an error answer
        b"\x00\x01\x00\x04\x21\x12\xa4\x42" + TRANSACTION + b"\x80\x22\xff\xff",  # ends behind its message
        b"\x00\x01\x00\x08\x21\x12\xa4\x42" + TRANSACTION + b"\x00\x03\x00\x02\x00\x00\x00\x00",
        b"\x01\x01\x00\x08\x21\x12\xa4\x42" + TRANSACTION + b"\x00\x20\x00\x04\x00\x03\x00\x00",  # of no family
        b"\x00\x01\x00\x44\x21\x12\xa4\x42" + TRANSACTION + b"\x80\x22\x00\x00" * 17,
        b"\x00\x01\x20\x00\x21\x12\xa4\x42" + TRANSACTION + bytes(8192),
    ],
)
def test_what_is_no_binding_message_is_refused(datagram: bytes) -> None:
    with pytest.raises(ProtocolError):
        stun.parse(datagram)


def test_request_has_the_size_that_was_asked_for() -> None:
    for size in (28, 128, 1452, 1472):
        for change in (False, True):
            if size == 28 and change:
                continue
            datagram = stun.request(TRANSACTION, size, change_port=change)
            read = stun.parse(datagram)
            assert (len(datagram), read.change_port, read.change_address, read.unknown) == (size, change, False, False)
    for wrong in (24, 28, 130, 1484):
        with pytest.raises(ValueError, match="no Binding request"):
            stun.request(TRANSACTION, wrong, change_port=True)


@given(ENDPOINTS, ENDPOINTS, st.none() | ENDPOINTS, st.integers(0, 200))
def test_answer_fits_its_room_and_says_the_most_important_first(
    mapped: Endpoint, origin: Endpoint, other: Endpoint | None, room: int
) -> None:
    told = stun.answer(TRANSACTION, room, mapped, origin, other)
    if told is None:
        assert room < 20 + (12 if mapped.address.version == 4 else 24)
        return
    assert len(told) <= room
    read = stun.parse(told)
    assert (read.kind, read.transaction, read.mapped) == (stun.Kind.ANSWER, TRANSACTION, mapped)
    assert read.other in {other, None}
    if room >= stun.REQUEST_BYTES:
        assert read.other == other


@given(st.binary(max_size=1600))
def test_any_bytes_parse_or_are_refused(datagram: bytes) -> None:
    try:
        stun.parse(datagram)
    except ProtocolError:
        pass


@given(st.binary(max_size=200), st.sampled_from([b"\x00\x01", b"\x01\x01"]), st.booleans())
def test_any_attributes_parse_or_are_refused(body: bytes, kind: bytes, fit: bool) -> None:
    """As above, past the header: random bytes have no cookie."""
    body = body[: len(body) // 4 * 4] if fit else body
    try:
        stun.parse(kind + len(body).to_bytes(2, "big") + b"\x21\x12\xa4\x42" + TRANSACTION + body)
    except ProtocolError:
        pass
