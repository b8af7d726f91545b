"""Starts the loops of a node and ties them together; holds no state, decides nothing (NET-1, NET-4).

follower --rosters--> book --> reconciler --outcomes--> examiner --findings--> health; prober --echoes--> examiner
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

from meshctl import __version__
from meshctl.agent import loops
from meshctl.agent.book import Book
from meshctl.agent.candidates import Surroundings
from meshctl.agent.device import Device, open_device
from meshctl.agent.examine import Examiner
from meshctl.agent.follow import Follower, Report
from meshctl.agent.health import Health
from meshctl.agent.peers import Peers
from meshctl.agent.picture import Sources, picture
from meshctl.agent.prober import Prober
from meshctl.agent.reconcile import Desire, Reconciler
from meshctl.agent.renew import Keeper
from meshctl.agent.store import Store
from meshctl.config import AgentConfig
from meshctl.crypto.identity import Identity
from meshctl.eventlog import EventLog, HumanLog
from meshctl.events import AgentStarted, AgentStopped, Unheard
from meshctl.mesh import limits, topology
from meshctl.mesh.plan import Step


async def run(config: AgentConfig, store: Store, say: Callable[[str], None]) -> None:
    """Until SIGTERM or SIGINT; the data plane stays. Raises MeshError at the start only.

    `say` hears of the first proven tunnel.
    """
    identity = store.identity()
    events = EventLog(store.directory / "events.jsonl", actor=f"agent:{identity.id}", human=HumanLog(sys.stderr))
    device = await open_device(config.interface, config.device)  # type: ignore[arg-type]
    keeper = Keeper(store, identity, lambda: follower.reconnect.set(), events)  # noqa: PLW0108 - made below
    book, surroundings = restore(store, keeper), Surroundings(config.endpoint, config.listen_port)
    moved = asyncio.Event()

    def on_map() -> None:
        prober.update(book.roster.nodes.get(identity.id, keeper.member.node), book.roster)
        surroundings.seen_address = follower.link.seen_address
        moved.set()
        reconciler.wake.set()

    def report() -> Report | None:
        outcome = reconciler.outcome
        found = health.told()
        kinds = frozenset((f.code, f.subject, f.verdict) for f in found)
        seen = surroundings.candidates()
        return Report(outcome.revision, outcome.digest, health.verdict, kinds, found, seen) if outcome.digest else None

    peers = Peers(book, lambda: reconciler)
    prober = Prober(identity, peers.endpoint_of, surroundings.seen, peers.may_ping)
    reconciler = Reconciler(
        device,
        surroundings,
        lambda mtu: desire(config, keeper, book, surroundings, identity, mtu),
        events,
        started=lambda keys: prober.kick(peers.behind(keys)),
        moved=lambda: examiner.soon.set(),  # noqa: PLW0108 - made below
    )
    follower = Follower(lambda: keeper.member, identity, book, report, on_map, keeper.renew, keeper.adopt, events)
    health = Health(prober)
    sources = Sources(keeper, device.kind, book, reconciler, prober, health, follower.link)
    examiner = Examiner(sources, device, events, follower.dirty.set)

    loops.write_guard(store, config.interface, keeper.member.mesh.prefixes)
    prober.update(book.roster.nodes.get(identity.id, keeper.member.node), book.roster)
    servers = await loops.serve(config, health, prober, lambda: picture(sources), book, peers)
    events.emit(AgentStarted(release=__version__, interface=config.interface))
    stop = loops.stop_signal()
    try:
        async with asyncio.TaskGroup() as group:
            announce = loops.announce(prober, reconciler, book, identity.id, say)
            running = [reconciler.run(), follower.run(), prober.run(), examiner.run(), keeper.run(), announce]
            tasks = [group.create_task(loop) for loop in (*running, loops.keep_map(store, book, moved))]
            await stop.wait()
            for task in tasks:
                task.cancel()
    finally:
        for server in servers:
            await server.close()
        await loops.save_map(store, book)
        await device.close()
        events.emit(AgentStopped(why="asked to"))
        events.close()


def restore(store: Store, keeper: Keeper) -> Book:
    """The last-known-good map, or an empty book."""
    book = Book(keeper.member.mesh.id)
    if saved := store.map():
        book.restore(saved)
    return book


def desire(
    config: AgentConfig, keeper: Keeper, book: Book, surroundings: Surroundings, identity: Identity, mtu: int
) -> Desire:
    """What the reconciler works towards, put together anew at every pass."""
    member = keeper.member
    keepalive = limits.KEEPALIVE_S if surroundings.behind_nat else 0
    me = topology.Me(member.node.id, identity.wireguard, config.interface, config.listen_port, mtu, keepalive)
    return Desire(member.mesh, me, book.roster.nodes.get(member.node.id, member.node), book.roster)


async def dry_run(config: AgentConfig, store: Store, device: Device) -> tuple[Step, ...]:
    """What the next pass would do, from the map on disk. Changes nothing, tells nobody."""
    identity, unheard = store.identity(), Unheard()
    keeper = Keeper(store, identity, lambda: None, unheard)
    book, surroundings = restore(store, keeper), Surroundings(config.endpoint, config.listen_port)
    wanted = lambda mtu: desire(config, keeper, book, surroundings, identity, mtu)  # noqa: E731
    return await Reconciler(device, surroundings, wanted, unheard, started=lambda _: None, moved=lambda: None).plan()
