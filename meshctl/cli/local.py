"""Questions to the agent on this machine, over its root-only status socket (MON-6)."""

from __future__ import annotations

import socket
from typing import Any

import msgspec

from meshctl.agent.store import Store
from meshctl.config import AgentConfig
from meshctl.errors import EnvironmentFault, UnreachableError

TIMEOUT_S = 5.0


def _get(path: str, target: str, timeout_s: float) -> bytes:
    """GET over a unix socket: our own server ends each answer by closing."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout_s)
        sock.connect(path)
        sock.sendall(f"GET {target} HTTP/1.1\r\nHost: agent\r\n\r\n".encode())
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    return answer.partition(b"\r\n\r\n")[2]


def ask(config: AgentConfig, target: str, timeout_s: float = TIMEOUT_S) -> Any:
    """GET `target` of the agent, as decoded JSON. Raises NotJoinedError, UnreachableError, EnvironmentFault."""
    try:
        return msgspec.json.decode(_get(str(config.socket), target, timeout_s))
    except PermissionError as error:
        raise EnvironmentFault("the agent's socket is for root", "sudo meshctl ...") from error
    except (OSError, msgspec.DecodeError) as error:
        Store(config.state_dir).membership()  # says so when this machine is in no mesh at all
        hint = "systemctl status meshctl, or run meshctl up"
        raise UnreachableError("the agent on this machine does not answer", hint) from error


def is_running(config: AgentConfig) -> bool:
    """Whether an agent answers."""
    try:
        return bool(_get(str(config.socket), "/healthz", 1.0))
    except OSError:
        return False


def status(config: AgentConfig) -> dict[str, Any]:
    """The agent's whole picture; its shape is documented in agent/picture.py."""
    found: dict[str, Any] = ask(config, "/status")
    return found
