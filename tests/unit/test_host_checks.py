"""What a host must be: every check seen failing on facts, with the command that repairs it; nftables walked (NET-7)."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest

from meshctl.mesh import host_checks
from meshctl.mesh.catalogue import Verdict
from meshctl.mesh.host_checks import CLAIMS, Facts, Flusher, HostRoute, HostRow, Uplink, judge
from meshctl.mesh.ruleset import Packet, fate

OK, DEGRADED, FAILED, UNKNOWN = Verdict.OK, Verdict.DEGRADED, Verdict.FAILED, Verdict.UNKNOWN
ETH0, ETH1 = Uplink("eth0", 1500, 0), Uplink("eth1", 1500, 1)
ALL = (1 << 41) - 1
MESH = ip_network("10.77.0.0/16"), ip_network("fd77:1:2::/48")
WELL = Facts(
    interface="mesh0", port=51820, root=True, joined=True, systemd=True, prefixes=MESH,
    uplinks=(ETH0,), routes=(HostRoute(ip_network("192.0.2.0/24"), "eth0", "192.0.2.0/24 dev eth0"),), forwarding6=True,
    clock_kept=True, skew=(OK, "0.1 s"), ruleset=(), capabilities=ALL, wireguard_go=True, state_dir="/var/lib/meshctl",
    loose=(), port_holder="", agent=(OK, "answers: ok, findings: 0"), inotify=(3, 128),
)  # fmt: skip


def row(facts: Facts, code: str) -> HostRow:
    return {row.code: row for row in judge(facts)}[code]


def test_healthy_host_has_every_row_and_nothing_to_repair() -> None:
    rows = judge(WELL)
    assert [row.code for row in rows] == list(CLAIMS)
    assert {row.verdict for row in rows} == {OK}
    assert not any(row.command for row in rows)
    assert host_checks.overall([row.verdict for row in rows]) is OK


def overlapping(prefix: str) -> Facts:
    return replace(WELL, routes=(HostRoute(ip_network(prefix), "eth0", f"{prefix} dev eth0 table 7"),))


FAULTS: dict[str, tuple[str, Facts, Verdict, str]] = {
    "strict rp_filter": (
        "HOST-RPF", replace(WELL, uplinks=(ETH0, ETH1)), DEGRADED, "sysctl -w net.ipv4.conf.eth1.rp_filter=2"),
    "router is ignored": (
        "HOST-FWD", replace(WELL, uplinks=(replace(ETH0, by_ra=True, accept_ra=1),)), DEGRADED,
        "sysctl -w net.ipv6.conf.eth0.accept_ra=2"),
    "clock is off": ("HOST-CLOCK", replace(WELL, skew=(FAILED, "40 s")), FAILED, "apt-get install chrony"),
    "clock is not kept": ("HOST-NTP", replace(WELL, clock_kept=False), DEGRADED, "apt-get install chrony"),
    "clock is kept badly": (
        "HOST-NTP", replace(WELL, clock_kept=False, time_daemon="chronyd"), DEGRADED, "systemctl restart chronyd"),
    "route overlaps": ("HOST-ROUTE", overlapping("10.77.5.0/24"), FAILED, "ip route del 10.77.5.0/24 dev eth0 table 7"),
    "mesh's own prefix elsewhere": (
        "HOST-ROUTE", overlapping("10.77.0.0/16"), FAILED, "ip route del 10.77.0.0/16 dev eth0 table 7"),
    "no TUN": (
        "HOST-TUN", replace(WELL, tun="/dev/net/tun: No such file"), FAILED,
        "modprobe tun || { mkdir -p /dev/net && mknod /dev/net/tun c 10 200; }"),
    "no CAP_NET_ADMIN": (
        "HOST-CAP", replace(WELL, capabilities=1 << 13), FAILED, "start the container with --cap-add=NET_ADMIN"),
    "no CAP_NET_RAW": (
        "HOST-CAP", replace(WELL, capabilities=1 << 12), DEGRADED, "start the container with --cap-add=NET_RAW"),
    "no WireGuard": ("HOST-WIREGUARD", replace(WELL, wireguard_go=False), FAILED, "apt-get install wireguard-go"),
    "no nft": ("HOST-NFT", replace(WELL, nft=False), FAILED, "apt-get install nftables"),
    "narrow underlay": (
        "HOST-MTU", replace(WELL, uplinks=(replace(ETH0, mtu=1359),)), DEGRADED, "ip link set dev eth0 mtu 1360"),
    "open state": (
        "HOST-STATE", replace(WELL, loose=("/var/lib/meshctl/seal.key",)), FAILED,
        "chmod -R u=rwX,go= /var/lib/meshctl"),
    "port taken": (
        "HOST-PORT", replace(WELL, joined=False, port_holder="nc (process 7)"), FAILED,
        "meshctl join @token --listen-port PORT"),
    "agent is silent": (
        "HOST-AGENT", replace(WELL, agent=(FAILED, "the agent does not answer")), FAILED, "systemctl restart meshctl"),
    "agent finds something": (
        "HOST-AGENT", replace(WELL, agent=(FAILED, "answers: failed, findings: 1")), FAILED, "meshctl status"),
    "inotify used up": (
        "HOST-INOTIFY", replace(WELL, inotify=(128, 128)), FAILED, "sysctl -w fs.inotify.max_user_instances=1024"),
    "inotify nearly used up": (
        "HOST-INOTIFY", replace(WELL, inotify=(118, 128)), DEGRADED, "sysctl -w fs.inotify.max_user_instances=1024"),
    "rules are flushed": (
        "HOST-FLUSH", replace(WELL, flushers=(Flusher("/etc/nftables.conf", ("inet filter",)),)), DEGRADED,
        r"sed -i 's/^flush ruleset.*/table inet filter\ndelete table inet filter/' /etc/nftables.conf"),
    "legacy rules": ("HOST-FIREWALL", replace(WELL, legacy_tables=True), UNKNOWN, "iptables-legacy -S"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_opens_its_row_alone_and_names_the_repair(fault: str) -> None:
    code, facts, verdict, command = FAULTS[fault]
    wrong = [row for row in judge(facts) if row.verdict is not OK]
    assert [(row.code, row.verdict, row.command) for row in wrong] == [(code, verdict, command)]


def test_one_strict_uplink_is_fine_and_so_are_two_that_are_no_gateways() -> None:
    assert row(replace(WELL, uplinks=(ETH1,)), "HOST-RPF").verdict is OK
    lan = replace(ETH1, gateway=False), replace(ETH0, gateway=False)
    assert row(replace(WELL, uplinks=lan), "HOST-RPF").verdict is OK


def test_wider_route_gives_way_to_the_mesh() -> None:
    found = row(overlapping("10.0.0.0/8"), "HOST-ROUTE")
    assert (found.verdict, "10.0.0.0/8 by eth0 gives way" in found.evidence) == (OK, True)


def test_our_own_interface_carries_the_mesh() -> None:
    own = HostRoute(ip_network("10.77.0.0/16"), "mesh0", "10.77.0.0/16 dev mesh0")
    assert row(replace(WELL, routes=(own,)), "HOST-ROUTE").verdict is OK


def test_what_was_not_looked_at_is_unknown_and_what_has_no_meaning_is_no_row() -> None:
    facts = Facts("mesh0", 51820, False, wireguard_go=True, unseen={"HOST-CAP": "only root may look"})
    rows = {row.code: row for row in judge(facts)}
    assert rows["HOST-CAP"] == ("HOST-CAP", CLAIMS["HOST-CAP"], UNKNOWN, "only root may look", "sudo meshctl doctor")
    assert not {"HOST-AGENT", "HOST-ROUTE", "HOST-CLOCK", "HOST-FIREWALL"} & rows.keys()
    assert host_checks.overall([row.verdict for row in rows.values()]) is UNKNOWN
    assert host_checks.overall([UNKNOWN, DEGRADED]) is DEGRADED


# ---- nftables --------------------------------------------------------------------------------------------------------

IN, OUT = Packet("input", "eth0", 40000, 51820), Packet("output", "eth0", 51820, 40000)


def chain(name: str, hook: str = "", policy: str = "accept", family: str = "inet", kind: str = "filter") -> Any:
    made = {"family": family, "table": "t", "name": name}
    return {"chain": made | ({"type": kind, "hook": hook, "prio": 0, "policy": policy} if hook else {})}


def rule(to: str, *expressions: Any, family: str = "inet") -> Any:
    return {"rule": {"family": family, "table": "t", "chain": to, "expr": list(expressions)}}


def match(left: Any, right: Any, op: str = "==") -> Any:
    return {"match": {"op": op, "left": left, "right": right}}


DPORT: Any = {"payload": {"protocol": "udp", "field": "dport"}}
SADDR: Any = {"payload": {"protocol": "ip", "field": "saddr"}}
STATE: Any = {"ct": {"key": "state"}}
DROP, ACCEPT, RETURN = {"drop": None}, {"accept": None}, {"return": None}
TO_X: Any = {"jump": {"target": "x"}}
REJECT: Any = {"reject": {"type": "icmpx", "expr": "admin-prohibited"}}

DROPS: dict[str, tuple[Any, ...]] = {
    "policy": (chain("in", "input", "drop"),),
    "policy, other port let in": (chain("in", "input", "drop"), rule("in", match(DPORT, 53), ACCEPT)),
    "rule": (chain("in", "input"), rule("in", match(DPORT, 51820), {"counter": {}}, DROP)),
    "reject at the end": (
        chain("in", "input"), rule("in", match(STATE, ["established", "related"], "in"), ACCEPT), rule("in", REJECT)),
    "range": (chain("in", "input"), rule("in", match(DPORT, {"range": [50000, 60000]}), DROP)),
    "set": (
        chain("in", "input"), {"set": {"family": "inet", "table": "t", "name": "s", "elem": [1, 51820]}},
        rule("in", match(DPORT, "@s"), DROP)),
    "not that port": (chain("in", "input"), rule("in", match(DPORT, 22, "!="), DROP)),
    "jump": (chain("in", "input"), chain("x"), rule("in", {"jump": {"target": "x"}}), rule("x", DROP)),
    "goto, then the policy": (
        chain("in", "input", "drop"), chain("x"), rule("in", {"goto": {"target": "x"}}), rule("in", ACCEPT)),
    "verdict map": (
        chain("in", "input"), chain("x"),
        rule("in", {"vmap": {"key": {"meta": {"key": "l4proto"}}, "data": {"set": [["udp", TO_X]]}}}),
        rule("x", DROP)),
    "interface": (chain("in", "input"), rule("in", match({"meta": {"key": "iifname"}}, "eth*"), DROP)),
    "iptables": (chain("INPUT", "input", "drop", "ip"),),
}  # fmt: skip

PASSES: dict[str, tuple[Any, ...]] = {
    "nothing": (),
    "port let in": (chain("in", "input", "drop"), rule("in", match(DPORT, {"set": [51820, 53]}), ACCEPT)),
    "drop of some addresses": (chain("in", "input"), rule("in", match(SADDR, "192.0.2.1"), DROP)),
    "drop of TCP": (
        chain("in", "input"), rule("in", match({"payload": {"protocol": "tcp", "field": "dport"}}, 51820), DROP)),
    "drop of invalid": (chain("in", "input"), rule("in", match(STATE, "invalid", "in"), DROP)),
    "return before the drop": (
        chain("in", "input"), chain("x"), rule("in", {"jump": {"target": "x"}}), rule("x", RETURN), rule("x", DROP)),
    "IPv6 alone": (chain("in", "input", "drop", "ip6"),),
    "NAT": (chain("in", "input", "drop", kind="nat"),),
    "other hook": (chain("fw", "forward", "drop"),),
    "endless jumps": (chain("in", "input"), rule("in", {"jump": {"target": "in"}})),
}  # fmt: skip


@pytest.mark.parametrize("how", DROPS)
def test_rules_that_drop_are_found(how: str) -> None:
    end = fate(DROPS[how], IN)
    assert (end.dropped, end.some) == (True, False)
    found = row(replace(WELL, ruleset=DROPS[how]), "HOST-FIREWALL")
    assert found.verdict is (FAILED if "mesh0" in found.command else DEGRADED)
    assert found.command.startswith(f"nft insert rule {end.family} t ")


@pytest.mark.parametrize("how", PASSES)
def test_rules_that_let_us_pass_are_no_fault(how: str) -> None:
    assert not fate(PASSES[how], IN).dropped


def test_rules_that_let_some_pass_are_not_judged() -> None:
    some, inside = {"prefix": {"addr": "192.0.2.0", "len": 24}}, match({"meta": {"key": "iifname"}}, "mesh0")
    rules = chain("in", "input", "drop"), rule("in", match(SADDR, some), ACCEPT), rule("in", inside, ACCEPT)
    assert fate(rules, IN).some
    assert row(replace(WELL, ruleset=rules), "HOST-FIREWALL").verdict is UNKNOWN


def test_outgoing_drop_is_worse_than_an_incoming_one_and_probes_inside_count() -> None:
    sport: Any = {"payload": {"protocol": "udp", "field": "sport"}}
    out = chain("out", "output"), rule("out", match(sport, 51820), DROP)
    assert fate(out, OUT).dropped
    found = row(replace(WELL, ruleset=out), "HOST-FIREWALL")
    assert (found.verdict, found.command) == (FAILED, "nft insert rule inet t out udp sport 51820 accept")
    inside = chain("in", "input"), rule("in", match(DPORT, 51871), DROP)
    found = row(replace(WELL, ruleset=inside), "HOST-FIREWALL")
    assert (found.verdict, found.command) == (
        FAILED, 'nft insert rule inet t in iifname "mesh0" udp dport 51871 accept')  # fmt: skip


def test_firewalld_and_ufw_are_spoken_to_in_their_words() -> None:
    rules: Any = chain("in", "input", "drop")
    rules["chain"]["table"] = "firewalld"
    found = row(replace(WELL, ruleset=(rules,)), "HOST-FIREWALL")
    assert found.command == (
        "firewall-cmd --permanent --add-port=51820/udp && firewall-cmd --reload && "
        "firewall-cmd --permanent --zone=trusted --add-interface=mesh0 && firewall-cmd --reload"
    )
    rules["chain"]["table"] = "filter"
    found = row(replace(WELL, ruleset=(rules,), firewalls=frozenset({"ufw"})), "HOST-FIREWALL")
    assert found.command == "ufw allow in 51820/udp && ufw allow in on mesh0"
