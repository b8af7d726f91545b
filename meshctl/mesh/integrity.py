"""The integrity catalogue and its judgement: observations -> Readings -> Rows -> Findings (NET-7, MON-6).

**Law: production, the assertions of the tests and `meshctl doctor` call these very functions.** One small judge per
code (judges.py) turns raw observations into a Reading. `evaluate` holds readings against what was expected: what was
not tested is `unknown`, never `ok`. `track` opens a finding after its grace and closes it on evidence.

All times are seconds of one clock, the caller's; the agent uses the monotonic one, so that a stepped wall clock cannot
make old evidence young. To add a check: a row in CATALOGUE and a judge.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, NamedTuple

from meshctl.mesh.model import NodeId
from meshctl.mesh.spans import ago


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
DRIFT, LAG, ROUTE, ROTATION = "MESH-CFG-001", "MESH-CFG-002", "MESH-ROUTE-001", "MESH-ROT-001"
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
        Check(ROTATION, "rotation-proven", _W, Scope.PEER, "a key that changed is in force at both ends",
              "handshake, and echo bound to both statements, younger than the change", (PATH,), 20.0,
              "meshctl status on the peer's side; a node that was cut off follows when its coordinator link is back"),
        Check(KEY, "key-age", _W, Scope.NODE, "keys and certificates are young",
              "age of the WireGuard key, life left of the certificate", (), 600.0,
              "a certificate renews by itself while a coordinator is reachable; a key: meshctl keys rotate"),
        Check(CLOCK, "clock-skew", _W, Scope.NODE, "clocks agree",
              "heartbeat of the coordinator and median of the peers' echoes", (), 30.0,
              "start a time daemon: chrony or systemd-timesyncd"),
        Check(ASYMMETRY, "asymmetric", _W, Scope.PAIR, "both ends of a pair say the same",
              "the two rows of the pair", (), 30.0,
              "a firewall lets one direction pass only: compare meshctl status of both ends"),
    )
}  # fmt: skip

Key = tuple[str, str]  # code, subject


class Reading(NamedTuple):
    """One observation, judged. `subject` is a node id, or empty for the node itself. A tuple, because every peer has
    three of them every other second.
    """

    code: str
    subject: str
    verdict: Verdict
    at: float
    evidence: str


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
        key = reading[:2]
        if key not in latest or latest[key].at <= reading.at:
            latest[key] = reading
    rows = {key: _row(key, latest.get(key), coverage_s, now) for key in expected}
    return tuple(row if row.verdict is Verdict.OK else _explained(row, rows) for row in rows.values())


def _row(key: Key, reading: Reading | None, coverage_s: float, now: float) -> Row:
    if reading is None:
        return Row(*key, Verdict.UNKNOWN, None, "never tested")
    if abs(now - reading.at) > coverage_s:
        return Row(*key, Verdict.UNKNOWN, reading.at, f"not tested since {ago(now - reading.at)}")
    return Row(*reading)


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
    silent = Verdict.OK, Verdict.UNKNOWN
    bad = [row for row in rows if row.verdict not in silent]
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
