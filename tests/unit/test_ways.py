"""netcheck's judgement: every sentence, and what each costs the verdict (NET-1)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshctl.mesh.catalogue import Verdict
from meshctl.mesh.host_checks import overall
from meshctl.mesh.nat import ANSWERED, NOT_TESTED, REFUSED, SILENT, Look
from meshctl.mesh.ways import Sentence, Way, judge

OK, DEGRADED, FAILED, UNKNOWN = Verdict.OK, Verdict.DEGRADED, Verdict.FAILED, Verdict.UNKNOWN
HERE = "192.0.2.5"
PORT, OURS = 51820, f"{HERE}:51820"
LOOK = Look("a.example:7443", 4, ANSWERED, OURS, OURS, OURS, unasked=True, rtt_s=0.0021, passes=1500)
WELL = Way("a.example:7443", connect_s=0.003, source=HERE, seen=HERE, offset_s=0.1, mtu=1500, looks=(LOOK,))
OTHER = replace(WELL, address="b.example:7443", looks=(replace(LOOK, address="b.example:7443"),))
DEAD = Way("b.example:7443", "coordinator b.example:7443 does not answer", "is it running?")


def looks(**changes: object) -> Way:
    return replace(WELL, looks=(replace(LOOK, **changes),))  # type: ignore[arg-type]


def verdict(*ways: Way) -> Verdict:
    return overall([sentence.verdict for sentence in judge(ways, PORT)])


def about(what: str, *ways: Way) -> Sentence:
    return next(sentence for sentence in judge(ways, PORT) if sentence.about == what)


def told(*ways: Way) -> dict[str, str]:
    """Of several sentences about one thing the last."""
    return {sentence.about: sentence.words for sentence in judge(ways, PORT)}


def test_good_network_is_told_in_sentences_and_so_is_what_was_not_tested() -> None:
    assert [sentence.words for sentence in judge([WELL], PORT)] == [
        "a.example:7443 answers: TCP in 3.0 ms, TLS, and its certificate is of the mesh's CA",
        "a.example:7443 sees this machine as 192.0.2.5, its own address: no NAT",
        "UDP to a.example:7443 over IPv4 is answered in 2.1 ms",
        f"IPv4: the world sees {OURS}, this machine's own address and port: no NAT",
        "IPv4: UDP gets in from a port that this machine has not written to: peers may begin",
        "IPv6 is not tested: no coordinator answered over it",
        "the way to a.example:7443 carries 1500 bytes, as measured: 1420 inside the tunnel",
        "this clock agrees with that of a.example:7443",
    ]
    assert verdict(WELL) is OK


@pytest.mark.parametrize(
    ("ways", "expected"),
    [
        ((DEAD,), FAILED),
        ((WELL, DEAD), DEGRADED),
        ((WELL, replace(DEAD, trusted=False)), FAILED),
        ((looks(answer="Operation not permitted"),), FAILED),
        ((looks(answer=SILENT),), FAILED),
        ((looks(answer=REFUSED),), OK),
        ((WELL, replace(OTHER, looks=looks(address="b.example:7443", answer=SILENT).looks)), OK),
        ((replace(looks(answer=SILENT), error="it is down"),), FAILED),
        ((looks(seen="203.0.113.9:51820", seen_second="203.0.113.9:51820"),), OK),
        ((looks(seen="203.0.113.9:40001", seen_second="203.0.113.9:40001"),), OK),
        ((looks(seen="203.0.113.9:40001", seen_second="203.0.113.9:40002"),), DEGRADED),
        ((looks(unasked=False),), OK),
        ((looks(unasked=None, seen_second=""),), OK),
        ((replace(WELL, mtu=1359, looks=()),), DEGRADED),
        ((replace(WELL, mtu=1360, looks=()),), OK),
        ((looks(passes=1400, lost=1420),), DEGRADED),
        ((looks(passes=1280, lost=1360),), DEGRADED),
        ((looks(passes=None),), OK),
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
    assert "192.0.2.5, 203.0.113.9" in told(WELL, replace(OTHER, seen="203.0.113.9"))["address"]
    assert told(WELL, OTHER)["address"] == "all coordinators see the same IPv4 address"


def test_easy_nat_is_told_with_what_becomes_of_the_port() -> None:
    kept = told(looks(seen="203.0.113.9:51820", seen_second="203.0.113.9:51820"))["nat"]
    assert kept == "IPv6 is not tested: no coordinator answered over it"
    six = replace(LOOK, version=6, source="[2001:db8::5]:51820", seen="[2001:db8::5]:51820", seen_second="")
    both = replace(WELL, looks=(replace(LOOK, seen="203.0.113.9:51820", seen_second="203.0.113.9:51820"), six))
    natted, plain = (s.words for s in judge([both], PORT) if s.about == "nat")
    assert natted.startswith("IPv4: a NAT shows this machine as 203.0.113.9:51820 to all 2 destinations asked: an easy")
    assert "keeps its port" in natted
    assert plain == "IPv6: the world sees [2001:db8::5]:51820, this machine's own address and port: no NAT"
    moved = about("nat", looks(seen="203.0.113.9:40001", seen_second="203.0.113.9:40001"))
    assert "changes its port" in moved.words
    assert "--endpoint 203.0.113.9:40001" in moved.words


def test_hard_nat_is_seen_within_one_coordinator_and_between_two() -> None:
    within = about("nat", looks(seen="203.0.113.9:40001", seen_second="203.0.113.9:40002"))
    assert "under another address or port (203.0.113.9:40001, 203.0.113.9:40002): a hard one" in within.words
    assert within.remedy == "forward UDP 51820 to this machine, and meshctl join --endpoint ADDRESS:51820"
    one = replace(LOOK, seen="203.0.113.9:40001", seen_second="")
    two = replace(one, address="b.example:7443", seen="203.0.113.9:40009")
    assert about("nat", replace(WELL, looks=(one,)), replace(OTHER, looks=(two,))).verdict is DEGRADED
    assert "is not known, with one to ask" in about("nat", replace(WELL, looks=(one,))).words


def test_two_uplinks_without_a_nat_are_no_nat() -> None:
    away = "192.0.2.99:51820"
    second = replace(LOOK, address="b.example:7443", source=away, seen=away, seen_second=away)
    words = about("nat", WELL, replace(OTHER, looks=(second,))).words
    assert words.startswith("IPv4: the world sees 192.0.2.5:51820 and 192.0.2.99:51820, this machine's own")


def test_silence_is_judged_by_what_else_answers() -> None:
    alone = about("udp", looks(answer=SILENT))
    assert "is not answered, while TCP is" in alone.words
    assert "UDP 7443 in there" in alone.remedy
    assert about("udp", looks(answer=REFUSED)).words.startswith("UDP to a.example:7443 over IPv4 arrives: its refusal")
    assert told(looks(answer=REFUSED))["nat"] == NOT_TESTED
    down = replace(looks(answer=SILENT), error="it is down")
    assert "udp" not in told(down), "that it is down is enough"


def test_another_port_than_wireguards_is_said() -> None:
    there = f"{HERE}:40001"
    words = told(looks(source=there, seen=there, seen_second=there))["port"]
    assert words == "measured from UDP port 40001, as 51820 is in use: rules for 51820 alone do not show"


def test_hole_for_large_packets_is_named_with_both_sizes() -> None:
    found = about("mtu", looks(passes=1400, lost=1420))
    assert (
        found.words == "the way to a.example:7443 carries 1400 bytes, as measured; 1420 vanish: 1320 inside the tunnel"
    )
    assert "MESH-PATH-002" in found.remedy
