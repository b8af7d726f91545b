"""The integrity catalogue and its judgement: observations -> Readings -> Rows -> Findings (NET-7, MON-6).

**Law: production, the assertions of the tests and `meshctl doctor` call these very functions.** One small judge per
code turns raw observations into a Reading. `evaluate` holds readings against what was expected: what was not tested is
`unknown`, never `ok`. `track` opens a finding after its grace and closes it on evidence.

All times are seconds of one clock, the caller's; the agent uses the monotonic one, so that a stepped wall clock cannot
make old evidence young. To add a check: a row in CATALOGUE and a judge.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, NamedTuple

from meshctl.mesh import limits, pacing
from meshctl.mesh.model import NodeId
from meshctl.mesh.probe import DOWN_AFTER, LOSSY_ABOVE, Echo

_EVIDENCE_CHARS: Final = 160
_REMEMBERED_S: Final = 60.0  # how long a repaired interface or a forged echo is still told
_DAY_S: Final = 86400.0
_KEY_WARNINGS_S: Final = (_DAY_S, 7 * _DAY_S, 30 * _DAY_S)  # before a key is older than policy allows


class Verdict(StrEnum):
    """What evidence says of one claim."""

    OK = "ok"
    DEGRADED = "degraded"
    FAILED = "failed"
    UNKNOWN = "unknown"


class Severity(StrEnum):
    """How much a failed check matters: one absent peer is weather, a leak is not."""

    WARNING = "warning"
    CRITICAL = "critical"


class Scope(StrEnum):
    """What a check is about: the node itself, each of its peers, or (at the coordinator) both ends of a pair."""

    NODE = "node"
    PEER = "peer"
    PAIR = "pair"


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the catalogue. A failed check of `depends_on` explains this one's failure; `anchor` is its page."""

    code: str
    title: str
    severity: Severity
    scope: Scope
    claim: str
    evidence: str
    depends_on: tuple[str, ...]
    grace_s: float
    remedy: str

    @property
    def anchor(self) -> str:
        """Where the README explains it."""
        return f"README.md#{self.code.lower()}"


_W, _C = Severity.WARNING, Severity.CRITICAL
DRIFT, LAG, ROUTE = "MESH-CFG-001", "MESH-CFG-002", "MESH-ROUTE-001"
HANDSHAKE, PATH, IDENTITY = "MESH-HS-001", "MESH-PATH-001", "MESH-ID-001"
KEY, CLOCK, ASYMMETRY = "MESH-KEY-001", "MESH-CLK-001", "MESH-ASY-001"

CATALOGUE: Final[Mapping[str, Check]] = {
    check.code: check
    for check in (
        Check(DRIFT, "interface-drift", _C, Scope.NODE, "the kernel holds what the plan says",
              "steps of the last pass", (), 5.0,
              "meshctl plan shows the difference; find who else configures the interface"),
        Check(LAG, "revision-lag", _W, Scope.NODE, "the node follows the registry",
              "applied revision, the server's, age of the last heartbeat", (), 15.0,
              "is a coordinator reachable from here? meshctl status names the one in use"),
        Check(ROUTE, "route-exclusive", _C, Scope.NODE, "mesh addresses leave only by the mesh interface",
              "the kernel's route for each peer, and the fail-closed route", (), 5.0,
              "remove the foreign route or rule that ip route get ADDRESS shows"),
        Check(HANDSHAKE, "handshake-fresh", _W, Scope.PEER, "sessions are re-keyed while traffic is sent",
              "age of the last handshake", (DRIFT,), 15.0, "does UDP reach the peer's endpoint? meshctl ping PEER"),
        Check(PATH, "peer-reachable", _W, Scope.PEER, "both directions carry packets",
              "authenticated echoes: loss, round trip, jitter", (HANDSHAKE, IDENTITY), 2.0,
              "is the peer up? meshctl status on its side; then firewalls between the two endpoints"),
        Check(IDENTITY, "peer-identity", _C, Scope.PEER, "the other end is the node in the registry",
              "tag of the echo, bound to both key statements", (), 15.0,
              "somebody answers at this address without the node's keys: revoke the node until you know why"),
        Check(KEY, "key-age", _W, Scope.NODE, "keys and certificates are young",
              "age of the WireGuard key, life left of the certificate", (), 600.0,
              "a certificate renews by itself while a coordinator is reachable; a key: meshctl leave, then join anew"),
        Check(CLOCK, "clock-skew", _W, Scope.NODE, "clocks agree",
              "heartbeat of the coordinator and median of the peers' echoes", (), 30.0,
              "start a time daemon: chrony or systemd-timesyncd"),
        Check(ASYMMETRY, "asymmetric", _W, Scope.PAIR, "both ends of a pair say the same",
              "the two rows of the pair", (), 30.0,
              "a firewall lets one direction pass only: compare meshctl status of both ends"),
    )
}  # fmt: skip

Key = tuple[str, str]  # code, subject


@dataclass(frozen=True, slots=True)
class Reading:
    """One observation, judged. `subject` is a node id, or empty for the node itself."""

    code: str
    subject: str
    verdict: Verdict
    at: float
    evidence: str

    def __post_init__(self) -> None:
        if len(self.evidence) > _EVIDENCE_CHARS:
            object.__setattr__(self, "evidence", self.evidence[: _EVIDENCE_CHARS - 3] + "...")


class Row(NamedTuple):
    """What holds of one expected claim now. `because` names the failed check that explains this one's silence."""

    code: str
    subject: str
    verdict: Verdict
    at: float | None
    evidence: str
    because: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """A claim that does not hold, since when, and since when people are told (None: still within its grace)."""

    code: str
    subject: str
    verdict: Verdict
    since: float
    at: float
    evidence: str
    opened_at: float | None = None

    @property
    def severity(self) -> Severity:
        """A degraded claim warns, whatever its check."""
        return CATALOGUE[self.code].severity if self.verdict is Verdict.FAILED else Severity.WARNING


# ---- judges: one per code --------------------------------------------------------------------------------------------


def drift(repaired: Sequence[object], repaired_at: float, error: str, *, now: float) -> Reading:
    """Of the pass that ended `now`: what it could not do, or which foreign changes (printed steps) it undid lately."""
    if error:
        return Reading(DRIFT, "", Verdict.FAILED, now, error)
    if repaired and now - repaired_at < _REMEMBERED_S:
        words = f"{len(repaired)} foreign changes undone {_ago(now - repaired_at)}: {repaired[0]}"
        return Reading(DRIFT, "", Verdict.DEGRADED, now, words)
    return Reading(DRIFT, "", Verdict.OK, now, "the kernel holds the plan")


def lag(
    applied: int,
    server: int,
    heartbeat_age_s: float | None,
    refused: Sequence[str] = (),
    *,
    silent_s: float = pacing.silence_s(0),
    now: float,
) -> Reading:
    """Revisions applied here and known to the server; None: no heartbeat since this process began.

    `refused`: why key statements of the registry were not believed, one sentence each. `silent_s`: the age at which a
    stream counts as dead in a mesh of this size.
    """
    if refused:
        return Reading(LAG, "", Verdict.FAILED, now, f"{len(refused)} key statements refused: {refused[0]}")
    if heartbeat_age_s is None:
        return Reading(LAG, "", Verdict.DEGRADED, now, f"no heartbeat yet, revision {applied} in force")
    if heartbeat_age_s > silent_s:
        words = f"last heartbeat {_ago(heartbeat_age_s)}, revision {applied} in force"
        return Reading(LAG, "", Verdict.DEGRADED, now, words)
    verdict = Verdict.FAILED if applied < server else Verdict.OK
    return Reading(LAG, "", verdict, now, f"applied {applied} of {server}, heartbeat {_ago(heartbeat_age_s)}")


def routes(leaks: Sequence[str], fail_closed: bool, *, now: float) -> Reading:
    """`leaks`: a sentence per mesh address that would leave elsewhere; `fail_closed`: the unreachable routes hold."""
    if leaks:
        return Reading(ROUTE, "", Verdict.FAILED, now, f"{len(leaks)} leaks: {leaks[0]}")
    if not fail_closed:
        return Reading(ROUTE, "", Verdict.DEGRADED, now, "the fail-closed route is missing")
    return Reading(ROUTE, "", Verdict.OK, now, "every peer is routed to the mesh interface, fail-closed route present")


def handshake(peer: NodeId, age_s: float | None, sent: bool, *, now: float) -> Reading:
    """Age of the last handshake (None: never), and whether traffic was sent since."""
    words = "no handshake yet" if age_s is None else f"last handshake {_ago(age_s)}"
    if age_s is not None and age_s <= limits.REJECT_AFTER_S:
        return Reading(HANDSHAKE, peer, Verdict.OK, now, words)
    if sent:
        return Reading(HANDSHAKE, peer, Verdict.FAILED, now, f"{words}, though traffic was sent")
    return Reading(HANDSHAKE, peer, Verdict.UNKNOWN, now, f"{words}, and nothing was sent since")


def path(peer: NodeId, echo: Echo, *, now: float) -> Reading:
    """Echo statistics. The reading is as old as the last finished test."""
    at = now if echo.tested_at is None else echo.tested_at
    if echo.missed >= DOWN_AFTER:
        answered = "none ever" if echo.last_ok_at is None else f"the last {_ago(now - echo.last_ok_at)}"
        words = f"{echo.missed} echoes in a row unanswered, {answered} came back"
        return Reading(PATH, peer, Verdict.FAILED, at, words)
    if echo.last_ok_at is None:
        return Reading(PATH, peer, Verdict.UNKNOWN, at, f"{echo.sent} echoes tried, none answered yet")
    words = "the peer led"
    if echo.rtt_s is not None:
        words = f"rtt {echo.rtt_s * 1e3:.1f} ms, jitter {echo.jitter_s * 1e3:.1f} ms"
    words += f", loss {echo.loss:.0%} of {echo.sent}"
    return Reading(PATH, peer, Verdict.DEGRADED if echo.loss > LOSSY_ABOVE else Verdict.OK, at, words)


def identity(peer: NodeId, echo: Echo, *, now: float) -> Reading:
    """Tags of the packets that came from the peer's address. The reading is as old as the last packet with one."""
    ok_at, forged_at = echo.last_ok_at, echo.forged_at
    if forged_at is not None and (ok_at is None or ok_at < forged_at or now - forged_at < _REMEMBERED_S):
        genuine = ok_at is not None and ok_at >= forged_at
        words = f"{echo.forged} packets with a wrong tag, the last {_ago(now - forged_at)}"
        at = ok_at if ok_at is not None and ok_at >= forged_at else forged_at
        return Reading(IDENTITY, peer, Verdict.DEGRADED if genuine else Verdict.FAILED, at, words)
    if ok_at is None:
        return Reading(IDENTITY, peer, Verdict.UNKNOWN, now, "no echo with a tag yet")
    return Reading(IDENTITY, peer, Verdict.OK, ok_at, f"valid tag {_ago(now - ok_at)}")


def keys(key_age_s: float, certificate_left_s: float, *, now: float) -> Reading:
    """Age of the WireGuard key against policy; life left of the certificate, which renews itself at half life."""
    left = limits.KEY_AGE_FAIL_S - key_age_s
    words = f"WireGuard key {_span(key_age_s)} old, certificate valid for {_span(max(certificate_left_s, 0))}"
    if left <= 0:
        allowed = _span(limits.KEY_AGE_FAIL_S)
        return Reading(KEY, "", Verdict.FAILED, now, f"WireGuard key {_span(key_age_s)} old, {allowed} are allowed")
    if certificate_left_s <= 0:
        return Reading(KEY, "", Verdict.FAILED, now, f"certificate expired {_ago(-certificate_left_s)}")
    if certificate_left_s < limits.CERTIFICATE_LIFE_S / 2:
        return Reading(KEY, "", Verdict.DEGRADED, now, f"{words}: past half life and not renewed")
    if tier := next((tier for tier in _KEY_WARNINGS_S if left <= tier), None):
        return Reading(KEY, "", Verdict.DEGRADED, now, f"{words}: must rotate within {_span(tier)}")
    return Reading(KEY, "", Verdict.OK, now, words)


def clock(stream_offset_s: float | None, peer_offsets_s: Iterable[float], *, now: float) -> Reading:
    """Others' wall clocks minus ours, the coordinator's and the peers': of these the median, as one may be wrong."""
    peers = sorted(peer_offsets_s)
    median = peers[len(peers) // 2] if peers else None
    measured = {"the coordinator": stream_offset_s, f"the median of {len(peers)} peers": median}
    known = {who: offset for who, offset in measured.items() if offset is not None}
    if not known:
        return Reading(CLOCK, "", Verdict.UNKNOWN, now, "no other clock was seen yet")
    who, worst = max(known.items(), key=lambda item: abs(item[1]))
    if abs(worst) > limits.CLOCK_SKEW_FAIL_S:
        verdict = Verdict.FAILED
    else:
        verdict = Verdict.DEGRADED if abs(worst) > limits.CLOCK_SKEW_WARN_S else Verdict.OK
    words = f"this clock is {abs(worst):.2f} s {'behind' if worst > 0 else 'ahead of'} {who}"
    return Reading(CLOCK, "", verdict, now, words)


def asymmetry(peer: NodeId, here: Row | None, there: Row | None, *, now: float) -> Reading:
    """The same check seen from this end and from `peer`'s (None: not reported)."""
    ours, theirs = _end(here), _end(there)
    words = f"this end says {ours}, the peer {theirs}"
    if Verdict.UNKNOWN in {ours, theirs}:
        return Reading(ASYMMETRY, peer, Verdict.UNKNOWN, now, words)
    split = (ours is Verdict.FAILED) != (theirs is Verdict.FAILED)
    return Reading(ASYMMETRY, peer, Verdict.FAILED if split else Verdict.OK, now, words)


def _end(row: Row | None) -> Verdict:
    if row is None:
        return Verdict.UNKNOWN
    return Verdict.FAILED if row.because else row.verdict


# ---- judgement -------------------------------------------------------------------------------------------------------


def expected(peers: Iterable[NodeId]) -> tuple[Key, ...]:
    """What a node must be able to say: the node's own checks, and the peers' checks for each of `peers`."""
    node = [(c.code, "") for c in CATALOGUE.values() if c.scope is Scope.NODE]
    per_peer = [c.code for c in CATALOGUE.values() if c.scope is Scope.PEER]
    return (*node, *((code, peer) for peer in peers for code in per_peer))


def evaluate(readings: Iterable[Reading], expected: Iterable[Key], *, coverage_s: float, now: float) -> tuple[Row, ...]:
    """One row per expected (code, subject). Readings older than `coverage_s`, or from the future, are no evidence."""
    latest: dict[Key, Reading] = {}
    for reading in readings:
        key = reading.code, reading.subject
        if key not in latest or latest[key].at <= reading.at:
            latest[key] = reading
    rows = {key: _row(key, latest.get(key), coverage_s, now) for key in expected}
    return tuple(row if row.verdict is Verdict.OK else _explained(row, rows) for row in rows.values())


def _row(key: Key, reading: Reading | None, coverage_s: float, now: float) -> Row:
    if reading is None:
        return Row(*key, Verdict.UNKNOWN, None, "never tested")
    if abs(now - reading.at) > coverage_s:
        return Row(*key, Verdict.UNKNOWN, reading.at, f"not tested since {_ago(now - reading.at)}")
    return Row(*key, reading.verdict, reading.at, reading.evidence)


def _explained(row: Row, rows: Mapping[Key, Row]) -> Row:
    cause = _cause(row.code, row.subject, rows)
    return row._replace(verdict=Verdict.UNKNOWN, evidence=f"because of {cause}", because=cause) if cause else row


def _cause(code: str, subject: str, rows: Mapping[Key, Row]) -> str:
    """The deepest failed check that `code` depends on, for the same subject or for the whole node; or nothing."""
    for needed in CATALOGUE[code].depends_on:
        failed = any(key in rows and rows[key].verdict is Verdict.FAILED for key in ((needed, subject), (needed, "")))
        if cause := _cause(needed, subject, rows) or (needed if failed else ""):
            return cause
    return ""


def track(
    findings: Iterable[Finding], rows: Iterable[Row], *, now: float
) -> tuple[tuple[Finding, ...], tuple[Finding, ...], tuple[Finding, ...]]:
    """(findings, opened now, closed now). Silence neither opens nor closes; what is no longer expected closes."""
    known = {(f.code, f.subject): f for f in findings}
    kept, opened, closed = [], [], []
    for row in rows:
        finding = known.pop((row.code, row.subject), None)
        if row.verdict is Verdict.OK:
            if finding is not None and finding.opened_at is not None:
                closed.append(replace(finding, at=now, evidence=row.evidence))
        elif row.verdict is Verdict.UNKNOWN:
            if finding and finding.opened_at is not None:
                kept.append(finding)
        else:
            since = finding.since if finding else now
            told = finding.opened_at if finding else None
            due = told is None and now - since >= CATALOGUE[row.code].grace_s
            kept.append(Finding(row.code, row.subject, row.verdict, since, now, row.evidence, now if due else told))
            opened += kept[-1:] if due else []
    closed += [replace(f, at=now, evidence="no longer expected") for f in known.values() if f.opened_at is not None]
    return tuple(kept), tuple(opened), tuple(closed)


def overall(rows: Iterable[Row]) -> Verdict:
    """One word for a node. `failed`: a critical check did, or every peer is out of reach; one absent peer degrades."""
    rows = tuple(rows)
    paths = [row for row in rows if row.code == PATH]
    bad = [row for row in rows if row.verdict in {Verdict.FAILED, Verdict.DEGRADED}]
    if any(row.verdict is Verdict.FAILED and CATALOGUE[row.code].severity is Severity.CRITICAL for row in bad):
        return Verdict.FAILED
    if paths and all(row.verdict is Verdict.FAILED or row.because for row in paths):
        return Verdict.FAILED
    if bad:
        return Verdict.DEGRADED
    return Verdict.OK if all(row.verdict is Verdict.OK for row in rows) else Verdict.UNKNOWN


def ready(rows: Iterable[Row]) -> bool:
    """The node's own interface is in place, and the data path to a peer is verified unless there is no peer."""
    rows = tuple(rows)
    fine = {Verdict.OK, Verdict.DEGRADED}
    paths = [row for row in rows if row.code == PATH]
    own = any(row.code == DRIFT and row.verdict in fine for row in rows)
    return own and (not paths or any(row.verdict in fine for row in paths))


def exit_code(verdict: Verdict) -> int:
    """What monitoring plugins return: 0 ok, 1 warning, 2 critical, 3 unknown."""
    return (Verdict.OK, Verdict.DEGRADED, Verdict.FAILED, Verdict.UNKNOWN).index(verdict)


def _span(seconds: float) -> str:
    for unit, length in (("d", _DAY_S), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _ago(seconds: float) -> str:
    return f"{_span(max(seconds, 0.0))} ago"
