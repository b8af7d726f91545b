"""Options that every verb of a node understands, and how they become settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from meshctl import config
from meshctl.config import AgentConfig

F = TypeVar("F", bound=Callable[..., Any])


def CONFIG(command: F) -> F:
    """--state-dir and --interface."""
    command = click.option("--interface", default=None, help="Name of the WireGuard interface.  [default: mesh0]")(
        command
    )
    return click.option(
        "--state-dir",
        type=click.Path(file_okay=False, path_type=Path),
        default=None,
        help="Sealed keys, map and status socket of this node.  [default: /var/lib/meshctl]",
    )(command)


def settings(flags: Mapping[str, Any]) -> AgentConfig:
    """File, environment and flags as one value. Raises UsageError."""
    return config.load(flags)
