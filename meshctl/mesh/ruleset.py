"""What a host's nftables rules do to one packet, as far as that can be said without guessing (NET-7).

`fate` walks the rules as `nft -j list ruleset` prints them, for one base hook and the packet's family: tables of the
other family, and rules that only the other can match, never see it. A match that depends on what is not known here (a
source address, a rate, an xt module) is a maybe: a drop behind it concerns some packets, so it is passed over; an
accept behind it is remembered. Must not run nft, and judges nothing but that one packet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any, Final

from meshctl.mesh.model import Network

Item = Mapping[str, Any]
_TABLES: Final = {4: ("ip", "inet"), 6: ("ip6", "inet")}
_ENDS: Final = ("accept", "drop", "reject", "return", "queue")
_SILENT: Final = ("counter", "log", "meta", "mangle", "notrack", "ct", "secmark", "comment")
_NUMBERS: Final = {"udp": 17, "ipv6-icmp": 58}
_BELOW_IP: Final = ("ether", "vlan")  # not every device has such a header
_OTHERS: Final = ("tcp option", "sctp chunk", "dccp option")
_NOT_LOCAL: Final = "ufw-not-local"  # by an xt module it returns from there what is for this host, as ours is
_DEPTH: Final = 16  # nft itself refuses deeper jumps


@dataclass(frozen=True, slots=True)
class Packet:
    """A first UDP packet of a flow, or a message of ICMPv6 where `icmp` names its type as nft does.

    `device`: where it comes in (hook input) or leaves (hook output). `within`: both its addresses are in one of these
    networks; empty when nothing is known of them.
    """

    hook: str
    device: str
    sport: int = 0
    dport: int = 0
    family: int = 4
    within: tuple[Network, ...] = ()
    icmp: str = ""

    def __str__(self) -> str:
        way = "in by" if self.hook == "input" else "out by"
        return f"IPv{self.family} {self.icmp or f'UDP to port {self.dport}'} {way} {self.device}"

    @property
    def protocol(self) -> str:
        """As nft spells it."""
        return "ipv6-icmp" if self.icmp else "udp"


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of it. `family`, `table`, `chain`: where it was dropped; `some`: others may pass there before."""

    dropped: bool = False
    family: str = ""
    table: str = ""
    chain: str = ""
    base: str = ""
    how: str = ""
    some: bool = False


@dataclass
class _Walk:
    packet: Packet
    chains: dict[str, list[Item]]
    sets: Mapping[str, Any]
    some: bool = False
    at: str = ""  # the chain whose rule decided
    how: str = ""
    seen: list[str] = field(default_factory=list)


def fate(items: Iterable[Item], packet: Packet) -> Fate:
    """The first base chain of `packet.hook` that drops it, or that nothing does."""
    items = tuple(items)
    base = [c for c in (item["chain"] for item in items if "chain" in item) if c.get("hook") == packet.hook]
    for chain in sorted(base, key=lambda chain: chain.get("prio", 0)):
        if chain["family"] not in _TABLES[packet.family] or chain.get("type") != "filter":
            continue
        home = chain["family"], chain["table"]
        walk = _Walk(packet, _rules(items, home), _sets(items, home))
        end = _chain(walk, chain["name"], 0)
        if end in {"return", ""}:
            end, walk.at, walk.how = chain.get("policy", "accept"), chain["name"], "by its policy"
        if end in {"drop", "reject"}:
            return Fate(True, *home, walk.at, chain["name"], walk.how, walk.some)
    return Fate()


def _rules(items: Sequence[Item], home: tuple[str, str]) -> dict[str, list[Item]]:
    found: dict[str, list[Item]] = {}
    for rule in (item["rule"] for item in items if "rule" in item):
        if (rule["family"], rule["table"]) == home:
            found.setdefault(rule["chain"], []).append(rule)
    return found


def _sets(items: Sequence[Item], home: tuple[str, str]) -> dict[str, Any]:
    found = (item.get("set") or item.get("map") for item in items if "set" in item or "map" in item)
    return {one["name"]: one.get("elem", []) for one in found if one and (one["family"], one["table"]) == home}


def _chain(walk: _Walk, name: str, depth: int) -> str:
    """The verdict for certain; empty when the chain ends without one."""
    if depth > _DEPTH:
        return ""
    for rule in walk.chains.get(name, ()):
        end = _rule(walk, rule, name, depth)
        if end == "return":
            return ""
        if end:
            return end
    return ""


def _rule(walk: _Walk, rule: Item, name: str, depth: int) -> str:
    maybe = False
    for expression in rule.get("expr", ()):
        kind, body = next(iter(expression.items()))
        if kind == "match":
            matched = _match(walk, body)
            if matched is False:
                return ""
            maybe = maybe or matched is None
        elif kind in _ENDS or kind in {"jump", "goto"}:
            return _verdict(walk, kind, body, name, depth, maybe=maybe) if _concerns(walk.packet, kind, body) else ""
        elif kind == "vmap":
            return _vmap(walk, body, name, depth, maybe=maybe)
        elif kind == "mangle" and _value(walk.packet, body["key"]) == "":
            return ""
        elif kind not in _SILENT:  # limit, quota, xt, fib as a statement: not for us to say
            maybe = True
    return ""


def _concerns(packet: Packet, kind: str, body: Any) -> bool:
    """A reject of one family or of TCP is for that alone: nft keeps, and does not list, the match that it implies."""
    answer = (body or {}).get("type", "icmpx") if kind == "reject" else "icmpx"
    return answer in {"icmpx", "icmp" if packet.family == 4 else "icmpv6"}


def _verdict(walk: _Walk, kind: str, body: Any, name: str, depth: int, *, maybe: bool) -> str:
    if kind in _ENDS:
        return _end(walk, kind, name, maybe=maybe)
    return _jump(walk, kind, body["target"], depth, maybe=maybe) if body else ""


def _end(walk: _Walk, kind: str, name: str, *, maybe: bool) -> str:
    kind = "accept" if kind == "queue" else kind  # a program decides: no drop that we can see
    if maybe:
        walk.some = walk.some or kind in {"accept", "return"}
        return ""
    walk.at, walk.how = name, "by a rule"
    return kind


def _jump(walk: _Walk, kind: str, target: str, depth: int, *, maybe: bool) -> str:
    if target == _NOT_LOCAL:
        return ""
    end = _chain(walk, target, depth + 1)
    if maybe:
        walk.some = walk.some or end == "accept" or (kind == "goto" and not end)
        return ""
    return end or ("return" if kind == "goto" else "")


def _vmap(walk: _Walk, body: Item, name: str, depth: int, *, maybe: bool) -> str:
    """What the element does that matches for certain; those that may match are remembered."""
    for key, verdict in (pair for pair in _elements(walk, body["data"]) if isinstance(pair, list) and len(pair) == 2):
        matched = _match(walk, {"op": "==", "left": body["key"], "right": key})
        if matched is False:
            continue
        kind, inner = next(iter(verdict.items()))
        end = _verdict(walk, kind, inner, name, depth, maybe=maybe or matched is None)
        if matched:
            return end
    return ""


def _elements(walk: _Walk, data: Any) -> list[Any]:
    if isinstance(data, str):
        return list(walk.sets.get(data.removeprefix("@"), ()))
    return list(data.get("set", ())) if isinstance(data, Mapping) else []


def _match(walk: _Walk, body: Item) -> bool | None:
    """None: it depends on what is not known here."""
    value = _value(walk.packet, body["left"])
    if value is None:
        return None
    if value == "":  # a field of another protocol: such a rule never sees this packet
        return False
    inside = _holds(walk, value, body["right"])
    if inside is None:
        return None
    return not inside if body["op"] == "!=" else inside if body["op"] in {"==", "in"} else None


def _value(packet: Packet, left: Any) -> Any:
    """What the packet has there: None when that is not known, empty when it has no such thing."""
    match left:
        case {"payload": {"protocol": str(protocol), "field": str(name)}}:
            return _field(packet, protocol, name)
        case {"meta": {"key": str(key)}}:
            return _meta(packet, key)
        case {"ct": {"key": "state"}}:
            return "untracked" if packet.icmp else "new"  # the kernel tracks no neighbour discovery
        case {"ct": {"key": "l3proto"}}:
            return f"ipv{packet.family}"
        case {"fib": {"result": "type", "flags": ["daddr", *_]}} if packet.hook == "input" and not packet.icmp:
            return "local"
        case {"exthdr": header}:  # ours have none
            return "" if packet.family == 4 or "field" in header else False
        case {"concat": parts}:
            values = [_value(packet, part) for part in parts]
            return "" if "" in values else values
    return "" if isinstance(left, Mapping) and any(key in left for key in _OTHERS) else None


def _meta(packet: Packet, key: str) -> str | None:
    match key:
        case "l4proto":
            return packet.protocol
        case "protocol":
            return "ip" if packet.family == 4 else "ip6"
        case "nfproto":
            return f"ipv{packet.family}"
        case "iifname" | "iif":
            return packet.device if packet.hook == "input" else None
        case "oifname" | "oif":
            return packet.device if packet.hook == "output" else None
    return None


def _field(packet: Packet, protocol: str, name: str) -> str | int | tuple[Network, ...] | None:
    """A field of another protocol is empty, even to `!=`: such a rule never sees this packet."""
    known: dict[str, str | int]
    if protocol == ("ip" if packet.family == 4 else "ip6"):
        if name in {"saddr", "daddr"}:
            return packet.within or None
        known = {"protocol": packet.protocol, "nexthdr": packet.protocol, "version": packet.family}
        return known.get(name)
    if packet.icmp and protocol in {"icmpv6", "th"}:
        return packet.icmp if (protocol, name) == ("icmpv6", "type") else None
    if protocol in {"udp", "th"} and not packet.icmp:
        known = {"dport": packet.dport, "sport": packet.sport}
        return known.get(name)
    return None if protocol in _BELOW_IP else ""


def _holds(walk: _Walk, value: Any, right: Any) -> bool | None:
    match right:
        case str() if right.startswith("@"):
            right = {"set": walk.sets.get(right[1:], ())}
        case str() if right.endswith("*"):
            return str(value).startswith(right[:-1])
        case list():
            right = {"set": right}
    match right:
        case {"set": elements}:
            return _any([_holds(walk, value, element) for element in elements])
        case {"elem": {"val": inner}}:
            return _holds(walk, value, inner)
        case {"concat": parts} if isinstance(value, list) and len(value) == len(parts):
            pairs = zip(value, parts, strict=True)
            return _all([None if one is None else _holds(walk, one, part) for one, part in pairs])
    if isinstance(value, tuple):
        return _lies(value, right)
    match right:
        case {"range": [low, high]}:
            return low <= value <= high if isinstance(low, int) and isinstance(value, int) else None
        case {}:
            return None
    return bool(right == value or str(right) == str(value) or right == _NUMBERS.get(str(value)))


def _any(answers: Sequence[bool | None]) -> bool | None:
    return True if True in answers else None if None in answers else False


def _all(answers: Sequence[bool | None]) -> bool | None:
    return False if False in answers else None if None in answers else True


def _lies(within: tuple[Network, ...], right: Any) -> bool | None:
    """Whether an address of these networks is, or is in, what a rule names."""
    try:
        match right:
            case str():
                low = high = int(ip_address(right))
            case {"prefix": {"addr": address, "len": length}}:
                network = ip_network(f"{address}/{length}", strict=False)
                low, high = int(network[0]), int(network[-1])
            case {"range": [first, last]}:
                low, high = int(ip_address(first)), int(ip_address(last))
            case _:
                return None
    except ValueError:
        return None
    ends = [(int(network[0]), int(network[-1])) for network in within]
    if all(low <= first and last <= high for first, last in ends):
        return True
    return False if all(high < first or last < low for first, last in ends) else None
