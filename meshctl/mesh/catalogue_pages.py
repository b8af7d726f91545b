"""What others read of the catalogue, as text: the README's table and Prometheus' alert rules (NET-7, MON-6).

Makes strings and writes nothing: deploy/pages.py does. A test compares what is committed with what is made here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final, NamedTuple

from meshctl.mesh.catalogue import CATALOGUE, Check, Scope, Severity

_HEAD: Final = "| code | severity | claim | evidence | remedy |\n|---|---|---|---|---|\n"


class Alert(NamedTuple):
    """One rule. `severity` empty: that of the series, because a degraded claim warns, whatever its check."""

    name: str
    expr: str
    for_s: float
    severity: str
    summary: str
    remedy: str
    runbook: str = "README.md#failures"


_NODE: Final = "meshctl"  # the job of nodes in prometheus.yml, and of coordinators
_COORDINATOR: Final = "meshctl-coordinator"
_PREFIX: Final = "meshctl_coordinator_"
_W, _C = Severity.WARNING, Severity.CRITICAL

# What no finding can say, because who would say it is silent.
OTHERS: Final = (
    Alert("MeshctlAgentDown", f'up{{job="{_NODE}"}} == 0', 30, _C, "the agent does not answer: nothing is tested",
          "systemctl status meshctl; its tunnels stand without it"),
    Alert("MeshctlNotReady", "meshctl_ready == 0", 60, _C, "no verified data path to any peer",
          "meshctl health on the node"),
    Alert("MeshctlCoordinatorDown", f'up{{job="{_COORDINATOR}"}} == 0', 30, _C, "the coordinator does not answer",
          "systemctl status mesh-coordinator; the mesh works without it"),
    Alert("MeshctlCoordinatorDeaf", f"{_PREFIX}following == 0", 30, _C, "the coordinator does not hear etcd",
          "mesh-coordinator status names the members of etcd"),
    Alert("MeshctlCoordinatorSilent", f"max({_PREFIX}coordinators_silent) > 0", 60, _W, "a coordinator fell silent",
          "mesh-coordinator status names it"),
    Alert("MeshctlEtcdMemberDown", f"max by (endpoint) ({_PREFIX}etcd_up) == 0", 60, _W, "a member of etcd is not well",
          "mesh-coordinator status shows what it says"),
    Alert("MeshctlNodesAbsent", f"max({_PREFIX}nodes) - max({_PREFIX}mesh_connected) > 0", 300, _W,
          "members are at no coordinator", "mesh-coordinator nodes list names them"),
    Alert("MeshctlNodesBehind", f"max({_PREFIX}mesh_connected) - max({_PREFIX}mesh_converged) > 0", 120, _W,
          "members have not applied the present revision", "mesh-coordinator applied REVISION names them"),
    Alert("MeshctlRotationFailed", f"max({_PREFIX}rotation_failed) > 0", 60, _W, "a rotation is not proven everywhere",
          "meshctl keys status names the pairs"),
)  # fmt: skip


def row(check: Check) -> str:
    """Its line of the README's table."""
    name = f'<a id="{check.code.lower()}"></a>{check.code} {check.title}'
    return f"| {name} | {check.severity} | {check.claim} | {check.evidence} | {check.remedy} |"


def markdown() -> str:
    """The README's table."""
    return _HEAD + "".join(f"{row(check)}\n" for check in CATALOGUE.values())


def alerts() -> tuple[Alert, ...]:
    """One per code, and the others."""
    return *map(_alert, CATALOGUE.values()), *OTHERS


def alert_rules() -> str:
    """deploy/prometheus/meshctl.rules.yml. Strings are JSON's, which YAML reads."""
    return "".join(f"{line}\n" for line in _lines())


def _lines() -> Iterator[str]:
    yield "# Made from meshctl/mesh/catalogue.py by deploy/pages.py: do not edit. promtool check rules reads it."
    yield "# A finding is exported when its grace at the node is over; an alert waits as long again, so that what came"
    yield f"# and went wakes nobody. Jobs are expected to be called {_NODE} (nodes) and {_COORDINATOR}."
    yield "groups:"
    for group, members in (("meshctl-catalogue", map(_alert, CATALOGUE.values())), ("meshctl-processes", OTHERS)):
        yield f"  - name: {group}"
        yield "    rules:"
        for alert in members:
            yield f"      - alert: {alert.name}"
            yield f"        expr: {json.dumps(alert.expr)}"
            yield f"        for: {alert.for_s:.0f}s"
            if alert.severity:
                yield f"        labels: {{severity: {alert.severity}}}"
            yield "        annotations:"
            for name, text in (("summary", alert.summary), ("remedy", alert.remedy), ("runbook", alert.runbook)):
                yield f"          {name}: {json.dumps(text)}"


def _alert(check: Check) -> Alert:
    camel = "".join(word.capitalize() for word in check.title.split("-"))
    where = "between nodes at {{ $labels.instance }}" if check.scope is Scope.PAIR else "at {{ $labels.instance }}"
    summary = f"{check.code} {where}: this does not hold: {check.claim}"
    expr = f'meshctl_finding_open{{code="{check.code}"}} > 0'
    return Alert(f"Meshctl{camel}", expr, check.grace_s, "", summary, check.remedy, check.anchor)
