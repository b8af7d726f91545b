"""The figures of a coordinator, for Prometheus: mesh, coordinators, etcd, rotation, front, UDP (MON-6, OPS-2).

Values in, metrics out; deploy/grafana/coordinator.json draws them, and a test compares the two. Labels are bounded:
etcd's endpoints, releases (eight of them), reasons.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from coordinator import reflector
from coordinator.findings import Findings
from coordinator.front import Figures
from meshctl.mesh.catalogue import ASYMMETRY, CATALOGUE
from meshctl.wire.overview import Overview

PREFIX = "meshctl_coordinator_"


def _gauge(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, what, value=value)


def of_mesh(seen: Overview, *, following: bool) -> Iterator[Metric]:
    """What `mesh-coordinator status` shows."""
    here = next(one for one in seen.coordinators if one.here)
    alive = [one for one in seen.coordinators if not one.silent]
    yield _gauge("nodes", "Members of the mesh", seen.nodes)
    yield _gauge("nodes_connected", "Members with a live session here", here.connected)
    yield _gauge("nodes_converged", "Of those, at the revision of this coordinator", here.connected - here.behind)
    yield _gauge("mesh_connected", "Members with a live session at any coordinator", seen.connected)
    yield _gauge("mesh_converged", "Of those, at the revision of their coordinator", seen.converged)
    yield _gauge("revision", "Revision of the map", seen.revision)
    yield _gauge("applied_oldest", "Least revision applied by a connected member", seen.oldest)
    yield _gauge("applied_newest", "Greatest revision applied by a connected member", seen.newest)
    yield _gauge("coordinators", "Coordinators heard of lately, with this one", len(alive))
    yield _gauge(
        "coordinators_silent", "Coordinators that fell silent in the last hour", len(seen.coordinators) - len(alive)
    )
    yield _gauge("following", "1 while the registry can decide", int(following))
    yield _gauge("registry_age_seconds", "Since the registry last answered a read", seen.registry_age)
    yield from _of_rotation(seen)
    yield from _of_etcd(seen)
    releases = GaugeMetricFamily(PREFIX + "node_releases", "Connected members by release", labels=["release"])
    for release, nodes in seen.releases[:8]:
        releases.add_metric([release], nodes)
    yield releases
    info = GaugeMetricFamily(PREFIX + "info", "1, with the release of this coordinator", labels=["release"])
    info.add_metric([seen.release], 1)
    yield info


def of_pairs(asymmetric: int, *, cut: bool) -> Iterator[Metric]:
    """By the name that nodes export their findings with: one alert rule per code."""
    check = CATALOGUE[ASYMMETRY]
    found = GaugeMetricFamily("meshctl_finding_open", "Pairs whose ends disagree", labels=["code", "severity"])
    found.add_metric([check.code, check.severity], asymmetric)
    yield found
    what = "1 while another coordinator names only the newest of its dead pairs: MESH-ASY-001 may miss some"
    yield _gauge("pairs_cut", what, int(cut))


def of_findings(findings: Findings) -> Iterator[Metric]:
    """What nodes signed, and what was not believed."""
    yield CounterMetricFamily(PREFIX + "findings_signed", "Signed statements of nodes believed", value=findings.signed)
    yield _gauge("findings_open", "Signed findings of nodes that are open", findings.open)
    refused = CounterMetricFamily(PREFIX + "findings_refused", "Statements not believed, by reason", labels=["reason"])
    for why, count in sorted(findings.refused.items()):
        refused.add_metric([why], count)
    yield refused


def _of_rotation(seen: Overview) -> Iterator[Metric]:
    rotation = seen.rotation
    yield _gauge("rotation_open", "1 while keys rotate", int(rotation.is_open))
    yield _gauge("rotation_targets", "Nodes of the open rotation or the last one", rotation.targets)
    yield _gauge("rotation_done", "Of those, rotated", rotation.done)
    yield _gauge("rotation_failed", "Of those, not rotated or not proven on every pair", len(rotation.failed))
    yield _gauge("rotation_gap_worst_seconds", "The longest that a pair stood still", rotation.gap.worst)


def _of_etcd(seen: Overview) -> Iterator[Metric]:
    up = GaugeMetricFamily(PREFIX + "etcd_up", "1 while this member of etcd is well", labels=["endpoint"])
    leads = GaugeMetricFamily(PREFIX + "etcd_leader", "1 for the member that leads", labels=["endpoint"])
    size = GaugeMetricFamily(PREFIX + "etcd_size_bytes", "Size of its database", labels=["endpoint"])
    for endpoint in seen.endpoints:
        up.add_metric([endpoint.address], int(endpoint.ok))
        leads.add_metric([endpoint.address], int(endpoint.leader))
        size.add_metric([endpoint.address], endpoint.size)
    yield from (up, leads, size)


def convergence(buckets: list[tuple[str, float]], total: float) -> Metric:
    """From hearing of a change to a node's acknowledgement."""
    family = HistogramMetricFamily(
        PREFIX + "convergence_seconds", "From hearing of a change to a node's acknowledgement"
    )
    family.add_metric([], buckets=buckets, sum_value=total)
    return family


def of_front(figures: Figures) -> Iterator[Metric]:
    """Of the TLS front."""
    yield CounterMetricFamily("meshctl_front_accepted", "Connections accepted", value=figures.accepted)
    yield GaugeMetricFamily("meshctl_front_live", "Connections that are served", value=figures.live)
    yield GaugeMetricFamily("meshctl_front_handshakes", "Handshakes in flight", value=figures.handshakes)
    refused = CounterMetricFamily("meshctl_front_refused", "Connections refused, by reason", labels=["reason"])
    cut = CounterMetricFamily("meshctl_front_cut", "Connections cut, by reason", labels=["reason"])
    for family, counts in ((refused, figures.refused), (cut, figures.cut)):
        for why, count in sorted(counts.items()):
            family.add_metric([why], count)
        yield family


def of_reflector(figures: reflector.Figures) -> Iterator[Metric]:
    """Of netcheck's UDP."""
    yield CounterMetricFamily("meshctl_reflector_answered", "UDP questions answered", value=figures.answered)
    dropped = CounterMetricFamily("meshctl_reflector_dropped", "UDP datagrams ignored, by reason", labels=["reason"])
    for why, count in sorted(figures.dropped.items()):
        dropped.add_metric([why], count)
    yield dropped
