"""The ground the demo stands on: six network namespaces, what runs in them, and how both are taken away again (OPS-1).

    provider A 198.51.100.0/24: coordinator, gpu-a1, gpu-a2 --- router --- provider B 203.0.113.0/24: gpu-b1, gpu-b2

The addresses are those set aside for documentation; nothing leaves this machine. Speaks to the product by its two
command lines only. Everything that runs here is found again by its namespace, so a run that was cut off is cleaned up
by the next one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent
ROOT = Path("/var/lib/meshctl-demo")
ROUTER, COORDINATOR = "md-router", "md-coord"
COORDINATOR_ADDRESS, PORT = "198.51.100.10", 7443
PREFIX4 = "10.77.0.0/16"
STOP_WITHIN_S = 5.0


class Fault(Exception):
    """Something the demo counted on did not happen; the text says what."""


@dataclass(frozen=True)
class Node:
    """One machine: `space` is its namespace and the name of its WireGuard interface, `address` is on the underlay."""

    name: str
    space: str
    address: str

    @property
    def state(self) -> Path:
        """The only place its agent reads."""
        return ROOT / self.name


NODES = (
    Node("gpu-a1", "md-a1", "198.51.100.11"),
    Node("gpu-a2", "md-a2", "198.51.100.12"),
    Node("gpu-b1", "md-b1", "203.0.113.11"),
    Node("gpu-b2", "md-b2", "203.0.113.12"),
)
SPACES = (ROUTER, COORDINATOR, *(node.space for node in NODES))
cancelled = threading.Event()  # set when the demo is asked to end: whoever waits gives up


def run(*command: str | Path, fine: bool = True, stdin: str = "", timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """A command and what it said. Raises Fault when it fails and `fine` is asked for."""
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise Fault(f"{command[0]} did not end within {timeout:.0f} s") from None
    if fine and done.returncode:
        raise Fault(f"{' '.join(map(str, command))}: {(done.stderr or done.stdout).strip()}")
    return done


def within(space: str, *command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """The same, in a namespace."""
    return run("ip", "netns", "exec", space, *command, **options)


def meshctl(node: Node, *words: str | Path, fine: bool = True) -> subprocess.CompletedProcess[str]:
    """The node's own command line, with its own state."""
    return within(node.space, BIN / "meshctl", *words, "--state-dir", node.state, fine=fine)


def coordinator(*words: str | Path, fine: bool = True) -> subprocess.CompletedProcess[str]:
    """The operator's command line."""
    return within(COORDINATOR, BIN / "mesh-coordinator", *words, "--data-dir", ROOT / "coordinator", fine=fine)


def status(node: Node) -> dict[str, Any]:
    """`meshctl status --json`; empty when the agent does not answer (yet)."""
    try:
        found: dict[str, Any] = json.loads(meshctl(node, "status", "--json", fine=False).stdout)
        return found
    except json.JSONDecodeError:
        return {}


def spawn(space: str, log: str, *command: str | Path) -> subprocess.Popen[bytes]:
    """A process in a namespace, in a session of its own, that writes to logs/LOG. `ip netns exec` becomes it: the pid is its own."""
    with (ROOT / "logs" / log).open("ab") as out:
        words = ["ip", "netns", "exec", space, *map(str, command)]
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)


def until(what: str, condition: Callable[[], T], within_s: float = 30.0, every_s: float = 0.1) -> T:
    """The first true answer of `condition`. Raises Fault after `within_s` seconds."""
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        if cancelled.is_set() or time.monotonic() > deadline:
            raise Fault(f"{what}: not within {within_s:.0f} s")
        cancelled.wait(every_s)
    return found


def together(work: Callable[[Any], T], items: Any) -> list[T]:
    """`work` on all items at once."""
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(work, items))


@contextmanager
def helper(space: str, log: str, program: str, *arguments: str) -> Iterator[Callable[[], dict[str, Any]]]:
    """One of our own small programs, by the system's Python, which has never heard of the product. Yields how to end it
    and read what it reports."""
    python = shutil.which("python3", path="/usr/local/bin:/usr/bin:/bin") or sys.executable
    process = spawn(space, log, python, "-I", "-S", HERE / program, *arguments)

    def report() -> dict[str, Any]:
        process.send_signal(signal.SIGTERM)
        process.wait(20)
        lines = (ROOT / "logs" / log).read_text().splitlines()
        if process.returncode or not lines:
            raise Fault(f"{program} in {space}: {' '.join(lines[-1:])}")
        found: dict[str, Any] = json.loads(lines[-1])
        return found

    try:
        until(f"{program} in {space} starts", lambda: (ROOT / "logs" / log).read_text().endswith("ready\n"), 15, 0.02)
        yield report
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def build() -> None:
    """Namespaces, cables, bridges, addresses, and a router that forwards. Raises Fault."""
    ROOT.mkdir(mode=0o700)
    (ROOT / "logs").mkdir()
    for space in SPACES:
        run("ip", "netns", "add", space)
        run("ip", "-n", space, "link", "set", "lo", "up")
    within(ROUTER, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    for bridge, gateway in (("br-a", "198.51.100.1"), ("br-b", "203.0.113.1")):
        run("ip", "-n", ROUTER, "link", "add", bridge, "type", "bridge")
        run("ip", "-n", ROUTER, "address", "add", f"{gateway}/24", "dev", bridge)
        run("ip", "-n", ROUTER, "link", "set", bridge, "up")
    for space, address in ((COORDINATOR, COORDINATOR_ADDRESS), *((node.space, node.address) for node in NODES)):
        port, bridge = space.removeprefix("md-"), "br-a" if address.startswith("198.") else "br-b"
        run("ip", "link", "add", port, "netns", ROUTER, "type", "veth", "peer", "name", "eth0", "netns", space)
        run("ip", "-n", ROUTER, "link", "set", port, "master", bridge, "up")
        run("ip", "-n", space, "address", "add", f"{address}/24", "dev", "eth0")
        run("ip", "-n", space, "link", "set", "eth0", "up")
        run("ip", "-n", space, "route", "add", "default", "via", address.rpartition(".")[0] + ".1")


def spaces() -> list[str]:
    """Ours that exist."""
    there = {line.split()[0] for line in run("ip", "netns", "list").stdout.splitlines() if line}
    return [space for space in SPACES if space in there]


def processes() -> list[int]:
    """Everything that runs in our namespaces, found by looking there: also what an agent started."""
    return [int(pid) for space in spaces() for pid in run("ip", "netns", "pids", space, fine=False).stdout.split()]


def _end(number: signal.Signals, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    told: set[int] = set()
    while (left := processes()) and time.monotonic() < deadline:
        for pid in set(left) - told:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        told.update(left)
        time.sleep(0.05)


def sockets() -> list[Path]:
    """Control sockets of userspace WireGuard, which namespaces do not keep apart."""
    return [path for node in NODES if (path := Path(f"/var/run/wireguard/{node.space}.sock")).exists()]


def remove() -> None:
    """Take it all away: processes kindly, then not; interfaces go with their namespaces."""
    _end(signal.SIGTERM, STOP_WITHIN_S)
    _end(signal.SIGKILL, STOP_WITHIN_S)
    for space in spaces():
        run("ip", "netns", "del", space, fine=False)
    for path in sockets():
        path.unlink()
    shutil.rmtree(ROOT, ignore_errors=True)


def leftovers() -> list[str]:
    """What of the demo is still on this machine."""
    return [*spaces(), *map(str, processes()), *map(str, sockets()), *([str(ROOT)] if ROOT.exists() else [])]
