"""`meshctl matrix`: who tested whom, when, worst finding, as all coordinators have it (NET-7, OPS-4).

For the operator, on a coordinator's machine: it speaks to the root-only socket of `mesh-coordinator`. Prints; the
judgement is mesh/matrix.py's.
"""

from __future__ import annotations

import time
from pathlib import Path

import click

from meshctl import terminal
from meshctl.cli import grid as show
from meshctl.errors import EnvironmentFault
from meshctl.mesh import matrix as pairs
from meshctl.mesh.matrix import Grid
from meshctl.wire import desk, operator, rows

TOLD = 40  # pairs that are named in the terminal


@click.command()
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    metavar="FILE",
    help="Write one page with the same grid; it needs no scripts and nothing from elsewhere.",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=desk.DEFAULT_DIRECTORY,
    show_default=True,
    envvar="MESH_COORDINATOR_DATA_DIR",
    help="Data of the coordinator on this machine.",
)
def matrix(html: Path | None, as_json: bool, data_dir: Path) -> None:
    """Who tested whom, and what both sides of each pair say.

    Shows what nodes report to this coordinator, and to the others, which it asks. One that does not answer within 2 s
    is named, and so are the nodes that are connected there.
    """
    grid = rows.grid(desk.call(desk.directory(data_dir), "Matrix", operator.nothing()))
    if html:
        stamp = time.strftime("Made %Y-%m-%d %H:%M:%S %Z", time.localtime())
        try:
            html.write_text(show.page(grid, stamp))
        except OSError as error:
            raise EnvironmentFault(f"cannot write {html}: {error.strerror}", "--html FILE") from error
    if as_json:
        terminal.echo_json(_plain(grid))
    elif html:
        click.echo(f"wrote {html}: {show.summary(grid)}")
        for gap in show.gaps(grid):
            click.echo(f"! {gap}")
    else:
        _print(grid)


def _print(grid: Grid) -> None:
    import shutil  # late: half a megabyte, and an agent is the same command

    click.echo(show.summary(grid))
    for gap in show.gaps(grid):
        click.echo(f"! {gap}")
    for line in show.text(grid, shutil.get_terminal_size((120, 24)).columns):
        click.echo(line)
    found = show.worst_first(grid)
    for pair in found[:TOLD]:
        click.echo(f"! {show.sentence(grid, pair)}")
    if len(found) > TOLD:
        click.echo(f"! and {len(found) - TOLD} more pairs: --json, or --html FILE")


def _plain(grid: Grid) -> dict[str, object]:
    """Rows as strings of one symbol per node, in the order of `nodes`: a thousand nodes have a million cells."""
    good, every = pairs.counts(grid)
    names = [line.name for line in grid.lines]
    return {
        "mesh": grid.mesh,
        "revision": grid.revision,
        "pairs": every,
        "pairs_ok": good,
        "nodes": [
            {"id": x.id, "name": x.name, "known": x.known, "heard_s": x.heard_s if x.known else None,
             "connected": x.connected, "via": x.via, "why": x.why, "row": row}
            for x, row in zip(grid.lines, show.symbols(grid), strict=True)
        ],
        "legend": show.LEGEND,
        "complaints": [
            {"first": names[pair.first], "second": names[pair.second], "disagree": pair.disagree,
             "first_says": _cell(pair.ours), "second_says": _cell(pair.theirs)}
            for pair in show.worst_first(grid)
        ],
    }  # fmt: skip


def _cell(cell: pairs.Cell | None) -> dict[str, str] | None:
    return {"verdict": str(cell.verdict), "age": cell.age.name.lower(), "code": cell.code} if cell else None
