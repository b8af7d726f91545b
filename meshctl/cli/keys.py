"""`meshctl keys`: how old they are, new ones for nodes, and the proof that every pair followed (NET-5, MESH-ROT-001).

For the operator, on the coordinator's machine: it speaks to the root-only socket of `mesh-coordinator`.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from meshctl import terminal
from meshctl.errors import UnreachableError
from meshctl.mesh.rotation import Gaps, Phase
from meshctl.wire import desk, operator, turns
from meshctl.wire.turns import RotationState, TurnEnded

EXIT_STRAGGLERS = 11
LOOK_EVERY_S = 0.1
PATIENCE_S = 10.0  # for a coordinator that restarts while we wait
DATA_DIR = click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=desk.DEFAULT_DIRECTORY,
    show_default=True,
    envvar="MESH_COORDINATOR_DATA_DIR",
    help="Data of the coordinator on this machine.",
)
WAIT = click.option("--wait", is_flag=True, help="Show progress, and return when it is over (exit 11: not everywhere).")
TIMEOUT = click.option(
    "--timeout", type=terminal.Duration(), default="1h", show_default=True, help="How long --wait waits."
)
JSON = click.option("--json", "as_json", is_flag=True, help="As JSON.")


@click.group()
def keys() -> None:
    """WireGuard keys of the mesh: their age, and rotation without losing a packet."""


def _call(data_dir: Path, method: str, request: Any) -> Any:
    return desk.call(desk.directory(data_dir), method, request)


@keys.command("list")
@click.option("--older-than", type=terminal.Duration(), default=0, help="Only keys of this age, e.g. 30d.")
@JSON
@DATA_DIR
def list_(older_than: float, as_json: bool, data_dir: Path) -> None:
    """Every node's key: its age, and the serial of the statement that names it."""
    now = time.time()
    states = operator.states(_call(data_dir, "NodeList", operator.nothing()))
    found = sorted((s for s in states if now - s.key_made_at >= older_than), key=lambda s: s.key_made_at)
    if as_json:
        terminal.echo_json([
            {"node": s.node.name, "id": s.node.id, "key": str(s.node.statement.wireguard), "age_s": now - s.key_made_at,
             "serial": s.node.statement.serial, "connected": s.connected} for s in found
        ])  # fmt: skip
        return
    rows = (
        (s.node.name, terminal.age(now - s.key_made_at), s.node.statement.serial, s.node.statement.wireguard,
         "up" if s.connected else "down") for s in found
    )  # fmt: skip
    terminal.table(("NODE", "AGE", "SERIAL", "KEY", "LINK"), rows)


@keys.command()
@click.option("--node", multiple=True, metavar="NAME", help="This node, by name or id; repeatable.")
@click.option("--tag", multiple=True, help="All nodes with this tag; repeatable.")
@click.option("--all", "everybody", is_flag=True, help="Every node.")
@click.option("--force", is_flag=True, help="Also where peers with a live tunnel have not acknowledged the next key.")
@click.option("--reason", default="", help="Kept in the registry and in the event log.")
@WAIT
@TIMEOUT
@DATA_DIR
def rotate(
    node: tuple[str, ...],
    tag: tuple[str, ...],
    everybody: bool,
    force: bool,
    reason: str,
    wait: bool,
    timeout: float,
    data_dir: Path,
) -> None:
    """New WireGuard keys, one node after the other; each pair is proven before the next node's turn.

    A peer that has a live tunnel and does not acknowledge postpones its node's turn, and is named.
    """
    begun = turns.state(_call(data_dir, "Rotate", turns.rotate_request(node, tag, everybody, force, reason)))
    click.echo(f"rotation {begun.id} of {begun.targets} nodes is open")
    if wait:
        _wait(data_dir, begun, timeout)
    else:
        click.echo("meshctl keys status --wait shows how it goes")


@keys.command()
@WAIT
@TIMEOUT
@JSON
@DATA_DIR
def status(wait: bool, timeout: float, as_json: bool, data_dir: Path) -> None:
    """The open rotation or the last one: whose turn it is, what is proven, who is missing."""
    state = _state(data_dir)
    if as_json:
        terminal.echo_json(state)
    elif not state.id:
        click.echo("no key was rotated yet")
    elif wait and state.is_open:
        _wait(data_dir, state, timeout)
    else:
        _print(state)
        raise click.exceptions.Exit(EXIT_STRAGGLERS if state.failed else 0)


@keys.command()
@DATA_DIR
def cancel(data_dir: Path) -> None:
    """No further turns; a node that may switch already is seen through."""
    state = turns.state(_call(data_dir, "RotationCancel", operator.nothing()))
    click.echo(f"rotation {state.id} is cancelled: {state.done} of {state.targets} nodes were rotated")


def _state(data_dir: Path) -> RotationState:
    return turns.state(_call(data_dir, "Rotation", operator.nothing()))


def _wait(data_dir: Path, state: RotationState, timeout_s: float) -> None:
    deadline, told, silent_since = time.monotonic() + timeout_s, 0, None
    with click.progressbar(
        length=state.targets, label="rotating", show_eta=True, show_pos=True, item_show_func=lambda words: words or "",
        file=sys.stderr, hidden=not sys.stderr.isatty(),
    ) as bar:  # fmt: skip
        while state.is_open and time.monotonic() < deadline:
            time.sleep(LOOK_EVERY_S)
            try:
                fresh, silent_since = _state(data_dir), None
            except UnreachableError:  # it restarts: the rotation is in the registry
                silent_since = silent_since or time.monotonic()
                if time.monotonic() - silent_since > PATIENCE_S:
                    raise
                continue
            if fresh.id != state.id:  # ours is over, and somebody has opened another
                break
            state = fresh
            for how in state.ended[len(state.ended) - (state.turns_ended - told) :] if state.turns_ended > told else ():
                told += 1
                if bar.hidden:
                    click.echo(_sentence(how))
            bar.update(state.turns_ended - bar.pos, _now(state))
    _print(state)
    if state.is_open or state.failed:
        raise click.exceptions.Exit(EXIT_STRAGGLERS)


def _now(state: RotationState) -> str:
    if state.phase == Phase.PREPARE:
        return f"{state.node}: waiting for {len(state.waiting) or 'it'}"
    return f"{state.node}: {state.proven} of {state.pairs} pairs"


def _ms(gaps: Gaps) -> str:
    return f"gap p50 {gaps.p50 * 1e3:.0f} ms, worst {gaps.worst * 1e3:.0f} ms" if gaps.worst else "gap not measured"


def _sentence(how: TurnEnded) -> str:
    if how.why:
        named = f" ({', '.join(how.waiting)})" if how.waiting else ""
        return f"! {how.node}: {how.why}{named}"
    missing = f"; not proven: {', '.join(how.waiting)}" if how.waiting else ""
    both = f"out: {_ms(how.out)}; in: {_ms(how.into)}" if how.pairs else "no live peer"
    return f"{how.node}: {how.proven} of {how.pairs} pairs proven, {both}{missing}"


def _print(state: RotationState) -> None:
    took = (state.closed_at or time.time()) - state.opened_at
    if state.is_open:
        click.echo(f"rotation {state.id} by {state.actor}, open for {terminal.age(took)}: {state.left} turns are left")
        waiting = f", waiting for {', '.join(state.waiting)}" if state.waiting else ""
        click.echo(f"now {state.node}: {state.phase}, {state.proven} of {state.pairs} pairs proven{waiting}")
    how = "cancelled: " if state.cancelled else ""
    click.echo(
        f"{how}rotated {state.done} of {state.targets} nodes in {took:.1f} s: {state.all_proven} of {state.all_pairs} "
        f"proofs, {_ms(state.gap)}"
    )
    for one in state.failed:
        click.echo(_sentence(one) if one.why else f"! {_sentence(one)}")
