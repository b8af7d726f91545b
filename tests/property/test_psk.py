"""Packets about pre-shared keys under any bytes, and what a bunch of keys may become (NET-6, OPS-4)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshctl.errors import ProtocolError
from meshctl.mesh import psk
from meshctl.mesh.keys import PresharedKey
from meshctl.mesh.psk import KEYS, Act, Bunch, Heard
from meshctl.mesh.psk_packets import (
    CIPHERTEXT_BYTES,
    ENCAPSULATION_KEY_BYTES,
    HEAD_BYTES,
    LARGEST_BYTES,
    MAGIC,
    Head,
    Kind,
    halves,
    pack,
    parse,
)

TAG = bytes(16)
U32 = st.integers(0, 2**32 - 1)
IDS = st.lists(st.binary(min_size=15, max_size=15), min_size=2, max_size=2, unique=True)
MARKS = st.binary(min_size=8, max_size=8).filter(any)
WHOLE = {Kind.OFFER: ENCAPSULATION_KEY_BYTES, Kind.ANSWER: CIPHERTEXT_BYTES}


@st.composite
def packets(draw: st.DrawFn) -> tuple[Head, bytes]:
    kind, now = draw(st.sampled_from(Kind)), draw(U32)
    version = draw(st.integers(1, 2**32 - 1)) if kind is not Kind.STATE else 0
    body = bytes(WHOLE.get(kind, 0) // 2)
    part = draw(st.integers(0, 1)) if body else 0
    mark = draw(MARKS) if now else bytes(8)
    head = Head(
        kind, part, draw(st.booleans()), *draw(IDS), draw(U32), now, mark, draw(U32), draw(U32), version, draw(MARKS)
    )
    return head, body


@given(packets())
def test_packing_and_parsing_are_inverse_and_all_fits_the_narrowest_path(packet: tuple[Head, bytes]) -> None:
    datagram = pack(*packet) + TAG
    assert parse(datagram) == packet
    assert len(datagram) <= LARGEST_BYTES <= 1280 - 48


@given(
    st.binary(max_size=HEAD_BYTES)
    | st.binary(min_size=HEAD_BYTES - 4, max_size=LARGEST_BYTES).map(lambda rest: MAGIC + rest)
    | st.binary(min_size=HEAD_BYTES - 7, max_size=HEAD_BYTES - 7).map(lambda rest: MAGIC + b"\1\0\0" + rest)
)
def test_any_bytes_parse_or_are_refused_and_what_parses_has_one_encoding(datagram: bytes) -> None:
    try:
        head, body = parse(datagram)
    except ProtocolError:
        return
    assert pack(head, body) == datagram[:-16]


@given(st.binary(max_size=2400))
def test_halves_make_the_whole(whole: bytes) -> None:
    assert b"".join(halves(whole)) == whole


@st.composite
def bunches(draw: st.DrawFn) -> Bunch:
    """What any sequence of happenings leaves."""
    bunch, now = Bunch(), 0.0
    for what in draw(st.lists(st.sampled_from(("file", "get", "set", "step", "prove", "drop")), max_size=20)):
        now += 1.0
        versions = [key.version for key in bunch.keys]
        match what:
            case "file" | "get":
                key = PresharedKey(bytes([len(versions)]) * 31 + bytes([int(now) % 256]))
                bunch = bunch.filed(bunch.newest + draw(st.integers(1, 3)), key, shared=what == "file", now=now)
            case "set" if versions:
                bunch = bunch.set(draw(st.sampled_from(versions))).applied(now=now)
            case "step":
                bunch = bunch.stepped(draw(st.sampled_from(bunch.choices))).applied(now=now) if bunch.choices else bunch
            case "prove" if bunch.now:
                bunch = bunch.confirmed()
            case "drop":
                bunch = bunch.without(draw(st.integers(0, bunch.newest)))
    return bunch


@given(bunches())
def test_a_bunch_keeps_what_was_proven_and_never_chooses_none_after_a_proof(bunch: Bunch) -> None:
    versions = [key.version for key in bunch.keys]
    assert versions == sorted(set(versions))
    assert len(versions) <= KEYS
    assert not bunch.good or (bunch.find(bunch.good) and bunch.now)
    assert not bunch.now or bunch.find(bunch.now)
    assert (0 in bunch.choices) == (bunch.good == 0)


@given(bunches(), bunches(), st.booleans())
def test_two_ends_without_a_handshake_meet_on_a_key_that_both_have(one: Bunch, two: Bunch, swapped: bool) -> None:
    common = set(one.choices) & set(two.choices)
    tried = {
        psk.choice(one, one.now, float(t), leads=not swapped)
        for t in range(0, 480, 5)
        if psk.choice(one, one.now, float(t), leads=not swapped) == psk.choice(two, two.now, float(t), leads=swapped)
    }
    assert tried <= common
    assert not common or tried


@given(bunches(), st.booleans(), st.booleans(), st.integers(0, 6), st.integers(0, 6), st.booleans())
def test_who_leads_always_has_something_to_say_while_the_two_differ(
    bunch: Bunch, leads: bool, due: bool, now: int, following: int, valid: bool
) -> None:
    heard = Heard(now, following, 0, valid)
    what, version = psk.act(bunch, heard, leads=leads, due=due)
    assert what is not Act.REST or psk.agrees(bunch, heard)
    assert what is not Act.SET or bunch.find(version)
    assert leads or what in (Act.REST, Act.ASK)
    assert psk.first_above(bunch, heard) > max(bunch.newest, now, following)
