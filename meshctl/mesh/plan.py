"""What must change? `diff(observed, desired)` -> the smallest tuple of steps; each prints as a sentence (NET-3).

`meshctl plan` prints exactly the objects that reconcile applies. Guard first and add before remove, so that no moment
is open or without a tunnel. A live session's endpoint is never overwritten: the endpoint is an observation while it
lives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, replace

from meshctl.mesh.interface import AddressOnLink, Interface, Peer, Route, network_order
from meshctl.mesh.keys import PrivateKey, PublicKey
from meshctl.mesh.model import Endpoint, Network


@dataclass(frozen=True, slots=True)
class SetGuard:
    """Our nftables table: what is addressed to these prefixes leaves by the mesh interface or not at all."""

    interface: str
    prefixes: frozenset[Network]

    def __str__(self) -> str:
        prefixes = ", ".join(str(p) for p in sorted(self.prefixes, key=network_order))
        return f"guard {prefixes}: only {self.interface} may carry them"


@dataclass(frozen=True, slots=True)
class CreateInterface:
    """A new WireGuard device, down and empty."""

    name: str

    def __str__(self) -> str:
        return f"create interface {self.name}"


@dataclass(frozen=True, slots=True)
class SetPrivateKey:
    """Give the device its private key (never printed)."""

    private_key: PrivateKey

    def __str__(self) -> str:
        return "set the private key"


@dataclass(frozen=True, slots=True)
class SetListenPort:
    """UDP port of the underlay socket."""

    port: int

    def __str__(self) -> str:
        return f"listen on UDP port {self.port}"


@dataclass(frozen=True, slots=True)
class SetMtu:
    """Largest packet inside the tunnel."""

    mtu: int

    def __str__(self) -> str:
        return f"set MTU {self.mtu}"


@dataclass(frozen=True, slots=True)
class SetUp:
    """Bring the link up."""

    name: str

    def __str__(self) -> str:
        return f"bring {self.name} up"


@dataclass(frozen=True, slots=True)
class AddAddress:
    """Give the interface an address."""

    address: AddressOnLink

    def __str__(self) -> str:
        return f"add address {self.address}"


@dataclass(frozen=True, slots=True)
class RemoveAddress:
    """Take an address that is not ours to have."""

    address: AddressOnLink

    def __str__(self) -> str:
        return f"remove address {self.address}"


@dataclass(frozen=True, slots=True)
class AddRoute:
    """A mesh route, or the fail-closed route behind it."""

    route: Route

    def __str__(self) -> str:
        limit = f" for packets up to {self.route.mtu} bytes" if self.route.mtu else ""
        return f"add {'fail-closed ' if self.route.unreachable else ''}route {self.route.prefix}{limit}"


@dataclass(frozen=True, slots=True)
class RemoveRoute:
    """A route through the interface that nobody ordered."""

    route: Route

    def __str__(self) -> str:
        return f"remove route {self.route.prefix}"


@dataclass(frozen=True, slots=True)
class AddPeer:
    """A peer WireGuard does not have yet."""

    peer: Peer

    def __str__(self) -> str:
        at = f" at {self.peer.endpoint}" if self.peer.endpoint else ""
        return f"add peer {self.peer.public_key}{at}, allowed IPs {', '.join(map(str, self.peer.allowed_ips))}"


@dataclass(frozen=True, slots=True)
class UpdatePeer:
    """Change a peer in place: sessions, counters and what is not named stay. `peer` is the result, `changed` names
    fields.
    """

    peer: Peer
    changed: tuple[str, ...]

    def __str__(self) -> str:
        return f"update peer {self.peer.public_key}: {', '.join(c.replace('_', ' ') for c in self.changed)}"


@dataclass(frozen=True, slots=True)
class RestartPeer:
    """Forget a peer without a session and add it again, so that its handshake starts now and at this endpoint."""

    peer: Peer

    def __str__(self) -> str:
        return f"start handshake with {self.peer.public_key} at {self.peer.endpoint}"


@dataclass(frozen=True, slots=True)
class RemovePeer:
    """A peer that is not in the roster."""

    public_key: PublicKey

    def __str__(self) -> str:
        return f"remove peer {self.public_key}"


Step = (
    SetGuard
    | CreateInterface
    | SetPrivateKey
    | SetListenPort
    | SetMtu
    | SetUp
    | AddAddress
    | RemoveAddress
    | AddRoute
    | RemoveRoute
    | AddPeer
    | UpdatePeer
    | RestartPeer
    | RemovePeer
)


def diff(
    observed: Interface | None,
    desired: Interface,
    *,
    alive: Set[PublicKey] = frozenset(),
    due: Mapping[PublicKey, Endpoint] | None = None,
) -> tuple[Step, ...]:
    """Steps from `observed` to `desired`; empty when nothing must change.

    `alive` are peers with a live session: their endpoint is left alone. `due` are peers whose next handshake attempt
    (mesh/liveness.py) is due now, with the endpoint to try.
    """
    absent = Interface(desired.name, None, 0, 0, up=False, guarded=observed.guarded if observed else frozenset())
    have = observed or absent
    steps: list[Step] = []
    if have.guarded != desired.guarded:
        steps.append(SetGuard(desired.name, desired.guarded))
    if observed is None:
        steps.append(CreateInterface(desired.name))
    steps += _link(have, desired)
    due = due or {}
    added = desired.peers.keys() - have.peers.keys()
    for key in sorted(added):
        steps.append(AddPeer(replace(desired.peers[key], endpoint=due.get(key, desired.peers[key].endpoint))))
    for key, want in desired.peers.items():
        if key not in added:
            steps += _peer(have.peers[key], want, key in alive, due.get(key))
    steps += [RemovePeer(key) for key in sorted(have.peers.keys() - desired.peers.keys())]
    return tuple(steps)


def foreign(
    steps: tuple[Step, ...],
    fitted: Interface | None,
    desired: Interface,
    *,
    alive: Set[PublicKey] = frozenset(),
    due: Mapping[PublicKey, Endpoint] | None = None,
) -> tuple[Step, ...]:
    """Those of `steps` that undo what somebody else did since the interface was as it should be (`fitted`): without
    that hand, what is wanted now would not need them. To start a handshake undoes nothing.
    """
    if fitted is None:
        return ()
    own = set(diff(fitted, desired, alive=alive, due=due))
    return tuple(step for step in steps if not isinstance(step, RestartPeer) and step not in own)


def _link(have: Interface, want: Interface) -> Iterator[Step]:
    if want.private_key is not None and have.private_key != want.private_key:
        yield SetPrivateKey(want.private_key)
    if have.listen_port != want.listen_port:
        yield SetListenPort(want.listen_port)
    if have.mtu != want.mtu:
        yield SetMtu(want.mtu)
    yield from (AddAddress(a) for a in sorted(want.addresses - have.addresses, key=str))
    if want.up and not have.up:
        yield SetUp(want.name)
    # A link must be up to carry routes; taking it down loses them, so they are compared as if gone.
    routes = have.routes if have.up else frozenset(r for r in have.routes if r.unreachable)
    added = want.routes - routes
    replaced = {r.place for r in added}
    yield from (AddRoute(r) for r in sorted(added, key=str))
    yield from (RemoveRoute(r) for r in sorted(routes - want.routes, key=str) if r.place not in replaced)
    yield from (RemoveAddress(a) for a in sorted(have.addresses - want.addresses, key=str))


def _peer(have: Peer, want: Peer, alive: bool, attempt: Endpoint | None) -> Iterator[Step]:
    if attempt is not None and not alive:
        yield RestartPeer(replace(want, endpoint=attempt))
        return
    changed = []
    if have.allowed_ips is not want.allowed_ips and have.allowed_ips != want.allowed_ips:
        changed.append("allowed_ips")
    if have.keepalive_s != want.keepalive_s:
        changed.append("keepalive_s")
    if have.preshared_key != want.preshared_key:
        changed.append("preshared_key")
    if not alive and want.endpoint is not None and have.endpoint != want.endpoint:
        changed.append("endpoint")
    if changed:
        yield UpdatePeer(want, tuple(changed))
