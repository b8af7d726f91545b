"""A matrix as text and as one page of HTML: no script, nothing from elsewhere, readable without colours (NET-7).

Pure: a Grid in, words out. A symbol per cell, the same everywhere; what is wrong is also said in sentences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from html import escape
from itertools import groupby
from typing import Final

from meshctl.mesh import matrix
from meshctl.mesh.catalogue import CATALOGUE, Verdict
from meshctl.mesh.matrix import Age, Cell, Grid, Line, Pair
from meshctl.terminal import age

SYMBOLS: Final = {Verdict.OK: "o", Verdict.DEGRADED: "~", Verdict.FAILED: "x", Verdict.UNKNOWN: "?"}
SELF, NONE, DISAGREE = ".", "-", "!"
LEGEND: Final = {
    "o": "ok", "~": "degraded", "x": "failed", "?": "not known yet", DISAGREE: "the two sides disagree",
    NONE: "no report", SELF: "itself",
}  # fmt: skip
_AGES: Final = {
    Age.NEVER: "never tested", Age.FRESH: "tested in time", Age.MINUTES: "not tested for minutes",
    Age.OLD: "not tested for more than 10 minutes",
}  # fmt: skip
_WHY: Final = {
    matrix.SILENT: "did not answer in time", matrix.FULL: "has more rows than one answer holds",
    matrix.GARBLED: "gave an answer that cannot be read",
}  # fmt: skip
TABLE_MOST: Final = 128  # nodes: beyond, a browser is slow with cells of a table, and a line of text a node is not


def symbols(grid: Grid) -> list[str]:
    """One string per row, one character per column."""
    size = len(grid.lines)
    by_byte = [SYMBOLS[matrix.unpack(byte).verdict] for byte in range(256)]
    rows = []
    for index, line in enumerate(grid.lines):
        cells = grid.cells[index * size : (index + 1) * size]
        row = [by_byte[byte] for byte in cells] if line.known else [NONE] * size
        row[index] = SELF
        rows.append(row)
    for pair in matrix.complaints(grid):
        if pair.disagree:
            rows[pair.first][pair.second] = rows[pair.second][pair.first] = DISAGREE
    return ["".join(row) for row in rows]


def summary(grid: Grid) -> str:
    """One line about all of it."""
    good, every = matrix.counts(grid)
    known = sum(line.known for line in grid.lines)
    return (
        f"mesh {grid.mesh}   revision {grid.revision}   {known} of {len(grid.lines)} nodes report   "
        f"{good} of {every} pairs ok on both sides"
    )


def state(line: Line) -> str:
    """Where a row is from, or why there is none."""
    if line.known:
        return f"said {age(line.heard_s)} ago" + (f" at {line.via}" if line.via else "")
    if line.via and line.why:
        return f"not shown: connected at {line.via}, which {_WHY.get(line.why, line.why)}"
    if line.via:
        return f"no row yet at {line.via}"
    return "no row yet" if line.connected else "not connected"


def gaps(grid: Grid) -> list[str]:
    """Coordinators whose nodes are not shown, and why."""
    found = Counter((line.via, line.why) for line in grid.lines if line.via and line.why and not line.known)
    return [
        f"{via} {_WHY.get(why, why)}: {count} node{'s are' if count > 1 else ' is'} not shown"
        for (via, why), count in sorted(found.items())
    ]


def sentence(grid: Grid, pair: Pair) -> str:
    """What the two sides say; the worse one first."""
    one, other = (grid.lines[index].name for index in pair[:2])
    said = [(one, other, pair.ours), (other, one, pair.theirs)]
    said.sort(key=lambda side: side[2] is None or _rank(side[2]))
    words = "; ".join(f"{who} -> {whom}: {_words(cell)}" for who, whom, cell in said)
    return f"{words} (the two sides disagree)" if pair.disagree else words


def _rank(cell: Cell) -> int:
    return (Verdict.FAILED, Verdict.DEGRADED, Verdict.UNKNOWN, Verdict.OK).index(cell.verdict)


def _words(cell: Cell | None) -> str:
    if cell is None:
        return "no report"
    code = f" {cell.code}" if cell.code else ""
    return f"{cell.verdict}{code}" + ("" if cell.age is Age.FRESH else f", {_AGES[cell.age]}")


def worst_first(grid: Grid) -> list[Pair]:
    """Complaints; those whose only fault is that nothing is known yet come last."""

    def rank(pair: Pair) -> tuple[bool, int]:
        return not pair.disagree, min(_rank(cell) for cell in (pair.ours, pair.theirs) if cell)

    return sorted(matrix.complaints(grid), key=rank)


def text(grid: Grid, columns: int) -> Iterator[str]:
    """Lines of a grid that is at most `columns` wide; where it cannot be, only what is not well is told."""
    size, rows = len(grid.lines), symbols(grid)
    names = max((len(line.name) for line in grid.lines), default=0)
    digits = len(str(size))
    head = digits + names + 3
    gap = " " if head + 2 * size + 12 <= columns else ""
    if head + len(gap or "x") * size > columns:
        yield f"{size} columns do not fit here: --html FILE shows them"
        return
    for place in range(digits):
        yield " " * head + gap.join(f"{number:>{digits}}"[place] for number in range(1, size + 1))
    for number, (line, row) in enumerate(zip(grid.lines, rows, strict=True), 1):
        yield f"{number:>{digits}} {line.name:<{names}}  {gap.join(row)}  {state(line)}"
    used = set("".join(rows))
    yield "each row: what that node says of the others.  " + "  ".join(
        f"{symbol} {meaning}" for symbol, meaning in LEGEND.items() if symbol in used
    )


# ---- HTML ------------------------------------------------------------------------------------------------------------

_CLASSES: Final = {
    "o": "ok",
    "~": "degraded",
    "x": "failed",
    "?": "unknown",
    DISAGREE: "lie",
    NONE: "none",
    SELF: "self",
}
_STYLE: Final = """
body{font:14px/1.5 system-ui,sans-serif;margin:2em;color:#1b1f24;background:#fff}
h1{font-size:1.4em;margin:0}p{margin:.3em 0 1em}
.grid{overflow:auto;max-width:100%;margin:1em 0}
table{border-collapse:separate;border-spacing:2px}
th{font-weight:400;text-align:left;white-space:nowrap;padding:0 .6em}
thead th{vertical-align:bottom;padding:.3em 0;text-align:center}
thead span{writing-mode:vertical-rl;transform:rotate(180deg)}
tbody th{position:sticky;left:0;background:#fff}
td{width:1.7em;height:1.7em;text-align:center;font-family:ui-monospace,monospace}
td.state{width:auto;text-align:left;color:#57606a;white-space:nowrap;padding-left:.8em;font-family:inherit}
.ok{background:#c9ecd2}.degraded{background:#ffe3a3}.failed{background:#e5484d;color:#fff;font-weight:700}
.unknown{background:#dfe3e8}.lie{background:#8e4ec6;color:#fff;font-weight:700}.none{color:#8c959f}.self{color:#8c959f}
pre{font:12px/1.25 ui-monospace,monospace}
.legend span{display:inline-block;width:1.5em;text-align:center;margin:0 .3em 0 1em}
code{font-family:ui-monospace,monospace}
@media(prefers-color-scheme:dark){body,tbody th{background:#14171a;color:#e6e8ea}.ok{background:#1f5c33}
.degraded{background:#7a5a00}.unknown{background:#3a4048}}
"""


def page(grid: Grid, stamp: str) -> str:
    """The whole page. `stamp`: when it was made, in words."""
    pairs, rows = worst_first(grid), symbols(grid)
    body = _table(grid, rows) if len(grid.lines) <= TABLE_MOST else _lines(grid, rows)
    legend = "".join(f"<span class={_CLASSES[s]}>{escape(s)}</span>{escape(words)}" for s, words in LEGEND.items())
    said = "".join(f"<li>{escape(sentence(grid, pair))}</li>" for pair in pairs[:500])
    more = f"<p>and {len(pairs) - 500} more pairs</p>" if len(pairs) > 500 else ""
    wrong = f"<h2>Not well</h2><ul>{said}</ul>{more}" if pairs else ""
    if not pairs and all(line.known for line in grid.lines):
        wrong = "<p>Every pair is ok on both sides.</p>"
    codes = sorted({cell.code for pair in pairs for cell in (pair.ours, pair.theirs) if cell and cell.code})
    checks = "".join(
        f"<li><code>{code}</code> {escape(CATALOGUE[code].claim)}. {escape(CATALOGUE[code].remedy)}</li>"
        for code in codes
        if code in CATALOGUE
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>mesh {escape(grid.mesh)}: who tested whom</title><style>{_STYLE}</style></head><body>"
        f"<h1>Who tested whom</h1><p>{escape(summary(grid))}<br>{escape(stamp)}. "
        "Each row is what that node says of the others.</p>"
        + "".join(f"<p>{escape(gap)}</p>" for gap in gaps(grid))
        + f'<p class="legend">{legend}</p><div class="grid">{body}</div>'
        + wrong
        + (f"<h2>What the checks mean</h2><ul>{checks}</ul>" if checks else "")
        + "</body></html>\n"
    )


def _table(grid: Grid, rows: list[str]) -> str:
    head = "".join(f"<th scope=col><span>{escape(line.name)}</span></th>" for line in grid.lines)
    made = [f"<table><thead><tr><td></td>{head}<td></td></tr></thead><tbody>"]
    for index, (line, row) in enumerate(zip(grid.lines, rows, strict=True)):
        made.append(f"<tr><th scope=row>{escape(line.name)}</th>")
        for column, symbol in enumerate(row):
            title = f"{line.name} -> {grid.lines[column].name}: {_words(grid.at(index, column))}"
            hint = "" if symbol == SELF else f' title="{escape(title)}"'
            made.append(f"<td class={_CLASSES[symbol]}{hint}>{symbol}</td>")
        made.append(f'<td class="state">{escape(state(line))}</td></tr>')
    return "".join([*made, "</tbody></table>"])


def _lines(grid: Grid, rows: list[str]) -> str:
    names = max(len(line.name) for line in grid.lines)
    made = []
    for line, row in zip(grid.lines, rows, strict=True):
        runs = ((symbol, "".join(run)) for symbol, run in groupby(row))
        cells = "".join(f"<span class={_CLASSES[symbol]}>{run}</span>" for symbol, run in runs)
        made.append(f"{escape(line.name):<{names}}  {cells}  {escape(state(line))}")
    return "<pre>" + "\n".join(made) + "</pre>"
