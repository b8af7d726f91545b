"""What a host's nftables rules do to one packet, as far as that can be said without guessing (NET-7).

`fate` walks the rules as `nft -j list ruleset` prints them, for one base hook. A match that depends on what is not
known here (a source address, a rate, an xt module) is a maybe: a drop behind it concerns some packets, so it is passed
over; an accept behind it is remembered. Must not run nft, and judges nothing but that one packet of IPv4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

Item = Mapping[str, Any]
_FAMILIES: Final = ("ip", "inet")
_ENDS: Final = ("accept", "drop", "reject", "return", "queue")
_SILENT: Final = ("counter", "log", "meta", "mangle", "notrack", "ct", "secmark", "comment")
_DEPTH: Final = 16  # nft itself refuses deeper jumps


@dataclass(frozen=True, slots=True)
class Packet:
    """A first UDP packet of a flow. `device`: where it comes in (hook input) or leaves (hook output)."""

    hook: str
    device: str
    sport: int
    dport: int

    def __str__(self) -> str:
        way = "in by" if self.hook == "input" else "out by"
        return f"UDP to port {self.dport} {way} {self.device}"


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
        if chain["family"] not in _FAMILIES or chain.get("type") != "filter":
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
        elif kind in _ENDS:
            return _end(walk, kind, name, maybe=maybe)
        elif kind in {"jump", "goto"}:
            return _jump(walk, kind, body["target"], depth, maybe=maybe)
        elif kind == "vmap":
            kind, target = _vmap(walk, body)
            if kind in _ENDS:
                return _end(walk, kind, name, maybe=maybe)
            return _jump(walk, kind, target, depth, maybe=maybe) if target else ""
        elif kind not in _SILENT:  # limit, quota, xt, fib as a statement: not for us to say
            maybe = True
    return ""


def _end(walk: _Walk, kind: str, name: str, *, maybe: bool) -> str:
    kind = "accept" if kind == "queue" else kind  # a program decides: no drop that we can see
    if maybe:
        walk.some = walk.some or kind == "accept"
        return ""
    walk.at, walk.how = name, "by a rule"
    return kind


def _jump(walk: _Walk, kind: str, target: str, depth: int, *, maybe: bool) -> str:
    end = _chain(walk, target, depth + 1)
    if maybe:
        walk.some = walk.some or end == "accept"
        return ""
    return end or ("return" if kind == "goto" else "")


def _vmap(walk: _Walk, body: Item) -> tuple[str, str]:
    """(verdict, target) of the element that matches for certain."""
    data = body["data"]
    elements = _elements(walk, data)
    for key, verdict in (pair for pair in elements if isinstance(pair, list) and len(pair) == 2):
        if _match(walk, {"op": "==", "left": body["key"], "right": key}):
            kind, inner = next(iter(verdict.items()))
            return kind, inner["target"] if inner else ""
    return "", ""


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


def _value(packet: Packet, left: Any) -> str | int | None:
    match left:
        case {"payload": {"protocol": "udp" | "th", "field": "dport"}}:
            return packet.dport
        case {"payload": {"protocol": "udp" | "th", "field": "sport"}}:
            return packet.sport
        case {"payload": {"protocol": "ip", "field": "protocol"}} | {"meta": {"key": "l4proto"}}:
            return "udp"
        case {"payload": {"protocol": "udp" | "th" | "ip"}}:
            return None
        case {"payload": {"protocol": str()}}:
            return ""
        case {"meta": {"key": "protocol"}}:
            return "ip"
        case {"meta": {"key": "nfproto"}}:
            return "ipv4"
        case {"meta": {"key": "iifname" | "iif"}}:
            return packet.device if packet.hook == "input" else None
        case {"meta": {"key": "oifname" | "oif"}}:
            return packet.device if packet.hook == "output" else None
        case {"ct": {"key": "state"}}:
            return "new"
    return None


def _holds(walk: _Walk, value: str | int, right: Any) -> bool | None:
    match right:
        case str() if right.startswith("@"):
            right = {"set": walk.sets.get(right[1:], ())}
        case str() if right.endswith("*"):
            return str(value).startswith(right[:-1])
        case list():
            right = {"set": right}
    match right:
        case {"set": elements}:
            answers = [_holds(walk, value, element) for element in elements]
            return True if True in answers else None if None in answers else False
        case {"range": [low, high]}:
            return low <= value <= high if isinstance(low, int) and isinstance(value, int) else None
        case {"elem": {"val": inner}}:
            return _holds(walk, value, inner)
        case {"prefix": _} | {"concat": _}:
            return None
    return bool(right == value or str(right) == str(value) or (value == "udp" and right == 17))
