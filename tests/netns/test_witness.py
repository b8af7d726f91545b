"""The experiments on the wire, with real agents and a real WireGuard: ok when all is well, unknown when a firewall
stands in between, failed for each fault they are meant to catch (NET-7, the probe of ENC-3).
"""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from meshctl.agent import tap
from meshctl.mesh import frames, witness
from meshctl.mesh.catalogue import ENCRYPTED, REPLAY, SPOOF, STRANGER, TAMPER
from meshctl.mesh.exams import CODES
from tests.harness.mesh import MESHCTL, PATIENCE, READY_S, Lab, Node, until

pytestmark = pytest.mark.root
ETH_P_ALL = 3
PORT = 51820
TRIED_S = 40.0 * PATIENCE  # in a mesh of two or three each peer's turn comes every 10 to 20 s


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="module")
def pair(lab: Lab) -> tuple[Node, ...]:
    return lab.members("a", "b")


def rows(node: Node, peer: str) -> dict[str, dict[str, Any]]:
    """What `node` says of the experiments with `peer`, by code."""
    return {row["code"]: row for row in node.status().get("rows", []) if row["name"] == peer and row["code"] in CODES}


def verdicts(node: Node, peer: str, since: float) -> dict[str, str]:
    """Verdicts of experiments made after `since`, unix seconds."""
    return {code: row["verdict"] for code, row in rows(node, peer).items() if (row["at"] or 0) > since}


def all_ok(*nodes: Node, since: float) -> bool:
    return all(verdicts(node, other.name, since) == dict.fromkeys(CODES, "ok")
               for node in nodes for other in nodes if node is not other)  # fmt: skip


def told(*nodes: Node) -> list[Any]:
    return [(node.name, list(rows(node, other.name).values())) for node in nodes for other in nodes if node != other]


@contextlib.contextmanager
def meddling(node: Node, interface: str, meddle: Callable[[bytes], None]) -> Iterator[None]:
    """A program in `node`'s namespace that sees every IP packet of an interface, and does what it likes."""
    over = threading.Event()

    def watch() -> None:
        with node.ns.entered(), socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL)) as sock:
            sock.bind((interface, ETH_P_ALL))
            sock.settimeout(0.1)
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    packet, address = sock.recvfrom(65536)
                    if address[2] != socket.PACKET_OUTGOING:
                        meddle(packet)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def firewall(node: Node, rules: str, more: str = "") -> Iterator[None]:
    """In front of the node's WireGuard."""
    chain = f"chain c {{\n type filter hook input priority 0;\n {rules}\n }}"
    node.ns.command("nft", "-f", "-", stdin=f"table inet between {{\n {more}\n {chain}\n}}\n")
    try:
        yield
    finally:
        node.ns.command("nft", "delete", "table", "inet", "between")


def test_healthy_pair_is_ok_within_a_minute_and_nothing_is_opened(pair: tuple[Node, ...]) -> None:
    a, b = pair
    until(lambda: all_ok(a, b, since=0.0), 60 * PATIENCE, f"all is ok: {told(a, b)}")
    for node in pair:
        assert node.events("finding.opened") == []
        assert node.status()["findings"] == []
        assert node.status()["verdict"] == "ok"
    assert {row["code"] for row in json.loads(a.meshctl("health", "--json").stdout)["rows"]} >= set(CODES)


def test_no_tap_is_open_between_experiments(pair: tuple[Node, ...]) -> None:
    """Packet and raw sockets of the namespace, as the kernel lists them."""

    def taps(node: Node) -> int:
        lists = node.ns.command("cat", "/proc/net/packet", "/proc/net/raw", "/proc/net/raw6").splitlines()
        return sum(not line.lstrip().startswith(("sk", "sl")) for line in lists)

    for node in pair:
        until(lambda node=node: taps(node) == 0, TRIED_S, "its taps are closed")


def test_firewall_that_takes_second_copies_is_no_proof(pair: tuple[Node, ...]) -> None:
    """It lets every sibling pass, and what is injected it drops: replay and tamper are unknown, not ok."""
    a, b = pair
    seen = "set seen { typeof @th,128,64; flags dynamic; size 65535; }"
    rules = f"udp dport {PORT} @th,128,64 @seen drop\nudp dport {PORT} add @seen {{ @th,128,64 }}"
    wanted = dict.fromkeys(CODES, "ok") | {REPLAY: "unknown", TAMPER: "unknown"}
    with firewall(b, rules, seen):
        since = time.time()
        until(lambda: verdicts(a, "b", since) == wanted, TRIED_S, f"unknown: {told(a)}")
        evidence = {rows(a, "b")[code]["evidence"] for code in (REPLAY, TAMPER)}
        assert all("a firewall before the peer's WireGuard took it" in words for words in evidence)
    since = time.time()
    until(lambda: all_ok(a, b, since=since), TRIED_S, f"all is ok again: {told(a, b)}")


def test_firewall_that_takes_initiations_is_no_proof(pair: tuple[Node, ...]) -> None:
    a, b = pair
    wanted = dict.fromkeys(CODES, "ok") | {STRANGER: "unknown"}
    with firewall(b, f"udp dport {PORT} @th,64,8 1 drop"):
        since = time.time()
        until(lambda: verdicts(a, "b", since) == wanted, TRIED_S, f"unknown: {told(a)}")
    assert "a firewall" in rows(a, "b")[STRANGER]["evidence"]


def opens_and_closes(a: Node, b: Node, codes: set[str], fault: contextlib.AbstractContextManager[None]) -> None:
    """With the fault these codes fail at `a`, critically, and no other of ours; without it they close."""

    def failed() -> set[str]:
        return {f["code"] for f in a.status().get("findings", []) if f["code"] in CODES and f["severity"] == "critical"}

    since = time.time()
    with fault:
        until(lambda: failed() == codes, TRIED_S, f"{codes} open: {rows(a, 'b')}")
        assert a.meshctl("health").returncode == 2
    opened = time.time()
    until(lambda: not failed() and all_ok(a, b, since=opened), TRIED_S, f"{codes} close: {told(a, b)}")
    print(f"{sorted(codes)}: found after {opened - since:.1f} s, closed after {time.time() - opened:.1f} s")


def test_leak_in_clear_is_found(pair: tuple[Node, ...]) -> None:
    """A program at b sends around its mesh interface, and around netfilter."""
    a, b = pair
    body = frames.udp(socket.inet_aton(b.mesh_address()), 9, socket.inet_aton(a.mesh_address()), 9, b"in clear")
    packet = frames.ipv4(socket.inet_aton(b.mesh_address()), socket.inet_aton(a.mesh_address()), body, 1)

    @contextlib.contextmanager
    def leaking() -> Iterator[None]:
        over = threading.Event()
        with b.ns.entered():
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)

        def leak() -> None:
            while not over.wait(0.05):
                sock.sendto(packet, ("eth0", 0x0800, 0, 0, b"\xff" * 6))

        thread = threading.Thread(target=leak)
        thread.start()
        try:
            yield
            # Both directions: it is seen leaving by the one, arriving by the other.
            until(lambda: rows(b, "a")[ENCRYPTED]["verdict"] == "failed", TRIED_S, "the other end sees it too")
            assert f"{b.mesh_address()} to {a.mesh_address()}" in rows(b, "a")[ENCRYPTED]["evidence"]
        finally:
            over.set()
            thread.join()
            sock.close()

    opens_and_closes(a, b, {ENCRYPTED}, leaking())


def test_receiver_that_delivers_twice_is_found(pair: tuple[Node, ...]) -> None:
    """A broken WireGuard at b, played by a program that delivers once more what came out of the tunnel."""
    a, b = pair
    here = b.mesh_address()

    def again(packet: bytes) -> None:
        found = frames.datagram(packet)
        if found and found.payload.startswith(b"MKW1\x03"):
            tap.forge("lo", here, packet)

    opens_and_closes(a, b, {REPLAY, TAMPER}, meddling(b, b.interface, again))


def test_receiver_that_takes_altered_messages_is_found(pair: tuple[Node, ...]) -> None:
    """A WireGuard at b whose authentication is broken: it deciphers, but does not look at the tag, and its window still
    refuses what it has taken before. Played by two programs: one knows an altered message on the wire, by the counter
    of another and different bytes; then what that other one held is delivered with the same bits turned over.
    """
    a, b = pair
    here = b.mesh_address()
    wire: dict[tuple[int, int], bytes] = {}  # the first message of each session and counter
    inner: dict[int, bytes] = {}  # the latest canary by its message's size, which no other of its run has

    def canary(packet: bytes) -> None:
        found = frames.datagram(packet)
        if found and found.payload.startswith(b"MKW1\x03"):
            inner[frames.padded(len(packet))] = packet

    def unchecked(packet: bytes) -> None:
        found = frames.datagram(packet)
        if not found or found.target_port != PORT:
            return
        for message in filter(None, map(frames.transport, frames.messages(found.payload))):
            first = wire.setdefault(message[:2], message.payload)
            if first != message.payload and (original := inner.get(len(first))):
                tap.forge("lo", here, frames.flipped(original, *witness.altered_at(0)))

    @contextlib.contextmanager
    def broken() -> Iterator[None]:
        with meddling(b, b.interface, canary), meddling(b, "eth0", unchecked):
            yield
            said = {code: row["verdict"] for code, row in rows(a, "b").items()}
            assert said == dict.fromkeys(CODES, "ok") | {TAMPER: "failed"}, told(a)
            assert rows(a, "b")[TAMPER]["evidence"] == "an altered message was delivered beside its original"
            assert not [finding for finding in b.status()["findings"] if finding["code"] in CODES]

    opens_and_closes(a, b, {TAMPER}, broken())


def test_receiver_that_answers_strangers_is_found(pair: tuple[Node, ...]) -> None:
    """A program at b's port that answers every initiation."""
    a, b = pair

    def answer(packet: bytes) -> None:
        found = frames.datagram(packet)
        if found and found.target_port == PORT and found.payload[:1] == b"\x01":
            response = struct.pack("<II", 2, 7) + found.payload[4:8] + bytes(80)
            tap.inject(found.target, found.target_port, found.source, found.source_port, response)

    opens_and_closes(a, b, {STRANGER}, meddling(b, "eth0", answer))


def test_widened_allowed_ips_at_the_peer_are_found(pair: tuple[Node, ...]) -> None:
    """Somebody at b lets a's key send from every address, again and again: the agent repairs it every second."""
    a, b = pair
    key = a.key()

    @contextlib.contextmanager
    def widened() -> Iterator[None]:
        over = threading.Event()

        def widen() -> None:
            while not over.wait(0.02):
                b.run("wg", "set", b.interface, "peer", key, "allowed-ips", "10.77.0.0/16,fd00::/8")

        thread = threading.Thread(target=widen)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    opens_and_closes(a, b, {SPOOF}, widened())


def rotate(lab: Lab, name: str) -> None:
    done = lab.coordinator.keys("rotate", "--node", name, "--wait", "--timeout", "60s")
    assert done.returncode == 0, done.stdout + done.stderr


def test_retired_key_is_tried_with_the_peer_once_and_refused(lab: Lab, pair: tuple[Node, ...]) -> None:
    a, b = pair
    since, old = time.time(), a.key()
    rotate(lab, "a")
    assert a.key() != old
    tried = "an initiation with an unknown key and one with our retired key reached the peer's WireGuard: not answered"
    until(lambda: tried in rows(a, "b")[STRANGER]["evidence"], TRIED_S, f"it is tried: {told(a)}")
    assert rows(a, "b")[STRANGER]["verdict"] == "ok"
    until(lambda: "retired" not in rows(a, "b")[STRANGER]["evidence"], TRIED_S, f"and let go: {told(a)}")
    until(lambda: all_ok(a, b, since=since), TRIED_S, f"all is ok: {told(a, b)}")
    assert "retired" not in rows(b, "a")[STRANGER]["evidence"]  # who did not rotate has none


def test_peer_that_still_holds_the_retired_key_is_found(lab: Lab, pair: tuple[Node, ...]) -> None:
    """Somebody at b puts back the key that a retires, again and again: the agent removes it every second. By
    wireguard-go's own socket, which takes less than a millisecond: b is hardly ever without it.
    """
    a, b = pair
    step = b"set=1\npublic_key=" + base64.b64decode(a.key()).hex().encode() + b"\n\n"

    def put_back() -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(f"/var/run/wireguard/{b.interface}.sock")
            sock.sendall(step)
            sock.recv(64)

    @contextlib.contextmanager
    def held() -> Iterator[None]:
        over = threading.Event()

        def hold() -> None:
            while not over.wait(0.003):
                put_back()

        thread = threading.Thread(target=hold)
        thread.start()
        try:
            rotate(lab, "a")
            yield
            assert rows(a, "b")[STRANGER]["evidence"] == "our retired key got a handshake response"
        finally:
            over.set()
            thread.join()

    opens_and_closes(a, b, {STRANGER}, held())


def test_without_the_capability_it_says_so(lab: Lab, pair: tuple[Node, ...]) -> None:
    """At the node that lacks it, and at its peers."""
    a, _ = pair
    poor = lab.machine("poor")
    assert poor.join(lab.coordinator.token()).returncode == 0
    poor.program = ("setpriv", "--bounding-set", "-net_raw", "--inh-caps", "-net_raw", *MESHCTL)
    poor.up()
    until(lambda: poor.proves("a"), READY_S, f"poor proves a: {poor.tail()}")
    unknown = dict.fromkeys(CODES, "unknown")
    until(lambda: verdicts(poor, "a", 0.0) == unknown, TRIED_S, f"unknown: {rows(poor, 'a')}")
    assert {row["evidence"] for row in rows(poor, "a").values()} == {"no CAP_NET_RAW"}
    until(lambda: verdicts(a, "poor", 0.0) == unknown, TRIED_S, f"unknown: {rows(a, 'poor')}")
    assert {row["evidence"] for row in rows(a, "poor").values()} == {"no CAP_NET_RAW at the peer"}
    assert not [f for f in poor.status()["findings"] if f["code"] in CODES]
