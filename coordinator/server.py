"""Starts a coordinator and keeps it running: registry, feed, services, front, health (OPS-2, MON-6). Holds no state
itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from coordinator import founding, heap, upkeep
from coordinator.backend import grpc_server_options
from coordinator.config import CoordinatorConfig
from coordinator.embedded import EmbeddedEtcd
from coordinator.enrol import Authority, Enrolment
from coordinator.etcd import EtcdAddress, EtcdRegistry
from coordinator.feed import Feed
from coordinator.fellowship import Fellowship, fellowship
from coordinator.fleet import Beat
from coordinator.front import Front
from coordinator.health import serve_health
from coordinator.keyring import FileKek, Kek, Keyring, PassphraseKek, SealedRegistry
from coordinator.members import Members
from coordinator.presence import PresenceTable
from coordinator.records import Why
from coordinator.reflector import Reflector
from coordinator.rotations import Rotations
from coordinator.service import calls
from coordinator.service.enrolment import EnrolmentService
from coordinator.service.operators import OperatorService
from coordinator.service.sessions import MeshService
from coordinator.tls import Credentials
from meshctl import __version__
from meshctl.crypto import pki
from meshctl.errors import EnvironmentFault
from meshctl.events import CoordinatorStarted, CoordinatorStopped, Events, PolicyAllowAll
from meshctl.mesh import limits
from meshctl.mesh.model import NodeId
from meshctl.wire.v1 import mesh_pb2_grpc as rpc

STOP_GRACE_S = 1.0
LEAVE_GRACE_S = 1.0


def kek_provider(directory: Path, config: CoordinatorConfig) -> Kek:
    """Where the settings say the KEK comes from. Raises EnvironmentFault."""
    path = directory / config.kek_file
    if config.kek == "passphrase":
        try:
            return PassphraseKek(path.read_text().strip())
        except OSError as error:
            raise EnvironmentFault(
                f"cannot read the passphrase from {path}: {error.strerror}", "--kek-file FILE"
            ) from error
    return FileKek(path)


@contextlib.asynccontextmanager
async def open_registry(
    directory: Path, config: CoordinatorConfig, say: Callable[[str], None]
) -> AsyncIterator[tuple[EtcdRegistry, EmbeddedEtcd | None]]:
    """etcd as the settings say: a cluster that is there, or a child of our own."""
    async with contextlib.AsyncExitStack() as stack:
        child: EmbeddedEtcd | None = None
        if config.etcd:
            endpoints = tuple(url.removeprefix("https://") for url in config.etcd)
            files = Path(config.etcd_ca), Path(config.etcd_cert), Path(config.etcd_key)
            address = EtcdAddress(endpoints, *files, config.etcd_server_name)
        else:
            child = EmbeddedEtcd(directory / "etcd", say)
            address = await child.start()
            stack.push_async_callback(child.stop)
        registry = await EtcdRegistry.connect(address)
        stack.push_async_callback(registry.close)
        yield registry, child


def home(directory: Path) -> str:
    """This coordinator's place, by which it knows its predecessor's notes."""
    return f"{socket.gethostname()}:{directory.absolute()}"


def run_directory(directory: Path) -> Path:
    """Where the sockets are; nobody else may enter."""
    path = directory / "run"
    path.mkdir(mode=0o700, exist_ok=True)
    path.chmod(0o700)
    return path


def split(address: str) -> tuple[str, int]:
    """HOST:PORT. Raises EnvironmentFault."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise EnvironmentFault(f"{address!r} is not HOST:PORT", "for example 0.0.0.0:7443")
    return host.strip("[]"), int(port)


async def serve(directory: Path, config: CoordinatorConfig, events: Events, say: Callable[[str], None]) -> None:
    """Until SIGTERM or SIGINT. `say` hears what people should know. Raises MeshError when it cannot start."""
    async with contextlib.AsyncExitStack() as stack:
        registry, child = await stack.enter_async_context(open_registry(directory, config, say))
        sealed = SealedRegistry(registry, await Keyring.open(registry, kek_provider(directory, config)))
        await founding.advertise(sealed, config.advertise)
        authority = await founding.authority(sealed)
        presence = PresenceTable()
        gone: list[Callable[[NodeId], object]] = [presence.forget]
        feed = Feed(sealed, gone)
        about = Beat(home(directory), __version__, time.time(), config.advertise)
        fellows = fellowship(authority.mesh, about, sealed, feed, presence)  # before the feed brings what others said
        views = fellows.views
        gone += [fellows.fleet.forget, views.asymmetry.forget, views.matrix.forget, views.findings.forget]
        await feed.load()
        members = Members(authority.mesh, sealed, feed, events, time.time)
        rotations = Rotations(authority.mesh, sealed, feed, events, time.time, fellows.fleet.is_connected)
        sockets = run_directory(directory)

        checks = await _services(stack, sockets, authority, sealed, members, rotations, fellows, events)
        front = _front(authority, feed, sockets)
        gone.append(lambda node: _cut(front, feed, authority.mesh.id, node))
        await front.start([split(address) for address in config.listen])
        stack.push_async_callback(front.stop)
        reflector = await _reflector(stack, front.addresses, config.second_port, say)
        await serve_health(stack, config.health_listen, views, fellows.convergence, front, reflector)
        await checks.set("", health_pb2.HealthCheckResponse.SERVING)
        await events.commit(CoordinatorStarted(release=__version__, incarnation=authority.mesh.incarnation))
        if authority.mesh.policy == "allow-all":
            events.emit(PolicyAllowAll())
        say(f"serving mesh {authority.mesh.name} on {', '.join(config.listen)}")
        after_s = config.rotate_after_s
        notes = fellows.herald, fellows.questions, fellows.post
        upkeeping = upkeep.run(members, feed, fellows.fleet, *notes, rotations, after_s)
        loops = [feed.run(), upkeeping, rotations.run(), heap.run(lambda: front.connections), *fellows.loops()]
        stack.push_async_callback(fellows.herald.leave)
        await _until_stopped([*loops, child.watchdog()] if child else loops)
        await events.commit(CoordinatorStopped(why="asked to"))


async def _services(
    stack: contextlib.AsyncExitStack,
    sockets: Path,
    authority: Authority,
    sealed: SealedRegistry,
    members: Members,
    rotations: Rotations,
    fellows: Fellowship,
    events: Events,
) -> Any:
    """Both gRPC servers, listening on their sockets -> the grpc.health.v1 servicer, to be told when we serve."""
    mesh, views = authority.mesh, fellows.views
    enrolment = Enrolment(authority, sealed, views.feed, events, time.time)
    backend = await _server(sockets / "backend.sock", stack, grpc_server_options())
    rpc.add_EnrolmentServicer_to_server(EnrolmentService(enrolment), backend)
    meshes = MeshService(
        mesh, views.feed, views.presence, members, events, views.asymmetry, views.matrix, rotations, views.pulse,
        views.findings, fellows.post, enrolment.crowd.is_there,
    )
    backend.add_generic_rpc_handlers((meshes.handlers(),))
    checks: Any = health.aio.HealthServicer()  # type: ignore[attr-defined]
    health_pb2_grpc.add_HealthServicer_to_server(checks, backend)
    operators = await _server(sockets / "operator.sock", stack, [])
    rpc.add_OperatorServicer_to_server(OperatorService(views, members, rotations, fellows.asks), operators)
    await backend.start()
    await operators.start()
    return checks


def _front(authority: Authority, feed: Feed, sockets: Path) -> Front:
    key, certificate = pki.issue_coordinator(authority.ca_key, authority.mesh.ca)
    mesh = authority.mesh
    return Front(
        Credentials(mesh.ca, certificate, key),
        mesh.id,
        sockets / "backend.sock",
        admit=lambda uri, _: pki.node_of(uri, mesh.id) not in feed.gone,
        clock=time.time,
    )


async def _reflector(
    stack: contextlib.AsyncExitStack,
    addresses: Sequence[tuple[str, int]],
    second: int | None,
    say: Callable[[str], None],
) -> Reflector:
    """netcheck's UDP on the ports of the front. A mesh is served without it, too: what is missing is said."""
    reflector = Reflector(secrets.token_bytes(16), time.monotonic)
    stack.callback(reflector.stop)
    if second != 0:
        for trouble in await reflector.start(addresses, second):
            say(f"! netcheck cannot measure all here: {trouble}; mesh-coordinator serve --stun PORT, or off")
    return reflector


async def _until_stopped(loops: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run `loops` until SIGTERM or SIGINT, or until one of them fails: its error is raised."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(loop) for loop in loops]
        await stop.wait()
        for task in tasks:
            task.cancel()


def _cut(front: Front, feed: Feed, mesh_id: str, node: NodeId) -> None:
    """End the connections of a node that is gone; later if it left by itself: it waits there for our answer."""
    stone, uri = feed.gone.get(node), pki.spiffe_id(mesh_id, node)
    if stone and stone.why is Why.LEFT:
        asyncio.get_running_loop().call_later(LEAVE_GRACE_S, front.cut, uri)
    else:
        front.cut(uri)


async def _server(path: Path, stack: contextlib.AsyncExitStack, options: list[tuple[str, int]]) -> grpc.aio.Server:
    path.unlink(missing_ok=True)  # noqa: ASYNC240 - once, at the start
    options = [*options, ("grpc.max_receive_message_length", limits.UP_MESSAGE_BYTES)]
    server = grpc.aio.server(options=options, interceptors=[calls.Strict()])
    server.add_insecure_port(f"unix:{path}")
    stack.push_async_callback(server.stop, STOP_GRACE_S)
    return server
