"""What the TLS front bears: crowds, abuse, stuck readers, faults of its own, its end (ENC-3, ACC-4, OPS-4).

Every test runs on plain asyncio and on uvloop: the front uses only what both promise.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import resource
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
import uvloop

from coordinator import front as front_module
from coordinator.front import Front, Why
from coordinator.relay import Phase
from meshctl.errors import EnvironmentFault
from tests.harness import tls
from tests.harness.front import (
    BLOB,
    BLOB_DIGEST,
    BLOBS,
    Stack,
    client_context_of,
    descriptors,
    dial,
    dial_tls,
    ended,
    firehose,
    make_stack,
    refused,
    running,
    still,
    until,
    who,
)

pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture")


@pytest.fixture(params=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    return uvloop.EventLoopPolicy() if request.param == "uvloop" else asyncio.DefaultEventLoopPolicy()


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    async with running(tmp_path) as started:
        yield started


# ---- too much, too many, too long ------------------------------------------------------------------------------------


async def test_oversized_anonymous_upload_is_cut(stack: Stack) -> None:
    pieces = [b"x" * 16384] * 8

    async def upload() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async with stack.channel(stack.mesh.node()) as member:
        assert await member.stream_unary("/test/Upload")(upload()) == hashlib.sha256(b"".join(pieces)).digest()
    async with stack.channel() as stranger:
        with pytest.raises(grpc.aio.AioRpcError):
            await stranger.stream_unary("/test/Upload")(upload())
    assert stack.front.connections.cut == {Why.TOO_MUCH: 1}


async def test_anonymous_client_may_not_stay(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(front_module.PATIENCE, Phase.RELAY, (0.4, Why.TOO_LONG))
    async with stack.channel(stack.mesh.node()) as member, stack.channel() as stranger:
        streams = [channel.unary_stream("/test/Watch")(b"") for channel in (member, stranger)]
        for stream in streams:
            await stream.read()
        with pytest.raises(grpc.aio.AioRpcError):
            await asyncio.wait_for(streams[1].read(), 2)
        assert stack.front.connections.cut == {Why.TOO_LONG: 1}
        assert not streams[0].done()


async def test_one_address_cannot_take_all_places(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_module, "PER_ADDRESS", 20)
    crowd = [await dial(stack, "127.0.0.2") for _ in range(25)]
    await until(lambda: stack.front.connections.refused.get(Why.CROWDED) == 5)
    async with stack.channel(stack.mesh.node()) as channel:
        await who(channel)
    for _, writer in crowd:
        writer.close()


@pytest.fixture
def few_descriptors() -> Iterator[int]:
    """Room for eight connections by RLIMIT_NOFILE."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = front_module.DESCRIPTORS_RESERVED + 8 * front_module.DESCRIPTORS_PER_CONNECTION
    resource.setrlimit(resource.RLIMIT_NOFILE, (room, hard))
    yield 8
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_connections_beyond_the_descriptors_are_refused(few_descriptors: int, tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        held = [await dial(stack) for _ in range(few_descriptors)]
        extra, writer = await dial(stack)
        await ended(extra)
        assert stack.front.connections.refused == {Why.FULL: 1}
        for _, other in (*held, (extra, writer)):
            other.close()
        await until(lambda: stack.front.connections.live == 0)
        strangers = [await dial_tls(stack, "h2") for _ in range(2)]
        reader, third = await dial_tls(stack, "h2")
        await ended(reader)
        assert stack.front.connections.refused[Why.CROWDED] == 1, "a quarter of the places is for strangers"
        async with stack.channel(stack.mesh.node()) as channel:
            await who(channel)
        for _, other in (*strangers, (reader, third)):
            other.close()


async def test_600_abusive_connections_leak_nothing(stack: Stack) -> None:
    async def abuse(kind: int) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            reader, writer = await (dial_tls(stack, *((), ("h2",))[kind]) if kind < 2 else dial(stack))
            if kind > 1:
                writer.write((b"GET / HTTP/1.1\r\n\r\n", tls.client_hello()[:99], tls.client_hello(), b"")[kind - 2])
            if kind in (0, 2):
                await ended(reader)
            writer.transport.abort()

    async with stack.channel(stack.mesh.node()) as channel:
        await who(channel)
        before = descriptors()
        for _ in range(10):
            await asyncio.gather(*(abuse(index % 6) for index in range(60)))
        await until(lambda: stack.front.connections.live == 1)
        await until(lambda: descriptors() <= before)
        await who(channel)
    async with stack.channel(stack.mesh.node()) as channel:
        await who(channel)


# ---- back-pressure ---------------------------------------------------------------------------------------------------


async def test_slow_reader_gets_all_its_bytes_while_others_are_served(stack: Stack) -> None:
    async with stack.channel(stack.mesh.node()) as slow, stack.channel(stack.mesh.node()) as quick:
        stream, digest = slow.unary_stream("/test/Blob")(b""), hashlib.sha256()
        for index in range(BLOBS):
            digest.update(await stream.read())
            if index % 8 == 0:
                await who(quick)
        assert digest.digest() == BLOB_DIGEST


async def test_stuck_reader_stops_the_backend_and_gets_intact_bytes_later(tmp_path: Path) -> None:
    reading = threading.Event()

    def client(port: int) -> bytes:
        with tls.client_context("h2").wrap_socket(socket.create_connection(("127.0.0.1", port))) as end:
            reading.wait(20)
            digest = hashlib.sha256()
            while data := end.recv(65536):
                digest.update(data)
            return digest.digest()

    async with firehose(tmp_path, "pour") as (stack, hose):
        download = asyncio.create_task(asyncio.to_thread(client, stack.port))
        assert await still(lambda: hose.sent) < len(BLOB) * BLOBS, "the kernel holds some, the front not the rest"
        async with asyncio.timeout(5):
            _, writer = await dial_tls(stack, "h2")  # whoever comes is served meanwhile
        writer.close()
        reading.set()
        assert await asyncio.wait_for(download, 20) == BLOB_DIGEST


async def test_stuck_backend_stops_the_client_and_gets_intact_bytes_later(tmp_path: Path) -> None:
    sent: list[int] = []

    def client(port: int, context: ssl.SSLContext) -> bytes:
        with context.wrap_socket(socket.create_connection(("127.0.0.1", port))) as end:
            for _ in range(BLOBS):
                end.sendall(BLOB)
                sent.append(len(BLOB))
            with end.unwrap() as bare:  # a clean half-close: our goodbye is said, the answer still comes
                return bare.recv(1)

    async with firehose(tmp_path, "drink") as (stack, hose):
        context = client_context_of(stack, stack.mesh.node(), "h2")
        upload = asyncio.create_task(asyncio.to_thread(client, stack.port, context))
        assert await still(lambda: len(sent)) < BLOBS
        hose.reading.set()
        await until(lambda: hose.finished == BLOB_DIGEST, 20)
        with contextlib.suppress(ssl.SSLError, OSError):  # Python's unwrap does not expect data before the goodbye
            await asyncio.wait_for(upload, 5)
        await until(lambda: stack.front.connections.live == 0)
        assert stack.front.connections.cut == {}


# ---- faults of our own -----------------------------------------------------------------------------------------------


async def test_fault_in_one_connection_stays_there(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    def broken(uri: str, certificate: bytes) -> bool:
        raise RuntimeError("registry on fire")

    node = stack.mesh.node()
    async with stack.channel(node) as channel:
        await who(channel)
        stack.front._admit = broken
        await refused(stack, stack.mesh.node(), Why.FAULT)
        await who(channel)
    assert "registry on fire" in caplog.text


async def test_client_is_told_when_grpc_is_not_there(tmp_path: Path) -> None:
    stack = make_stack(tmp_path)
    await stack.front.start([("127.0.0.1", 0)])
    await refused(stack, stack.mesh.node(), Why.BACKEND)
    await stack.front.stop()


async def test_full_accept_queue_of_the_backend_is_waited_for(tmp_path: Path) -> None:
    stack = make_stack(tmp_path)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(stack.backend))
    listener.listen(0)
    blocker = socket.socket(socket.AF_UNIX)
    blocker.connect(str(stack.backend))
    await stack.front.start([("127.0.0.1", 0)])
    reader, writer = await dial_tls(stack, "h2")
    await until(lambda: stack.front.connections.anonymous == 1)
    listener.accept()[0].close()
    listener.settimeout(0)
    accepted: list[socket.socket] = []

    def came() -> bool:
        with contextlib.suppress(BlockingIOError):
            accepted.append(listener.accept()[0])
        return bool(accepted)

    await until(came)
    for end in (*accepted, listener, blocker):
        end.close()
    await ended(reader)
    writer.close()
    await stack.front.stop()


async def test_backend_directory_open_to_others_stops_the_start(tmp_path: Path) -> None:
    stack = make_stack(tmp_path)
    stack.backend.parent.chmod(0o750)
    with pytest.raises(EnvironmentFault, match="open to others"):
        await stack.front.start([("127.0.0.1", 0)])


async def test_taken_port_leaves_no_listener_behind(stack: Stack, tmp_path: Path) -> None:
    second = Front(stack.mesh.credentials(), stack.mesh.id, stack.backend, admit=lambda *_: True, clock=stack.now)
    with pytest.raises(EnvironmentFault, match="cannot listen"):
        await second.start([("127.0.0.1", 0), ("127.0.0.1", stack.port)])
    assert second.addresses == []


async def test_nothing_is_left_after_stop(tmp_path: Path) -> None:
    listener = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)  # libuv keeps a descriptor from the first on
    before, tasks = descriptors(), len(asyncio.all_tasks())
    async with firehose(tmp_path, "pour") as (stack, _):
        member = await dial_tls(stack, "h2", node=stack.mesh.node())
        stranger, silent = await dial_tls(stack, "h2"), await dial(stack)
        silent[1].write(tls.client_hello()[:9])
        await until(lambda: stack.front.connections.live == 3)
        await stack.front.stop()
        assert stack.front.connections.live == 0
        for reader, writer in (member, stranger, silent):
            await ended(reader)
            writer.transport.abort()
    await until(lambda: descriptors() <= before and len(asyncio.all_tasks()) <= tasks)
    listener.close()
