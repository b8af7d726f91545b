"""netcheck's judgement: every sentence, and what each costs the verdict (NET-1)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshctl.mesh.catalogue import Verdict
from meshctl.mesh.host_checks import overall
from meshctl.mesh.ways import NOT_TESTED, Sentence, Way, judge

OK, DEGRADED, FAILED, UNKNOWN = Verdict.OK, Verdict.DEGRADED, Verdict.FAILED, Verdict.UNKNOWN
HERE = "192.0.2.5"
WELL = Way("a.example:7443", connect_s=0.003, source=HERE, seen=HERE, offset_s=0.1, mtu=1500, udp="refused")
OTHER = replace(WELL, address="b.example:7443")
DEAD = Way("b.example:7443", "coordinator b.example:7443 does not answer", "is it running?")


def verdict(*ways: Way) -> Verdict:
    return overall([sentence.verdict for sentence in judge(ways)])


def about(what: str, *ways: Way) -> Sentence:
    return next(sentence for sentence in judge(ways) if sentence.about == what)


def test_good_network_is_told_in_sentences_and_so_is_what_was_not_tested() -> None:
    assert [sentence.words for sentence in judge([WELL])] == [
        "a.example:7443 answers: TCP in 3.0 ms, TLS, and its CA has the mesh's fingerprint",
        "a.example:7443 sees this machine as 192.0.2.5, its own address: no NAT",
        "UDP to a.example:7443 arrives: its refusal came back",
        NOT_TESTED,
        "the way to a.example:7443 carries 1500 bytes as far as the kernel knows: 1420 inside the tunnel",
        "this clock agrees with that of a.example:7443",
    ]
    assert verdict(WELL) is OK


@pytest.mark.parametrize(
    ("ways", "expected"),
    [
        ((DEAD,), FAILED),
        ((WELL, DEAD), DEGRADED),
        ((WELL, replace(DEAD, trusted=False)), FAILED),
        ((replace(WELL, udp="Operation not permitted"),), FAILED),
        ((replace(WELL, udp="silent"),), OK),
        ((replace(WELL, mtu=1359),), DEGRADED),
        ((replace(WELL, mtu=1360),), OK),
        ((replace(WELL, offset_s=-3.0),), DEGRADED),
        ((replace(WELL, offset_s=31.0),), FAILED),
        ((replace(WELL, seen=""),), UNKNOWN),
        ((replace(WELL, seen="203.0.113.9"),), OK),
        ((WELL, replace(OTHER, seen="203.0.113.9")), DEGRADED),
        ((WELL, OTHER), OK),
        ((), OK),
    ],
)
def test_verdict(ways: tuple[Way, ...], expected: Verdict) -> None:
    assert verdict(*ways) is expected


def test_nat_and_clock_are_named_with_their_direction() -> None:
    behind = replace(WELL, seen="203.0.113.9", offset_s=40.0)
    assert "as 203.0.113.9, not as 192.0.2.5: there is a NAT in between" in about("address", behind).words
    assert about("clock", behind).words == "this clock is 40 s behind that of a.example:7443"
    assert "ahead of" in about("clock", replace(WELL, offset_s=-40.0)).words
    assert "192.0.2.5, 203.0.113.9" in about("nat", WELL, replace(OTHER, seen="203.0.113.9")).words
    assert about("nat", WELL, OTHER).words == "all coordinators see the same IPv4 address"
