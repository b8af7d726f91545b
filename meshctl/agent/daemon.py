"""Starts the loops of a node and ties them together; holds no state, decides nothing (NET-1, NET-4).

follower --rosters--> book --> reconciler --outcomes--> examiner --findings--> health; prober --echoes--> examiner;
follower --orders--> rotor --"go"--> prober, --key--> reconciler
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterable

from meshctl import __version__
from meshctl.agent import exam, loops
from meshctl.agent.book import Book
from meshctl.agent.candidates import Surroundings
from meshctl.agent.control import ControlCheck
from meshctl.agent.deep import Deep
from meshctl.agent.desire import desire, restore
from meshctl.agent.device import Device, open_device
from meshctl.agent.examine import Examiner
from meshctl.agent.follow import Follower, Report
from meshctl.agent.health import Health
from meshctl.agent.lookout import Lookout
from meshctl.agent.moves import Moves
from meshctl.agent.pathmtu import PathTrial
from meshctl.agent.peers import Peers
from meshctl.agent.picture import Sources, picture, report
from meshctl.agent.prober import Prober
from meshctl.agent.psk import PresharedKeys
from meshctl.agent.psk_exchange import Ports
from meshctl.agent.reconcile import Reconciler
from meshctl.agent.renew import Keeper
from meshctl.agent.rotate import Rotor, undo_unset
from meshctl.agent.store import Store
from meshctl.config import AgentConfig
from meshctl.eventlog import EventLog, HumanLog
from meshctl.events import AgentStarted, AgentStopped
from meshctl.wire.http import Server


async def run(config: AgentConfig, store: Store, say: Callable[[str], None]) -> None:
    """Until SIGTERM or SIGINT; the data plane stays. MeshError at the start only; `say` hears of the first proof."""
    device = await open_device(config.interface, config.device)  # type: ignore[arg-type]
    await undo_unset(store, device)
    identity = store.identity()
    events = EventLog(store.directory / "events.jsonl", actor=f"agent:{identity.id}", human=HumanLog(sys.stderr))
    keeper = Keeper(store, identity, lambda: follower.reconnect.set(), events)  # noqa: PLW0108 - made below
    book, surroundings = restore(store, keeper), Surroundings(config.endpoint, config.listen_port)
    moved = asyncio.Event()

    def on_map() -> None:
        if moves.noticed():
            rotor.wake.set()
        prober.update(rotor.me, book.roster)
        surroundings.seen_address = follower.link.seen_address
        moved.set()
        reconciler.wake.set()

    def told() -> Report | None:
        return report(sources, surroundings.candidates())

    peers = Peers(book, lambda: reconciler, identity.id)
    prober = Prober(identity, peers.endpoint_of, surroundings.seen, peers.may_ping)
    psks = PresharedKeys(identity.id, store, config.psk_renew_s)
    reconciler = Reconciler(
        device, surroundings,
        lambda mtu: desire(config, keeper, book, surroundings, rotor.identity, mtu, path.narrow, psks.keys),
        events, started=lambda keys: prober.kick(peers.behind(keys)),
        moved=lambda: examiner.soon.set(),  # noqa: PLW0108 - made below
    )  # fmt: skip
    follower = Follower(lambda: keeper.member, identity, book, told, on_map, keeper.renew, keeper.adopt, events)
    moves = Moves(book, reconciler, prober, Lookout(config.listen_port, lambda: rotor.identity.wireguard), on_map)
    parts = keeper, book, follower.link, reconciler, prober, moves, events
    rotor = Rotor(store, *parts, changed=on_map, tell=follower.dirty.set)
    follower.on_order, prober.on_go, health = rotor.wake.set, moves.go, Health(prober, psks.of)
    path = PathTrial(identity.id, prober, reconciler, store, peers.others, time.monotonic)
    psks.connect(Ports(store, prober, reconciler, peers.others, lambda: keeper.member.mesh, events, follower.post))
    trials = path, exam.on_the_wire(config, keeper, prober, peers, rotor.retired)
    control, deep = ControlCheck(follower.link), Deep(trials, peers.others, prober.is_proven, identity.id)
    path.sizing.on_narrow, rotor.retired.on_retired = deep.soon, deep.anew
    health.gaps, health.deep_s, follower.on_letter = rotor.gap_of, lambda: deep.period_s, psks.take
    sources = Sources(keeper, device.kind, book, reconciler, prober, health, follower.link, rotor, deep, control, psks)
    examiner = Examiner(sources, device, events, follower.dirty.set)

    loops.write_guard(store, config.interface, keeper.member.mesh.prefixes)
    moves.noticed()
    prober.update(rotor.me, book.roster)
    servers = await loops.serve(config, health, prober, lambda: picture(sources), book, peers)
    events.emit(AgentStarted(release=__version__, interface=config.interface))
    small = (
        loops.announce(prober, reconciler, book, identity.id, say),
        loops.keep_map(store, book, moved),
        loops.give_back(),
    )
    forever = (reconciler, follower, prober, examiner, keeper, rotor, deep, control, psks)
    try:
        await loops.until_stopped([*(one.run() for one in forever), *small])
    finally:
        await _end(servers, store, book, device, events)


async def _end(servers: Iterable[Server], store: Store, book: Book, device: Device, events: EventLog) -> None:
    await loops.close(servers)
    await loops.save_map(store, book)
    await device.close()
    events.emit(AgentStopped(why="asked to"))
    events.close()
