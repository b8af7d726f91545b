"""The matrix over two coordinators: rows of both, the silence of one is named, nothing stays in etcd (NET-7, OPS-2)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from coordinator import gather
from coordinator.fleet import SILENT_S
from coordinator.questions import KEEP_S, ROWS, Answerer
from coordinator.registry import ASKS
from meshctl.cli import grid as show
from meshctl.mesh import matrix
from meshctl.mesh.catalogue import Verdict
from meshctl.mesh.matrix import FULL, GARBLED, SILENT, Age, Cell, Grid, MatrixRow
from tests.harness.fellows import connect, silence
from tests.harness.front import until
from tests.harness.world import Computer, Coordinator, World, world

WELL = matrix.pack(Cell(Verdict.OK, Age.FRESH, ""))


@pytest_asyncio.fixture
async def mesh() -> AsyncIterator[World]:
    """Two coordinators that have heard of each other, and answer."""
    async with world(coordinators=2) as made:
        await made.heard()
        loops = [asyncio.ensure_future(one.questions.run()) for one in made.coordinators]
        yield made
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)


def reports(one: Coordinator, *nodes: Computer) -> None:
    """Each says that all is well."""
    ids = sorted(one.feed.members)
    for node in nodes:
        cells = bytes(0 if other == node.id else WELL for other in ids)
        one.views.matrix.take(node.id, MatrixRow(matrix.fingerprint(ids), cells))


async def asked(one: Coordinator) -> Grid:
    """What an operator sees there."""
    return one.views.matrix.grid("lab", await asyncio.wait_for(one.views.gather.rows(), 5))


async def taken_down(mesh: World) -> None:
    await until(lambda: not [path for path in mesh.registry._records if path.startswith(ASKS)], 5)
    await until(lambda: not any(path.startswith(ASKS) for one in mesh.coordinators for path in one.feed.board.held), 5)


def questions(mesh: World) -> int:
    """That were ever asked."""
    written = {getattr(event, "path", "") for _, event in mesh.registry._history}
    return len({path for path in written if path.startswith(ASKS) and path.count("/") == 4})


def state(seen: Grid) -> list[tuple[str, bool, str]]:
    return [(line.name, line.known, line.why) for line in seen.lines]


async def test_rows_of_both_coordinators_are_shown_at_each(mesh: World) -> None:
    (a,), (b, c) = await connect(mesh, 0, "a"), await connect(mesh, 1, "b", "c")
    one, two = mesh.coordinators
    reports(one, a)
    reports(two, b, c)
    two.steady.now += 7
    for at, via in ((one, ["", "co2:7443", "co2:7443"]), (two, ["co1:7443", "", ""])):
        seen = await asked(at)
        assert show.symbols(seen) == [".oo", "o.o", "oo."]
        assert [line.via for line in seen.lines] == via
        assert show.gaps(seen) == []
    assert [round(line.heard_s) for line in (await asked(one)).lines] == [0, 7, 7]
    one.steady.now += 3
    assert [round(line.heard_s) for line in (await asked(one)).lines] == [3, 10, 10], "it ages while it is shared"
    await taken_down(mesh)


async def test_rows_of_an_older_map_are_known_where_nobody_remembers_it(mesh: World) -> None:
    """Nobody is connected to the one who is asked, so it took no row, and no note of the map that they speak of."""
    b, c = await connect(mesh, 1, "b", "c")
    one, two = mesh.coordinators
    reports(two, b, c)
    await connect(mesh, 1, "d")
    seen = await asked(one)
    assert state(seen) == [("b", True, ""), ("c", True, ""), ("d", False, "")]
    assert show.symbols(seen) == [".o?", "o.?", "--."]
    assert show.state(seen.lines[2]) == "no row yet at co2:7443"


@pytest.mark.parametrize("weather", ["deaf", "cut off", "older"])
async def test_coordinator_that_does_not_answer_is_named(
    mesh: World, weather: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gather, "WITHIN_S", 0.3)
    (a,), (b, c) = await connect(mesh, 0, "a"), await connect(mesh, 1, "b", "c")
    one, two = mesh.coordinators
    reports(one, a)
    reports(two, b, c)
    match weather:
        case "deaf":
            await two.lag()
        case "cut off":
            two.line.cut = True
        case "older":  # a release that does not know this kind of question
            del two.questions.answerers[ROWS]
    begun = asyncio.get_running_loop().time()
    seen = await asked(one)
    assert 0.3 <= asyncio.get_running_loop().time() - begun < 2
    assert state(seen) == [("a", True, ""), ("b", False, SILENT), ("c", False, SILENT)]
    assert show.gaps(seen) == ["co2:7443 did not answer in time: 2 nodes are not shown"]


async def test_etcd_dies_and_the_rows_that_are_here_are_shown(mesh: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "WITHIN_S", 0.3)
    (a,), (b,) = await connect(mesh, 0, "a"), await connect(mesh, 1, "b")
    one, two = mesh.coordinators
    reports(one, a)
    reports(two, b)
    one.line.cut = True
    assert state(await asked(one)) == [("a", True, ""), ("b", False, SILENT)]


async def test_etcd_hangs_and_the_answer_comes_in_time(mesh: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that nobody confirms, for longer than an operator waits; what it wrote in the end is taken down."""
    monkeypatch.setattr(gather, "WITHIN_S", 0.2)
    await connect(mesh, 1, "b")
    one, hung, commit = mesh.first, asyncio.Event(), mesh.first.line.commit

    async def hangs(*ops: object) -> object:
        done = await commit(*ops)  # type: ignore[arg-type]
        if not hung.is_set():
            hung.set()
            await asyncio.Event().wait()
        return done

    one.line.commit = hangs  # type: ignore[method-assign, assignment]
    assert state(await asked(one)) == [("b", False, SILENT)]
    await taken_down(mesh)


async def test_answer_that_cannot_be_read_or_held_is_said_to_be_so(
    mesh: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    b, c = await connect(mesh, 1, "b", "c")
    one, two = mesh.coordinators
    reports(two, b, c)
    how = two.questions.answerers[ROWS]
    two.questions.answerers[ROWS] = Answerer(lambda _: b"noise", once=True)
    assert state(await asked(one)) == [("b", False, GARBLED), ("c", False, GARBLED)]
    one.views.gather._forget()
    two.questions.answerers[ROWS] = how
    monkeypatch.setattr(gather, "MOST", 0)
    assert state(await asked(one)) == [("b", False, FULL), ("c", False, FULL)]


async def test_nothing_is_asked_while_no_other_coordinator_has_members(mesh: World) -> None:
    (a,) = await connect(mesh, 0, "a")
    one, two = mesh.coordinators
    reports(one, a)
    assert state(await asked(one)) == [("a", True, "")]
    (b,) = await connect(mesh, 1, "b")
    reports(two, b)
    await silence(mesh, two, SILENT_S + 2)
    assert state(await asked(one)) == [("a", True, ""), ("b", False, "")]
    assert questions(mesh) == 0


async def test_operators_who_ask_at_once_share_one_question_and_do_not_disturb_each_other(
    mesh: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gather, "SHARED_S", 0.1)
    (b,) = await connect(mesh, 1, "b")
    one, two = mesh.coordinators
    reports(two, b)
    first, second = (asyncio.ensure_future(asked(one)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert state(await second) == [("b", True, "")]
    assert first.cancelled()
    assert state(await asked(one)) == [("b", True, "")], "soon after"
    assert questions(mesh) == 1
    await until(lambda: one.views.gather._last is None, 5)
    assert state(await asked(one)) == [("b", True, "")]
    assert questions(mesh) == 2
    await taken_down(mesh)


async def test_only_operator_goes_away_and_the_question_is_taken_down(mesh: World) -> None:
    await connect(mesh, 1, "b")
    one = mesh.first
    gone = asyncio.ensure_future(asked(one))
    await until(lambda: questions(mesh) == 1, 5)
    gone.cancel()
    await taken_down(mesh)


async def test_asker_dies_and_others_take_its_question_down(mesh: World) -> None:
    (b,) = await connect(mesh, 1, "b")
    one, two = mesh.coordinators
    reports(two, b)
    asking = asyncio.ensure_future(asked(one))
    await until(lambda: questions(mesh) == 1, 5)
    one.line.cut = True
    await asyncio.gather(asking, return_exceptions=True)
    await until(lambda: any(path.count("/") == 5 for path in mesh.registry._records if path.startswith(ASKS)), 5)
    await two.questions.sweep()
    await silence(mesh, one, KEEP_S + 4)
    await two.questions.sweep()
    await taken_down(mesh)


async def test_answer_is_written_once_however_long_its_question_stands(mesh: World) -> None:
    (b,) = await connect(mesh, 1, "b")
    two = mesh.coordinators[1]
    reports(two, b)
    path = await mesh.first.questions.put(gather.Ask(0, 5.0, ROWS))
    await until(lambda: len(mesh.first.questions.answers(path)) == 1, 5)
    wrote = two.line.wrote
    two.steady.now += 5
    await two.questions.answer()
    assert two.line.wrote == wrote
