"""The same fan-out without a coordinator: over bare grpc.aio with its own TLS, or over plain sockets (OPS-3).

    python -m tests.bench.bare grpc|plain PORT DIRECTORY    then `change` per line of standard input

The gRPC server speaks the coordinator's frames, so the very same agents follow it; both are tuned as the coordinator is
(uvloop, a frozen heap; its poller comes with the environment of fanout.py). What differs is what the coordinator adds.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import AsyncIterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any, ClassVar

import grpc
import uvloop

from coordinator.backend import grpc_server_options
from meshctl.crypto import pki
from meshctl.crypto.identity import Identity
from meshctl.mesh.journal import Journal
from meshctl.mesh.model import MeshInfo
from meshctl.wire import session
from meshctl.wire.v1 import mesh_pb2 as pb
from tests.bench.coordinators import Seed
from tests.harness import tls

CHUNK_BYTES = 264  # one encoded node with an endpoint


class Fan:
    """A log that every stream follows from its beginning."""

    def __init__(self) -> None:
        self.journal, self.frames = Journal(), [b""]
        self.waiting: list[asyncio.Future[None]] = []
        self.change()

    def change(self) -> int:
        """One more delta."""
        before, now = self.journal.revision, self.journal.revision + 1
        node = pb.Node(id="n1", membership=now.to_bytes(8, "big") * (CHUNK_BYTES // 8))
        self.journal.record(now, "n1", node.SerializeToString())
        changes = self.journal.since(before)
        [frame] = session.frames(changes, before, now, self.journal.hash, snapshot=before == 0)
        self.frames.append(frame)
        waiting, self.waiting = self.waiting, []
        for turn in waiting:
            if not turn.done():
                turn.set_result(None)
        return now

    async def moved(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self.waiting.append(turn)
        await turn


async def over_grpc(port: int, mesh: tls.Mesh, fan: Fan) -> Any:
    """Mutual TLS by grpc itself; every stream is two coroutines, as in any such server."""
    own = mesh.credentials()
    four, six = ip_network("10.0.0.0/8"), ip_network("fd00::/64")
    info = MeshInfo(mesh.id, "bare", four, six, (), mesh.ca, "bare", "allow-all")  # type: ignore[arg-type]
    welcome = session.welcome_frame(info, "127.0.0.1", 1, now=time.time())

    async def drain(requests: AsyncIterator[bytes]) -> None:
        async for _ in requests:
            pass

    async def stream(requests: AsyncIterator[bytes], context: Any) -> None:
        first = pb.Up.FromString(await anext(requests))
        at = first.resume.revision
        reader = asyncio.ensure_future(drain(requests))
        try:
            await context.write(welcome)
            while True:
                while at < fan.journal.revision:
                    at += 1
                    await context.write(fan.frames[at])
                await fan.moved()
        finally:
            reader.cancel()

    server = grpc.aio.server(options=grpc_server_options())
    handlers = {"Session": grpc.stream_stream_rpc_method_handler(stream)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("meshctl.wire.v1.Mesh", handlers),))
    pair = [(pki.key_pem(own.key), pki.pem(own.certificate))]
    server.add_secure_port(f"127.0.0.1:{port}", grpc.ssl_server_credentials(pair, pki.pem(mesh.ca), True))
    await server.start()
    return server


class Plain(asyncio.Protocol):
    """A TCP connection that is written to."""

    open: ClassVar[set[asyncio.Transport]] = set()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self.open.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.open.discard(self._transport)


async def main(kind: str, port: int, directory: Path) -> None:
    """Serve; each line of standard input is a change, or `freeze`."""
    fan, mesh = Fan(), tls.Mesh()
    if kind == "grpc":
        kept = await over_grpc(port, mesh, fan)
    else:
        kept = await asyncio.get_running_loop().create_server(Plain, "127.0.0.1", port, backlog=4096)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := (await reader.readline()).decode().split():
        if line[0] == "members":
            made = [Identity.generate() for _ in range(int(line[1]))]
            leaves = [pki.issue_node(mesh.ca_key, mesh.ca, mesh.id, m.device_key, m.id, now=time.time()) for m in made]
            Seed(mesh.ca, mesh.id, "bare", [(m.to_bytes(), x) for m, x in zip(made, leaves, strict=True)]).save(
                directory / "bare"
            )
            print("made", flush=True)
        elif line[0] == "freeze":
            gc.collect()
            gc.freeze()
            print("frozen", flush=True)
        else:
            begun = time.monotonic()
            revision = fan.change()
            for transport in Plain.open:
                transport.write(fan.frames[revision])
            print(revision, begun, flush=True)
    del kept


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])))
