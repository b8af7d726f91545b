"""Echo packets under any bytes: parsing is total, and every packet has exactly one encoding (NET-7, OPS-4)."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from hypothesis import example, given
from hypothesis import strategies as st

from meshctl.agent.responder import Drop, Gate
from meshctl.errors import ProtocolError
from meshctl.mesh.model import Endpoint
from meshctl.mesh.probe import PACKET_BYTES, TAG_BYTES, Kind, Packet, pack, parse, place

U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
ENDPOINTS = st.none() | st.builds(
    Endpoint,
    st.integers(0, 2**32 - 1).map(IPv4Address) | st.integers(0, 2**128 - 1).map(IPv6Address),
    st.integers(1, 65535),
)
IDS = st.lists(st.binary(min_size=15, max_size=15), min_size=2, max_size=2, unique=True)
PACKETS = st.builds(
    lambda kind, ids, *rest, seen, more: Packet(kind, *ids, *rest, *place(seen), *more),
    st.sampled_from((Kind.PING, Kind.PONG, Kind.GO)), IDS, U32, U32, U64, U64, seen=ENDPOINTS, more=st.tuples(U32, U32),
)  # fmt: skip


@given(PACKETS, st.binary(min_size=TAG_BYTES, max_size=TAG_BYTES))
def test_packing_and_parsing_are_inverse(packet: Packet, tag: bytes) -> None:
    assert parse(pack(packet) + tag) == packet


@given(st.binary(max_size=2 * PACKET_BYTES) | st.binary(min_size=90, max_size=90).map(lambda rest: b"MKP1" + rest))
def test_any_bytes_parse_or_are_refused_and_what_parses_has_one_encoding(datagram: bytes) -> None:
    try:
        packet = parse(datagram)
    except ProtocolError:
        return
    assert pack(packet) == datagram[:-TAG_BYTES]


@given(PACKETS, st.integers(0, PACKET_BYTES - TAG_BYTES - 1), st.integers(1, 255))
def test_an_altered_byte_never_parses_to_the_same_packet(packet: Packet, at: int, flip: int) -> None:
    datagram = bytearray(pack(packet) + bytes(TAG_BYTES))
    datagram[at] ^= flip
    try:
        assert parse(bytes(datagram)) != packet
    except ProtocolError:
        pass


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(-80, 80), max_size=60))
@example(0, [64, -64, 1])
def test_gate_admits_no_sequence_twice_and_every_newer_one(start: int, steps: list[int]) -> None:
    """The oracle is a set, which begins anew with two in a row that are far behind. Slow enough for the rate,
    and over before silence starts anew."""
    gate, seen, highest, refused = Gate(), set[int](), start, -1000
    sequence = start
    for number, step in enumerate([0, *steps]):
        sequence += step
        restarted = highest - sequence >= 64 and 0 < sequence - refused < 64
        expected = restarted or (sequence not in seen and highest - sequence < 64)
        if highest - sequence >= 64:
            refused = sequence
        assert (gate.admit(sequence % 2**32, now=0.4 * number) is None) == expected
        if restarted:
            seen, highest = set(), sequence
        if expected:
            seen.add(sequence)
            highest = max(highest, sequence)


@given(st.integers(0, 2**32 - 1), st.integers(128, 2**31 - 100), st.integers(1, 63), st.integers(0, 9))
def test_gate_believes_a_peer_that_restarted_far_behind_with_its_second_packet_and_never_a_replay(
    start: int, back: int, step: int, times: int
) -> None:
    gate = Gate()
    assert gate.admit(start, now=0.0) is None
    first = (start - back) % 2**32
    for _ in range(times + 1):
        assert gate.admit(first, now=1.0) is Drop.REPLAYED
    assert gate.admit((first + step) % 2**32, now=2.0) is None
    assert gate.admit((first + step) % 2**32, now=3.0) is Drop.REPLAYED
    assert gate.admit((first + step + 1) % 2**32, now=4.0) is None
