"""`meshctl netcheck`: can this machine reach its coordinators, and what is on the way, in sentences (NET-1, OPS-4).

Before joining with the token, after it with the membership. Prints; mesh/ways.py judges. The shape of --json:

    verdict   sentences [{about, verdict, words, remedy}], about: reach, address, udp, nat, filter, port, mtu or clock
    ways [{address, error, hint, trusted, connect_s, source, seen, offset_s, mtu, udp, looks [{address, version, answer,
    source, seen, seen_second, unasked, rtt_s, passes, lost}]}]

See Way (mesh/ways.py) and Look (mesh/nat.py) for what each is. Fields are only ever added.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import asdict

import click

from meshctl import terminal
from meshctl.cli.options import CONFIG, settings
from meshctl.config import AgentConfig
from meshctl.errors import EnvironmentFault, NotJoinedError, UsageError
from meshctl.mesh import host_checks, integrity, ways
from meshctl.mesh.catalogue import Verdict
from meshctl.mesh.token import JoinToken


@click.command()
@click.argument("token", required=False)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@CONFIG
def netcheck(token: str | None, as_json: bool, **flags: object) -> None:
    """Is the network good enough: coordinators reached and trusted, UDP, NAT, firewall, MTU, clock. Changes nothing.

    TOKEN, @FILE or - for standard input (or env for MESHCTL_TOKEN); without one, the coordinators of the mesh that this
    machine is in. Sends to coordinators alone, and no secret of the token. UDP is tried from WireGuard's port if it is
    free, to the port number of each coordinator and a second one that it names: where does the world see this machine,
    does a NAT show it to all alike (easy) or not (hard), what gets in, and up to which size. Takes 10 s at most where
    nothing answers.

    Exit code: 0 all is well, 1 degraded, 2 failed, 3 unknown.
    """
    from meshctl.agent import netcheck as shell

    config = settings(flags)
    addresses, ca, port = _coordinators(config, token)
    seen = asyncio.run(shell.look(addresses, ca, port))
    sentences = ways.judge(seen, port)
    verdict = host_checks.overall([sentence.verdict for sentence in sentences])
    if as_json:
        told = [{**sentence._asdict(), "verdict": str(sentence.verdict)} for sentence in sentences]
        terminal.echo_json({"verdict": str(verdict), "sentences": told, "ways": [asdict(way) for way in seen]})
    else:
        for sentence in sentences:
            mark = "" if sentence.verdict is Verdict.OK else "! "
            click.echo(f"{mark}{sentence.words}" + (f" -> {sentence.remedy}" if sentence.remedy else ""))
    raise click.exceptions.Exit(integrity.exit_code(verdict))


def _coordinators(config: AgentConfig, given: str | None) -> tuple[tuple[str, ...], bytes, int]:
    """(addresses, the CA or its anchor, WireGuard's UDP port)."""
    from meshctl.crypto import pki

    if given is not None:
        text = os.environ.get("MESHCTL_TOKEN", "") if given == "env" else terminal.secret_argument(given, "token")
        token = JoinToken.parse(text)
        return token.coordinators, pki.anchor(token.mesh, token.ca_key), config.listen_port
    from meshctl.agent.join import Member
    from meshctl.agent.store import Store

    store = Store(config.state_dir)
    try:
        (config.state_dir / "membership").stat()  # exists() would take what is hidden from us for absent
        member = Member.load(store)
    except (FileNotFoundError, NotADirectoryError):
        raise NotJoinedError("this machine is in no mesh", "meshctl netcheck @TOKENFILE") from None
    except PermissionError as error:
        raise EnvironmentFault("the membership of this machine is for root", "sudo meshctl netcheck") from error
    if not member.mesh.coordinators:
        raise UsageError("this mesh names no coordinator", "meshctl netcheck @TOKENFILE")
    return member.mesh.coordinators, member.mesh.ca, member.saved.listen_port
