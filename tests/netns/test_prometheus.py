"""Debian's Prometheus takes the alert rules and scrapes an agent: alerts fire with a fault and end with it (MON-6).

Only how often it scrapes and evaluates is changed; the rules are those of deploy/, as they are.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.harness.mesh import READY_S, Lab, Node, until

RULES = Path(__file__).resolve().parents[2] / "deploy" / "prometheus" / "meshctl.rules.yml"
AT = "127.0.0.1:9090"
CONFIG = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: meshctl
    static_configs: [{{targets: ["127.0.0.1:9586"]}}]
"""
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        shutil.which("prometheus") is None,
        reason="absent: prometheus (apt-get install --no-install-recommends prometheus)",
    ),
]


class Prometheus:
    """One, on the machine of a node."""

    def __init__(self, node: Node, directory: Path) -> None:
        config = directory / "prometheus.yml"
        config.write_text(CONFIG.format(rules=RULES))
        flags = f"--config.file={config}", f"--storage.tsdb.path={directory}/tsdb", f"--web.listen-address={AT}"
        self._node, self.log = node, directory / "prometheus.log"
        self.process = node.spawn("prometheus", *flags, log=self.log)

    def ask(self, path: str) -> Any:
        """`data` of an answer of its API; nothing while there is none."""
        with suppress(OSError), self._node.ns.entered(), urllib.request.urlopen(f"http://{AT}{path}", timeout=5) as got:
            return json.loads(got.read())["data"]
        return {}

    def scrapes(self) -> bool:
        """Whether the agent answers it."""
        targets = self.ask("/api/v1/targets").get("activeTargets", [])
        return [target["health"] for target in targets] == ["up"]

    def alerts(self, name: str) -> list[dict[str, Any]]:
        """Those of this name that fire."""
        found = self.ask("/api/v1/alerts").get("alerts", [])
        return [alert for alert in found if alert["labels"]["alertname"] == name and alert["state"] == "firing"]


@pytest.fixture(scope="module")
def scene() -> Iterator[tuple[Node, Node, Prometheus]]:
    with Lab() as lab:
        a, b = lab.members("a", "b")
        prometheus = Prometheus(a, lab.directory)
        try:
            until(prometheus.scrapes, READY_S, "it scrapes the agent")
            yield a, b, prometheus
        finally:
            prometheus.process.send_signal(signal.SIGTERM)
            prometheus.process.wait(20)


def test_rules_are_what_promtool_takes() -> None:
    done = subprocess.run(["promtool", "check", "rules", str(RULES)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alert_fires_with_the_fault_and_ends_with_it(scene: tuple[Node, Node, Prometheus]) -> None:
    a, b, prometheus = scene
    route = f"{b.mesh_address()}/32", "dev", "eth0"
    assert not prometheus.alerts("MeshctlRouteExclusive")
    assert a.run("ip", "route", "add", *route).returncode == 0
    (alert,) = until(lambda: prometheus.alerts("MeshctlRouteExclusive"), READY_S, "the alert fires")
    assert alert["labels"]["severity"] == "critical"
    assert alert["annotations"]["runbook"] == "README.md#mesh-route-001"
    assert "ip route get" in alert["annotations"]["remedy"]
    assert a.run("ip", "route", "del", *route).returncode == 0
    until(lambda: not prometheus.alerts("MeshctlRouteExclusive"), READY_S, "the alert ends")


def test_agent_that_falls_silent_is_an_alert(
    scene: tuple[Node, Node, Prometheus],
) -> None:
    a, _, prometheus = scene
    a.stop(signal.SIGKILL)
    (alert,) = until(lambda: prometheus.alerts("MeshctlAgentDown"), 60, "the alert fires, half a minute later")
    assert alert["labels"]["job"] == "meshctl"
    a.up()
    until(lambda: not prometheus.alerts("MeshctlAgentDown"), READY_S, "the alert ends")
