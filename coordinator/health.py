"""/healthz, /readyz and /metrics of a coordinator (MON-6). Reads; decides nothing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from coordinator.feed import Feed
from coordinator.front import Front
from coordinator.presence import PresenceTable
from meshctl.errors import EnvironmentFault
from meshctl.wire.http import Request, Response, Server


class CoordinatorHealth:
    """Computed when somebody asks."""

    def __init__(self, feed: Feed, presence: PresenceTable, front: Front) -> None:
        self._feed, self._presence, self._front = feed, presence, front
        self._started = time.time()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def healthz(self, _: Request) -> Response:
        """The event loop turns, or this would not be answered."""
        return Response.text(200, f"ok: up {time.time() - self._started:.0f} s")

    def readyz(self, _: Request) -> Response:
        """The map is loaded and the registry's watch stands."""
        if self._feed.loaded and self._feed.following:
            return Response.text(200, f"ok: revision {self._feed.revision}, {len(self._feed.members)} nodes")
        return Response.text(503, "not ok: the registry is not being followed; nodes keep what they have")

    def metrics(self, _: Request) -> Response:
        """For Prometheus."""
        return Response(200, generate_latest(self._registry), "text/plain; version=0.0.4; charset=utf-8")

    def collect(self) -> Iterator[Metric]:
        """prometheus_client calls this at each scrape."""
        connected = [held for _, held in self._presence.connected()]
        revision = self._feed.revision
        for name, what, value in (
            ("nodes", "Members of the mesh", len(self._feed.members)),
            ("nodes_connected", "Members with a live session here", len(connected)),
            (
                "nodes_converged",
                "Connected members that applied the current revision",
                sum(p.applied >= revision for p in connected),
            ),
            ("revision", "Revision of the map", revision),
            ("following", "1 while the registry's watch stands", int(self._feed.following)),
        ):
            yield GaugeMetricFamily(f"meshctl_coordinator_{name}", what, value=value)
        figures = self._front.connections
        yield CounterMetricFamily("meshctl_front_accepted", "Connections accepted", value=figures.accepted)
        yield GaugeMetricFamily("meshctl_front_live", "Connections that are served", value=figures.live)
        yield GaugeMetricFamily("meshctl_front_handshakes", "Handshakes in flight", value=figures.handshakes)
        refused = CounterMetricFamily("meshctl_front_refused", "Connections refused, by reason", labels=["reason"])
        cut = CounterMetricFamily("meshctl_front_cut", "Connections cut, by reason", labels=["reason"])
        for family, counts in ((refused, figures.refused), (cut, figures.cut)):
            for why, count in sorted(counts.items()):
                family.add_metric([why], count)
            yield family


async def serve_health(
    stack: contextlib.AsyncExitStack, listen: str, feed: Feed, presence: PresenceTable, front: Front
) -> None:
    """Until the stack unwinds; nothing when `listen` is empty. Raises EnvironmentFault."""
    if not listen:
        return
    health = CoordinatorHealth(feed, presence, front)
    server = Server({"/healthz": health.healthz, "/readyz": health.readyz, "/metrics": health.metrics})
    host, _, port = listen.rpartition(":")
    if not port.isdigit():
        raise EnvironmentFault(f"{listen!r} is not HOST:PORT", "health_listen in coordinator.toml")
    await server.listen(host.strip("[]"), int(port))
    stack.push_async_callback(server.close)
