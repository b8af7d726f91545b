"""The registry's side of a rotation: one transaction per step, by whichever coordinator hears it (NET-5, OPS-2, OPS-4).

The nodes here say what an agent would; two coordinators share a registry in memory.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from coordinator import records
from coordinator.records import NodeRecord, Why
from coordinator.registry import NAMES, NODES
from meshctl.crypto.identity import Identity
from meshctl.errors import ConflictError, MeshError, RefusedError, TrustError, UsageError
from meshctl.mesh import rotation
from meshctl.mesh.rotation import Phase, Report, Stage
from meshctl.mesh.statement import Statement
from tests.harness.world import Computer, Coordinator, World, world


class Mesh:
    """Three members, all of them taken for connected, at two coordinators."""

    def __init__(self, made: World, members: list[Computer]) -> None:
        self.world, self.members = made, members
        self.one, self.two = made.coordinators
        for coordinator in made.coordinators:
            coordinator.rotations.is_connected = lambda _: True  # type: ignore[method-assign]

    async def open(self, *members: Computer, force: bool = False) -> str:
        names = [member.name for member in members]
        targets = self.one.rotations.targets(names, (), everybody=not names)
        plan = await self.one.rotations.open(targets, force=force, reason="by hand", actor="operator:0")
        await self.world.caught_up()
        return plan.id

    async def record(self, member: Computer) -> NodeRecord:
        (at,) = await self.world.sealed.read(NODES + member.id)
        assert at is not None
        return records.decode(at.value, NodeRecord)

    async def owner(self, statement: Statement) -> bytes | None:
        path = NAMES + self.world.sealed.index_key("wireguard", str(statement.wireguard))
        (at,) = await self.world.sealed.read(path)
        return at.value if at else None

    async def say(
        self, member: Computer, stage: Stage, statement: Statement, at: Coordinator | None = None, **more: int
    ) -> None:
        turn = (at or self.one).feed.turn
        report = Report(turn.rotation if turn else "r0", stage, statement.signed, **more)  # type: ignore[arg-type]
        await (at or self.one).rotations.hear(member.id, report)
        await self.world.caught_up()

    async def turn_of(self, member: Computer, at: Coordinator | None = None) -> Statement:
        """All it says from its next key to the proof."""
        statement = following(member, serial=(await self.serial(member)) + 1)
        await self.say(member, Stage.PREPARED, statement, at)
        await self.say(member, Stage.READY, statement, at, question=7)
        await self.say(member, Stage.SWITCHED, statement, at, pairs=2)
        await self.say(member, Stage.PROVEN, statement, at, pairs=2, proven=2)
        return statement

    async def serial(self, member: Computer) -> int:
        return Statement((await self.record(member)).statement).serial


def following(member: Computer, *, serial: int = 2, key: Identity | None = None) -> Statement:
    """Its next statement, with a fresh key or the one of somebody."""
    other = key or Identity.generate()
    return replace(member.identity, wireguard=other.wireguard).state(member.mesh.id, serial)


@pytest_asyncio.fixture
async def mesh() -> AsyncIterator[Mesh]:
    async with world(coordinators=2) as made:
        members = [await made.member(name) for name in ("a", "b", "c")]
        await made.caught_up()
        yield Mesh(made, members)


async def test_every_step_is_in_the_registry_before_the_next(mesh: Mesh) -> None:
    a = mesh.members[0]
    before = Statement((await mesh.record(a)).statement)
    await mesh.open(a)
    order = mesh.two.rotations.order(a.id)
    assert order is not None
    assert order.phase is Phase.PREPARE
    statement = following(a)
    await mesh.say(a, Stage.PREPARED, statement)
    assert (await mesh.record(a)).next == statement.signed
    assert await mesh.owner(statement) == a.id.encode()
    await mesh.say(a, Stage.READY, statement, question=9)
    order = mesh.two.rotations.order(a.id)
    assert order is not None
    assert (order.phase, order.grant) == (Phase.GRANTED, 9)
    await mesh.say(a, Stage.SWITCHED, statement, pairs=2)
    held = await mesh.record(a)
    assert (held.statement, held.next, held.previous) == (statement.signed, b"", before.signed)
    assert await mesh.owner(before) == a.id.encode(), "it may return to that key"
    await mesh.say(a, Stage.PROVEN, statement, pairs=2, proven=2)
    assert mesh.two.rotations.order(a.id) is None
    assert mesh.world.events.kinds()[-3:] == ["statement.accepted", "rotation.turn-ended", "rotation.closed"]


async def test_peers_learn_the_next_statement_and_believe_it(mesh: Mesh) -> None:
    a, b, _ = mesh.members
    await mesh.open(a)
    statement = following(a)
    await mesh.say(a, Stage.PREPARED, statement)
    await b.sync(mesh.one)
    assert b.book.roster.nodes[a.id].next == statement
    assert b.book.roster.nodes[a.id].newest == 2
    assert b.book.promote(a.id, 2)
    b.restart()
    assert not b.book.refused
    assert b.book.roster.nodes[a.id].statement == statement, "a node that said so is believed after a reboot, too"
    await mesh.say(a, Stage.SWITCHED, statement)
    await b.sync(mesh.one)
    await mesh.world.agrees(b)


async def test_other_coordinator_takes_over_at_every_step(mesh: Mesh) -> None:
    a, b, c = mesh.members
    await mesh.open()
    for member, order in zip((a, b, c), ((0, 1, 0, 1), (1, 0, 1, 0), (1, 1, 0, 0)), strict=True):
        both = mesh.one, mesh.two
        statement = following(member)
        await mesh.say(member, Stage.PREPARED, statement, both[order[0]])
        await mesh.say(member, Stage.READY, statement, both[order[1]], question=3)
        await mesh.say(member, Stage.SWITCHED, statement, both[order[2]])
        await mesh.say(member, Stage.PROVEN, statement, both[order[3]])
    for coordinator in (mesh.one, mesh.two):
        assert coordinator.feed.turn is not None
        assert (coordinator.feed.turn.done, coordinator.feed.turn.is_open) == (3, False)


async def test_restarted_coordinator_finds_the_turn_where_it_was(mesh: Mesh) -> None:
    a = mesh.members[0]
    await mesh.open(a)
    statement = following(a)
    await mesh.say(a, Stage.PREPARED, statement)
    await mesh.say(a, Stage.READY, statement, question=5)
    fresh = await mesh.world.restart()
    order = fresh.rotations.order(a.id)
    assert order is not None
    assert (order.phase, order.grant) == (Phase.GRANTED, 5)


async def test_two_operators_in_the_same_moment_are_serialised(mesh: Mesh) -> None:
    await mesh.open(mesh.members[0])
    targets = mesh.two.rotations.targets((), (), everybody=True)
    with pytest.raises(ConflictError, match="a rotation of 1 nodes is open already, by operator:0"):
        await mesh.two.rotations.open(targets, force=False, reason="", actor="operator:0")


@pytest.mark.parametrize("stage", [Stage.PREPARED, Stage.READY, Stage.SWITCHED, Stage.BACK])
@pytest.mark.parametrize(
    ("crime", "kind"),
    [
        ("lower serial", TrustError),
        ("same serial", TrustError),
        ("foreign signature", TrustError),
        ("other mesh", TrustError),
        ("another node's statement", TrustError),
        ("another node's key", RefusedError),
        ("another node's next key", RefusedError),
    ],
)
async def test_statement_that_must_not_come_into_force_changes_nothing(
    mesh: Mesh, stage: Stage, crime: str, kind: type[MeshError]
) -> None:
    a, b, _ = mesh.members
    if crime == "another node's next key":
        await mesh.open(b)
        held = Identity.generate()
        await mesh.say(b, Stage.PREPARED, following(b, key=held))
        await mesh.say(b, Stage.READY, following(b, key=held), question=1)
        statement = following(a, key=held)
        if stage in (Stage.PREPARED, Stage.READY):
            return  # not its turn: nothing that is only prepared is even read
    else:
        await mesh.open(a)
        statement = {
            "lower serial": following(a, serial=0),
            "same serial": following(a, serial=1),
            "foreign signature": Statement(following(a).body + following(a).signature),
            "other mesh": replace(a.identity, wireguard=Identity.generate().wireguard).state("elsewhere", 2),
            "another node's statement": following(b),
            "another node's key": following(a, key=b.identity),
        }[crime]
    before = mesh.world.registry.revision
    with pytest.raises(kind):
        await mesh.say(a, stage, statement, question=1)
    assert mesh.world.registry.revision == before
    assert mesh.world.events.kinds()[-1] == "statement.refused" or crime.endswith("key")


async def test_next_key_that_is_the_one_in_force_rotates_nothing(mesh: Mesh) -> None:
    a = mesh.members[0]
    await mesh.open(a)
    with pytest.raises(RefusedError, match="nothing would rotate"):
        await mesh.say(a, Stage.PREPARED, following(a, key=a.identity))


async def test_switch_that_is_heard_late_is_accepted(mesh: Mesh) -> None:
    """Cut off after the grant, back when nobody waits any more: the registry follows what is in force."""
    a, b, _ = mesh.members
    await mesh.open(a, b)
    statement = following(a)
    await mesh.say(a, Stage.PREPARED, statement)
    await mesh.say(a, Stage.READY, statement, question=1)
    late = time.monotonic() + rotation.GRANT_LOST_S + 1
    await mesh.one.rotations.look(now=time.monotonic())
    await mesh.one.rotations.look(now=late)
    await mesh.world.caught_up()
    assert mesh.one.rotations.order(a.id) is None
    assert (await mesh.record(a)).next == b"", "what was only prepared is forgotten"
    assert await mesh.owner(statement) is None
    await mesh.say(a, Stage.SWITCHED, statement)
    assert (await mesh.record(a)).statement == statement.signed
    assert mesh.one.rotations.order(b.id) is not None, "and it is the turn of b all the same"


async def test_returning_to_the_old_key_is_a_new_statement(mesh: Mesh) -> None:
    a = mesh.members[0]
    await mesh.open(a)
    statement = following(a)
    for stage in (Stage.PREPARED, Stage.READY, Stage.SWITCHED):
        await mesh.say(a, stage, statement, question=1, pairs=2)
    old = following(a, serial=3, key=a.identity)
    await mesh.say(a, Stage.BACK, old, pairs=2)
    held = await mesh.record(a)
    assert (Statement(held.statement).serial, held.previous) == (3, statement.signed)
    assert mesh.one.feed.turn is not None
    assert mesh.one.feed.turn.failed[0].why == "rolled back: 0 of 2 pairs were proven"


async def test_third_rotation_frees_the_first_key(mesh: Mesh) -> None:
    a = mesh.members[0]
    made = []
    for _ in range(3):
        await mesh.open(a)
        made.append(await mesh.turn_of(a))
    owners = [await mesh.owner(statement) for statement in made]
    assert owners == [None, a.id.encode(), a.id.encode()]


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
async def test_node_revoked_in_its_own_turn_leaves_nothing_behind(mesh: Mesh, steps: int) -> None:
    a, b, _ = mesh.members
    await mesh.open(a, b)
    statement = following(a)
    for stage in (Stage.PREPARED, Stage.READY, Stage.SWITCHED)[:steps]:
        await mesh.say(a, stage, statement, question=1)
    await mesh.two.members.depart("a", Why.REVOKED, "", "operator:0")
    await mesh.world.caught_up()
    await mesh.one.rotations.look(now=time.monotonic())
    await mesh.world.caught_up()
    turn = mesh.one.feed.turn
    assert turn is not None
    assert (turn.node, turn.failed[0].why) == (b.id, "it is no member any more")
    assert await mesh.owner(statement) is None
    assert await mesh.owner(a.identity.state(a.mesh.id, 1)) is None
    await mesh.turn_of(b)
    assert not mesh.one.feed.turn.is_open  # type: ignore[union-attr]


async def test_both_coordinators_end_a_silent_turn_once(mesh: Mesh) -> None:
    await mesh.open()
    late = time.monotonic() + rotation.PREPARE_PATIENCE_S + 1
    for coordinator in (mesh.one, mesh.two):
        await coordinator.rotations.look(now=time.monotonic())
    for coordinator in (mesh.one, mesh.two):
        await coordinator.rotations.look(now=late)
    await mesh.world.caught_up()
    turn = mesh.one.feed.turn
    assert turn is not None
    assert (turn.begun, turn.again) == (2, (mesh.members[0].id,))


async def test_nobody_in_particular_is_a_wrong_question(mesh: Mesh) -> None:
    with pytest.raises(UsageError, match="whose keys"):
        mesh.one.rotations.targets((), (), everybody=False)
    with pytest.raises(RefusedError, match="no rotation is open"):
        await mesh.one.rotations.cancel("operator:0")


async def test_old_keys_rotate_by_themselves_and_by_connected_nodes_only(mesh: Mesh) -> None:
    from coordinator import upkeep

    a, b, c = mesh.members
    mesh.one.rotations.is_connected = lambda node: node != c.id  # type: ignore[method-assign]
    now = mesh.world.clock.now
    await upkeep.rotate_old(mesh.one.rotations, mesh.one.feed, 1000.0, now=now + 800)
    assert mesh.one.feed.turn is None
    await upkeep.rotate_old(mesh.one.rotations, mesh.one.feed, 1000.0, now=now + 1001)
    assert mesh.one.feed.plan is not None
    assert set(mesh.one.feed.plan.targets) == {a.id, b.id}
    assert (mesh.one.feed.plan.reason, mesh.one.feed.plan.actor) == ("age", "coordinator")
