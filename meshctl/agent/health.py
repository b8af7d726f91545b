"""What this node knows of its health, and how monitoring reads it (MON-6, NET-7).

Holds the latest Readings, lets mesh/integrity.py judge them, keeps the Findings. Answers /healthz (do the loops turn?),
/readyz (is the mesh usable from here?) and /metrics, and gives `status` its pieces. It decides nothing and waits for
nothing. Metrics carry bounded codes, never evidence; of the peers' series only the worst are kept.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from meshctl.agent.prober import Prober
from meshctl.mesh import catalogue, integrity, limits, matrix
from meshctl.mesh.catalogue import CATALOGUE, PATH, Verdict
from meshctl.mesh.integrity import Finding, Key, Reading, Row
from meshctl.mesh.matrix import MatrixRow
from meshctl.mesh.model import NodeId
from meshctl.mesh.probe import Echo
from meshctl.wire.codec import FindingRow
from meshctl.wire.http import Handler, Request, Response

if TYPE_CHECKING:
    from prometheus_client.core import GaugeMetricFamily, Metric

_ENDED_KEPT: Final = 256  # findings that closed, until a report tells of them
_LOOP_STUCK_S: Final = 10.0  # five rounds of the slowest loop
_PEER_SERIES: Final = 200  # peers with series of their own, the worst first
# One lost exchange is repeated in the next round; only then is a peer untested.
_DEEP_PERIODS: Final = 2.0  # a peer that was out of reach in its turn is tried in the next one
_SLACK_S: Final = limits.WATCH_EVERY_S + 2 * limits.ECHO_LOST_AFTER_S


class Health:
    """`record` and `beat` bring news, `judge` turns them into rows and findings; the rest is for reading."""

    def __init__(
        self,
        prober: Prober,
        psk_of: Callable[[NodeId], Mapping[str, Any] | None] = lambda _: None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`psk_of`: {version, age_s, proven} of the pre-shared key with a peer, or None."""
        self.rows: tuple[Row, ...] = ()
        self.findings: tuple[Finding, ...] = ()
        self.verdict = integrity.overall(())  # one word for this node
        self.revision = 0  # applied
        self.row: MatrixRow | None = None  # what the coordinator's matrix is told
        self.ended: dict[Key, tuple[str, str]] = {}  # verdict and evidence that closed the last few findings
        self._summed_at = float("-inf")
        self._prober, self._psk_of, self._monotonic, self._wall = prober, psk_of, monotonic, wall
        # Seconds that packets to a peer stood still when our key last changed, and when its did; 0: not measured.
        self.gaps: Callable[[NodeId], tuple[float, float]] = lambda _: (0.0, 0.0)
        self.deep_s: Callable[[], float] = lambda: 0.0  # within which each peer is examined deeply
        self._names: Mapping[NodeId, str] = {}
        self._expected = integrity.expected(())
        self._readings: dict[Key, Reading] = {}
        self._beats: dict[str, float] = {}

    # ---- news --------------------------------------------------------------------------------------------------------

    def expect(self, peers: Mapping[NodeId, str]) -> None:
        """Who the peers are, and their names. What was read of others is forgotten."""
        if peers != self._names:
            self._names, self._expected = dict(peers), integrity.expected(peers)
            self._readings = {key: r for key, r in self._readings.items() if not r.subject or r.subject in peers}

    def record(self, readings: Iterable[Reading]) -> None:
        """Later readings replace earlier ones of the same code and subject."""
        self._readings.update([(r[:2], r) for r in readings])

    def adopt(self, readings: Mapping[Key, Reading]) -> None:
        """The same, of who keeps them by code and subject."""
        self._readings.update(readings)

    def beat(self, loop: str) -> None:
        """A loop of this process has turned."""
        self._beats[loop] = self._monotonic()

    def judge(self) -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
        """Findings (opened, closed) by what is known now: the caller makes events of them."""
        now = self._monotonic()
        self.rows = integrity.evaluate(
            self._readings,
            self._expected,
            coverage_s=self._prober.coverage_s + _SLACK_S,
            deep_s=_DEEP_PERIODS * self.deep_s(),
            now=now,
        )
        self.verdict = integrity.overall(self.rows)
        self.findings, opened, closed = integrity.track(self.findings, self.rows, now=now)
        self._end(closed)
        return opened, closed

    def _end(self, closed: tuple[Finding, ...]) -> None:
        expected = {row[:2] for row in self.rows} if closed else set()
        for f in closed:
            key = f.code, f.subject
            self.ended.pop(key, None)
            self.ended[key] = Verdict.OK if key in expected else Verdict.UNKNOWN, f.evidence
        while len(self.ended) > _ENDED_KEPT:
            del self.ended[next(iter(self.ended))]

    def sum_up(self, me: NodeId) -> bool:
        """The compact row anew, at most once in a coverage period -> whether it has changed."""
        now, coverage_s = self._monotonic(), self._prober.coverage_s + _SLACK_S
        if now - self._summed_at < self._prober.coverage_s:
            return False
        self._summed_at, before = now, self.row
        self.row = matrix.row(self.rows, self._names, me, coverage_s=coverage_s, now=now)
        return self.row != before

    # ---- reading -----------------------------------------------------------------------------------------------------

    @property
    def open_findings(self) -> tuple[Finding, ...]:
        """Findings past their grace."""
        return tuple(finding for finding in self.findings if finding.opened_at is not None)

    def name(self, subject: str) -> str:
        """A peer's name for people; its id where the roster has forgotten it."""
        return self._names.get(NodeId(subject), subject)

    def told(self) -> tuple[FindingRow, ...]:
        """Open findings for the coordinator; times in unix seconds."""
        return tuple(
            FindingRow(f.code, f.subject, f.verdict, self._unix(f.since) or 0.0, self._unix(f.at) or 0.0, f.evidence)
            for f in self.open_findings
        )

    def status(self) -> dict[str, Any]:
        """Verdict, rows and open findings, in JSON's types; times in unix seconds."""
        return {
            "verdict": self.verdict,
            "exit_code": integrity.exit_code(self.verdict),
            "ready": integrity.ready(self.rows),
            "revision": self.revision,
            "rows": [
                {
                    "code": row.code, "subject": row.subject, "name": self.name(row.subject), "verdict": row.verdict,
                    "at": self._unix(row.at), "evidence": row.evidence, "because": row.because,
                }
                for row in self.rows
            ],
            "findings": [
                {
                    "code": f.code, "title": check.title, "severity": f.severity, "subject": f.subject,
                    "name": self.name(f.subject), "verdict": f.verdict, "since": self._unix(f.since),
                    "at": self._unix(f.at), "evidence": f.evidence, "remedy": check.remedy, "anchor": check.anchor,
                }
                for f in self.open_findings
                for check in (CATALOGUE[f.code],)
            ],
        }  # fmt: skip

    def handlers(self) -> dict[str, Handler]:
        """For wire/http.py."""
        return {"/healthz": self._healthz, "/readyz": self._readyz, "/metrics": self._metrics}

    def worst(self) -> list[tuple[NodeId, Echo]]:
        """The peers that get series of their own: most loss first, then the slowest."""
        echoes = self._prober.echoes().items()
        return sorted(echoes, key=lambda item: (-item[1].loss, -(item[1].rtt_s or 0.0), item[0]))[:_PEER_SERIES]

    def _unix(self, at: float | None) -> float | None:
        return None if at is None else round(self._wall() - self._monotonic() + at, 3)

    def _healthz(self, request: Request) -> Response:
        now = self._monotonic()
        ages = {loop: round(now - at, 1) for loop, at in sorted(self._beats.items())}
        stuck = [f"{loop} last turned {age:.0f} s ago" for loop, age in ages.items() if age >= _LOOP_STUCK_S]
        words = "; ".join(stuck) if stuck else f"{len(ages)} loops turn" if ages else "no loop has turned yet"
        alive = bool(ages) and not stuck
        return _answer(request, alive, words, {"loops": ages})

    def _readyz(self, request: Request) -> Response:
        proven = sum(row.code == PATH and row.verdict in {Verdict.OK, Verdict.DEGRADED} for row in self.rows)
        own = next((row for row in self.rows if row.code == catalogue.DRIFT), None)
        words = f"{proven} of {len(self._names)} peers proven; interface {own.verdict if own else Verdict.UNKNOWN}"
        return _answer(request, integrity.ready(self.rows), words, {"verdict": self.verdict})

    def _metrics(self, _: Request) -> Response:
        from prometheus_client import CollectorRegistry, generate_latest  # late: 4 MB that only a scraped agent pays

        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return Response(200, generate_latest(registry), "text/plain; version=0.0.4; charset=utf-8")

    def collect(self) -> Iterator[Metric]:
        """What a scrape shows, computed when it asks (prometheus_client calls this)."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        checks = GaugeMetricFamily("meshctl_check", "Checks by verdict", labels=["code", "verdict"])
        for (code, verdict), count in sorted(Counter((row.code, row.verdict) for row in self.rows).items()):
            checks.add_metric([code, verdict], count)
        yield checks
        found = GaugeMetricFamily("meshctl_finding_open", "Open findings", labels=["code", "severity"])
        for (code, severity), count in sorted(Counter((f.code, f.severity) for f in self.open_findings).items()):
            found.add_metric([code, severity], count)
        yield found
        states = Counter(row.verdict for row in self.rows if row.code == PATH)
        peers = GaugeMetricFamily("meshctl_peers", "Peers by the state of their data path", labels=["state"])
        for verdict in Verdict:
            peers.add_metric([verdict], states[verdict])
        yield peers
        rtt = GaugeMetricFamily("meshctl_peer_rtt_seconds", "Smoothed round trip, worst peers only", labels=["peer"])
        loss = GaugeMetricFamily("meshctl_peer_loss_ratio", "Lost echoes, 0 to 1, worst peers only", labels=["peer"])
        for node, echo in self.worst():
            loss.add_metric([self.name(node)], echo.loss)
            if echo.rtt_s is not None:
                rtt.add_metric([self.name(node)], echo.rtt_s)
        yield from (rtt, loss, self._gaps(), *self._keys())
        yield GaugeMetricFamily("meshctl_revision_applied", "Registry revision in force", value=self.revision)
        yield GaugeMetricFamily("meshctl_ready", "1 when /readyz says yes", value=integrity.ready(self.rows))
        prober = self._prober
        for what, count in (("sent", prober.sent), ("received", prober.received), ("replies", prober.replies)):
            yield CounterMetricFamily(f"meshctl_prober_{what}", f"Echo packets {what}", value=count)
        drops = CounterMetricFamily("meshctl_prober_drops", "Datagrams ignored, by reason", labels=["code"])
        for code, count in sorted(prober.drops.items()):
            drops.add_metric([code], count)
        yield drops

    def _keys(self) -> Iterator[GaugeMetricFamily]:
        from prometheus_client.core import GaugeMetricFamily

        held = {node: self._psk_of(node) for node in self._names}
        states = Counter("none" if key is None else "proven" if key["proven"] else "set" for key in held.values())
        pairs = GaugeMetricFamily("meshctl_psk_peers", "Peers by the state of their pre-shared key", labels=["state"])
        for state in ("none", "set", "proven"):
            pairs.add_metric([state], states[state])
        yield pairs
        what = "Age of the pre-shared key in force, oldest only"
        ages = GaugeMetricFamily("meshctl_peer_psk_age_seconds", what, labels=["peer"])
        aged = sorted(((key["age_s"], node) for node, key in held.items() if key), reverse=True)
        for age_s, node in aged[:_PEER_SERIES]:
            ages.add_metric([self.name(node)], age_s)
        yield ages

    def _gaps(self) -> GaugeMetricFamily:
        from prometheus_client.core import GaugeMetricFamily

        what = "How long packets to a peer stood still in the last rotation of either end, worst peers only"
        gaps = GaugeMetricFamily("meshctl_peer_rotation_gap_seconds", what, labels=["peer", "rotated"])
        for node, _ in self.worst():
            for who, seconds in zip(("self", "peer"), self.gaps(node), strict=True):
                if seconds:
                    gaps.add_metric([self.name(node), who], seconds)
        return gaps


def _answer(request: Request, fine: bool, words: str, more: Mapping[str, Any]) -> Response:
    status = 200 if fine else 503
    if request.wants_json:
        return Response.json(status, {"ok": fine, "why": words, **more})
    return Response.text(status, f"{'ok' if fine else 'not ok'}: {words}")
