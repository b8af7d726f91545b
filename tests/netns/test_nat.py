"""netcheck behind real NATs and firewalls: nftables in a router of its own between the machine and the coordinator.

A fresh router per test: a NAT keeps what it has mapped. Meets NET-8, OPS-4.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from meshctl.mesh.token import JoinToken
from tests.harness.mesh import HUB, MESHCTL, PORT, READY_S, Lab, Node, until
from tests.harness.netns import Namespace, unique, veth

pytestmark = pytest.mark.root
HUB6, OUTSIDE, OUTSIDE6 = "fd13:113::1", "203.0.113.50", "fd13:113::50"
INSIDE, INSIDE6 = "192.168.7.2", "fd13:7::2"
OURS = f"{INSIDE}:51820"


class Seen(NamedTuple):
    """What netcheck said: exit code, words by what they are about, and its looks."""

    code: int
    words: dict[str, str]
    looks: list[dict[str, Any]]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        made.hub.command("ip", "address", "add", f"{HUB6}/64", "dev", "wire", "nodad")
        made.hub.command("ip", "route", "add", "192.168.7.0/24", "via", OUTSIDE)
        made.hub.command("ip", "route", "add", "fd13:7::/64", "via", OUTSIDE6)
        made.machine("new", wired=False)
        yield made


@contextlib.contextmanager
def behind(lab: Lab, rules: str) -> Iterator[tuple[Node, Namespace]]:
    """The lab's machine behind a router with these nftables rules."""
    node = lab.nodes[0]
    lab.hub.command("ip", "neigh", "flush", "dev", "wire")  # the router before had the same addresses
    with Namespace(unique("mn-")) as router:
        lab.plug(router, OUTSIDE)
        router.command("ip", "address", "add", f"{OUTSIDE6}/64", "dev", "eth0", "nodad")
        veth(router, ["192.168.7.1/24", "fd13:7::1/64"], node.ns, [f"{INSIDE}/24", f"{INSIDE6}/64"], "home")
        for switch in ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"):
            router.command("sysctl", "-qw", switch)
        node.ns.command("ip", "route", "add", "default", "via", "192.168.7.1")
        node.ns.command("ip", "route", "add", "default", "via", "fd13:7::1")
        router.command("nft", "-f", "-", stdin=rules)
        try:
            yield node, router
        finally:
            router.command("ip", "link", "del", "home", check=False)


def netcheck(lab: Lab, node: Node, *coordinators: str) -> Seen:
    token = JoinToken.parse(lab.coordinator.token())
    token = replace(token, coordinators=coordinators or token.coordinators)
    done = node.meshctl("netcheck", "-", "--json", stdin=token.text())
    assert "Traceback" not in done.stderr, done.stderr
    told = json.loads(done.stdout)
    words: dict[str, str] = {}
    for sentence in told["sentences"]:
        words[sentence["about"]] = words.get(sentence["about"], "") + f"{sentence['words']} -> {sentence['remedy']}\n"
    return Seen(done.returncode, words, [look for way in told["ways"] for look in way["looks"]])


def nat(rule: str, family: str = "ip") -> str:
    chain = f'chain out {{ type nat hook postrouting priority 100; oifname "eth0" {rule}; }}'
    return f"table {family} way {{ {chain}\n}}\n"


def forward(rule: str) -> str:
    return f"table inet gate {{ chain through {{ type filter hook forward priority 0; {rule}; }}\n}}\n"


STATEFUL = 'iifname "eth0" meta l4proto udp ct state new drop'


def test_no_nat_and_an_open_way_in(lab: Lab) -> None:
    with behind(lab, "") as (node, _):
        seen = netcheck(lab, node)
        assert seen.code == 0, seen
        assert f"UDP to {HUB}:{PORT} over IPv4 is answered in" in seen.words["udp"]
        assert f"IPv4: the world sees {OURS}, this machine's own address and port: no NAT" in seen.words["nat"]
        assert "peers may begin" in seen.words["filter"]
        assert "1500 bytes, as measured: 1420 inside the tunnel" in seen.words["mtu"]
        (look,) = seen.looks
        assert (look["source"], look["seen"], look["seen_second"], look["unasked"]) == (OURS, OURS, OURS, True)
        assert "port" not in seen.words


def test_stateful_firewall_without_a_nat_lets_in_only_whom_was_written_to(lab: Lab) -> None:
    with behind(lab, forward(STATEFUL)) as (node, _):
        seen = netcheck(lab, node)
        assert seen.code == 0, seen
        assert "no NAT" in seen.words["nat"]
        assert "UDP gets in only from where this machine has written to" in seen.words["filter"]
        assert seen.looks[0]["seen_second"] == OURS, "the second port is reached once it is written to"


def test_masquerade_is_an_easy_nat_that_keeps_the_port(lab: Lab) -> None:
    with behind(lab, nat("masquerade")) as (node, _):
        seen = netcheck(lab, node)
        assert seen.code == 0, seen
        assert f"as {OUTSIDE}:51820 to all 2 destinations asked: an easy one. It keeps its port" in seen.words["nat"]
        assert "only from where this machine has written to" in seen.words["filter"]


def test_masquerade_to_one_other_port_is_easy_and_says_what_to_tell_peers(lab: Lab) -> None:
    with behind(lab, nat("meta l4proto udp masquerade to :40777")) as (node, _):
        seen = netcheck(lab, node)
        assert seen.code == 0, seen
        assert (
            f"changes its port, so peers reach it after it has begun, or with --endpoint {OUTSIDE}:40777"
            in (seen.words["nat"])
        )


@pytest.mark.parametrize("how", ["random", "fully-random"])
def test_masquerade_with_random_ports_is_a_hard_nat(lab: Lab, how: str) -> None:
    with behind(lab, nat(f"masquerade {how}")) as (node, _):
        seen = netcheck(lab, node)
        assert seen.code == 1, seen
        (look,) = seen.looks
        assert look["seen"] != look["seen_second"]
        for endpoint in (look["seen"], look["seen_second"]):
            assert endpoint.startswith(f"{OUTSIDE}:")
            assert endpoint in seen.words["nat"]
        assert "a hard one" in seen.words["nat"]
        assert "forward UDP 51820 to this machine" in seen.words["nat"]
        assert seen.looks[0]["unasked"] is False


def test_nat_that_maps_by_address_is_seen_with_two_coordinators_alone(lab: Lab) -> None:
    """One coordinator has two ports, and one address."""
    second = "203.0.113.2"
    lab.hub.command("ip", "address", "add", f"{second}/24", "dev", "wire")
    mapping = (
        f"ip daddr {HUB} meta l4proto udp masquerade to :40001; ip daddr {second} meta l4proto udp masquerade to :40002"
    )
    with behind(lab, nat(f"{mapping}; masquerade")) as (node, _):
        assert "an easy one" in netcheck(lab, node).words["nat"]
        seen = netcheck(lab, node, f"{HUB}:{PORT}", f"{second}:{PORT}")
        assert seen.code == 1, seen
        assert f"({OUTSIDE}:40001, {OUTSIDE}:40002): a hard one" in seen.words["nat"]


def test_forwarded_port_lets_peers_begin(lab: Lab) -> None:
    into = 'chain in { type nat hook prerouting priority -100; iifname "eth0" udp dport 51820 dnat to 192.168.7.2; }'
    with behind(lab, nat("masquerade") + f"table ip way {{ {into}\n}}\n") as (node, _):
        seen = netcheck(lab, node)
        assert (seen.code, "peers may begin" in seen.words["filter"]) == (0, True), seen
        assert "an easy one" in seen.words["nat"]


def test_udp_that_vanishes_on_its_way_out_is_no_network_for_a_mesh(lab: Lab) -> None:
    with behind(lab, forward('oifname "eth0" meta l4proto udp drop')) as (node, _):
        seen = netcheck(lab, node)
        assert seen.code == 2, seen
        assert (
            f"UDP to {HUB}:{PORT} over IPv4 is not answered, while TCP is: UDP does not get out of here"
            in (seen.words["udp"])
        )
        assert "let UDP out here, from port 51820 to all" in seen.words["udp"]
        assert "is not tested: no coordinator answers netcheck over UDP" in seen.words["nat"]
        assert "filter" not in seen.words


def test_hole_for_large_packets_on_the_way_is_measured(lab: Lab) -> None:
    """No ICMP: the kernel goes on to believe in 1500."""
    with behind(lab, forward('oifname "eth0" meta l4proto udp meta length > 1400 drop')) as (node, _):
        seen = netcheck(lab, node)
        assert seen.code == 1, seen
        assert "carries 1400 bytes, as measured; 1420 vanish: 1320 inside the tunnel" in seen.words["mtu"]


def test_one_packet_in_ten_lost_costs_no_verdict(lab: Lab) -> None:
    with behind(lab, nat("masquerade") + forward("meta l4proto udp numgen random mod 10 0 drop")) as (node, _):
        seen = netcheck(lab, node)
        assert (seen.code, seen.looks[0]["answer"], seen.looks[0]["passes"]) == (0, "answered", 1500), seen


def test_both_ip_versions_are_judged_apart(lab: Lab) -> None:
    coordinators = f"{HUB}:{PORT}", f"[{HUB6}]:{PORT}"
    with behind(lab, nat("masquerade fully-random", "ip6")) as (node, _):
        seen = netcheck(lab, node, *coordinators)
        assert seen.code == 1, seen
        assert f"IPv4: the world sees {OURS}" in seen.words["nat"]
        assert (
            f"IPv6: a NAT shows this machine to each destination under another address or port ([{OUTSIDE6}]:"
            in (seen.words["nat"])
        )
        assert {look["version"]: look["answer"] for look in seen.looks} == {4: "answered", 6: "answered"}
    with behind(lab, "") as (node, _):
        seen = netcheck(lab, node, *coordinators)
        assert (seen.code, f"IPv6: the world sees [{INSIDE6}]:51820" in seen.words["nat"]) == (0, True), seen


def test_wireguards_port_that_is_in_use_is_said(lab: Lab) -> None:
    with behind(lab, "") as (node, _), contextlib.ExitStack() as stack:
        with node.ns.entered():
            taken = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        taken.bind(("", 51820))
        seen = netcheck(lab, node)
        assert (seen.code, seen.looks[0]["answer"]) == (0, "answered"), seen
        assert ", as 51820 is in use" in seen.words["port"]


def test_ctrl_c_while_nothing_answers_is_clean(lab: Lab) -> None:
    with behind(lab, forward("drop")) as (node, _):
        path = lab.directory / "token"
        path.write_text(lab.coordinator.token())
        command = ["ip", "netns", "exec", node.ns.name, *MESHCTL, "netcheck", f"@{path}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                until(lambda: "51820" in node.ns.command("ss", "-Hlun"), READY_S, "it asks")
                process.send_signal(signal.SIGINT)
                out, said = process.communicate(timeout=READY_S)
            finally:
                process.kill()
        assert (process.returncode, out) == (130, "")
        assert said.strip() == "interrupted; run the same command again to go on"


def test_coordinator_with_netcheck_off_refuses_and_proves_that_udp_arrives(lab: Lab) -> None:
    lab.coordinator.stop()
    lab.coordinator.flags = ("--stun", "off")
    lab.coordinator.start()
    try:
        with behind(lab, "") as (node, _):
            seen = netcheck(lab, node)
            assert seen.code == 0, seen
            assert f"UDP to {HUB}:{PORT} over IPv4 arrives: its refusal came back" in seen.words["udp"]
            assert "no coordinator answers netcheck over UDP" in seen.words["nat"]
    finally:
        lab.coordinator.stop()
        lab.coordinator.flags = ()
        lab.coordinator.start()


def test_second_port_of_the_operators_choice(lab: Lab) -> None:
    lab.coordinator.stop()
    lab.coordinator.flags = ("--stun", "3479")
    lab.coordinator.start()
    try:
        listening = {line.split()[3] for line in lab.hub.command("ss", "-Hlun").splitlines()}
        assert {f"0.0.0.0:{PORT}", "0.0.0.0:3479", f"[::]:{PORT}", "[::]:3479"} <= listening
        with behind(lab, nat("masquerade fully-random")) as (node, _):
            assert netcheck(lab, node).code == 1
    finally:
        lab.coordinator.stop()
        lab.coordinator.flags = ()
        lab.coordinator.start()


def test_second_port_that_is_taken_stops_no_coordinator(lab: Lab) -> None:
    lab.coordinator.stop()
    try:
        with lab.hub.entered():
            taken = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with taken:
            taken.bind(("", PORT + 1))
            lab.coordinator.start()
        assert f"UDP port {PORT + 1} of 0.0.0.0 is not to be had: Address already in use" in lab.coordinator.tail()
        with behind(lab, nat("masquerade")) as (node, _):
            seen = netcheck(lab, node)
            assert seen.code == 0, seen
            assert (
                f"a NAT shows this machine as {OUTSIDE}:51820; whether to all alike is not known" in seen.words["nat"]
            )
            assert "only from where this machine has written to" in seen.words["filter"]
    finally:
        lab.coordinator.stop()
        lab.coordinator.start()
