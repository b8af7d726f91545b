"""A kernel with WireGuard's manners, in memory, behind the Device port; it passes the contract suite of the real ones.

The manners that surprise: an allowed IP belongs to whoever was given it last, a peer with one's own key is ignored, so
is an update of an absent peer, port 0 picks a port, private keys are clamped, a link that goes down loses its routes,
and one that goes away leaves the unreachable routes and the guard behind. `FakeKernel` is the machine and survives the
devices opened on it; its methods are what others do to it (a person with `wg`, a peer that answers).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Interface

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from meshctl.agent.device import disjoint
from meshctl.errors import EnvironmentFault
from meshctl.mesh import plan
from meshctl.mesh.interface import AddressOnLink, Interface, Observation, Peer, Route, Session
from meshctl.mesh.keys import PrivateKey, PublicKey
from meshctl.mesh.model import Address, Endpoint, Network

FRESH_MTU = 1420
PICKED_PORT = 40_001


def clamped(private_key: PrivateKey) -> PrivateKey:
    """As WireGuard gives it back: the bits that X25519 ignores are fixed."""
    raw = bytearray(private_key.raw)
    raw[0] &= 248
    raw[31] = (raw[31] & 127) | 64
    return PrivateKey(bytes(raw))


def public(private_key: PrivateKey) -> PublicKey:
    """The public key that belongs to it."""
    return PublicKey(X25519PrivateKey.from_private_bytes(private_key.raw).public_key().public_bytes_raw())


@dataclass
class Link:
    """A WireGuard interface as it is at birth."""

    private_key: PrivateKey | None = None
    listen_port: int = 0
    mtu: int = FRESH_MTU
    up: bool = False
    addresses: set[AddressOnLink] = field(default_factory=set)
    routes: set[Route] = field(default_factory=set)
    peers: dict[PublicKey, Peer] = field(default_factory=dict)
    sessions: dict[PublicKey, Session] = field(default_factory=dict)
    owners: dict[Network, PublicKey] = field(default_factory=dict)  # who was given an allowed IP last


class FakeKernel:
    """One machine with room for one mesh interface."""

    def __init__(self, name: str = "mesh0") -> None:
        self.name = name
        self.link: Link | None = None
        self.unreachable: set[Route] = set()
        self.guarded: frozenset[Network] = frozenset()
        self.handshakes: list[tuple[PublicKey, Endpoint]] = []
        self.steps: list[plan.Step] = []
        self.mtu = 1500
        self.networks: tuple[tuple[Address, Network], ...] = ()
        self.planted: set[Address] = set()
        self.dropped = 0
        self.news = asyncio.Event()

    def flush_guard(self) -> None:
        """A person: `nft flush ruleset`."""
        self.guarded = frozenset()
        self.news.set()

    def delete_link(self) -> None:
        """A person: `ip link del`. Unreachable routes and the guard know no interface and stay."""
        self.link = None
        self.news.set()

    def down(self) -> None:
        """A person: `ip link set down`. Routes go, and so do IPv6 addresses."""
        assert self.link
        self.link.up = False
        self.link.routes.clear()
        self.link.addresses = {a for a in self.link.addresses if not isinstance(a, IPv6Interface)}
        self.news.set()

    def allow(self, key: PublicKey, ips: Iterable[Network]) -> None:
        """A person: `wg set peer allowed-ips`. Nothing is announced."""
        assert self.link
        self.put_peer(replace(self.link.peers.get(key, Peer(key, ())), allowed_ips=tuple(ips)))

    def forget(self, key: PublicKey) -> None:
        """A person: `wg set peer remove`. Nothing is announced."""
        assert self.link
        self.link.peers.pop(key, None)
        self.link.sessions.pop(key, None)

    def answer(self, key: PublicKey, at: float) -> None:
        """A peer completes a handshake at `at` (unix seconds)."""
        assert self.link
        self.link.sessions[key] = replace(self.link.sessions[key], last_handshake=at, rx_bytes=92, tx_bytes=148)

    def put_peer(self, peer: Peer) -> None:
        """Give WireGuard a peer, as it takes it."""
        link = self.link
        assert link
        if link.private_key and public(link.private_key) == peer.public_key:
            return
        for ip in peer.allowed_ips:
            robbed = link.peers.get(link.owners.get(ip, peer.public_key))
            link.owners[ip] = peer.public_key
            if robbed and robbed.public_key != peer.public_key:
                left = tuple(other for other in robbed.allowed_ips if other != ip)
                link.peers[robbed.public_key] = replace(robbed, allowed_ips=left)
        link.peers[peer.public_key] = peer
        before = link.sessions.get(peer.public_key, Session(None, 0.0, 0, 0))
        link.sessions[peer.public_key] = replace(before, endpoint=peer.endpoint or before.endpoint)


def _replace(routes: set[Route], route: Route) -> None:
    """As `ip route replace`: in place of the one with the same prefix and metric, whatever its MTU."""
    routes.difference_update([old for old in routes if old.place == route.place])
    routes.add(route)


def _drop(routes: set[Route], route: Route, step: plan.Step) -> None:
    """As `ip route del`: the one with this prefix and metric, whatever its MTU."""
    there = [old for old in routes if old.place == route.place]
    if not there:
        raise EnvironmentFault(f"could not {step}: No such process")
    routes.difference_update(there)


class FakeDevice:
    """The Device port on a FakeKernel."""

    kind = "kernel"

    def __init__(self, kernel: FakeKernel) -> None:
        self._kernel = kernel

    async def observe(self) -> Observation:
        """See Device."""
        kernel, link = self._kernel, self._kernel.link
        if link is None:
            return Observation(None)
        seen = Interface(
            kernel.name, link.private_key, link.listen_port, link.mtu, link.up, frozenset(link.addresses),
            frozenset(link.routes | kernel.unreachable), kernel.guarded, disjoint(dict(link.peers)),
        )  # fmt: skip
        return Observation(seen, dict(link.sessions))

    async def apply_all(self, steps: Sequence[plan.Step]) -> None:
        """See Device."""
        for step in steps:
            self._kernel.steps.append(step)
            self._apply(step)
        if any(
            not isinstance(step, plan.AddPeer | plan.UpdatePeer | plan.RestartPeer | plan.RemovePeer) for step in steps
        ):
            self._kernel.news.set()

    def _apply(self, step: plan.Step) -> None:
        kernel = self._kernel
        match step:
            case plan.SetGuard(prefixes=prefixes):
                kernel.guarded = prefixes
            case plan.CreateInterface(name):
                if kernel.link:
                    raise EnvironmentFault(f"could not {step}: File exists")
                kernel.link, kernel.name = Link(), name
            case plan.AddRoute(Route(unreachable=True) as route):
                _replace(kernel.unreachable, route)
            case plan.RemoveRoute(Route(unreachable=True) as route):
                _drop(kernel.unreachable, route, step)
            case _:
                if kernel.link is None:
                    raise EnvironmentFault(f"could not {step}: No such device")
                self._configure(kernel.link, step)

    def _configure(self, link: Link, step: plan.Step) -> None:
        match step:
            case plan.SetPrivateKey(key):
                link.private_key = clamped(key)
                self._kernel.forget(public(key))
                link.sessions = {k: replace(s, last_handshake=0.0) for k, s in link.sessions.items()}
            case plan.SetListenPort(port):
                link.listen_port = port or PICKED_PORT
            case plan.SetMtu(mtu):
                link.mtu = mtu
            case plan.SetUp():
                link.up = True
            case plan.AddAddress(address):
                link.addresses.add(address)
            case plan.RemoveAddress(address):
                link.addresses.remove(address)
            case plan.AddRoute(route):
                if not link.up:
                    raise EnvironmentFault(f"could not {step}: Network is down")
                _replace(link.routes, route)
            case plan.RemoveRoute(route):
                _drop(link.routes, route, step)
            case plan.RemovePeer(key):
                self._kernel.forget(key)
            case plan.UpdatePeer(peer, changed):
                if old := link.peers.get(peer.public_key):
                    self._kernel.put_peer(replace(old, **{name: getattr(peer, name) for name in changed}))
            case plan.AddPeer(peer) | plan.RestartPeer(peer):
                if isinstance(step, plan.RestartPeer):
                    self._kernel.forget(peer.public_key)
                self._kernel.put_peer(peer)
                if peer.endpoint and link.up:
                    self._kernel.handshakes.append((peer.public_key, peer.endpoint))

    async def changed(self) -> None:
        """See Device."""
        await self._kernel.news.wait()
        self._kernel.news.clear()

    async def underlay_mtu(self) -> int:
        """See Device."""
        return self._kernel.mtu

    async def local_networks(self) -> tuple[tuple[Address, Network], ...]:
        """See Device."""
        return self._kernel.networks

    async def route_leaks(self, addresses: Iterable[Address]) -> tuple[Address, ...]:
        """See Device."""
        return tuple(a for a in addresses if a in self._kernel.planted)

    async def drops(self) -> int:
        """See Device."""
        return self._kernel.dropped

    async def close(self) -> None:
        """See Device."""

    async def destroy(self) -> None:
        """See Device."""
        self._kernel.delete_link()
        self._kernel.unreachable.clear()
        self._kernel.guarded = frozenset()
