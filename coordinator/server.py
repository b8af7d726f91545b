"""Starts a coordinator and keeps it running: registry, feed, services, front, health (OPS-2, MON-6). Holds no state itself."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from coordinator import founding, upkeep
from coordinator.asymmetry import Asymmetry
from coordinator.config import CoordinatorConfig
from coordinator.embedded import EmbeddedEtcd
from coordinator.enrol import Enrolment
from coordinator.etcd import EtcdAddress, EtcdRegistry
from coordinator.feed import Feed
from coordinator.front import Front, grpc_server_options
from coordinator.health import serve_health
from coordinator.keyring import FileKek, Kek, Keyring, PassphraseKek, SealedRegistry
from coordinator.members import Members
from coordinator.presence import PresenceTable
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


def kek_provider(directory: Path, config: CoordinatorConfig) -> Kek:
    """Where the settings say the KEK comes from. Raises EnvironmentFault."""
    path = directory / config.kek_file
    if config.kek == "passphrase":
        try:
            return PassphraseKek(path.read_text().strip())
        except OSError as error:
            raise EnvironmentFault(f"cannot read the passphrase from {path}: {error.strerror}", "--kek-file FILE") from error
    return FileKek(path)


@contextlib.asynccontextmanager
async def open_registry(
    directory: Path, config: CoordinatorConfig, say: Callable[[str], None]
) -> AsyncIterator[tuple[EtcdRegistry, EmbeddedEtcd | None]]:
    """etcd as the settings say: a cluster that is there, or a child of our own."""
    async with contextlib.AsyncExitStack() as stack:
        child: EmbeddedEtcd | None = None
        if config.etcd:
            address = EtcdAddress(
                tuple(url.removeprefix("https://") for url in config.etcd), *map(Path, (config.etcd_ca, config.etcd_cert, config.etcd_key))
            )
        else:
            child = EmbeddedEtcd(directory / "etcd", say)
            address = await child.start()
            stack.push_async_callback(child.stop)
        registry = await EtcdRegistry.connect(address)
        stack.push_async_callback(registry.close)
        yield registry, child


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


async def serve(directory: Path, config: CoordinatorConfig, events: Events, say: Callable[[str], None], advertise: Sequence[str] = ()) -> None:
    """Until SIGTERM or SIGINT. `say` hears what people should know. Raises MeshError when it cannot start."""
    async with contextlib.AsyncExitStack() as stack:
        registry, child = await stack.enter_async_context(open_registry(directory, config, say))
        sealed = SealedRegistry(registry, await Keyring.open(registry, kek_provider(directory, config)))
        await founding.advertise(sealed, advertise)
        authority = await founding.authority(sealed)
        mesh = authority.mesh
        presence = PresenceTable()
        gone: list[Callable[[NodeId], None]] = [presence.forget]
        feed = Feed(sealed, lambda node: [act(node) for act in gone] and None)
        await feed.load()
        enrolment = Enrolment(authority, sealed, feed, events, time.time)
        members = Members(mesh, sealed, feed, events, time.time)
        asymmetry = Asymmetry(feed, presence)
        gone.append(asymmetry.forget)

        async def etcd_words() -> str:
            return (await sealed.health()).words

        sockets = run_directory(directory)
        backend = await _server(sockets / "backend.sock", stack, behind_front=True)
        rpc.add_EnrolmentServicer_to_server(EnrolmentService(enrolment), backend)
        backend.add_generic_rpc_handlers((MeshService(mesh, feed, presence, members, events, asymmetry).handlers(),))
        checks = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(checks, backend)
        operators = await _server(sockets / "operator.sock", stack, behind_front=False)
        rpc.add_OperatorServicer_to_server(OperatorService(mesh, feed, presence, members, etcd_words, asymmetry), operators)
        await backend.start()
        await operators.start()

        key, certificate = pki.issue_coordinator(authority.ca_key, mesh.ca)
        front = Front(
            Credentials(mesh.ca, certificate, key), mesh.id, sockets / "backend.sock",
            admit=lambda uri, _: pki.node_of(uri, mesh.id) not in feed.gone, clock=time.time,
        )  # fmt: skip
        gone.append(lambda node: front.cut(pki.spiffe_id(mesh.id, node)) and None)
        await front.start([split(address) for address in config.listen])
        stack.push_async_callback(front.stop)
        await serve_health(stack, config.health_listen, feed, presence, front)
        await checks.set("", health_pb2.HealthCheckResponse.SERVING)
        await events.commit(CoordinatorStarted(actor="coordinator", release=__version__, incarnation=mesh.incarnation))
        events.emit(PolicyAllowAll(actor="coordinator"))
        stop = _stop_signal()
        say(f"serving mesh {mesh.name} on {', '.join(config.listen)}")
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(feed.run()), group.create_task(upkeep.run(members, feed, presence)),
                         group.create_task(upkeep.ask_registry(feed, sealed))]  # fmt: skip
                tasks += [group.create_task(child.watchdog())] if child else []
                await stop.wait()
                for task in tasks:
                    task.cancel()
        finally:
            await events.commit(CoordinatorStopped(actor="coordinator", why="asked to"))


async def _server(path: Path, stack: contextlib.AsyncExitStack, *, behind_front: bool) -> grpc.aio.Server:
    path.unlink(missing_ok=True)
    options = [*grpc_server_options(), ("grpc.max_receive_message_length", limits.UP_MESSAGE_BYTES)]
    server = grpc.aio.server(options=options if behind_front else [])
    server.add_insecure_port(f"unix:{path}")
    stack.push_async_callback(server.stop, STOP_GRACE_S)
    return server


def _stop_signal() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop
