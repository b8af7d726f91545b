"""Who applied a revision? Asked of one coordinator, answered by all; silence counts for nothing (ACC-5, OPS-2)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from coordinator.asks import Outcome
from coordinator.fleet import SILENT_S
from coordinator.questions import Ask
from coordinator.records import Why, encode
from coordinator.registry import ASKS, Delete, Put
from meshctl.errors import UnreachableError
from tests.harness.fellows import connect, says
from tests.harness.world import Coordinator, World, world

OPERATOR = "operator:0"


@pytest_asyncio.fixture
async def mesh() -> AsyncIterator[World]:
    """Two coordinators that have heard of each other."""
    async with world(coordinators=2) as made:
        await made.heard()
        yield made


async def answered(mesh: World, asked: asyncio.Task[Outcome]) -> Outcome:
    """Others answer as their loops would, until the one who asks is content."""
    async with asyncio.timeout(10):
        while not asked.done():
            for one in mesh.coordinators:
                if not one.line.cut:
                    await one.questions.answer()
            await asyncio.sleep(0.01)
    return asked.result()


def asking(one: Coordinator, revision: int, timeout_s: float = 5.0) -> asyncio.Task[Outcome]:
    return asyncio.ensure_future(one.asks.applied(revision, timeout_s))


async def test_revocation_is_proven_from_a_coordinator_that_has_none_of_the_nodes(mesh: World) -> None:
    a, b, thief = await connect(mesh, 1, "a", "b", "thief")
    one, two = mesh.coordinators
    _, revision = await one.members.depart(thief.id, Why.REVOKED, "", OPERATOR)
    asked = asking(one, revision)
    await mesh.caught_up()
    says(two, a)
    await asyncio.sleep(0.1)
    assert not asked.done()
    says(two, b)
    outcome = await answered(mesh, asked)
    assert (outcome.applied, outcome.waiting) == (2, ())
    await asyncio.sleep(0.05)
    assert not [path for path in mesh.registry._records if path.startswith(ASKS)], "the question is taken down"


async def test_node_that_moves_while_it_is_waited_for_is_not_taken_for_one_that_applied(mesh: World) -> None:
    """It leaves one coordinator before it applied, and comes to the other: neither may count it before it says so."""
    a, b, thief = await connect(mesh, 1, "a", "b", "thief")
    one, two = mesh.coordinators
    _, revision = await one.members.depart(thief.id, Why.REVOKED, "", OPERATOR)
    asked = asking(one, revision, 0.8)
    await mesh.caught_up()
    says(two, b)
    two.presence.closed(a.id, now=mesh.clock())
    one.presence.opened(a.id, "192.0.2.1", now=mesh.clock())
    outcome = await answered(mesh, asked)
    assert (outcome.applied, outcome.waiting) == (1, (a.id,))
    assert one.views.straggler(a.id) == "a"


async def test_coordinator_that_answered_and_died_is_still_believed(mesh: World) -> None:
    a, b, thief = await connect(mesh, 1, "a", "b", "thief")
    one, two = mesh.coordinators
    _, revision = await one.members.depart(thief.id, Why.REVOKED, "", OPERATOR)
    asked = asking(one, revision, 1.0)
    await mesh.caught_up()
    says(two, a)
    async with asyncio.timeout(5):
        while not any(path.count("/") > 4 for path in one.feed.board.held if path.startswith(ASKS)):
            await two.questions.answer()
            await asyncio.sleep(0.01)
    await two.lag()
    mesh.coordinators.remove(two)
    outcome = await answered(mesh, asked)
    assert (outcome.applied, outcome.waiting) == (1, (b.id,))
    assert one.views.straggler(b.id).startswith("b (at co2:7443")
    for _ in range(int(SILENT_S) + 2):
        await mesh.heard()
    assert one.views.straggler(b.id) == "b (not connected)"


async def test_coordinator_cut_off_from_etcd_answers_for_nobody(mesh: World) -> None:
    """Its nodes do not even know of the revision; whoever asks names them."""
    a, thief = await connect(mesh, 1, "a", "thief")
    one, two = mesh.coordinators
    two.line.cut = True
    _, revision = await one.members.depart(thief.id, Why.REVOKED, "", OPERATOR)
    outcome = await answered(mesh, asking(one, revision, 0.3))
    assert (outcome.applied, outcome.waiting) == (0, (a.id,))
    two.line.cut = False
    await mesh.caught_up()
    says(two, a)
    assert (await answered(mesh, asking(one, revision))).applied == 1


async def test_etcd_dies_while_somebody_waits(mesh: World) -> None:
    """What is known here counts, the rest is named; and the question is put once etcd is back."""
    (a,), (b,) = await connect(mesh, 0, "a"), await connect(mesh, 1, "b")
    one, two = mesh.coordinators
    for c, node in ((one, a), (two, b)):
        says(c, node)
    revision = one.feed.revision
    one.line.cut = True
    outcome = await asyncio.wait_for(one.asks.applied(revision, 0.3), 5)
    assert (outcome.applied, outcome.waiting) == (1, (b.id,))
    asked = asking(one, revision)
    await asyncio.sleep(0.1)
    one.line.cut = False
    assert (await answered(mesh, asked)).waiting == ()


async def test_revision_that_nobody_has_heard_of_is_said_to_be_unknown(mesh: World) -> None:
    with pytest.raises(UnreachableError, match="has not heard of revision 9999 yet"):
        await mesh.first.asks.applied(9999, 0.05)


async def test_question_of_a_coordinator_that_died_is_taken_down(mesh: World) -> None:
    await connect(mesh, 0, "a")
    one = mesh.first
    path = ASKS + "orphan"
    await mesh.sealed.commit(Put(path, encode(Ask(1, 5.0)), 0))
    await mesh.caught_up()
    await one.questions.answer()
    assert f"{path}/{one.fleet.me}" in mesh.registry._records
    await one.questions.sweep()
    assert path in mesh.registry._records
    for _ in range(70):
        await mesh.heard()
    await asyncio.gather(*(c.questions.sweep() for c in mesh.coordinators))
    await mesh.caught_up()
    assert not [held for held in mesh.registry._records if held.startswith(ASKS)]
    await one.questions.answer()


async def test_answer_to_a_question_that_is_gone_leaves_nothing_behind(mesh: World) -> None:
    await connect(mesh, 0, "a")
    one, path = mesh.first, ASKS + "brief"
    await mesh.sealed.commit(Put(path, encode(Ask(1, 5.0)), 0))
    await mesh.caught_up()
    await one.lag()
    await mesh.sealed.commit(Delete(path, 1))
    await one.questions.answer()
    assert not [held for held in mesh.registry._records if held.startswith(ASKS)]


async def test_answer_that_races_with_the_end_of_its_question_leaves_nothing_behind(mesh: World) -> None:
    await connect(mesh, 1, "a")
    one, two = mesh.coordinators
    path = await one.questions.put(Ask(1, 5.0))
    await mesh.caught_up()
    await two.lag()  # it does not hear that the question is gone
    listed = one.line.list

    async def answers_meanwhile(prefix: str) -> Any:
        found = await listed(prefix)
        await two.questions.answer()
        return found

    one.line.list = answers_meanwhile  # type: ignore[method-assign]
    one.questions.withdraw(path)
    await asyncio.gather(*one.questions._tasks)
    assert not [path for path in mesh.registry._records if path.startswith(ASKS)]


async def test_answers_that_outlived_their_question_are_taken_down(mesh: World) -> None:
    """Its asker died between taking down the one and the others."""
    await mesh.sealed.commit(Put(ASKS + "gone/deadbeef", encode(Ask(1, 5.0)), 0))
    await mesh.caught_up()
    await mesh.first.questions.sweep()
    for _ in range(62):
        await mesh.heard()
    await mesh.first.questions.sweep()
    assert not [path for path in mesh.registry._records if path.startswith(ASKS)]
