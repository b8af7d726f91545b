"""The Operator service: for root on this machine, over a local socket, until operator login exists (ACC-5, OPS-4)."""

from __future__ import annotations

from typing import Any

import grpc

from coordinator.asks import Asks
from coordinator.members import Members
from coordinator.records import Why
from coordinator.rotations import Rotations
from coordinator.service import calls
from coordinator.views import Views
from meshctl.wire import operator, overview, rows, turns
from meshctl.wire.v1 import mesh_pb2_grpc as rpc

Context = grpc.aio.ServicerContext[Any, Any]
ACTOR = "operator:0"  # the socket is root's alone
NAMED = 64  # stragglers that an answer names


class OperatorService(rpc.OperatorServicer):  # type: ignore[misc]
    """Tokens, nodes, revocation, status."""

    def __init__(self, views: Views, members: Members, rotations: Rotations, asks: Asks) -> None:
        self._views, self._members, self._rotations, self._asks = views, members, rotations, asks
        self._feed = views.feed

    @calls.translated
    async def TokenCreate(self, request: Any, context: Context) -> Any:
        """A join token; its text is shown once."""
        made = await self._members.create_token(
            request.life_s, request.uses, tuple(request.tags), request.ephemeral, request.note, ACTOR
        )
        return operator.token_created(made.id, made.text())

    @calls.translated
    async def TokenList(self, request: Any, context: Context) -> Any:
        """All tokens, without secrets."""
        return operator.tokens_message(await self._members.tokens())

    @calls.translated
    async def TokenRevoke(self, request: Any, context: Context) -> Any:
        """Nobody joins with it any more."""
        await self._members.revoke_token(request.name, ACTOR)
        return operator.done(self._feed.seen, request.name)

    @calls.translated
    async def NodeList(self, request: Any, context: Context) -> Any:
        """All members and what is known of them."""
        return operator.states_message(map(self._views.node, list(self._feed.members)), self._feed.revision)

    @calls.translated
    async def NodeRemove(self, request: Any, context: Context) -> Any:
        """Off the registry; may come back with a new token."""
        node, revision = await self._members.depart(request.name, Why.REMOVED, request.reason, ACTOR)
        return operator.done(revision, node)

    @calls.translated
    async def Revoke(self, request: Any, context: Context) -> Any:
        """Out for good."""
        node, revision = await self._members.depart(request.name, Why.REVOKED, request.reason, ACTOR)
        return operator.done(revision, node)

    @calls.translated
    async def Applied(self, request: Any, context: Context) -> Any:
        """Wait until every member has applied a revision, wherever it is connected, or until the time is up."""
        revision = request.revision or self._feed.revision
        found = await self._asks.applied(revision, min(max(request.timeout_s, 0.0), 3600.0))
        names = map(self._views.straggler, found.waiting[:NAMED])
        return operator.applied_reply(found.applied, names, len(found.waiting), found.seconds)

    @calls.translated
    async def Status(self, request: Any, context: Context) -> Any:
        """The mesh, its coordinators, etcd, the rotation: as this coordinator knows them."""
        await self._views.pulse.look()
        await self._views.pulse.ask()
        return overview.status_message(self._views.overview())

    @calls.translated
    async def Matrix(self, request: Any, context: Context) -> Any:
        """Who tested whom; of nodes at other coordinators, what these answer."""
        elsewhere = await self._views.gather.rows()
        return rows.grid_message(self._views.matrix.grid(self._views.mesh.name, elsewhere))

    @calls.translated
    async def Rotate(self, request: Any, context: Context) -> Any:
        """New WireGuard keys for some nodes or all, one after the other."""
        targets = self._rotations.targets(request.nodes, request.tags, everybody=request.all)
        await self._rotations.open(targets, force=request.force, reason=request.reason or "by hand", actor=ACTOR)
        return turns.state_message(self._views.rotation())

    @calls.translated
    async def Rotation(self, request: Any, context: Context) -> Any:
        """The open rotation, or the last one."""
        return turns.state_message(self._views.rotation())

    @calls.translated
    async def RotationCancel(self, request: Any, context: Context) -> Any:
        """No further turns."""
        await self._rotations.cancel(ACTOR)
        return turns.state_message(self._views.rotation())
