"""Packets of the witnesses, and frames from a wire, under any bytes: nothing raises but a refusal (NET-7, OPS-4)."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from hypothesis import given
from hypothesis import strategies as st

from meshctl.errors import ProtocolError
from meshctl.mesh import frames, witness
from meshctl.mesh.probe import TAG_BYTES
from meshctl.mesh.witness import Head, Kind, Report, Sight, Standing

IDS = st.lists(st.binary(min_size=15, max_size=15), min_size=2, max_size=2, unique=True)
HEADS = st.builds(
    lambda kind, standing, ids, *rest: Head(kind, standing, *ids, *rest),
    st.sampled_from(Kind), st.sampled_from(Standing), IDS, st.binary(min_size=8, max_size=8), st.integers(0, 2**32 - 1),
)  # fmt: skip
BYTE = st.integers(0, 255)
ADDRESSES = st.binary(min_size=16, max_size=16)
REPORTS = st.builds(
    Report, st.integers(0, 2**32 - 1), st.integers(0, 2**16 - 1), ADDRESSES, ADDRESSES,
    st.lists(st.builds(Sight, BYTE, BYTE, st.booleans()), min_size=8, max_size=8).map(tuple),
    st.dictionaries(st.integers(0, witness.NUMBERS - 1), st.integers(1, 255)),
)  # fmt: skip
GARBAGE = st.binary(max_size=400) | st.binary(max_size=400).map(lambda rest: witness.MAGIC + rest)
PORT = st.integers(0, 65535)


@given(HEADS, REPORTS, st.lists(st.binary(min_size=16, max_size=16), max_size=witness.DIGESTS))
def test_packing_and_parsing_are_inverse(head: Head, report: Report, digests: list[bytes]) -> None:
    tag = bytes(TAG_BYTES)
    short = head._replace(kind=Kind.ASK)
    assert witness.parse(witness.pack(short) + tag) == (short, witness.pack(short) + tag)
    canary = head._replace(kind=Kind.CANARY)
    packed = witness.pack(canary) + tag
    assert witness.parse(packed + witness.padding(600)) == (canary, packed)
    asked, told = head._replace(kind=Kind.QUERY), head._replace(kind=Kind.REPORT)
    query, answer = witness.pack_query(asked, digests) + tag, witness.pack_report(told, report) + tag
    assert len(query) == len(answer)  # nobody is amplified at
    assert (witness.parse(query)[0], witness.parse(answer)[0]) == (asked, told)
    assert witness.digests_of(query)[: len(digests)] == tuple(digests)
    assert witness.report_of(answer) == report


@given(GARBAGE)
def test_any_bytes_parse_or_are_refused(datagram: bytes) -> None:
    try:
        head, tagged = witness.parse(datagram)
    except ProtocolError:
        return
    assert datagram.startswith(tagged)
    if head.kind is Kind.QUERY:
        assert len(witness.digests_of(datagram)) == witness.DIGESTS
    if head.kind is Kind.REPORT:
        witness.report_of(datagram)


@given(
    st.binary(max_size=200) | st.binary(max_size=200).map(lambda r: b"\x45" + r) | st.binary().map(lambda r: b"`" + r)
)
def test_any_frame_is_read_or_not(packet: bytes) -> None:
    frames.addresses(packet)
    found = frames.datagram(packet)
    for payload in (packet, found.payload if found else b""):
        assert b"".join(frames.messages(payload)) == payload
        frames.transport(payload)
        frames.answer_to(payload, 1)


@given(
    st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), PORT, PORT, st.binary(max_size=100), st.binary(max_size=40)
)
def test_what_is_made_is_read_and_its_checksums_hold(
    source: int, target: int, source_port: int, target_port: int, payload: bytes, frame_padding: bytes
) -> None:
    ends = IPv4Address(source).packed, IPv4Address(target).packed
    body = frames.udp(ends[0], source_port, ends[1], target_port, payload)
    packet = frames.ipv4(*ends, body, 7)
    assert frames.checksum(packet[:20]) == 0
    assert frames.checksum(ends[0] + ends[1] + bytes((0, 17)) + body[4:6] + body) in {0, 0xFFFF}
    found = frames.datagram(packet + frame_padding)
    assert found == (ends[0], source_port, ends[1], target_port, payload)
    six = IPv6Address(source).packed, IPv6Address(target).packed
    body = frames.udp(six[0], source_port, six[1], target_port, payload)
    packet = bytes((0x60, 0, 0, 0)) + len(body).to_bytes(2, "big") + bytes((17, 64)) + six[0] + six[1] + body
    assert frames.datagram(packet) == (six[0], source_port, six[1], target_port, payload)
    assert frames.checksum(six[0] + six[1] + len(body).to_bytes(4, "big") + bytes((0, 0, 0, 17)) + body) in {0, 0xFFFF}


@given(st.integers(2, 6), st.integers(0, 60), st.binary(min_size=8, max_size=8), st.integers(0, 15))
def test_merged_messages_are_told_apart(count: int, blocks: int, secret: bytes, shorter: int) -> None:
    def made(counter: int, size: int) -> bytes:
        return b"\x04\0\0\0" + b"\x07\1\2\3" + counter.to_bytes(8, "little") + (secret * 200)[: size - 16]

    if secret.startswith(b"\x04\0\0\0"):
        return
    size = 32 + 16 * blocks
    merged = [*(made(counter, size) for counter in range(count - 1)), made(count, max(size - 16 * shorter, 32))]
    assert frames.messages(b"".join(merged)) == merged
