"""A whole TLS front on loopback with a stock grpc.aio server behind it, for contract tests and benches."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from coordinator import tls as server_tls
from coordinator.backend import grpc_server_options
from coordinator.front import Front, Why, peer_identity
from meshctl.errors import TrustError
from tests.harness import tls

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
BLOB = random.Random(1302).randbytes(256 * 1024)
BLOBS = 64
BLOB_DIGEST = hashlib.sha256(BLOB * BLOBS).digest()


async def _who(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    try:
        return repr(peer_identity(context.peer())).encode()
    except TrustError as error:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, error.what)
        raise


async def _echo(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    return request


async def _watch(request: bytes, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
    yield b"hello"
    await asyncio.Event().wait()


async def _blob(request: bytes, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
    for _ in range(BLOBS):
        yield BLOB


async def _upload(request: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> bytes:
    digest = hashlib.sha256()
    async for piece in request:
        digest.update(piece)
    return digest.digest()


_SERVICE = grpc.method_handlers_generic_handler(
    "test",
    {
        "Who": grpc.unary_unary_rpc_method_handler(_who),
        "Echo": grpc.unary_unary_rpc_method_handler(_echo),
        "Watch": grpc.unary_stream_rpc_method_handler(_watch),
        "Blob": grpc.unary_stream_rpc_method_handler(_blob),
        "Upload": grpc.stream_unary_rpc_method_handler(_upload),
    },
)


@dataclass
class Stack:
    """The parts of a running front, with the levers a test pulls."""

    mesh: tls.Mesh
    front: Front
    backend: Path
    revoked: set[str] = field(default_factory=set)
    offset_s: float = 0.0

    @property
    def port(self) -> int:
        return self.front.addresses[0][1]

    def channel(self, node: tls.Node | None = None) -> grpc.aio.Channel:
        return tls.channel(self.port, self.mesh.ca, node)

    def now(self) -> float:
        return time.time() + self.offset_s


def make_stack(directory: Path) -> Stack:
    """A front over `directory`/backend/grpc, not started."""
    home = directory / "backend"
    home.mkdir(mode=0o700)
    mesh = tls.Mesh()
    revoked: set[str] = set()
    front = Front(
        mesh.credentials(), mesh.id, home / "grpc", admit=lambda uri, _: uri not in revoked, clock=lambda: stack.now()
    )
    stack = Stack(mesh, front, home / "grpc", revoked)
    return stack


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[Stack]:
    """A front and its grpc server; both are stopped at the end."""
    stack = make_stack(directory)
    server = grpc.aio.server(options=grpc_server_options())
    server.add_generic_rpc_handlers((_SERVICE,))
    server.add_insecure_port(f"unix:{stack.backend}")
    await server.start()
    try:
        await stack.front.start([("127.0.0.1", 0), ("::1", 0)])
        yield stack
    finally:
        await server.stop(0)
        await stack.front.stop()


async def until(condition: Callable[[], bool], within_s: float = 5.0) -> float:
    """Wait until `condition` holds -> seconds it took. Fails after `within_s`."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < within_s, "the awaited condition never came"
        await asyncio.sleep(0.005)
    return time.monotonic() - begin


def descriptors() -> int:
    """Open file descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


async def who(channel: grpc.aio.Channel) -> str:
    """What the services see of this channel's client."""
    answer: bytes = await channel.unary_unary("/test/Who")(b"", timeout=10)
    return answer.decode()


# ---- clients ---------------------------------------------------------------------------------------------------------


async def dial(stack: Stack, source: str = "127.0.0.1") -> Streams:
    """A bare TCP connection to the front."""
    return await asyncio.open_connection("127.0.0.1", stack.port, local_addr=(source, 0))


def client_context_of(stack: Stack, node: tls.Node, *protocols: str) -> ssl.SSLContext:
    """Python's own TLS with a node's certificate."""
    context = tls.client_context(*protocols)
    server_tls.load_leaf(context, server_tls.Credentials(stack.mesh.ca, node.certificate, node.key))
    return context


async def dial_tls(stack: Stack, *protocols: str, node: tls.Node | None = None) -> Streams:
    """A TLS connection by Python's own ssl."""
    context = client_context_of(stack, node, *protocols) if node else tls.client_context(*protocols)
    return await asyncio.open_connection("127.0.0.1", stack.port, ssl=context, ssl_shutdown_timeout=1)


async def slow_handshake(stack: Stack, after_s: float) -> None:
    """A member whose answer to our ServerHello takes so long; returns once it is served."""
    reader, writer = await dial(stack)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context_of(stack, stack.mesh.node(), "h2").wrap_bio(down, up)
    begun = False
    while True:
        try:
            client.do_handshake()
            break
        except ssl.SSLWantReadError:
            writer.write(up.read())
        down.write(await reader.read(65536))
        if not begun:
            begun = True
            await asyncio.sleep(after_s)
    client.write(tls.HTTP2_PREFACE)
    writer.write(up.read())
    assert await asyncio.wait_for(reader.read(9), 10)
    writer.close()


async def ended(reader: asyncio.StreamReader, within_s: float = 5.0) -> None:
    """Wait for the other side's end, clean or not."""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        await asyncio.wait_for(reader.read(), within_s)


async def refused(stack: Stack, node: tls.Node | None, why: Why) -> None:
    """A call with this certificate fails, for this reason and no other."""
    async with stack.channel(node) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await who(channel)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert stack.front.connections.refused.keys() == {why}


# ---- a backend that is not grpc --------------------------------------------------------------------------------------


class Firehose:
    """A backend that is not grpc: writes or reads as much as it can, and counts."""

    def __init__(self) -> None:
        self.sent = 0
        self.reading = asyncio.Event()
        self.finished = b""

    async def pour(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            for _ in range(BLOBS):
                writer.write(BLOB)
                await writer.drain()
                self.sent += len(BLOB)
        writer.close()

    async def drink(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.reading.wait()
        digest = hashlib.sha256()
        while data := await reader.read(65536):
            digest.update(data)
        self.finished = digest.digest()
        writer.write(self.finished)
        writer.close()


async def still(figure: Callable[[], int]) -> int:
    """The value of a counter once it has moved and then stood still for a while."""
    await until(lambda: figure() > 0)
    seen = [0]
    while seen[-1] != figure():
        seen.append(figure())
        await asyncio.sleep(0.2)
    return seen[-1]


@asynccontextmanager
async def firehose(tmp_path: Path, direction: str) -> AsyncIterator[tuple[Stack, Firehose]]:
    """A front before a backend that is not grpc."""
    stack, hose = make_stack(tmp_path), Firehose()
    server = await asyncio.start_unix_server(getattr(hose, direction), stack.backend)
    await stack.front.start([("127.0.0.1", 0)])
    try:
        yield stack, hose
    finally:
        await stack.front.stop()
        server.close()
