"""Follows the registry: one long-lived session, resumed at the revision in hand, moved to another coordinator by
itself (NET-2).

Brings frames to the book and carries reports up. **Law: losing the coordinator cannot reach code that touches the
interface**: a broken stream ends here, as a state that health may read.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import grpc

from meshctl.agent import channel
from meshctl.agent.book import Book
from meshctl.agent.join import Member
from meshctl.agent.ledger import Ledger
from meshctl.crypto.identity import Identity
from meshctl.errors import MeshError, ProtocolError, RefusedError, UnreachableError
from meshctl.events import Events, SessionClosed, SessionOpened, StatementRefused
from meshctl.mesh import limits, pacing
from meshctl.mesh.integrity import Key
from meshctl.mesh.matrix import MatrixRow
from meshctl.mesh.model import Candidate, MeshInfo, NodeId
from meshctl.mesh.psk_packets import Letter
from meshctl.mesh.rotation import Order
from meshctl.mesh.rotation import Report as TurnReport
from meshctl.wire import session, status
from meshctl.wire.codec import FindingRow
from meshctl.wire.session import Beat, UpFrame

EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]
FIRST_BACKOFF_S = 0.2
FAILURES_BEFORE_ASKING = 5  # the pauses before add up to some seconds: a coordinator that restarts is back by then
LETTERS_EVERY_S = 0.5
LETTERS_KEPT = 1024  # one to everybody, at the size where a full mesh ends; what is too much is lost, and said again
SNAPSHOTS_IN_A_ROW = 3  # a coordinator that keeps sending maps which do not fit is left alone for a while


@dataclass
class Link:
    """What is known of the connection: the only thing other modules see of it."""

    coordinator: str = ""
    connected: bool = False
    since: float = 0.0  # unix seconds of the last change of `connected`
    beat: Beat | None = None
    beat_at: float = 0.0  # monotonic
    clock_offset_s: float = 0.0  # server minus ours
    last_error: str = ""
    seen_address: str = ""  # where the coordinator sees our connection come from
    signed: Mapping[Key, FindingRow] = field(default_factory=dict)  # open findings as they were told
    order: Order | None = None  # what the rotation whose turn is ours asks of us, as long as the session lives


@dataclass(frozen=True, slots=True)
class Report:
    """What goes up when it says something new: ages and evidence alone are not news."""

    revision: int
    digest: bytes
    verdict: str
    found: frozenset[tuple[str, str, str]]  # code, subject, verdict
    findings: tuple[FindingRow, ...] = field(compare=False)
    candidates: tuple[Candidate, ...]
    rotation: TurnReport | None = None
    row: MatrixRow | None = None  # made anew at most once in a coverage period (agent/health.py)
    ended: Mapping[Key, tuple[str, str]] = field(default_factory=dict, compare=False)  # what closed those not found now

    def is_news(self, sent: Report | None) -> bool:
        """Whether to send it. What is said of a turn is said again whenever its author makes it anew."""
        return self != sent or (self.rotation is not None and self.rotation is not sent.rotation)


class Follower:
    """One session at a time. `report()` gives the newest report, `dirty` wakes the sender, `on_map` tells of a new
    roster.
    """

    def __init__(
        self,
        member: Callable[[], Member],
        identity: Identity,
        book: Book,
        report: Callable[[], Report | None],
        on_map: Callable[[], None],
        renew: Callable[[], Awaitable[None]],
        adopt: Callable[[MeshInfo], None],
        events: Events,
    ) -> None:
        self._ledger = Ledger(identity, lambda: member().mesh.id)
        self._welcomed = asyncio.Event()
        self.link = Link(signed=self._ledger.open)
        self.dirty = asyncio.Event()
        self.reconnect = asyncio.Event()
        self._member, self._identity, self._book = member, identity, book
        self._told: dict[str, str] = {}
        self._report, self._on_map, self._renew, self._adopt, self._events = report, on_map, renew, adopt, events
        self._again = False
        self._deaf_until = 0.0
        self.on_order: Callable[[], object] = lambda: None
        self.on_letter: Callable[[Letter], object] = lambda _: None
        self._letters: deque[Letter] = deque(maxlen=LETTERS_KEPT)
        self._mail, self._writing = asyncio.Event(), asyncio.Lock()

    def post(self, letter: Letter) -> None:
        """Have the coordinator carry it, soon and if it can."""
        self._letters.append(letter)
        self._mail.set()

    async def run(self) -> None:
        """For ever: connect, follow, and on any end wait a little and try the next coordinator."""
        failures = 0
        while True:
            for address in self._order():
                opened = time.monotonic()
                try:
                    await self._session(address)
                    self.link.last_error = ""
                except MeshError as error:
                    self.link.last_error = error.what
                self._down()
                served = time.monotonic() - opened > limits.HEARTBEAT_S or self.reconnect.is_set()
                failures = 0 if served else failures + 1
                self.reconnect.clear()
                if failures and failures % FAILURES_BEFORE_ASKING == 0:
                    await self._ask_why()
                await asyncio.sleep(random.uniform(0.5, 1) * self._pause(failures))  # noqa: S311 - jitter, no secret

    def _pause(self, failures: int) -> float:
        """Grows to RECONNECT_MAX_S, and with the mesh: all of its nodes come back at once."""
        return min(FIRST_BACKOFF_S * 2.0 ** min(failures, 10), pacing.longest_backoff_s(self._size))

    @property
    def _size(self) -> int:
        return len(self._book.roster.nodes)

    async def _ask_why(self) -> None:
        """A front refuses an expired or revoked certificate without a word: the way that needs none tells."""
        try:
            await self._renew()
        except RefusedError as error:
            self.link.last_error = error.what
        except MeshError:
            pass

    def _order(self) -> list[str]:
        addresses = list(self._member().mesh.coordinators)
        random.shuffle(addresses)
        addresses.sort(key=lambda address: address == self.link.coordinator)  # the one that was left comes last
        return addresses

    def _down(self) -> None:
        self.link.order = None
        if self.link.connected:
            who, lasted = self._identity.id, time.time() - self.link.since
            self._events.emit(SessionClosed(node=who, why=self.link.last_error, lasted_s=lasted))
            self.link.connected, self.link.since = False, time.time()

    async def _session(self, address: str) -> None:
        member = self._member()
        self._welcomed.clear()
        async with channel.open_channel(address, member.mesh.ca, self._identity, member.certificate) as wire:
            method: Any = wire.stream_stream(session.METHOD, session.serialize_up, None)
            call = method()
            self.link.coordinator = address
            try:
                resume = self._book.roster.incarnation, self._book.roster.revision, self._book.map_hash
                await self._write(call, UpFrame(resume=resume))
                async with asyncio.TaskGroup() as group:
                    senders = [group.create_task(self._send(call)), group.create_task(self._carry(call))]
                    await self._receive(call, address)
                    for sender in senders:
                        sender.cancel()
            except* (grpc.aio.AioRpcError, asyncio.InvalidStateError, MeshError) as errors:  # either half may be first
                first = _first(errors)
                raise first if isinstance(first, MeshError) else status.error(first, f"coordinator {address}") from None
            finally:
                call.cancel()

    async def _receive(self, call: Any, address: str) -> None:
        misfits = 0
        while not self.reconnect.is_set():
            try:
                async with asyncio.timeout(pacing.silence_s(self._size)):
                    raw = await call.read()
            except TimeoutError:
                raise ProtocolError(f"coordinator {address} fell silent") from None
            if raw is EOF:
                raise status.meant(await call.code(), await call.details() or "", f"coordinator {address}")
            frame = session.decode_down(raw)
            for letter in frame.letters:
                self.on_letter(letter)
            if frame.mesh:
                self._adopt(frame.mesh)
            if frame.order:  # before anybody believes that we are connected: whose turn it is comes with the welcome
                self.link.order = frame.order if frame.order.rotation else None
                self.on_order()
            if frame.beat:
                self._beat(frame.beat)
                self._leave_if_deaf(frame.beat, address)
            if frame.moves_map:
                incarnation = self._member().mesh.incarnation
                if self._book.take(frame, incarnation):
                    misfits = 0
                    if not frame.more:
                        self._tell_refused()
                        self._on_map()
                else:
                    misfits += 1
                    if misfits > SNAPSHOTS_IN_A_ROW:
                        raise ProtocolError(f"coordinator {address} sends maps that do not match their hash")
                    self._again = True
                    self.dirty.set()

    def _leave_if_deaf(self, beat: Beat, address: str) -> None:
        """A coordinator that cannot hear the registry says so: another may. Not over and over, if none can."""
        if beat.registry_age_s > limits.REGISTRY_OLD_S and self._deaf_until < time.monotonic():
            pause = random.uniform(1, 2) * limits.REGISTRY_MOVE_EVERY_S  # noqa: S311 - jitter, no secret
            self._deaf_until = time.monotonic() + pause
            if len(self._member().mesh.coordinators) > 1:
                what = f"coordinator {address} has not heard the registry for {beat.registry_age_s:.0f} s"
                raise UnreachableError(what, "another one is tried")

    def _tell_refused(self) -> None:
        """An event for each key statement refused, once per reason."""
        for node, why in self._book.refused.items() - self._told.items():
            self._events.emit(StatementRefused(node=NodeId(node), why=why))
        self._told = dict(self._book.refused)

    def _beat(self, beat: Beat) -> None:
        self.link.beat, self.link.beat_at = beat, time.monotonic()
        self.link.seen_address = beat.seen_address or self.link.seen_address
        self.link.clock_offset_s = beat.now - time.time()
        if not self.link.connected:
            self.link.connected, self.link.since = True, time.time()
            who = self._identity.id
            self._events.emit(SessionOpened(node=who, revision=self._book.roster.revision))
            self.dirty.set()
        if not self._welcomed.is_set():  # what is signed says no more than this coordinator has not heard
            self._ledger.begin(beat.heard)
            self._welcomed.set()

    async def _write(self, call: Any, frame: UpFrame) -> None:
        async with self._writing:  # grpc takes one at a time
            await call.write(session.encode_up(frame))

    async def _carry(self, call: Any) -> None:
        await self._welcomed.wait()
        while True:
            await self._mail.wait()
            size = min(len(self._letters), session.LETTERS_PER_FRAME)
            letters = tuple(self._letters.popleft() for _ in range(size))
            if not self._letters:
                self._mail.clear()
            await self._write(call, UpFrame(letters=letters))
            await asyncio.sleep(LETTERS_EVERY_S)

    async def _send(self, call: Any) -> None:
        sent, said = None, float("-inf")
        await self._welcomed.wait()
        while True:
            self.dirty.clear()
            report = self._report()
            if self._again:
                self._again = False
                await self._write(call, UpFrame(again=True))
            if report and report.is_news(sent):
                moved = sent is None or report.candidates != sent.candidates
                said_row = sent.row if sent else None
                findings, closed = self._ledger.tell(report.findings, report.ended)
                await self._write(
                    call,
                    UpFrame(
                        applied=(report.revision, report.digest, report.verdict),
                        findings=findings,
                        closed=closed,
                        candidates=report.candidates if moved else None,
                        rotation=report.rotation,
                        row=report.row if report.row != said_row else None,
                    ),
                )
                sent, said = report, time.monotonic()
            await self.dirty.wait()
            await self._pace(sent, said)

    async def _pace(self, sent: Report | None, said: float) -> None:
        """Wait as pacing.py says, unless there is something to say that somebody waits for."""
        chance = random.random()  # noqa: S311 - jitter, no secret
        with suppress(TimeoutError):
            async with asyncio.timeout(pacing.report_after_s(self._size, time.monotonic() - said, chance=chance)):
                while not (self._again or self._has_turn_to_tell(sent)):
                    self.dirty.clear()
                    await self.dirty.wait()

    def _has_turn_to_tell(self, sent: Report | None) -> bool:
        report = self._report()
        told = report.rotation if report else None
        return told is not None and (sent is None or told is not sent.rotation)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first leaf: what ended the session."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
