"""The exchange itself: answers what peers say of pre-shared keys, files keys, and has them set (NET-6).

The order is what loses nothing: a key is sealed on disk before the packet that acknowledges it leaves, and in the
device before the packet that says so. The reconciler sets keys; nothing here touches WireGuard. What to say, and when,
is psk.py's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from meshctl.agent.prober import Prober
from meshctl.agent.psk_talk import Talk
from meshctl.agent.reconcile import Reconciler
from meshctl.agent.responder import Drop
from meshctl.agent.store import Store
from meshctl.crypto import kem
from meshctl.errors import MeshError, ProtocolError
from meshctl.events import Events, PresharedKeySet
from meshctl.mesh import psk
from meshctl.mesh.keys import PresharedKey
from meshctl.mesh.model import MeshInfo, Node, NodeId
from meshctl.mesh.probe import raw_id
from meshctl.mesh.psk import Act, Bunch
from meshctl.mesh.psk_packets import Head, Kind, Letter, halves

TASKS: Final = 8  # writing or waiting for the device; a peer that asks for more is asked to say it again
APPLIED_WITHIN_S: Final = 5.0
ANSWER_EVERY_S: Final = 0.5  # each answer is a write to the disk
Doing = Callable[[], Coroutine[Any, Any, None]]


@dataclass(slots=True)
class Work:
    """Something that is said until it is answered."""

    at: float  # monotonic
    act: Act = Act.REST
    tries: int = 0


@dataclass(slots=True)
class Stall:
    """No handshake since `since` (monotonic), when `version` was in force and so many bytes had been sent."""

    since: float
    version: int
    sent: int


@dataclass(slots=True)
class State:
    """One pair."""

    bunch: Bunch
    work: Work
    leads: bool
    offer: tuple[int, kem.Offer] | None = None
    answer: tuple[bytes, int, bytes] | None = None  # exchange, version, ciphertext
    stall: Stall | None = None
    differs_since: float | None = None
    received: int | None = None  # bytes, when the last session was over
    knocked_at: float | None = None  # since when handshakes of the peer come to nothing
    apart_at: float | None = None  # since when there has been no session
    answered_at: float = float("-inf")
    trouble: str = ""
    busy: bool = False


@dataclass(slots=True)
class Ports:
    """What this loop asks of others."""

    store: Store
    prober: Prober
    reconciler: Reconciler
    peers: Callable[[], list[Node]]
    mesh: Callable[[], MeshInfo]
    events: Events
    post: Callable[[Letter], None]
    monotonic: Callable[[], float] = field(default=time.monotonic)
    wall: Callable[[], float] = field(default=time.time)


class Exchange:
    """`keys` are what the reconciler is to set; `states` what is known of each pair, `filed` of others."""

    def __init__(self, me: NodeId, ports: Ports, filed: dict[NodeId, Bunch], changed: Callable[[NodeId], None]) -> None:
        """`changed` hears of each pair that has something new."""
        self.keys: Mapping[NodeId, PresharedKey] = {}
        self.states: dict[NodeId, State] = {}
        self.filed = filed
        self.raw = raw_id(me)
        self.talk = Talk(ports.prober, me, self.bunch, self._heard, ports.post, monotonic=ports.monotonic)
        self._ports, self._changed = ports, changed
        self._tasks: set[asyncio.Task[None]] = set()
        self._publish()

    async def reap(self) -> None:
        """Whatever ended; what is no MeshError ends the agent, as in any other loop."""
        done = {task for task in self._tasks if task.done()}
        self._tasks -= done
        await asyncio.gather(*done)

    def close(self) -> None:
        """Give up what is under way."""
        for task in self._tasks:
            task.cancel()

    async def forget(self, gone: list[NodeId]) -> None:
        """They left the mesh."""
        for peer in gone:
            self.states.pop(peer, None)
            self.filed.pop(peer, None)
            self.talk.forget(peer)
            await asyncio.to_thread(self._ports.store.forget_bunch, peer)
        if gone:
            self._publish()

    # ---- hearing -----------------------------------------------------------------------------------------------------

    def bunch(self, peer: NodeId) -> Bunch | None:
        """What a peer may be told of; None while that changes."""
        state = self.states.get(peer)
        if state is None or state.busy or (state.bunch.now and not state.bunch.set_at):
            return None
        return state.bunch

    def _heard(self, peer: NodeId, head: Head, whole: bytes) -> None:
        """A packet of a peer. Its state is at rest: `bunch` was asked before."""
        state, heard = self.states[peer], self.talk.heard[peer]
        match head.kind:
            case Kind.OFFER if not state.leads:
                self._offered(peer, state, head, whole)
            case Kind.ANSWER if state.leads:
                self._answered(peer, state, head, whole)
            case Kind.SET if not state.leads:
                self._told_to_set(peer, state, head)
        newest = state.bunch.newest
        if state.leads and not state.busy and heard.valid and heard.now == newest != state.bunch.now:
            self.start(peer, state, lambda: self._put_in_force(peer, state, newest))
        if head.ask:
            self.talk.send(peer, Kind.STATE)
        self._changed(peer)

    def _offered(self, peer: NodeId, state: State, head: Head, public: bytes) -> None:
        now, answer = self._ports.monotonic(), state.answer
        if answer and answer[:2] == (head.exchange, head.version) and state.bunch.find(head.version):
            self.talk.send(peer, Kind.ANSWER, head.version, head.exchange, halves(answer[2]))
        elif head.version <= state.bunch.newest or kem.exchange_of(public) != head.exchange:
            self.talk.send(peer, Kind.STATE)  # then it offers a higher one
        elif now - state.answered_at >= ANSWER_EVERY_S:
            state.answered_at = now
            self.start(peer, state, lambda: self._answer(peer, state, head, public))

    async def _answer(self, peer: NodeId, state: State, head: Head, public: bytes) -> None:
        try:
            secret, ciphertext = kem.answer(public)
        except ProtocolError:
            self._ports.prober.drops[Drop.MALFORMED] += 1
            return
        key = self._made(head.sender, self.raw, head.version, secret, public, ciphertext)
        wall = self._ports.wall()
        await self.file(peer, state, state.bunch.filed(head.version, key, shared=False, now=wall))
        state.answer, state.busy = (head.exchange, head.version, ciphertext), False
        self.talk.send(peer, Kind.ANSWER, head.version, head.exchange, halves(ciphertext))

    def _answered(self, peer: NodeId, state: State, head: Head, ciphertext: bytes) -> None:
        if state.offer and (state.offer[0], state.offer[1].exchange) == (head.version, head.exchange):
            self.start(peer, state, lambda: self._accept(peer, state, head, ciphertext))

    async def _accept(self, peer: NodeId, state: State, head: Head, ciphertext: bytes) -> None:
        assert state.offer is not None
        version, offer = state.offer
        secret = offer.open(ciphertext)
        key = self._made(self.raw, head.sender, version, secret, offer.public, ciphertext)
        await self.file(peer, state, state.bunch.filed(version, key, shared=True, now=self._ports.wall()))
        state.offer = None

    def _made(
        self, leader: bytes, follower: bytes, version: int, secret: bytes, public: bytes, ciphertext: bytes
    ) -> PresharedKey:
        mesh = self._ports.mesh().id
        return kem.preshared_key(
            secret, public, ciphertext, mesh=mesh, leader=leader, follower=follower, version=version
        )

    def _told_to_set(self, peer: NodeId, state: State, head: Head) -> None:
        bunch, key = state.bunch, state.bunch.find(head.version)
        if key is None:
            self.talk.send(peer, Kind.STATE)
        elif not kem.is_mark(head.exchange, key.key, head.sender, head.version):
            self.start(peer, state, lambda: self.file(peer, state, bunch.without(head.version), tell=True))
        elif bunch.now == head.version:
            self.talk.send(peer, Kind.DONE, head.version)
        else:
            self.start(peer, state, lambda: self._put_in_force(peer, state, head.version))

    # ---- doing -------------------------------------------------------------------------------------------------------

    def start(self, peer: NodeId, state: State, doing: Doing) -> None:
        """One thing at a time for a pair, and not for too many pairs; what cannot be done now is asked for again."""
        if state.busy or sum(not task.done() for task in self._tasks) >= TASKS:
            return
        state.busy = True
        self._tasks.add(asyncio.get_running_loop().create_task(self._do(peer, state, doing)))

    async def _do(self, peer: NodeId, state: State, doing: Doing) -> None:
        try:
            await doing()
            state.trouble = ""
        except MeshError as error:  # a full disk: nothing was acknowledged, nothing set
            state.trouble = error.what
        finally:
            state.busy = False
        if peer in self.states:
            self._changed(peer)

    async def file(self, peer: NodeId, state: State, bunch: Bunch, *, tell: bool = False) -> None:
        """On disk first. Raises MeshError: then nothing has changed."""
        await asyncio.to_thread(self._ports.store.save_bunch, peer, bunch)
        state.bunch = bunch
        self._publish()
        if tell:
            state.busy = False
            self.talk.send(peer, Kind.STATE)

    def _publish(self) -> None:
        bunches = self.filed | {peer: state.bunch for peer, state in self.states.items()}
        keys = psk.in_force(bunches)
        if keys != self.keys:
            self.keys = keys

    async def _put_in_force(self, peer: NodeId, state: State, version: int) -> None:
        state.stall = None  # it gets its own time before another one is tried
        await self.file(peer, state, state.bunch.set(version))
        await self.apply(peer, state)

    async def step(self, peer: NodeId, state: State, version: int) -> None:
        """No handshake succeeds: try another one."""
        await self.file(peer, state, state.bunch.stepped(version))
        await self.apply(peer, state)

    async def apply(self, peer: NodeId, state: State) -> None:
        """Wait until the device has what is on file, and say so."""
        reconciler = self._ports.reconciler
        with suppress(TimeoutError):
            async with asyncio.timeout(APPLIED_WITHIN_S):
                while not self._is_applied(peer, state.bunch.key):
                    reconciler.wake.set()
                    await reconciler.passed.wait()
        if not self._is_applied(peer, state.bunch.key):
            return  # no interface, or no such peer yet: looked at again
        before = state.bunch
        state.bunch = before.applied(now=self._ports.wall())
        self._ports.events.emit(PresharedKeySet(node=peer, version=before.now, proven=before.proven))
        with suppress(MeshError):  # then a restarted agent counts from its start
            await asyncio.to_thread(self._ports.store.save_bunch, peer, state.bunch)
        state.busy = False
        if before.now and not state.leads:
            self.talk.send(peer, Kind.DONE, before.now)
        else:
            self.talk.send(peer, Kind.STATE)

    def _is_applied(self, peer: NodeId, key: PresharedKey | None) -> bool:
        node = next((node for node in self._ports.peers() if node.id == peer), None)
        return node is not None and self._ports.reconciler.holds(node.statement.wireguard, key)
