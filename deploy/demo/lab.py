"""The ground the demo stands on: six network namespaces, what runs in them, and how both are taken away again (OPS-1).

The addresses are those set aside for documentation; nothing leaves this machine. Everything that runs here is found
again by its namespace, so the next run cleans up after one that was cut off. Of the product it knows the commands only.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
HERE, BIN = Path(__file__).resolve().parent, Path(sys.executable).parent
PYTHON = shutil.which("python3", path="/usr/local/bin:/usr/bin:/bin") or sys.executable  # not the one of .venv
ROOT = Path("/var/lib/meshctl-demo")
ROUTER, DESK = "md-router", "md-coord"
DESK_ADDRESS = "198.51.100.10"
STOP_WITHIN_S = 5.0


class Fault(Exception):
    """Something the demo counted on did not happen; the text says what."""


@dataclass(frozen=True)
class Node:
    """One machine: `space` is its namespace and also its WireGuard interface, `address` is its own on the underlay."""

    name: str
    space: str
    address: str

    @property
    def state(self) -> Path:
        """All that its agent reads."""
        return ROOT / self.name


A1, A2 = Node("gpu-a1", "md-a1", "198.51.100.11"), Node("gpu-a2", "md-a2", "198.51.100.12")
B1, B2 = Node("gpu-b1", "md-b1", "203.0.113.11"), Node("gpu-b2", "md-b2", "203.0.113.12")
NODES = (A1, A2, B1, B2)
SPACES = (ROUTER, DESK, *(node.space for node in NODES))
cancelled = threading.Event()  # the demo is asked to end: whoever waits gives up


def run(*command: str | Path, fine: bool = True, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """A command and what it said. Raises Fault when it hangs, or fails though it must be `fine`."""
    try:
        done = subprocess.run(command, check=False, input=stdin, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        raise Fault(f"{' '.join(map(str, command))}: no end within a minute") from None
    if fine and done.returncode:
        raise Fault(f"{' '.join(map(str, command))}: {(done.stderr or done.stdout).strip()}")
    return done


def within(space: str, *command: str | Path, fine: bool = True) -> subprocess.CompletedProcess[str]:
    """The same, in a namespace."""
    return run("ip", "netns", "exec", space, *command, fine=fine)


def meshctl(node: Node, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """A node's command line, with that node's state; it may fail."""
    return within(node.space, BIN / "meshctl", *words, "--state-dir", node.state, fine=False)


def coordinator(*words: str, fine: bool = True) -> subprocess.CompletedProcess[str]:
    """The operator's command line."""
    return within(DESK, BIN / "mesh-coordinator", *words, "--data-dir", ROOT / "coordinator", fine=fine)


def spawn(space: str, log: str, *command: str | Path) -> subprocess.Popen[bytes]:
    """A process in a namespace and a session of its own, writing to logs/LOG. `ip netns exec` becomes it: same pid."""
    with (ROOT / "logs" / log).open("ab") as out:
        words = ["ip", "netns", "exec", space, *map(str, command)]
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)


def until(what: str, condition: Callable[[], T], within_s: float = 30.0, every_s: float = 0.1) -> T:
    """The first true answer of `condition`. Raises Fault when there is none in time."""
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        if cancelled.is_set() or time.monotonic() > deadline:
            raise Fault(f"{what}: not within {within_s:.0f} s")
        cancelled.wait(every_s)
    return found


def together(work: Callable[[Any], T], items: Iterable[Any]) -> list[T]:
    """`work` on all items at once."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(work, items))


class Helper:
    """flow.py or wire.py, run by the system's Python, which has never heard of the product. Ready once made."""

    def __init__(self, space: str, log: str, program: str, *words: str) -> None:
        self._name, self._log = f"{program} in {space}", ROOT / "logs" / log
        self._process = spawn(space, log, PYTHON, "-I", "-S", HERE / program, *words)
        until(f"{self._name} is ready", lambda: self._log.read_text().endswith("ready\n"), 15, 0.02)

    def begin(self) -> None:
        """Start sending."""
        self._process.send_signal(signal.SIGUSR1)

    def report(self) -> dict[str, Any]:
        """End it, and read what it counted."""
        self._process.terminate()
        until(f"{self._name} ends", lambda: self._process.poll() is not None, 20, 0.02)
        last = self._log.read_text().splitlines()[-1]
        if self._process.returncode:
            raise Fault(f"{self._name}: {last}")
        found: dict[str, Any] = json.loads(last)
        return found


def build() -> None:
    """Namespaces, cables, two bridges, and a router between them that forwards. Raises Fault."""
    (ROOT / "logs").mkdir(parents=True)
    ROOT.chmod(0o700)
    for space in SPACES:
        run("ip", "netns", "add", space)
        run("ip", "-n", space, "link", "set", "lo", "up")
    within(ROUTER, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    for bridge, mac, gateway in (("br-a", "0a", "198.51.100.1"), ("br-b", "0b", "203.0.113.1")):
        # With an address of its own: else a bridge takes the least of its ports', and neighbours know an old one.
        run("ip", "-n", ROUTER, "link", "add", bridge, "address", f"02:00:00:00:00:{mac}", "type", "bridge")
        run("ip", "-n", ROUTER, "address", "add", f"{gateway}/24", "dev", bridge)
        run("ip", "-n", ROUTER, "link", "set", bridge, "up")
    for space, address in ((DESK, DESK_ADDRESS), *((node.space, node.address) for node in NODES)):
        port, bridge = space.removeprefix("md-"), "br-a" if address.startswith("198.") else "br-b"
        run("ip", "link", "add", port, "netns", ROUTER, "type", "veth", "peer", "name", "eth0", "netns", space)
        run("ip", "-n", ROUTER, "link", "set", port, "master", bridge, "up")
        run("ip", "-n", space, "address", "add", f"{address}/24", "dev", "eth0")
        run("ip", "-n", space, "link", "set", "eth0", "up")
        run("ip", "-n", space, "route", "add", "default", "via", address.rpartition(".")[0] + ".1")


def leftovers() -> tuple[list[str], list[int], list[Path]]:
    """What of the demo is on this machine: namespaces, processes in them (by pid, whoever started them), paths."""
    there = {line.split()[0] for line in run("ip", "netns", "list").stdout.splitlines() if line}
    spaces = [space for space in SPACES if space in there]
    pids = [int(pid) for space in spaces for pid in run("ip", "netns", "pids", space, fine=False).stdout.split()]
    # Namespaces do not keep the control sockets of userspace WireGuard apart, so they are removed one by one.
    paths = [ROOT, *(Path(f"/var/run/wireguard/{node.space}.sock") for node in NODES)]
    return spaces, pids, [path for path in paths if path.exists()]


def remove() -> None:
    """Take it all away: processes kindly, then not; interfaces go with their namespaces."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        told: set[int] = set()
        deadline = time.monotonic() + STOP_WITHIN_S
        while (pids := leftovers()[1]) and time.monotonic() < deadline:
            for pid in set(pids) - told:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            told.update(pids)
            time.sleep(0.05)
    spaces, _, paths = leftovers()
    for space in spaces:
        run("ip", "netns", "del", space, fine=False)
    for path in paths[::-1]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
