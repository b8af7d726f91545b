"""The small loops and corners of a node: keeping the map on disk, the status socket, the first proof, signals (NET-4,
MON-6).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from meshctl.agent.book import Book
from meshctl.agent.firewall import guard_script
from meshctl.agent.health import Health
from meshctl.agent.peers import Peers
from meshctl.agent.prober import Prober
from meshctl.agent.reconcile import Reconciler
from meshctl.agent.store import Store
from meshctl.config import AgentConfig
from meshctl.errors import MeshError
from meshctl.mesh.model import Network, NodeId
from meshctl.wire.http import Request, Response, Server

MAP_EVERY_S = 2.0  # a map of 10,000 nodes is 3 MB: not written for every one of a hundred joins
PROOF_PATIENCE_S = 3600.0
NICE = -10
GIVE_BACK_EVERY_S = 60.0  # takes a millisecond


def stop_signal() -> asyncio.Event:
    """Set by SIGTERM and SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def take_precedence() -> None:
    """Run before what else this machine does, unless its operator said otherwise; it is a percent of a core.

    An agent that waits for the CPU takes the load for a fault of the path, and a wireguard-go, which inherits this,
    drops packets.
    """
    with contextlib.suppress(OSError):  # not root
        if os.getpriority(os.PRIO_PROCESS, 0) == 0:
            os.setpriority(os.PRIO_PROCESS, 0, NICE)


async def until_stopped(running: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all of these until SIGTERM or SIGINT, or until one fails."""
    stop = stop_signal()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(loop) for loop in running]
        await stop.wait()
        for task in tasks:
            task.cancel()


async def save_map(store: Store, book: Book) -> None:
    """Seal and write the map in hand, off the event loop."""
    if book.roster.revision:
        await asyncio.to_thread(store.save_map, book.saved())


async def keep_map(store: Store, book: Book, moved: asyncio.Event) -> None:
    """For ever: after each change, at most every MAP_EVERY_S. A full disk is tried again."""
    while True:
        await moved.wait()
        moved.clear()
        try:
            await save_map(store, book)
        except MeshError:
            moved.set()
        await asyncio.sleep(MAP_EVERY_S)


async def give_back() -> None:
    """For ever: what the C library keeps of freed memory goes back to the machine; a megabyte of joining and trials."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl does not
    while trim:
        await asyncio.sleep(GIVE_BACK_EVERY_S)
        trim(0)


def write_guard(store: Store, interface: str, prefixes: Iterable[Network]) -> None:
    """What the early boot unit loads, before the first packet of the machine."""
    path = store.directory / "guard.nft"
    path.write_text(guard_script(interface, prefixes))
    path.chmod(0o600)


async def serve(
    config: AgentConfig, health: Health, prober: Prober, status: Callable[[], object], book: Book, peers: Peers
) -> tuple[Server, ...]:
    """/healthz, /readyz, /metrics for all; /status and /echo for root on this machine. Raises EnvironmentFault."""

    def echo(request: Request) -> Response:
        wanted = request.query.get("peer", "")
        node = next(
            (n for n in book.roster.nodes.values() if wanted in (n.name, n.id, str(n.address4), str(n.address6))), None
        )
        if node is None:
            return Response.json(404, {"error": f"this mesh has no peer {wanted!r}"})
        if "kick" in request.query:
            prober.kick([node.id])
        found, now = prober.echo(node.id), time.monotonic()
        return Response.json(
            200,
            {
                "name": node.name,
                "address4": str(node.address4),
                "endpoint": str(peers.endpoint_of(node.id) or "-"),
                "ok_age_s": None if found.last_ok_at is None else now - found.last_ok_at,
                "rtt_ms": None if found.rtt_s is None else found.rtt_s * 1e3,
            },
        )

    local = Server({**health.handlers(), "/status": lambda _: Response.json(200, status()), "/echo": echo})
    await local.listen_unix(config.socket)
    if not config.health_listen:
        return (local,)
    public = Server(health.handlers())
    host, _, port = config.health_listen.rpartition(":")
    try:
        await public.listen(host.strip("[]"), int(port))
    except MeshError:
        await local.close()
        raise
    return local, public


async def close(servers: Iterable[Server]) -> None:
    """All that `serve` opened."""
    for server in servers:
        await server.close()


async def announce(prober: Prober, reconciler: Reconciler, book: Book, me: NodeId, say: Callable[[str], None]) -> None:
    """Say once that a tunnel was proven, or that there is nobody to prove it with; then be done."""
    while reconciler.outcome.revision == 0:
        await reconciler.passed.wait()
    peers = [node for node in book.roster.nodes if node != me]
    if not peers:
        say("the mesh is up; this is its first node")
        return
    if await prober.wait_proven(None, PROOF_PATIENCE_S):
        say("first tunnel verified")
