"""Which address comes next? v4 addresses are dealt by the registry, v6 ones follow from the node's id (NET-1).

An address is not reused while its tombstone lives, so that a stale peer never reaches a stranger.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

from meshctl.errors import RefusedError, UsageError
from meshctl.mesh.model import Network, NodeId

CGNAT = IPv4Network("100.64.0.0/10")  # carriers and other meshes live here


def next4(prefix: IPv4Network, taken: Container[IPv4Address], start: int = 0) -> IPv4Address:
    """The first free host address at or after offset `start`, wrapping round. Raises RefusedError when full.

    Network and broadcast addresses are never given.
    """
    hosts = prefix.num_addresses - 2
    for offset in range(hosts):
        address = prefix.network_address + 1 + (start + offset) % hosts
        if address not in taken:
            return address
    raise RefusedError(
        f"no free address in {prefix}", "remove nodes that are gone, or make the mesh anew with a wider --prefix4"
    )


def address6(prefix: IPv6Network, node: NodeId) -> IPv6Address:
    """The node's v6 address: the low 64 bits are a hash of its id, so nobody can give it to another key."""
    return prefix.network_address + int.from_bytes(hashlib.sha256(node.encode()).digest()[:8], "big")


def prefix6(seed: bytes) -> IPv6Network:
    """A ULA /64 (RFC 4193) from 16 random bytes."""
    return IPv6Network((bytes([0xFD]) + seed[:5] + b"\0\0" + bytes(8), 64))


def check_prefix4(text: str, routes: Iterable[Network]) -> IPv4Network:
    """A mesh prefix that collides with nothing. `routes` are the prefixes this host routes. Raises UsageError."""
    try:
        prefix = ip_network(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is not an IPv4 prefix: {error}", "for example --prefix4 10.77.0.0/16") from error
    if not isinstance(prefix, IPv4Network) or not 8 <= prefix.prefixlen <= 28:
        raise UsageError(f"{prefix} cannot be a mesh prefix", "use an IPv4 prefix between /8 and /28")
    if prefix.overlaps(CGNAT):
        raise UsageError(f"{prefix} overlaps 100.64.0.0/10, the range of carriers", "use a part of 10.0.0.0/8")
    for route in routes:
        if isinstance(route, IPv4Network) and route.prefixlen > 0 and prefix.overlaps(route):
            raise UsageError(f"{prefix} overlaps {route}, which this host routes", "choose another --prefix4")
    return prefix


def choose_prefix4(routes: Iterable[Network], seed: int) -> IPv4Network:
    """A /16 of 10.0.0.0/8 that overlaps none of `routes`, starting at a place that `seed` picks."""
    known = [r for r in routes if isinstance(r, IPv4Network) and r.prefixlen > 0]
    for step in range(256):
        prefix = IPv4Network((f"10.{(seed + step) % 256}.0.0", 16))
        if not any(prefix.overlaps(r) for r in known):
            return prefix
    raise UsageError("this host routes all of 10.0.0.0/8", "choose a mesh prefix yourself: --prefix4")
