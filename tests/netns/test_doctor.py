"""doctor on real hosts with real faults: what it finds, and that the command it prints repairs it (NET-7, OPS-4)."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from meshctl.agent.join import Member
from meshctl.agent.store import Store
from tests.harness.mesh import READY_S, Lab, Node, until

pytestmark = pytest.mark.root
NFT = """table inet site {
  chain first { type filter hook input priority 0; policy accept; jump hosts; }
  chain hosts { ct state established accept; udp dport 51000-52000 reject; }
}"""
UPLINKS = """ip route add default via 203.0.113.1
ip link add up1 type veth peer name up2; ip address add 198.51.100.2/24 dev up1; ip link set up1 up
ip route add default via 198.51.100.1 metric 200; sysctl -qw net.ipv4.conf.up1.rp_filter=1"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        made.members("a", "b")
        yield made


def doctor(node: Node) -> tuple[int, dict[str, dict[str, Any]]]:
    done = node.meshctl("doctor", "--json")
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, {row["code"]: row for row in json.loads(done.stdout)["checks"]}


def wrong(node: Node) -> dict[str, dict[str, Any]]:
    """Without the clock of the machine that runs the tests, which may have no time daemon."""
    return {code: row for code, row in doctor(node)[1].items() if row["verdict"] != "ok" and code != "HOST-NTP"}


def shell(node: Node, script: str) -> None:
    done = node.run("sh", "-ec", script)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("code", "fault", "undo", "verdict"),
    [
        ("HOST-RPF", UPLINKS, "ip link del up1; ip route del default", "degraded"),
        ("HOST-ROUTE", "ip route add 10.77.5.0/24 dev eth0", "", "failed"),
        ("HOST-FIREWALL", f"nft '{NFT}'", "nft delete table inet site", "failed"),
        ("HOST-MTU", "ip link set eth0 mtu 1300", "ip link set eth0 mtu 1500", "degraded"),
        ("HOST-STATE", "chmod 644 {state}/seal.key", "", "failed"),
    ],
)
def test_fault_is_found_and_its_command_repairs_it(lab: Lab, code: str, fault: str, undo: str, verdict: str) -> None:
    a = lab.nodes[0]
    until(lambda: not wrong(a), 30, f"all is well before: {wrong(a)}")
    shell(a, fault.replace("{state}", str(a.state)))
    try:
        found = wrong(a)
        assert found[code]["verdict"] == verdict
        assert found.keys() <= {code, "HOST-AGENT"}  # the agent may have noticed, too
        shown = a.meshctl("doctor")
        assert shown.returncode == (2 if "failed" in {row["verdict"] for row in found.values()} else 1)
        assert f"! {code}: {found[code]['evidence']} -> {found[code]['command']}" in shown.stdout
        shell(a, found[code]["command"])
        assert code not in wrong(a)
    finally:
        if undo:
            shell(a, undo)


def table(family: str, rules: str, policy: str = "accept") -> str:
    chain = f"chain in {{ type filter hook input priority 0; policy {policy}; {rules} }}"
    return f"nft 'table {family} site {{ {chain}\n}}'"


SIX = "2001:db8:5::"
DROPS = {
    "an ip6 table's policy": ("6", "ip6", "", "drop", True),
    "IPv6 in an inet table": ("6", "inet", "meta nfproto ipv6 drop;", "accept", True),
    "IPv6 refused in an inet table": ("6", "inet", "udp dport 51820 reject with icmpv6 no-route;", "accept", True),
    "probes over IPv6 alone": ("6", "ip6", "ip6 saddr {prefix6} udp dport 51871 drop;", "accept", False),
    "an ip6 table's policy, no IPv6 around": ("6", "ip6", "", "drop", False),
    "IPv4 in an inet table": ("4", "inet", "meta nfproto ipv4 udp dport { 51820, 51871 } drop;", "accept", True),
    "an ip table": ("4", "ip", "udp dport { 51820, 51871 } drop;", "accept", True),
}


@pytest.mark.parametrize("how", DROPS)
def test_drop_of_one_family_is_found_blames_it_alone_and_its_command_repairs_it(lab: Lab, how: str) -> None:
    blamed, family, rules, policy, routed = DROPS[how]
    a = lab.nodes[0]
    if routed:
        shell(a, f"ip address replace {SIX}a/64 dev eth0 nodad")
    until(lambda: not wrong(a), 30, f"all is well before: {wrong(a)}")
    shell(a, table(family, rules.replace("{prefix6}", str(Member.load(Store(a.state)).mesh.prefix6)), policy))
    try:
        found = wrong(a)["HOST-FIREWALL"]
        assert found["verdict"] in ("failed", "degraded")
        assert found["evidence"].startswith(f"IPv{blamed} "), found
        assert f" is dropped in {family} site in, by " in found["evidence"]
        for command in found["command"].split(" && "):
            assert command.startswith(f"nft insert rule {family} site in ")
        shell(a, found["command"])
        # A drop of more than six seconds is a finding at the agent, which closes half a minute after the repair.
        until(lambda: not wrong(a), 2 * READY_S, lambda: f"all is well again: {wrong(a)}")
    finally:
        shell(a, f"nft delete table {family} site; ip address flush dev eth0 to {SIX}/64")


def arrives(lab: Lab, node: Node, address: str) -> bool:
    """Whether a packet of a stranger to this fresh machine's WireGuard port comes in, with neighbours to be found."""
    shell(node, "ip -6 neighbour flush dev eth0")
    lab.hub.command("ip", "-6", "neighbour", "flush", "dev", "wire")
    with node.ns.entered():
        inside = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with inside, lab.hub.entered():
        inside.bind(("::", 51820))
        inside.settimeout(1.5)
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as outside:
            outside.sendto(b"hello", (address, 51820))
        try:
            return inside.recv(9) == b"hello"
        except TimeoutError:
            return False


def test_command_for_an_ip6_table_lets_packets_and_neighbours_in(lab: Lab) -> None:
    lab.hub.command("ip", "address", "add", f"{SIX}1/64", "dev", "wire", "nodad")
    fresh = lab.machine("fresh")
    shell(fresh, table("ip6", "", "drop"))
    row = doctor(fresh)[1]["HOST-FIREWALL"]
    assert (row["verdict"], row["command"]) == ("ok", "")  # there is no IPv6 to lose
    assert "is dropped in ip6 site in, by its policy, where it is not in use" in row["evidence"]
    shell(fresh, f"ip address add {SIX}9/64 dev eth0 nodad")
    assert not arrives(lab, fresh, f"{SIX}9")
    found = wrong(fresh)["HOST-FIREWALL"]
    assert found["verdict"] == "failed"
    shell(fresh, found["command"])
    assert arrives(lab, fresh, f"{SIX}9")
    assert doctor(fresh)[1]["HOST-FIREWALL"]["verdict"] == "ok"


def test_stopped_agent_is_found(lab: Lab) -> None:
    b = lab.nodes[1]
    b.stop()
    found = wrong(b)
    assert found["HOST-AGENT"]["verdict"] == "failed"
    assert found["HOST-AGENT"]["command"]
    assert "HOST-PORT" not in found  # its wireguard-go holds the port, and goes on
    b.up()
    until(lambda: b.proves("a"), 40, "it is back")


def test_port_that_is_taken_is_found_before_joining(lab: Lab) -> None:
    stranger = lab.machine("stranger")
    assert not wrong(stranger)
    holder = stranger.spawn(
        "python3", "-c", "import socket,signal; s=socket.socket(type=2); s.bind(('',51820)); signal.pause()"
    )
    try:
        found = until(lambda: wrong(stranger), 10, "the port is taken")
        assert found.keys() == {"HOST-PORT"}
        assert "python3" in found["HOST-PORT"]["evidence"]
        assert doctor(stranger)[0] == 2
    finally:
        holder.kill()
        holder.wait()
