"""The catalogue, its judges, and how rows become findings, on injected time (NET-7, MON-6)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from meshctl.mesh import exams, integrity, judges, limits
from meshctl.mesh.catalogue import (
    ASYMMETRY,
    CATALOGUE,
    CIPHER,
    CLOCK,
    DRIFT,
    HANDSHAKE,
    IDENTITY,
    INTACT,
    KEY,
    LAG,
    PATH,
    PATH_MTU,
    PSK,
    ROTATION,
    ROUTE,
    Scope,
    Severity,
    Verdict,
)
from meshctl.mesh.integrity import Finding, Reading, Row
from meshctl.mesh.model import NodeId
from meshctl.mesh.pathmtu import Payloads, Width
from meshctl.mesh.probe import Echo

OK, DEGRADED, FAILED, UNKNOWN = Verdict.OK, Verdict.DEGRADED, Verdict.FAILED, Verdict.UNKNOWN
B, C = NodeId("b"), NodeId("c")
DAY = 86400.0


def reading(code: str, subject: str = "", verdict: Verdict = OK, at: float = 100.0) -> Reading:
    return Reading(code, subject, verdict, at, "seen")


def rows(*readings: Reading, peers: tuple[NodeId, ...] = (B,), now: float = 100.0) -> dict[tuple[str, str], Row]:
    made = integrity.evaluate({r[:2]: r for r in readings}, integrity.expected(peers), coverage_s=5.0, now=now)
    return {(row.code, row.subject): row for row in made}


def healthy(*peers: NodeId, at: float = 100.0) -> list[Reading]:
    return [reading(code, subject, at=at) for code, subject in integrity.expected(peers)]


def psk(version: int, good: int, theirs: int | None = None, **more: float | str | None) -> Reading:
    usual: dict[str, object] = {"differs_s": None, "age_s": 60.0, "set_s": 20.0, "within_s": 205.0, "why": ""}
    return judges.preshared(B, version, good, theirs, now=1.0, **usual | more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "verdict", "words"),
    [
        (psk(3, 3, 3), OK, "version 3, 60 s old, proven by a handshake"),
        (psk(4, 3, 4), OK, "version 3 is proven; version 4, 60 s old, waits for a handshake"),
        (psk(1, 0, 1), UNKNOWN, "version 1, 60 s old, waits for a handshake"),
        (psk(0, 0, None, why="it does not answer"), UNKNOWN, "no pre-shared key is agreed yet: it does not answer"),
        (psk(4, 3, 3, differs_s=10.0), OK, "version 3 is proven"),
        (psk(4, 3, 3, differs_s=16.0), FAILED, "this end has version 4 in force, the peer version 3, 16 s long"),
        (psk(4, 4, 0, differs_s=16.0), FAILED, "the peer none"),
        (psk(4, 3, 4, set_s=206.0), FAILED, "no handshake was made with it"),
        (psk(4, 4, 4, knocks_s=59.0), OK, "proven by a handshake"),
        (psk(4, 4, 4, knocks_s=61.0), DEGRADED, "the peer's handshakes arrive, and none succeeds"),
        (psk(4, 4, 4, set_s=206.0), OK, "proven by a handshake"),
    ],
)
def test_pre_shared_keys_are_judged_by_both_ends_and_a_handshake(found: Reading, verdict: Verdict, words: str) -> None:
    """MESH-ENC-002 (NET-6)."""
    assert (found.code, found.verdict) == (PSK, verdict)
    assert words in found.evidence


# ---- the catalogue ---------------------------------------------------------------------------------------------------


def test_catalogue_is_whole_and_its_dependencies_exist_without_a_circle() -> None:
    shallow = {DRIFT, LAG, ROUTE, HANDSHAKE, PATH, IDENTITY, ROTATION, KEY, CLOCK, ASYMMETRY}
    deep = {PATH_MTU, INTACT, CIPHER, PSK, *exams.CODES}
    assert set(CATALOGUE) == shallow | deep
    assert {code for code, check in CATALOGUE.items() if check.deep} == deep

    def depth(code: str, above: tuple[str, ...] = ()) -> None:
        assert code not in above
        for needed in CATALOGUE[code].depends_on:
            depth(needed, (*above, code))

    for code, check in CATALOGUE.items():
        depth(code)
        assert check.title
        assert check.claim
        assert check.remedy
        assert check.anchor == f"README.md#{code.lower()}"
        assert check.grace_s >= 0


# ---- judges ----------------------------------------------------------------------------------------------------------

WIDE, NARROW, TIGHT = Width(1420, 1420), Width(1420, 1328, 15), Width(1420, 1232, 15)
WHOLE, TORN = Payloads(3, 1420), Payloads(3, 1420, [1420])

JUDGED: list[tuple[str, Callable[[], Reading], str, Verdict]] = [
    ("no drift", lambda: judges.drift((), 0, "", now=100), DRIFT, OK),
    ("foreign change undone just now", lambda: judges.drift(["remove peer X"], 95, "", now=100), DRIFT, DEGRADED),
    ("foreign change long ago", lambda: judges.drift(["remove peer X"], 5, "", now=100), DRIFT, OK),
    ("pass failed", lambda: judges.drift((), 0, "did not settle: add peer X", now=100), DRIFT, FAILED),
    ("following", lambda: judges.lag(7, 7, 1.0, now=100), LAG, OK),
    ("ahead of an old heartbeat", lambda: judges.lag(8, 7, 1.0, now=100), LAG, OK),
    ("behind", lambda: judges.lag(6, 7, 1.0, now=100), LAG, FAILED),
    ("coordinator silent", lambda: judges.lag(7, 7, 36.0, now=100), LAG, DEGRADED),
    ("coordinator never heard", lambda: judges.lag(7, 0, None, now=100), LAG, DEGRADED),
    ("no leak", lambda: judges.routes((), True, now=100), ROUTE, OK),
    ("leak", lambda: judges.routes(["10.77.0.2 leaves by eth0"], True, now=100), ROUTE, FAILED),
    ("leak possible", lambda: judges.routes((), False, now=100), ROUTE, DEGRADED),
    ("fresh session", lambda: judges.handshake(B, 180.0, True, now=100), HANDSHAKE, OK),
    ("stale session in use", lambda: judges.handshake(B, 180.1, True, now=100), HANDSHAKE, FAILED),
    ("stale session idle", lambda: judges.handshake(B, 400.0, False, now=100), HANDSHAKE, UNKNOWN),
    ("no session, tried", lambda: judges.handshake(B, None, True, now=100), HANDSHAKE, FAILED),
    ("young key", lambda: judges.keys(6 * DAY, 20 * 3600, now=100), KEY, OK),
    ("30 days left", lambda: judges.keys(limits.KEY_AGE_FAIL_S - 30 * DAY, 20 * 3600, now=100), KEY, DEGRADED),
    ("key too old", lambda: judges.keys(limits.KEY_AGE_FAIL_S, 20 * 3600, now=100), KEY, FAILED),
    ("certificate due, not renewed yet", lambda: judges.keys(DAY, 12 * 3600 - 599, now=100), KEY, OK),
    ("certificate not renewed", lambda: judges.keys(DAY, 11 * 3600, now=100), KEY, DEGRADED),
    ("certificate expired", lambda: judges.keys(DAY, -1, now=100), KEY, FAILED),
    ("no key changed", lambda: judges.rotation(B, None, 9.0, None, now=100), ROTATION, OK),
    ("a key changed, all followed", lambda: judges.rotation(B, 5.0, 4.9, 0.1, now=100), ROTATION, OK),
    ("a key changed, no handshake since", lambda: judges.rotation(B, 5.0, 5.1, 0.1, now=100), ROTATION, FAILED),
    ("a key changed, never a handshake", lambda: judges.rotation(B, 5.0, None, None, now=100), ROTATION, FAILED),
    ("a key changed, the peer disagrees", lambda: judges.rotation(B, 5.0, 4.9, 5.1, now=100), ROTATION, FAILED),
    ("a key changed, no echo at all", lambda: judges.rotation(B, 5.0, 4.9, None, now=100), ROTATION, FAILED),
    ("full size both ways", lambda: judges.path_mtu(B, WIDE, WIDE, 0, 0, now=100), PATH_MTU, OK),
    ("narrow, no route", lambda: judges.path_mtu(B, NARROW, WIDE, 0, 0, now=100), PATH_MTU, FAILED),
    ("narrow, a wide route", lambda: judges.path_mtu(B, NARROW, WIDE, 1344, 0, now=100), PATH_MTU, FAILED),
    ("narrow, our route keeps to it", lambda: judges.path_mtu(B, NARROW, WIDE, 1328, 0, now=100), PATH_MTU, DEGRADED),
    ("narrow inbound, our route", lambda: judges.path_mtu(B, WIDE, NARROW, 1328, 0, now=100), PATH_MTU, FAILED),
    ("narrow inbound, theirs", lambda: judges.path_mtu(B, WIDE, NARROW, 1328, 1328, now=100), PATH_MTU, DEGRADED),
    ("narrow both ways, one route", lambda: judges.path_mtu(B, NARROW, NARROW, 1328, 0, now=100), PATH_MTU, FAILED),
    ("too narrow for IPv6", lambda: judges.path_mtu(B, TIGHT, WIDE, 1232, 1232, now=100), PATH_MTU, FAILED),
    ("controls lost", lambda: judges.path_mtu(B, None, WIDE, 0, 0, now=100), PATH_MTU, UNKNOWN),
    ("payloads whole", lambda: judges.intact(B, WHOLE, WHOLE, now=100), INTACT, OK),
    ("altered outbound", lambda: judges.intact(B, TORN, WHOLE, now=100), INTACT, FAILED),
    ("altered inbound", lambda: judges.intact(B, WHOLE, TORN, now=100), INTACT, FAILED),
    ("nothing arrived", lambda: judges.intact(B, Payloads(), Payloads(), now=100), INTACT, UNKNOWN),
    ("no clock seen", lambda: judges.clock(None, (), now=100), CLOCK, UNKNOWN),
    ("clocks agree", lambda: judges.clock(0.1, (0.2, -0.3, 0.1), now=100), CLOCK, OK),
    ("one peer's clock is wrong", lambda: judges.clock(0.1, (0.0, 60.0, 0.1), now=100), CLOCK, OK),
    ("my clock drifts", lambda: judges.clock(-3.0, (), now=100), CLOCK, DEGRADED),
    ("my clock is wrong", lambda: judges.clock(None, (59.0, 60.0, 61.0), now=100), CLOCK, FAILED),
]


def test_evidence_names_the_direction_and_the_sizes() -> None:
    narrow = judges.path_mtu(B, NARROW, TIGHT, 0, 0, now=100).evidence
    assert "over 1328 of 1420 bytes vanish outbound" in narrow
    assert "over 1232 of 1420 bytes vanish inbound" in narrow
    assert "1 of 3 payloads altered inbound, in packets of 1420" in judges.intact(B, WHOLE, TORN, now=100).evidence


@pytest.mark.parametrize(("judge", "code", "verdict"), [pytest.param(*row, id=name) for name, *row in JUDGED])
def test_judge(judge: Callable[[], Reading], code: str, verdict: Verdict) -> None:
    found = judge()
    assert (found.code, found.verdict) == (code, verdict)
    assert found.evidence


def test_key_warnings_come_30_7_and_1_days_before_the_end() -> None:
    words = [judges.keys(limits.KEY_AGE_FAIL_S - left * DAY, 20 * 3600, now=0).evidence for left in (29, 6, 0.5)]
    assert ["30 d" in words[0], "7 d" in words[1], "24 h" in words[2]] == [True, True, True]


def test_path_of_a_peer_that_answers_loses_and_dies() -> None:
    assert judges.path(B, Echo(), now=9).verdict is UNKNOWN
    good = Echo(sent=16, received=15, rtt_s=0.004, last_ok_at=8, tested_at=8)
    assert judges.path(B, good, now=9) == Reading(PATH, B, OK, 8, "rtt 4.0 ms, jitter 0.0 ms, loss 6% of 16")
    assert judges.path(B, Echo(sent=3, received=2, last_ok_at=8, tested_at=8), now=9).verdict is OK, "may be chance"
    assert judges.path(B, Echo(sent=3, received=1, last_ok_at=8, tested_at=8), now=9).verdict is DEGRADED
    assert judges.path(B, Echo(sent=16, received=8, last_ok_at=8, tested_at=8), now=9).verdict is DEGRADED
    assert judges.path(B, Echo(sent=16, received=14, missed=2, last_ok_at=1, tested_at=8), now=9).verdict is DEGRADED
    assert judges.path(B, Echo(sent=16, received=13, missed=3, last_ok_at=1, tested_at=8), now=9).verdict is FAILED
    led = Echo(last_ok_at=8, tested_at=8)
    assert judges.path(B, led, now=9).verdict is OK


def test_identity_of_a_peer_whose_echoes_are_forged() -> None:
    assert judges.identity(B, Echo(), now=9).verdict is UNKNOWN
    assert judges.identity(B, Echo(last_ok_at=8), now=9).verdict is OK
    assert judges.identity(B, Echo(forged=3, forged_at=8), now=9).verdict is FAILED
    assert judges.identity(B, Echo(forged=3, forged_at=8, last_ok_at=7), now=9).verdict is FAILED
    mixed = judges.identity(B, Echo(forged=3, forged_at=7, last_ok_at=8), now=9)
    assert (mixed.verdict, mixed.at) == (DEGRADED, 8)
    assert judges.identity(B, Echo(forged=3, forged_at=7, last_ok_at=98), now=99).verdict is OK


def test_two_rows_of_a_pair_disagree() -> None:
    def row(verdict: Verdict, because: str = "") -> Row:
        return Row(PATH, B, verdict, 1.0, "", because)

    def verdict(here: Row | None, there: Row | None) -> Verdict:
        return judges.asymmetry(B, here, there, now=1).verdict

    assert verdict(row(OK), row(FAILED)) is FAILED
    assert verdict(row(UNKNOWN, HANDSHAKE), row(OK)) is FAILED
    assert verdict(row(FAILED), row(FAILED)) is OK
    assert verdict(row(OK), row(DEGRADED)) is OK
    assert verdict(row(OK), None) is UNKNOWN


def test_evidence_is_bounded() -> None:
    assert len(judges.drift((), 0, "x" * 10_000, now=1).evidence) == 160


# ---- rows ------------------------------------------------------------------------------------------------------------


def test_what_was_not_tested_is_unknown_never_ok() -> None:
    assert {row.verdict for row in rows().values()} == {UNKNOWN}
    assert rows(*healthy(B))[PATH, B].verdict is OK
    late = rows(*healthy(B), now=105.1)[PATH, B]
    assert (late.verdict, late.evidence) == (UNKNOWN, "not tested since 5 s ago")
    assert rows(*healthy(B), now=90.0)[PATH, B].verdict is UNKNOWN, "a reading from the future is no evidence"


def test_readings_nobody_expects_are_ignored() -> None:
    made = rows(*healthy(B), reading(PATH, C, FAILED))
    assert (PATH, C) not in made
    assert made[PATH, B].verdict is OK


def test_failure_that_another_failure_explains_is_reported_once() -> None:
    made = rows(*healthy(B, C), reading(HANDSHAKE, B, FAILED), reading(PATH, B, FAILED), peers=(B, C))
    assert made[HANDSHAKE, B].verdict is FAILED
    assert (made[PATH, B].verdict, made[PATH, B].because) == (UNKNOWN, HANDSHAKE)
    assert made[PATH, C].verdict is OK


def test_failure_of_the_node_itself_explains_its_peers_through_any_depth() -> None:
    bad = [reading(DRIFT, "", FAILED), reading(HANDSHAKE, B, FAILED), reading(PATH, B, FAILED)]
    made = rows(*healthy(B), *bad)
    assert made[HANDSHAKE, B].because == made[PATH, B].because == DRIFT


def test_degraded_cause_explains_nothing() -> None:
    made = rows(*healthy(B), reading(DRIFT, "", DEGRADED), reading(HANDSHAKE, B, FAILED))
    assert made[HANDSHAKE, B].verdict is FAILED


def test_stranger_at_a_peers_address_is_never_hidden_behind_the_dead_path() -> None:
    made = rows(*healthy(B), reading(IDENTITY, B, FAILED), reading(PATH, B, FAILED))
    assert made[IDENTITY, B].verdict is FAILED
    assert made[PATH, B].because == IDENTITY


def test_path_that_a_rotation_broke_is_the_rotations_finding() -> None:
    made = rows(reading(PATH, B, FAILED), reading(ROTATION, B, FAILED), reading(HANDSHAKE, B))
    assert (made[ROTATION, B].verdict, made[PATH, B].because) == (FAILED, ROTATION)


# ---- findings --------------------------------------------------------------------------------------------------------


def bad(verdict: Verdict = FAILED, code: str = LAG) -> list[Row]:
    return [Row(code, "", verdict, 0.0, "behind")]


def test_finding_opens_after_its_grace_once_and_closes_on_evidence() -> None:
    grace = CATALOGUE[LAG].grace_s
    findings, opened, closed = integrity.track((), bad(), now=0.0)
    assert (len(findings), opened, closed) == (1, (), ())
    findings, opened, closed = integrity.track(findings, bad(), now=grace - 0.1)
    assert not opened
    findings, opened, closed = integrity.track(findings, bad(), now=grace)
    assert [(f.since, f.opened_at) for f in opened] == [(0.0, grace)]
    findings, opened, closed = integrity.track(findings, bad(DEGRADED), now=grace + 1)
    assert not opened
    assert findings[0].severity is Severity.WARNING
    findings, opened, closed = integrity.track(findings, bad(UNKNOWN), now=grace + 2)
    assert len(findings) == 1, "silence closes nothing"
    findings, opened, closed = integrity.track(findings, bad(OK), now=grace + 3)
    assert (findings, opened) == ((), ())
    assert [(f.since, f.at) for f in closed] == [(0.0, grace + 3)]


def test_blip_shorter_than_its_grace_is_never_told() -> None:
    findings, *_ = integrity.track((), bad(), now=0.0)
    findings, opened, closed = integrity.track(findings, bad(OK), now=1.0)
    assert (findings, opened, closed) == ((), (), ())


def test_silence_neither_opens_a_finding_nor_counts_towards_its_grace() -> None:
    assert integrity.track((), bad(UNKNOWN), now=0.0) == ((), (), ())
    findings, *_ = integrity.track((), bad(), now=0.0)
    findings, *_ = integrity.track(findings, bad(UNKNOWN), now=1.0)
    _, opened, _ = integrity.track(findings, bad(), now=500.0)
    assert opened == ()


def test_finding_of_a_removed_peer_closes() -> None:
    findings, opened, _ = integrity.track((), [Row(PATH, B, FAILED, 0.0, "lost")], now=0.0)
    assert len(opened) == 1, "three lost echoes have waited long enough"
    assert [f.evidence for f in integrity.track(findings, (), now=10.0)[2]] == ["no longer expected"]


def test_severity_is_the_checks_when_failed() -> None:
    assert Finding(DRIFT, "", FAILED, 0, 0, "").severity is Severity.CRITICAL
    assert Finding(DRIFT, "", DEGRADED, 0, 0, "").severity is Severity.WARNING


# ---- one word --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("news", "verdict"),
    [
        ([], OK),
        ([reading(PATH, B, FAILED)], DEGRADED),
        ([reading(PATH, B, FAILED), reading(PATH, C, FAILED)], FAILED),
        ([reading(HANDSHAKE, B, FAILED), reading(PATH, B, FAILED), reading(PATH, C, FAILED)], FAILED),
        ([reading(IDENTITY, B, FAILED)], FAILED),
        ([reading(IDENTITY, B, DEGRADED)], DEGRADED),
        ([reading(CLOCK, "", UNKNOWN)], UNKNOWN),
        ([reading(CLOCK, "", UNKNOWN), reading(LAG, "", FAILED)], DEGRADED),
        ([reading(ROUTE, "", FAILED)], FAILED),
    ],
)
def test_overall(news: list[Reading], verdict: Verdict) -> None:
    assert integrity.overall(rows(*healthy(B, C), *news, peers=(B, C)).values()) is verdict


def test_nothing_known_is_unknown() -> None:
    assert integrity.overall(rows().values()) is UNKNOWN


def test_ready_needs_the_own_interface_and_one_proven_peer() -> None:
    def ready(*news: Reading, peers: tuple[NodeId, ...] = (B, C)) -> bool:
        return integrity.ready(rows(*healthy(*peers), *news, peers=peers).values())

    assert ready()
    assert ready(peers=())
    assert ready(reading(PATH, B, FAILED))
    assert not ready(reading(PATH, B, FAILED), reading(PATH, C, FAILED))
    assert not ready(reading(DRIFT, "", FAILED))
    assert not integrity.ready(rows(reading(DRIFT)).values())
    assert not integrity.ready(())


def test_exit_codes_are_those_of_monitoring_plugins() -> None:
    assert [integrity.exit_code(v) for v in (OK, DEGRADED, FAILED, UNKNOWN)] == [0, 1, 2, 3]


def test_every_check_of_a_node_and_its_peers_is_expected() -> None:
    codes = {code for code, _ in integrity.expected((B,))}
    assert codes == {c.code for c in CATALOGUE.values() if c.scope is not Scope.PAIR}
