"""nftables walked for IPv4 and for IPv6: what the other family meets is no fault, nor what is not in use (NET-7)."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest

from meshctl.mesh.catalogue import Verdict
from meshctl.mesh.host_checks import Facts, HostRow, judge
from meshctl.mesh.ruleset import Packet, fate
from tests.unit.test_host_checks import (
    ACCEPT,
    DPORT,
    DROP,
    ETH0,
    MESH,
    RETURN,
    SADDR,
    STATE,
    TO_X,
    WELL,
    chain,
    match,
    rule,
)  # fmt: skip

OK, DEGRADED, FAILED, UNKNOWN = Verdict.OK, Verdict.DEGRADED, Verdict.FAILED, Verdict.UNKNOWN
WORLD = ip_network("2000::/3")
IN = {4: Packet("input", "eth0", 40000, 51820), 6: Packet("input", "eth0", 40000, 51820, 6, (WORLD,))}
INSIDE = {family: Packet("input", "mesh0", 51871, 51871, family, (MESH[family == 6],)) for family in (4, 6)}
NEIGHBOUR = Packet("input", "eth0", family=6, icmp="nd-neighbor-advert")
BOTH = replace(WELL, uplinks=(replace(ETH0, families=frozenset({4, 6})),))
ALONE6 = replace(WELL, uplinks=(replace(ETH0, families=frozenset({6})),))
PREFIX6 = {"prefix": {"addr": "fd77:1:2::", "len": 48}}
FIND = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert }"
NFPROTO: Any = {"meta": {"key": "nfproto"}}
PAIR: Any = {"concat": [NFPROTO, DPORT]}
MISSING: Any = {"exthdr": {"name": "hbh"}}


def field(protocol: str, name: str) -> Any:
    return {"payload": {"protocol": protocol, "field": name}}


def meta(key: str) -> Any:
    return {"meta": {"key": key}}


def firewall(facts: Facts, *ruleset: Any) -> HostRow:
    return {row.code: row for row in judge(replace(facts, ruleset=ruleset))}["HOST-FIREWALL"]


def inet(*expressions: Any) -> tuple[Any, ...]:
    return chain("in", "input"), rule("in", *expressions)


# Rule -> the families that it drops for certain.
RULES: dict[str, tuple[tuple[Any, ...], set[int]]] = {
    "table ip": ((chain("in", "input", "drop", "ip"),), {4}),
    "table ip6": ((chain("in", "input", "drop", "ip6"),), {6}),
    "table inet": ((chain("in", "input", "drop"),), {4, 6}),
    "nfproto": (inet(match(NFPROTO, "ipv6"), DROP), {6}),
    "not that nfproto": (inet(match(NFPROTO, "ipv6", "!="), DROP), {4}),
    "protocol": (inet(match(meta("protocol"), "ip6"), DROP), {6}),
    "both protocols": (inet(match(meta("protocol"), {"set": ["ip", "ip6"]}), DROP), {4, 6}),
    "connection's family": (inet(match({"ct": {"key": "l3proto"}}, "ipv6"), DROP), {6}),
    "version": (inet(match(field("ip6", "version"), 6), DROP), {6}),
    "next header": (inet(match(field("ip6", "nexthdr"), "udp"), DROP), {6}),
    "protocol of IPv4": (inet(match(field("ip", "protocol"), 17), DROP), {4}),
    "either's UDP": (inet(match(meta("l4proto"), {"set": ["tcp", "udp"]}), DROP), {4, 6}),
    "ICMPv6": (inet(match(meta("l4proto"), "ipv6-icmp"), DROP), set()),
    "type of ICMPv6": (inet(match(field("icmpv6", "type"), "echo-request"), DROP), set()),
    "any address": (inet(match(field("ip6", "saddr"), {"prefix": {"addr": "::", "len": 0}}), DROP), {6}),
    "some address": (inet(match(field("ip6", "saddr"), "2001:db8::1", "!="), DROP), set()),
    "verdict map": (inet({"vmap": {"key": NFPROTO, "data": {"set": [["ipv4", ACCEPT], ["ipv6", DROP]]}}}), {6}),
    "concatenation": (inet(match(PAIR, {"set": [{"concat": ["ipv6", {"range": [51000, 52000]}]}]}), DROP), {6}),
    "concatenation of another port": (inet(match(PAIR, {"set": [{"concat": ["ipv6", 53]}]}), DROP), set()),
    "concatenation with some address": (
        inet(match({"concat": [SADDR, DPORT]}, {"set": [{"concat": ["192.0.2.1", 51820]}]}), DROP), set()),
    "reject of IPv6": (inet({"reject": {"type": "icmpv6", "expr": "no-route"}}), {6}),
    "reject of IPv4": (inet({"reject": {"type": "icmp", "expr": "host-unreachable"}}), {4}),
    "reject of TCP": (inet({"reject": {"type": "tcp reset"}}), set()),
    "reject of everybody": (inet({"reject": {"type": "icmpx", "expr": "no-route"}}), {4, 6}),
    "reject without words": (inet({"reject": None}), {4, 6}),
    "header that is there": (inet(match(MISSING, True), DROP), set()),
    "header that is missing": (inet(match(MISSING, False), DROP), {6}),
    "change of the other family": (
        (*inet({"mangle": {"key": field("ip6", "dscp"), "value": "cs1"}}, ACCEPT), rule("in", DROP)), {4}),
    "change of a TCP option": (inet({"mangle": {"key": {"tcp option": {"name": "maxseg"}}, "value": 9}}, DROP), set()),
    "drop of what is not for us": (
        (*inet(match({"fib": {"result": "type", "flags": ["daddr"]}}, "local"), RETURN), rule("in", DROP)), set()),
    "ufw's drop of what is not for us": (
        (*inet({"jump": {"target": "ufw-not-local"}}), chain("ufw-not-local"), rule("ufw-not-local", DROP)), set()),
    "Ethernet": (inet(match(field("ether", "type"), "ip6"), DROP), set()),
}  # fmt: skip


@pytest.mark.parametrize("what", RULES)
def test_rule_is_judged_for_the_family_at_hand(what: str) -> None:
    rules, families = RULES[what]
    ends = {family: fate(rules, IN[family]) for family in (4, 6)}
    assert {family for family, end in ends.items() if end.dropped and not end.some} == families
    if families:
        evidence = firewall(BOTH, *rules).evidence.partition(" is dropped")[0]
        assert any(evidence.startswith(f"IPv{family} ") for family in families)


def test_addresses_inside_the_mesh_are_known_and_those_outside_are_not_link_local() -> None:
    saddr = field("ip6", "saddr")
    assert fate(inet(match(saddr, PREFIX6), DROP), INSIDE[6]).dropped
    assert fate(inet(match(saddr, {"range": ["fd77::", "fd78::"]}), DROP), INSIDE[6]).dropped
    assert not fate(inet(match(saddr, {"range": ["fd77::", "fd77:1:2::5"]}), DROP), INSIDE[6]).dropped
    assert not fate(inet(match(saddr, "fd77:1:2::5"), DROP), INSIDE[6]).dropped
    assert fate(inet(match(saddr, {"set": [PREFIX6, "fe80::1"]}), DROP), INSIDE[6]).dropped
    assert fate((*inet(match(saddr, PREFIX6, "!="), ACCEPT), rule("in", DROP)), INSIDE[6]).dropped
    assert not fate(inet(match(saddr, PREFIX6), DROP), INSIDE[4]).dropped
    local = {"prefix": {"addr": "fe80::", "len": 10}}
    found = firewall(BOTH, chain("in", "input", "drop", "ip6"), rule("in", match(saddr, local), ACCEPT, family="ip6"))
    assert found.verdict is FAILED  # what it lets in is nothing of WireGuard's, nor of the probes
    world, uplink = {"prefix": {"addr": "2000::", "len": 3}}, match(meta("iifname"), "eth0")
    some = firewall(BOTH, *inet(match(saddr, world), ACCEPT), rule("in", match(NFPROTO, "ipv6"), uplink, DROP))
    assert some.verdict is UNKNOWN


def test_neighbour_discovery_is_no_udp_and_is_not_tracked() -> None:
    drop = chain("in", "input", "drop")
    assert fate((drop,), NEIGHBOUR).dropped
    for lets in (
        match(field("icmpv6", "type"), {"set": ["nd-neighbor-advert", "nd-neighbor-solicit"]}),
        match(field("ip6", "nexthdr"), "ipv6-icmp"),
        match(meta("l4proto"), 58),
        match(STATE, ["new", "untracked"]),
    ):
        assert not fate((drop, rule("in", lets, ACCEPT)), NEIGHBOUR).dropped
    for other in (match(field("icmpv6", "type"), "echo-request"), match(DPORT, 51820), match(STATE, ["new"])):
        assert fate((drop, rule("in", other, ACCEPT)), NEIGHBOUR).dropped
    unsure = drop, rule("in", {"xt": {"type": "match", "name": "icmp6"}}, ACCEPT)
    allowed = rule("in", match(DPORT, {"set": [51820, 51871]}), ACCEPT)
    assert fate(unsure, NEIGHBOUR).some
    assert firewall(BOTH, unsure[0], allowed, unsure[1]).verdict is OK  # ufw's own rules look like this


def test_return_and_goto_of_some_are_remembered() -> None:
    some = match(SADDR, "192.0.2.1")
    assert fate((*inet(TO_X), chain("x"), rule("x", some, RETURN), rule("x", DROP)), IN[4]).some
    assert fate((*inet(some, {"goto": {"target": "x"}}), chain("x"), rule("in", DROP)), IN[4]).some
    some_map = {"vmap": {"key": SADDR, "data": {"set": [["192.0.2.1", ACCEPT]]}}}
    assert fate((*inet(some_map), rule("in", DROP)), IN[4]).some
    assert not fate((*inet(some_map), rule("in", DROP)), IN[6]).some


# ---- which family is in use ------------------------------------------------------------------------------------------

DROP4, DROP6 = chain("in", "input", "drop", "ip"), chain("in", "input", "drop", "ip6")
PROBES = rule("in", match(meta("iifname"), "mesh0"), ACCEPT, family="ip6")
NO_IPV6 = "UDP 51820 (IPv4) and the probes (IPv4, IPv6) pass in both directions"


def test_host_without_ipv6_whose_ip6_table_drops_all_is_fine_and_is_told_so() -> None:
    found = firewall(WELL, DROP6, PROBES)
    assert (found.verdict, found.command) == (OK, "")
    assert found.evidence == (
        f"{NO_IPV6}; IPv6 UDP to port 51820 in by eth0 is dropped in ip6 t in, by its policy, where it is not in use"
    )
    for facts in (replace(WELL, prefixes=(), joined=False), replace(WELL, ipv6=False)):
        found = firewall(facts, DROP6)
        assert (found.verdict, "where it is not in use" in found.evidence) == (OK, True)
    assert firewall(replace(BOTH, ipv6=False), DROP6).verdict is OK
    assert firewall(WELL).evidence == NO_IPV6


def test_host_without_ipv4_does_not_mind_its_ip_table() -> None:
    lets = rule("in", match(meta("iifname"), "mesh0"), ACCEPT, family="ip")
    found = firewall(ALONE6, DROP4, lets)
    assert (found.verdict, "UDP 51820 (IPv6)" in found.evidence) == (OK, True)
    assert firewall(BOTH, DROP4, lets).verdict is DEGRADED


def test_drop_of_one_family_blames_it_alone() -> None:
    six = firewall(BOTH, DROP6, PROBES)
    assert (six.verdict, "IPv6 nd-neighbor" in six.evidence or "IPv6 UDP" in six.evidence) == (FAILED, True)
    assert six.command == f"nft insert rule ip6 t in udp dport 51820 accept && nft insert rule ip6 t in {FIND} accept"
    four = firewall(BOTH, DROP4)
    assert four.evidence.startswith("IPv4 UDP to port 51820 in by eth0 is dropped in ip t in")
    assert "ip6" not in four.command


def test_probes_are_judged_inside_for_both_families() -> None:
    found = firewall(WELL, *inet(match(NFPROTO, "ipv6"), match(DPORT, 51871), DROP))
    assert (found.verdict, found.evidence, found.command) == (
        FAILED, "IPv6 UDP to port 51871 in by mesh0 is dropped in inet t in, by a rule",
        'nft insert rule inet t in iifname "mesh0" udp dport 51871 accept')  # fmt: skip
    assert firewall(replace(WELL, prefixes=MESH[:1]), DROP6).verdict is OK


def test_endpoint_of_ipv6_counts_where_no_uplink_has_an_address_of_it() -> None:
    assert firewall(replace(WELL, endpoints=frozenset({6})), DROP6, PROBES).verdict is FAILED
    other = replace(ETH0, name="eth1", families=frozenset({6}))
    lets = rule("in", match(meta("iifname"), {"set": ["mesh0", "eth1"]}), ACCEPT, family="ip6")
    assert firewall(replace(WELL, uplinks=(ETH0, other), endpoints=frozenset({6})), DROP6, lets).verdict is OK


def test_use_of_ipv6_that_nobody_could_look_at_is_unknown() -> None:
    blind = replace(WELL, uplinks=None, unseen={"HOST-RPF": "ip fails: x"})
    found = firewall(blind, DROP6, PROBES)
    assert found.verdict is UNKNOWN
    assert "whether it is in use there is not known: ip fails: x" in found.evidence
    assert firewall(blind).verdict is OK
    assert firewall(replace(blind, endpoints=frozenset({6})), DROP6, PROBES).verdict is FAILED


# ---- repairs ---------------------------------------------------------------------------------------------------------


def named(table: str, *items: Any) -> tuple[Any, ...]:
    return tuple({kind: {**body, "table": table} for kind, body in item.items()} for item in items)


def test_ufw_without_ipv6_is_given_it_before_anything_is_allowed() -> None:
    ufw = replace(BOTH, firewalls=frozenset({"ufw"}))
    shut = firewall(ufw, *named("filter", DROP6))
    sed = "sed -i 's/^IPV6=.*/IPV6=yes/' /etc/default/ufw && ufw reload"
    assert shut.command == f"{sed} && ufw allow in 51820/udp && ufw allow in on mesh0"
    has = chain("ufw6-user-input", family="ip6")
    open_ = firewall(ufw, *named("filter", DROP6, has))
    assert open_.command == (
        f"ufw allow in 51820/udp && nft insert rule ip6 filter in {FIND} accept && ufw allow in on mesh0"
    )


def test_firewalld_is_asked_for_neighbours_by_protocol() -> None:
    drop = named("firewalld", *inet(match(meta("l4proto"), "ipv6-icmp"), DROP))
    found = firewall(replace(BOTH, firewalls=frozenset({"firewalld"})), *drop)
    assert found.command == "firewall-cmd --permanent --add-protocol=ipv6-icmp && firewall-cmd --reload"
