"""The matrix: bytes, both sides of a pair, a lie, a map that moved, a thousand nodes; text and HTML (NET-7)."""

from __future__ import annotations

import re
import time
import tracemalloc
from collections.abc import Callable
from html.parser import HTMLParser
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from coordinator.gather import MOST, Gather
from coordinator.matrix import Elsewhere, Matrix
from meshctl.agent.health import Health
from meshctl.cli import grid as show
from meshctl.errors import ProtocolError
from meshctl.mesh import integrity, matrix
from meshctl.mesh.catalogue import CATALOGUE, HANDSHAKE, IDENTITY, PATH, Scope, Verdict
from meshctl.mesh.integrity import Reading
from meshctl.mesh.matrix import Age, Cell, Grid, Line, MatrixRow
from meshctl.mesh.model import NodeId
from meshctl.wire import rows, session
from meshctl.wire.session import UpFrame
from meshctl.wire.v1 import mesh_pb2 as pb

OK, DEGRADED, FAILED, UNKNOWN = Verdict.OK, Verdict.DEGRADED, Verdict.FAILED, Verdict.UNKNOWN
A, B, C = NodeId("a"), NodeId("b"), NodeId("c")
ALONE = Elsewhere()
WELL, DOWN = matrix.pack(Cell(OK, Age.FRESH, "")), matrix.pack(Cell(FAILED, Age.MINUTES, PATH))


def told(*readings: Reading, now: float = 100.0) -> list[Cell]:
    peers = (B, C)
    judged = integrity.evaluate({r[:2]: r for r in readings}, integrity.expected(peers), coverage_s=5.0, now=now)
    return [matrix.unpack(byte) for byte in matrix.row(judged, peers, A, coverage_s=5.0, now=now).cells]


def healthy(peer: NodeId, at: float = 100.0) -> list[Reading]:
    return [Reading(code, subject, OK, at, "") for code, subject in integrity.expected((peer,)) if subject]


def grid(*cells: list[int], silent: tuple[int, ...] = ()) -> Grid:
    lines = tuple(
        Line(name, f"node-{name}", i not in silent, 3.0, True) for i, name in enumerate("abcdef"[: len(cells)])
    )
    return Grid("lab", 7, lines, b"".join(map(bytes, cells)))


LIE = grid([0, WELL, WELL], [WELL, 0, DOWN], [WELL, WELL, 0])


# ---- bytes -----------------------------------------------------------------------------------------------------------


def test_every_cell_survives_its_byte_and_every_check_of_a_peer_has_a_number() -> None:
    for verdict in Verdict:
        for age in Age:
            for code in ("", PATH, IDENTITY, "MESH-STR-001"):
                assert matrix.unpack(matrix.pack(Cell(verdict, age, code))) == (verdict, age, code)
    assert matrix.unpack(matrix.pack(Cell(FAILED, Age.OLD, "MESH-NEW-999"))).code == matrix.OTHER
    assert [matrix.unpack(byte) for byte in range(256)]  # whatever a node sends is read
    for check in CATALOGUE.values():
        if check.scope is Scope.PEER:
            assert matrix.unpack(matrix.pack(Cell(FAILED, Age.OLD, check.code))).code in (check.code, matrix.OTHER)


def test_row_has_the_worst_check_of_each_peer_and_the_age_of_its_path() -> None:
    assert told(*healthy(B), *healthy(C)) == [(UNKNOWN, Age.NEVER, ""), (OK, Age.FRESH, ""), (OK, Age.FRESH, "")]
    bad = Reading(PATH, C, FAILED, 100.0, ""), Reading(IDENTITY, C, DEGRADED, 100.0, "")
    assert told(*healthy(B), *healthy(C), *bad)[2] == (FAILED, Age.FRESH, PATH)
    assert told(*healthy(B), now=103.0)[2] == (UNKNOWN, Age.NEVER, HANDSHAKE)
    assert [cell.age for cell in told(*healthy(B), *healthy(C, 80.0))] == [Age.NEVER, Age.FRESH, Age.MINUTES]
    assert told(*healthy(B), now=2000.0)[1].age is Age.OLD


def test_row_travels_and_a_malformed_one_is_refused() -> None:
    row = MatrixRow(matrix.fingerprint([A, B]), bytes([0, WELL]))
    sent = session.encode_up(UpFrame(applied=(1, b"d", "ok"), row=row))
    assert session.decode_up(pb.Up.FromString(sent.SerializeToString())).row == row
    assert session.decode_up(session.encode_up(UpFrame())).row is None
    with pytest.raises(ProtocolError):
        session.decode_up(pb.Up(row=pb.MatrixRow(roster=b"short", cells=b"x")))


def test_grid_travels_and_never_unpacks_to_more_than_it_says() -> None:
    assert rows.grid(pb.Grid.FromString(rows.grid_message(LIE).SerializeToString())) == LIE
    message = rows.grid_message(LIE)
    del message.lines[0]
    with pytest.raises(ProtocolError):
        rows.grid(message)
    message.cells = b"nonsense"
    with pytest.raises(ProtocolError):
        rows.grid(message)


# ---- both sides ------------------------------------------------------------------------------------------------------


def test_node_that_lies_in_one_direction_is_a_disagreement() -> None:
    (pair,) = matrix.complaints(LIE)
    assert (pair.first, pair.second, pair.disagree) == (1, 2, True)
    assert show.sentence(LIE, pair) == (
        "node-b -> node-c: failed MESH-PATH-001, not tested for minutes; node-c -> node-b: ok (the two sides disagree)"
    )
    assert show.symbols(LIE) == [".oo", "o.!", "o!."]
    assert matrix.counts(LIE) == (2, 3)


def test_fault_that_both_sides_see_is_no_disagreement_and_silence_is_none() -> None:
    both = grid([0, DOWN], [DOWN, 0])
    assert [pair.disagree for pair in matrix.complaints(both)] == [False]
    silent = grid([0, DOWN], [WELL, 0], silent=(1,))
    (pair,) = matrix.complaints(silent)
    assert (pair.theirs, pair.disagree) == (None, False)
    assert matrix.counts(silent) == (0, 1)
    assert not list(matrix.complaints(grid([0, WELL], [WELL, 0])))


def test_row_is_made_anew_once_in_a_coverage_period_and_is_news_only_when_it_changed() -> None:
    clock, prober = [100.0], SimpleNamespace(coverage_s=5.0)
    health = Health(prober, monotonic=lambda: clock[0])  # type: ignore[arg-type]
    health.expect({B: "n-b"})

    def look(seconds: float, verdict: Verdict) -> bool:
        clock[0] += seconds
        health.record(r._replace(at=clock[0], verdict=verdict if r.code == PATH else OK) for r in healthy(B))
        health.judge()
        return health.sum_up(A)

    assert look(0, OK)
    assert not look(4, FAILED)  # not due yet: it changed, and changes back unseen
    assert not look(2, OK)
    assert look(5, FAILED)
    assert health.row
    assert matrix.unpack(health.row.cells[1]) == (FAILED, Age.FRESH, PATH)
    assert not look(100, FAILED)


# ---- what the coordinator holds --------------------------------------------------------------------------------------


def holding(*ids: NodeId) -> tuple[Matrix, Any, Callable[[float], None]]:
    """A matrix over a map of these ids, all connected; the clock is ours."""
    clock = [100.0]
    members = {node: SimpleNamespace(node=SimpleNamespace(name=f"n-{node}")) for node in ids}
    feed = SimpleNamespace(members=members, revision=1)
    presence = SimpleNamespace(is_connected=lambda node: True)
    fleet = SimpleNamespace(where=lambda node: None)
    made = Matrix(feed, presence, fleet, lambda: clock[0])  # type: ignore[arg-type]
    return made, feed, lambda seconds: clock.__setitem__(0, clock[0] + seconds)


def test_row_of_an_older_map_is_put_in_the_order_of_the_new_one() -> None:
    made, feed, passes = holding(A, C)
    made.take(A, MatrixRow(matrix.fingerprint([A, C]), bytes([0, WELL])))
    feed.members[B] = SimpleNamespace(node=SimpleNamespace(name="a-first"))
    feed.revision = 2
    passes(7.0)
    seen = made.grid("lab", ALONE)
    assert [(line.name, line.known) for line in seen.lines] == [("a-first", False), ("n-a", True), ("n-c", False)]
    assert seen.lines[1].heard_s == 7.0
    assert (seen.at(1, 2), seen.at(1, 0), seen.at(0, 1)) == ((OK, Age.FRESH, ""), (UNKNOWN, Age.NEVER, ""), None)
    del feed.members[C]
    feed.revision = 3
    made.forget(C)
    assert len(made.grid("lab", ALONE).cells) == 4


def test_row_of_a_map_that_nobody_knows_says_nothing_and_an_endless_one_is_not_kept() -> None:
    made, _, _ = holding(A, B)
    made.take(A, MatrixRow(b"x" * 16, bytes([0, WELL])))
    made.take(B, MatrixRow(matrix.fingerprint([A, B]), bytes(5)))  # of another length than its map
    assert [line.known for line in made.grid("lab", ALONE).lines] == [False, False]
    made.take(B, MatrixRow(matrix.fingerprint([A, B]), bytes(200_000)))
    assert len(made._rows[B][0].cells) == 5


def test_node_that_is_connected_elsewhere_is_named_and_shown_when_that_one_told() -> None:
    made, _, _ = holding(A, B)
    made.take(B, MatrixRow(matrix.fingerprint([A, B]), bytes([WELL, 0])))
    made._presence.is_connected = lambda node: node == A  # type: ignore[method-assign]
    elsewhere: Any = SimpleNamespace(id="b", beat=SimpleNamespace(name="b.example:7443"))
    made._fleet.where = lambda node: (elsewhere, 0, "ok") if node == B else None  # type: ignore[method-assign]
    seen = made.grid("lab", ALONE)
    assert (seen.lines[1].known, seen.lines[1].connected, seen.lines[1].via) == (False, True, "b.example:7443")
    assert [show.state(line) for line in seen.lines] == ["no row yet", "no row yet at b.example:7443"]
    assert show.symbols(seen) == [".-", "-."]
    assert show.gaps(seen) == []
    seen = made.grid("lab", Elsewhere(why={"b": matrix.SILENT}))
    assert show.state(seen.lines[1]) == "not shown: connected at b.example:7443, which did not answer in time"
    assert show.gaps(seen) == ["b.example:7443 did not answer in time: 1 node is not shown"]
    told = {B: (MatrixRow(matrix.fingerprint([A, B]), bytes([DOWN, 0])), 90.0)}
    seen = made.grid("lab", Elsewhere(told, {"b": ""}))
    assert (show.symbols(seen), show.state(seen.lines[1])) == ([".-", "x."], "said 10s ago at b.example:7443")


def test_thousand_nodes_stay_far_below_64_mb(record_property: Callable[[str, object], None]) -> None:
    ids = [NodeId(f"{number:024}") for number in range(1000)]
    made, _, _ = holding(*ids)
    roster = matrix.fingerprint(ids)
    tracemalloc.start()
    for node in ids:
        made.take(node, MatrixRow(bytes(bytearray(roster)), bytes([WELL]) * 1000))
    held = tracemalloc.get_traced_memory()[0]
    message = rows.grid_message(made.grid("lab", ALONE))
    seen = rows.grid(message)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert matrix.counts(seen) == (1000 * 999 // 2, 1000 * 999 // 2)
    assert peak < 64e6
    record_property(
        "figure",
        f"matrix of 1,000 nodes: {held / 1e6:.1f} MB held, {peak / 1e6:.1f} MB while it is asked for, "
        f"{message.ByteSize() / 1e3:.0f} kB to the operator, {len(roster) + 1000} bytes a row",
    )


def test_thousand_nodes_at_another_coordinator_stay_far_below_64_mb(
    record_property: Callable[[str, object], None],
) -> None:
    """None is connected here. Cells are one byte again and again, or, at worst, noise."""
    ids = [NodeId(f"{number:024}") for number in range(1000)]
    here, feed, _ = holding(*ids)
    here._presence.is_connected = lambda node: False  # type: ignore[method-assign]
    other: Any = SimpleNamespace(id="b", beat=SimpleNamespace(name="b.example:7443"))
    here._fleet.where = lambda node: (other, 0, "ok")  # type: ignore[method-assign]
    gather = Gather(SimpleNamespace(answerers={}), here, feed, here._fleet, lambda: 100.0)  # type: ignore[arg-type]
    cells: tuple[tuple[str, Callable[[int], bytes]], ...] = (
        ("one byte", bytes([WELL]).__mul__),
        ("noise", Random(7).randbytes),
    )
    for what, some in cells:
        there, _, _ = holding(*ids)
        for node in ids:
            there.take(node, MatrixRow(matrix.fingerprint(ids), some(1000)))
        begun = time.process_time()
        packed = rows.pack(there.share(), MOST)
        took = time.process_time() - begun
        tracemalloc.start()
        elsewhere = Elsewhere(why={"b": matrix.SILENT})
        elsewhere.why["b"] = gather._take(bytes(bytearray(packed)), elsewhere)
        seen = rows.grid(rows.grid_message(here.grid("lab", elsewhere)))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        shown = sum(line.known for line in seen.lines)
        assert len(packed) <= MOST
        assert peak < 64e6
        assert (elsewhere.why["b"], shown) == ("", 1000)
        record_property(
            "figure",
            f"rows of 1,000 nodes from another coordinator, {what}: {len(packed) / 1e3:.0f} kB through etcd, packed in "
            f"{took * 1e3:.0f} ms, {peak / 1e6:.1f} MB at the one who asks, {shown} shown",
        )


# ---- what people see -------------------------------------------------------------------------------------------------


def test_text_lines_up_and_says_when_it_does_not_fit() -> None:
    assert list(show.text(LIE, 120)) == [
        "          1 2 3",
        "1 node-a  . o o  said 3s ago",
        "2 node-b  o . !  said 3s ago",
        "3 node-c  o ! .  said 3s ago",
        "each row: what that node says of the others.  o ok  ! the two sides disagree  . itself",
    ]
    assert list(show.text(LIE, 10)) == ["3 columns do not fit here: --html FILE shows them"]
    assert show.summary(LIE) == "mesh lab   revision 7   3 of 3 nodes report   2 of 3 pairs ok on both sides"


class Page(HTMLParser):
    """Tags of a page, and whatever it would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.foreign: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.foreign += [name for name, _ in attrs if name in ("src", "href", "action") or name.startswith("on")]


@pytest.mark.parametrize("size", [3, 200])
def test_page_is_self_contained_and_has_every_cell(size: int) -> None:
    away = Line("1", "n<1>", False, 3.0, True, "b.example:7443", matrix.SILENT)
    lines = tuple(away if i == 1 else Line(str(i), f"n<{i}>", True, 3.0, True) for i in range(size))
    text = show.page(Grid("lab", 7, lines, bytes([WELL]) * size * size), "Made now")
    page = Page()
    page.feed(text)
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert not page.foreign
    assert not re.search(r"@import|url\(|https?:", text)
    assert "n<0>" not in text
    assert text.count("b.example:7443, which did not answer in time") == 1
    assert "b.example:7443 did not answer in time: 1 node is not shown" in text
    cells = (
        text.count("<td class=ok ")
        if size == 3
        else len(re.sub(r"[^o]", "", re.findall("<pre>(.*)</pre>", text, re.DOTALL)[0]))
    )
    assert cells >= (size - 1) * (size - 1)
