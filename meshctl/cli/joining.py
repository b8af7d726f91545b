"""join, up, leave, plan: the verbs that touch this machine (NET-1, NET-4, OPS-4)."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import click

from meshctl import terminal
from meshctl.agent.device import is_installed
from meshctl.agent.store import Store
from meshctl.cli import local
from meshctl.config import AgentConfig
from meshctl.errors import EnvironmentFault, MeshError, UnreachableError, UsageError
from meshctl.mesh.model import Endpoint, check_name, check_tag
from meshctl.mesh.token import JoinToken

UNIT = "meshctl.service"
PROVEN_WITHIN_S = 20.0


def run(config: AgentConfig, given: str, name: str, tags: tuple[str, ...], stay: bool) -> None:
    """Join, then bring the mesh up: as a systemd unit, here, or by telling how."""
    begun = time.monotonic()
    if given == "env":
        given = os.environ.pop("MESHCTL_TOKEN", "")
    token = JoinToken.parse(terminal.secret_argument(given, "token"))
    check_name(name)
    for tag in tags:
        check_tag(tag)
    for text in config.endpoint:
        Endpoint.parse(text)
    _need_root()
    store = Store(config.state_dir)
    asyncio.run(_join(config, store, token, name, tags))
    if stay:
        up(config, begun=begun)
    elif Path("/run/systemd/system").exists() and _install_unit(config):
        _wait_proven(config, begun)
    else:
        click.echo("there is no systemd here: run `meshctl up` to bring the mesh up, and keep it running")


async def _join(config: AgentConfig, store: Store, token: JoinToken, name: str, tags: tuple[str, ...]) -> None:
    from meshctl.agent import candidates, join
    from meshctl.agent.device import open_device

    if not store.is_joined():
        _need_port(config.listen_port)
    device = await open_device(config.interface, config.device)  # type: ignore[arg-type]
    try:
        addresses = await device.local_networks()
    finally:
        await device.close()
    told = candidates.local(config.endpoint, addresses, config.listen_port)
    member, resumed = await join.join(config, store, token, name, tags, told)
    node = member.node
    click.echo(
        f"{'resumed' if resumed else 'joined'} mesh {member.mesh.name} as {node.name}: {node.address4}, {node.address6}"
    )


def _need_root() -> None:
    if os.geteuid() != 0:
        raise EnvironmentFault("configuring WireGuard needs root", "sudo meshctl ...")


def _need_port(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("", port))
        except OSError as error:
            raise EnvironmentFault(
                f"UDP port {port} is taken, by another program or an interface left behind",
                "meshctl join --listen-port PORT",
            ) from error


def _install_unit(config: AgentConfig) -> bool:
    """Enable and start the service, unless this state directory is not the service's."""
    if config.state_dir != AgentConfig().state_dir or not is_installed("systemctl"):
        return False
    installed, checkout = Path(sys.prefix, "share/meshctl/systemd"), Path(__file__).parents[2] / "deploy/systemd"
    import shutil  # late: half a megabyte

    program = shutil.which("meshctl") or str(Path(sys.executable).parent / "meshctl")
    try:
        for unit in (installed if installed.exists() else checkout).glob("meshctl*.service"):
            text = unit.read_text().replace("/usr/bin/meshctl", program)
            if any(Path(program).is_relative_to(home) for home in ("/home", Path("~root").expanduser())):
                text = text.replace("ProtectHome=yes", "ProtectHome=read-only")
            Path("/etc/systemd/system", unit.name).write_text(text)
        subprocess.run(["systemctl", "daemon-reload"], check=True, timeout=30)
        subprocess.run(
            ["systemctl", "enable", "meshctl-guard.service", UNIT], check=True, timeout=30, capture_output=True
        )
        subprocess.run(["systemctl", "restart", UNIT], check=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        raise EnvironmentFault(
            f"joined, but the service could not be started: {error}", "systemctl status meshctl; or run meshctl up"
        ) from error
    return True


def _wait_proven(config: AgentConfig, begun: float) -> None:
    deadline = time.monotonic() + PROVEN_WITHIN_S
    while time.monotonic() < deadline:
        try:
            picture = local.status(config)
        except MeshError:
            picture = {}
        peers = picture.get("peers", [])
        if proven := [peer for peer in peers if peer["state"] == "ok"]:
            click.echo(
                f"{len(proven)} of {len(peers)} tunnels verified, the first after {time.monotonic() - begun:.1f} s"
            )
            return
        if picture.get("ready") and not peers:
            click.echo("the mesh is up; this is its first node")
            return
        time.sleep(0.1)
    raise UnreachableError(
        f"no tunnel was verified within {PROVEN_WITHIN_S:.0f} s", "meshctl status; journalctl -u meshctl"
    )


def _told_now_or_at_join(now: str, at_join: str | None) -> str:
    return now if at_join is None or now != AgentConfig().health_listen else at_join


def up(config: AgentConfig, begun: float | None = None) -> None:
    """The agent, until SIGTERM or Ctrl-C. The data plane stays when it stops."""
    _need_root()
    store = Store(config.state_dir)
    saved = store.membership()
    config = replace(
        config,
        interface=saved.interface,
        listen_port=saved.listen_port,
        endpoint=config.endpoint or saved.endpoints,
        device=saved.device,
        health_listen=_told_now_or_at_join(config.health_listen, saved.health_listen),
    )
    from meshctl.agent import daemon, loops

    loops.take_precedence()
    begun = time.monotonic() if begun is None else begun
    # asyncio's own loop: uvloop opens no netlink sockets, and one node has nothing to gain from it
    asyncio.run(daemon.run(config, store, lambda words: click.echo(f"{words} ({time.monotonic() - begun:.2f} s)")))


def leave(config: AgentConfig, *, force: bool) -> None:
    """Registry first, then this machine: a node that is still listed must not be gone."""
    _need_root()
    store = Store(config.state_dir)
    if (
        Path("/run/systemd/system").exists()
        and is_installed("systemctl")
        and config.state_dir == AgentConfig().state_dir
    ):
        subprocess.run(
            ["systemctl", "disable", "--now", UNIT, "meshctl-guard.service"],
            check=False,
            timeout=60,
            capture_output=True,
        )
    elif not force and local.is_running(config):
        raise UsageError("the agent is running", "stop meshctl up first, or it would bring the mesh back")
    asyncio.run(_leave(config, store, force=force))
    click.echo("this machine has left the mesh: interface, routes, guard and keys are removed")


async def _leave(config: AgentConfig, store: Store, *, force: bool) -> None:
    from meshctl.agent import join
    from meshctl.agent.device import open_device
    from meshctl.agent.join import Member

    interface, kind = config.interface, config.device
    try:
        member = Member.load(store)
        interface, kind = member.saved.interface, member.saved.device
        await join.leave(member, store.identity())
    except MeshError as error:
        if not force:
            raise
        click.echo(f"! {error.what}; an operator must remove this node: mesh-coordinator nodes rm", err=True)
    device = await open_device(interface, kind)  # type: ignore[arg-type]
    await device.destroy()
    store.forget()


def plan(config: AgentConfig) -> None:
    """What the next pass would do, from the map on disk and the kernel as it is."""
    _need_root()
    store = Store(config.state_dir)
    saved = store.membership()
    asyncio.run(
        _plan(replace(config, interface=saved.interface, listen_port=saved.listen_port, device=saved.device), store)
    )


async def _plan(config: AgentConfig, store: Store) -> None:
    from meshctl.agent import desire
    from meshctl.agent.device import open_device

    device = await open_device(config.interface, config.device)  # type: ignore[arg-type]
    try:
        steps = await desire.dry_run(config, store, device)
    finally:
        await device.close()
    for step in steps:
        click.echo(step)
    if not steps:
        click.echo("nothing to do: the kernel holds the plan")
