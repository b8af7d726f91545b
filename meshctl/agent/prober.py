"""Echoes through the tunnel: pings by schedule, answers others' pings, keeps statistics per peer (NET-7).

It listens on the node's own mesh addresses only, waits until they exist and binds again when they vanish. It judges
nothing: mesh/integrity.py does. Which peer may be pinged is the caller's to say: the follower of a new pair keeps
silent until a session exists or its turn comes (mesh/liveness.py), because a ping makes WireGuard start a handshake.
"""

from __future__ import annotations

import asyncio
import errno
import heapq
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import takewhile
from typing import Final, NamedTuple

from meshctl.agent import tick
from meshctl.agent.responder import Drop, Pair, authenticate, reply
from meshctl.crypto.identity import Identity
from meshctl.crypto.probe import PairKey, pair_key
from meshctl.mesh import limits, probe
from meshctl.mesh.model import Endpoint, Node, NodeId, Roster
from meshctl.mesh.probe import Echo, Kind, Packet
from meshctl.mesh.schedule import Schedule, schedule

_TICK_S: Final = 0.25  # how often a missing socket is tried, and when a wait for a proof first asks again
_AFTER_TICK_S: Final = limits.WATCH_EVERY_S - limits.ECHO_LOST_AFTER_S
_GRAIN_S: Final = 0.01  # the least rest: timers are not exact
_PATIENCE_MAX_S: Final = 32.0
_RECEIVE_BYTES: Final = 9216  # a jumbo frame: the deep experiments send full-size packets to the same port
_READS_PER_WAKE: Final = 64  # a flood must not starve the other loops of the process
_WAITING_PER_PEER: Final = 8
_EXTRA_PER_ROUND: Final = 32  # suspect or overdue peers on top of the schedule
_SEQUENCES_PER_S: Final = 8  # a restarted node begins above what it used: it may have pinged a peer this often
# linux/in.h, linux/in6.h: IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, IP_PMTUDISC_PROBE
_WHOLE: Final = {socket.AF_INET: (socket.IPPROTO_IP, 10), socket.AF_INET6: (socket.IPPROTO_IPV6, 23)}
_PMTUDISC_PROBE: Final = 3
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
_GONE: Final = frozenset({errno.EINVAL, errno.EADDRNOTAVAIL, errno.ENODEV})  # the socket's own address is no more


class _Sent(NamedTuple):
    pair: Pair
    at: float
    clock_ns: int


class Prober:
    """One node's prober. `update` it with every roster, and `run` it; `echoes` and the counters are for reading."""

    def __init__(
        self,
        identity: Identity,
        endpoint_of: Callable[[NodeId], Endpoint | None],
        on_seen: Callable[[NodeId, Endpoint], None],
        may_ping: Callable[[NodeId], bool] = lambda _: True,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """`endpoint_of`: where our WireGuard sees a peer. `on_seen` hears where a peer's sees us, when that changes."""
        self.sent = self.received = self.replies = 0
        self.drops: Counter[Drop] = Counter()
        self._identity, self._endpoint_of, self._on_seen, self._may_ping = identity, endpoint_of, on_seen, may_ping
        self._monotonic, self._wall_ns = monotonic, wall_ns
        # Told of a peer whose next statement (serial) is in force now, to be followed after so many seconds.
        self.on_go: Callable[[NodeId, int, float], object] = lambda *_: None
        self.on_down: Callable[[], object] = lambda: None  # told when a peer has missed so many that it counts as down
        # By magic: what other experiments say through the same port. Each authenticates its own (`pair`).
        self.others: dict[bytes, Callable[[bytes, tuple[str, int], socket.socket], None]] = {}
        self._me: Node | None = None
        self._raw = probe.raw_id(identity.id)
        self._nodes: dict[NodeId, Node] = {}
        self._pairs: dict[NodeId, Pair] = {}
        self._by_raw: dict[bytes, Pair] = {}
        self._schedule: Schedule | None = None
        self._round = wall_ns() // int(limits.WATCH_EVERY_S * 1e9)
        self._pending: dict[tuple[bytes, int], _Sent] = {}  # in order of sending
        self._sockets: dict[socket.AddressFamily, socket.socket] = {}
        self._proof, self._gone = asyncio.Event(), asyncio.Event()

    # ---- what others ask of it ---------------------------------------------------------------------------------------

    def update(self, me: Node, roster: Roster) -> None:
        """Take a new roster. Who stays keeps its counters; a changed key statement of either end changes the key."""
        mine = self._me
        if mine and (mine.address4, mine.address6) != (me.address4, me.address6):
            self.close()
        renewed = mine is None or mine.statement != me.statement
        nodes = {node.id: node for node in roster.nodes.values() if node.id != me.id}
        if nodes.keys() != self._nodes.keys():
            self._schedule = None
        first, now = self._wall_ns() * _SEQUENCES_PER_S // 10**9, self._monotonic()
        pairs: dict[NodeId, Pair] = {}
        for node in nodes.values():
            pair, bound = self._pairs.get(node.id), (me.statement.fingerprint, node.statement.fingerprint)
            if pair is None:
                pair = Pair(node, self._derivation(me, node), first, bound, now=now)
            elif renewed or self._nodes[node.id] is not node:
                pair.become(node, self._derivation(me, node), bound, now=now)
            pairs[node.id] = pair
        self._me, self._nodes, self._pairs = me, nodes, pairs
        self._by_raw = {pair.raw: pair for pair in pairs.values()}

    def kick(self, ids: Iterable[NodeId]) -> None:
        """Ping these now, as far as they may be pinged."""
        now = self._monotonic()
        for node in ids:
            if (pair := self._pairs.get(node)) and self._may_ping(node):
                self._ping(pair, now)

    def echo(self, node: NodeId) -> Echo:
        """Statistics of one peer, which go on being counted; empty for a node that is no peer."""
        pair = self._pairs.get(node)
        return pair.echo if pair else Echo()

    def echoes(self) -> dict[NodeId, Echo]:
        """Statistics of every peer."""
        return {node: pair.echo for node, pair in self._pairs.items()}

    def is_proven(self, node: NodeId) -> bool:
        """Whether both directions were proven within the last coverage period."""
        at = self.echo(node).last_ok_at
        return at is not None and self._monotonic() - at < self.coverage_s

    def go(self, holds: Iterable[tuple[NodeId, float]], serial: int) -> None:
        """Tell peers that our statement `serial` is in force, and for how many seconds each is to wait. Twice, because
        it cannot be repeated: the sessions it travels in end now.
        """
        for node, hold_s in holds:
            pair = self._pairs.get(node)
            sock = next(iter(self._sockets.values()), None)
            if pair is None or sock is None or pair.key is None:
                continue
            for _ in range(2):
                pair.sequence = (pair.sequence + 1) & 0xFFFFFFFF
                packet = Packet(Kind.GO, self._raw, pair.raw, pair.sequence, 0, self._wall_ns())
                packet = packet._replace(serial=serial, span_us=int(hold_s * 1e6))
                address = pair.addresses[sock.family == socket.AF_INET6]
                self._send(sock, pair.key.seal(probe.pack(packet)), (address, limits.PROBE_PORT))

    def held(self, node: NodeId) -> int:
        """The highest serial of our statements that a peer holds."""
        return self._pairs[node].held if node in self._pairs else 0

    def agreed_at(self, node: NodeId) -> float | None:
        """When (monotonic) a peer last proved that it believes the statements that are in force here."""
        return self._pairs[node].agreed_at if node in self._pairs else None

    def span_s(self, node: NodeId) -> float:
        """How long a peer stood still when our key changed; 0 while it has not told."""
        return self._pairs[node].their_span_us / 1e6 if node in self._pairs else 0.0

    def measured(self, node: NodeId, seconds: float) -> None:
        """How long we stood still when the key of this peer changed; 0 until we know."""
        if node in self._pairs:
            self._pairs[node].span_us = int(seconds * 1e6)

    def pair(self, node: NodeId) -> Pair | None:
        """Addresses and key of one peer, for who sends it something else than echoes."""
        return self._pairs.get(node)

    def pair_of(self, raw: bytes) -> Pair | None:
        """The same, by the raw id that stands in packets."""
        return self._by_raw.get(raw)

    def socket_for(self, address: str) -> socket.socket | None:
        """The socket on our mesh address of that family, if it is there now."""
        return self._sockets.get(socket.AF_INET6 if ":" in address else socket.AF_INET)

    @property
    def coverage_s(self) -> float:
        """Seconds within which every peer is tested."""
        return self._plan().coverage_s

    async def wait_proven(self, node: NodeId | None, timeout_s: float) -> NodeId | None:
        """The peer (None: any) whose both directions were proven after this call; None when time is up.

        It asks on top of the schedule: at once, soon again, then ever less often.
        """
        start = due = self._monotonic()
        patience = _TICK_S
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    if (now := self._monotonic()) >= due:
                        self.kick((node,) if node else self._plan().watch)
                        due, patience = now + patience, min(2 * patience, _PATIENCE_MAX_S)
                    await _set_within(self._proof, _TICK_S)
                    for pair in self._pairs.values():
                        ok_at = pair.echo.last_ok_at
                        if ok_at is not None and ok_at >= start and node in (None, pair.id):
                            return pair.id
        except TimeoutError:
            return None

    async def run(self) -> None:
        """For ever: a round every WATCH_EVERY_S, once there is an address to send from."""
        following = self._monotonic()
        try:
            while True:
                self.bind()
                now = self._monotonic()
                self.expire(now)
                if self._sockets and now >= following:
                    self.turn()
                    # Its answers do not wait for what else is done at a tick; its losses are told with it.
                    following = tick.following(now, limits.WATCH_EVERY_S, later_s=_AFTER_TICK_S)
                await self._rest(following)
        finally:
            self.close()

    async def _rest(self, following: float) -> None:
        """Until a round or an expiry is due, or a socket is gone; a tick while one is missing."""
        whole = len(self._sockets) == len(_FAMILIES)
        first = next(iter(self._pending.values()), None)
        due = following if first is None else min(following, first.at + limits.ECHO_LOST_AFTER_S)
        await _set_within(self._gone, max(due - self._monotonic(), _GRAIN_S) if whole else _TICK_S)

    # ---- sockets -----------------------------------------------------------------------------------------------------

    def bind(self) -> None:
        """Open what can be opened of the two sockets; what cannot yet is tried again at the next tick."""
        if self._me is None:
            return
        for family, address in zip(_FAMILIES, (self._me.address4, self._me.address6), strict=True):
            if family not in self._sockets:
                sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
                try:
                    # Whole or not at all, whatever a route says: the size echoes share this port.
                    sock.setsockopt(*_WHOLE[family], _PMTUDISC_PROBE)
                    sock.bind((str(address), limits.PROBE_PORT))
                except OSError:
                    sock.close()
                    continue
                self._sockets[family] = sock
                asyncio.get_running_loop().add_reader(sock, self._readable, sock)

    def close(self, *families: socket.AddressFamily) -> None:
        """Stop listening, on both families when none is named."""
        for family in families or tuple(self._sockets):
            sock = self._sockets.pop(family)
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()

    def _readable(self, sock: socket.socket) -> None:
        for _ in range(_READS_PER_WAKE):  # the answers to a round come together: a turn of the loop costs 26 us
            try:
                datagram, source = sock.recvfrom(_RECEIVE_BYTES)
            except OSError:
                return
            self.others.get(datagram[:4], self._receive)(datagram, source, sock)

    def _send(self, sock: socket.socket, datagram: bytes, to: tuple[str, int]) -> bool:
        try:
            sock.sendto(datagram, to)
        except OSError as error:
            self.drops[Drop.UNSENT] += 1
            if error.errno in _GONE and self._sockets.get(sock.family) is sock:
                self.close(sock.family)
                self._gone.set()
            return False
        return True

    # ---- packets -----------------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """One round: whom the schedule names, then some who are new, in doubt, or untested for a coverage period."""
        plan = self._plan()
        due = dict.fromkeys(plan.due(self._round))
        overdue = self._monotonic() - plan.coverage_s
        extra = [
            pair for node, pair in self._pairs.items()
            if node not in due and self._wants_more(pair, overdue) and self._may_ping(node)
        ]  # fmt: skip
        self.kick(due)
        self.kick(pair.id for pair in heapq.nsmallest(_EXTRA_PER_ROUND, extra, key=lambda pair: pair.asked_at))
        self._round += 1

    @staticmethod
    def _wants_more(pair: Pair, overdue: float) -> bool:
        tested_at = pair.echo.tested_at
        return tested_at is None or pair.echo.is_suspect or max(pair.asked_at, tested_at) < overdue

    def _ping(self, pair: Pair, now: float) -> None:
        families = _FAMILIES if self._round % 2 else _FAMILIES[::-1]
        sock = next((self._sockets[family] for family in families if family in self._sockets), None)
        pair.asked_at, key = now, pair.key
        if sock is None or key is None or pair.waiting >= _WAITING_PER_PEER:
            return
        clock_ns = self._wall_ns()
        pair.sequence = (pair.sequence + 1) & 0xFFFFFFFF
        seen, turn = self._endpoint_of(pair.id), self._round & 0xFFFFFFFF
        ping = Packet(
            Kind.PING, self._raw, pair.raw, pair.sequence, turn, clock_ns, pair.heard_ns, *pair.place(seen),
            pair.holds, pair.span_us,
        )  # fmt: skip
        pair.sent_ns, pair.waiting = clock_ns, pair.waiting + 1
        self._pending[pair.raw, pair.sequence] = _Sent(pair, now, clock_ns)
        address = pair.addresses[sock.family == socket.AF_INET6]
        self.sent += self._send(sock, key.seal(probe.pack(ping)), (address, limits.PROBE_PORT))

    def _receive(self, datagram: bytes, source: tuple[str, int], sock: socket.socket) -> None:
        now = self._monotonic()
        found = authenticate(datagram, source[0], self._raw, self._by_raw, now=now)
        if isinstance(found, Drop):
            self.drops[found] += 1
            return
        packet, pair, key = found
        before = pair.echo.last_ok_at
        if packet.kind == Kind.PING:
            answer = reply(packet, pair, key, self._endpoint_of(pair.id), clock_ns=self._wall_ns(), now=now)
        elif packet.kind == Kind.GO:
            answer = pair.gate.admit(packet.sequence, now=now) or b""
            if answer == b"":
                self.on_go(pair.id, packet.serial, packet.span_us / 1e6)
        else:
            answer = self._pong(packet, pair, now)
        if isinstance(answer, Drop):
            self.drops[answer] += 1
            return
        if answer:
            self.replies += self._send(sock, answer, source)
        self.received += 1
        seen = packet.endpoint  # mostly the very object of the last time
        if seen is not pair.echo.seen and seen is not None and seen != pair.echo.seen:
            pair.echo.seen = seen
            self._on_seen(pair.id, seen)
        if pair.echo.last_ok_at != before:
            self._proof.set()

    def _pong(self, packet: Packet, pair: Pair, now: float) -> bytes | Drop:
        """No bytes when all is well: a pong is not answered."""
        asked = self._pending.get((packet.sender, packet.sequence))
        if asked is None or asked.clock_ns != packet.echo_ns:
            return Drop.UNASKED
        rtt = now - asked.at
        if rtt > limits.ECHO_LOST_AFTER_S:
            return Drop.LATE
        del self._pending[packet.sender, packet.sequence]
        pair.waiting -= 1
        pair.heard_ns = packet.clock_ns
        pair.echo.answered(rtt, (packet.clock_ns - asked.clock_ns) / 1e9 - rtt / 2, now=now)
        return b""

    def expire(self, now: float) -> None:
        """Count as lost what was not answered in time."""
        late = list(takewhile(lambda item: now - item[1].at > limits.ECHO_LOST_AFTER_S, self._pending.items()))
        for key, asked in late:
            del self._pending[key]
            asked.pair.waiting -= 1
            asked.pair.echo.lost(asked.at, now=now)
            if asked.pair.echo.missed == probe.DOWN_AFTER:
                self.on_down()

    # ---- small helpers -----------------------------------------------------------------------------------------------

    def _plan(self) -> Schedule:
        if self._schedule is None:
            self._schedule = schedule((*self._nodes, self._identity.id), self._identity.id)
        return self._schedule

    def _derivation(self, me: Node, node: Node) -> Callable[[], PairKey]:
        return lambda: pair_key(self._identity.probe, me.statement, node.statement)


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    """Until somebody sets `event`, from now on, or the time is up."""
    event.clear()
    timer = asyncio.get_running_loop().call_later(seconds, event.set)
    try:
        await event.wait()
    finally:
        timer.cancel()
