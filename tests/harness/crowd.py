"""Many peers in one process, so that a bench can have a hundred: each a member with a wireguard-go and a prober of its
own.

    python -m tests.harness.crowd DIRECTORY COUNT ADDRESS TOKENFILE     # in a namespace that may be thrown away

They join through the real coordinator with real keys; all share one underlay ADDRESS, each has a port. One of them
follows the registry for all. They know, ping and answer one peer only, the node that joins after them: it meets exactly
the schedule of a mesh of COUNT + 1 nodes, while what they would owe each other is left out. They have no reconciler,
and look after nothing. One crowd at a time: a wireguard-go holds an inotify instance, of which a user has 128
(fs.inotify.max_user_instances).
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import cast

from meshctl.agent import join
from meshctl.agent.book import Book
from meshctl.agent.follow import Follower
from meshctl.agent.join import Member
from meshctl.agent.prober import Prober
from meshctl.agent.psk import PresharedKeys
from meshctl.agent.psk_exchange import Ports
from meshctl.agent.reconcile import Outcome, Reconciler
from meshctl.agent.sizing import Sizing
from meshctl.agent.store import Store
from meshctl.agent.tap import Tap
from meshctl.agent.userspace import UserspaceWireGuard
from meshctl.agent.witness import Witness
from meshctl.config import AgentConfig
from meshctl.crypto.identity import Identity
from meshctl.eventlog import Unheard
from meshctl.mesh import limits, topology
from meshctl.mesh.keys import PresharedKey, PublicKey
from meshctl.mesh.model import Candidate, Endpoint, Node, NodeId, Origin
from meshctl.mesh.plan import AddPeer, SetListenPort, SetPrivateKey, UpdatePeer
from meshctl.mesh.token import JoinToken
from tests.harness.netns import unique

READY = "crowd: all joined"
FIRST_PORT, FIRST_TABLE = 20000, 1000


@dataclass
class Peer:
    """One simulated member."""

    number: int
    identity: Identity
    member: Member
    wireguard: UserspaceWireGuard
    loops: tuple[Prober, Setter, PresharedKeys]


class OwnTap(Tap):
    """Blind for the interfaces of the others in this namespace, which hold their traffic in clear."""

    def _framed(self, packet: bytes, address: tuple[str, int, int, int, bytes]) -> None:
        if not address[0].startswith(self._interface.rstrip("0123456789")):
            super()._framed(packet, address)


class Setter:
    """Sets the pre-shared key of the only peer; for who asks, this is a reconciler."""

    def __init__(self, wireguard: UserspaceWireGuard, other: Callable[[], Node | None]) -> None:
        self.outcome = Outcome(revision=1)
        self.wake, self.passed = asyncio.Event(), asyncio.Event()
        self.keys: Callable[[], Mapping[NodeId, PresharedKey]] = dict
        self._wireguard, self._other = wireguard, other
        self._held: PresharedKey | None = None

    def holds(self, _: PublicKey, psk: PresharedKey | None) -> bool:
        return self._held == psk

    async def run(self) -> None:
        """For ever."""
        while True:
            await self.wake.wait()
            self.wake.clear()
            if other := self._other():
                wanted = self.keys().get(other.id)
                step = UpdatePeer(topology.peer(other, psk=wanted), ("preshared_key",))
                await self._wireguard.configure((step,))
                self._held = wanted
            self.passed.set()
            self.passed.clear()


class Crowd:
    """All of them, and the one node they serve."""

    def __init__(self) -> None:
        self.peers: list[Peer] = []
        self.other: Node | None = None
        self._named = unique("cr")
        self._met = asyncio.Event()

    async def add(self, number: int, directory: Path, address: str, token: JoinToken) -> None:
        """Join, and bring the interface up: replies of each leave by its own, whatever the destination."""
        store, port, interface = Store(directory), FIRST_PORT + number, f"{self._named}{number}"
        near = Candidate(Endpoint(ip_address(address), port), Origin.LOCAL)
        config = AgentConfig(state_dir=directory, interface=interface, listen_port=port)
        member, _ = await join.join(config, store, token, f"crowd-{number}", (), (near,))
        identity, wireguard, table = store.identity(), UserspaceWireGuard(interface), FIRST_TABLE + number
        await wireguard.create()
        await wireguard.configure((SetPrivateKey(identity.wireguard),))
        await wireguard.configure((SetListenPort(port),))
        _ip("-4", f"link set {interface} up")
        for family, own in (("-4", f"{member.node.address4}/32"), ("-6", f"{member.node.address6}/128")):
            _ip(
                family,
                f"address add {own} dev {interface} {'nodad' if family == '-6' else ''}",
                f"route add default dev {interface} table {table}",
                f"rule add from {own} lookup {table}",
            )
        prober = Prober(identity, lambda _: self._seen, lambda *_: None, self._serves)
        Sizing(prober, identity.id, lambda: limits.MIN_MTU_BYTES, lambda _: 0)
        Witness(prober, OwnTap(interface, port, lambda: member.mesh.prefixes), identity.id, lambda _: self._seen)
        setter, psks = Setter(wireguard, lambda: self.other), PresharedKeys(identity.id, store, config.psk_renew_s)
        others = lambda: [self.other] if self.other else []  # noqa: E731
        parts = prober, cast("Reconciler", setter), others
        psks.connect(Ports(store, *parts, lambda: member.mesh, Unheard(), lambda _: None))
        setter.keys = lambda: psks.keys
        self.peers.append(Peer(number, identity, member, wireguard, (prober, setter, psks)))

    @property
    def _seen(self) -> Endpoint | None:
        return next((c.endpoint for c in self.other.candidates), None) if self.other else None

    def _serves(self, node: str) -> bool:
        return self.other is not None and node == self.other.id

    async def follow(self, book: Book) -> None:
        """For ever. The registry as the first of us sees it; the node that is none of us is the one to serve."""
        first = self.peers[0]

        def on_map() -> None:
            roster, ours = book.roster, {peer.identity.id for peer in self.peers}
            self.other = next((node for node in roster.nodes.values() if node.id not in ours), None)
            for peer in self.peers:
                peer.loops[0].update(roster.nodes.get(peer.identity.id, peer.member.node), roster)
            if self.other:
                self._met.set()

        async def renew() -> None:
            raise AssertionError("a bench ends before a certificate does")

        follower = Follower(
            lambda: first.member, first.identity, book, lambda: None, on_map, renew, lambda _: None, Unheard()
        )
        await follower.run()

    async def meet(self) -> None:
        """Once: give every WireGuard its only peer. It leads, having joined last, so no endpoint is told."""
        await self._met.wait()
        assert self.other
        for peer in self.peers:
            await peer.wireguard.configure((AddPeer(topology.peer(self.other)),))


def _ip(family: str, *lines: str) -> None:
    subprocess.run(["ip", family, "-batch", "-"], input="\n".join(lines), text=True, check=True)


async def main(directory: Path, count: int, address: str, token: JoinToken) -> None:
    """Until it is ended; the namespace takes interfaces, routes and rules with it."""
    for where in ("all", "default"):
        Path(f"/proc/sys/net/ipv4/conf/{where}/rp_filter").write_text("0")
    crowd = Crowd()
    for number in range(count):
        await crowd.add(number, directory / str(number), address, token)
    print(READY, flush=True)
    async with asyncio.TaskGroup() as group:
        group.create_task(crowd.follow(Book(crowd.peers[0].member.mesh.id)))
        group.create_task(crowd.meet())
        for peer in crowd.peers:
            for loop in peer.loops:
                group.create_task(loop.run())


if __name__ == "__main__":
    place, how_many, underlay, token_file = sys.argv[1:]
    asyncio.run(main(Path(place), int(how_many), underlay, JoinToken.parse(Path(token_file).read_text())))
