"""Settings of a coordinator: one dataclass, written by `init` to coordinator.toml, read by `serve` (OPS-4)."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from meshctl import terminal
from meshctl.errors import EnvironmentFault, UsageError

KEKS = ("file", "passphrase")
DEFAULT_PORT = 7443  # below 32768: above it the kernel hands out ports to anybody's outgoing connections


@dataclass(frozen=True, slots=True)
class CoordinatorConfig:
    """Every field may be changed in the file; `serve` flags win over it."""

    listen: tuple[str, ...] = (f"0.0.0.0:{DEFAULT_PORT}", f"[::]:{DEFAULT_PORT}")
    """HOST:PORT of the TLS front."""
    etcd: tuple[str, ...] = ()
    """URLs of an etcd cluster; empty: an etcd of our own, as a child process on loopback."""
    etcd_ca: str = ""
    """CA certificate, client certificate and client key for that cluster (PEM files)."""
    etcd_cert: str = ""
    etcd_key: str = ""
    etcd_server_name: str = ""
    """A name that the certificate of every member of the cluster bears; empty: the host of the first URL."""
    advertise: tuple[str, ...] = ()
    """HOST:PORT where nodes reach this coordinator; `serve` adds them to what the mesh knows."""
    kek: str = "file"
    """Where the key-encryption key comes from: file or passphrase."""
    kek_file: str = "kek"
    """Key file, or the file that holds the passphrase; relative to the data directory."""
    health_listen: str = "127.0.0.1:9587"
    """HOST:PORT of /healthz, /readyz and /metrics; empty turns them off."""
    stun: str = "auto"
    """UDP for netcheck: auto (the port of each listen address, and the next one), off, or the second port's number."""
    rotate_after: str = "30d"
    """Age at which a WireGuard key is rotated without being told to, e.g. 12h, 30d; empty: never."""

    @property
    def rotate_after_s(self) -> float:
        """In seconds; 0: never. Raises UsageError."""
        return terminal.seconds(self.rotate_after) if self.rotate_after else 0.0

    @property
    def second_port(self) -> int | None:
        """Of netcheck's two UDP ports; 0: none of them, None: the one after the first. Raises UsageError."""
        if self.stun in {"auto", "off"}:
            return None if self.stun == "auto" else 0
        if re.fullmatch(r"[0-9]{1,5}", self.stun) and 0 < int(self.stun) <= 0xFFFF:
            return int(self.stun)
        raise UsageError(f"{self.stun!r} is no UDP port for netcheck", "write auto, off, or the second port's number")

    def text(self) -> str:
        """As TOML. Strings and lists of strings are written alike in JSON and TOML."""
        lines = ["# mesh-coordinator serve reads this; flags win over it.\n"]
        for item in fields(self):
            value = getattr(self, item.name)
            lines.append(f"{item.name} = {json.dumps(list(value) if isinstance(value, tuple) else value)}\n")
        return "".join(lines)


def load(directory: Path) -> CoordinatorConfig:
    """The settings of an initialised data directory. Raises UsageError."""
    path = directory / "coordinator.toml"
    try:
        given = tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise UsageError(f"{directory} holds no mesh", "mesh-coordinator init, or --data-dir") from error
    except (OSError, ValueError) as error:  # not readable, not UTF-8, not TOML
        raise EnvironmentFault(f"cannot read {path}: {error}", "correct the file") from error
    known = {item.name: item for item in fields(CoordinatorConfig)}
    if unknown := given.keys() - known.keys():
        raise UsageError(f"{path}: unknown setting {min(unknown)!r}", f"known are {', '.join(known)}")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    for key, value in values.items():
        wanted = tuple if isinstance(known[key].default, tuple) else str
        if not isinstance(value, wanted) or not all(isinstance(item, str) for item in value):
            raise UsageError(
                f"{path}: {key} is {'a list of texts' if wanted is tuple else 'a text'}", "correct the file"
            )
    config = CoordinatorConfig(**values)
    if config.rotate_after and not re.fullmatch(r"\d+[smhd]", config.rotate_after):
        raise UsageError(f"{path}: rotate_after is {config.rotate_after!r}", "write 12h or 30d, or nothing for never")
    _ = config.second_port
    if config.kek not in KEKS:
        raise UsageError(f"{path}: unknown kek {config.kek!r}", f"known are {' and '.join(KEKS)}")
    return config
