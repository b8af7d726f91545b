"""What this node works towards: its settings, membership, identity and map as one value, also without an agent (NET-3).

`meshctl plan` asks here what a pass would do. Nothing here waits for anybody but the device.
"""

from __future__ import annotations

from collections.abc import Mapping

from meshctl.agent.book import Book
from meshctl.agent.candidates import Surroundings
from meshctl.agent.device import Device
from meshctl.agent.reconcile import Desire, Reconciler
from meshctl.agent.renew import Keeper
from meshctl.agent.store import Store
from meshctl.config import AgentConfig
from meshctl.crypto.identity import Identity
from meshctl.eventlog import Unheard
from meshctl.mesh import limits, topology
from meshctl.mesh.keys import PresharedKey
from meshctl.mesh.model import NodeId
from meshctl.mesh.plan import Step
from meshctl.mesh.psk import in_force


def restore(store: Store, keeper: Keeper) -> Book:
    """The last-known-good map, or an empty book."""
    book = Book(keeper.member.mesh.id)
    if saved := store.map():
        book.restore(saved)
    return book


def desire(
    config: AgentConfig, keeper: Keeper, book: Book, surroundings: Surroundings, identity: Identity, mtu: int,
    narrow: tuple[tuple[NodeId, int], ...], psks: Mapping[NodeId, PresharedKey],
) -> Desire:  # fmt: skip
    """What the reconciler works towards, put together anew at every pass."""
    member = keeper.member
    keepalive = limits.KEEPALIVE_S if surroundings.behind_nat else 0
    me = topology.Me(member.node.id, identity.wireguard, config.interface, config.listen_port, mtu, keepalive, narrow)
    return Desire(member.mesh, me, book.roster.nodes.get(member.node.id, member.node), book.roster, psks)


async def dry_run(config: AgentConfig, store: Store, device: Device) -> tuple[Step, ...]:
    """What the next pass would do, from the map on disk. Changes nothing, tells nobody."""
    identity, unheard = store.identity(), Unheard()
    keeper = Keeper(store, identity, lambda: None, unheard)
    book, surroundings = restore(store, keeper), Surroundings(config.endpoint, config.listen_port)
    narrow, psks = store.narrow(), in_force(store.bunches())
    wanted = lambda mtu: desire(config, keeper, book, surroundings, identity, mtu, narrow, psks)  # noqa: E731
    return await Reconciler(device, surroundings, wanted, unheard, started=lambda _: None, moved=lambda: None).plan()
