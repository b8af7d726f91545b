"""Joins decided together are decided as if one after the other, whatever happens to one of them (ACC-3, NET-1)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from coordinator.admit import TOGETHER
from coordinator.registry import NODES, TOKENS
from meshctl.errors import RefusedError, TrustError
from meshctl.events import TokenUsed
from tests.harness.world import World, world


def counted(mesh: World) -> list[int]:
    """How many operations each commit from now on has."""
    commits: list[int] = []
    commit = mesh.registry.commit

    async def counting(*ops: Any) -> Any:
        commits.append(len(ops))
        return await commit(*ops)

    mesh.registry.commit = counting  # type: ignore[method-assign]
    return commits


async def test_who_waits_is_decided_together() -> None:
    async with world() as mesh:
        token, computers = await mesh.token(uses=41), [mesh.computer(f"n{n}") for n in range(40)]
        commits = counted(mesh)
        await asyncio.gather(*(computer.join(mesh.first, token) for computer in computers))
        assert len(commits) <= 40 // TOGETHER + 1, commits
        nodes = (await mesh.nodes()).values()
        assert len({node.address4 for node in nodes}) == len({node.name for node in nodes}) == 40
        used = [(e.uses_before, e.uses_after, e.node) for e in mesh.events.all if isinstance(e, TokenUsed)]
        assert [(before, after) for before, after, _ in used] == [(41 - n, 40 - n) for n in range(40)]
        assert {node for *_, node in used} == {computer.id for computer in computers}


async def test_last_use_goes_to_the_first_who_came() -> None:
    async with world() as mesh:
        token, computers = await mesh.token(uses=1), [mesh.computer(f"n{n}") for n in range(10)]
        answers = await asyncio.gather(*(c.join(mesh.first, token) for c in computers), return_exceptions=True)
        assert [isinstance(answer, RefusedError) for answer in answers] == [False] + [True] * 9


async def test_one_computer_that_asks_twice_at_once_is_one_member() -> None:
    async with world() as mesh:
        token, one = await mesh.token(uses=2), mesh.computer("one")
        first, second = await asyncio.gather(one.join(mesh.first, token), one.join(mesh.first, token))
        assert (first.resumed, second.resumed) == (False, True)
        assert first.node == second.node


async def test_caller_who_goes_away_harms_nobody() -> None:
    async with world() as mesh:
        token = await mesh.token(uses=3)
        tasks = [asyncio.ensure_future(mesh.computer(f"n{n}").join(mesh.first, token)) for n in range(3)]
        await asyncio.sleep(0)
        tasks[0].cancel()  # it was the one who began
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(answers[0], asyncio.CancelledError)
        assert {answer.node.name for answer in answers[1:]} == {"n1", "n2"}  # type: ignore[union-attr]


async def test_tampered_token_is_refused_alone() -> None:
    async with world() as mesh:
        good, bad = await mesh.token(uses=2), await mesh.token()
        held = mesh.registry._records[TOKENS + bad.id]
        mesh.registry._records[TOKENS + bad.id] = replace(held, value=held.value[:-1] + bytes([held.value[-1] ^ 1]))
        asked = [mesh.computer("a").join(mesh.first, good), mesh.computer("b").join(mesh.first, bad)]
        answers = await asyncio.gather(*asked, mesh.computer("c").join(mesh.first, good), return_exceptions=True)
        assert [type(answer) for answer in answers if isinstance(answer, Exception)] == [TrustError]
        assert {node.name for node in (await mesh.nodes()).values()} == {"a", "c"}


async def test_full_prefix_refuses_who_comes_last_and_admits_the_others() -> None:
    async with world(prefix="10.77.0.0/28") as mesh:
        token = await mesh.token(uses=20)
        asked = [mesh.computer(f"n{n}").join(mesh.first, token) for n in range(16)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(isinstance(answer, RefusedError) for answer in answers) == 2
        assert len((await mesh.sealed.list(NODES))[0]) == 14


@pytest.mark.parametrize("same", ["name", "key"])
async def test_two_who_want_the_same_are_not_both_admitted(same: str) -> None:
    async with world() as mesh:
        token, a, b = await mesh.token(uses=2), mesh.computer("a"), mesh.computer("a" if same == "name" else "b")
        if same == "key":
            b.identity = replace(b.identity, wireguard=a.identity.wireguard)
        answers = await asyncio.gather(a.join(mesh.first, token), b.join(mesh.first, token), return_exceptions=True)
        assert [isinstance(answer, RefusedError) for answer in answers] == [False, True]
