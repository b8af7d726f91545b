"""The other end of an experiment on the wire: watches for a peer that asks, counts, and tells it what it saw (NET-7).

Speaks with the peers' witnesses inside the tunnel, on the port of the echoes. Everything is authenticated with the
pair's key before it costs anything, bounded per peer, and answered with no more bytes than were asked with. It judges
nothing and keeps nothing once an experiment is over; the tap is open while somebody asked for it, seconds at most.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from meshctl.agent.prober import Prober
from meshctl.agent.responder import Drop, Pair, sender
from meshctl.agent.tap import NO_RIGHT, Leak, Seen, Tap
from meshctl.crypto.probe import PairKey
from meshctl.errors import EnvironmentFault, ProtocolError
from meshctl.mesh import limits
from meshctl.mesh.model import Endpoint, NodeId
from meshctl.mesh.probe import raw_id
from meshctl.mesh.witness import (
    DIGEST_BYTES,
    MAGIC,
    NUMBERS,
    Head,
    Kind,
    Report,
    Sight,
    Standing,
    digests_of,
    pack,
    pack_report,
    parse,
    report_of,
)

WATCHED_S: Final = 16.0  # longer than an experiment takes; it says when it is done
_WATCHES: Final = 8  # peers at once
_REST_S: Final = 0.5  # between two experiments of one peer
_ANSWERS: Final = 48  # per experiment: a dozen are needed
_SIGHTS: Final = 20_000  # messages remembered while the tap is open

Answer = tuple[Standing, Report | None]


def digest(message: bytes) -> bytes:
    """By which both ends name a message."""
    return hashlib.blake2s(message, digest_size=DIGEST_BYTES).digest()


class _Watch:
    """One experiment of one peer."""

    def __init__(self, experiment: bytes, timer: asyncio.TimerHandle) -> None:
        self.experiment, self.timer, self.answers = experiment, timer, 0
        self.delivered: Counter[int] = Counter()
        self.leaks = 0
        self.leak = Leak(b"", b"")


class Witness:
    """Answers peers; `ask` is for our own experiments."""

    def __init__(
        self,
        prober: Prober,
        tap: Tap,
        me: NodeId,
        endpoint_of: Callable[[NodeId], Endpoint | None],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._prober, self._tap, self._endpoint_of, self._monotonic = prober, tap, endpoint_of, monotonic
        self._raw = raw_id(me)
        self._watches: dict[NodeId, _Watch] = {}
        self._asked_at: dict[NodeId, float] = {}
        self._wire: Counter[bytes] = Counter()
        self._passed: Counter[bytes] = Counter()
        self._source: dict[bytes, tuple[bytes, int]] = {}
        self._awaited: dict[tuple[Kind, bytes], asyncio.Future[Answer]] = {}
        prober.others[MAGIC] = self._receive

    # ---- for our own experiments -------------------------------------------------------------------------------------

    async def ask(
        self, question: bytes, experiment: bytes, answer: Kind, send: Callable[[bytes], object], *, patience_s: float
    ) -> Answer | None:
        """Send a sealed question, a few times if need be; the peer's answer, or None."""
        awaited: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._awaited[answer, experiment] = awaited
        try:
            for _ in range(4):
                send(question)
                done, _ = await asyncio.wait({awaited}, timeout=patience_s / 4)
                if done:
                    return awaited.result()
            return None
        finally:
            del self._awaited[answer, experiment]

    # ---- what peers ask ----------------------------------------------------------------------------------------------

    def _receive(self, datagram: bytes, source: tuple[str, int], sock: socket.socket) -> None:
        found = self._authentic(datagram, source[0])
        if isinstance(found, Drop):
            self._prober.drops[found] += 1
            return
        head, pair, key = found
        watch = self._watches.get(pair.id)
        mine = watch if watch and watch.experiment == head.experiment else None
        match head.kind:
            case Kind.CANARY:
                if mine and head.number < NUMBERS:
                    mine.delivered[head.number] += 1
            case Kind.ASK:
                answer = self._back(head, Kind.READY, self._standing(pair.id, head.experiment))
                self._send(sock, key.seal(pack(answer)), source, pair.id)
            case Kind.QUERY if mine:
                facts = pack_report(self._back(head, Kind.REPORT), self._report(pair.id, mine, datagram))
                self._send(sock, key.seal(facts), source, pair.id)
            case Kind.DONE if mine:
                self._end(pair.id, mine)
            case Kind.READY | Kind.REPORT:
                awaited = self._awaited.get((head.kind, head.experiment))
                if awaited and not awaited.done():
                    awaited.set_result((head.standing, report_of(datagram) if head.kind is Kind.REPORT else None))

    def _authentic(self, datagram: bytes, source: str) -> tuple[Head, Pair, PairKey] | Drop:
        try:
            head, tagged = parse(datagram)
        except ProtocolError:
            return Drop.MALFORMED
        # A canary may come from a wrong address: whether it does is what an experiment wants to know.
        expected = None if head.kind is Kind.CANARY else source
        pair = sender(head.sender, head.receiver, expected, self._raw, self._prober.pair_of)
        if isinstance(pair, Drop):
            return pair
        if (key := pair.key) is None or not key.is_genuine(tagged):
            return Drop.FORGED
        return head, pair, key

    def _back(self, head: Head, kind: Kind, standing: Standing = Standing.OPEN) -> Head:
        return Head(kind, standing, head.receiver, head.sender, head.experiment, head.number)

    def _send(self, sock: socket.socket, answer: bytes, to: tuple[str, int], peer: NodeId) -> None:
        watch = self._watches.get(peer)
        if watch is not None:
            watch.answers += 1
            if watch.answers > _ANSWERS:
                self._prober.drops[Drop.RATE] += 1
                return
        try:
            sock.sendto(answer, (to[0], limits.PROBE_PORT))
        except OSError:
            self._prober.drops[Drop.UNSENT] += 1

    def _standing(self, peer: NodeId, experiment: bytes) -> Standing:
        """Watch for this peer from now on, if we can. A new experiment of a peer ends its last one."""
        watch, now = self._watches.get(peer), self._monotonic()
        if watch and watch.experiment == experiment:
            return Standing.OPEN
        if now - self._asked_at.get(peer, float("-inf")) < _REST_S:
            return Standing.BUSY
        if watch:
            self._end(peer, watch)
        if len(self._watches) >= _WATCHES:
            return Standing.BUSY
        self._asked_at = {node: at for node, at in self._asked_at.items() if now - at < _REST_S} | {peer: now}
        try:
            self._tap.hold()
        except EnvironmentFault as error:
            return Standing.POWERLESS if error.what == NO_RIGHT else Standing.BROKEN
        if not self._watches:
            self._tap.on_seen.append(self._saw)
            self._tap.on_leak.append(self._leaked)
        timer = asyncio.get_running_loop().call_later(WATCHED_S, self._expire, peer, experiment)
        self._watches[peer] = _Watch(experiment, timer)
        return Standing.OPEN

    def _expire(self, peer: NodeId, experiment: bytes) -> None:
        if (watch := self._watches.get(peer)) and watch.experiment == experiment:
            self._end(peer, watch)

    def _end(self, peer: NodeId, watch: _Watch) -> None:
        watch.timer.cancel()
        del self._watches[peer]
        if not self._watches:
            self._tap.on_seen.remove(self._saw)
            self._tap.on_leak.remove(self._leaked)
            self._wire, self._passed, self._source = Counter(), Counter(), {}
        self._tap.release()

    # ---- what is seen ------------------------------------------------------------------------------------------------

    def _saw(self, seen: Seen) -> None:
        if seen.outgoing or len(self._source) >= _SIGHTS:
            return
        name = digest(seen.message)
        if seen.behind:
            self._passed[name] += 1
        else:
            self._wire[name] += 1
            self._source[name] = seen.datagram.source, seen.datagram.source_port

    def _leaked(self, leak: Leak) -> None:
        for watch in self._watches.values():
            watch.leaks += 1
            watch.leak = leak

    def _report(self, peer: NodeId, watch: _Watch, query: bytes) -> Report:
        here = self._endpoint_of(peer)
        current = (here.address.packed, here.port) if here else None
        sights = tuple(
            Sight(self._wire[name], self._passed[name], current is not None and self._source.get(name) == current)
            for name in digests_of(query)
        )
        return Report(
            self._tap.drops(), watch.leaks, _wide(watch.leak.source), _wide(watch.leak.target), sights, watch.delivered
        )


def _wide(address: bytes) -> bytes:
    """16 bytes; an IPv4 address as the IPv6 one it maps to."""
    return b"\0" * 10 + b"\xff\xff" + address if len(address) == 4 else address.ljust(16, b"\0")
