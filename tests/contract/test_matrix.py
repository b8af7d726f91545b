"""Rows on their way: real streams, the operators' socket, a lie, and a row that is not said twice (NET-7, NET-2)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from meshctl.mesh import limits, matrix
from meshctl.mesh.catalogue import PATH, Verdict
from meshctl.mesh.matrix import Age, Cell, Grid, MatrixRow
from meshctl.wire import operator, rows
from meshctl.wire.codec import FindingRow
from tests.harness.front import until
from tests.harness.served import WITHIN_S, Live, Served, serving

WELL, DOWN = (
    matrix.pack(Cell(verdict, Age.FRESH, code)) for verdict, code in ((Verdict.OK, ""), (Verdict.FAILED, PATH))
)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path / "run") as made:
        yield made


def says(node: Live, byte: int) -> None:
    """`node` says this of all others, with its next report."""
    ids = sorted(node.book.roster.nodes)
    node.row = MatrixRow(matrix.fingerprint(ids), bytes(0 if i == node.computer.id else byte for i in ids))
    node.follower.dirty.set()


async def seen(served: Served) -> Grid:
    return rows.grid(await served.operate("Matrix", operator.nothing()))


async def wait_known(served: Served, count: int) -> None:
    async with asyncio.timeout(WITHIN_S):
        while sum(line.known for line in (await seen(served)).lines) != count:
            await asyncio.sleep(0.01)


async def test_lie_in_one_direction_reaches_the_operator_as_a_disagreement(served: Served) -> None:
    a, b = await served.live("a"), await served.live("b")
    await until(lambda: a.names == b.names == {"a", "b"}, WITHIN_S)
    assert [line.known for line in (await seen(served)).lines] == [False, False]
    says(a, WELL)
    says(b, DOWN)
    await wait_known(served, 2)
    grid = await seen(served)
    (pair,) = matrix.complaints(grid)
    assert (grid.lines[pair.first].name, pair.disagree) == ("a", True)
    assert pair.theirs == (Verdict.FAILED, Age.FRESH, PATH)


async def test_row_goes_up_once_and_again_to_the_next_session(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEARTBEAT_S", 0.05)  # a session that is to end does so at the next one
    a = await served.live("a")
    says(a, WELL)
    await wait_known(served, 1)
    held = served.mesh.first.views.matrix._rows
    first = held[a.computer.id]
    a.findings = (FindingRow(PATH, "x", "failed", 1.0, 2.0, "seen"),)
    a.follower.dirty.set()
    presence = served.mesh.first.presence
    await until(lambda: [f.evidence for f in presence[a.computer.id].findings] == ["seen"], WITHIN_S)
    assert held[a.computer.id] is first  # a report without the row: it has not changed
    held.clear()
    a.follower.reconnect.set()
    await wait_known(served, 1)
