"""Questions to the agent on this machine, over its root-only status socket (MON-6)."""

from __future__ import annotations

import http.client
import socket
from typing import Any

import msgspec

from meshctl.agent.store import Store
from meshctl.config import AgentConfig
from meshctl.errors import EnvironmentFault, UnreachableError

TIMEOUT_S = 5.0


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def ask(config: AgentConfig, target: str, timeout_s: float = TIMEOUT_S) -> Any:
    """GET `target` of the agent, as decoded JSON. Raises NotJoinedError, UnreachableError, EnvironmentFault."""
    connection = _UnixConnection(str(config.socket), timeout_s)
    try:
        connection.request("GET", target)
        return msgspec.json.decode(connection.getresponse().read())
    except PermissionError as error:
        raise EnvironmentFault("the agent's socket is for root", "sudo meshctl ...") from error
    except (OSError, http.client.HTTPException, msgspec.DecodeError) as error:
        Store(config.state_dir).membership()  # says so when this machine is in no mesh at all
        raise UnreachableError(
            "the agent on this machine does not answer", "systemctl status meshctl, or run meshctl up"
        ) from error
    finally:
        connection.close()


def is_running(config: AgentConfig) -> bool:
    """Whether an agent answers."""
    connection = _UnixConnection(str(config.socket), 1.0)
    try:
        connection.connect()
    except OSError:
        return False
    finally:
        connection.close()
    return True


def status(config: AgentConfig) -> dict[str, Any]:
    """The agent's whole picture; its shape is documented in agent/picture.py."""
    found: dict[str, Any] = ask(config, "/status")
    return found
