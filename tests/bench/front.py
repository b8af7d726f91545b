"""What the TLS front costs, measured in one run: `python -m tests.bench.front`. Prints figures, judges nothing (OPS-3).

The server runs in a process of its own, so that its CPU can be told from the client's; both share this machine's cores,
so times are upper bounds and ratios are the better figure.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import uvloop

from coordinator import tls as server_tls
from meshctl.crypto import pki
from tests.harness import tls
from tests.harness.front import Streams, running

CALLS = 1000
HANDSHAKES = 300
HALF_OPEN = 300
CUTS = 50


async def serve(directory: Path) -> None:
    """The measured process: certificates to files, then one command per line of standard input."""
    async with running(directory) as stack:
        node = stack.mesh.node()
        (directory / "ca").write_bytes(stack.mesh.ca)
        (directory / "cert").write_bytes(node.certificate)
        (directory / "key").write_bytes(pki.key_der(node.key))
        gc.collect()
        gc.freeze()
        print(stack.port, flush=True)
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := (await reader.readline()).decode().strip():
            match line:
                case "cut":
                    begin = time.perf_counter()
                    stack.front.cut(node.id)
                    print(begin, flush=True)
                case "reload":
                    fresh, begin = stack.mesh.credentials(), time.perf_counter()
                    stack.front.reload(fresh)
                    print(time.perf_counter() - begin, flush=True)
                case "live":
                    print(stack.front.connections.live, flush=True)
                case "refused":
                    print(dict(stack.front.connections.refused), flush=True)


class Server:
    """The measured process, seen from the client."""

    def __init__(self, process: asyncio.subprocess.Process, directory: Path) -> None:
        self._process = process
        self.backend = directory / "backend" / "grpc"
        self._directory = directory

    async def said(self) -> str:
        assert self._process.stdout is not None
        return (await self._process.stdout.readline()).decode().strip()

    async def ask(self, command: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n".encode())
        return await self.said()

    def cpu_s(self) -> float:
        """Time on a core, all threads."""
        tasks = Path(f"/proc/{self._process.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self._process.pid}/fd").iterdir()))

    def member(self) -> tuple[bytes, tls.Node]:
        ca, key = (self._directory / "ca").read_bytes(), pki.load_key((self._directory / "key").read_bytes())
        return ca, tls.Node("", key, (self._directory / "cert").read_bytes())


def show(what: str, figure: str) -> None:
    print(f"{what:48} {figure}", flush=True)


def spread(seconds: list[float]) -> str:
    return f"p50 {statistics.median(seconds) * 1e3:.2f} ms, max {max(seconds) * 1e3:.2f} ms"


async def timed(call: Callable[[], Awaitable[Any]]) -> float:
    """Seconds until the answer."""
    begin = time.perf_counter()
    await call()
    return time.perf_counter() - begin


async def unary_ms(channel: grpc.aio.Channel) -> float:
    """Median milliseconds per call, one after the other."""
    call = channel.unary_unary("/test/Echo")
    await call(b"")
    return statistics.median([await timed(lambda: call(b"")) for _ in range(CALLS)]) * 1e3


def handshake_cpu_ms() -> float:
    """Median CPU of a server's share of one mutual handshake, without sockets."""
    mesh = tls.Mesh()
    node, context = mesh.node(), server_tls.server_context(mesh.credentials())
    dialler = client_context(mesh.ca, node)
    spent = []
    for _ in range(HANDSHAKES):
        up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
        server, client = context.wrap_bio(up, down, server_side=True), dialler.wrap_bio(down, up)
        total = 0.0
        for last in (False, True):
            with contextlib.suppress(ssl.SSLWantReadError):
                client.do_handshake()
            begin = time.thread_time()
            with contextlib.suppress(ssl.SSLWantReadError):
                server.do_handshake()
            if last:
                server_tls.client_of(server.getpeercert(binary_form=True), mesh.id)
            total += time.thread_time() - begin
        spent.append(total)
    return statistics.median(spent) * 1e3


def client_context(ca: bytes, node: tls.Node) -> ssl.SSLContext:
    """Python's own TLS as a member."""
    context = tls.client_context("h2", ca=ca)
    server_tls.load_leaf(context, server_tls.Credentials(ca, node.certificate, node.key))
    return context


class Bench:
    """The measurements against one server."""

    def __init__(self, server: Server, port: int) -> None:
        self.server, self.port = server, port
        self.ca, self.node = server.member()
        self.context = client_context(self.ca, self.node)

    async def dial(self) -> Streams:
        """A connection that grpc has answered."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=self.context)
        writer.write(tls.HTTP2_PREFACE)
        await reader.read(9)
        return reader, writer

    async def quiet(self) -> None:
        """Wait until the front holds no connection."""
        for _ in range(200):
            if await self.server.ask("live") == "0":
                return
            await asyncio.sleep(0.05)
        raise TimeoutError("the front still holds connections")

    async def connects(self) -> None:
        _, warm = await self.dial()
        warm.transport.abort()
        before, took = self.server.cpu_s(), []
        for _ in range(HANDSHAKES):
            begin = time.perf_counter()
            _, writer = await self.dial()
            took.append(time.perf_counter() - begin)
            writer.transport.abort()
        cpu = (self.server.cpu_s() - before) / HANDSHAKES
        show("connect, with grpc's first frame", f"{cpu * 1e3:.2f} ms CPU, {spread(took)}")

    async def calls(self) -> None:
        target = f"unix:{self.server.backend}"
        async with tls.channel(self.port, self.ca, self.node) as fronted, grpc.aio.insecure_channel(target) as direct:
            front, bare = await unary_ms(fronted), await unary_ms(direct)
        show("unary p50", f"{front:.2f} ms, direct {bare:.2f} ms, ratio {front / bare:.2f}")

    async def flood(self) -> None:
        flood = [socket.create_connection(("127.0.0.1", self.port)) for _ in range(HALF_OPEN)]
        opened, waits = time.perf_counter(), []
        for end in flood:
            end.send(tls.client_hello()[:100])
        for _ in range(10):
            async with tls.channel(self.port, self.ca, self.node) as channel:
                waits.append(await timed(lambda: channel.unary_unary("/test/Echo")(b"")))
        show(f"good client behind {HALF_OPEN} half-open ones", spread(waits))
        await asyncio.to_thread(_end_of, flood[-1])
        show("silent client gone after", f"{time.perf_counter() - opened:.2f} s")
        for end in flood:
            end.close()

    async def cuts(self) -> None:
        took = []
        for _ in range(CUTS):
            reader, writer = await self.dial()
            begin = float(await self.server.ask("cut"))
            with contextlib.suppress(ConnectionError):
                while await reader.read(65536):
                    pass
            took.append(time.perf_counter() - begin)
            writer.transport.abort()
        show(f"cut, from order to the client's end, {CUTS} times", spread(took))


async def measure(server: Server, port: int) -> None:
    """All figures."""
    bench = Bench(server, port)
    show("handshake, arithmetic alone", f"{handshake_cpu_ms():.2f} ms CPU")
    await bench.connects()
    await bench.calls()
    show("reload of credentials", f"{float(await server.ask('reload')) * 1e3:.1f} ms")
    await bench.quiet()
    descriptors = server.descriptors()
    await bench.flood()
    await bench.cuts()
    await bench.quiet()
    show("descriptors leaked", f"{server.descriptors() - descriptors}")
    show("refused", await server.ask("refused"))


def _end_of(end: socket.socket) -> None:
    with contextlib.suppress(ConnectionError):
        end.recv(1)


async def main() -> None:
    """Start the server, measure, end it."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.bench.front", "--serve", name,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        server = Server(process, directory)
        try:
            await measure(server, int(await server.said()))
        finally:
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()


if __name__ == "__main__":
    uvloop.run(serve(Path(sys.argv[2])) if sys.argv[1:2] == ["--serve"] else main())
