"""What the demo claims, phase by phase, and how each claim is measured: from outside the product where that can be."""

import base64
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import lab
import show
from lab import A1, A2, B1, B2, NODES, ROOT, Helper, Node, coordinator, meshctl, until, within

PORT, FLOW_PORT, PREFIX4 = 7443, 40100, "10.77.0.0/16"
RATE = 200  # packets a second, per pair and direction
LINGER_S = 0.5  # of traffic after the last switch
DARK_S = 5.0  # how long there is no coordinator before it is started again
WIRE = (PREFIX4, str(PORT), str(FLOW_PORT))


class Demo:
    """The phases, in order, and what one leaves to the next."""

    server: subprocess.Popen[bytes]
    starts = 0
    joined = False

    def coordinator_starts(self) -> None:
        words = f"init --name demo --advertise {lab.DESK_ADDRESS}:{PORT} --prefix4 {PREFIX4}"
        show.command("coordinator", f"mesh-coordinator {words}", coordinator(*words.split()).stdout)
        self.serve()
        self.tokens = lab.together(lambda _: token(), NODES)
        show.command("coordinator", "mesh-coordinator token create", f"{self.tokens[0][:12]}...   (four, one use each)")

    def serve(self) -> None:
        show.command("coordinator", "mesh-coordinator serve &")
        log, self.starts = ROOT / "logs/coordinator.log", self.starts + 1
        words = (lab.BIN / "mesh-coordinator", "serve", "--data-dir", ROOT / "coordinator")
        self.server = lab.spawn(lab.DESK, log.name, *words)
        until("the coordinator serves", lambda: log.read_text().count("serving mesh") == self.starts)

    def four_nodes_join(self) -> None:
        """At the same moment, while a watcher reads the cables."""
        watcher, at = Helper(lab.ROUTER, "wire-join.log", "wire.py", *WIRE), time.monotonic()
        for node, text in zip(NODES, self.tokens, strict=True):
            show.command(node.name, "meshctl join @token --up &")
            words = ("join", token_file(node, text), "--name", node.name, "--interface", node.space, "--up")
            lab.spawn(node.space, f"{node.name}.log", lab.BIN / "meshctl", *words, "--state-dir", node.state)
        for node in NODES:
            until(f"{node.name} has proven its tunnels", lambda: proven(node) == len(NODES) - 1, 60)  # noqa: B023
        took, seen = time.monotonic() - at, watcher.report()
        for node in NODES:
            lines = re.findall(r"(?m)^(?:joined|first).*", (ROOT / f"logs/{node.name}.log").read_text())
            show.note(f"{node.name}: " + "; ".join(lines))
        show.command(A1.name, "meshctl status", meshctl(A1, "status").stdout)
        show.command("coordinator", "mesh-coordinator nodes list", coordinator("nodes", "list").stdout)
        self.address = {node: status(node)["node"]["address4"] for node in NODES}
        self.key = self.keys()
        self.joined = True
        show.claim(
            "four nodes at two providers joined with tokens, and every pair is proven in both directions",
            True,
            f"12 of 12 directions {took:.1f} s after the first join was typed",
        )
        suites = [seen["hellos"].get(node.address, "none") for node in NODES]
        show.claim(
            "their control connections are TLS 1.3 with AES-256-GCM, by the ServerHello read from the wire",
            suites == ["0x1302"] * 4,
            ", ".join(suites),
        )

    def weak_ciphers_are_refused(self) -> None:
        answers = []
        for words in ("-tls1_2", "-tls1_3 -ciphersuites TLS_AES_128_GCM_SHA256", "-tls1_3"):
            typed = f"openssl s_client -connect {lab.DESK_ADDRESS}:{PORT} {words}"
            done = within(B2.space, *typed.split(), fine=False)
            found = re.search(r"alert [a-z ]+[a-z]|(?<=Cipher is )TLS\S+", done.stdout + done.stderr)
            answers.append(found[0] if found else "no answer")
            show.command(B2.name, typed, answers[-1])
        show.claim(
            "TLS 1.2 and AES-128 are refused, where the same client without these limits is served",
            all(a.startswith("alert") for a in answers[:2]) and answers[2] == "TLS_AES_256_GCM_SHA384",
            "; ".join(answers),
        )

    def pairs_agree(self) -> None:
        """On a key of their own, in the tunnel. `wg` shows it; nobody else does."""
        until("all pairs have a pre-shared key", lambda: len(self.preshared()) == 12)
        held = self.preshared()
        agreed = sum(held.count(key) == 2 for key in set(held))
        words = f"{agreed} of 6 keys, each in two kernels"
        show.claim("every pair has agreed on a post-quantum pre-shared key (ML-KEM-768)", agreed == 6, words)

    def preshared(self) -> list[str]:
        shown = (within(node.space, "wg", "show", node.space, "preshared-keys").stdout.split() for node in NODES)
        return [key for words in shown for key in words[1::2] if key != "(none)"]

    def coordinator_dies(self) -> None:
        """kill -9 under traffic on every pair, and a restart. The bare underlay carries the same as a control."""
        show.note(f"a program that knows nothing of the mesh sends {RATE} packets/s on every pair, both ways, and the")
        show.note("same again over the bare underlay")
        before = self.standing()
        flows = self.traffic("flow")
        self.kill()
        time.sleep(DARK_S)
        said = meshctl(B1, "status").stdout
        show.command(B1.name, "meshctl status", said)
        honest, good = re.search(r"(?m)^! coordinator \S+ not connected since (\d+s)", said), said.count(" ok\n")
        dark, took = self.resume()
        counted = lab.together(Helper.report, flows)
        show.claim(
            "meshctl status says that the coordinator is gone, and goes on proving tunnels",
            bool(honest) and good == 3,
            f"not connected since {honest and honest[1]}, {good} of 3 ok",
        )
        self.losses(
            f"no packet was lost in {dark:.1f} s without coordinator and etcd, nor when they came back", counted
        )
        after = self.standing()
        changed = [sum(b[i] != a[i] for b, a in zip(before, after, strict=True)) for i in (0, 1)]
        said = {events(node, "session.opened")[-1]["revision"] for node in NODES}
        show.claim(
            "back again, every node resumed at its revision: no map rewritten, no interface touched",
            before == after and said == {revision for *_, revision in before},
            f"{took:.1f} s, revision {' '.join(map(str, said))}; maps {changed[0]}, steps {changed[1]}",
        )

    def keys_rotate(self) -> None:
        """All of them, one node after the other, under the same traffic."""
        flows, before, at = self.traffic("rotate"), self.key, time.monotonic()
        words = ("keys", "rotate", "--all", "--wait", "--data-dir", ROOT / "coordinator")
        done = within(lab.DESK, lab.BIN / "meshctl", *words, fine=False)
        took = time.monotonic() - at
        show.command("coordinator", "meshctl keys rotate --all --wait", done.stdout + done.stderr)
        time.sleep(LINGER_S)
        counted = lab.together(Helper.report, flows)
        self.key = self.keys()
        fresh = sum(self.key[node] != before[node] for node in NODES)
        held = sum(self.peers(node) == {self.key[peer] for peer in NODES if peer is not node} for node in NODES)
        proofs = re.search(r"\d+ of \d+ proofs", done.stdout)
        show.claim(
            "all WireGuard keys were rotated, and every pair has proven itself under its new keys",
            done.returncode == 0 and fresh == held == 4,
            f"{fresh} of 4 keys in {took:.1f} s, {proofs and proofs[0]}; by wg show {held} of 4 kernels hold them all",
        )
        self.losses("no packet was lost while all keys were rotated", counted)

    def keys(self) -> dict[Node, str]:
        return {node: within(node.space, "wg", "show", node.space, "public-key").stdout.strip() for node in NODES}

    def peers(self, node: Node) -> set[str]:
        return set(within(node.space, "wg", "show", node.space, "peers").stdout.split())

    def traffic(self, name: str) -> list[Helper]:
        """On every pair, through the tunnel and beside it."""
        words = {node: self.flow(node, NODES) for node in NODES}
        flows = [Helper(node.space, f"{name}-{node.name}.log", "flow.py", *words[node]) for node in NODES]
        for flow in flows:
            flow.begin()
        return flows

    def flow(self, node: Node, nodes: Iterable[Node]) -> list[str]:
        peers = [peer for peer in nodes if peer is not node]
        mesh, bare = ",".join(self.address[peer] for peer in peers), ",".join(peer.address for peer in peers)
        return [str(RATE), str(FLOW_PORT), f"{self.address[node]}={mesh}", f"{node.address}={bare}"]

    def kill(self) -> None:
        etcd = int(lab.run("pgrep", "--parent", str(self.server.pid), "--exact", "etcd").stdout)
        show.command("coordinator", f"kill -9 {self.server.pid} {etcd}   (the coordinator and etcd)")
        for pid in (self.server.pid, etcd):
            with suppress(ProcessLookupError):  # etcd ends with its parent and may be faster
                os.kill(pid, signal.SIGKILL)
        self.died = time.monotonic()
        self.server.wait()
        until("etcd is gone", lambda: not Path(f"/proc/{etcd}").exists(), 10)

    def resume(self) -> tuple[float, float]:
        """Start the coordinator again and wait for the nodes -> seconds it was away, seconds until all had resumed."""
        at = time.monotonic()
        self.serve()
        dark = time.monotonic() - self.died
        until("all nodes are connected again", lambda: all(node["connected"] for node in listed()), 60, 0.5)
        return dark, time.monotonic() - at

    def standing(self) -> list[tuple[int, int, int]]:
        """Of each node: when its map was written (ns), steps ever applied to its interface, revision applied."""
        applied = {node["name"]: node["applied"] for node in listed()}
        steps = lab.together(lambda node: len(events(node, "interface.step-applied")), NODES)
        written = [(node.state / "map").stat().st_mtime_ns for node in NODES]
        return [(at, step, applied[node.name]) for node, at, step in zip(NODES, written, steps, strict=True)]

    def losses(self, claim: str, reports: list[dict[str, Any]]) -> None:
        received = {name: seen for report in reports for name, seen in report["received"].items()}
        sent, lost, silence = [0, 0], [0, 0], [0, 0]
        for name, count in (item for report in reports for item in report["sent"].items()):
            arrived, double, gap = received.get(name, (0, 0, 0))
            bare = name.partition(">")[0] not in self.address.values()  # False and True are the places 0 and 1
            sent[bare], lost[bare] = sent[bare] + count, lost[bare] + count - arrived + double
            silence[bare] = max(silence[bare], gap)
        show.claim(
            claim,
            lost[0] <= lost[1] and sent[0] == sent[1] > 0,
            f"{lost[0]} of {sent[0]} lost in 12 directions, longest "
            f"silence {silence[0]} ms (underlay: {lost[1]} of {sent[1]}, {silence[1]} ms)",
        )

    def hands_that_are_not_ours(self) -> None:
        """Two kinds of interference, on two nodes at once. A finding is told after a grace period of 5 s."""
        for tell in lab.together(lambda interfere: interfere(), (self.foreign_key, self.leaking_route)):
            tell()

    def foreign_key(self) -> Callable[[], None]:
        own, ip = self.key[B1], f"{self.address[B1]}/32"
        foreign = lab.run("wg", "pubkey", stdin=lab.run("wg", "genkey").stdout).stdout.strip()
        typed = (f"wg set {A2.space} peer {own} remove", f"wg set {A2.space} peer {foreign} allowed-ips {ip}")
        at = time.time()
        for words in typed:
            within(A2.space, *words.split())

        def held() -> dict[str, str]:
            lines = within(A2.space, "wg", "show", A2.space, "allowed-ips").stdout.splitlines()
            return dict(line.split("\t") for line in lines)

        until("the key is put back", lambda: foreign not in (now := held()) and ip in now.get(own, ""), 20, 0.02)
        undone = time.time() - at
        until("it is proven again", lambda: within(A2.space, "ping", "-c1", "-W1", ip[:-3], fine=False).returncode == 0)
        carried = time.time() - at
        said = finding(A2, "MESH-CFG-001")
        log = [event["step"] for event in events(A2, "interface.step-applied") if event["foreign"] and event["at"] > at]

        def tell() -> None:
            for words in typed:
                show.command(A2.name, words)
            show.command(A2.name, "meshctl health", said)
            show.claim(
                "a peer's key exchanged behind the agent's back is put back, logged and told",
                {"add-peer", "remove-peer"} <= set(log),
                f"undone after {undone:.1f} s, packets pass after {carried:.1f} s; log: {', '.join(log)}",
            )

        return tell

    def leaking_route(self) -> Callable[[], None]:
        """Under traffic to that address; the watcher sees the control flow, so it would have seen a leak."""
        route = f"{self.address[B2]}/32 via {A1.address.rpartition('.')[0]}.1 dev eth0"
        watcher = Helper(lab.ROUTER, "wire-leak.log", "wire.py", *WIRE)
        flow = Helper(A1.space, "flow-leak.log", "flow.py", *self.flow(A1, (B2,)))
        within(A1.space, *f"ip route add {route}".split())
        at = time.monotonic()
        flow.begin()
        said = finding(A1, "MESH-ROUTE-001")
        took, sent, seen = time.monotonic() - at, flow.report()["sent"], watcher.report()
        within(A1.space, *f"ip route del {route}".split())
        until("the finding closes", lambda: "MESH-ROUTE-001" not in meshctl(A1, "health").stdout)
        tried = sent[f"{self.address[A1]}>{self.address[B2]}"]

        def tell() -> None:
            show.command(A1.name, f"ip route add {route}")
            show.command(A1.name, "meshctl health", said)
            show.claim(
                "a route that leads a mesh address past the tunnel leaks nothing, and is found",
                seen["flow"] >= tried > 0 == seen["clear"] + seen["missed"],
                f"{seen['clear']} of {tried} packets in clear, found after {took:.1f} s "
                f"(the watcher saw {seen['flow']} of the control)",
            )

        return tell

    def a_node_is_revoked(self) -> None:
        """From the registry, from every kernel, and at the door."""
        stay = (A1, A2, B1)
        until(f"all reach {B2.name}", lambda: self.reach(B2, stay) == 3)
        done = coordinator("revoke", B2.name, "--wait", fine=False)
        show.command("coordinator", f"mesh-coordinator revoke {B2.name} --wait", done.stdout + done.stderr)
        found = re.search(r"applied by 3 .* in ([\d.]+ s)", done.stdout)
        show.claim(
            "a node is revoked, and every other node has applied it",
            done.returncode == 0 and bool(found),
            f"3 of 3 in {found and found[1]}",
        )
        keys = [within(node.space, "wg", "show", node.space, "peers").stdout for node in stay]
        holders = sum(self.key[B2] in text for text in keys)
        show.claim("no kernel holds its key", holders == 0 and self.key[A2] in keys[0], f"{holders} of 3, by wg show")
        after, control = self.reach(B2, stay), self.reach(A1, (A2, B1))
        show.claim(
            "nobody reaches it any more, though its own agent, interface and keys are still there",
            after == 0 and control == 2,
            f"ping: {after} of 3 (before: 3 of 3; others: {control} of 2)",
        )
        self.tokens.append(token())
        (B2.state / "membership").unlink(missing_ok=True)  # or it would not even ask
        words = ("--name", B2.name, "--interface", "md-again", "--listen-port", "51999")
        done = meshctl(B2, "join", token_file(B2, self.tokens[-1]), *words)
        show.command(B2.name, "meshctl join @fresh-token", done.stdout + done.stderr)
        show.claim(
            "with a fresh token it is refused all the same",
            done.returncode == 7 and "was revoked" in done.stderr,
            f"exit code {done.returncode}",
        )

    def reach(self, peer: Node, nodes: Iterable[Node]) -> int:
        ping = ("ping", "-c1", "-W1", self.address[peer])
        return sum(done.returncode == 0 for done in lab.together(lambda n: within(n.space, *ping, fine=False), nodes))

    def what_is_written_down(self) -> None:
        """Every secret of the demo in each of its spellings, searched in all logs and in all that etcd has written."""
        private = [within(node.space, "wg", "show", node.space, "private-key").stdout for node in NODES]
        kek = (ROOT / "coordinator/kek").read_text()
        raw = [*map(base64.b64decode, (kek, *private, *self.preshared())), *map(secret, self.tokens)]
        secrets = {text.encode() for text in self.tokens} | {one for key in raw for one in spellings(key)}
        told = {text.encode() for node in NODES for text in (node.name, node.address, self.address[node])}
        logs, store = read(ROOT, ".log", ".jsonl"), read(ROOT / "coordinator/etcd/etcd", ".snap", ".wal", "db")
        store += snapshot()
        found, control = hits(secrets, logs), hits(told, logs)
        show.claim(
            "no log holds a token or a key",
            found == 0 < control,
            f"{found} of {len(secrets)} spellings in {len(logs) >> 10} kB (control: {control} names and addresses)",
        )
        ids = {node["id"].encode() for node in listed()}
        found, control = hits(secrets | told, store), hits(ids, store)
        show.claim(
            "etcd holds no token, key, node name or address, in a snapshot or in its files",
            found == 0 and control == len(ids),
            f"{found} of {len(secrets | told)} spellings in "
            f"{len(store) >> 20} MB (control: {control} of {len(ids)} ids)",
        )

    def nothing_is_left(self) -> None:
        lab.remove()
        left = [item for kind in lab.leftovers() for item in kind]
        show.claim("the demo leaves no namespace, process, socket or file behind", not left, f"{len(left)} left")


def token() -> str:
    return coordinator("token", "create").stdout.strip()


def token_file(node: Node, text: str) -> str:
    (path := ROOT / f"{node.name}.token").write_text(text)
    return f"@{path}"


def listed() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(coordinator("nodes", "list", "--json").stdout)
    return found


def status(node: Node) -> dict[str, Any]:
    """Empty while the agent does not answer."""
    found: dict[str, Any] = json.loads(meshctl(node, "status", "--json").stdout or "{}")
    return found


def proven(node: Node) -> int:
    return sum(peer["state"] == "ok" for peer in status(node).get("peers", ()))


def events(node: Node, kind: str) -> list[dict[str, Any]]:
    lines = meshctl(node, "logs", "--json", "--lines", "100000").stdout.splitlines()
    return [event for line in lines if (event := json.loads(line))["event"] == kind]


def finding(node: Node, code: str) -> str:
    """What `meshctl health` says once it tells of `code`."""
    return until(f"{node.name} tells {code}", lambda: text if code in (text := meshctl(node, "health").stdout) else "")


def snapshot() -> bytes:
    home, target = ROOT / "coordinator/etcd", ROOT / "snapshot.db"
    port, tls = json.loads((home / "ports.json").read_text())[0], home / "tls"
    flags = f"--endpoints=127.0.0.1:{port} --cacert={tls}/ca.pem --cert={tls}/client.pem --key={tls}/client.key"
    within(lab.DESK, "env", "ETCDCTL_API=3", "etcdctl", *flags.split(), "snapshot", "save", target)
    show.command("coordinator", "etcdctl snapshot save snapshot.db", f"{target.stat().st_size >> 10} kB")
    return target.read_bytes()


def secret(text: str) -> bytes:
    """What only the token knows: 32 bytes after the CA's key (33), the mesh's id (12) and the token's own (8)."""
    body = text.removeprefix("mesh2.")
    return base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))[53:85]


def spellings(key: bytes) -> set[bytes]:
    both = (base64.b64encode(key), base64.urlsafe_b64encode(key))
    return {key, key.hex().encode(), *(text.rstrip(b"=") for text in both)}


def read(where: Path, *endings: str) -> bytes:
    return b"".join(path.read_bytes() for path in where.rglob("*") if path.is_file() and path.name.endswith(endings))


def hits(what: Iterable[bytes], where: bytes) -> int:
    return sum(item in where for item in what)
