"""`meshctl doctor`: what of this host would hurt the mesh, with the command that repairs it, and the catalogue (NET-7).

Before and after joining, as root or not. Asks, and prints; the judgement is mesh/host_checks.py's.
"""

from __future__ import annotations

from typing import Any

import click

from meshctl import terminal
from meshctl.cli import local
from meshctl.cli.inspect import print_findings
from meshctl.cli.options import CONFIG, settings
from meshctl.config import AgentConfig
from meshctl.errors import MeshError
from meshctl.mesh import host_checks, integrity
from meshctl.mesh.catalogue import CATALOGUE, Verdict
from meshctl.mesh.host_checks import Facts, HostRow


@click.command()
@click.option("--list", "as_list", is_flag=True, help="Print the integrity catalogue instead: what is tested, and how.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@CONFIG
def doctor(as_list: bool, as_json: bool, **flags: object) -> None:
    """Look at this host: what would hurt the mesh, the evidence, and the command that repairs it. Changes nothing.

    Exit code: 0 all is well, 1 degraded, 2 failed, 3 something could not be looked at.
    """
    config = settings(flags)
    if as_list:
        _print_catalogue(as_json=as_json)
        return
    from meshctl.agent import host_facts

    picture, silence = _ask(config)
    facts = host_facts.gather(config, picture, silence)
    rows = host_checks.judge(facts)
    findings = picture["findings"] if picture else []
    verdict = host_checks.overall([row.verdict for row in rows])
    if as_json:
        shown = [{**row._asdict(), "verdict": str(row.verdict)} for row in rows]
        terminal.echo_json({"verdict": str(verdict), "joined": facts.joined, "checks": shown, "findings": findings})
    else:
        _print(facts, rows)
        print_findings(findings)
    raise click.exceptions.Exit(integrity.exit_code(verdict))


def _ask(config: AgentConfig) -> tuple[dict[str, Any] | None, str]:
    try:
        return local.status(config), ""
    except (MeshError, PermissionError) as error:
        return None, error.what if isinstance(error, MeshError) else "the state directory is for root"


def _print(facts: Facts, rows: tuple[HostRow, ...]) -> None:
    fine = sum(row.verdict is Verdict.OK for row in rows)
    member = {True: "a member", False: "in no mesh yet", None: "perhaps a member"}[facts.joined]
    click.echo(
        f"this host is {member}   interface {facts.interface}   UDP {facts.port}   {fine} of {len(rows)} checks ok"
    )
    terminal.table(("CHECK", "STATE", "EVIDENCE"), [(row.code, row.verdict, row.evidence) for row in rows])
    for row in rows:
        if row.verdict is not Verdict.OK:
            click.echo(f"! {row.code}: {row.evidence}" + (f" -> {row.command}" if row.command else ""))


def _print_catalogue(*, as_json: bool) -> None:
    if as_json:
        terminal.echo_json([
            {"code": check.code, "title": check.title, "severity": str(check.severity), "scope": str(check.scope),
             "claim": check.claim, "evidence": check.evidence, "depends_on": check.depends_on, "grace_s": check.grace_s,
             "remedy": check.remedy, "deep": check.deep, "anchor": check.anchor} for check in CATALOGUE.values()
        ])  # fmt: skip
        return
    for check in CATALOGUE.values():
        click.echo(f"{check.code}  {check.severity}  {check.title}")
        click.echo(f"    claim    {check.claim}")
        click.echo(f"    proof    {check.evidence}{'  (tried in turn, not with every echo)' if check.deep else ''}")
        click.echo(f"    remedy   {check.remedy}")
    click.echo(f"{len(CATALOGUE)} claims about the mesh; {len(host_checks.CLAIMS)} about this host:")
    for code, claim in host_checks.CLAIMS.items():
        click.echo(f"{code:<14}  {claim}")
