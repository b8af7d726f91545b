"""Somebody else configures the interface: repaired within two seconds, attributed, nobody else's session is touched.

WireGuard announces no change of its own, so the repair of peers is found by looking, that of links, routes and rules is
announced by the kernel. Meets NET-3.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.harness.mesh import READY_S, Lab, Node, until

pytestmark = pytest.mark.root
STRANGER = "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08="  # a public key that nobody here has
PRIVATE = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="  # from wg(8)'s own example of a wrong hand at work


@dataclass
class Scene:
    """`a` is meddled with; `b` is the peer it is done to; `c` must not notice."""

    a: Node
    b: Node
    c: Node


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Lab() as lab:
        made = Scene(*lab.members("a", "b", "c"))
        until(lambda: "(none)" not in preshared(made.a), READY_S, "all pairs have agreed: that is not to happen later")
        yield made


def preshared(node: Node) -> str:
    return node.run("wg", "show", node.interface, "preshared-keys").stdout


def held(node: Node) -> tuple[object, ...]:
    """Everything a person could have changed, without what moves by itself."""
    shown = node.run("ip", "-j", "address", "show", "dev", node.interface).stdout or "[]"
    links = [item for item in json.loads(shown) if item]
    addresses = {(a["local"], a["prefixlen"]) for link in links for a in link["addr_info"] if a["scope"] == "global"}
    up = any("UP" in link["flags"] for link in links)
    routes = {
        (route["dst"], route.get("metric"), route.get("type", "unicast"))
        for family in ("-4", "-6")
        for route in json.loads(node.run("ip", "-j", family, "route", "show").stdout or "[]")
        if route.get("dev") != "eth0" and not str(route["dst"]).startswith("fe80")
    }
    rules = re.sub(r"packets \d+ bytes \d+", "", node.run("nft", "list", "ruleset").stdout)
    peers = {peer.key: peer.allowed for peer in node.peers().values()}
    wire = (
        node.run("wg", "show", node.interface, "private-key").stdout,
        node.run("wg", "show", node.interface, "listen-port").stdout,
    )
    return addresses, up, routes, rules, peers, wire, preshared(node)


Meddle = Callable[[Scene], tuple[str, ...]]


def wg(*words: str) -> Meddle:
    """`wg set INTERFACE WORDS`, where {b} and {c} are keys and addresses of peers."""
    return lambda s: (
        "wg",
        "set",
        s.a.interface,
        *(w.format(b=s.b.key(), c=s.c.key(), c4=s.c.mesh_address()) for w in words),
    )


def shell(script: str) -> Meddle:
    return lambda s: ("sh", "-ec", script.format(i=s.a.interface, a4=s.a.mesh_address()))


# What was done -> is every session of this interface lost with it, by WireGuard's own rules?
WEATHER: dict[str, tuple[Meddle, bool]] = {
    "peer removed": (wg("peer", "{b}", "remove"), False),
    "stranger added": (wg("peer", STRANGER, "allowed-ips", "198.51.100.0/24"), False),
    "peer's key swapped": (wg("peer", "{b}", "remove", "peer", STRANGER, "allowed-ips", "10.77.0.2/32"), False),
    "allowed IPs widened": (wg("peer", "{b}", "allowed-ips", "10.77.0.0/16,0.0.0.0/1"), False),
    "allowed IPs stolen from another": (wg("peer", "{b}", "allowed-ips", "{c4}/32"), False),
    "preshared key set": (
        lambda s: ("sh", "-c", f"wg genpsk | wg set {s.a.interface} peer {s.b.key()} preshared-key /dev/stdin"),
        False,
    ),
    "keepalive set": (wg("peer", "{b}", "persistent-keepalive", "7"), False),
    "listen port changed": (wg("listen-port", "40404"), False),
    "private key swapped": (
        lambda s: ("sh", "-c", f"echo {PRIVATE} | wg set {s.a.interface} private-key /dev/stdin"),
        True,
    ),
    "address removed": (shell("ip address del {a4}/32 dev {i}"), False),
    "address added": (shell("ip address add 198.51.100.9/32 dev {i}"), False),
    "route removed": (shell("ip route del 10.77.0.0/16 dev {i}"), False),
    "fail-closed route removed": (shell("ip route del unreachable 10.77.0.0/16"), False),
    "route added": (shell("ip route add 198.51.100.0/24 dev {i}"), False),
    "rules flushed": (shell("nft flush ruleset"), False),
    "link set down": (shell("ip link set {i} down"), True),
    "interface deleted": (shell("ip link del {i}"), True),
}


@pytest.mark.parametrize("what", WEATHER)
def test_foreign_change_is_repaired_and_attributed(
    scene: Scene, what: str, record_property: Callable[[str, object], None]
) -> None:
    a, (meddle, ends_sessions) = scene.a, WEATHER[what]
    until(lambda: a.proves("b", "c"), READY_S, "all is well before")
    right, c_key, told = held(a), scene.c.key(), len(foreign(a))
    before, there = a.peers()[c_key], scene.c.peers()[a.key()]

    done = a.run(*meddle(scene))
    begun = time.monotonic()
    assert done.returncode == 0, done.stderr

    until(lambda: len(foreign(a)) > told and held(a) == right, 20, f"{what}: as it was")
    record_property("figure", f"foreign change repaired: {what}: {time.monotonic() - begun:.2f} s")
    assert foreign(a)[told:]
    until(lambda: a.proves("b", "c", younger_than_s=1.0), READY_S, f"{what}: the tunnels carry again")
    if not ends_sessions:
        after, here = a.peers()[c_key], scene.c.peers()[a.key()]
        # A peer that was taken out and put in again would begin at zero.
        for old, new in ((before, after), (there, here)):
            assert min(new.handshake - old.handshake, new.rx - old.rx, new.tx - old.tx) >= 0


def foreign(node: Node) -> list[dict[str, object]]:
    """Steps that undid what nobody here had done."""
    return [event for event in node.events("interface.step-applied") if event["foreign"]]


def test_foreign_changes_show_in_status(scene: Scene) -> None:
    done = scene.a.run("wg", "set", scene.a.interface, "peer", STRANGER)
    assert done.returncode == 0, done.stderr
    found = until(
        lambda: [f for f in scene.a.status()["findings"] if f["code"] == "MESH-CFG-001" and f["verdict"] == "degraded"],
        READY_S, "the finding is open",
    )  # fmt: skip
    assert "foreign" in found[0]["evidence"]
    assert scene.a.meshctl("status").returncode == 1
