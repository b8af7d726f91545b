"""The port to WireGuard on this host: one look, one list of steps, one announcement of change (NET-1, NET-3, NET-4).

`Device` is what the agent knows; kernel and userspace WireGuard differ only in `WireGuard`, the small part that speaks
of keys and peers. Links, addresses and routes are in `routes`, the nftables guard in `firewall`, for both alike. Must
not decide or repair: it reports what is, and does what a step says. Closing a device leaves the data plane up.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Final, Generic, Literal, Protocol, TypeVar

from meshctl.agent.firewall import Firewall
from meshctl.agent.routes import Announcements, Host, Link
from meshctl.errors import EnvironmentFault, MeshError, UsageError
from meshctl.mesh import limits, plan
from meshctl.mesh.interface import Interface, Observation, Peer, Session, network_order, overlap
from meshctl.mesh.keys import PrivateKey, PublicKey
from meshctl.mesh.model import Address, Network

PEERS_PER_BATCH: Final = (
    250  # 250 peers with a key, two allowed IPs and an endpoint are 45 kB; a netlink list ends at 64 kB
)
_TUN: Final = Path("/dev/net/tun")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")  # IFNAMSIZ is 16 with its zero

PeerStep = plan.AddPeer | plan.UpdatePeer | plan.RestartPeer | plan.RemovePeer
WireStep = PeerStep | plan.SetPrivateKey | plan.SetListenPort
Still = TypeVar("Still", bound=Hashable)
Moving = TypeVar("Moving")


class Device(Protocol):
    """WireGuard, addresses, routes and guard of one mesh interface. Every method may raise EnvironmentFault."""

    kind: str  # "kernel" or "userspace"

    async def observe(self) -> Observation:
        """What is there now. Equal looks give the identical Interface, so `is` tells that nothing has changed."""

    async def apply_all(self, steps: Sequence[plan.Step]) -> None:
        """Do the steps in order. The first that fails is named in the error's `what`; what was done stays done."""

    async def changed(self) -> None:
        """Wait until the kernel announces a change of links, addresses, routes or nftables, ours included."""

    async def underlay_mtu(self) -> int:
        """Bytes: of the device with the default route, else the least of the devices that could carry the underlay."""

    async def local_networks(self) -> tuple[tuple[Address, Network], ...]:
        """Addresses of the underlay devices that are up, with their networks; no loopback, no link-local, no mesh."""

    async def route_leaks(self, addresses: Iterable[Address]) -> tuple[Address, ...]:
        """Those of `addresses` the kernel would send by another device (MESH-ROUTE-001). Unreachable is no leak."""

    async def drops(self) -> int:
        """Packets the guard has dropped since it was last set."""

    async def close(self) -> None:
        """Let go of sockets. The interface, its sessions and the guard stay."""

    async def destroy(self) -> None:
        """Remove interface, sessions, routes and guard: this machine leaves the mesh. Then close."""


@dataclass(frozen=True, slots=True)
class Wire:
    """What WireGuard itself reports. `peers` is the identical object as long as nothing in it changes."""

    private_key: PrivateKey | None
    listen_port: int
    peers: Mapping[PublicKey, Peer]
    sessions: Mapping[PublicKey, Session]


class WireGuard(Protocol):
    """The part in which kernel and userspace differ. Faults are EnvironmentFault."""

    kind: str

    async def create(self) -> None:
        """A new interface, down and empty."""

    async def read(self) -> Wire | None:
        """Keys, peers and sessions; None when no WireGuard answers under this name."""

    async def configure(self, steps: Sequence[WireStep]) -> None:
        """All peer steps in one transaction, or one step of another kind."""

    async def raised(self) -> None:
        """Wait until WireGuard has noticed that its link is up."""

    async def close(self) -> None:
        """Let go of sockets."""


class PeerMemory(Generic[Still, Moving]):
    """Peers and sessions by the very text WireGuard described them with: what is unchanged is not parsed again."""

    def __init__(self, peer: Callable[[Still], Peer], session: Callable[[Peer, Moving], Session]) -> None:
        self._peer, self._session = peer, session
        self._known: dict[Still, Peer] = {}
        self._moving: dict[Still, Moving] = {}
        self._peers: Mapping[PublicKey, Peer] = {}
        self._sessions: dict[PublicKey, Session] = {}

    def recall(self, rows: dict[Still, Moving]) -> tuple[Mapping[PublicKey, Peer], Mapping[PublicKey, Session]]:
        """`rows`: what stands still of a peer -> what moves. The mapping of peers is the same one if none changed."""
        before = self._moving
        if rows.keys() != before.keys():
            self._known = {still: self._known.get(still) or self._peer(still) for still in rows}
            self._peers = {peer.public_key: peer for peer in self._known.values()}
            self._sessions, before = {}, {}
        moved = {still: moving for still, moving in rows.items() if before.get(still) != moving}
        fresh = {
            (peer := self._known[still]).public_key: self._session(peer, moving) for still, moving in moved.items()
        }
        self._moving, self._sessions = rows, self._sessions | fresh
        return self._peers, self._sessions


class HostDevice:
    """The port on a real host, for either WireGuard."""

    def __init__(self, name: str, wireguard: WireGuard, host: Host, announcements: Announcements) -> None:
        self.kind = wireguard.kind
        self.name, self.wireguard = name, wireguard
        self._host, self._announcements = host, announcements
        self._firewall = Firewall(name)
        self._link: Link | None = None
        self._guarded: frozenset[Network] = frozenset()
        self._fresh_until = {"route": 0.0, "nft": 0.0}
        self._seen: tuple[tuple[object, ...], Interface] | None = None

    async def observe(self) -> Observation:
        """See Device."""
        if self._is_due("nft"):
            self._guarded = await self._firewall.guarded()
        if self._is_due("route"):
            self._link = await self._host.look(self._guarded)
        wire = await self.wireguard.read() if self._link else None
        if wire is None or self._link is None:
            return Observation(None)
        key = self._link, self._guarded, wire.private_key, wire.listen_port, wire.peers
        if self._seen is None or any(a is not b and a != b for a, b in zip(self._seen[0], key, strict=True)):
            self._seen = key, Interface(
                name=self.name, private_key=wire.private_key, listen_port=wire.listen_port,
                mtu=self._link.mtu, up=self._link.up, addresses=self._link.addresses, routes=self._link.routes,
                guarded=self._guarded, peers=disjoint(wire.peers),
            )  # fmt: skip
        return Observation(self._seen[1], wire.sessions)

    def _is_due(self, kind: Literal["route", "nft"]) -> bool:
        now = asyncio.get_running_loop().time()
        due = self._announcements.take(kind) or now >= self._fresh_until[kind]
        if due:
            self._fresh_until[kind] = now + limits.REREAD_EVERY_S
        return due

    async def apply_all(self, steps: Sequence[plan.Step]) -> None:
        """See Device. Peers go to WireGuard in batches; everything else one by one."""
        try:
            for batch in batches(steps):
                await self._peers(batch) if isinstance(batch, tuple) else await self._apply(batch)
        finally:  # keys and peers touch neither routes nor rules, and to read those takes longer than to set a peer
            if not all(isinstance(step, WireStep) for step in steps):
                self._fresh_until = {"route": 0.0, "nft": 0.0}

    async def _peers(self, batch: tuple[PeerStep, ...]) -> None:
        try:
            await self.wireguard.configure(batch)
        except EnvironmentFault as error:
            if len(batch) == 1:
                raise _named(batch[0], error) from error
            for step in batch:  # a transaction does not say which of its peers it refused; each may be done twice
                await self._peers((step,))

    async def _apply(self, step: plan.Step) -> None:
        try:
            match step:
                case plan.SetGuard(prefixes=prefixes):
                    await self._firewall.guard(prefixes)
                case plan.CreateInterface():
                    await self.wireguard.create()
                case plan.SetPrivateKey() | plan.SetListenPort():
                    await self.wireguard.configure((step,))
                case plan.SetMtu(mtu):
                    await self._host.set_mtu(mtu)
                case plan.SetUp():
                    await self._host.set_up()
                    await self.wireguard.raised()
                case plan.AddAddress(address):
                    await self._host.add_address(address)
                case plan.RemoveAddress(address):
                    await self._host.remove_address(address)
                case plan.AddRoute(route):
                    await self._host.add_route(route)
                case plan.RemoveRoute(route):
                    await self._host.remove_route(route)
                case _:
                    raise TypeError(f"a peer step outside a batch: {step}")
        except EnvironmentFault as error:
            raise _named(step, error) from error

    async def changed(self) -> None:
        """See Device."""
        await self._announcements.wait()

    async def underlay_mtu(self) -> int:
        """See Device."""
        return await self._host.underlay_mtu()

    async def local_networks(self) -> tuple[tuple[Address, Network], ...]:
        """See Device."""
        return await self._host.local_networks()

    async def route_leaks(self, addresses: Iterable[Address]) -> tuple[Address, ...]:
        """See Device."""
        return await self._host.route_leaks(addresses)

    async def drops(self) -> int:
        """See Device."""
        return await self._firewall.drops()

    async def close(self) -> None:
        """See Device."""
        self._announcements.close()
        await self._host.close()
        await self.wireguard.close()

    async def destroy(self) -> None:
        """See Device. The guard goes last: until then nothing of the mesh leaves in clear."""
        for route in await self._host.unreachable(await self._firewall.guarded()):
            await self._host.remove_route(route)
        # A wireguard-go ends by itself, and removes its socket, when its interface is gone.
        await self._host.remove_link()
        await self._firewall.remove()
        await self.close()


def batches(steps: Iterable[plan.Step]) -> Iterator[plan.Step | tuple[PeerStep, ...]]:
    """Neighbouring peer steps as tuples of at most PEERS_PER_BATCH, every other step as itself; the order is kept."""
    for are_peers, group in groupby(steps, key=lambda step: isinstance(step, PeerStep)):
        if not are_peers:
            yield from group
            continue
        run = [step for step in group if isinstance(step, PeerStep)]
        for start in range(0, len(run), PEERS_PER_BATCH):
            yield tuple(run[start : start + PEERS_PER_BATCH])


def disjoint(peers: Mapping[PublicKey, Peer]) -> Mapping[PublicKey, Peer]:
    """Observed peers, where one whose allowed IPs contain those of another shows none.

    WireGuard itself allows that (a person may have set it), an Interface does not. A peer shown without allowed IPs
    differs from any desired one, so the plan repairs or removes it.
    """
    while overlap(peers.values()):
        claims = sorted((*network_order(ip), key) for key, peer in peers.items() for ip in peer.allowed_ips)
        greedy: set[PublicKey] = set()
        version, end, owner = 0, -1, claims[0][3]
        for ip_version, start, length, key in claims:
            if ip_version == version and start <= end:
                if key != owner:
                    greedy.add(owner)
                continue
            version, owner = ip_version, key
            end = start + (1 << ((32 if version == 4 else 128) - length)) - 1
        peers = {
            k: Peer(k, (), p.endpoint, p.keepalive_s, p.preshared_key) if k in greedy else p for k, p in peers.items()
        }
    return peers


def _named(step: plan.Step, error: MeshError) -> EnvironmentFault:
    return EnvironmentFault(f"could not {step}: {error.what}", error.hint)


def is_installed(program: str) -> bool:
    """Whether PATH has it. shutil.which would cost every agent half a megabyte."""
    return any(os.access(Path(place, program), os.X_OK) for place in os.get_exec_path())


async def open_device(interface: str, kind: Literal["auto", "kernel", "userspace"] = "auto") -> Device:
    """Kernel WireGuard where there is one, else wireguard-go; a wireguard-go that serves `interface` is adopted.

    Raises UsageError for a bad name, EnvironmentFault when this machine lacks what `kind` needs.
    """
    if not _NAME.fullmatch(interface):
        raise UsageError(f"{interface!r} is no interface name", "use 1 to 15 letters, digits and . _ -")
    if not is_installed("nft"):
        raise EnvironmentFault("nftables is not installed", "apt-get install nftables")
    host = await Host.open(interface)
    try:
        wireguard = await _wireguard(interface, kind, host)
        return HostDevice(interface, wireguard, host, Announcements())
    except BaseException:
        await host.close()
        raise


async def _wireguard(interface: str, kind: str, host: Host) -> WireGuard:
    # Late: each costs only the process that uses it, and both import this module.
    from meshctl.agent.kernel import KernelWireGuard
    from meshctl.agent.userspace import UserspaceWireGuard, is_served

    if kind == "kernel" or (kind == "auto" and not await is_served(interface)):
        if kernel := await KernelWireGuard.open(interface, host):
            return kernel
        if kind == "kernel":
            raise EnvironmentFault("this kernel has no WireGuard", "modprobe wireguard, or use the userspace device")
    if not is_installed("wireguard-go"):
        raise EnvironmentFault(
            "there is no WireGuard: no kernel module and no wireguard-go", "apt-get install wireguard-go"
        )
    if not _TUN.exists():
        raise EnvironmentFault(
            "wireguard-go needs /dev/net/tun, which is absent", "modprobe tun, or give the container the device"
        )
    return UserspaceWireGuard(interface)
