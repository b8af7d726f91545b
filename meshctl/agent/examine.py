"""Turns what the other loops saw into Readings, every other second, and Findings into events (NET-7).

Collects only: the judges are in mesh/integrity.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator

from meshctl.agent import tick
from meshctl.agent.device import Device
from meshctl.agent.picture import Sources
from meshctl.errors import MeshError
from meshctl.events import Events, FindingClosed, FindingOpened
from meshctl.mesh import catalogue, judges, limits, pacing
from meshctl.mesh.integrity import Reading
from meshctl.mesh.interface import Session
from meshctl.mesh.keys import PublicKey
from meshctl.mesh.model import Address, Node, NodeId
from meshctl.mesh.probe import Echo

EVERY_S = 2.0  # as often as peers are echoed; what the reconciler finds is looked at at once
LOOK_AFTER_S = 0.25  # what is announced comes in bursts
ROUTES_AT_ONCE = 64  # peers looked at in one turn


class Examiner:
    """`run` it beside the other loops; `traffic` remembers what each session had sent when its handshake was new."""

    def __init__(self, sources: Sources, device: Device, events: Events, changed: Callable[[], None]) -> None:
        """`changed` is told when a finding opens or closes, the verdict moves, or after somebody set `soon`."""
        self.soon = asyncio.Event()  # set by whoever knows that there is something new to look at
        self._from, self._device, self._events, self._changed = sources, device, events, changed
        self._sent: dict[PublicKey, tuple[float, int]] = {}
        self._judged: dict[NodeId, tuple[float, tuple[object, ...]]] = {}  # when, and on what was seen
        self._routes_at, self._looked_at = float("-inf"), (-1, -1)
        self._unlooked: list[Node] = []
        self._leaks: dict[Address, str] = {}
        self._looking: asyncio.TimerHandle | None = None
        sources.prober.on_down, sources.reconciler.on_announced = self.soon.set, self.look

    def look(self) -> None:
        """The kernel has announced something: it is looked at soon, with what else it announces in this moment."""
        if self._looking is None or self._looking.when() <= asyncio.get_running_loop().time():
            self._looking = asyncio.get_running_loop().call_later(LOOK_AFTER_S, self.soon.set)

    async def run(self) -> None:
        """For ever."""
        while True:
            asked = self.soon.is_set()
            self.soon.clear()
            await self.once()
            if asked:
                self._changed()
            try:
                async with asyncio.timeout_at(tick.following(asyncio.get_running_loop().time(), EVERY_S)):
                    await self.soon.wait()
            except TimeoutError:
                pass

    async def once(self) -> None:
        """Gather, judge, tell."""
        me = self._from.keeper.member.node.id
        peers = [node for node in self._from.book.roster.nodes.values() if node.id != me]
        self._from.health.expect({node.id: node.name for node in peers})
        self._from.health.revision = self._from.reconciler.outcome.revision
        self._from.health.beat("examine")
        if time.monotonic() - self._from.reconciler.outcome.at < 2 * limits.TICK_S:
            self._from.health.beat("reconcile")
        self._from.health.record([*self._node(), *self._peers(peers), *await self._routes(peers)])
        self._from.health.adopt(self._from.deep.readings)
        self._from.health.adopt(self._from.psks.readings)
        before = self._from.health.verdict
        opened, closed = self._from.health.judge()
        for f in opened:
            self._events.emit(
                FindingOpened(
                    code=f.code,
                    subject=f.subject,
                    severity=f.severity,
                    before="ok",
                    after=f.verdict,
                    evidence=f.evidence,
                )
            )
        for f in closed:
            self._events.emit(FindingClosed(code=f.code, subject=f.subject, open_s=f.at - f.since, evidence=f.evidence))
        if self._from.health.sum_up(me) or opened or closed or self._from.health.verdict != before:
            self._changed()

    def _node(self) -> Iterator[Reading]:
        now, outcome, beat = time.monotonic(), self._from.reconciler.outcome, self._from.link.beat
        if outcome.at:
            yield judges.drift(outcome.repaired, outcome.repaired_at, outcome.error, now=outcome.at)
        server = beat.revision if beat else 0
        age = now - self._from.link.beat_at if beat else None
        silent_s = pacing.silence_s(len(self._from.book.roster.nodes))
        refused = tuple(self._from.book.refused.values())
        yield judges.lag(outcome.revision, server, age, refused, silent_s=silent_s, now=now)
        yield judges.keys(self._from.keeper.key_age_s, self._from.keeper.left_s, now=now)
        fresh = age is not None and age < silent_s
        offsets = (e.offset_s for e in self._from.prober.echoes().values() if e.offset_s is not None)
        if self._from.control.reading:
            yield self._from.control.reading
        yield judges.clock(self._from.link.clock_offset_s if fresh else None, offsets, now=now)

    def _peers(self, peers: Iterable[Node]) -> Iterator[Reading]:
        """Of those about whom there is something new to say, and of each once in a coverage period."""
        now, wall, outcome = time.monotonic(), time.time(), self._from.reconciler.outcome
        echoes, never, coverage_s = self._from.prober.echoes(), Echo(), self._from.prober.coverage_s
        before = self._judged
        self._judged = {}
        for node in peers:
            key, echo = node.statement.wireguard, echoes.get(node.id, never)
            session = outcome.sessions.get(key)
            age = wall - session.last_handshake if session and session.last_handshake else None
            changed = self._from.rotor.moved_at(node.id)
            stamps = echo.tested_at, echo.last_ok_at, echo.forged_at, session and session.last_handshake
            judged_at, seen = before.get(node.id, (0.0, ()))
            self._judged[node.id] = judged_at, seen
            is_young = age is not None and age < limits.REKEY_AFTER_S
            if is_young and now - judged_at < coverage_s and seen == (node, changed, *stamps):
                continue
            self._judged[node.id] = now, (node, changed, *stamps)
            yield judges.path(node.id, echo, now=now)
            yield judges.identity(node.id, echo, now=now)
            if not outcome.read_at:
                continue  # before the first pass
            # As old as what was read: of a WireGuard that does not answer, they soon are no evidence.
            yield judges.handshake(node.id, age, self._was_sent(key, session), now=outcome.read_at)
            agreed = None
            if changed is not None and (at := self._from.prober.agreed_at(node.id)) is not None:
                agreed = now - at
            yield judges.rotation(node.id, changed and wall - changed, age, agreed, now=outcome.read_at)

    def _was_sent(self, key: PublicKey, session: Session | None) -> bool:
        """Whether bytes went to this peer since its last handshake."""
        if session is None:
            return False
        stamp, count = self._sent.get(key, (-1.0, 0))
        if stamp != session.last_handshake:
            self._sent[key] = stamp, count = session.last_handshake, session.tx_bytes
        return session.tx_bytes > count or not session.last_handshake

    async def _routes(self, peers: list[Node]) -> list[Reading]:
        """Where would the kernel send to each peer? Asked anew when it announced a change, when the peers changed, and
        now and then; in between, what was found still holds. A large roster is looked at in portions.
        """
        if not self._from.reconciler.outcome.at:
            return []  # before the first pass nothing has been routed anywhere yet
        now, state = time.monotonic(), (self._from.reconciler.announced, self._from.book.roster.revision)
        if state != self._looked_at or now - self._routes_at >= limits.REREAD_EVERY_S:
            self._looked_at, self._routes_at, self._unlooked = state, now, list(peers)
            there = {address for node in peers for address in (node.address4, node.address6)}
            self._leaks = {address: name for address, name in self._leaks.items() if address in there}
        portion, self._unlooked = self._unlooked[:ROUTES_AT_ONCE], self._unlooked[ROUTES_AT_ONCE:]
        names = {address: node.name for node in portion for address in (node.address4, node.address6)}
        try:
            leaks = await self._device.route_leaks(names) if names else ()
        except MeshError as error:
            return [Reading(catalogue.ROUTE, "", catalogue.Verdict.UNKNOWN, now, error.what)]
        self._leaks = {a: name for a, name in self._leaks.items() if a not in names} | {a: names[a] for a in leaks}
        closed = not self._from.reconciler.outcome.error  # the fail-closed routes are part of the plan
        words = [f"{name} ({address}) would leave by another interface" for address, name in self._leaks.items()]
        return [judges.routes(words, closed, now=now)]
