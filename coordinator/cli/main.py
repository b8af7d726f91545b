"""`mesh-coordinator`: make a mesh, serve it, and operate it over the root-only local socket (OPS-1, OPS-4, ACC-5)."""

from __future__ import annotations

from pathlib import Path

import click

from coordinator.cli import findings, nodes, status, tokens
from coordinator.cli.local import DATA_DIR
from coordinator.config import DEFAULT_PORT
from meshctl import __version__, terminal


@click.group(cls=terminal.Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mesh-coordinator")
def cli() -> None:
    """Coordinator of a WireGuard mesh: keeps the registry in etcd and hands out keys and endpoints.

    Begin with init, then serve, then token create.
    """


@cli.command()
@click.option("--name", default="mesh", show_default=True, help="What people call this mesh.")
@click.option(
    "--advertise",
    multiple=True,
    required=True,
    metavar="HOST:PORT",
    help="Where nodes reach this coordinator; repeatable.",
)
@click.option("--prefix4", metavar="PREFIX", help="IPv4 prefix of the mesh; by default a free /16 of 10.0.0.0/8.")
@click.option(
    "--listen",
    multiple=True,
    metavar="HOST:PORT",
    help=f"Where to listen; by default all addresses, port {DEFAULT_PORT}.",
)
@click.option("--etcd", metavar="URL,...", help="An etcd cluster; by default an etcd of our own, as a child process.")
@click.option("--etcd-ca", default="", help="CA certificate of that cluster (PEM file).")
@click.option("--etcd-cert", default="", help="Our client certificate for it (PEM file).")
@click.option("--etcd-key", default="", help="Its key (PEM file).")
@click.option(
    "--etcd-server-name", default="", help="A name in every member's certificate; by default the first URL's host."
)
@click.option(
    "--passphrase-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Derive the key-encryption key from this passphrase instead of a key file.",
)
@click.option(
    "--health-listen",
    default="127.0.0.1:9587",
    show_default=True,
    help="Where /healthz, /readyz and /metrics are served; empty: nowhere.",
)
@DATA_DIR
def init(data_dir: Path, etcd: str | None, passphrase_file: Path | None, **given: object) -> None:
    """Make a new mesh: CA, keys, prefixes, and a policy that says allow-all."""
    from coordinator.cli.process import initialise

    initialise(data_dir, etcd=tuple(etcd.split(",")) if etcd else (), passphrase_file=passphrase_file, **given)  # type: ignore[arg-type]


@cli.command()
@click.option("--etcd", metavar="URL,...", help="An etcd cluster, instead of what init was told.")
@click.option("--listen", multiple=True, metavar="HOST:PORT", help="Where to listen, instead of what init was told.")
@click.option(
    "--advertise",
    multiple=True,
    metavar="HOST:PORT",
    help="A further address under which nodes reach this coordinator.",
)
@click.option(
    "--stun",
    metavar="auto|off|PORT",
    help="UDP for netcheck: the port of each listen address, and the next one or PORT; off: none.  [default: auto]",
)
@DATA_DIR
def serve(
    data_dir: Path, etcd: str | None, listen: tuple[str, ...], advertise: tuple[str, ...], stun: str | None
) -> None:
    """Run the coordinator, in the foreground."""
    from coordinator.cli.process import run

    run(data_dir, etcd=tuple(etcd.split(",")) if etcd else (), listen=listen, advertise=advertise, stun=stun)


cli.add_command(tokens.token)
cli.add_command(nodes.nodes)
cli.add_command(nodes.revoke)
cli.add_command(nodes.applied)
cli.add_command(findings.findings)
cli.add_command(status.status)


def main() -> None:
    """The entry point."""
    cli(prog_name="mesh-coordinator")


if __name__ == "__main__":
    main()
