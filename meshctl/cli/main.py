"""`meshctl`: the verbs of a node (OPS-1, OPS-4, MON-6)."""

from __future__ import annotations

import platform
import re
from types import MappingProxyType

import click

from meshctl import __version__, lean, terminal
from meshctl.cli.options import CONFIG, settings


class Verbs(terminal.Group):
    """Those that look and ask stand in modules of their own."""

    later = MappingProxyType(
        {
            **dict.fromkeys(("status", "ping", "health"), "meshctl.cli.inspect"),
            **dict.fromkeys(("logs", "debug"), "meshctl.cli.report"),
            **{verb: f"meshctl.cli.{verb}" for verb in ("doctor", "keys", "matrix", "netcheck", "watch")},
        }
    )


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="meshctl")
def cli() -> None:
    """Node agent of a WireGuard mesh that is proven continuously, from the wire.

    Begin with join TOKEN.
    """


def _host_name() -> str:
    name = re.sub(r"[^a-z0-9-]+", "-", platform.node().partition(".")[0].lower()).strip("-")
    return name[:63].strip("-") or "node"


@cli.command()
@click.argument("token")
@click.option("--name", default=None, help="Name of this node in the mesh; by default the host's name.")
@click.option("--tag", multiple=True, help="Tag, if the token allows it; repeatable.")
@click.option(
    "--endpoint",
    multiple=True,
    metavar="ADDRESS:PORT",
    help="Where others reach this node, if they cannot find out; repeatable.",
)
@click.option(
    "--listen-port", type=click.IntRange(1, 65535), default=None, help="UDP port of WireGuard.  [default: 51820]"
)
@click.option(
    "--device",
    type=click.Choice(["auto", "kernel", "userspace"]),
    default=None,
    help="Which WireGuard.  [default: auto]",
)
@click.option(
    "--health-listen",
    default=None,
    metavar="ADDRESS:PORT",
    help="Where /healthz, /readyz and /metrics are served.  [default: 127.0.0.1:9586]",
)
@click.option("--up", "stay", is_flag=True, help="Then run the agent here, in the foreground, instead of as a service.")
@CONFIG
def join(token: str, name: str | None, tag: tuple[str, ...], stay: bool, **flags: object) -> None:
    """Make this machine a member: TOKEN, @FILE, or - for standard input (or MESHCTL_TOKEN in the environment, with
    TOKEN env).

    Keys are made here and stay here. Interrupted, it goes on where it was when run again.
    """
    from meshctl.cli import joining

    joining.run(settings(flags), token, name or _host_name(), tag, stay)


@cli.command()
@CONFIG
def up(**flags: object) -> None:
    """Run the agent in the foreground: keep the interface, follow the registry, prove the mesh."""
    with lean.imports():
        from meshctl.agent import daemon  # noqa: F401 - it stays for weeks; the other verbs for a moment
        from meshctl.cli import joining

    joining.up(settings(flags))


@cli.command()
@click.option(
    "--force", is_flag=True, help="Clean up here even if no coordinator answers; have an operator remove the node."
)
@CONFIG
def leave(force: bool, **flags: object) -> None:
    """Leave the mesh: tell the registry, remove interface, routes, guard and keys."""
    from meshctl.cli import joining

    joining.leave(settings(flags), force=force)


@cli.command()
@CONFIG
def plan(**flags: object) -> None:
    """Print what the next reconcile pass would do. Changes nothing."""
    from meshctl.cli import joining

    joining.plan(settings(flags))


def main() -> None:
    """The entry point."""
    cli(prog_name="meshctl")


if __name__ == "__main__":
    main()
