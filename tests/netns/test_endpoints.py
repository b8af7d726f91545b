"""Where a peer is: candidates that are dead, a node behind NAT, a peer that moves while it talks (NET-8, NET-3).

The NAT is a namespace that masquerades and gives every flow a port of its choice, as carriers do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.harness.mesh import HUB, READY_S, Lab, Node, until
from tests.harness.netns import Namespace, unique, veth

pytestmark = pytest.mark.root
DEAD = "203.0.113.100:51820"  # nobody has it; sorts before the machines' own addresses
OUTSIDE, MOVED = "203.0.113.201", "203.0.113.202"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="module")
def a(lab: Lab) -> Node:
    """A member that others are told to reach at an address where nobody is, and at its own."""
    node = lab.machine("a")
    assert node.join(lab.coordinator.token(), "--endpoint", DEAD).returncode == 0
    node.up()
    until(lambda: node.status().get("link", {}).get("connected"), READY_S, node.tail())
    return node


@dataclass
class Natted:
    node: Node
    router: Namespace


@pytest.fixture(scope="module")
def natted(lab: Lab, a: Node) -> Iterator[Natted]:
    """A member behind a router that hides it; the router's UDP ports say nothing about the member's."""
    with ExitStack() as stack:
        router = stack.enter_context(Namespace(unique("mn-")))
        lab.plug(router, OUTSIDE)
        node = lab.machine("hidden", wired=False)
        veth(router, ["192.168.7.1/24"], node.ns, ["192.168.7.2/24"])
        node.ns.command("ip", "route", "add", "default", "via", "192.168.7.1")
        router.command("sysctl", "-qw", "net.ipv4.ip_forward=1")
        rules = "table ip nat { chain out { type nat hook postrouting priority 100; oifname eth0 meta l4proto udp "
        rules += "masquerade to :61000-61999 random; oifname eth0 masquerade; }; }\n"
        router.command("nft", "-f", "-", stdin=rules)
        assert node.run("ping", "-c", "1", HUB).returncode == 0
        assert node.join(lab.coordinator.token()).returncode == 0
        node.up()
        stack.callback(node.stop)
        yield Natted(node, router)


def test_first_candidate_is_dead(lab: Lab, a: Node, record_property: Callable[[str, object], None]) -> None:
    """The joiner leads: it tries the dead one, and the next soon after."""
    first = lab.coordinator.nodes()["a"].node.candidates
    assert str(first[0].endpoint) == DEAD
    b = lab.member("b")
    key = a.key()
    began = until(lambda: [e for e in b.events("interface.step-applied") if e["step"] == "add-peer"], READY_S, b.tail())
    assert began[0]["endpoint"]["address"] == DEAD.partition(":")[0], "it began with the dead one"
    until(lambda: (peer := b.peers().get(key)) and peer.handshake, READY_S, f"a handshake: {b.peers()}")
    took = time.time() - began[0]["at"]
    record_property("figure", f"first candidate dead, second works: handshake {took:.2f} s after the first attempt")
    assert took < 15
    assert b.peers()[key].endpoint == f"{a.address}:51820"
    until(lambda: b.proves("a") and a.proves("b"), READY_S, "proven")


def test_node_behind_nat_is_reached_and_keeps_the_way_open(lab: Lab, a: Node, natted: Natted) -> None:
    node = natted.node
    until(lambda: node.proves("a") and a.proves("hidden"), READY_S, f"both ways: {node.tail()}")
    until(lambda: node.peers()[a.key()].keepalive == "25", READY_S, f"it keeps the way open: {node.peers()}")
    assert a.peers()[node.key()].keepalive == "off", "the other side has no need to"
    told = {str(candidate.endpoint) for candidate in lab.coordinator.nodes()["b"].node.candidates}
    assert told == {f"{lab.nodes[1].address}:51820"}, "nobody takes what was tried for where it was seen"
    address, port = a.peers()[node.key()].endpoint.split(":")
    assert (address, 61000 <= int(port) <= 61999) == (OUTSIDE, True)
    assert a.run("ping", "-c", "1", "-W", "3", node.mesh_address()).returncode == 0, "reached from outside"


def test_peer_that_roams_is_followed_and_never_sent_back(lab: Lab, a: Node, natted: Natted) -> None:
    """The router gets another address. `a` follows what WireGuard authenticated, whatever the registry says."""
    node, key = natted.node, natted.node.key()
    until(lambda: a.proves("hidden"), READY_S, "before")
    before = a.peers()[key]
    natted.router.command("ip", "address", "del", f"{OUTSIDE}/24", "dev", "eth0")
    natted.router.command("ip", "address", "add", f"{MOVED}/24", "dev", "eth0")
    until(lambda: a.peers()[key].endpoint.startswith(MOVED), 60, f"followed: {a.peers()[key]} {node.tail()}")
    passes, applied = 0, a.status()["revision"]["applied"]
    lab.member("witness")  # the roster changes, so every pass has a reason to look at all peers
    until(lambda: a.status()["revision"]["applied"] > applied, READY_S, "the map has moved")
    deadline = time.monotonic() + 4  # several passes
    while time.monotonic() < deadline:
        assert a.peers()[key].endpoint.startswith(MOVED)
        passes += 1
        time.sleep(0.05)
    assert passes > 20
    after = a.peers()[key]
    assert (after.rx > before.rx, after.tx > before.tx) == (True, True), "the same session, alive"
    until(lambda: a.proves("hidden") and node.proves("a", "witness"), READY_S, f"and proven: {node.tail()}")


def test_machine_gets_another_address(lab: Lab, a: Node, record_property: Callable[[str, object], None]) -> None:
    """Without NAT: the node moves, its peers follow its packets, the registry and later joiners learn the new place."""
    rover = lab.member("rover")
    until(lambda: rover.proves("a"), READY_S, rover.tail())
    key, new = rover.key(), "203.0.113.150"
    begun = time.monotonic()
    rover.ns.command("ip", "address", "del", f"{rover.address}/24", "dev", "eth0")
    rover.ns.command("ip", "address", "add", f"{new}/24", "dev", "eth0")
    until(lambda: a.peers()[key].endpoint == f"{new}:51820", 60, f"followed: {a.peers()[key]}")
    record_property("figure", f"a peer that moves is followed after {time.monotonic() - begun:.2f} s")
    until(
        lambda: new in {str(c.endpoint.address) for c in lab.coordinator.nodes()["rover"].node.candidates}, 60, "told"
    )
    late = lab.member("late")
    until(lambda: late.proves("rover"), READY_S, f"a later joiner finds it: {late.tail()}")
