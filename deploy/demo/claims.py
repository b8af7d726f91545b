"""What the demo claims, phase by phase, and how each claim is measured: from outside the product, wherever that can be."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import lab
import show
from lab import COORDINATOR, COORDINATOR_ADDRESS, NODES, PORT, ROOT, ROUTER, Fault, Node, coordinator, meshctl, status, until, within

RATE, FLOW_PORT = 200, 40100  # packets a second, per pair and direction
DARK_S = 6.0  # how long there is no coordinator
A1, A2, B1, B2 = NODES


class Demo:
    """The phases, in the order in which they run. Holds what one phase leaves to the next."""

    def __init__(self) -> None:
        self.server: subprocess.Popen[bytes] | None = None
        self.address: dict[Node, str] = {}
        self.key: dict[Node, str] = {}
        self.tokens: list[str] = []

    # ---- a mesh ------------------------------------------------------------------------------------------------------

    def coordinator_starts(self) -> None:
        """A mesh is made and served."""
        words = f"init --name demo --advertise {COORDINATOR_ADDRESS}:{PORT} --prefix4 {lab.PREFIX4}"
        show.command("coordinator", f"mesh-coordinator {words}", coordinator(*words.split()).stdout)
        show.command("coordinator", "mesh-coordinator serve &")
        self._serve()
        self.tokens = lab.together(lambda _: self._token(), NODES)
        show.command("coordinator", "mesh-coordinator token create", f"{self.tokens[0][:12]}...  (four of them, for one use each)")

    def _serve(self) -> None:
        program = lab.BIN / "mesh-coordinator"
        self.server = lab.spawn(COORDINATOR, "coordinator.log", program, "serve", "--data-dir", ROOT / "coordinator")
        until("the coordinator serves", lambda: coordinator("status", fine=False).returncode == 0)

    def _token(self) -> str:
        return coordinator("token", "create").stdout.strip()

    def nodes_join(self) -> None:
        """Four agents join at the same moment, while a watcher reads the cables."""
        for node, token in zip(NODES, self.tokens, strict=True):
            (path := ROOT / f"{node.name}.token").touch(0o600)
            path.write_text(token)
        with lab.helper(ROUTER, "wire-join.log", "wire.py", lab.PREFIX4, str(PORT), str(FLOW_PORT)) as watched:
            at = time.monotonic()
            for node in NODES:
                show.command(node.name, "meshctl join @token --up &")
                lab.spawn(
                    node.space, f"{node.name}.log", lab.BIN / "meshctl", "join", f"@{ROOT / node.name}.token", "--up",
                    "--name", node.name, "--interface", node.space, "--state-dir", node.state,
                )  # fmt: skip
            proven = until("every pair is proven", self._all_proven, 60)
            took, seen = time.monotonic() - at, watched()
        for node in NODES:
            show.note(f"{node.name}: " + "; ".join(re.findall(r"(?m)^(?:joined|first|the mesh).*", self._log(node))))
        show.command(A1.name, "meshctl status", meshctl(A1, "status", fine=False).stdout)
        show.command("coordinator", "mesh-coordinator nodes list", coordinator("nodes", "list").stdout)
        show.claim("four nodes at two providers joined, and every pair is proven in both directions", proven == 12,
                   f"{proven} of 12 directions, {took:.1f} s after the first join was typed")  # fmt: skip
        suites = [seen["hellos"].get(node.address, "none") for node in NODES]
        show.claim("the ServerHello each of them got says TLS_AES_256_GCM_SHA384, read from the wire",
                   suites == ["0x1302"] * 4 and not seen["clear"], f"{', '.join(suites)}")  # fmt: skip
        self.address = {node: status(node)["node"]["address4"] for node in NODES}
        self.key = {node: within(node.space, "wg", "show", node.space, "public-key").stdout.strip() for node in NODES}

    def _log(self, node: Node) -> str:
        return (ROOT / "logs" / f"{node.name}.log").read_text()

    def _all_proven(self, nodes: tuple[Node, ...] = NODES) -> int:
        """How many directions are proven, once all are."""
        good = sum(peer["state"] == "ok" for found in lab.together(status, nodes) for peer in found.get("peers", ()))
        return good if good >= len(nodes) * (len(nodes) - 1) else 0

    def weaker_is_refused(self) -> None:
        """The same port, asked for less."""
        answers = []
        for words in ("-tls1_2", "-tls1_3 -ciphersuites TLS_AES_128_GCM_SHA256", "-tls1_3"):
            typed = f"openssl s_client -connect {COORDINATOR_ADDRESS}:{PORT} {words}"
            done = within(B2.space, *typed.split(), fine=False, timeout=20)
            said = re.search(r"alert [a-z ]+[a-z]|(?<=Cipher is )TLS\S+", done.stdout + done.stderr)
            answers.append(said[0] if said else "no answer")
            show.command(B2.name, typed, answers[-1])
        refused = all(answer.startswith("alert") for answer in answers[:2])
        show.claim("TLS 1.2 and AES-128 are refused; the same client without these limits is served",
                   refused and answers[2] == "TLS_AES_256_GCM_SHA384", "; ".join(answers))  # fmt: skip

    # ---- without a coordinator ---------------------------------------------------------------------------------------

    def coordinator_dies(self) -> None:
        """kill -9 under traffic on every pair, then a restart. The bare underlay carries the same traffic as a control."""
        show.note(f"a program that knows nothing of the mesh sends {RATE} packets/s on every pair, both ways;")
        show.note("the same again over the bare underlay, as a control")
        with ExitStack() as stack:
            flows = [stack.enter_context(lab.helper(n.space, f"flow-{n.name}.log", "flow.py", *self._flow(n))) for n in NODES]
            time.sleep(1)
            before = {node: self._standing(node) for node in NODES}
            self._kill()
            time.sleep(DARK_S / 2)
            said = meshctl(B1, "status", fine=False).stdout
            show.command(B1.name, "meshctl status", said)
            honest = re.search(r"^! coordinator \S+ not connected since (\d+)s", said, re.MULTILINE)
            show.claim("meshctl status says that nobody is there, and proves its tunnels on", bool(honest) and said.count(" ok\n") == 3,
                       f"not connected since {honest[1] if honest else '?'} s, {said.count(chr(32) + 'ok' + chr(10))} of 3 tunnels proven")  # fmt: skip
            time.sleep(DARK_S / 2)
            dark = time.monotonic() - self.died
            self._resume(before)
            reports = lab.together(lambda flow: flow(), flows)
        self._count(reports, dark)

    def _flow(self, node: Node, peers: tuple[Node, ...] = NODES) -> list[str]:
        others = [peer for peer in peers if peer is not node]
        mesh, underlay = ",".join(self.address[p] for p in others), ",".join(p.address for p in others)
        return [str(RATE), str(FLOW_PORT), f"{self.address[node]}={mesh}", f"{node.address}={underlay}"]

    def _standing(self, node: Node) -> tuple[int, int, int]:
        """Revision in force, when the map on disk was written, how many steps were ever applied to the interface."""
        return status(node)["revision"]["applied"], (node.state / "map").stat().st_mtime_ns, len(self._events(node, "interface.step-applied"))

    def _events(self, node: Node, kind: str) -> list[dict[str, Any]]:
        lines = meshctl(node, "logs", "--json", "--lines", "100000").stdout.splitlines()
        return [event for line in lines if (event := json.loads(line))["event"] == kind]

    def _kill(self) -> None:
        assert self.server
        etcd = int(lab.run("pgrep", "--parent", str(self.server.pid), "--exact", "etcd").stdout)
        for pid in (self.server.pid, etcd):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.died = time.monotonic()
        show.command("coordinator", f"kill -9 {self.server.pid} {etcd}    (coordinator, etcd)")
        self.server.wait()
        until("etcd is gone", lambda: not Path(f"/proc/{etcd}").exists(), 5)

    def _resume(self, before: dict[Node, tuple[int, int, int]]) -> None:
        show.command("coordinator", "mesh-coordinator serve &")
        at = time.monotonic()
        self._serve()
        until("all nodes are connected again", lambda: sum(n["connected"] for n in self._listed()) == len(NODES), 60)
        took = time.monotonic() - at
        time.sleep(0.5)
        after = {node: self._standing(node) for node in NODES}
        at_revision = {self._events(node, "session.opened")[-1]["revision"] for node in NODES}
        show.claim("back again: every node resumed at its own revision; no map was sent, no interface touched",
                   after == before and at_revision == {before[A1][0]},
                   f"{took:.1f} s, revision {', '.join(map(str, at_revision))}, {sum(after[n][1] != before[n][1] for n in NODES)} maps, "
                   f"{sum(after[n][2] - before[n][2] for n in NODES)} steps")  # fmt: skip

    def _listed(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(coordinator("nodes", "list", "--json").stdout)
        return found

    def _count(self, reports: list[dict[str, Any]], dark: float) -> None:
        sent, lost, gap, double = {"mesh": 0, "underlay": 0}, {"mesh": 0, "underlay": 0}, 0, 0
        received = {direction: seen for report in reports for direction, seen in report["received"].items()}
        for direction, (count, _) in ((d, c) for report in reports for d, c in report["sent"].items()):
            kind = "mesh" if direction.split(">")[0] in self.address.values() else "underlay"
            arrived, again, silence = received[direction]
            sent[kind], lost[kind], double = sent[kind] + count, lost[kind] + count - arrived, double + again
            gap = max(gap, silence) if kind == "mesh" else gap
        show.claim(f"no packet was lost while coordinator and etcd were dead for {dark:.1f} s, nor when they came back",
                   lost["mesh"] <= lost["underlay"] and sent["mesh"] > 0 and not double,
                   f"{lost['mesh']} of {sent['mesh']} lost on 12 directions (control: {lost['underlay']} of {sent['underlay']}), "
                   f"longest silence {gap} ms")  # fmt: skip

    # ---- strangers ---------------------------------------------------------------------------------------------------

    def hands_off(self) -> None:
        """Two kinds of interference, on two nodes at once; each takes the agent's grace period to become a finding."""
        a, b = lab.together(lambda interfere: interfere(), (self._foreign_key, self._leaking_route))
        for typed, text, held, figure in (a, b):
            for line in typed:
                show.command(*line)
            show.claim(text, held, figure)

    def _foreign_key(self) -> tuple[list[tuple[str, ...]], str, bool, str]:
        own, ip = self.key[B1], f"{self.address[B1]}/32"
        foreign = lab.run("wg", "pubkey", stdin=lab.run("wg", "genkey").stdout).stdout.strip()
        typed = [f"wg set {A2.space} peer {own} remove", f"wg set {A2.space} peer {foreign} allowed-ips {ip}"]
        at = time.monotonic()
        for words in typed:
            within(A2.space, *words.split())

        def repaired() -> bool:
            held = dict(line.split("\t") for line in within(A2.space, "wg", "show", A2.space, "allowed-ips").stdout.splitlines())
            return foreign not in held and ip in held.get(own, "")

        until("the key is put back", repaired, 20, 0.02)
        fixed = time.monotonic() - at
        until("the tunnel is proven again", lambda: any(p["name"] == B1.name and p["state"] == "ok" for p in status(A2)["peers"]), 30)
        proven = time.monotonic() - at
        said = self._finding(A2, "MESH-CFG-001")
        steps = [e["step"] for e in self._events(A2, "interface.step-applied") if e.get("foreign")]
        shown = [*((A2.name, words) for words in typed), (A2.name, "meshctl health", said)]
        return shown, "a peer's key exchanged behind the agent's back is put back, and told", {"add-peer", "remove-peer"} <= set(steps), (
            f"undone after {fixed:.1f} s, tunnel proven after {proven:.1f} s, in the log: {', '.join(steps)}"
        )

    def _finding(self, node: Node, code: str) -> str:
        """`meshctl health` of the node, once it has a finding with this code."""

        def told() -> str:
            said = meshctl(node, "health", fine=False).stdout
            return said if code in said else ""

        return until(f"{node.name} tells {code}", told, 30)

    def _leaking_route(self) -> tuple[list[tuple[str, ...]], str, bool, str]:
        typed = f"ip route add {self.address[B2]}/32 via 198.51.100.1 dev eth0"
        with ExitStack() as stack:
            watched = stack.enter_context(lab.helper(ROUTER, "wire-leak.log", "wire.py", lab.PREFIX4, str(PORT), str(FLOW_PORT)))
            within(A1.space, *typed.split())
            at = time.monotonic()
            flow = stack.enter_context(lab.helper(A1.space, "flow-leak.log", "flow.py", *self._flow(A1, (A1, B2))))
            said = self._finding(A1, "MESH-ROUTE-001")
            took, sent, seen = time.monotonic() - at, flow()["sent"][f"{self.address[A1]}>{self.address[B2]}"], watched()
        within(A1.space, *typed.replace("add", "del").split())
        until("the finding closes", lambda: "MESH-ROUTE-001" not in meshctl(A1, "health", fine=False).stdout, 30)
        held = sent[0] > 0 and seen["flow"] > 0 and not seen["clear"] and not seen["missed"]
        return [(A1.name, typed), (A1.name, "meshctl health", said)], "a route that leads a mesh address past the tunnel leaks nothing, and is found", held, (
            f"{seen['clear']} of {sent[0]} packets in clear on the underlay, found after {took:.1f} s "
            f"(the watcher saw {seen['flow']} packets of the control, missed {seen['missed']})"
        )

    # ---- out ---------------------------------------------------------------------------------------------------------

    def node_is_revoked(self) -> None:
        """Thrown out: from the registry, from every kernel, and at the door."""
        stay = (A1, A2, B1)
        until("every pair is proven again", self._all_proven, 60)
        before = [self._pings(node, B2) for node in stay]
        done = coordinator("revoke", B2.name, "--wait", "--reason", "demo", fine=False)
        show.command("coordinator", f"mesh-coordinator revoke {B2.name} --wait", done.stdout + done.stderr)
        seconds = re.search(r"applied by 3 connected nodes in ([\d.]+) s", done.stdout)
        show.claim("a node is revoked, and every other node says that it followed", done.returncode == 0 and bool(seconds),
                   f"{seconds[1] if seconds else '?'} s, 3 of 3 nodes")  # fmt: skip
        holders = [node.name for node in stay if self.key[B2] in within(node.space, "wg", "show", node.space, "peers").stdout]
        show.claim("no kernel holds its key any more", not holders, f"{len(holders)} of 3 by `wg show`")
        after = lab.together(lambda node: self._pings(node, B2), stay)
        control = lab.together(lambda node: self._pings(node, stay[stay.index(node) - 1]), stay)
        show.claim("nobody reaches it, though its own agent and keys are still there", all(before) and not any(after) and all(control),
                   f"ping before {sum(before)} of 3, now {sum(after)} of 3, among the others {sum(control)} of 3")  # fmt: skip
        self._knock()

    def _pings(self, node: Node, peer: Node) -> bool:
        return within(node.space, "ping", "-c1", "-W1", self.address[peer], fine=False).returncode == 0

    def _knock(self) -> None:
        """The same machine with the same device key and a token that was just made."""
        self.tokens.append(self._token())
        (ROOT / f"{B2.name}.token").write_text(self.tokens[-1])
        (B2.state / "membership").unlink(missing_ok=True)
        words = ("join", f"@{ROOT / B2.name}.token", "--name", B2.name, "--interface", "md-again", "--listen-port", "51999")
        done = meshctl(B2, *words, fine=False)
        show.command(B2.name, "rm membership; meshctl join @fresh-token", done.stdout + done.stderr)
        show.claim("a fresh token does not let it in again", done.returncode != 0 and "was revoked" in done.stderr, f"exit code {done.returncode}")

    # ---- at rest -----------------------------------------------------------------------------------------------------

    def nothing_in_clear(self) -> None:
        """Looks for every secret of the demo, in four spellings, in all that was written."""
        private = [within(n.space, "wg", "show", n.space, "private-key").stdout.strip() for n in NODES]
        keys = [(ROOT / "coordinator" / "kek").read_bytes().strip(), *((n.state / "seal.key").read_bytes() for n in NODES)]
        raw = [*map(base64.b64decode, private), *keys, *(_secret(token) for token in self.tokens)]
        secrets = {t.encode() for t in self.tokens} | {spelled for key in raw for spelled in _spellings(key)}
        logs = b"".join(path.read_bytes() for path in ROOT.rglob("*") if path.suffix in {".log", ".jsonl"})
        store = self._snapshot() + b"".join(path.read_bytes() for path in (ROOT / "coordinator/etcd/etcd").rglob("*") if path.is_file())
        told = [n.name.encode() for n in NODES] + [a.encode() for n in NODES for a in (self.address[n], n.address)]
        ids = [n["id"].encode() for n in self._listed()]
        show.note("what is looked for is there: ids of nodes are paths in etcd, names of nodes are in the event logs")
        show.claim("no log holds a token or key", _hits(logs, secrets) == 0 and _hits(logs, told) > 0,
                   f"{_hits(logs, secrets)} of {len(secrets)} spellings in {len(logs) / 1e3:.0f} kB")  # fmt: skip
        show.claim("etcd holds no token, key, node name or address: not in a snapshot, not in its files",
                   _hits(store, {*secrets, *told}) == 0 and _hits(store, ids) == len(ids),
                   f"{_hits(store, {*secrets, *told})} of {len(secrets) + len(told)} in {len(store) / 1e6:.0f} MB ({_hits(store, ids)} of {len(ids)} ids)")  # fmt: skip

    def _snapshot(self) -> bytes:
        home = ROOT / "coordinator" / "etcd"
        port, tls, target = json.loads((home / "ports.json").read_text())[0], home / "tls", ROOT / "snapshot.db"
        flags = (f"--endpoints=127.0.0.1:{port}", f"--cacert={tls}/ca.pem", f"--cert={tls}/client.pem", f"--key={tls}/client.key")
        within(COORDINATOR, "env", "ETCDCTL_API=3", "etcdctl", *flags, "snapshot", "save", target)
        show.command("coordinator", f"etcdctl snapshot save {target.name}", f"{target.stat().st_size / 1e3:.0f} kB")
        return target.read_bytes()

    def nothing_is_left(self) -> None:
        """The demo cleans up after itself."""
        lab.remove()
        left = lab.leftovers()
        show.claim("the demo leaves nothing behind: no namespace, process, socket or file", not left, f"{len(left)} left {' '.join(left[:3])}".strip())


def _secret(token: str) -> bytes:
    """The one-time secret inside a token: 32 bytes after the CA's fingerprint and the token's id."""
    body = token.removeprefix("mesh1.")
    secret = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))[40:72]
    if len(secret) != 32:
        raise Fault("this is no join token")
    return secret


def _spellings(key: bytes) -> set[bytes]:
    return {key, key.hex().encode(), base64.b64encode(key).rstrip(b"="), base64.urlsafe_b64encode(key).rstrip(b"=")}


def _hits(where: bytes, what: Any) -> int:
    return sum(item in where for item in what)
