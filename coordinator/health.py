"""/healthz, /readyz and /metrics of a coordinator (MON-6). Reads; decides nothing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric

from coordinator import metrics
from coordinator.convergence import Convergence
from coordinator.front import Front
from coordinator.reflector import Reflector
from coordinator.views import Views
from meshctl.errors import EnvironmentFault
from meshctl.wire.http import Request, Response, Server


class CoordinatorHealth:
    """Computed when somebody asks."""

    def __init__(self, views: Views, convergence: Convergence, front: Front, reflector: Reflector) -> None:
        self._feed, self._views, self._convergence = views.feed, views, convergence
        self._front, self._reflector = front, reflector
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
        yield from metrics.of_mesh(self._views.overview(), following=self._feed.following)
        cut = any(other.beat.unreached_cut for other in self._views.fleet.others())
        yield from metrics.of_pairs(self._views.asymmetry.pairs(), cut=cut)
        yield from metrics.of_findings(self._views.findings)
        yield metrics.convergence(*self._convergence.histogram())
        yield from metrics.of_front(self._front.connections)
        yield from metrics.of_reflector(self._reflector.figures)


async def serve_health(
    stack: contextlib.AsyncExitStack,
    listen: str,
    views: Views,
    convergence: Convergence,
    front: Front,
    reflector: Reflector,
) -> None:
    """Until the stack unwinds; nothing when `listen` is empty. Raises EnvironmentFault."""
    if not listen:
        return
    health = CoordinatorHealth(views, convergence, front, reflector)
    server = Server({"/healthz": health.healthz, "/readyz": health.readyz, "/metrics": health.metrics})
    host, _, port = listen.rpartition(":")
    if not port.isdigit():
        raise EnvironmentFault(f"{listen!r} is not HOST:PORT", "health_listen in coordinator.toml")
    await server.listen(host.strip("[]"), int(port))
    stack.push_async_callback(server.close)
