"""What a host must be for a mesh to work on it: facts in, rows out, each with the command that repairs it (NET-7).

Judges only; agent/host_facts.py looks. A fact that is None was not looked at, and `unseen` says why: its row is
`unknown`, never `ok`. A check that has no meaning yet (no mesh, no prefix) gives no row at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any, Final, NamedTuple

from meshctl.mesh import limits
from meshctl.mesh.catalogue import Verdict
from meshctl.mesh.model import Network
from meshctl.mesh.ruleset import Fate, Packet, fate

OK, DEGRADED, FAILED, UNKNOWN = Verdict.OK, Verdict.DEGRADED, Verdict.FAILED, Verdict.UNKNOWN
LEAST_MTU_BYTES: Final = limits.MIN_MTU_BYTES + limits.WIREGUARD_OVERHEAD_BYTES
_CAP_NET_ADMIN, _CAP_NET_RAW = 1 << 12, 1 << 13  # linux/capability.h
_NEARLY: Final = 0.9
_ROUTED6: Final = tuple(map(ip_network, ("2000::/3", "fc00::/7", "64:ff9b::/32")))  # endpoints; the last is NAT64's
_NEIGHBOURS: Final = ("nd-neighbor-solicit", "nd-neighbor-advert")  # without them no IPv6 leaves an Ethernet
_UFW_IPV6: Final = "sed -i 's/^IPV6=.*/IPV6=yes/' /etc/default/ufw && ufw reload"
_LOOK_AS_ROOT: Final = "sudo meshctl doctor"


class HostRow(NamedTuple):
    """One claim about this host. `command` repairs it, or shows more; empty when all is well."""

    code: str
    claim: str
    verdict: Verdict
    evidence: str
    command: str = ""


@dataclass(frozen=True, slots=True)
class Uplink:
    """A device by which packets leave for other networks: with a route through a gateway, where there is one."""

    name: str
    mtu: int
    rp_filter: int  # as in force: the greater of `all` and its own
    accept_ra: int = 0
    by_ra: bool = False  # its IPv6 default route was announced by a router
    gateway: bool = True  # False: there is no route through any gateway, and this device has an address
    families: frozenset[int] = frozenset({4})  # of the global addresses with which packets leave by it


@dataclass(frozen=True, slots=True)
class HostRoute:
    """A route of this host, without default routes and without ours."""

    prefix: Network
    device: str
    words: str  # as `ip route` would take it


@dataclass(frozen=True, slots=True)
class Flusher:
    """A file that is loaded as a whole and begins with `flush ruleset`; `tables` are the ones that it makes."""

    path: str
    tables: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """All that was looked at. None: not looked at; `unseen` has the reason by code."""

    interface: str
    port: int
    root: bool
    joined: bool | None = None
    systemd: bool = False
    prefixes: tuple[Network, ...] = ()
    uplinks: tuple[Uplink, ...] | None = None
    routes: tuple[HostRoute, ...] | None = None
    endpoints: frozenset[int] = frozenset()  # families of those in use by sessions, or configured
    forwarding6: bool = False
    clock_kept: bool | None = None
    time_daemon: str = ""
    skew: tuple[Verdict, str] | None = None  # as the agent judges it
    ipv6: bool = True  # the kernel has it
    ruleset: tuple[Mapping[str, Any], ...] | None = None
    legacy_tables: bool = False
    firewalls: frozenset[str] = frozenset()  # firewalld, ufw
    flushers: tuple[Flusher, ...] = ()
    nft: bool = True
    tun: str = ""  # what is wrong with /dev/net/tun
    capabilities: int | None = None
    kernel_wireguard: bool = False
    wireguard_go: bool = False
    state_dir: str = ""
    loose: tuple[str, ...] | None = None  # files in it, or itself, that others may read
    port_holder: str | None = None  # empty: free, or held by this mesh
    agent: tuple[Verdict, str] | None = None
    inotify: tuple[int, int] | None = None  # instances of root in use, and how many there may be
    unseen: Mapping[str, str] = field(default_factory=dict)


RPF, FORWARD, CLOCK, NTP, ROUTE = "HOST-RPF", "HOST-FWD", "HOST-CLOCK", "HOST-NTP", "HOST-ROUTE"
FIREWALL, FLUSH, NFT, TUN, CAPABILITY = "HOST-FIREWALL", "HOST-FLUSH", "HOST-NFT", "HOST-TUN", "HOST-CAP"
WIREGUARD, MTU, STATE, PORT = "HOST-WIREGUARD", "HOST-MTU", "HOST-STATE", "HOST-PORT"
AGENT, INOTIFY = "HOST-AGENT", "HOST-INOTIFY"

CLAIMS: Final[Mapping[str, str]] = {
    AGENT: "the agent runs and answers",
    STATE: "the state directory is for its owner alone",
    WIREGUARD: "there is a WireGuard",
    TUN: "/dev/net/tun can be opened, where WireGuard runs in userspace",
    CAPABILITY: "root may configure the network and look at packets",
    NFT: "nftables can be used",
    PORT: "WireGuard's UDP port is free, or ours",
    FIREWALL: "no rule of this host drops WireGuard's packets, nor the probes inside the mesh",
    FLUSH: "nobody flushes the guard away",
    ROUTE: "no route of this host overlaps the mesh",
    RPF: "no uplink drops what comes by another way than answers would take",
    FORWARD: "forwarding does not cost this host its IPv6 default route",
    MTU: f"the underlay carries {LEAST_MTU_BYTES} bytes",
    CLOCK: "the clock agrees with the mesh's",
    NTP: "something keeps the clock",
    INOTIFY: "there are inotify instances left: each wireguard-go holds one",
}


def judge(facts: Facts) -> tuple[HostRow, ...]:
    """All rows that have a meaning on this host now, in the order of CLAIMS."""
    found = [*_agent(facts), *_tools(facts), *_means(facts), *_firewall(facts), *_network(facts), *_clock(facts)]
    rows = {code: HostRow(code, CLAIMS[code], verdict, words, *fix) for code, verdict, words, *fix in found}
    for code, why in facts.unseen.items():
        rows.setdefault(code, HostRow(code, CLAIMS[code], UNKNOWN, why, "" if facts.root else _LOOK_AS_ROOT))
    return tuple(rows[code] for code in CLAIMS if code in rows)


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """The worst of them; what was not looked at counts when nothing is wrong."""
    return next((verdict for verdict in (FAILED, DEGRADED, UNKNOWN) if verdict in verdicts), OK)


_Found = Iterator[tuple[str, Verdict, str] | tuple[str, Verdict, str, str]]


def _agent(facts: Facts) -> _Found:
    if facts.agent is not None:
        verdict, words = facts.agent
        start = "systemctl restart meshctl" if facts.systemd else "meshctl up"
        silent = verdict is FAILED and not words.startswith("answers")
        yield AGENT, verdict, words, "" if verdict is OK else start if silent else "meshctl status"
    if facts.loose:
        more = f" and {len(facts.loose) - 1} more" if len(facts.loose) > 1 else ""
        fix = f"chmod -R u=rwX,go= {facts.state_dir}"
        yield STATE, FAILED, f"{facts.loose[0]}{more} can be read by others than its owner", fix
    elif facts.loose is not None:
        yield STATE, OK, facts.state_dir


def _tools(facts: Facts) -> _Found:
    if facts.kernel_wireguard:
        yield WIREGUARD, OK, "the kernel's"
    elif facts.wireguard_go:
        yield WIREGUARD, OK, "wireguard-go; the kernel has none"
    else:
        yield WIREGUARD, FAILED, "no kernel module and no wireguard-go", "apt-get install wireguard-go"
    if not facts.kernel_wireguard and TUN not in facts.unseen:
        fix = "modprobe tun || { mkdir -p /dev/net && mknod /dev/net/tun c 10 200; }"
        yield (TUN, FAILED, facts.tun, fix) if facts.tun else (TUN, OK, "it opens")
    if not facts.nft:
        yield NFT, FAILED, "nftables is not installed: the guard cannot be set", "apt-get install nftables"
    elif NFT not in facts.unseen:
        yield NFT, OK, "nft answers" if facts.ruleset is not None else "nft is installed"


def _means(facts: Facts) -> _Found:
    if facts.capabilities is not None:
        names = {_CAP_NET_ADMIN: "CAP_NET_ADMIN", _CAP_NET_RAW: "CAP_NET_RAW"}
        lacks = [name for bit, name in names.items() if not facts.capabilities & bit]
        give = "start the container with " + " ".join(f"--cap-add={name.removeprefix('CAP_')}" for name in lacks)
        if "CAP_NET_ADMIN" in lacks:
            yield CAPABILITY, FAILED, f"root lacks {', '.join(lacks)}: no interface can be made", give
        elif lacks:
            yield CAPABILITY, DEGRADED, "root lacks CAP_NET_RAW: experiments on the wire stay unknown", give
        else:
            yield CAPABILITY, OK, "CAP_NET_ADMIN, CAP_NET_RAW"
    if facts.port_holder:
        fix = f"ss -H -ulpn sport = :{facts.port}" if facts.joined else "meshctl join @token --listen-port PORT"
        yield PORT, FAILED, f"UDP {facts.port} is taken by {facts.port_holder}", fix
    elif facts.port_holder is not None:
        yield PORT, OK, f"UDP {facts.port}"
    if facts.inotify is not None and not facts.kernel_wireguard:
        used, most = facts.inotify
        words, fix = (
            f"{used} of {most} in use by root",
            f"sysctl -w fs.inotify.max_user_instances={max(1024, 2 * most)}",
        )
        full = FAILED if used >= most else DEGRADED
        yield (INOTIFY, full, words, fix) if used >= _NEARLY * most else (INOTIFY, OK, words)


# ---- firewalls -------------------------------------------------------------------------------------------------------


def _firewall(facts: Facts) -> _Found:
    if facts.ruleset is not None:
        yield _fates(facts, facts.ruleset)
    if facts.flushers:
        worst = facts.flushers[0]
        # The same effect for what the file itself makes, and nothing else.
        instead = "\\n".join(f"table {t}\\ndelete table {t}" for t in worst.tables) or "# nothing to flush"
        fix = f"sed -i 's/^flush ruleset.*/{instead}/' {worst.path}"
        words = f"{worst.path} is loaded at boot and begins with flush ruleset: the guard is gone until the next pass"
        yield FLUSH, DEGRADED, words, fix
    elif FLUSH not in facts.unseen:
        yield FLUSH, OK, "no file that is loaded as a whole flushes all rules"


def _fates(facts: Facts, ruleset: Sequence[Mapping[str, Any]]) -> tuple[str, Verdict, str, str]:
    used, unclear, idle = _packets(facts)
    told = _drops(ruleset, used)
    certain = [(packet, end, words) for packet, end, words in told if not end.some]
    if certain:
        # Others cannot begin; this node still can, as answers belong to a flow that it began.
        incoming = all(packet.hook == "input" and packet.dport == facts.port for packet, _, _ in certain)
        verdict = DEGRADED if incoming else FAILED
        more = f"; so are {len(certain) - 1} more" if len(certain) > 1 else ""
        commands = dict.fromkeys(command for packet, end, _ in certain for command in _allow(facts, packet, end))
        return FIREWALL, verdict, certain[0][2] + more, " && ".join(commands)
    if told:
        return FIREWALL, UNKNOWN, f"{told[0][2]}, after rules that let some pass: not judged here", "nft list ruleset"
    if doubts := _drops(ruleset, unclear):
        why = facts.unseen.get(RPF, "no uplink was looked at")
        return FIREWALL, UNKNOWN, f"{doubts[0][2]}; whether it is in use there is not known: {why}", "ip -6 address"
    if facts.legacy_tables:
        return FIREWALL, UNKNOWN, "there are rules of iptables-legacy, which nft does not show", "iptables-legacy -S"
    outside, inside = _families(used, facts.port), _families(used, limits.PROBE_PORT)
    words = f"UDP {facts.port} ({outside}) and the probes ({inside}) pass in both directions"
    unused = _drops(ruleset, idle)
    return FIREWALL, OK, f"{words}; {unused[0][2]}, where it is not in use" if unused else words, ""


def _families(packets: Sequence[Packet], port: int) -> str:
    return ", ".join(sorted({f"IPv{packet.family}" for packet in packets if packet.dport == port}))


def _drops(ruleset: Sequence[Mapping[str, Any]], packets: Sequence[Packet]) -> list[tuple[Packet, Fate, str]]:
    """Those that are dropped, with words. What may be dropped of neighbour discovery is no doubt: firewalls know it."""
    fates = [(packet, fate(ruleset, packet)) for packet in packets]
    return [
        (packet, end, f"{packet} is dropped in {end.family} {end.table} {end.chain}, {end.how}")
        for packet, end in fates
        if end.dropped and not (packet.icmp and end.some)
    ]


def _packets(facts: Facts) -> tuple[list[Packet], list[Packet], list[Packet]]:
    """Those of families in use, of those that may be, and of those that are not."""
    used, unclear, idle = list[Packet](), list[Packet](), list[Packet]()
    uplinks = facts.uplinks or (Uplink("an uplink", 0, 0),)
    carried = frozenset[int]().union(*(uplink.families for uplink in uplinks))
    for family in (4, 6):
        for uplink in uplinks:
            has = family in uplink.families or (family in facts.endpoints and family not in carried)
            place = unclear if facts.uplinks is None and not has else used if has else idle
            (place if family == 4 or facts.ipv6 else idle).extend(_outside(facts, uplink.name, family))
        within = tuple(prefix for prefix in facts.prefixes if prefix.version == family)
        place = used if family == 4 or (within and facts.ipv6) else idle
        port = limits.PROBE_PORT
        place += [Packet(hook, facts.interface, port, port, family, within) for hook in ("input", "output")]
    used.sort(key=lambda packet: (packet.device == facts.interface, packet.hook == "input"))
    return used, unclear, idle


def _outside(facts: Facts, device: str, family: int) -> Iterator[Packet]:
    within = _ROUTED6 if family == 6 else ()
    yield Packet("output", device, facts.port, 40000, family, within)
    yield Packet("input", device, 40000, facts.port, family, within)
    if family == 6:
        yield from (Packet(hook, device, family=6, icmp=kind) for hook in ("output", "input") for kind in _NEIGHBOURS)


def _allow(facts: Facts, packet: Packet, end: Fate) -> Iterator[str]:
    inside, entering = packet.device == facts.interface, packet.hook == "input"
    if end.table == "firewalld" or ("firewalld" in facts.firewalls and end.table.startswith("firewalld")):
        outside = "--add-protocol=ipv6-icmp" if packet.icmp else f"--add-port={facts.port}/udp"
        what = f"--zone=trusted --add-interface={facts.interface}" if inside else outside
        yield f"firewall-cmd --permanent {what} && firewall-cmd --reload"
        return
    if "ufw" in facts.firewalls and end.table == "filter":
        chains = (item["chain"]["name"] for item in facts.ruleset or () if "chain" in item)
        if shut := end.family == "ip6" and not any(name.startswith("ufw6-") for name in chains):
            yield _UFW_IPV6  # without IPv6 ufw drops all of it, whatever is allowed, and neighbours too
        if not packet.icmp:
            way = "in" if entering else "out"
            yield f"ufw allow {way} on {packet.device}" if inside else f"ufw allow {way} {facts.port}/udp"
        if shut or not packet.icmp:
            return
    device = f'{"iifname" if entering else "oifname"} "{packet.device}" ' if inside else ""
    what = f"udp dport {packet.dport}" if entering else f"udp sport {packet.sport}"
    if packet.icmp:
        what = f"icmpv6 type {{ {', '.join(_NEIGHBOURS)} }}"
    yield f"nft insert rule {end.family} {end.table} {end.base} {device}{what} accept"


# ---- network and clock -----------------------------------------------------------------------------------------------


def _network(facts: Facts) -> _Found:
    if facts.routes is not None and facts.prefixes:
        yield _overlap(facts, facts.routes)
    if facts.uplinks is None:
        return
    strict = [uplink for uplink in facts.uplinks if uplink.rp_filter == 1]
    names = ", ".join(uplink.name for uplink in facts.uplinks) or "none"
    if strict and sum(uplink.gateway for uplink in facts.uplinks) > 1:
        words = f"rp_filter is strict on {', '.join(u.name for u in strict)}, and there are several uplinks: {names}"
        fix = "sysctl -w " + " ".join(f"net.ipv4.conf.{uplink.name}.rp_filter=2" for uplink in strict)
        yield RPF, DEGRADED, words, fix
    else:
        yield RPF, OK, f"uplinks: {names}; strict on {', '.join(u.name for u in strict) or 'none'}"
    lost = [uplink for uplink in facts.uplinks if facts.forwarding6 and uplink.by_ra and uplink.accept_ra == 1]
    if lost:
        words = f"IPv6 forwarding is on, so {lost[0].name} ignores the router that gave it its default route"
        yield FORWARD, DEGRADED, words, f"sysctl -w net.ipv6.conf.{lost[0].name}.accept_ra=2"
    elif facts.forwarding6:
        yield FORWARD, OK, "IPv6 forwarding is on; no default route depends on router advertisements"
    if facts.uplinks:
        least = min(facts.uplinks, key=lambda uplink: uplink.mtu)
        fix = f"ip link set dev {least.name} mtu {LEAST_MTU_BYTES}"
        words = f"{least.mtu} bytes on {least.name}"
        bad = least.mtu < LEAST_MTU_BYTES
        yield (MTU, DEGRADED, f"{words}: IPv6 in the tunnel does not fit", fix) if bad else (MTU, OK, words)


def _overlap(facts: Facts, routes: Sequence[HostRoute]) -> tuple[str, Verdict, str, str]:
    """A route inside the mesh takes packets from it; a wider one gives way to the mesh's, and is only told."""
    others = [route for route in routes if route.device != facts.interface]
    pairs = [(route, mesh) for route in others for mesh in facts.prefixes if route.prefix.overlaps(mesh)]
    inside = [(route, mesh) for route, mesh in pairs if route.prefix.prefixlen >= mesh.prefixlen]
    if not inside:
        wider = ", ".join(f"{route.prefix} by {route.device}" for route, _ in pairs)
        words = f"none within {' and '.join(map(str, facts.prefixes))}"
        return ROUTE, OK, f"{words}; {wider} gives way to it" if wider else words, ""
    route, mesh = inside[0]
    more = f" (and {len(inside) - 1} more)" if len(inside) > 1 else ""
    words = f"{route.prefix} by {route.device or 'nobody'} lies inside the mesh's {mesh}{more}"
    return ROUTE, FAILED, words, f"ip {'-6 ' if route.prefix.version == 6 else ''}route del {route.words}"


def _clock(facts: Facts) -> _Found:
    start = "apt-get install chrony" if not facts.time_daemon else f"systemctl restart {facts.time_daemon}"
    if facts.skew is not None:
        verdict, words = facts.skew
        yield CLOCK, verdict, words, "" if verdict is OK else start
    if facts.clock_kept is None:
        return
    if facts.clock_kept:
        yield NTP, OK, "the kernel says that the clock is synchronised"
    elif facts.time_daemon:
        yield NTP, DEGRADED, f"{facts.time_daemon} runs, but the kernel's clock is not synchronised yet", start
    else:
        yield NTP, DEGRADED, "no time daemon runs, and the kernel's clock is not synchronised", start
