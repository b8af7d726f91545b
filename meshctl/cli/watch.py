"""`meshctl watch`: the status in place, and what changes, until Ctrl-C (MON-6, OPS-4).

Asks the agent on this machine; compares with mesh/changes.py. Where stdout is no terminal it prints the changes alone.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import Any

import click

from meshctl.cli import local
from meshctl.cli.inspect import print_status
from meshctl.cli.options import CONFIG, settings
from meshctl.config import AgentConfig
from meshctl.errors import UnreachableError
from meshctl.mesh.changes import changes

KEPT = 12  # changes below the table
_CLEAR = "\033[H\033[J"  # home, then erase what is below


@click.command()
@click.option(
    "-n", "--interval", type=click.FloatRange(0.2, 3600), default=1.0, show_default=True, help="Seconds between looks."
)
@CONFIG
def watch(interval: float, **flags: object) -> None:
    """The status of this node in place, and findings as they open and close, until Ctrl-C.

    Where the output is no terminal: one line per change.
    """
    config = settings(flags)
    picture: dict[str, Any] | None = local.status(config)  # a machine in no mesh has nothing to watch
    before: dict[str, Any] | None = None
    told: deque[str] = deque(maxlen=KEPT)
    in_place = sys.stdout.isatty()
    try:
        while True:
            for words in changes(before, picture):
                told.append(f"{time.strftime('%H:%M:%S')}  {words}")
                if not in_place:
                    click.echo(told[-1])
            if in_place:
                _draw(picture, told)
            before = picture
            time.sleep(interval)
            picture = _ask(config)
    except KeyboardInterrupt:
        click.echo()


def _ask(config: AgentConfig) -> dict[str, Any] | None:
    try:
        return local.status(config)
    except UnreachableError:  # it restarts: that is worth watching
        return None


def _draw(picture: dict[str, Any] | None, told: deque[str]) -> None:
    click.echo(_CLEAR, nl=False)
    if picture is None:
        click.echo("! the agent on this machine does not answer")
    else:
        print_status(picture)
    click.echo()
    for line in told:
        click.echo(line)
