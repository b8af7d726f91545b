"""The judges of the experiments on the wire: each fault fails, each missing control is unknown and named (NET-7)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address

import pytest

from meshctl.crypto.identity import Identity
from meshctl.mesh import exams, frames, witness
from meshctl.mesh.catalogue import Verdict
from meshctl.mesh.exams import Clear, Controls, Hail
from meshctl.mesh.frames import Transport
from meshctl.mesh.integrity import Reading
from meshctl.mesh.model import Node, NodeId
from meshctl.mesh.witness import Sight

OK, FAILED, UNKNOWN = Verdict.OK, Verdict.FAILED, Verdict.UNKNOWN
B = NodeId("b")
FINE = Controls(0, sibling=True)
LOST, BLIND = Controls(0, sibling=False), Controls(3, sibling=True)
ONCE, TWICE, NEVER = Sight(1, 1, True), Sight(2, 2, True), Sight()
STOPPED = Sight(2, 0, True)  # arrived, but a firewall took it
NONE = Clear()
CLEAR = Clear(2, bytes((10, 77, 0, 2)), bytes((10, 77, 0, 1)))


def encrypted(
    *canaries: Sight, legible: bool = False, here: Clear = NONE, there: Clear = NONE, controls: Controls = FINE
) -> Reading:
    return exams.encrypted(B, canaries, legible, here, there, controls, now=1.0)


def replay(sight: Sight = TWICE, delivered: int = 1, controls: Controls = FINE) -> Reading:
    return exams.replay(B, sight, delivered, controls, now=1.0)


def tamper(original: Sight = ONCE, altered: Sight = ONCE, delivered: int = 1, controls: Controls = FINE) -> Reading:
    return exams.tamper(B, original, altered, delivered, controls, now=1.0)


def spoof(sight: Sight = ONCE, delivered: int = 0, controls: Controls = FINE) -> Reading:
    return exams.spoof(B, "10.77.0.9", sight, delivered, controls, now=1.0)


def stranger(
    sight: Sight = ONCE,
    responses: int = 0,
    cookies: int = 0,
    heard: bool = True,
    controls: Controls = FINE,
    retired: Hail | None = None,
) -> Reading:
    return exams.stranger(B, Hail(sight, responses, cookies), retired, heard, controls, now=1.0)


JUDGED: list[tuple[str, Callable[[], Reading], Verdict, str]] = [
    ("all enciphered", lambda: encrypted(ONCE, ONCE), OK, "2 canaries seen enciphered at both ends"),
    ("clear here", lambda: encrypted(ONCE, here=CLEAR), FAILED, "2 packets in clear here: 10.77.0.2 to 10.77.0.1"),
    ("clear there", lambda: encrypted(ONCE, there=CLEAR), FAILED, "in clear at the peer"),
    ("clear, though a tap missed some", lambda: encrypted(ONCE, here=CLEAR, controls=BLIND), FAILED, "in clear"),
    ("legible", lambda: encrypted(ONCE, legible=True), FAILED, "can be read"),
    ("nothing left", lambda: encrypted(), UNKNOWN, "seen leaving"),
    ("nothing arrived", lambda: encrypted(NEVER), UNKNOWN, "the peer's tap saw none"),
    ("came from elsewhere", lambda: encrypted(Sight(1, 1, False)), UNKNOWN, "elsewhere"),
    ("encrypted: drops", lambda: encrypted(ONCE, controls=BLIND), UNKNOWN, "missed 3 packets"),
    ("encrypted: no sibling", lambda: encrypted(ONCE, controls=LOST), UNKNOWN, "no sibling"),
    ("replay refused", replay, OK, "delivered once"),
    ("replay delivered", lambda: replay(delivered=2), FAILED, "delivered 2 times"),
    ("replay delivered, controls or not", lambda: replay(NEVER, 2, BLIND), FAILED, "delivered 2 times"),
    ("replay not on the wire", lambda: replay(ONCE), UNKNOWN, "tap did not see it"),
    ("replay stopped", lambda: replay(STOPPED), UNKNOWN, "a firewall"),
    ("second copy stopped", lambda: replay(Sight(2, 1, True)), UNKNOWN, "a firewall"),
    ("original lost", lambda: replay(delivered=0), UNKNOWN, "itself was not delivered"),
    ("replay: drops", lambda: replay(controls=BLIND), UNKNOWN, "missed 3 packets"),
    ("replay: no sibling", lambda: replay(controls=LOST), UNKNOWN, "no sibling"),
    ("altered refused", tamper, OK, "not delivered"),
    ("altered delivered", lambda: tamper(delivered=2), FAILED, "beside its original"),
    ("altered in place of a lost one", lambda: tamper(original=NEVER), FAILED, "in its original's place"),
    ("the same, unless a tap missed it", lambda: tamper(original=NEVER, controls=BLIND), UNKNOWN, "missed 3 packets"),
    ("altered not on the wire", lambda: tamper(altered=NEVER), UNKNOWN, "tap did not see it"),
    ("altered stopped", lambda: tamper(altered=STOPPED), UNKNOWN, "a firewall"),
    ("its original lost", lambda: tamper(delivered=0), UNKNOWN, "original was not delivered"),
    ("altered: no sibling", lambda: tamper(controls=LOST), UNKNOWN, "no sibling"),
    ("spoof refused", spoof, OK, "10.77.0.9"),
    ("spoof delivered", lambda: spoof(delivered=1), FAILED, "took a packet from 10.77.0.9"),
    ("spoof not on the wire", lambda: spoof(NEVER), UNKNOWN, "tap did not see it"),
    ("spoof stopped", lambda: spoof(STOPPED), UNKNOWN, "a firewall"),
    ("spoof: drops", lambda: spoof(controls=BLIND), UNKNOWN, "missed 3 packets"),
    ("spoof: no sibling", lambda: spoof(controls=LOST), UNKNOWN, "no sibling"),
    ("stranger ignored", stranger, OK, "not answered"),
    ("stranger got a cookie", lambda: stranger(cookies=1), OK, "a cookie alone"),
    ("stranger answered", lambda: stranger(responses=1), FAILED, "handshake response"),
    ("stranger not on the wire", lambda: stranger(NEVER), UNKNOWN, "tap did not see it"),
    ("stranger stopped", lambda: stranger(STOPPED), UNKNOWN, "a firewall"),
    ("an answer would not be seen", lambda: stranger(heard=False), UNKNOWN, "nothing of the peer was seen here"),
    ("stranger: drops", lambda: stranger(controls=BLIND), UNKNOWN, "missed 3 packets"),
    ("stranger: no sibling", lambda: stranger(controls=LOST), UNKNOWN, "no sibling"),
    ("retired refused", lambda: stranger(retired=Hail(ONCE)), OK, "key and one with our retired key reached"),
    ("retired got a cookie", lambda: stranger(retired=Hail(ONCE, 0, 1)), OK, "a cookie alone"),
    ("retired answered", lambda: stranger(retired=Hail(ONCE, 1)), FAILED, "our retired key got a handshake response"),
    ("retired answered, fresh unseen", lambda: stranger(NEVER, retired=Hail(ONCE, 1)), FAILED, "our retired key got"),
    ("retired answered, no controls", lambda: stranger(controls=LOST, retired=Hail(NEVER, 1)), FAILED, "our retired"),
    ("fresh answered alone", lambda: stranger(responses=1, retired=Hail(ONCE)), FAILED, "an unknown key got a"),
    ("both answered", lambda: stranger(responses=1, retired=Hail(ONCE, 1)), FAILED, "key and our retired key got"),
    ("retired not on the wire", lambda: stranger(retired=Hail(NEVER)), UNKNOWN, "our retired key: the peer's tap did"),
    ("retired stopped", lambda: stranger(retired=Hail(STOPPED)), UNKNOWN, "retired key: it arrived, but a firewall"),
    ("retired: not heard", lambda: stranger(heard=False, retired=Hail(ONCE)), UNKNOWN, "nothing of the peer"),
]


@pytest.mark.parametrize(("judged", "verdict", "words"), [case[1:] for case in JUDGED], ids=[c[0] for c in JUDGED])
def test_judges(judged: Callable[[], Reading], verdict: Verdict, words: str) -> None:
    found = judged()
    assert (found.verdict, found.subject, found.at, words in found.evidence) == (verdict, B, 1.0, True), found


def test_addresses_from_a_report_are_named_as_people_know_them() -> None:
    mapped = bytes(10) + b"\xff\xff" + bytes((10, 77, 0, 2))
    assert "10.77.0.2 to fd00::1" in encrypted(ONCE, there=Clear(1, mapped, IPv6Address("fd00::1").packed)).evidence


def test_untried_is_unknown_for_every_code_and_no_longer_than_evidence_may_be() -> None:
    found = exams.untried(B, "x" * 1000, now=1.0)
    assert [reading.code for reading in found] == list(exams.CODES)
    assert all(reading.verdict is UNKNOWN and len(reading.evidence) < 200 for reading in found)


# ---- whose packets are whose -----------------------------------------------------------------------------------------


def message(receiver: int, counter: int, size: int) -> Transport:
    return Transport(receiver, counter, bytes(size))


RUN = [message(7, 10 + step, size) for step, size in enumerate((64, 128, 96))]


def test_a_run_is_known_by_its_sizes_in_order_under_consecutive_counters() -> None:
    noise = [message(7, 9, 64), message(7, 13, 64), message(8, 10, 64)]
    assert frames.find_run([*noise, *reversed(RUN), *RUN], (64, 128, 96)) == tuple(RUN)  # taps may show one twice


@pytest.mark.parametrize(
    "seen",
    [
        RUN[:2],
        [RUN[0], message(7, 11, 1000), RUN[2]],
        [RUN[0], RUN[1], message(7, 13, 96)],  # somebody's packet in between
        [RUN[0], RUN[1], message(8, 12, 96)],  # another session
        [*RUN, *(message(9, 10 + step, size) for step, size in enumerate((64, 128, 96)))],  # which of the two?
    ],
)
def test_what_is_not_surely_ours_is_nobodys(seen: list[Transport]) -> None:
    assert frames.find_run(seen, (64, 128, 96)) == ()


def test_an_altered_canary_keeps_the_checksum_of_the_inner_datagram() -> None:
    ends = bytes((10, 77, 0, 1)), bytes((10, 77, 0, 2))
    body = bytes(witness.HEAD_BYTES) + witness.padding(512 - witness.INNER_HEAD_BYTES)
    inner = frames.ipv4(*ends, frames.udp(ends[0], 51871, ends[1], 51871, body), 1)
    assert len(inner) == 512
    altered = frames.flipped(bytes(16) + inner, *witness.altered_at(16))[16:]
    assert altered != inner
    sums = [
        frames.checksum(ends[0] + ends[1] + bytes((0, 17)) + packet[24:26] + packet[20:]) for packet in (inner, altered)
    ]
    assert sums == [0, 0]
    assert altered[: witness.INNER_HEAD_BYTES] == inner[: witness.INNER_HEAD_BYTES]


def node(number: int) -> Node:
    identity = Identity.generate()
    v4, v6 = IPv4Address(f"10.77.0.{number}"), IPv6Address(f"fd00::{number}")
    return Node(identity.id, f"n{number}", v4, v6, identity.state("mesh00000001", 1))


def test_spoofed_is_another_nodes_address_or_else_nobodys() -> None:
    a, b, c = node(1), node(2), node(3)
    wide, narrow = IPv4Network("10.77.0.0/29"), IPv4Network("10.77.0.0/30")
    assert exams.foreign_source([b, c], b.id, a.id, wide) == c.address4
    assert exams.foreign_source([b], b.id, a.id, wide) == IPv4Address("10.77.0.6")
    last = replace(b, address4=IPv4Address("10.77.0.6"))
    assert exams.foreign_source([last], b.id, a.id, wide) == IPv4Address("10.77.0.5")
    assert exams.foreign_source([a, b], b.id, a.id, narrow) is None
