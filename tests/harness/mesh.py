"""A whole mesh for tests: a namespace per machine on one wire, a coordinator with its etcd, agents: real processes.

    with Lab() as lab: a, b = lab.members("a", "b"); until(lambda: a.proves("b"), 20, "a proves b")

Everything is driven through the two command lines and the sockets they offer. Nothing is mocked. What was started or
made is ended and removed, by process id and by name, also when a test fails. Traffic stays on a wire of its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from coordinator.cli.local import call
from meshctl.agent.store import Store
from meshctl.cli import local
from meshctl.config import AgentConfig
from meshctl.errors import MeshError
from meshctl.mesh.admission import Token
from meshctl.mesh.psk import MARGIN_S
from meshctl.wire import operator, turns
from tests.harness.netns import Namespace, unique

T = TypeVar("T")
MESHCTL = (sys.executable, "-m", "meshctl.cli.main")
COORDINATOR = (sys.executable, "-m", "coordinator.cli.main")
PATIENCE = float(os.environ.get("MESHCTL_TESTS_PATIENCE", "1"))  # an emulated machine is ten times slower
READY_S = 40.0 * PATIENCE  # how long a busy machine may take for what takes one second on an idle one
HUB = "203.0.113.1"
PORT = 7443


def until(check: Callable[[], T], within_s: float, what: str | Callable[[], str]) -> T:
    """The first true answer of `check`; AssertionError that names `what`, as of then, when it does not come in time."""
    deadline = time.monotonic() + within_s
    while True:
        if found := check():
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s:.0f} s: {what() if callable(what) else what}")
        time.sleep(0.02)


@dataclass(frozen=True)
class Peer:
    """One line of `wg show dump`."""

    key: str
    endpoint: str
    allowed: str
    handshake: int
    rx: int
    tx: int
    keepalive: str


class Machine:
    """A namespace with one program that runs in it, and what that program says."""

    def __init__(self, ns: Namespace, log: Path) -> None:
        self.ns, self.log = ns, log
        self.environment: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def run(
        self, *command: str, stdin: str = "", environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """A command inside, to its end, whatever that is."""
        return subprocess.run(
            ["ip", "netns", "exec", self.ns.name, *command], input=stdin, text=True, capture_output=True,
            timeout=90 * PATIENCE, env={**os.environ, **self.environment, **(environment or {})},
        )  # fmt: skip

    def spawn(self, *command: str, log: Path | None = None) -> subprocess.Popen[bytes]:
        """A command inside that is left running; what it says goes to the log."""
        with (log or self.log).open("ab") as out:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.ns.name, *command], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                env={**os.environ, **self.environment}, start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self) -> int | None:
        """Of the program, while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End the program and wait for its end."""
        if self._process and self._process.poll() is None:
            self._process.send_signal(number)
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def signal(self, number: int) -> None:
        """To the program: SIGSTOP puts it to sleep, SIGCONT wakes it."""
        assert self._process
        self._process.send_signal(number)

    def asking(self, *words: str, stdin: str = "") -> Any:
        """What tests/harness/asking.py answers, run inside."""
        done = self.run(sys.executable, "-m", "tests.harness.asking", *words, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return msgspec.json.decode(done.stdout)

    def tail(self) -> str:
        """The last the program said."""
        return self.log.read_text(errors="replace")[-1500:] if self.log.exists() else "nothing"


class Coordinator(Machine):
    """`mesh-coordinator serve` with its embedded etcd."""

    def __init__(self, ns: Namespace, directory: Path, address: str) -> None:
        super().__init__(ns, directory / "coordinator.log")
        self.data, self.address = directory / "co", address
        self.program: tuple[str, ...] = COORDINATOR  # a test may have another one serve
        self.flags: tuple[str, ...] = ()  # of `serve`

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`mesh-coordinator WORDS --data-dir ...`"""
        return self.run(*COORDINATOR, *words, "--data-dir", str(self.data))

    def found(self, prefix4: str, *flags: str) -> None:
        """`init`."""
        done = self.command("init", "--name", "lab", "--advertise", self.address, "--prefix4", prefix4, *flags)
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        """`serve`, until it answers."""
        self.spawn_only()
        until(self.is_up, READY_S, f"the coordinator serves: {self.tail()}")

    def spawn_only(self) -> None:
        """`serve`, without waiting."""
        self._process = self.spawn(*self.program, "serve", "--data-dir", str(self.data), *self.flags)

    def is_up(self) -> bool:
        """Whether it answers its operators."""
        assert self.pid, f"the coordinator ended: {self.tail()}"
        with contextlib.suppress(MeshError):
            return bool(self.ask("Status", operator.nothing()))
        return False

    def ask(self, method: str, request: Any) -> Any:
        """One call of the Operator service."""
        return call(self.data, method, request, 30)

    def token(self, *, uses: int = 1, life_s: float = 3600, ephemeral: bool = False, tags: tuple[str, ...] = ()) -> str:
        """A fresh join token."""
        return str(self.ask("TokenCreate", operator.token_request(life_s, uses, tags, ephemeral, "")).text)

    def tokens(self) -> tuple[Token, ...]:
        """All tokens, without secrets."""
        return operator.tokens(self.ask("TokenList", operator.nothing()))

    def nodes(self) -> dict[str, operator.NodeState]:
        """Members by name."""
        return {state.node.name: state for state in operator.states(self.ask("NodeList", operator.nothing()))}

    def keys(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`meshctl keys WORDS` on this machine."""
        return self.run(*MESHCTL, "keys", *words, "--data-dir", str(self.data))

    def rotation(self) -> turns.RotationState:
        """The open rotation or the last one."""
        return turns.state(self.ask("Rotation", operator.nothing()))

    def revoke(self, name: str) -> None:
        """Out for good."""
        self.ask("Revoke", operator.named(name))

    def remove(self, name: str) -> None:
        """Out, but may come back."""
        self.ask("NodeRemove", operator.named(name))

    def etcdctl(self, *words: str) -> str:
        """etcdctl against the embedded etcd, with its client certificate."""
        etcd = self.data / "etcd"
        port, _ = msgspec.json.decode((etcd / "ports.json").read_bytes())
        tls = [f"--cacert={etcd}/tls/ca.pem", f"--cert={etcd}/tls/client.pem", f"--key={etcd}/tls/client.key"]
        done = self.run("etcdctl", f"--endpoints=127.0.0.1:{port}", *tls, *words, environment={"ETCDCTL_API": "3"})
        assert done.returncode == 0, done.stderr
        return done.stdout

    def etcd_pid(self) -> int | None:
        """Of the etcd that is our coordinator's child, while there is one."""
        for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/exe").readlink().name == "etcd":
                    return int(pid)
        return None


class Node(Machine):
    """One machine that is, or may become, a member."""

    def __init__(self, name: str, ns: Namespace, directory: Path, address: str) -> None:
        super().__init__(ns, directory / f"{name}.log")
        self.name, self.address, self.interface = name, address, unique("mn-")
        self.state = directory / name
        self.program: tuple[str, ...] = MESHCTL  # a test may have another agent
        self.config = AgentConfig(state_dir=self.state, interface=self.interface)

    def meshctl(self, *words: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        """`meshctl WORDS` for this machine's state directory and interface."""
        own = ("--state-dir", str(self.state), "--interface", self.interface)
        return self.run(*MESHCTL, *words, *own, stdin=stdin, environment=environment)

    def join(self, token: str, *flags: str) -> subprocess.CompletedProcess[str]:
        """`meshctl join -` with the token on standard input; the agent is not started."""
        return self.meshctl("join", "-", "--name", self.name, *flags, stdin=token)

    def begin_join(self, token: str) -> subprocess.Popen[bytes]:
        """The same, left running."""
        path = self.state.with_suffix(".token")
        path.write_text(token)
        own = ("--state-dir", str(self.state), "--interface", self.interface)
        return self.spawn(*MESHCTL, "join", f"@{path}", "--name", self.name, *own)

    def up(self, *flags: str) -> None:
        """Start the agent; returns at once."""
        own = ("--state-dir", str(self.state), "--interface", self.interface)
        self._process = self.spawn(*self.program, "up", *own, *flags)

    def status(self) -> dict[str, Any]:
        """The agent's picture; empty while it does not answer."""
        with contextlib.suppress(MeshError):
            return local.status(self.config)
        return {}

    def peer(self, name: str) -> dict[str, Any]:
        """What the agent says of one peer; empty when it does not know it."""
        return next((peer for peer in self.status().get("peers", []) if peer["name"] == name), {})

    def is_ripe(self, peer: Node) -> bool:
        """Whether the pre-shared key with this peer was set long enough ago here for a handshake to count."""
        held = Store(self.state).bunches().get(Store(peer.state).identity().id)
        return held is not None and 0 < held.set_at < time.time() - MARGIN_S - 1

    def proves(self, *names: str, younger_than_s: float = 4.0) -> bool:
        """Whether echoes to all of these were answered just now."""
        ages = {peer["name"]: peer["proven"]["age_s"] for peer in self.status().get("peers", [])}
        return all(ages.get(name) is not None and ages[name] < younger_than_s for name in names)

    def events(self, kind: str) -> list[dict[str, Any]]:
        """What the event log has of one kind."""
        path = self.state / "events.jsonl"
        lines = path.read_bytes().splitlines() if path.exists() else []
        return [event for event in map(msgspec.json.decode, lines) if event["event"] == kind]

    def peers(self) -> dict[str, Peer]:
        """WireGuard's own view, by public key; empty when there is no interface."""
        done = self.run("wg", "show", self.interface, "dump")
        rows = [line.split("\t") for line in done.stdout.splitlines()[1:]]
        return {row[0]: Peer(row[0], row[2], row[3], *map(int, row[4:7]), row[7]) for row in rows}

    def key(self) -> str:
        """Our public key, as WireGuard has it."""
        return self.run("wg", "show", self.interface, "public-key").stdout.strip()

    def mesh_address(self) -> str:
        """Our IPv4 address in the mesh."""
        return str(self.status()["node"]["address4"])

    def wireguard_go(self) -> int:
        """The process that serves our interface."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if path.read_bytes().split(b"\0")[:2] == [b"wireguard-go", self.interface.encode()]:
                    return int(path.parent.name)
        raise AssertionError(f"no wireguard-go serves {self.name}")

    def drop_interface(self) -> None:
        """As a reboot leaves it: no interface, and a wireguard-go that has ended."""
        self.run("ip", "link", "del", self.interface)
        until(lambda: not Path(f"/var/run/wireguard/{self.interface}.sock").exists(), 10, "wireguard-go ends")


class Lab:
    """Machines on one wire. Use as a context manager."""

    def __init__(
        self, *, prefix4: str = "10.77.0.0/16", environment: Mapping[str, str] | None = None, wire: bool = True
    ) -> None:
        self._prefix4, self._environment, self._wire = prefix4, dict(environment or {}), wire
        self._stack = contextlib.ExitStack()
        self.nodes: list[Node] = []

    def __enter__(self) -> Lab:
        with contextlib.ExitStack() as stack:
            # Short, because a unix socket's path has 107 bytes.
            self.directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mn-")))
            self.hub = stack.enter_context(Namespace(unique("mn-")))
            # Else a bridge takes the least of its ports' addresses, and neighbour tables are wrong after a new machine.
            self.hub.command("ip", "link", "add", "wire", "address", "02:00:00:00:00:01", "type", "bridge")
            self.hub.command("ip", "address", "add", f"{HUB}/24", "dev", "wire")
            self.hub.command("ip", "link", "set", "wire", "up")
            self._coordinate(stack)
            self._stack = stack.pop_all()
        return self

    def _coordinate(self, stack: contextlib.ExitStack) -> None:
        """Found the mesh and serve it."""
        self.coordinator = Coordinator(self.hub, self.directory, f"{HUB}:{PORT}")
        stack.callback(self.coordinator.stop)
        self.coordinator.environment = self._environment
        self.coordinator.found(self._prefix4)
        self.coordinator.start()

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def machine(self, name: str, *, wired: bool = True) -> Node:
        """A machine that is no member yet; unless not `wired`, it is on the wire."""
        number = len(self.nodes) + 10
        ns = self._stack.enter_context(Namespace(unique("mn-")))
        node = Node(name, ns, self.directory, f"203.0.113.{number}")
        self.nodes.append(node)
        self._stack.callback(node.stop)
        if wired:
            self.plug(ns, node.address)
        return node

    def plug(self, ns: Namespace, *addresses: str) -> None:
        """A cable `eth0` from `ns` to the wire, with these addresses."""
        far = unique("mn")
        self.hub.command("ip", "link", "add", far, "type", "veth", "peer", "name", "eth0", "netns", ns.name)
        self.hub.command("ip", "link", "set", far, "master", "wire", "up")
        for address in addresses:
            ns.command("ip", "address", "add", f"{address}/24", "dev", "eth0")
        ns.command("ip", "link", "set", "eth0", "up")

    def member(self, name: str, *flags: str) -> Node:
        """A machine that has joined and whose agent runs."""
        node = self.machine(name)
        done = node.join(self.coordinator.token(), *flags)
        assert done.returncode == 0, done.stderr
        node.up()
        return node

    def members(self, *names: str) -> tuple[Node, ...]:
        """Several members, proven to each other."""
        made = tuple(self.member(name) for name in names)
        for node in made:
            others = [name for name in names if name != node.name]
            until(
                lambda node=node, others=others: node.proves(*others),
                READY_S,
                f"{node.name} proves {others}: {node.tail()}",
            )
        return made
