"""Nine nodes on one wire that are attacked, a stranger's WireGuard beside them, and hands to do it with (NET-7).

Hands touch the kernel, the wire or a process, never the agent's own words. Node `d` is behind a middlebox; the
coordinator is real, only its feed can be made to lie about a key statement (tests/netns/forger.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from meshctl.agent.store import Store
from tests.harness.mesh import PORT, READY_S, Lab, Node, until
from tests.harness.netns import Namespace, unique

NAMES = "abcdefghi"  # below ten everybody tests everybody in each round
ROOT = Path(__file__).resolve().parents[2]
FORGER = str(ROOT / "tests" / "netns" / "forger.py")
STRANGER = "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08="  # a public key that nobody here has
STRANGER_AT = "203.0.113.200"


class Scene:
    """Use as a context manager."""

    def __init__(self) -> None:
        self.lab = Lab()
        self.rotating = threading.Lock()  # one rotation is open at a time
        self.left: dict[str, subprocess.Popen[bytes]] = {}
        self.statement: dict[str, str] = {}  # the first one of each, as it was signed

    def __enter__(self) -> Scene:
        with contextlib.ExitStack() as stack:
            lab = stack.enter_context(self.lab)
            stack.callback(self.end)
            self.lies = lab.directory / "lies.json"
            self.lies.write_text("{}")
            self.stranger = stack.enter_context(Namespace(unique("mn-")))
            self._stand_by()
            self.nodes = {name: self._member(name) for name in NAMES}
            for node in self.nodes.values():
                others = [name for name in NAMES if name != node.name]
                until(lambda node=node, others=others: node.proves(*others), READY_S, f"{node.name}: {node.tail()}")
            self.statement = {n: s.node.statement.signed.hex() for n, s in lab.coordinator.nodes().items()}
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def _member(self, name: str) -> Node:
        node = self.lab.machine(name, wired=name != "d")
        if name == "d":
            self._behind_a_middlebox(node)
        done = node.join(self.lab.coordinator.token())
        assert done.returncode == 0, done.stderr
        node.up()
        return node

    def _behind_a_middlebox(self, node: Node) -> None:
        hub, near, far, port = self.lab.hub, unique("mn"), unique("mn"), unique("mn")
        hub.command("ip", "link", "add", near, "type", "veth", "peer", "name", "eth0", "netns", node.ns.name)
        hub.command("ip", "link", "add", far, "type", "veth", "peer", "name", port)
        hub.command("ip", "link", "set", port, "master", "wire")
        for interface in (near, far):
            hub.command("sysctl", "-qw", f"net.ipv6.conf.{interface}.disable_ipv6=1")
        for interface in (near, far, port):
            hub.command("ip", "link", "set", interface, "up")
        node.ns.command("ip", "address", "add", f"{node.address}/24", "dev", "eth0")
        node.ns.command("ip", "link", "set", "eth0", "up")
        self.orders = self.lab.directory / "middlebox.json"
        self.order()
        self.leave("middlebox", sys.executable, "-m", "tests.attacks.middlebox", near, far, str(self.orders))

    def _stand_by(self) -> None:
        """A WireGuard that is nobody's here."""
        self.lab.plug(self.stranger, STRANGER_AT)
        name = unique("mn-")
        commands = f"wireguard-go {name} && wg genkey | wg set {name} listen-port 51820 private-key /dev/stdin"
        self.stranger.command("sh", "-ec", f"{commands} && ip link set {name} up")

    # ---- hands -------------------------------------------------------------------------------------------------------

    def do(self, name: str, *command: str) -> None:
        """A command on a node's machine."""
        done = self[name].run(*command)
        assert done.returncode == 0, f"{command}: {done.stderr}"

    def wg(self, name: str, *words: str) -> None:
        """`wg set INTERFACE WORDS`."""
        self.do(name, "wg", "set", self[name].interface, *words)

    def leave(self, what: str, *command: str, at: Namespace | None = None) -> None:
        """Start a program that goes on; on the wire's own machine if none is named."""
        where = ["ip", "netns", "exec", (at or self.lab.hub).name]
        log = (self.lab.directory / f"{what}.log").open("ab")
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.left[what] = subprocess.Popen([*where, *command], stdout=log, stderr=log, env=environment)
        log.close()

    def take(self, what: str) -> None:
        """End it."""
        process = self.left.pop(what)
        process.kill()
        process.wait()

    def end(self) -> None:
        """All that is left, and wake who sleeps."""
        for what in list(self.left):
            self.take(what)
        for node in getattr(self, "nodes", {}).values():
            if node.pid:
                node.signal(signal.SIGCONT)

    def order(self, *, copies: int = 1, delay_s: float = 0.0) -> None:
        """Tell the middlebox."""
        fresh = self.orders.with_suffix(".new")
        fresh.write_text(json.dumps({"copies": copies, "delay_s": delay_s}))
        fresh.replace(self.orders)

    def carried(self) -> int:
        """Frames that went through the middlebox."""
        with contextlib.suppress(OSError, ValueError):
            return int(Path(f"{self.orders}.count").read_text())
        return 0

    def filter(self, at: Namespace, name: str, **rules: str) -> None:
        """A table of nftables, FAMILY NAME, with one rule per hook."""
        kind = {"output": "route"}  # looks again where a packet goes that was changed
        chains = (
            f"chain {hook} {{ type {kind.get(hook, 'filter')} hook {hook} priority 0; {rule}; }}; "
            for hook, rule in rules.items()
        )
        at.command("nft", "-f", "-", stdin=f"table {name} {{ {''.join(chains)}}}\n")

    def unfilter(self, at: Namespace, name: str) -> None:
        """Take it away."""
        at.command("nft", "delete", "table", *name.split())

    def drop_on_the_wire(self, name: str, source: str, target: str) -> None:
        """WireGuard's packets from one node to another, between them."""
        match = f"ip saddr {self[source].address} ip daddr {self[target].address} udp dport 51820"
        self.filter(self.lab.hub, f"bridge {name}", forward=f"{match} drop")

    def cut_off(self, name: str) -> None:
        """From the coordinator."""
        self.filter(self[name].ns, "inet cut", input=f"tcp sport {PORT} drop", output=f"tcp dport {PORT} drop")

    def restart(self, name: str, *program: str, **environment: str) -> float:
        """Another agent on the same machine -> when it began."""
        node = self[name]
        node.stop()
        node.environment = environment
        node.program = program or type(node)("", node.ns, self.lab.directory, "").program
        node.up()
        return time.monotonic()

    def tell(self, name: str, statement: str) -> float:
        """Have the coordinator say this of a node, nothing: the truth -> when it began to."""
        node = Store(self[name].state).identity().id
        self.lies.write_text(json.dumps({node: statement} if statement else {}))
        coordinator = self.lab.coordinator
        coordinator.program, coordinator.environment = (sys.executable, FORGER), {"FORGER_FILE": str(self.lies)}
        coordinator.stop()
        coordinator.start()
        return time.monotonic()

    def rotate(self, name: str, *flags: str) -> None:
        """`meshctl keys rotate`."""
        with self.rotating:
            until(lambda: not self.lab.coordinator.rotation().is_open, 60, "no rotation is open")
            done = self.lab.coordinator.keys("rotate", "--node", name, *flags)
        assert done.returncode == 0, done.stdout + done.stderr
