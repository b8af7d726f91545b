"""`mesh-coordinator status`: the whole mesh on one page, from whichever coordinator is asked (OPS-2, MON-6).

Prints what the coordinator tells; lines that begin with `!` deserve attention. Decides nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import click

from coordinator.cli.local import DATA_DIR, call, directory
from meshctl import terminal
from meshctl.wire import operator, overview
from meshctl.wire.overview import CoordinatorState, Overview

OLD_S = 5.0  # etcd is asked every 2 s


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@DATA_DIR
def status(data_dir: Path, as_json: bool) -> None:
    """The mesh, its coordinators, etcd and the rotation, and what deserves attention."""
    state = overview.status(call(directory(data_dir), "Status", operator.nothing()))
    if as_json:
        terminal.echo_json(state)
        return
    mesh = state.mesh
    click.echo(f"mesh {mesh.name} ({mesh.id})   {mesh.prefix4}  {mesh.prefix6}   release {state.release}")
    spread = f"{state.oldest} to {state.newest}" if state.oldest != state.newest else str(state.newest)
    click.echo(
        f"revision {state.revision}   nodes {state.nodes}   connected {state.connected}   "
        f"at this revision {state.converged}   applied {spread if state.connected else '-'}"
    )
    samples = sum(one.samples for one in state.coordinators if not one.silent)
    shown = (
        f"p50 {state.p50:.2f} s  p99 {state.p99:.2f} s ({samples} acknowledgements)" if samples else "not measured yet"
    )
    click.echo(f"convergence {shown}   node releases {_releases(state)}")
    click.echo(f"keys {_rotation(state)}")
    click.echo(f"coordinators {', '.join(mesh.coordinators)}   {state.etcd}")
    terminal.table(("COORDINATOR", "HEARD", "NODES", "BEHIND", "REVISION", "P50", "P99", "UP", "RELEASE"), _rows(state))
    for endpoint in state.endpoints:
        role = "leader" if endpoint.leader else "follower"
        told = f"{role}   {endpoint.version}   {endpoint.size / 1e6:.1f} MB" if endpoint.version else "down"
        click.echo(f"etcd {endpoint.address}   {told}" + (f"   {endpoint.words}" if endpoint.words else ""))
    for line in attention(state):
        click.echo(f"! {line}")


def _rows(state: Overview) -> Iterator[tuple[object, ...]]:
    now = time.time()
    for one in state.coordinators:
        heard = (
            "here" if one.here else f"silent {terminal.age(one.age)}" if one.silent else f"{terminal.age(one.age)} ago"
        )
        up = terminal.age(now - one.started)
        figures = (f"{one.p50:.2f}s", f"{one.p99:.2f}s") if one.samples else ("-", "-")
        yield one.name, heard, one.connected, one.behind, one.revision, *figures, up, one.release


def _releases(state: Overview) -> str:
    return ", ".join(f"{release} ({nodes})" for release, nodes in state.releases) or "-"


def _rotation(state: Overview) -> str:
    rotation = state.rotation
    if not rotation.id:
        return "not rotated yet"
    if rotation.is_open:
        return f"rotating: {rotation.done} of {rotation.targets} nodes, now {rotation.node} ({rotation.phase})"
    ended, gap_ms = terminal.age(time.time() - rotation.closed_at), rotation.gap.worst * 1e3
    return f"rotated {rotation.done} of {rotation.targets} nodes {ended} ago, longest gap {gap_ms:.0f} ms"


def attention(state: Overview) -> Iterator[str]:
    """What somebody should look at, with where to look."""
    if state.mesh.policy == "allow-all":
        yield "policy: allow-all"
    if state.registry_age > OLD_S:
        yield f"etcd has not answered for {terminal.age(state.registry_age)}: what is shown may be as old; nodes go on"
    if state.connected > state.converged:
        yield f"{state.connected - state.converged} connected nodes are behind -> mesh-coordinator nodes list"
    for one in state.coordinators:
        if one.silent:
            yield f"coordinator {one.name} has been silent for {terminal.age(one.age)}"
    for endpoint in state.endpoints:
        if not endpoint.ok:
            yield f"etcd {endpoint.address}: {endpoint.words}"
    yield from _namesakes(state.coordinators)
    if state.rotation.failed:
        yield f"{len(state.rotation.failed)} nodes have no new key, or not on every pair -> meshctl keys status"


def _namesakes(coordinators: tuple[CoordinatorState, ...]) -> Iterator[str]:
    """A copied coordinator.toml claims its model's address: nodes would never find the copy."""
    seen: dict[str, str] = {}
    for one in coordinators:
        if not one.silent and one.addresses:
            if one.addresses[0] in seen:
                yield f"two coordinators say that they are {one.name}: start one with its own --advertise"
            seen[one.addresses[0]] = one.id
