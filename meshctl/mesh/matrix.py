"""The matrix: what each node says of each other in one byte, and what the two sides of a pair say (NET-7).

    bits 7-6 verdict    5-4 age of the evidence    3-0 the check it is about

A row has one byte for each node of the map, in the order of their ids; `fingerprint` of those ids says which map. The
numbers of verdicts, ages and checks travel between releases: they are only ever added. Renders nothing, holds nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

from meshctl.mesh.catalogue import CATALOGUE, HANDSHAKE, IDENTITY, PATH, ROTATION, Verdict
from meshctl.mesh.integrity import Row
from meshctl.mesh.model import NodeId

FINGERPRINT_BYTES: Final = 16
OLD_S: Final = 600.0
_VERDICTS: Final = (Verdict.UNKNOWN, Verdict.OK, Verdict.DEGRADED, Verdict.FAILED)
OTHER: Final = "another check"
# By number. Planned rows of the catalogue have theirs already, so that releases do not give them different ones.
_CODES: Final = (
    "", HANDSHAKE, PATH, IDENTITY, ROTATION, "MESH-PATH-002", "MESH-ENC-001", "MESH-ENC-002", "MESH-RPL-001",
    "MESH-TMP-001", "MESH-SPF-001", "MESH-STR-001", "MESH-INT-001",
)  # fmt: skip
_OTHER: Final = 15


class Age(IntEnum):
    """Of the last test of the pair's path. FRESH: within a coverage period."""

    NEVER = 0
    FRESH = 1
    MINUTES = 2
    OLD = 3


class Cell(NamedTuple):
    """What one node says of another. `code`: the worst check, empty when all is well."""

    verdict: Verdict
    age: Age
    code: str


class MatrixRow(NamedTuple):
    """What a node reports."""

    roster: bytes
    cells: bytes


class Held(NamedTuple):
    """One node's row, and how long ago the coordinator heard it, by that one's own steady clock."""

    node: NodeId
    heard_s: float
    cells: bytes


@dataclass(frozen=True, slots=True)
class Share:
    """The rows that one coordinator has, all of them of the map `roster`; `left_out` more than could be told."""

    roster: bytes
    rows: tuple[Held, ...]
    left_out: int = 0


# Why a row is not here, when the reason is the coordinator where its node is connected.
SILENT: Final = "silent"  # it did not answer in time
FULL: Final = "full"  # it had more rows than one answer holds
GARBLED: Final = "garbled"  # its answer cannot be read


@dataclass(frozen=True, slots=True)
class Line:
    """One node of a grid. `heard_s`: since its row came; `via`: where it is connected, if elsewhere; `why`: above."""

    id: str
    name: str
    known: bool
    heard_s: float
    connected: bool
    via: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class Grid:
    """Everybody's rows as one coordinator shows them: `cells` has one byte per line and column, row after row."""

    mesh: str
    revision: int
    lines: tuple[Line, ...]
    cells: bytes

    def at(self, row: int, column: int) -> Cell | None:
        """What the node of `row` says of the one of `column`; None where its row is not here."""
        if row == column or not self.lines[row].known:
            return None
        return unpack(self.cells[row * len(self.lines) + column])


class Pair(NamedTuple):
    """Two nodes of which at least one complains. `ours`: what the first says of the second; None: not known."""

    first: int
    second: int
    ours: Cell | None
    theirs: Cell | None

    @property
    def disagree(self) -> bool:
        """One side says that all is well and the other that nothing is: a one-way fault, or a lie."""
        said = {cell.verdict for cell in (self.ours, self.theirs) if cell}
        return {Verdict.OK, Verdict.FAILED} <= said


def pack(cell: Cell) -> int:
    """One byte."""
    code = _CODES.index(cell.code) if cell.code in _CODES else _OTHER
    return _VERDICTS.index(cell.verdict) << 6 | cell.age << 4 | code


def unpack(byte: int) -> Cell:
    """Inverse of `pack`; a check that this release does not know is OTHER."""
    code = byte & 15
    return Cell(_VERDICTS[byte >> 6], Age(byte >> 4 & 3), _CODES[code] if code < len(_CODES) else OTHER)


def fingerprint(ids: Sequence[NodeId]) -> bytes:
    """Of sorted ids."""
    return hashlib.blake2b("".join(ids).encode(), digest_size=FINGERPRINT_BYTES, person=b"meshctl/row/v1").digest()


def row(rows: Iterable[Row], peers: Iterable[NodeId], me: NodeId, *, coverage_s: float, now: float) -> MatrixRow:
    """The compact row of `me`, from what holds of each expected claim now."""
    of: dict[str, list[Row]] = {}
    for one in rows:
        if one.subject:
            of.setdefault(one.subject, []).append(one)
    ids = sorted({*peers, me})
    cells = bytes(0 if node == me else pack(_cell(of.get(node, ()), coverage_s, now)) for node in ids)
    return MatrixRow(fingerprint(ids), cells)


def _cell(rows: Sequence[Row], coverage_s: float, now: float) -> Cell:
    worst: Row | None = None
    for one in rows:  # a deep check that was not tried yet is no complaint (integrity.overall)
        if one.verdict is Verdict.OK or (one.verdict is Verdict.UNKNOWN and CATALOGUE[one.code].deep):
            continue
        if worst is None or _rank(one) > _rank(worst):
            worst = one
    at = next((one.at for one in rows if one.code == PATH), None)
    age = Age.NEVER if at is None else _age(now - at, coverage_s)
    if worst is None:
        return Cell(Verdict.OK if rows else Verdict.UNKNOWN, age, "")
    return Cell(worst.verdict, age, worst.code)


def _rank(one: Row) -> int:
    return (Verdict.UNKNOWN, Verdict.DEGRADED, Verdict.FAILED).index(one.verdict)


def _age(seconds: float, coverage_s: float) -> Age:
    return Age.FRESH if seconds <= coverage_s else Age.MINUTES if seconds <= OLD_S else Age.OLD


def align(cells: bytes, then: Sequence[NodeId], now: Sequence[NodeId]) -> bytes:
    """A row of one map in the order of another; who was not in it is never tested."""
    if then == now:
        return cells
    said = dict(zip(then, cells, strict=True))
    return bytes(said.get(node, 0) for node in now)


# ---- reading a grid --------------------------------------------------------------------------------------------------

_WELL: Final = bytes(1 if _VERDICTS[byte >> 6] is Verdict.OK else 0 for byte in range(256))
_NOT_WELL: Final = re.compile(rb"\x00")


def complaints(grid: Grid) -> Iterator[Pair]:
    """Each pair in which a known side does not say ok, once, in order."""
    size, seen = len(grid.lines), set[tuple[int, int]]()
    for index, line in enumerate(grid.lines):
        if not line.known:
            continue
        cells = grid.cells[index * size : (index + 1) * size].translate(_WELL)
        for found in _NOT_WELL.finditer(cells):
            first, second = sorted((index, found.start()))
            if first != second and (first, second) not in seen:
                seen.add((first, second))
                yield Pair(first, second, grid.at(first, second), grid.at(second, first))


def counts(grid: Grid) -> tuple[int, int]:
    """(pairs both of whose sides say ok, all pairs). A pair with an unknown side is not ok."""
    size, known = len(grid.lines), [index for index, line in enumerate(grid.lines) if line.known]
    bad = sum(all(grid.lines[i].known for i in pair[:2]) for pair in complaints(grid))
    return len(known) * (len(known) - 1) // 2 - bad, size * (size - 1) // 2
