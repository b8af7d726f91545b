"""Size echoes under any bytes: parsing is total, and every header has exactly one encoding (NET-7, OPS-4)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshctl.errors import ProtocolError
from meshctl.mesh.sizing import DIGEST_BYTES, HEADER_BYTES, LARGEST_BYTES, MAGIC, Head, Kind, digest, pack, parse

U16, U64 = st.integers(0, 2**16 - 1), st.integers(0, 2**64 - 1)
IDS = st.lists(st.binary(min_size=15, max_size=15), min_size=2, max_size=2, unique=True)
DIGESTS = st.binary(min_size=DIGEST_BYTES, max_size=DIGEST_BYTES)
BACK = st.integers(HEADER_BYTES, LARGEST_BYTES)
PINGS = st.builds(
    lambda ids, nonce, back, *rest: Head(Kind.PING, *ids, nonce, back, *rest), IDS, U64, BACK, U16, U16, U16, DIGESTS
)
PONGS = st.builds(
    lambda ids, nonce, *rest: Head(Kind.PONG, *ids, nonce, 0, *rest), IDS, U64, U16, U16, U16, DIGESTS, DIGESTS
)
TAG = HEADER_BYTES - len(pack(Head(Kind.PONG, bytes(15), bytes(15), 0, 0, 0, 0, 0, bytes(DIGEST_BYTES))))


@given(PINGS | PONGS, st.binary(max_size=300))
def test_packing_and_parsing_are_inverse_whatever_the_payload(head: Head, payload: bytes) -> None:
    assert parse(pack(head) + bytes(TAG) + payload) == head


@given(
    st.binary(max_size=2 * HEADER_BYTES)
    | st.binary(min_size=HEADER_BYTES - 4, max_size=HEADER_BYTES + 4).map(lambda rest: MAGIC + rest)
    | st.binary(min_size=94, max_size=94).map(lambda rest: MAGIC + b"\3" + rest)
)
def test_any_bytes_parse_or_are_refused_and_what_parses_has_one_encoding(datagram: bytes) -> None:
    try:
        head = parse(datagram)
    except ProtocolError:
        return
    assert pack(head) == datagram[: HEADER_BYTES - TAG]


@given(PINGS | PONGS, st.integers(0, HEADER_BYTES - TAG - 1), st.integers(1, 255))
def test_an_altered_byte_never_parses_to_the_same_header(head: Head, at: int, flip: int) -> None:
    datagram = bytearray(pack(head) + bytes(TAG))
    datagram[at] ^= flip
    try:
        assert parse(bytes(datagram)) != head
    except ProtocolError:
        pass


@given(PINGS, st.sampled_from([0, HEADER_BYTES - 1, LARGEST_BYTES + 1, 65535]))
def test_an_impossible_answer_is_not_asked_for(ping: Head, back: int) -> None:
    try:
        parse(pack(ping._replace(back=back)) + bytes(TAG))
    except ProtocolError:
        return
    raise AssertionError(back)


@given(st.binary(max_size=64), st.integers(0, 63), st.integers(1, 255))
def test_an_altered_payload_has_another_digest(payload: bytes, at: int, flip: int) -> None:
    altered = bytearray(payload)
    if at < len(altered):
        altered[at] ^= flip
        assert digest(bytes(altered)) != digest(payload)
    assert digest(payload + b"\0") != digest(payload)
