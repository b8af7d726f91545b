"""The Operator service: for root on this machine, over a local socket, until operator login exists (ACC-5, OPS-4)."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc

from coordinator.asymmetry import Asymmetry
from coordinator.feed import Feed
from coordinator.members import Members
from coordinator.presence import PresenceTable
from coordinator.records import Why
from coordinator.registry import Registry
from coordinator.rotations import Rotations
from coordinator.service import calls
from meshctl import __version__
from meshctl.mesh import rotation
from meshctl.mesh.model import MeshInfo, NodeId
from meshctl.mesh.rotation import Ended
from meshctl.wire import operator, turns
from meshctl.wire.operator import CoordinatorState, NodeState
from meshctl.wire.turns import RotationState, TurnEnded
from meshctl.wire.v1 import mesh_pb2_grpc as rpc

Context = grpc.aio.ServicerContext[Any, Any]
ACTOR = "operator:0"  # the socket is root's alone
POLL_S = 0.02  # how often the applied revisions are counted while somebody waits for them


class OperatorService(rpc.OperatorServicer):  # type: ignore[misc]
    """Tokens, nodes, revocation, status."""

    def __init__(
        self,
        mesh: MeshInfo,
        feed: Feed,
        presence: PresenceTable,
        members: Members,
        registry: Registry,
        asymmetry: Asymmetry,
        rotations: Rotations,
    ) -> None:
        self._mesh, self._feed, self._presence, self._members, self._registry = mesh, feed, presence, members, registry
        self._asymmetry, self._rotations = asymmetry, rotations
        self._started = time.time()

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
        return operator.states_message((self._state(node) for node in self._feed.members), self._feed.revision)

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
        """Wait until every member has applied a revision, or until the time is up."""
        begun = time.monotonic()
        timeout = min(max(request.timeout_s, 0.0), 3600.0)
        while stragglers := self._presence.stragglers(request.revision, self._feed.members):
            if time.monotonic() - begun >= timeout:
                break
            await asyncio.sleep(POLL_S)
        applied = len(self._feed.members) - len(stragglers)
        connected = dict(self._presence.connected())
        names = (self._feed.members[n].node.name + ("" if n in connected else " (not connected)") for n in stragglers)
        return operator.applied_reply(applied, names, time.monotonic() - begun)

    @calls.translated
    async def Status(self, request: Any, context: Context) -> Any:
        """This coordinator about itself and the mesh."""
        connected = [p for n, p in self._presence.connected() if n in self._feed.members]
        revision = self._feed.revision
        return operator.status_message(
            CoordinatorState(
                self._mesh,
                revision,
                len(self._feed.members),
                len(connected),
                sum(p.applied >= revision for p in connected),
                self._started,
                __version__,
                (await self._registry.health()).words,
            )
        )

    @calls.translated
    async def Rotate(self, request: Any, context: Context) -> Any:
        """New WireGuard keys for some nodes or all, one after the other."""
        targets = self._rotations.targets(request.nodes, request.tags, everybody=request.all)
        await self._rotations.open(targets, force=request.force, reason=request.reason or "by hand", actor=ACTOR)
        return turns.state_message(self._rotation())

    @calls.translated
    async def Rotation(self, request: Any, context: Context) -> Any:
        """The open rotation, or the last one."""
        return turns.state_message(self._rotation())

    @calls.translated
    async def RotationCancel(self, request: Any, context: Context) -> Any:
        """No further turns."""
        await self._rotations.cancel(ACTOR)
        return turns.state_message(self._rotation())

    def _rotation(self) -> RotationState:
        plan, turn = self._feed.plan, self._feed.turn
        if plan is None or turn is None or plan.id != turn.rotation:
            return RotationState()
        return RotationState(
            id=plan.id,
            actor=plan.actor,
            opened_at=plan.opened_at,
            targets=len(plan.targets),
            force=plan.force,
            node=self._name(turn.node),
            phase=turn.phase,
            waiting=tuple(map(self._name, turn.waiting)),
            pairs=turn.pairs,
            proven=turn.proven,
            done=turn.done,
            left=rotation.left(plan, turn),
            failed=tuple(map(self._ended, turn.failed)),
            ended=tuple(map(self._ended, turn.ended)),
            gap=turn.gap,
            cancelled=turn.cancelled,
            closed_at=turn.closed_at,
            turns_ended=turn.turns_ended,
            all_pairs=turn.all_pairs,
            all_proven=turn.all_proven,
        )

    def _ended(self, how: Ended) -> TurnEnded:
        waiting = tuple(map(self._name, how.waiting))
        return TurnEnded(self._name(how.node), how.why, how.pairs, how.proven, waiting, how.out, how.into)

    def _name(self, node: NodeId) -> str:
        member = self._feed.members.get(node)
        return member.node.name if member else node

    def _state(self, node: NodeId) -> NodeState:
        member, held = self._feed.members[node], self._presence.get(node)
        made_at = member.record.rotated_at
        if held is None:
            return NodeState(member.node, False, 0.0, 0, False, "unknown", member.record.ephemeral, (), "", made_at)
        expected = self._feed.expected_digest(node, held.applied)
        verdict = held.verdict if held.connected else "unknown"
        found = (*held.findings, *self._asymmetry.of(node))
        return NodeState(
            member.node,
            held.connected,
            held.since,
            held.applied,
            expected == held.digest,
            verdict,
            member.record.ephemeral,
            found,
            held.address,
            made_at,
        )
