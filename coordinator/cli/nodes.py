"""`mesh-coordinator nodes` and `revoke`: see them, let them go, and see that they are gone (ACC-5, NET-2)."""

from __future__ import annotations

import base64
import time
from pathlib import Path

import click

from coordinator.cli.local import DATA_DIR, call, directory
from meshctl import terminal
from meshctl.errors import RefusedError, UnreachableError
from meshctl.wire import operator
from meshctl.wire.operator import NodeState

EXIT_STRAGGLERS = 11


@click.group()
def nodes() -> None:
    """Members of the mesh."""


def _all(data_dir: Path) -> tuple[tuple[NodeState, ...], int]:
    answer = call(directory(data_dir), "NodeList", operator.nothing())
    return operator.states(answer), answer.revision


def _row(state: NodeState, revision: int, *, now: float) -> tuple[object, ...]:
    node = state.node
    link = "not yet" if not state.since else ("up " if state.connected else "down ") + terminal.age(now - state.since)
    link += f" at {state.via}" if state.via else ""
    lag = "-" if not state.connected else "current" if state.applied >= revision else f"{state.applied} < {revision}"
    held = "-" if not state.connected else "ok" if state.digest_ok else "differs"
    return node.name, node.address4, link, lag, held, state.verdict, ",".join(node.tags) or "-", node.id


@nodes.command("list")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@DATA_DIR
def list_(data_dir: Path, as_json: bool) -> None:
    """All members: link to the coordinator, revision applied, kernel digest, health."""
    found, revision = _all(data_dir)
    if as_json:
        terminal.echo_json([_plain(state) for state in found])
        return
    now = time.time()
    ordered = sorted(found, key=lambda s: int(s.node.address4))
    terminal.table(
        ("NODE", "ADDRESS", "LINK", "REVISION", "KERNEL", "HEALTH", "TAGS", "ID"),
        [_row(s, revision, now=now) for s in ordered],
    )
    names = {s.node.id: s.node.name for s in found}
    for state in ordered:
        for row in state.findings:
            about = f" {names.get(row.subject, row.subject)}" if row.subject else ""  # type: ignore[call-overload]
            click.echo(f"! {row.code} {state.node.name}{about}: {row.evidence} (for {terminal.age(now - row.since)})")


@nodes.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@DATA_DIR
def show(data_dir: Path, name: str, as_json: bool) -> None:
    """Everything known of one member, by name or id."""
    found, revision = _all(data_dir)
    state = next((s for s in found if name in (s.node.name, s.node.id)), None)
    if state is None:
        raise RefusedError(f"this mesh has no node {name!r}", "mesh-coordinator nodes list")
    if as_json:
        terminal.echo_json(_plain(state))
        return
    node = state.node
    for key, value in (
        ("name", node.name),
        ("id", node.id),
        ("addresses", f"{node.address4}  {node.address6}"),
        ("tags", ", ".join(node.tags) or "-"),
        ("WireGuard key", node.statement.wireguard),
        ("serial", node.statement.serial),
        ("joined at revision", node.joined),
        ("endpoints", ", ".join(f"{c.endpoint} ({c.origin})" for c in node.candidates) or "-"),
        ("connected", f"{'yes' if state.connected else 'no'}, {_where(state)}"),
        ("release", state.release or "-"),
        ("applied", f"{state.applied} of {revision}"),
        ("kernel digest", "as expected" if state.digest_ok else "not as expected"),
        ("health", state.verdict),
        ("ephemeral", "yes" if state.ephemeral else "no"),
    ):
        click.echo(f"{key:>20}  {value}")


def _where(state: NodeState) -> str:
    return f"at {state.via}" if state.via else f"from {state.seen_address or '-'}"


def _plain(state: NodeState) -> dict[str, object]:
    node = state.node
    return {
        "id": node.id,
        "name": node.name,
        "address4": str(node.address4),
        "address6": str(node.address6),
        "tags": node.tags,
        "wireguard_key": str(node.statement.wireguard),
        "device_key": base64.b64encode(node.statement.device_key).decode(),
        "serial": node.statement.serial,
        "joined": node.joined,
        "endpoints": [{"endpoint": str(c.endpoint), "origin": str(c.origin)} for c in node.candidates],
        "connected": state.connected,
        "via": state.via,
        "release": state.release,
        "since": state.since,
        "applied": state.applied,
        "digest_ok": state.digest_ok,
        "verdict": state.verdict,
        "ephemeral": state.ephemeral,
        "findings": state.findings,
    }


def _wait(data_dir: Path, revision: int, timeout_s: float, what: str) -> None:
    try:
        reply = call(data_dir, "Applied", operator.applied_request(revision, timeout_s), timeout_s + 10)
    except UnreachableError as error:
        hint = f"ask again, here or at another coordinator: mesh-coordinator applied {revision}"
        raise UnreachableError(f"{what} stands, but who applied it is not known: {error.what}", hint) from error
    click.echo(f"{what}: applied by {reply.applied} members in {reply.seconds:.2f} s")
    if reply.waiting:
        more = reply.waiting - len(reply.stragglers)
        click.echo(f"not yet by: {', '.join(reply.stragglers)}" + (f" and {more} more" if more else ""))
        raise click.exceptions.Exit(EXIT_STRAGGLERS)


WAIT = click.option(
    "--wait", is_flag=True, help="Return when every member has applied it; name those that have not (exit 11)."
)
TIMEOUT = click.option(
    "--timeout", type=terminal.Duration(), default="30s", show_default=True, help="How long --wait waits."
)
REASON = click.option("--reason", default="", help="Kept in the registry and in the event log.")


@nodes.command("rm")
@click.argument("name")
@WAIT
@TIMEOUT
@REASON
@DATA_DIR
def remove(data_dir: Path, name: str, wait: bool, timeout: float, reason: str) -> None:
    """Take a node off the mesh; it may come back with a new token."""
    done = call(directory(data_dir), "NodeRemove", operator.named(name, reason))
    click.echo(f"node {name} is removed at revision {done.revision}")
    if wait:
        _wait(data_dir, done.revision, timeout, f"removal of {name}")


@click.command()
@click.argument("name")
@WAIT
@TIMEOUT
@REASON
@DATA_DIR
def revoke(data_dir: Path, name: str, wait: bool, timeout: float, reason: str) -> None:
    """Throw a node out for good: its connection is cut, every peer drops its key, it cannot join again."""
    done = call(directory(data_dir), "Revoke", operator.named(name, reason))
    click.echo(f"node {name} is revoked at revision {done.revision}")
    if wait:
        _wait(data_dir, done.revision, timeout, f"revocation of {name}")


@click.command()
@click.argument("revision", type=click.IntRange(min=1), required=False)
@TIMEOUT
@DATA_DIR
def applied(data_dir: Path, revision: int | None, timeout: float) -> None:
    """Wait until every member has applied REVISION, by default the newest; name those that have not (exit 11).

    What --wait does, for a change that was made before or at another coordinator.
    """
    _wait(directory(data_dir), revision or 0, timeout, f"revision {revision}" if revision else "the newest revision")
