"""The echo packet and the key of a pair: one encoding, bound to both statements (NET-7)."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from cryptography.hazmat.primitives.asymmetric import x25519

from meshctl.crypto.identity import Identity
from meshctl.crypto.probe import pair_key
from meshctl.errors import ProtocolError, TrustError
from meshctl.mesh import statement
from meshctl.mesh.model import Endpoint, NodeId
from meshctl.mesh.probe import PACKET_BYTES, TAG_BYTES, Echo, Kind, Packet, pack, parse, place, raw_id
from meshctl.mesh.statement import Statement

A, B = Identity.generate(), Identity.generate()
SEEN = place(Endpoint(IPv4Address("192.0.2.1"), 51820))
STATED = {who: who.state("mesh00000001", 1) for who in (A, B)}
PING = Packet(Kind.PING, raw_id(A.id), raw_id(B.id), 7, 9, 10**18, 0, *SEEN)
TAG = bytes(TAG_BYTES)


def test_packet_is_small_and_ping_and_pong_weigh_the_same() -> None:
    seen = place(Endpoint(IPv6Address("2001:db8::1"), 1))
    pong = Packet(Kind.PONG, raw_id(A.id), raw_id(B.id), 7, 9, 10**18, 1, *seen)
    assert len(pack(PING) + TAG) == len(pack(pong) + TAG) == PACKET_BYTES <= 128


@pytest.mark.parametrize("cut", range(PACKET_BYTES))
def test_truncated_packet_is_refused(cut: int) -> None:
    with pytest.raises(ProtocolError):
        parse((pack(PING) + TAG)[:cut])


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        pytest.param(0, b"X", id="magic"),
        pytest.param(3, b"2", id="version"),
        pytest.param(4, b"\0", id="no kind"),
        pytest.param(4, b"\4", id="fourth kind"),
        pytest.param(5, raw_id(B.id), id="to itself"),
        pytest.param(59, b"\1", id="no family"),
        pytest.param(59, b"\0", id="unknown, with an address"),
        pytest.param(64, b"\1", id="v4 with a tail"),
        pytest.param(76, b"\0\0", id="port 0"),
    ],
)
def test_malformed_packet_is_refused(offset: int, value: bytes) -> None:
    datagram = bytearray(pack(PING) + TAG)
    datagram[offset : offset + len(value)] = value
    with pytest.raises(ProtocolError):
        parse(bytes(datagram))


@pytest.mark.parametrize("text", ["", "a", "a" * 23, "A" * 25, "1" * 24, "é" * 24])
def test_what_is_no_node_id_has_no_bytes(text: str) -> None:
    with pytest.raises(ProtocolError):
        raw_id(NodeId(text))


def test_both_ends_derive_the_same_key_and_it_opens() -> None:
    ours, theirs = pair_key(A.probe, STATED[A], STATED[B]), pair_key(B.probe, STATED[B], STATED[A])
    assert theirs.is_genuine(ours.seal(pack(PING)))
    assert "hidden" in repr(ours)


def test_every_flipped_bit_is_noticed() -> None:
    key = pair_key(A.probe, STATED[A], STATED[B])
    datagram = key.seal(pack(PING))
    for bit in range(8 * len(datagram)):
        altered = bytearray(datagram)
        altered[bit // 8] ^= 1 << bit % 8
        assert not key.is_genuine(bytes(altered))


def test_key_of_another_statement_opens_nothing() -> None:
    datagram = pair_key(A.probe, STATED[A], STATED[B]).seal(pack(PING))
    later = A.state("mesh00000001", 2)
    assert not pair_key(B.probe, STATED[B], later).is_genuine(datagram)
    stranger = Identity.generate()
    assert not pair_key(stranger.probe, stranger.state("mesh00000001", 1), STATED[A]).is_genuine(datagram)


def test_crafted_probe_key_of_low_order_is_refused() -> None:
    body = statement.body("mesh00000001", B.device_key, STATED[B].wireguard, bytes(32), 1)
    with pytest.raises(TrustError, match="probe key"):
        pair_key(x25519.X25519PrivateKey.generate(), STATED[A], Statement(body + B.sign(body)))


def test_losses_before_the_first_answer_and_of_a_long_absence_are_not_loss() -> None:
    echo = Echo()
    for second in range(5):
        echo.lost(second, now=second)
    echo.answered(0.010, 0.0, now=5)
    assert (echo.sent, echo.loss, echo.missed) == (1, 0.0, 0)
    for second in range(20):
        echo.lost(6 + second, now=6 + second)
    assert echo.loss == 1.0
    echo.answered(0.010, 0.0, now=30)
    assert (echo.sent, echo.loss) == (1, 0.0)


def test_round_trip_and_jitter_are_smoothed() -> None:
    echo = Echo()
    for now, rtt in enumerate((0.010, 0.090, 0.010, 0.090)):
        echo.answered(rtt, 0.5, now=now)
    assert echo.rtt_s is not None
    assert 0.010 < echo.rtt_s < 0.040
    assert 0.005 < echo.jitter_s < 0.020
    assert echo.offset_s == 0.5


def test_ping_sent_before_the_peer_appeared_is_no_loss() -> None:
    echo = Echo()
    echo.proven(now=10.0)
    echo.lost(9.9, now=12.0)
    echo.answered(0.01, 0.0, now=12.1)
    assert (echo.missed, echo.loss, echo.sent) == (0, 0.0, 1)


def test_suspect_is_tested_more_until_it_is_known_to_be_down() -> None:
    echo = Echo()
    echo.answered(0.01, 0.0, now=0)
    suspect = []
    for now in range(1, 5):
        echo.lost(now, now=now)
        suspect.append(echo.is_suspect)
    assert suspect == [True, True, False, False]
