"""The WireGuard interface as a value: the same type for what should be and for what is (NET-3).

Peers' allowed IPs are disjoint by construction, because with overlapping ones a diff never settles (WireGuard moves an
allowed IP to whoever was given it last). What lives and moves by itself (handshakes, counters, roamed endpoints) is in
Session, apart, and is never compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Interface, IPv6Interface, ip_network

from meshctl.errors import ProtocolError
from meshctl.mesh.keys import PresharedKey, PrivateKey, PublicKey
from meshctl.mesh.model import Endpoint, Network

AddressOnLink = IPv4Interface | IPv6Interface


@lru_cache(maxsize=65536)
def network(text: str) -> Network:
    """`ip_network`, remembered: one interface of 1,000 peers names the same 2,000 networks every second."""
    return ip_network(text)


def network_order(item: Network) -> tuple[int, int, int]:
    """Sort key over both families."""
    return item.version, int(item.network_address), item.prefixlen


@dataclass(frozen=True, slots=True)
class Peer:
    """One WireGuard peer. `endpoint=None` in a desired peer means: the kernel's business."""

    public_key: PublicKey
    allowed_ips: tuple[Network, ...]
    endpoint: Endpoint | None = None
    keepalive_s: int = 0
    preshared_key: PresharedKey | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """A route of the main table. `unreachable` ones are the fail-closed route: they hold when the interface is gone.

    `mtu`: bytes of the largest packet, locked; 0 = the interface's. It is no part of what tells two routes apart.
    """

    prefix: Network
    unreachable: bool = False
    metric: int = 0
    mtu: int = 0

    @property
    def place(self) -> tuple[Network, bool, int]:
        """Of two routes with one place the kernel keeps the one that was added last."""
        return self.prefix, self.unreachable, self.metric


@dataclass(frozen=True, slots=True)
class Interface:
    """A WireGuard interface, its addresses and routes, and the prefixes our nftables table guards."""

    name: str
    private_key: PrivateKey | None
    listen_port: int
    mtu: int
    up: bool = True
    addresses: frozenset[AddressOnLink] = frozenset()
    routes: frozenset[Route] = frozenset()
    guarded: frozenset[Network] = frozenset()
    peers: Mapping[PublicKey, Peer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        clash = overlap(self.peers.values())
        if clash:
            raise ProtocolError(
                f"two peers claim {clash}", "the registry holds overlapping addresses: report this mesh"
            )


def overlap(peers: Iterable[Peer]) -> Network | None:
    """The first allowed IP that two peers claim, or None. Sorting puts any container right before its contents."""
    claims = sorted((*network_order(ip), peer.public_key.raw) for peer in peers for ip in peer.allowed_ips)
    version, end, owner = 0, -1, b""
    for ip_version, start, length, claimant in claims:
        last = start + (1 << ((32 if ip_version == 4 else 128) - length)) - 1
        if ip_version == version and start <= end and claimant != owner:
            return next(ip for p in peers for ip in p.allowed_ips if network_order(ip) == (ip_version, start, length))
        if ip_version != version or last > end:
            version, end, owner = ip_version, last, claimant
    return None


@dataclass(frozen=True, slots=True)
class Session:
    """What WireGuard reports of one peer right now: observation, never compared with a desire."""

    endpoint: Endpoint | None
    last_handshake: float  # unix seconds, 0.0 = never
    rx_bytes: int
    tx_bytes: int


@dataclass(frozen=True, slots=True)
class Observation:
    """What a device adapter saw in one look. `interface` is None when it does not exist."""

    interface: Interface | None
    sessions: Mapping[PublicKey, Session] = field(default_factory=dict)


@lru_cache(maxsize=65536)
def digest_line(public_key: PublicKey, allowed_ips: tuple[Network, ...]) -> int:
    """SHA-256 of one peer's line as an integer: the summand of `digest`."""
    ips = ",".join(str(ip) for ip in sorted(allowed_ips, key=network_order))
    return int.from_bytes(hashlib.sha256(f"{public_key} {ips}".encode()).digest(), "big")


def digest(peers: Iterable[Peer]) -> bytes:
    """Sum modulo 2**256 over the peers: who holds it can add and take away one peer without the others (NET-2)."""
    return (sum(digest_line(p.public_key, p.allowed_ips) for p in peers) % (1 << 256)).to_bytes(32, "big")
