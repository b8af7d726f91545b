"""Size echoes through the prober's socket: asks peers, answers peers (NET-7, PATH-002, INT-001).

An answer says what arrived and may be large, so each peer has an allowance of bytes; who has used it up is told "busy"
in a packet no larger than any ping, because silence would look like a path that is narrow. Nothing is kept, logged or
answered for strangers. It judges nothing, and holds no timer and no socket of its own.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from meshctl.agent.prober import Prober
from meshctl.agent.responder import Drop, Pair, sender
from meshctl.crypto.probe import PairKey
from meshctl.errors import EnvironmentFault, ProtocolError
from meshctl.mesh import limits, probe, sizing
from meshctl.mesh.model import NodeId
from meshctl.mesh.sizing import HEADER_BYTES, OVERHEAD_BYTES, Allowance, Head, Kind

ALLOWED_PER_S: Final = 64 * 1024.0  # a search over a jumbo path, the dearest there is, asks for 200 kB
ALLOWED_BURST: Final = 256 * 1024.0


class Answer(NamedTuple):
    """One exchange that came back. `intact`: the payload is what was sent. The rest is the peer's word."""

    intact_out: bool
    intact_in: bool
    mtu: int  # of its interface
    route: int  # limit of its route to us, 0: none
    busy: bool = False


@dataclass(slots=True)
class _Asked:
    peer: bytes
    answer: asyncio.Future[Answer]
    digest: bytes
    back: int


class Line(NamedTuple):
    """How a peer is reached now. `overhead`: bytes of an IP packet that are no datagram."""

    id: NodeId
    pair: Pair
    key: PairKey
    sock: socket.socket
    address: str
    overhead: int


class Sizing:
    """`exchange` asks; `receive` is the prober's handler of this magic. `heard` is told to each peer."""

    def __init__(
        self,
        prober: Prober,
        me: NodeId,
        mtu: Callable[[], int],
        route: Callable[[NodeId], int],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`mtu`: of our interface; `route`: limit of our route to a peer, once it is in force, else 0."""
        self.heard: dict[NodeId, int] = {}  # the largest packet that arrives from a peer, where that is not all
        # Told of a peer to which our packets are too large, by its own word.
        self.on_narrow: Callable[[NodeId], object] = lambda _: None
        self._prober, self._me, self._mtu, self._route = prober, probe.raw_id(me), mtu, route
        self._monotonic = monotonic
        self._asked: dict[int, _Asked] = {}
        self._allowances: dict[bytes, Allowance] = {}
        prober.others[sizing.MAGIC] = self.receive

    def line(self, peer: NodeId) -> Line:
        """Raises EnvironmentFault while there is no way to send to this peer."""
        pair = self._prober.pair(peer)
        for version, address in zip(OVERHEAD_BYTES, pair.addresses if pair else (), strict=False):
            sock = self._prober.socket_for(address)
            if pair and pair.key and sock:
                return Line(peer, pair, pair.key, sock, address, OVERHEAD_BYTES[version])
        raise EnvironmentFault("there is no mesh address to send from", "the next pass gives the interface one")

    async def exchange(self, line: Line, out: int, back: int, within_s: float) -> Answer | None:
        """Send an IP packet of `out` bytes and ask for one of `back`; None when no answer came in time.

        Raises EnvironmentFault when the kernel does not take it.
        """
        nonce, payload = secrets.randbits(64), os.urandom(out - line.overhead - HEADER_BYTES)
        digest, datagram = sizing.digest(payload), back - line.overhead
        head = self._head(Kind.PING, line.id, line.pair, nonce, datagram, digest)
        asked = _Asked(line.pair.raw, asyncio.get_running_loop().create_future(), digest, datagram)
        self._asked[nonce] = asked
        try:
            line.sock.sendto(line.key.seal(sizing.pack(head)) + payload, (line.address, limits.PROBE_PORT))
            async with asyncio.timeout(within_s):
                return await asked.answer
        except TimeoutError:
            return None
        except OSError as error:
            raise EnvironmentFault(f"a packet of {out} bytes was not sent: {error.strerror}") from error
        finally:
            del self._asked[nonce]

    def receive(self, datagram: bytes, source: tuple[str, int], sock: socket.socket) -> None:
        """One datagram with our magic, whoever sent it."""
        if refused := self._take(datagram, source, sock):
            self._prober.drops[refused] += 1

    def _take(self, datagram: bytes, source: tuple[str, int], sock: socket.socket) -> Drop | None:
        try:
            head = sizing.parse(datagram)
        except ProtocolError:
            return Drop.MALFORMED
        pair = sender(head.sender, head.receiver, source[0], self._me, self._prober.pair_of)
        if isinstance(pair, Drop):
            return pair
        now = self._monotonic()
        key = pair.key_of(datagram[:HEADER_BYTES], now=now)
        if key is None:
            return Drop.FORGED
        if head.kind is not Kind.PING:
            return self._answered(head, datagram)
        if head.heard and not 0 < self._route(pair.id) <= head.heard:
            self.on_narrow(pair.id)
        return self._answer(head, datagram, pair, key, sock, source, now=now)

    def _answer(
        self, ping: Head, datagram: bytes, pair: Pair, key: PairKey, sock: socket.socket, to: tuple[str, int],
        *, now: float,
    ) -> Drop | None:  # fmt: skip
        allowance = self._allowances.get(pair.raw)
        if allowance is None:
            # Who has left is forgotten when somebody new asks.
            kept = {raw: a for raw, a in self._allowances.items() if self._prober.pair_of(raw)}
            allowance = Allowance(ALLOWED_PER_S, ALLOWED_BURST)
            self._allowances = kept | {pair.raw: allowance}
        if allowance.take(max(len(datagram), ping.back), now=now):
            payload, kind = os.urandom(ping.back - HEADER_BYTES), Kind.PONG
            arrived = sizing.digest(datagram[HEADER_BYTES:])
        else:
            payload, kind, arrived = b"", Kind.BUSY, bytes(sizing.DIGEST_BYTES)
        head = self._head(kind, pair.id, pair, ping.nonce, 0, sizing.digest(payload))._replace(arrived=arrived)
        try:
            sock.sendto(key.seal(sizing.pack(head)) + payload, to)
        except OSError:
            return Drop.UNSENT
        return Drop.RATE if kind is Kind.BUSY else None

    def _answered(self, head: Head, datagram: bytes) -> Drop | None:
        asked = self._asked.get(head.nonce)
        if asked is None or asked.peer != head.sender or asked.answer.done():
            return Drop.UNASKED
        payload = datagram[HEADER_BYTES:]
        intact_in = len(datagram) == asked.back and sizing.digest(payload) == head.digest
        busy = head.kind is Kind.BUSY
        asked.answer.set_result(Answer(head.arrived == asked.digest, intact_in, head.mtu, head.route, busy))
        return None

    def _head(self, kind: Kind, peer: NodeId, pair: Pair, nonce: int, back: int, digest: bytes) -> Head:
        here = min(self._mtu(), 0xFFFF), self._route(peer), self.heard.get(peer, 0)
        return Head(kind, self._me, pair.raw, nonce, back, *here, digest)
