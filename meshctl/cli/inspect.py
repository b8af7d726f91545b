"""status, ping, health: what the agent knows, for people and for monitoring (MON-6, NET-7)."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import quote

import click

from meshctl import terminal
from meshctl.cli import local
from meshctl.cli.options import CONFIG, settings
from meshctl.config import AgentConfig
from meshctl.errors import MeshError, RefusedError
from meshctl.mesh import integrity, limits
from meshctl.mesh.catalogue import Verdict

_WORDS = {Verdict.OK: "OK", Verdict.DEGRADED: "WARNING", Verdict.FAILED: "CRITICAL", Verdict.UNKNOWN: "UNKNOWN"}


def _seconds(value: float | None) -> str:
    return "never" if value is None else terminal.age(value)


def _peer_row(peer: dict[str, Any], *, narrow: bool) -> tuple[object, ...]:
    """`narrow`: there is a column for the paths that do not take full packets."""
    rtt = "-" if peer["rtt_ms"] is None else f"{peer['rtt_ms']:.1f}ms"
    loss = "-" if peer["loss"] is None else f"{peer['loss']:.0%}"
    proven = peer["proven"]
    shown = f"{proven['ok']}/{proven['of']} {_seconds(proven['age_s'])}" if proven["ok"] else f"0/{proven['of']}"
    path = f"direct {peer['endpoint']}" if peer["endpoint"] else "none"
    head = peer["name"], peer["address4"], path, _seconds(peer["handshake_age_s"]), rtt, loss
    mtu = (peer.get("mtu") or "full",) if narrow else ()
    return *head, *mtu, shown, peer["state"]


def print_findings(findings: list[dict[str, Any]]) -> None:
    """One `!` line each, to be grepped."""
    for f in findings:
        about = f" {f['subject_name']}" if f["subject_name"] else ""
        click.echo(f"! {f['code']}{about}: {f['evidence']} ({terminal.age(f['age_s'])}) -> {f['remedy']}")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@CONFIG
def status(as_json: bool, **flags: object) -> None:
    """This node, its peers with evidence and age, and what deserves attention.

    Exit code: 0 when all is well, 1 degraded, 2 failed, 3 unknown; 4 not joined, 6 the agent does not answer.
    """
    picture = local.status(settings(flags))
    if as_json:
        terminal.echo_json(picture)
    else:
        print_status(picture)
    raise click.exceptions.Exit(integrity.exit_code(Verdict(picture["verdict"])))


def print_status(picture: dict[str, Any]) -> None:
    """Header, one line per peer, and what deserves attention."""
    node, mesh, link, key = picture["node"], picture["mesh"], picture["link"], picture["keys"]
    wireguard = picture["interface"]["kind"]
    applied = f"revision {picture['revision']['applied']} applied {_seconds(picture['revision']['age_s'])} ago"
    click.echo(
        f"mesh {mesh['name']}   node {node['name']}   {node['address4']}   {applied}   {wireguard} WireGuard   "
        f"key {terminal.age(key['age_s'])} old"
    )
    if link["connected"]:
        click.echo(f"coordinator {link['coordinator']} connected {_seconds(link['age_s'])}")
    else:
        why = f": {link['error']}" if link["error"] else ""
        click.echo(
            f"! coordinator {link['coordinator'] or '-'} not connected since {_seconds(link['age_s'])}{why}; "
            "the mesh works on"
        )
    if picture["peers"]:
        narrow = any(peer.get("mtu") for peer in picture["peers"])
        head = ("PEER", "ADDRESS", "PATH", "HANDSHAKE", "RTT", "LOSS", *(("MTU",) if narrow else ()), "PROVEN", "STATE")
        terminal.table(head, (_peer_row(peer, narrow=narrow) for peer in picture["peers"]))
    else:
        click.echo("no peers yet: this is the only node of the mesh")
    if mesh["policy"] == "allow-all":
        click.echo("! policy: allow-all")
    print_findings(picture["findings"])


@click.command()
@click.argument("peer")
@click.option("-c", "--count", type=click.IntRange(1, 100), default=4, show_default=True, help="How many echoes.")
@CONFIG
def ping(peer: str, count: int, **flags: object) -> None:
    """Authenticated echoes through the tunnel to PEER (name, id or mesh address)."""
    config = settings(flags)
    lost = 0
    for number in range(count):
        answer, waited = _echo(config, peer)
        name = f"{answer['name']} ({answer['address4']})"
        if answer["ok_age_s"] is not None and answer["ok_age_s"] <= waited:
            click.echo(f"echo {number + 1} from {name} via {answer['endpoint']}: {answer['rtt_ms']:.1f} ms, tag valid")
        else:
            lost += 1
            click.echo(f"echo {number + 1} to {name} via {answer['endpoint']}: no answer within {waited:.1f} s")
    click.echo(f"{count - lost} of {count} echoes proven")
    raise click.exceptions.Exit(0 if lost == 0 else 1 if lost < count else 2)


def _echo(config: AgentConfig, peer: str) -> tuple[dict[str, Any], float]:
    """Send one echo now and look until it is answered or lost -> (what the agent says, seconds waited)."""
    begun = time.monotonic()
    target = f"/echo?peer={quote(peer)}"
    answer = local.ask(config, target + "&kick")
    while "error" not in answer:
        waited = time.monotonic() - begun
        if (answer["ok_age_s"] is not None and answer["ok_age_s"] <= waited) or waited > limits.ECHO_LOST_AFTER_S:
            return answer, waited
        time.sleep(0.02)
        answer = local.ask(config, target)
    raise RefusedError(answer["error"], "meshctl status lists the peers")


@click.command()
@click.option(
    "--mesh", "whole", is_flag=True, help="Also what the coordinator finds by joining both ends of each pair."
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@CONFIG
def health(whole: bool, as_json: bool, **flags: object) -> None:
    """One line for monitoring, made of evidence with an age.

    Exit code: 0 ok, 1 warning, 2 critical, 3 unknown.
    """
    try:
        picture = local.status(settings(flags))
    except MeshError as error:
        if as_json:
            terminal.echo_json({"verdict": "unknown", "why": error.what})
        else:
            click.echo(f"UNKNOWN: {error.what}")
        raise click.exceptions.Exit(3) from None
    findings = [*picture["findings"], *(picture["mesh_findings"] if whole else [])]
    verdict = Verdict(picture["verdict"])
    if whole and picture["mesh_findings"] and verdict in {Verdict.OK, Verdict.UNKNOWN}:
        verdict = Verdict.DEGRADED
    if whole and not picture["link"]["connected"] and verdict is Verdict.OK:
        verdict = Verdict.UNKNOWN
    if as_json:
        terminal.echo_json(
            {"verdict": str(verdict), "ready": picture["ready"], "rows": picture["rows"], "findings": findings}
        )
    else:
        peers, rows = picture["peers"], picture["rows"]
        proven = f"{sum(p['state'] == 'ok' for p in peers)} of {len(peers)} peers proven"
        checks = f"{sum(row['verdict'] == 'ok' for row in rows)} of {len(rows)} checks ok"
        click.echo(f"{_WORDS[verdict]}: {proven}, {checks}, findings: {len(findings)}")
        print_findings(findings)
    raise click.exceptions.Exit(integrity.exit_code(verdict))
