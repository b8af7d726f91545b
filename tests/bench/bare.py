"""The same fan-out without a coordinator: over bare grpc.aio with its own TLS, or over plain sockets (OPS-3).

    python -m tests.bench.bare grpc|plain PORT DIRECTORY    then a command per line of standard input

The gRPC server speaks the coordinator's frames, so the very same agents follow it, and join it: it checks nothing and
keeps nothing, but signs their certificates and sends them the map. Both are tuned as the coordinator is (uvloop, a
frozen heap; its poller comes with the environment of fanout.py). What differs is what the coordinator adds.
"""

from __future__ import annotations

import asyncio
import gc
import secrets
import sys
import time
from collections.abc import AsyncIterator, Mapping
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any, ClassVar

import grpc
import uvloop

from coordinator.backend import grpc_server_options
from meshctl.crypto import pki
from meshctl.crypto.identity import Identity
from meshctl.mesh.journal import Journal
from meshctl.mesh.model import MeshInfo, Node, node_id
from meshctl.mesh.token import JoinToken
from meshctl.wire import codec, session
from meshctl.wire.v1 import mesh_pb2 as pb
from tests.bench.coordinators import Seed
from tests.harness import tls

CHUNK_BYTES = 264  # one encoded node with an endpoint
TELL_S = 0.5
FOUR, SIX = IPv4Network("10.0.0.0/8"), IPv6Network("fd00::/64")


class Fan:
    """A log that every stream follows: the map of now, then each delta."""

    def __init__(self) -> None:
        self.journal, self.deltas = Journal(), [b""]
        self.waiting: list[asyncio.Future[None]] = []
        self._map: tuple[int, list[bytes]] = 0, []
        self.change()

    def change(self) -> int:
        """One more delta, of one node."""
        return self.put({"n1": (self.journal.revision + 1).to_bytes(8, "big") * (CHUNK_BYTES // 8)})

    def put(self, nodes: Mapping[str, bytes]) -> int:
        """One more delta: these nodes have these contents -> its revision."""
        before, now = self.journal.revision, self.journal.revision + 1
        for node, content in nodes.items():
            self.journal.record(now, node, pb.Node(id=node, membership=content).SerializeToString())
        frames = session.frames(self.journal.since(before), before, now, self.journal.hash, snapshot=before == 0)
        self.deltas.append(frames[0])
        waiting, self.waiting = self.waiting, []
        for turn in waiting:
            if not turn.done():
                turn.set_result(None)
        return now

    def map(self) -> tuple[int, list[bytes]]:
        """Revision and frames of the whole map, made once."""
        if self._map[0] != self.journal.revision:
            frames = session.frames(self.journal.snapshot(), 0, self.journal.revision, self.journal.hash, snapshot=True)
            self._map = self.journal.revision, frames
        return self._map

    async def moved(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self.waiting.append(turn)
        await turn


class Entrance:
    """Begin and Join. Who comes within a moment is told to all in one delta."""

    def __init__(self, mesh: tls.Mesh, info: MeshInfo, fan: Fan) -> None:
        self._mesh, self._info, self._fan = mesh, info, fan
        self._came: dict[str, bytes] = {}
        self._telling: asyncio.TimerHandle | None = None

    async def begin(self, _: bytes, context: Any) -> bytes:
        made = codec.challenge(secrets.token_bytes(48), self._mesh.id, codec.PROTOCOL, "127.0.0.1", now=time.time())
        return made.SerializeToString()

    async def join(self, request: bytes, context: Any) -> bytes:
        ask = codec.decode_join(pb.Signed.FromString(request).body)
        key, number = ask.statement.device_key, len(self._came) + self._fan.journal.revision
        name = node_id(key)
        leaf = pki.issue_node(self._mesh.ca_key, self._mesh.ca, self._mesh.id, key, name, now=time.time())
        self._came[name] = secrets.token_bytes(CHUNK_BYTES)
        if self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(TELL_S, self._tell)
        four, six = self._info.prefix4[number], self._info.prefix6[number]
        node = Node(name, ask.name, four, six, ask.statement, self._fan.journal.revision)
        return codec.joined_message(codec.Membership(leaf, self._info, node)).SerializeToString()

    def _tell(self) -> None:
        came, self._came, self._telling = self._came, {}, None
        self._fan.put(came)


async def over_grpc(port: int, mesh: tls.Mesh, fan: Fan) -> Any:
    """TLS by grpc itself, without asking for a client's certificate: it has no way of asking only who has one. Every
    stream is two coroutines, as in any such server.
    """
    own = mesh.credentials()
    info = MeshInfo(mesh.id, "bare", FOUR, SIX, (), mesh.ca, "bare", "allow-all")
    welcome = session.welcome_frame(info, "127.0.0.1", 1, now=time.time())

    async def drain(requests: AsyncIterator[bytes]) -> None:
        async for _ in requests:
            pass

    async def stream(requests: AsyncIterator[bytes], context: Any) -> None:
        first = pb.Up.FromString(await anext(requests))
        at, reader = first.resume.revision, asyncio.ensure_future(drain(requests))
        try:
            await context.write(welcome)
            if not at:
                at, frames = fan.map()
                for frame in frames:
                    await context.write(frame)
            while True:
                while at < fan.journal.revision:
                    at += 1
                    await context.write(fan.deltas[at])
                await fan.moved()
        finally:
            reader.cancel()

    server = grpc.aio.server(options=grpc_server_options())
    handlers = {"Session": grpc.stream_stream_rpc_method_handler(stream)}
    entrance = Entrance(mesh, info, fan)
    unary = {"Begin": entrance.begin, "Join": entrance.join}
    entering = {name: grpc.unary_unary_rpc_method_handler(method) for name, method in unary.items()}
    for service, methods in (("Mesh", handlers), ("Enrolment", entering)):
        generic = grpc.method_handlers_generic_handler(f"meshctl.wire.v1.{service}", methods)
        server.add_generic_rpc_handlers((generic,))
    pair = [(pki.key_pem(own.key), pki.pem(own.certificate))]
    server.add_secure_port(f"127.0.0.1:{port}", grpc.ssl_server_credentials(pair))
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
    """Serve; each line of standard input is a change, `members N`, `freeze` or `token`."""
    fan, mesh = Fan(), tls.Mesh("benchmesh234")
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
            if kind == "grpc":
                fan.put({m.id: secrets.token_bytes(CHUNK_BYTES) for m in made})
            print("made", flush=True)
        elif line[0] == "token":
            token = JoinToken(pki.ca_key(mesh.ca), mesh.id, "0" * 16, bytes(32), (f"127.0.0.1:{port}",))
            print(token.text(), flush=True)
        elif line[0] == "freeze":
            gc.collect()
            gc.freeze()
            print("frozen", flush=True)
        else:
            begun = time.monotonic()
            revision = fan.change()
            for transport in Plain.open:
                transport.write(fan.deltas[revision])
            print(revision, begun, flush=True)
    del kept


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])))
