"""`init` and `serve`: the two verbs that are a process of their own (OPS-1, ENC-2)."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import sys
import time
from dataclasses import replace
from ipaddress import IPv4Network, ip_address, ip_network
from pathlib import Path

import click
import uvloop

from coordinator import founding, server
from coordinator.config import CoordinatorConfig, load
from coordinator.keyring import FileKek, Keyring, SealedRegistry
from meshctl.errors import EnvironmentFault, RefusedError, UsageError
from meshctl.eventlog import EventLog, HumanLog
from meshctl.mesh import addressing
from meshctl.mesh.model import MeshInfo, Network, check_name


def _host_routes() -> list[Network]:
    """What this machine routes, so that the mesh takes none of it. Without `ip` there is nothing to compare with."""
    try:
        shown = subprocess.run(
            ["ip", "-j", "route", "show", "table", "all"], capture_output=True, check=True, timeout=10
        ).stdout
        found = [
            route.get("dst", "")
            for route in json.loads(shown or b"[]")
            if route.get("type") not in ("local", "broadcast", "multicast")
        ]
        return [ip_network(dst) for dst in found if dst and dst != "default"]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []


def _prepare(data_dir: Path) -> None:
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        data_dir.chmod(0o700)
    except OSError as error:
        raise EnvironmentFault(
            f"cannot use {data_dir}: {error.strerror}", "run as root, or choose --data-dir"
        ) from error


def initialise(
    data_dir: Path,
    *,
    name: str,
    advertise: tuple[str, ...],
    prefix4: str | None,
    listen: tuple[str, ...],
    etcd: tuple[str, ...],
    etcd_ca: str,
    etcd_cert: str,
    etcd_key: str,
    etcd_server_name: str,
    passphrase_file: Path | None,
    health_listen: str,
) -> None:
    """Found the mesh and write the settings; when anything fails, nothing stays that would hinder a second try."""
    check_name(name)
    for address in (*advertise, *listen):
        server.split(address)
    if etcd and not (etcd_ca and etcd_cert and etcd_key):
        raise UsageError("an etcd cluster is reached by mutual TLS only", "add --etcd-ca, --etcd-cert and --etcd-key")
    if (data_dir / "coordinator.toml").exists():
        raise UsageError(f"{data_dir} already holds a mesh", "mesh-coordinator serve, or choose another --data-dir")
    routes = _host_routes()
    prefix = (
        addressing.check_prefix4(prefix4, routes)
        if prefix4
        else addressing.choose_prefix4(routes, 77 + secrets.randbelow(100))
    )
    for address in advertise:
        _not_inside(address, prefix)
    config = CoordinatorConfig(
        etcd=etcd,
        etcd_ca=etcd_ca,
        etcd_cert=etcd_cert,
        etcd_key=etcd_key,
        etcd_server_name=etcd_server_name,
        advertise=advertise,
        health_listen=health_listen,
        kek="passphrase" if passphrase_file else "file",
        kek_file=str(passphrase_file.absolute()) if passphrase_file else "kek",
    )
    config = replace(config, listen=listen) if listen else config
    _prepare(data_dir)
    if not passphrase_file and not (data_dir / "kek").exists():
        FileKek(data_dir / "kek").create()  # it stays when what follows fails: a ring key may be wrapped by it already
    mesh = asyncio.run(_found(data_dir, config, name, prefix, advertise))
    (data_dir / "coordinator.toml").write_text(config.text())
    click.echo(f"mesh {mesh.name} ({mesh.id}) is made: {mesh.prefix4}, {mesh.prefix6}")
    if not passphrase_file:
        click.echo(
            f"key-encryption key: {data_dir / 'kek'}. Keep a copy elsewhere: without it the registry cannot be read."
        )
    click.echo("! policy: allow-all (every member reaches every member)")
    click.echo("next: mesh-coordinator serve, then mesh-coordinator token create")


def _not_inside(address: str, prefix: IPv4Network) -> None:
    """Law: coordinator traffic never rides the mesh."""
    host, _ = server.split(address)
    try:
        inside = ip_address(host) in prefix
    except ValueError:
        return  # a name: what it resolves to may change
    if inside:
        raise UsageError(f"{address} lies inside the mesh prefix {prefix}", "advertise an address of the underlay")


async def _found(
    data_dir: Path, config: CoordinatorConfig, name: str, prefix: IPv4Network, advertise: tuple[str, ...]
) -> MeshInfo:
    async with server.open_registry(data_dir, config, _say) as (registry, _):
        kek = server.kek_provider(data_dir, config)
        try:
            keyring = await Keyring.create(registry, kek)
        except RefusedError:  # an init that was cut off left its ring key; founding refuses if a mesh is there
            keyring = await Keyring.open(registry, kek)
        sealed = SealedRegistry(registry, keyring)
        try:
            return await founding.found(sealed, name, prefix, advertise, now=time.time())
        except RefusedError:
            if config.etcd:
                raise
            _say("an earlier init was cut off after it had made this mesh: its name and prefix stay")
            return (await founding.authority(sealed)).mesh


def run(
    data_dir: Path, *, etcd: tuple[str, ...], listen: tuple[str, ...], advertise: tuple[str, ...], stun: str | None
) -> None:
    """Serve until asked to stop."""
    config = load(data_dir)
    config = replace(config, etcd=etcd or config.etcd, listen=listen or config.listen)
    config = replace(config, advertise=advertise or config.advertise, stun=config.stun if stun is None else stun)
    _ = config.second_port  # a wrong one is said before etcd starts
    events = EventLog(data_dir / "events.jsonl", actor="coordinator", human=HumanLog(sys.stderr))
    os.umask(0o077)
    uvloop.run(server.serve(data_dir, config, events, _say))


def _say(words: str) -> None:
    click.echo(words, err=True)
