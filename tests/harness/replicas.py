"""Two coordinators on an etcd cluster of three, a machine each, on the wire of a lab; all with little patience (OPS-2).

    with Replicas() as lab: a, b, c = lab.members("a", "b", "c"); lab.two.stop(signal.SIGKILL)

A `patient` lab has that of the product. `lab.coordinator` is the first. The second is made as the README says: a copy
of the key file and the settings.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from meshctl.wire import operator, overview
from tests.harness.cluster import CLIENT, Cluster
from tests.harness.mesh import COORDINATOR, MESHCTL, PORT, READY_S, Coordinator, Lab, Node, until
from tests.harness.netns import Namespace, unique

HASTY = (sys.executable, "-m", "tests.harness.hasty")
NO_ETCD = (
    f"table inet cut {{ chain i {{ type filter hook input priority 0; tcp sport {CLIENT} drop; }}; "
    f"chain o {{ type filter hook output priority 0; tcp dport {CLIENT} drop; }}; }}\n"
)
NO_NODES = (
    f"table inet cut {{ chain i {{ type filter hook input priority 0; tcp dport {PORT} drop; }}; "
    f"chain o {{ type filter hook output priority 0; tcp sport {PORT} drop; }}; }}\n"
)

NO_COORDINATORS = (
    f"table inet cut {{ chain i {{ type filter hook input priority 0; tcp sport {PORT} drop; }}; "
    f"chain o {{ type filter hook output priority 0; tcp dport {PORT} drop; }}; }}\n"
)


class Replica(Coordinator):
    """One of several coordinators."""

    def __init__(self, ns: Namespace, directory: Path, address: str) -> None:
        directory.mkdir()
        super().__init__(ns, directory, address)

    def cut(self, rules: str) -> None:
        """NO_ETCD or NO_NODES."""
        self.ns.command("nft", "-f", "-", stdin=rules)

    def mend(self) -> None:
        """Awake, uncut, running."""
        self.ns.command("nft", "delete", "table", "inet", "cut", check=False)
        if self.pid:
            self.signal(signal.SIGCONT)
        else:
            self.start()

    def overview(self) -> overview.Overview:
        """`status`."""
        return overview.status(self.ask("Status", operator.nothing()))

    def has(self, name: str) -> bool:
        """Whether this very coordinator has a stream of the node."""
        state = self.nodes().get(name)
        return state is not None and state.connected and not state.via

    def waiting(self, *words: str) -> subprocess.Popen[bytes]:
        """`mesh-coordinator WORDS`, left running; what it says is in `said`."""
        self.words.unlink(missing_ok=True)
        program = (sys.executable, "-m", "coordinator.cli.main")
        return self.spawn(*program, *words, "--data-dir", str(self.data), log=self.words)

    @property
    def words(self) -> Path:
        """Where that is."""
        return self.data.parent / "words.log"

    def said(self) -> str:
        """What a command left running printed."""
        return self.words.read_text()


class Replicas(Lab):
    """Use as a context manager."""

    one: Replica
    two: Replica

    def __init__(self, *, patient: bool = False) -> None:
        super().__init__()
        self._patient = patient

    def _coordinate(self, stack: contextlib.ExitStack) -> None:
        self.cluster = Cluster(stack, self.directory / "etcd", self.plug)
        self.cluster.start()
        made = []
        for name, address in (("one", "203.0.113.5"), ("two", "203.0.113.6")):
            ns = stack.enter_context(Namespace(unique("mn-")))
            self.plug(ns, address)
            made.append(Replica(ns, self.directory / name, f"{address}:{PORT}"))
            made[-1].program = COORDINATOR if self._patient else (*HASTY, "mesh-coordinator")
            stack.callback(made[-1].stop)
        self.one, self.two = made
        self.coordinator = self.one
        self.one.found(self._prefix4, *self.cluster.flags)
        self.two.data.mkdir(mode=0o700)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=0700", "mn-lab", self.two.data], check=True)
        stack.callback(subprocess.run, ["umount", "-l", self.two.data], check=False)
        for name in ("kek", "coordinator.toml"):
            shutil.copy2(self.one.data / name, self.two.data / name)
        self.two.flags = ("--advertise", self.two.address)
        for coordinator in made:
            coordinator.start()
        until(lambda: all(len(c.overview().coordinators) == 2 for c in made), READY_S, "they know each other")

    def machine(self, name: str, *, wired: bool = True) -> Node:
        node = super().machine(name, wired=wired)
        node.program = MESHCTL if self._patient else (*HASTY, "meshctl")
        return node

    def victim(self, name: str) -> str:
        """A member that no machine is, to be thrown out: its WireGuard key."""
        folder = self.directory / f"victim-{name}"
        alive = next(c for c in self.coordinators if c.pid)
        (end,) = alive.asking("join", "1", str(folder), name, stdin=alive.token())
        assert "error" not in end, end
        return str(alive.nodes()[name].node.statement.wireguard)

    @property
    def coordinators(self) -> tuple[Replica, Replica]:
        return self.one, self.two

    def at(self, node: Node) -> Replica | None:
        """Where the node's stream goes, by its own word."""
        link = node.status().get("link", {})
        return next((c for c in self.coordinators if link.get("connected") and link["coordinator"] == c.address), None)

    def send(self, where: Replica, *nodes: Node) -> None:
        """Have these nodes connected there: the other one does not let them in for a moment."""
        other = self.two if where is self.one else self.one
        if not all(self.at(node) is where for node in nodes):
            other.stop()
            until(lambda: all(self.at(node) is where for node in nodes), READY_S, f"all at {where.address}")
            other.start()
        until(lambda: all(where.has(node.name) for node in nodes), READY_S, "and it knows")
        until(lambda: self._seen(other, nodes), READY_S, "and so does the other one")

    @staticmethod
    def _seen(other: Replica, nodes: tuple[Node, ...]) -> bool:
        found = other.nodes()
        return all(found[node.name].connected and found[node.name].via for node in nodes)

    def mend(self, *up: Node) -> None:
        """Everything as it was, and these nodes connected."""
        self.cluster.mend()
        for coordinator in self.coordinators:
            coordinator.mend()
        for node in up:
            node.signal(signal.SIGCONT)
        for name in self.one.nodes().keys() - {node.name for node in up}:  # what a test that failed left behind
            self.one.remove(name)
        until(lambda: all(self.at(node) for node in up), 60, f"all are connected: {[n.tail() for n in up]}")
        until(lambda: all(c.overview().connected >= len(up) for c in self.coordinators), READY_S, "and known as such")

    def all_prove(self, *nodes: Node) -> bool:
        """Whether each of these proved all others just now."""
        return all(n.proves(*(o.name for o in nodes if o is not n)) for n in nodes)

