"""Agrees with the peers on pre-shared keys, in the tunnel, and brings them in force (NET-6, MESH-ENC-002).

mesh/psk.py decides; this file looks at the pairs, says what is due, and judges; psk_exchange.py answers and files. What
is said is said again from the state in hand until it is answered, so packets may be lost, doubled or late, and either
agent killed at any point. A pair at rest costs a comparison every LOOK_S.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from meshctl.agent.psk_exchange import Exchange, Ports, Stall, State, Work
from meshctl.agent.store import Store
from meshctl.crypto import kem
from meshctl.errors import MeshError
from meshctl.mesh import judges, psk
from meshctl.mesh.integrity import Key, Reading
from meshctl.mesh.interface import Session
from meshctl.mesh.keys import PresharedKey
from meshctl.mesh.model import Node, NodeId
from meshctl.mesh.probe import raw_id
from meshctl.mesh.psk import Act, Bunch
from meshctl.mesh.psk_packets import Kind, Letter, halves

LOOK_S: Final = 10.0
LOOK_SOON_S: Final = 2.0  # while a pair is not settled
AT_ONCE: Final = 4  # exchanges that we lead


class PresharedKeys:
    """`run` it; `keys` are what the reconciler is to set, `readings` what is known of each pair."""

    def __init__(self, me: NodeId, store: Store, period_s: float) -> None:
        """`period_s`: for how long a key is in force. Call `connect` before anything else."""
        self.readings: dict[Key, Reading] = {}
        self._me, self._period_s, self._store = me, period_s, store
        self._wake = asyncio.Event()
        self._look_at = float("-inf")

    def connect(self, ports: Ports) -> None:
        """Once the others are made."""
        self._ports = ports
        self._exchange = Exchange(self._me, ports, self._store.bunches(), self._changed)
        self._states, self._talk = self._exchange.states, self._exchange.talk

    def take(self, letter: Letter) -> None:
        """What a coordinator brings from a peer."""
        self._talk.take(letter)

    @property
    def keys(self) -> Mapping[NodeId, PresharedKey]:
        """What the reconciler is to set."""
        return self._exchange.keys

    def of(self, peer: NodeId) -> dict[str, Any] | None:
        """{version, age_s, proven} of what is in force with a peer; None: none."""
        held = state.bunch if (state := self._states.get(peer)) else self._exchange.filed.get(peer, Bunch())
        key = held.find(held.now)
        return key and {"version": held.now, "age_s": self._ports.wall() - key.made_at, "proven": held.proven}

    async def run(self) -> None:
        """For ever."""
        try:
            while True:
                self._wake.clear()
                now = self._ports.monotonic()
                if now >= self._look_at:
                    self._look_at = now + LOOK_S
                    if await self._look():
                        self._look_at = now + LOOK_SOON_S
                due = min(self._look_at, self._speak())
                pause = max(due - self._ports.monotonic(), 0.01)
                timer = asyncio.get_running_loop().call_later(pause, self._wake.set)
                await self._wake.wait()
                timer.cancel()
                await self._exchange.reap()
        finally:
            self._exchange.close()

    def _changed(self, peer: NodeId) -> None:
        state = self._states[peer]
        self._plan(peer, state)
        self._judge(peer, state)
        if not state.bunch.proven:
            self._look_at = min(self._look_at, self._ports.monotonic() + LOOK_SOON_S)
        self._wake.set()

    # ---- looking -----------------------------------------------------------------------------------------------------

    async def _look(self) -> bool:
        """Who came, who left, what was proven, who is stuck -> whether it is worth looking again soon."""
        peers = {node.id: node for node in self._ports.peers()}
        if peers or self._ports.reconciler.outcome.revision:  # law: no data is not a deletion
            gone = [peer for peer in (*self._states, *self._exchange.filed) if peer not in peers]
            await self._exchange.forget(gone)
            if gone:
                self.readings = {key: reading for key, reading in self.readings.items() if key[1] not in gone}
        unsettled, now = False, self._ports.monotonic()
        for node in peers.values():
            state = self._states.get(node.id)
            if state is None:
                leads = self._exchange.raw < raw_id(node.id)
                state = State(self._exchange.filed.pop(node.id, Bunch()), Work(now), leads)
                self._states[node.id] = state
            if not state.busy:
                unsettled = self._examine(node, state) or unsettled
            self._listen(node, state)
            self._watch(node, state)
            self._judge(node.id, state)
            unsettled = unsettled or state.differs_since is not None
        return unsettled

    def _listen(self, node: Node, state: State) -> None:
        """Do the peer's handshakes arrive while none succeeds? WireGuard counts only what it could open as received."""
        session, now = self._ports.reconciler.outcome.sessions.get(node.statement.wireguard), self._ports.monotonic()
        if session is None or not psk.is_over(self._age_s(session)):
            state.received = state.knocked_at = None
            return
        if state.received is None:
            state.received = session.rx_bytes
        before = state.received if session.last_handshake else 0  # a peer that was restarted counts from zero
        if session.rx_bytes > before and state.knocked_at is None:
            state.knocked_at = now

    def _age_s(self, session: Session | None) -> float | None:
        """Since its last handshake; None: there was none."""
        return self._ports.wall() - session.last_handshake if session and session.last_handshake else None

    def _watch(self, node: Node, state: State) -> None:
        """Is there no session, as when one came back from a backup? Then by letter."""
        session, now = self._ports.reconciler.outcome.sessions.get(node.statement.wireguard), self._ports.monotonic()
        if self._ports.prober.is_proven(node.id) or not psk.is_over(self._age_s(session)):
            state.apart_at = None
        elif state.apart_at is None:
            state.apart_at = now
        elif now - state.apart_at > psk.STALL_S:
            self._talk.write_to(node.id)
            self._plan(node.id, state)

    def _examine(self, node: Node, state: State) -> bool:
        """-> whether this pair is not settled."""
        bunch, heard = state.bunch, self._talk.heard.get(node.id)
        self._plan(node.id, state)
        if bunch.now and not bunch.set_at:
            self._exchange.start(node.id, state, lambda: self._exchange.apply(node.id, state))
            return True
        if bunch.proven and len(bunch.keys) == 1:
            state.stall = None
            return False
        if not bunch.keys:
            return False
        session = self._ports.reconciler.outcome.sessions.get(node.statement.wireguard)
        handshake_at = session.last_handshake if session else 0.0
        if not bunch.proven and psk.proves(bunch, heard, handshake_at):
            self._exchange.start(node.id, state, lambda: self._exchange.file(node.id, state, bunch.confirmed()))
            return True
        version = self._choice(state, session)
        if version != bunch.now:
            self._exchange.start(node.id, state, lambda: self._exchange.step(node.id, state, version))
        return True

    def _choice(self, state: State, session: Session | None) -> int:
        """The version to have in force: another one while no handshake succeeds although WireGuard tries."""
        ports, bunch, age_s = self._ports, state.bunch, self._age_s(session)
        if len(bunch.choices) < 2 or session is None or not psk.is_stalled(age_s, ports.prober.coverage_s):
            state.stall = None
            return bunch.now
        now = ports.monotonic()
        if state.stall is None:
            state.stall = Stall(now, bunch.now, session.tx_bytes)
        # A peer without a session is restarted now and then, which sets its counters to zero.
        if session.tx_bytes == (state.stall.sent if session.last_handshake else 0):
            return bunch.now
        return psk.choice(bunch, state.stall.version, now - state.stall.since, leads=state.leads)

    def _judge(self, peer: NodeId, state: State) -> None:
        now, bunch, heard = self._ports.monotonic(), state.bunch, self._talk.heard.get(peer)
        if heard is None or psk.agrees(bunch, heard):
            state.differs_since = None
        elif state.differs_since is None:
            state.differs_since = now
        key, wall = bunch.find(bunch.now), self._ports.wall()
        reading = judges.preshared(
            peer, bunch.now, bunch.good, heard.now if heard else None,
            differs_s=None if state.differs_since is None else now - state.differs_since,
            age_s=wall - key.made_at if key else 0.0,
            set_s=wall - bunch.set_at if bunch.set_at else 0.0,
            within_s=psk.PROVEN_WITHIN_S + self._ports.prober.coverage_s,
            knocks_s=None if state.knocked_at is None else now - state.knocked_at,
            why=state.trouble or ("it does not answer, as of an earlier release" if self._is_strange(peer) else ""),
            now=now,
        )  # fmt: skip
        self.readings[reading[:2]] = reading

    def _is_strange(self, peer: NodeId) -> bool:
        return peer not in self._talk.heard and psk.is_strange(self._states[peer].work.tries)

    # ---- saying ------------------------------------------------------------------------------------------------------

    def _plan(self, peer: NodeId, state: State) -> None:
        """What is to be said to this peer."""
        pair = b"".join(sorted((self._exchange.raw, raw_id(peer))))
        due = psk.is_due(state.bunch, pair, self._period_s, now=self._ports.wall())
        what, _ = psk.act(state.bunch, self._talk.heard.get(peer), leads=state.leads, due=due)
        if what is not state.work.act:
            state.work = Work(self._ports.monotonic(), what)

    def _speak(self) -> float:
        """Say what is due -> when the next is (monotonic)."""
        now, following, led = self._ports.monotonic(), float("inf"), 0
        waiting = [(peer, state) for peer, state in self._states.items() if state.work.act is not Act.REST]
        for peer, state in sorted(waiting, key=lambda item: item[1].work.tries == 0):  # who has begun goes on
            work = state.work
            is_heard = self._ports.prober.is_proven(peer) or peer in self._talk.by_letter
            if self._exchange.bunch(peer) is None or not is_heard:
                continue  # looked at again with the others
            if work.act is not Act.ASK and not psk.is_strange(work.tries):
                led += 1
                if led > AT_ONCE:
                    continue
            if now >= work.at:
                self._say(peer, state)
                work.tries += 1
                work.at = now + psk.pause_s(work.tries, strange=peer not in self._talk.heard)
            following = min(following, work.at)
        return following

    def _say(self, peer: NodeId, state: State) -> None:
        match state.work.act:
            case Act.ASK:
                self._talk.send(peer, Kind.STATE, ask=True)
            case Act.SET:
                self._talk.send_set(peer, state.bunch.newest)
            case Act.OFFER:
                version = psk.first_above(state.bunch, self._talk.heard[peer])
                if state.offer is None or state.offer[0] != version:
                    try:
                        state.offer = version, kem.Offer()
                    except MeshError as error:
                        state.trouble = error.what
                        return
                offer = state.offer[1]
                self._talk.send(peer, Kind.OFFER, version, offer.exchange, halves(offer.public))
