"""This node's turn in a rotation; what its peers' turns mean is in moves.py (NET-5, MESH-ROT-001).

mesh/rotation.py says what to do next; this file does it. The order of a switch is what loses nothing: the new key is
sealed on disk, "go" is sent through the tunnels that still stand, the key is set in the same breath, and only then do
peers, who wait a moment after "go", start the handshake. Until one answers, WireGuard keeps what we send in its queue.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from meshctl.agent.book import Book
from meshctl.agent.device import Device
from meshctl.agent.follow import Link
from meshctl.agent.moves import Moves
from meshctl.agent.prober import Prober
from meshctl.agent.reconcile import Reconciler
from meshctl.agent.renew import Keeper
from meshctl.agent.retired import Retired
from meshctl.agent.store import SavedRotation, Store
from meshctl.crypto.identity import Identity
from meshctl.errors import ConflictError, MeshError
from meshctl.events import Events, KeySwitched
from meshctl.mesh import rotation
from meshctl.mesh.interface import Session
from meshctl.mesh.keys import PrivateKey, PublicKey
from meshctl.mesh.model import Node, NodeId
from meshctl.mesh.rotation import Act, Gaps, Hand, Report, Stage, View
from meshctl.mesh.statement import Statement

LOOK_EVERY_S = 0.05  # while a turn is under way
KICK_EVERY_S = 0.2  # peers without the next statement, or not proven yet, are echoed so often
TELL_EVERY_S = 0.2  # progress; a change of stage is told at once
MEASURED_WITHIN_S = 1.5  # after a switch: a peer tells how long it stood still in the echo after its handshake
REPEAT_EVERY_S = 1.0  # a coordinator may have lost what it was told


async def undo_unset(store: Store, device: Device) -> None:
    """Before a Rotor is made: an agent that was killed between sealing a switch and setting the key switched nothing,
    and its grant is long over. It states its old key anew, for those who heard "go" (law: no two ends rotate at once).
    """
    saved = store.rotation()
    if saved is None or saved.stage != Stage.SWITCHED:
        return
    interface = (await device.observe()).interface
    if interface and interface.private_key == PrivateKey(saved.previous):
        store.save_rotation(replace(saved, stage=Stage.BACK, serial=saved.serial + 1, switched_at=0.0))


class Rotor:
    """`run` it; `identity` and `statement` are what is in force here, whatever the registry knows yet."""

    def __init__(
        self,
        store: Store,
        keeper: Keeper,
        book: Book,
        link: Link,
        reconciler: Reconciler,
        prober: Prober,
        moves: Moves,
        events: Events,
        changed: Callable[[], None],
        tell: Callable[[], None],
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`changed` hears that this node has another key in force, `tell` that `report` is news."""
        self.identity: Identity = store.identity()
        self.report: Report | None = None
        self.wake, self.retired = asyncio.Event(), Retired()
        self._gaps: dict[NodeId, float] = {}  # seconds that packets to a peer stood still when our key last changed
        self._store, self._keeper, self._book, self._link = store, keeper, book, link
        self._reconciler, self._prober, self._moves, self._events = reconciler, prober, moves, events
        self._changed, self._tell, self._monotonic, self._wall = changed, tell, monotonic, wall
        self._saved: SavedRotation | None = store.rotation()
        self.statement: Statement = self._state(self.identity.wireguard, self._serial)
        self._question, self._asked_at = 0, float("-inf")
        self._switched_at = 0.0  # monotonic
        self._lived: frozenset[NodeId] | None = None  # peers with a live tunnel when we switched; None: to be recalled
        self._unseen: set[NodeId] = set()  # of those, without a gap yet
        self._began: Mapping[PublicKey, int] = {}  # bytes received from each peer when the turn began
        self._began_at = self._kicked_at = self._told_at = float("-inf")
        self._own_moved_at = 0.0  # unix seconds of our last switch, when its turn is over
        self._next: Statement | None = None  # signed once a turn: peers would verify each signature anew

    # ---- what others ask of it ---------------------------------------------------------------------------------------

    @property
    def me(self) -> Node:
        """Our record, with the statement that is in force here; a later one of ours that names the same key is, too."""
        told = self._registered.statement
        later = told.serial > self.statement.serial and told.wireguard == self.statement.wireguard
        return replace(self._registered, statement=told if later else self.statement, next=None)

    def moved_at(self, peer: NodeId) -> float | None:
        """When the key of either end last changed, in unix seconds; None: not since this process began."""
        own = self._saved.switched_at if self._saved and self._saved.stage != Stage.PREPARED else self._own_moved_at
        return max(own, self._moves.at(peer)) or None

    def gap_of(self, peer: NodeId) -> tuple[float, float]:
        """Seconds that packets to a peer stood still when our key last changed, and when the peer's did."""
        return self._gaps.get(peer, 0.0), self._moves.gap(peer)

    # ---- the loop ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """For ever; a failure is tried again."""
        while True:
            self.wake.clear()
            try:
                await self._once()
            except MeshError:  # a disk that is full: nothing was switched
                await asyncio.sleep(REPEAT_EVERY_S)
            busy = self._moves.measure() or self._saved or self._link.order
            pause = LOOK_EVERY_S if busy else None
            try:
                async with asyncio.timeout(pause):
                    await self.wake.wait()
            except TimeoutError:
                pass

    async def _once(self) -> None:
        self._recall()
        match rotation.act(self._hand, self._view()):
            case Act.PREPARE:
                await self._prepare()
            case Act.DISCARD:
                await self._end()
            case Act.ASK:
                self._question, self._asked_at = secrets.randbits(31) | 1, self._monotonic()
            case Act.SWITCH:
                await self._switch()
            case Act.BACK:
                await self._return()
            case Act.CLOSE:
                await self._close()
            case Act.REST:
                self._kick()
        self._tell_if_news()

    # ---- acts --------------------------------------------------------------------------------------------------------

    async def _prepare(self) -> None:
        order = self._link.order
        if order is None:
            return
        serial = max(self._serial, self._registered.newest) + 1
        key = Identity.generate().wireguard
        await self._save(SavedRotation(order.rotation, Stage.PREPARED, serial, key.raw, self.identity.wireguard.raw))
        self._next = self._state(key, serial)
        sessions = self._reconciler.outcome.sessions
        self._began = {peer: session.rx_bytes for peer, session in sessions.items()}
        self._began_at = self._monotonic()
        self._asked_at = float("-inf")

    async def _switch(self) -> None:
        saved = self._saved
        assert saved is not None
        key = PrivateKey(saved.next)
        live = [node for node in self._peers() if self._is_live(node)]
        switched = replace(saved, stage=Stage.SWITCHED, switched_at=self._wall())
        await self._save(switched)
        holds = zip((node.id for node in live), rotation.holds_s(live, self._reconciler.pass_s), strict=True)

        def first() -> None:  # the disk, or a pass under way, may have taken longer than a grant lives
            if self._monotonic() - self._asked_at >= rotation.GRANT_S:
                raise ConflictError("the grant is over")
            self._prober.go(holds, saved.serial)
            self._put_in_force(key, saved.serial)

        try:
            at = await self._reconciler.switch_key(key, first)
            self._saved = replace(switched, switched_at=at)
        except MeshError:
            if self.identity.wireguard != key:
                await self._save(saved)
                return
            self._reconciler.wake.set()  # what is in force is what the next pass works towards
        self._switched_at = self._monotonic()
        self._lived = frozenset(node.id for node in live)
        self._unseen = set(self._lived)
        self._announce(saved, returned=False)
        self._prober.kick(self._lived)  # at once: so our own initiation is spent before a peer's can cross it

    async def _return(self) -> None:
        saved = self._saved
        assert saved is not None
        serial = saved.serial + 1
        await self._save(replace(saved, stage=Stage.BACK, serial=serial, switched_at=self._wall()))
        self._put_in_force(PrivateKey(saved.previous), serial)
        self._announce(saved, returned=True)
        self._reconciler.wake.set()

    async def _close(self) -> None:
        assert self._saved is not None
        self._own_moved_at = self._saved.switched_at
        made_at = self._saved.switched_at if self._saved.stage == Stage.SWITCHED else None
        self._keeper.stated(self._saved.serial, made_at)
        await asyncio.to_thread(self._store.save_identity, self.identity)
        # Not before the turn is over: until then a peer that has yet to follow holds it rightly.
        old = self._saved.next if self._saved.stage == Stage.BACK else self._saved.previous
        await self._end()
        self.retired.retire(PrivateKey(old), [node.id for node in self._peers()])

    async def _end(self) -> None:
        await asyncio.to_thread(self._store.end_rotation)
        self._saved, self._next = None, None

    async def _save(self, saved: SavedRotation) -> None:
        await asyncio.to_thread(self._store.save_rotation, saved)
        self._saved = saved

    def _put_in_force(self, key: PrivateKey, serial: int) -> None:
        self.identity = replace(self.identity, wireguard=key)
        self.statement = self._state(key, serial)

    def _announce(self, saved: SavedRotation, *, returned: bool) -> None:
        serial, key = self.statement.serial, self.statement.wireguard
        self._events.emit(KeySwitched(rotation=saved.rotation, serial=serial, wireguard=key, returned=returned))
        self._changed()

    def _recall(self) -> None:
        """A restart after the switch: whom WireGuard still counts as alive are those to be proven."""
        if self._lived is None and self._reconciler.outcome.read_at:
            alive = self._reconciler.outcome.alive
            self._lived = frozenset(node.id for node in self._peers() if node.statement.wireguard in alive)
            self._unseen, self._switched_at = set(), self._monotonic()

    # ---- looking -----------------------------------------------------------------------------------------------------

    @property
    def _serial(self) -> int:
        """Of the statement in force."""
        saved = self._saved
        return saved.serial if saved and saved.stage != Stage.PREPARED else self._keeper.member.saved.serial

    @property
    def _registered(self) -> Node:
        member = self._keeper.member
        return self._book.roster.nodes.get(member.node.id, member.node)

    @property
    def _hand(self) -> Hand | None:
        saved = self._saved
        return Hand(saved.rotation, Stage(saved.stage), saved.serial, saved.switched_at) if saved else None

    def _state(self, key: PrivateKey, serial: int) -> Statement:
        return replace(self.identity, wireguard=key).state(self._keeper.member.mesh.id, serial)

    def _peers(self) -> list[Node]:
        me = self.identity.id
        return [node for node in self._book.roster.nodes.values() if node.id != me]

    def _session(self, node: Node) -> Session | None:
        return self._reconciler.outcome.sessions.get(node.statement.wireguard)

    def _is_live(self, node: Node) -> bool:
        """Whether a tunnel stands that a switch would cut; it does where an agent has stopped and its WireGuard not."""
        key, session = node.statement.wireguard, self._session(node)
        if session is None or key not in self._reconciler.outcome.alive:
            return False
        heard_at = self._prober.echo(node.id).last_ok_at
        now = self._monotonic()
        answers = heard_at is not None and now - heard_at < rotation.SILENT_AFTER_S
        unsure = now - self._began_at < rotation.SILENT_AFTER_S
        return answers or unsure or session.rx_bytes > self._began.get(key, 0)

    def _lacking(self) -> list[NodeId]:
        """Live peers that do not hold our next statement."""
        serial = self._saved.serial if self._saved else 0
        return [n.id for n in self._peers() if self._is_live(n) and self._prober.held(n.id) < serial]

    def _lived_peers(self) -> list[Node]:
        return [node for node in self._peers() if node.id in (self._lived or ())]

    def _unproven(self) -> list[NodeId]:
        """Peers that lived before the switch and have not proven themselves since."""
        return [node.id for node in self._lived_peers() if not self._is_proven(node)]

    def _unsettled(self) -> list[NodeId]:
        """The unproven, and for a moment those who have not told yet how long they stood still."""
        unproven = self._unproven()
        if self._monotonic() - self._switched_at > MEASURED_WITHIN_S:
            return unproven
        proven = (node.id for node in self._lived_peers() if node.id not in unproven)
        return unproven + [node for node in proven if not self._prober.span_s(node)]

    def _is_proven(self, node: Node) -> bool:
        session, agreed = self._session(node), self._prober.agreed_at(node.id)
        handshake = session is not None and self._saved and session.last_handshake > self._saved.switched_at
        return bool(handshake) and agreed is not None and agreed > self._switched_at

    def _view(self) -> View:
        now, saved = self._monotonic(), self._saved
        prepared = saved is not None and saved.stage == Stage.PREPARED
        ages = (self._wall() - s.last_handshake for s in self._reconciler.outcome.sessions.values())
        lived = len(self._lived_peers()) if saved and not prepared else 0
        return View(
            connected=self._link.connected,
            order=self._link.order,
            waiting=len(self._lacking()) if prepared else 0,
            restless=prepared and rotation.is_restless(ages),
            question=self._question,
            asked_s=now - self._asked_at,
            switched_s=self._reconciler.outcome.read_at - self._switched_at,
            pairs=lived,
            proven=lived - len(self._unproven()) if lived else 0,
            registered=self._registered.statement.serial,
        )

    def _kick(self) -> None:
        saved, now = self._saved, self._monotonic()
        if saved is None or now - self._kicked_at < KICK_EVERY_S:
            return
        self._kicked_at = now
        self._prober.kick(self._lacking() if saved.stage == Stage.PREPARED else self._unsettled())
        if saved.stage == Stage.SWITCHED:
            self._reconciler.wake.set()

    # ---- telling -----------------------------------------------------------------------------------------------------

    def _tell_if_news(self) -> None:
        said, now = self._compose(), self._monotonic()
        if said is None and self.report is None:
            return
        if said and said.stage is Stage.SWITCHED and now - self._switched_at < rotation.HOLD_S:
            return  # by the map a peer would follow at once, and its handshake might cross ours
        old = self.report
        urgent = said is None or old is None or (said.stage, said.question) != (old.stage, old.question)
        pause = TELL_EVERY_S if said != old else REPEAT_EVERY_S
        if urgent or now - self._told_at >= pause:
            self.report, self._told_at = said, now
            self._tell()

    def _compose(self) -> Report | None:
        saved = self._saved
        if saved is None or (self._link.order is None and saved.stage == Stage.PREPARED):
            return None
        if self._lived is None and saved.stage != Stage.PREPARED:  # just started: nothing is known yet
            return None
        if saved.stage == Stage.PREPARED:
            lacking = self._lacking()
            asked = self._monotonic() - self._asked_at < rotation.GRANT_S
            stage = Stage.READY if asked else Stage.PREPARED
            self._next = self._next or self._state(PrivateKey(saved.next), saved.serial)
            stated, live = self._next.signed, sum(map(self._is_live, self._peers()))
            waiting = tuple(lacking[: rotation.NAMED])
            return Report(saved.rotation, stage, stated, self._question, live, 0, waiting)
        unproven = self._unproven()
        lived = self._lived_peers()
        stage = Stage.BACK if saved.stage == Stage.BACK else Stage.SWITCHED if self._unsettled() else Stage.PROVEN
        out = self._stood_still(lived, saved.switched_at)
        into = Gaps.of(gap for node in lived if (gap := self._prober.span_s(node.id)))
        waiting = tuple(unproven[: rotation.NAMED])
        proven, stated = len(lived) - len(unproven), self.statement.signed
        return Report(saved.rotation, stage, stated, self._question, len(lived), proven, waiting, out, into)

    def _stood_still(self, lived: list[Node], switched_at: float) -> Gaps:
        """How long packets from here waited for a session, per proven pair: by its first handshake, not a later one."""
        for node in lived:
            session = self._session(node)
            if session and node.id in self._unseen and self._is_proven(node):
                self._unseen.discard(node.id)
                self._gaps[node.id] = session.last_handshake - switched_at
        return Gaps.of(self._gaps[node.id] for node in lived if node.id in self._gaps and node.id not in self._unseen)
