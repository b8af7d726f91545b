"""How should my interface look? (roster, me) -> Interface. Full mesh until policy says less (NET-1, NET-3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface

from meshctl.mesh import limits
from meshctl.mesh.interface import Interface, Peer, Route, network
from meshctl.mesh.keys import PresharedKey, PrivateKey
from meshctl.mesh.model import MeshInfo, Node, NodeId, Roster

FAIL_CLOSED_METRIC = 4_278_198_272  # above any route a person or DHCP client would set; below the kernel's maximum


@dataclass(frozen=True, slots=True)
class Me:
    """The local half of the picture: what only this node knows."""

    id: NodeId
    private_key: PrivateKey
    interface: str
    listen_port: int
    mtu: int
    keepalive_s: int = 0  # 0 = no NAT seen
    narrow: tuple[tuple[NodeId, int], ...] = ()  # peers that only packets of so many bytes reach (MESH-PATH-002)


def desired(
    mesh: MeshInfo, roster: Roster, me: Me, self_node: Node, psks: Mapping[NodeId, PresharedKey] | None = None
) -> Interface:
    """The interface of `me` in a mesh of `roster`.

    Raises ProtocolError when two nodes of the roster claim one address: the caller keeps the interface it has.
    """
    psks = psks or {}
    peers = {
        node.statement.wireguard: peer(node, me.keepalive_s, psks.get(node.id))
        for node in roster.nodes.values()
        if node.id != me.id
    }
    return Interface(
        name=me.interface,
        private_key=me.private_key,
        listen_port=me.listen_port,
        mtu=me.mtu,
        addresses=frozenset({IPv4Interface((self_node.address4, 32)), IPv6Interface((self_node.address6, 128))}),
        routes=frozenset(
            route
            for prefix in mesh.prefixes
            for route in (Route(prefix), Route(prefix, unreachable=True, metric=FAIL_CLOSED_METRIC))
        ).union(*(narrow(roster.nodes[key], passing, me.mtu) for key, passing in me.narrow if key in roster.nodes)),
        guarded=frozenset(mesh.prefixes),
        peers=peers,
    )


def narrow(node: Node, passing: int, mtu: int) -> tuple[Route, ...]:
    """Routes to a peer that packets over `passing` bytes do not reach, by an interface that takes `mtu`.

    Not below what either family allows: IPv6 cannot run over less than 1280 (the kernel then sends no UDP at all).
    """
    limits4_6 = max(passing, limits.MIN_MTU4_BYTES), max(passing, limits.MIN_MTU_BYTES)
    prefixes = network(f"{node.address4}/32"), network(f"{node.address6}/128")
    return tuple(Route(p, mtu=limit) for p, limit in zip(prefixes, limits4_6, strict=True) if limit < mtu)


def peer(node: Node, keepalive_s: int = 0, psk: PresharedKey | None = None) -> Peer:
    """The WireGuard peer that stands for `node`. Its endpoint is left to liveness."""
    allowed = (network(f"{node.address4}/32"), network(f"{node.address6}/128"))
    return Peer(node.statement.wireguard, allowed, None, keepalive_s, psk)
