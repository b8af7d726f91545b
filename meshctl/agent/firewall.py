"""The guard: an nftables table of our own that lets mesh addresses leave and arrive by the mesh interface alone.

It matches the interface by name, so it holds while the interface does not exist, and it stays when the agent stops. It
sits at postrouting, which locally made and forwarded packets both pass, after any mark has re-routed them (an output
chain still sees the device of before). It must not enforce policy, and touches no table but its own. Meets NET-4 (fail
closed) and the law that mesh addresses never leave in clear.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable
from typing import Any, Final

from meshctl.errors import EnvironmentFault
from meshctl.mesh.interface import network, network_order
from meshctl.mesh.model import Network

# chain -> (hook, priority, direction of the interface, field). Before conntrack inwards, after NAT outwards.
_CHAINS: Final = {
    "leaving": ("postrouting", 300, "oifname", "daddr"),
    "arriving": ("prerouting", -300, "iifname", "saddr"),
}
_FAMILIES: Final = {4: ("ip", "ipv4_addr", "guarded4"), 6: ("ip6", "ipv6_addr", "guarded6")}


def table(interface: str) -> str:
    """Name of our table; two interfaces never share one (`wg-a` and `wg.a` differ)."""
    return "meshctl_" + re.sub(r"[^A-Za-z0-9]", lambda found: f"_{ord(found[0]):02x}", interface)


def guard_script(interface: str, prefixes: Iterable[Network]) -> str:
    """The whole table for `nft -f`, in place of any older one in one transaction. An early unit may load it at boot."""
    name = table(interface)
    lines = [f"add table inet {name}", f"delete table inet {name}", f"table inet {name} {{"]
    ordered = sorted(prefixes, key=network_order)
    for version, (_, kind, members) in _FAMILIES.items():
        elements = ", ".join(str(p) for p in ordered if p.version == version)
        lines.append(
            f"  set {members} {{ type {kind}; flags interval;{f' elements = {{ {elements} }};' if elements else ''} }}"
        )
    for chain, (hook, priority, direction, end) in _CHAINS.items():
        lines.append(f"  counter {chain} {{ }}")
        lines.append(f"  chain {chain} {{ type filter hook {hook} priority {priority}; policy accept;")
        for protocol, _, members in _FAMILIES.values():
            lines.append(
                f'    {direction} != {{ "lo", "{interface}" }} {protocol} {end} @{members} counter name {chain} drop'
            )
        lines.append("  }")
    return "\n".join([*lines, "}", ""])


class Firewall:
    """Sets and reads the guard of one interface."""

    def __init__(self, interface: str) -> None:
        self._interface, self._table = interface, table(interface)

    async def guard(self, prefixes: Iterable[Network]) -> None:
        """Replace the guard in one transaction. Raises EnvironmentFault."""
        await _nft("-f", "-", script=guard_script(self._interface, prefixes))

    async def guarded(self) -> frozenset[Network]:
        """Prefixes the live table really guards: none when a rule, hook or set is not exactly as we would load it."""
        items = await self._list()
        chains: dict[str, list[list[dict[str, Any]]]] = {}
        hooks, prefixes = {}, set()
        for item in items:
            match item:
                case {"chain": {"name": name, "type": "filter", "hook": hook, "prio": priority, "policy": "accept"}}:
                    hooks[name] = hook, priority
                case {"rule": {"chain": name, "expr": [*expressions]}}:
                    chains.setdefault(name, []).append([_in_order(e) for e in expressions])
                case {"set": {"name": name, "type": kind}} if (name, kind) in _SETS:
                    prefixes |= {_prefix(element) for element in item["set"].get("elem", ())}
        intact = hooks == {n: (h, p) for n, (h, p, *_) in _CHAINS.items()} and chains == self._expected()
        return frozenset(p for p in prefixes if p) if intact and None not in prefixes else frozenset()

    def _expected(self) -> dict[str, list[list[dict[str, Any]]]]:
        names = sorted(("lo", self._interface))
        return {
            chain: [
                [
                    {"match": {"op": "!=", "left": {"meta": {"key": direction}}, "right": {"set": names}}},
                    {
                        "match": {
                            "op": "==",
                            "left": {"payload": {"protocol": ip, "field": end}},
                            "right": f"@{members}",
                        }
                    },
                    {"counter": chain},
                    {"drop": None},
                ]
                for ip, _, members in _FAMILIES.values()
            ]
            for chain, (_, _, direction, end) in _CHAINS.items()
        }

    async def drops(self) -> int:
        """Packets dropped since the guard was last set; 0 when there is none."""
        return sum(item["counter"]["packets"] for item in await self._list() if "counter" in item)

    async def remove(self) -> None:
        """Take the table away; nothing happens when it is not there."""
        await _nft("-f", "-", script=f"add table inet {self._table}\ndelete table inet {self._table}\n")

    async def _list(self) -> list[dict[str, Any]]:
        out = await _nft("-j", "list", "table", "inet", self._table, missing_ok=True)
        return list(json.loads(out)["nftables"]) if out else []


_SETS: Final = {(members, kind) for _, kind, members in _FAMILIES.values()}


def _in_order(expression: dict[str, Any]) -> dict[str, Any]:
    match expression:
        case {"match": {"op": op, "left": left, "right": {"set": [*names]}}}:
            return {"match": {"op": op, "left": left, "right": {"set": sorted(map(str, names))}}}
    return expression


def _prefix(element: object) -> Network | None:
    match element:
        case str(address):
            return network(address)
        case {"prefix": {"addr": address, "len": length}}:
            return network(f"{address}/{length}")
    return None


async def _nft(*arguments: str, script: str = "", missing_ok: bool = False) -> bytes:
    try:
        process = await asyncio.create_subprocess_exec(
            "nft", *arguments,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise EnvironmentFault("nftables is not installed", "apt-get install nftables") from error
    out, complaint = await process.communicate(script.encode())
    if process.returncode and not (missing_ok and b"No such file or directory" in complaint):
        reason = complaint.decode(errors="replace").strip().partition("\n")[0]
        raise EnvironmentFault(
            f"nftables refused: {reason}", "meshctl needs root (CAP_NET_ADMIN) and a kernel with nf_tables"
        )
    return out if process.returncode == 0 else b""
