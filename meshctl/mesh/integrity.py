"""The integrity catalogue and its judgement: observations -> Readings -> Rows -> Findings (NET-7, MON-6).

**Law: production, the assertions of the tests and `meshctl doctor` call these very functions.** One small judge per
code (judges.py) turns raw observations into a Reading. `evaluate` holds readings against what was expected: what was
not tested is `unknown`, never `ok`. `track` opens a finding after its grace and closes it on evidence.

All times are seconds of one clock, the caller's; the agent uses the monotonic one, so that a stepped wall clock cannot
make old evidence young. What is claimed stands in catalogue.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from meshctl.mesh.catalogue import CATALOGUE, DRIFT, PATH, Scope, Severity, Verdict
from meshctl.mesh.model import NodeId
from meshctl.mesh.spans import ago

_RHYTHMS: Final = 2.0  # a check with a rhythm of its own may miss one beat
_OK: Final = Verdict.OK  # compared with a thousand times every other second: an enumeration's attribute costs more
Key = tuple[str, str]  # code, subject


class Row(NamedTuple):
    """What holds of one claim. `subject` is a node id, or empty for the node itself; `at` is None for what was never
    tested; `because` names the failed check that explains this one's silence. A tuple, because every peer has a dozen
    of them every other second.
    """

    code: str
    subject: str
    verdict: Verdict
    at: float | None
    evidence: str
    because: str = ""


Reading = Row  # one observation, judged: it is the row, as long as it is young enough and nothing explains it


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


def evaluate(
    readings: Mapping[Key, Reading], expected: Iterable[Key], *, coverage_s: float, deep_s: float = 0.0, now: float
) -> tuple[Row, ...]:
    """One row per expected (code, subject), from the latest reading of each. Readings older than `coverage_s`, those of
    deep checks than `deep_s`, and those from the future, are no evidence.
    """
    young: dict[str, tuple[float, float]] = {}  # between these a reading of this code was made
    for code, check in CATALOGUE.items():
        age_s = _RHYTHMS * check.every_s or (deep_s if check.deep else coverage_s)
        young[code] = now - age_s, now + age_s
    rows, calm = [], True
    for key in expected:
        row = readings.get(key)
        since, until = young[key[0]]
        if row is None or row.at is None or not since <= row.at <= until:
            row = _untested(key, row, now)
        calm = calm and row.verdict is _OK
        rows.append(row)
    if calm:
        return tuple(rows)
    of = {row[:2]: row for row in rows}
    return tuple([row if row.verdict is _OK else _explained(row, of) for row in rows])


def _untested(key: Key, reading: Reading | None, now: float) -> Row:
    if reading is None or reading.at is None:
        return Row(*key, Verdict.UNKNOWN, None, "never tested")
    return Row(*key, Verdict.UNKNOWN, reading.at, f"not tested since {ago(now - reading.at)}")


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
        finding = known.pop(row[:2], None) if known else None
        if row.verdict is _OK:
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
    """One word for a node. `failed`: a critical check did, or every peer is out of reach; one absent peer degrades.

    A deep check that has not been tried yet, or cannot be here, is shown in its row and changes no verdict: that of a
    node among a thousand would stand at unknown for a day.
    """
    rows = tuple(rows)
    rest = [row for row in rows if row.verdict is not _OK]
    if not rest:
        return Verdict.OK
    paths = [row for row in rows if row.code == PATH]
    bad = [row for row in rest if row.verdict is not Verdict.UNKNOWN]
    if any(row.verdict is Verdict.FAILED and CATALOGUE[row.code].severity is Severity.CRITICAL for row in bad):
        return Verdict.FAILED
    if paths and all(row.verdict is Verdict.FAILED or row.because for row in paths):
        return Verdict.FAILED
    if bad:
        return Verdict.DEGRADED
    tested = all(CATALOGUE[row.code].deep for row in rest)
    return Verdict.OK if tested else Verdict.UNKNOWN


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
