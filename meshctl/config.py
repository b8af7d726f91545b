"""Settings of a node agent: one dataclass, read once from defaults, /etc/meshctl/meshctl.toml, environment and flags.

A dataclass and tomllib, because the usual settings library costs an agent 31 MB. Nothing reads settings anywhere else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from meshctl.errors import UsageError
from meshctl.mesh.psk import RENEW_S

DEFAULT_FILE = Path("/etc/meshctl/meshctl.toml")
PSK_RENEW_LEAST_S = 5.0  # an exchange takes a moment, and a write to both disks


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Each field may be set as `field = value` in the file or MESHCTL_FIELD in the environment."""

    state_dir: Path = Path("/var/lib/meshctl")
    """Sealed identity, membership and map; the status socket. Mode 0700."""
    interface: str = "mesh0"
    """Name of the WireGuard interface, 15 characters at most."""
    listen_port: int = 51820
    """UDP port of WireGuard on the underlay."""
    endpoint: tuple[str, ...] = ()
    """ADDRESS:PORT under which others reach this node, where they cannot find out by themselves."""
    device: str = "auto"
    """kernel, userspace, or auto: the kernel's WireGuard where there is one."""
    health_listen: str = "127.0.0.1:9586"
    """ADDRESS:PORT of /healthz, /readyz and /metrics; empty turns them off."""
    psk_renew_s: float = RENEW_S
    """Seconds after which a pair of nodes agrees on another pre-shared key; 5 at least."""

    @property
    def socket(self) -> Path:
        """The status socket, for root only."""
        return self.state_dir / "agent.sock"


def load(
    flags: Mapping[str, Any], environment: Mapping[str, str] | None = None, file: Path | None = None
) -> AgentConfig:
    """Flags win over environment, that over the file, the file over defaults. Raises UsageError."""
    environment = os.environ if environment is None else environment
    path = file or Path(environment.get("MESHCTL_CONFIG", DEFAULT_FILE))
    given: dict[str, Any] = {}
    if path.exists():
        import tomllib  # late: most nodes have no file

        try:
            given.update(tomllib.loads(path.read_text()))
        except (ValueError, OSError) as error:  # not TOML, not UTF-8, not readable
            raise UsageError(f"{path} cannot be read: {error}", "correct the file or remove it") from error
    names = {f.name for f in fields(AgentConfig)}
    if unknown := given.keys() - names:
        raise UsageError(f"{path}: unknown setting {min(unknown)!r}", f"known are {', '.join(sorted(names))}")
    given.update({n: environment[f"MESHCTL_{n.upper()}"] for n in names if f"MESHCTL_{n.upper()}" in environment})
    given.update({n: v for n, v in flags.items() if n in names and v not in (None, ())})
    return _checked({name: _typed(name, value) for name, value in given.items()})


def _typed(name: str, value: Any) -> Any:
    try:
        match name:
            case "state_dir":
                return Path(value)
            case "listen_port":
                return int(value)
            case "psk_renew_s":
                return float(value)
            case "endpoint":
                return tuple(value.split(",") if isinstance(value, str) else map(str, value))
            case _:
                return str(value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"setting {name}: {value!r} does not fit", "see meshctl up --help") from error


def _checked(given: dict[str, Any]) -> AgentConfig:
    config = replace(AgentConfig(), **given)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}", config.interface):
        raise UsageError(
            f"{config.interface!r} is not an interface name",
            "use 1 to 15 letters, digits, - _ and ., for example mesh0",
        )
    if not 0 < config.listen_port < 65536:
        raise UsageError(f"{config.listen_port} is not a UDP port", "--listen-port 51820")
    if config.health_listen and not config.health_listen.rpartition(":")[2].isdigit():
        raise UsageError(
            f"{config.health_listen!r} is not ADDRESS:PORT", "--health-listen 127.0.0.1:9586, or empty for none"
        )
    if not PSK_RENEW_LEAST_S <= config.psk_renew_s < float("inf"):
        raise UsageError(f"{config.psk_renew_s} is no period", f"psk_renew_s = {RENEW_S:.0f}, in seconds")
    if config.device not in {"auto", "kernel", "userspace"}:
        raise UsageError(f"unknown device kind {config.device!r}", "use kernel, userspace or auto")
    return config
