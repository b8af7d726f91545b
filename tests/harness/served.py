"""A coordinator as `serve` puts it together, over a registry in memory: real gRPC, TLS front, followers (NET-2, ACC-4).

    async with serving(directory / "run") as served: a = await served.live("a"); await served.operate("Status", ...)

Every node of it acknowledges whatever its book holds. All tasks, sockets and channels end with the block.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from coordinator import server
from coordinator.front import Front
from meshctl.agent import channel, join
from meshctl.agent.book import Book
from meshctl.agent.follow import Follower, Report
from meshctl.agent.join import Member
from meshctl.agent.store import SavedMembership
from meshctl.mesh.matrix import MatrixRow
from meshctl.wire import codec, session
from meshctl.wire.codec import FindingRow, Membership
from meshctl.wire.v1 import mesh_pb2_grpc as rpc
from tests.harness.front import until
from tests.harness.world import Computer, World, world

WITHIN_S = 20.0


class CountingBook(Book):
    """A book that counts the frames it was given."""

    def __init__(self, mesh_id: str) -> None:
        super().__init__(mesh_id)
        self.frames: list[session.DownFrame] = []

    def take(self, frame: session.DownFrame, incarnation: str) -> bool:
        self.frames.append(frame)
        return super().take(frame, incarnation)


class Live:
    """A node whose follower runs, and acknowledges whatever its book holds."""

    def __init__(self, served: Served, computer: Computer, joined: Membership) -> None:
        self.served, self.computer, self.book = served, computer, CountingBook(joined.mesh.id)
        mesh = replace(joined.mesh, coordinators=(served.address,))
        saved = SavedMembership(codec.encode_mesh(mesh), b"", joined.certificate, 1, "mesh0", 51820)
        self.member = Member(mesh, joined.node, joined.certificate, saved)
        self.findings: tuple[FindingRow, ...] = ()
        self.candidates: tuple[Any, ...] = ()
        self.row: MatrixRow | None = None
        self.maps = 0
        self.follower = Follower(
            lambda: self.member,
            computer.identity,
            self.book,
            self.report,
            self.on_map,
            self.renew,
            lambda _: None,  # the mesh's record names an address that this test does not serve
            served.mesh.events,
        )

    def report(self) -> Report | None:
        roster = self.book.roster
        if self.computer.id not in roster.nodes:
            return None
        digest = self.computer.digest(self.member.mesh, roster)
        found = frozenset((f.code, f.subject, f.verdict) for f in self.findings)
        return Report(roster.revision, digest, "ok", found, self.findings, self.candidates, row=self.row)

    def on_map(self) -> None:
        self.maps += 1
        self.follower.dirty.set()

    async def renew(self) -> None:
        await join._renew_at(self.served.address, self.member, self.computer.identity)

    @property
    def names(self) -> set[str]:
        return {node.name for node in self.book.roster.nodes.values()}


class Served:
    """A coordinator as `serve` puts it together, over a registry in memory."""

    def __init__(self, mesh: World, front: Front, sockets: Path) -> None:
        self.mesh, self.front, self.sockets = mesh, front, sockets
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def port(self) -> int:
        return self.front.addresses[0][1]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def open(self, who: Live | None = None) -> grpc.aio.Channel:
        """A channel as an agent opens it; nobody's when `who` is None."""
        ca = self.mesh.mesh.ca
        if who is None:
            return channel.open_channel(self.address, ca)
        return channel.open_channel(self.address, ca, who.computer.identity, who.member.certificate)

    def operators(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(f"unix:{self.sockets / 'operator.sock'}")

    async def operate(self, method: str, request: Any) -> Any:
        async with self.operators() as wire:
            return await getattr(rpc.OperatorStub(wire), method)(request, timeout=WITHIN_S)

    async def node(self, name: str) -> Live:
        computer = self.mesh.computer(name)
        return Live(self, computer, await computer.join(self.mesh.first, await self.mesh.token()))

    async def live(self, name: str) -> Live:
        """A node that follows."""
        made = await self.node(name)
        self._tasks.append(asyncio.ensure_future(made.follower.run()))
        await until(lambda: name in made.names, WITHIN_S)
        return made

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def serving(sockets: Path) -> AsyncIterator[Served]:
    """Until the block ends; `sockets` is the directory to make for them."""
    sockets.mkdir(mode=0o700)
    async with world() as mesh, AsyncExitStack() as stack:
        mesh.clock.now = time.time()
        one, sealed = mesh.first, mesh.sealed
        checks = await server._services(
            stack, sockets, mesh.authority, sealed, one.members, one.rotations, one.fellows, mesh.events
        )
        front = server._front(mesh.authority, one.feed, sockets)
        one.on_gone.append(lambda node: server._cut(front, one.feed, mesh.mesh.id, node))
        await front.start([("127.0.0.1", 0)])
        stack.push_async_callback(front.stop)
        await checks.set("", health_pb2.HealthCheckResponse.SERVING)
        made = Served(mesh, front, sockets)
        stack.push_async_callback(made.stop)
        yield made


async def failure(call: Any) -> tuple[grpc.StatusCode, str]:
    """How a call ended."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async with asyncio.timeout(WITHIN_S):
            await call
    return refused.value.code(), refused.value.details() or ""


async def ended(call: Any) -> tuple[grpc.StatusCode, str]:
    """Read a stream to its end."""
    async with asyncio.timeout(WITHIN_S):
        with suppress(grpc.aio.AioRpcError):
            while await call.read() is not grpc.aio.EOF:  # type: ignore[attr-defined]
                pass
        return await call.code(), await call.details() or ""
