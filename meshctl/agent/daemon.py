"""Starts the loops of a node and ties them together; holds no state, decides nothing (NET-1, NET-4).

    follower --rosters--> book <--reads-- reconciler --outcomes--> examiner --findings--> health
                                              prober --echoes---------^
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable

from meshctl import __version__
from meshctl.agent.book import Book
from meshctl.agent.candidates import Surroundings
from meshctl.agent.device import Device, open_device
from meshctl.agent.examine import Examiner
from meshctl.agent.follow import Follower, Report
from meshctl.agent.health import Health
from meshctl.agent.loops import announce, keep_map, save_map, serve, stop_signal, write_guard
from meshctl.agent.picture import picture
from meshctl.agent.prober import Prober
from meshctl.agent.reconcile import Desire, Reconciler
from meshctl.agent.renew import Keeper
from meshctl.agent.store import Store
from meshctl.config import AgentConfig
from meshctl.crypto.identity import Identity
from meshctl.eventlog import EventLog, human_log
from meshctl.events import AgentStarted, AgentStopped, Unheard
from meshctl.mesh import limits, topology
from meshctl.mesh.keys import PublicKey
from meshctl.mesh.model import Endpoint, NodeId
from meshctl.mesh.plan import Step
from meshctl.wire.codec import FindingRow


async def run(config: AgentConfig, store: Store, say: Callable[[str], None]) -> None:
    """Until SIGTERM or SIGINT; the data plane stays. `say` hears of the first proven tunnel. Raises MeshError at the start only."""
    identity = store.identity()
    node = identity.id
    events = EventLog(store.directory / "events.jsonl", actor=f"agent:{node}", human=human_log(sys.stderr))
    device = await open_device(config.interface, config.device)  # type: ignore[arg-type]
    keeper = Keeper(store, identity, lambda: follower.reconnect.set(), events)
    book, surroundings = _book(store, keeper), Surroundings(config.endpoint, config.listen_port)
    moved = asyncio.Event()

    def endpoint_of(peer: NodeId) -> Endpoint | None:
        known = book.roster.nodes.get(peer)
        session = reconciler.outcome.sessions.get(known.statement.wireguard) if known else None
        return session.endpoint if session else None

    def may_ping(peer: NodeId) -> bool:
        known = book.roster.nodes.get(peer)
        return known is not None and reconciler.is_started(known.statement.wireguard)

    def started(keys: frozenset[PublicKey]) -> None:
        prober.kick(n.id for n in book.roster.nodes.values() if n.statement.wireguard in keys)

    def on_map() -> None:
        prober.update(book.roster.nodes.get(node, keeper.member.node), book.roster)
        surroundings.seen_address = (follower.link.beat.seen_address if follower.link.beat else "") or surroundings.seen_address
        moved.set()
        reconciler.wake.set()

    def report() -> Report | None:
        outcome = reconciler.outcome
        if not outcome.digest:
            return None
        rows = tuple(FindingRow(f.code, f.subject, f.verdict, f.since, f.at, f.evidence) for f in health.open_findings)
        return Report(outcome.revision, outcome.digest, health.verdict, rows, surroundings.candidates())

    prober = Prober(identity, endpoint_of, surroundings.seen, may_ping)
    reconciler = Reconciler(
        device, surroundings, lambda mtu: _desire(config, keeper, book, surroundings, identity, mtu), events,
        started=started, moved=lambda: follower.dirty.set(),
    )  # fmt: skip
    follower = Follower(lambda: keeper.member, identity, book, report, on_map, events)
    health = Health(prober)
    made_at = keeper.member.saved.key_made_at
    examiner = Examiner(
        health, reconciler, prober, device, follower.link, roster=lambda: book.roster, me=lambda: keeper.member.node,
        key_made_at=made_at, certificate_left_s=lambda: keeper.left_s, events=events, changed=follower.dirty.set,
    )  # fmt: skip

    def status() -> dict[str, object]:
        age = time.time() - made_at
        return picture(keeper.member, device.kind, book.roster, reconciler, prober, health, follower.link, age, keeper.left_s)

    write_guard(store, config.interface, keeper.member.mesh.prefixes)
    prober.update(book.roster.nodes.get(node, keeper.member.node), book.roster)
    servers = await serve(config, health, prober, status, lambda: book.roster, endpoint_of)
    events.emit(AgentStarted(actor=f"agent:{node}", release=__version__, interface=config.interface))
    stop = stop_signal()
    try:
        async with asyncio.TaskGroup() as group:
            loops = (
                reconciler.run(), follower.run(), prober.run(), examiner.run(), keeper.run(),
                keep_map(store, book, moved), announce(prober, follower, reconciler, lambda: book.roster, node, say),
            )  # fmt: skip
            tasks = [group.create_task(loop) for loop in loops]
            await stop.wait()
            for task in tasks:
                task.cancel()
    finally:
        for server in servers:
            await server.close()
        await save_map(store, book)
        await device.close()
        events.emit(AgentStopped(actor=f"agent:{node}", why="asked to"))
        events.confirm()


def _book(store: Store, keeper: Keeper) -> Book:
    book = Book(keeper.member.mesh.id)
    if saved := store.map():
        book.restore(saved)
    return book


def _desire(config: AgentConfig, keeper: Keeper, book: Book, surroundings: Surroundings, identity: Identity, mtu: int) -> Desire:
    member = keeper.member
    keepalive = limits.KEEPALIVE_S if surroundings.behind_nat else 0
    me = topology.Me(member.node.id, identity.wireguard, config.interface, config.listen_port, mtu, keepalive)
    return Desire(member.mesh, me, book.roster.nodes.get(member.node.id, member.node), book.roster)


async def dry_run(config: AgentConfig, store: Store, device: Device) -> tuple[Step, ...]:
    """What the next pass would do, from the map on disk. Changes nothing, tells nobody."""
    identity, unheard = store.identity(), Unheard()
    keeper = Keeper(store, identity, lambda: None, unheard)
    book, surroundings = _book(store, keeper), Surroundings(config.endpoint, config.listen_port)
    reconciler = Reconciler(
        device, surroundings, lambda mtu: _desire(config, keeper, book, surroundings, identity, mtu), unheard,
        started=lambda _: None, moved=lambda: None,
    )  # fmt: skip
    return await reconciler.plan()
