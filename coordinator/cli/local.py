"""Where the coordinator of this machine keeps its data, and calls to it (OPS-4)."""

from __future__ import annotations

from pathlib import Path

import click

from meshctl.wire.desk import DEFAULT_DIRECTORY, TIMEOUT_S, call, directory

__all__ = ["DATA_DIR", "TIMEOUT_S", "call", "directory"]

DATA_DIR = click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT_DIRECTORY,
    show_default=True,
    envvar="MESH_COORDINATOR_DATA_DIR",
    help="Settings, key file and etcd data of this coordinator.",
)
