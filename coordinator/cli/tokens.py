"""`mesh-coordinator token`: create, list, revoke (ACC-3)."""

from __future__ import annotations

import time
from pathlib import Path

import click

from coordinator.cli.local import DATA_DIR, call, directory
from meshctl import terminal
from meshctl.mesh.model import check_tag
from meshctl.wire import operator


@click.group()
def token() -> None:
    """Join tokens."""


@token.command()
@click.option(
    "--expires",
    type=terminal.Duration(),
    default="1h",
    show_default=True,
    help="How long it can be used: 30m, 12h, 7d.",
)
@click.option(
    "--uses", type=click.IntRange(1, 100_000), default=1, show_default=True, help="How many nodes may join with it."
)
@click.option("--tag", multiple=True, help="Tag that nodes joining with it get; repeatable.")
@click.option("--ephemeral", is_flag=True, help="Nodes joining with it are removed after 10 minutes offline.")
@click.option("--note", default="", help="What it is for; shown in the list.")
@DATA_DIR
def create(data_dir: Path, expires: float, uses: int, tag: tuple[str, ...], ephemeral: bool, note: str) -> None:
    """Print a new token, once; only its hash is kept."""
    request = operator.token_request(expires, uses, tuple(check_tag(t) for t in tag), ephemeral, note[:200])
    made = call(directory(data_dir), "TokenCreate", request)
    click.echo(made.text)
    click.echo(
        f"token {made.id}: {uses} use{'s' if uses > 1 else ''}, {terminal.age(expires)}. "
        "On the new node: meshctl join TOKEN",
        err=True,
    )


@token.command("list")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@DATA_DIR
def list_(data_dir: Path, as_json: bool) -> None:
    """All tokens, newest first; never their secrets."""
    found = operator.tokens(call(directory(data_dir), "TokenList", operator.nothing()))
    if as_json:
        terminal.echo_json(
            [
                {
                    "id": t.id,
                    "created": t.created,
                    "expires": t.expires,
                    "uses": t.uses,
                    "tags": t.tags,
                    "ephemeral": t.ephemeral,
                    "revoked": t.revoked,
                    "used_by": t.used_by,
                    "note": t.note,
                }
                for t in found
            ]
        )
        return
    now = time.time()
    rows = []
    for t in found:
        state = "revoked" if t.revoked else "expired" if now >= t.expires else "used up" if not t.uses else "open"
        rows.append(
            (
                t.id,
                state,
                t.uses,
                len(t.used_by),
                terminal.when(t.expires, now=now),
                ",".join(t.tags) or "-",
                t.note or "-",
            )
        )
    terminal.table(("TOKEN", "STATE", "USES LEFT", "USED", "EXPIRES", "TAGS", "NOTE"), rows)


@token.command()
@click.argument("token_id")
@DATA_DIR
def revoke(data_dir: Path, token_id: str) -> None:
    """Nobody joins with it any more. Nodes that did stay."""
    call(directory(data_dir), "TokenRevoke", operator.named(token_id))
    click.echo(f"token {token_id} is revoked")
