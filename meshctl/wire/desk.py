"""Calls to the coordinator on this machine, through its root-only socket: both command lines are operators (OPS-4)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc

from meshctl.errors import EnvironmentFault, UnreachableError, UsageError
from meshctl.wire import status

DEFAULT_DIRECTORY = Path("/var/lib/mesh-coordinator")
TIMEOUT_S = 15.0


def directory(data_dir: Path) -> Path:
    """The data directory, if there is a mesh in it. Raises UsageError."""
    try:
        if not (data_dir / "coordinator.toml").exists():
            raise UsageError(f"{data_dir} holds no mesh", "mesh-coordinator init, or --data-dir")
    except PermissionError as error:
        raise EnvironmentFault(f"{data_dir} is not ours to read", "run as root") from error
    return data_dir


def call(data_dir: Path, method: str, request: Any, timeout_s: float = TIMEOUT_S) -> Any:
    """One call of the Operator service. Raises the MeshError the coordinator meant, or UnreachableError."""
    from meshctl.wire.v1 import mesh_pb2_grpc as rpc  # late: 1.2 MB that an agent, the same command, never needs

    path = data_dir / "run" / "operator.sock"
    if not path.exists():
        raise UnreachableError("the coordinator on this machine is not running", "mesh-coordinator serve")
    with grpc.insecure_channel(f"unix:{path}") as channel:
        try:
            return getattr(rpc.OperatorStub(channel), method)(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise status.error(error, "the coordinator on this machine") from error
