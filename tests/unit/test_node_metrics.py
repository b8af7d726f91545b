"""What a node exports, the dashboard that draws it, and the alerts that watch it: each names what is there (MON-6)."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from meshctl.agent.health import Health
from meshctl.agent.prober import Prober
from meshctl.agent.responder import Drop
from meshctl.crypto.identity import Identity
from meshctl.mesh import integrity
from meshctl.mesh.catalogue import CATALOGUE, LAG, Verdict
from meshctl.mesh.catalogue_pages import alerts
from meshctl.mesh.integrity import Reading
from meshctl.mesh.model import NodeId
from meshctl.mesh.probe import Echo
from tests.harness.fellows import connect
from tests.harness.world import world
from tests.unit.test_metrics import NAME, scraped

DASHBOARD = Path(__file__).resolve().parents[2] / "deploy" / "grafana" / "node.json"
PEER = NodeId("id1")


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of a node's samples, where everything has happened that a sample is for."""
    now = 1000.0
    prober = Prober(Identity.generate(), lambda _: None, lambda *_: None)
    monkeypatch.setattr(prober, "echoes", lambda: {PEER: Echo(sent=16, received=15, rtt_s=0.01)})
    prober.drops[Drop.FORGED] = 1
    health = Health(prober, lambda _: {"version": 2, "age_s": 60.0, "proven": True}, monotonic=lambda: now)
    health.expect({PEER: "gpu-1"})
    health.gaps = lambda _: (0.02, 0.03)
    readings = [Reading(*key, Verdict.FAILED, now, "seen") for key in integrity.expected((PEER,))]
    health.record(readings)
    health.judge()
    assert health.open_findings
    registry = CollectorRegistry(auto_describe=False)
    registry.register(health)
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {sample.name for family in families for sample in family.samples}


def test_dashboard_asks_for_all_that_is_exported_and_for_nothing_else(exported: set[str]) -> None:
    board = json.loads(DASHBOARD.read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked = {name for expression in expressions for name in NAME.findall(expression)}
    assert asked == {name for name in exported if not name.endswith("_created")}
    assert all(panel["title"] and panel["description"] for panel in board["panels"])
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    places = [(p["gridPos"]["x"], p["gridPos"]["y"], p["gridPos"]["w"]) for p in board["panels"]]
    assert all(x + w <= 24 for x, _, w in places)
    assert len({(x, y) for x, y, _ in places}) == len(places)


async def test_alerts_ask_only_for_what_is_exported(exported: set[str]) -> None:
    async with world(coordinators=2) as mesh:
        await connect(mesh, 0, "a")
        await mesh.first.views.pulse.ask()
        known = exported | scraped(mesh).keys()
    for alert in alerts():
        names = set(NAME.findall(alert.expr))
        assert names <= known, alert
        assert names or alert.expr.startswith("up{"), alert


def test_every_code_has_an_alert_with_its_grace_its_remedy_and_its_page() -> None:
    told = {code: alert for alert in alerts() for code in re.findall(r'code="([^"]+)"', alert.expr)}
    assert told.keys() == CATALOGUE.keys()
    for code, check in CATALOGUE.items():
        assert (told[code].for_s, told[code].remedy, told[code].runbook) == (check.grace_s, check.remedy, check.anchor)
        assert check.claim in told[code].summary
    assert len({alert.name for alert in alerts()}) == len(alerts())
    assert told[LAG].name == "MeshctlRevisionLag"
