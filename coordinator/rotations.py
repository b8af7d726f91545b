"""The rotation that is open in the registry: begun by people or by age, moved by its nodes, timed by a clock (NET-5).

mesh/rotation.py decides; this file reads, writes what follows in one transaction, and decides again when somebody was
faster. Every coordinator runs it: whoever a node is connected to hears it, any of them ends a turn that takes too long,
and after `kill -9` at any step another one goes on from the record.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from coordinator import records
from coordinator.feed import Feed
from coordinator.keyring import SealedRegistry
from coordinator.records import NodeRecord
from coordinator.registry import NAMES, NODES, PLAN, TURN, Conflict, Delete, Expect, Op, Put, Record
from meshctl.crypto import identity
from meshctl.errors import ConflictError, MeshError, RefusedError, TrustError, UsageError
from meshctl.events import Events, RotationClosed, RotationOpened, StatementAccepted, StatementRefused, TurnEnded
from meshctl.mesh import rotation
from meshctl.mesh.model import MeshInfo, NodeId, node_id
from meshctl.mesh.rotation import Order, Plan, Report, Stage, Turn
from meshctl.mesh.statement import Statement

ROUNDS = 16
LOOK_EVERY_S = 0.25


@dataclass(frozen=True, slots=True)
class _Ground:
    """What a decision was made on: the records as they were read."""

    plan: Plan
    turn: Turn
    turn_at: Record
    node_at: Record | None
    node: NodeRecord | None


class Rotations:
    """The verbs of rotation. `clock` is wall time in unix seconds; `is_connected` asks all coordinators we know of."""

    def __init__(
        self,
        mesh: MeshInfo,
        registry: SealedRegistry,
        feed: Feed,
        events: Events,
        clock: Callable[[], float],
        is_connected: Callable[[NodeId], bool],
    ) -> None:
        self._mesh, self._registry, self._feed, self._events, self._clock = mesh, registry, feed, events, clock
        self.is_connected = is_connected
        self._stands: tuple[object, ...] = ()  # the turn as it was when `_since` began
        self._since = time.monotonic()

    # ---- operators ---------------------------------------------------------------------------------------------------

    def targets(self, names: Sequence[str], tags: Sequence[str], *, everybody: bool) -> tuple[NodeId, ...]:
        """Whom these words mean, in the order of their addresses. Raises UsageError, RefusedError."""
        if not (names or tags or everybody):
            raise UsageError("whose keys?", "--node NAME, --tag TAG or --all")
        wanted = {self._present(name) for name in names}
        for node, member in self._feed.members.items():
            if everybody or set(tags) & set(member.node.tags):
                wanted.add(node)
        if not wanted:
            raise RefusedError("no node is meant", "mesh-coordinator nodes list")
        return tuple(sorted(wanted, key=lambda node: self._feed.members[node].node.address4))

    def _present(self, name: str) -> NodeId:
        member = self._feed.find(name)
        if not self.is_connected(member.node.id):
            raise RefusedError(
                f"node {name!r} is not connected: nobody but itself can make its next key",
                "start its agent, or remove it: mesh-coordinator nodes rm",
            )
        return member.node.id

    async def open(self, targets: tuple[NodeId, ...], *, force: bool, reason: str, actor: str) -> Plan:
        """A new rotation of `targets`. Raises ConflictError while another one is open."""
        plan = Plan(secrets.token_hex(8), actor, self._clock(), targets, force, reason)
        plan_at, turn_at = await self._registry.read(PLAN, TURN)
        if turn_at is not None and records.decode(turn_at.value, Turn).is_open:
            raise ConflictError(_open_already(self._feed.plan), "meshctl keys status --wait, or meshctl keys cancel")
        done = await self._registry.commit(
            Put(PLAN, records.encode(plan), plan_at.generation if plan_at else 0),
            Put(TURN, records.encode(rotation.opened(plan)), turn_at.generation if turn_at else 0),
        )
        if isinstance(done, Conflict):
            raise ConflictError("somebody else opened a rotation in the same moment", "meshctl keys status")
        await self._events.commit(
            RotationOpened(actor=actor, rotation=plan.id, targets=len(targets), force=force, reason=reason)
        )
        await self._feed.caught_up(done.revision)
        return plan

    async def cancel(self, actor: str) -> None:
        """No further turns. Raises RefusedError when none is open."""
        for _ in range(ROUNDS):
            ground = await self._ground()
            if ground is None or not ground.turn.is_open:
                raise RefusedError("no rotation is open", "meshctl keys status")
            after = rotation.cancelled(ground.plan, ground.turn, now=self._clock())
            if after == ground.turn or await self._commit(ground, after, actor=actor):
                return
        raise ConflictError("the rotation moves too fast to be stopped", "try again")

    # ---- nodes -------------------------------------------------------------------------------------------------------

    def order(self, node: NodeId) -> Order | None:
        """What `node` is to be told now."""
        plan, turn = self._feed.plan, self._feed.turn
        if plan is None or turn is None or plan.id != turn.rotation:
            return None
        return rotation.order(plan, turn, node)

    async def hear(self, node: NodeId, report: Report) -> None:
        """A report of a node about its own turn, or about one that it finished later than we waited.

        Raises TrustError, RefusedError for a statement that cannot be accepted; nothing is written then.
        """
        for _ in range(ROUNDS):
            ground = await self._ground(node)
            if ground is None or ground.node is None:
                return
            mine = ground.turn.is_open and (ground.turn.node, ground.turn.rotation) == (node, report.rotation)
            after = ground.turn
            if mine:
                after = rotation.heard(ground.plan, ground.turn, report, now=self._clock())
            try:
                record = self._stated(ground.node, report, preparing=mine)
            except MeshError as error:
                self._events.emit(StatementRefused(actor=f"node:{node}", node=node, why=error.what))
                raise
            if (after == ground.turn and record == ground.node) or await self._commit(ground, after, record):
                return
        raise ConflictError("the registry is too busy to take this report", "it is sent again")

    def _stated(self, held: NodeRecord, report: Report, *, preparing: bool) -> NodeRecord:
        """The node's record with what the report states."""
        stated, current = Statement(report.statement), Statement(held.statement)
        if stated.body in (current.body, Statement(held.next).body if held.next else b""):
            known = stated.body == current.body
            if known or report.stage in (Stage.PREPARED, Stage.READY):
                return held
        if node_id(stated.device_key) != held.id:
            raise TrustError("the statement is another node's", "report this to the mesh's operator")
        identity.check(stated, self._mesh.id, seen_serial=current.serial + 1)
        if report.stage in (Stage.PREPARED, Stage.READY):
            if stated.wireguard == current.wireguard:
                raise RefusedError("the next key is the one in force: nothing would rotate", "upgrade meshctl on it")
            return replace(held, next=stated.signed) if preparing else held
        return replace(held, statement=stated.signed, next=b"", previous=held.statement, key_made_at=self._clock())

    # ---- the transaction ---------------------------------------------------------------------------------------------

    async def _ground(self, node: NodeId | None = None) -> _Ground | None:
        """Plan, turn and the node's record (by default of the node whose turn it is) at one moment."""
        if self._feed.turn is None:
            return None
        node = node or self._feed.turn.node
        plan_at, turn_at, node_at = await self._registry.read(PLAN, TURN, NODES + node)
        if plan_at is None or turn_at is None:
            return None
        plan, turn = records.decode(plan_at.value, Plan), records.decode(turn_at.value, Turn)
        return _Ground(plan, turn, turn_at, node_at, records.decode(node_at.value, NodeRecord) if node_at else None)

    async def _commit(self, ground: _Ground, turn: Turn, record: NodeRecord | None = None, actor: str = "") -> bool:
        """Write what changed; False when somebody was faster. A turn that ended leaves no next statement behind."""
        held, before = ground.node, ground.turn
        record = record or held
        ended = turn.node != before.node or not turn.is_open or turn.begun != before.begun
        if record and ended and record.id == before.node:
            record = replace(record, next=b"")
        ops: list[Op] = []
        if turn != before:
            ops.append(Put(TURN, records.encode(turn), ground.turn_at.generation))
        if record and held and ground.node_at and record != held:
            ops.append(Put(ground.node_at.path, records.encode(record), ground.node_at.generation))
            ops += await self._index(held, record)
        done = await self._registry.commit(*ops)
        if isinstance(done, Conflict):
            return False
        await self._tell(ground, turn, record, ended=ended, actor=actor)
        await self._feed.caught_up(done.revision)
        return True

    async def _index(self, before: NodeRecord, after: NodeRecord) -> list[Op]:
        """The entries that keep a WireGuard key from being two nodes': of the statement in force, next and previous."""
        gone, kept = before.wireguard_keys - after.wireguard_keys, after.wireguard_keys
        paths = {NAMES + self._registry.index_key("wireguard", key): key for key in sorted(gone | kept)}
        found = dict(zip(paths, await self._registry.read(*paths), strict=True))
        ops: list[Op] = []
        for path, key in paths.items():
            at = found[path]
            if at is not None and at.value != after.id.encode():
                if key in kept:
                    raise RefusedError("another node has this WireGuard key", "a key is never used twice: make another")
            elif key in gone:
                ops += [Delete(path, at.generation)] if at else []
            else:
                ops.append(Expect(path, at.generation) if at else Put(path, after.id.encode(), 0))
        return ops

    async def _tell(self, ground: _Ground, turn: Turn, record: NodeRecord | None, *, ended: bool, actor: str) -> None:
        if record and ground.node and record.statement != ground.node.statement:
            was, now = Statement(ground.node.statement), Statement(record.statement)
            self._events.emit(
                StatementAccepted(
                    actor=f"node:{record.id}", node=record.id, serial_before=was.serial, serial_after=now.serial,
                    wireguard=now.wireguard,
                )
            )  # fmt: skip
        if ended and turn.ended and turn.ended != ground.turn.ended:
            how = turn.ended[-1]
            self._events.emit(
                TurnEnded(
                    actor=actor, rotation=turn.rotation, node=how.node, why=how.why, pairs=how.pairs, proven=how.proven,
                    worst_gap_s=max(how.out.worst, how.into.worst),
                )
            )  # fmt: skip
        if ground.turn.is_open and not turn.is_open:
            failed = tuple(how.node for how in turn.failed)
            closed = RotationClosed(
                actor=actor, rotation=turn.rotation, done=turn.done, failed=failed, worst_gap_s=turn.worst
            )
            await self._events.commit(closed)

    # ---- time --------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """For ever: end turns that take too long. A registry that does not answer is tried again."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await self.look(now=time.monotonic())
            except MeshError:
                continue

    async def look(self, *, now: float) -> None:
        """Once. `now` is this process' steady clock."""
        plan, turn = self._feed.plan, self._feed.turn
        if plan is None or turn is None or not turn.is_open or plan.id != turn.rotation:
            return
        stands = turn.rotation, turn.node, turn.phase, turn.grant, turn.retrying
        if stands != self._stands:
            self._stands, self._since = stands, now
        if self._overdue(plan, turn, now - self._since) is turn:
            return
        ground = await self._ground()
        if ground is not None and ground.turn == turn:
            await self._commit(ground, self._overdue(plan, turn, now - self._since))

    def _overdue(self, plan: Plan, turn: Turn, waited_s: float) -> Turn:
        if turn.node not in self._feed.members:
            return rotation.following(plan, turn, "it is no member any more", now=self._clock())
        connected = self.is_connected(turn.node)
        return rotation.overdue(plan, turn, waited_s, now=self._clock(), connected=connected)


def _open_already(plan: Plan | None) -> str:
    if plan is None:
        return "a rotation is open already"
    since = time.strftime("%H:%M:%S", time.localtime(plan.opened_at))
    return f"a rotation of {len(plan.targets)} nodes is open already, by {plan.actor} since {since}"
