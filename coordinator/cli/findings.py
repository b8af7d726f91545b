"""`mesh-coordinator findings verify`: does a log say what the nodes signed? Offline, from its lines alone (MON-1)."""

from __future__ import annotations

import time
from pathlib import Path

import click

from coordinator.testimony import LINE_BYTES, audited
from meshctl.errors import EnvironmentFault, TrustError


@click.group()
def findings() -> None:
    """What nodes found, as they signed it."""


@findings.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--node", default="", metavar="ID", help="Only lines of this node, by its id.")
def verify(file: Path, node: str) -> None:
    """Check the signature of each line of FILE that tells of a node's finding; FILE is an event log.

    Needs no coordinator and no key: a node's id is the hash of the key in its lines. It shows that no line was made up
    or altered, not that none is missing. Exit code 8 when a line does not verify.
    """
    good = bad = 0
    try:
        with file.open("rb") as opened:
            for number, told in audited(iter(lambda: opened.readline(LINE_BYTES + 1), b"")):
                if isinstance(told, str):
                    bad += 1
                    click.echo(f"! line {number}: {told}")
                elif node in ("", told.node):
                    good += 1
                    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(told.at_ms / 1000))
                    about = f" {told.subject}" if told.subject else ""
                    what = "closed" if told.closed else f"opened {told.verdict}"
                    click.echo(f"{stamp} {told.node} {what} {told.code}{about}: {told.evidence!r}")
    except OSError as error:
        raise EnvironmentFault(f"cannot read {file}: {error.strerror}", "name an event log of a coordinator") from error
    click.echo(f"{good} lines verify, {bad} do not", err=True)
    if bad:
        raise TrustError(f"{bad} lines of {file} are not what a node signed", "compare with another copy of the log")
