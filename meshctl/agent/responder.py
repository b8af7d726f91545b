"""What happens to a datagram: who sent it, may it be answered, and with which bytes (NET-7).

Pure: bytes and `now` in, bytes or the reason for silence out; the prober owns the sockets. Checks run from cheap to
dear, and a datagram that fails one costs a counter: nothing is kept, logged or answered for strangers.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Final

from meshctl.crypto.probe import PairKey
from meshctl.errors import ProtocolError, TrustError
from meshctl.mesh import probe
from meshctl.mesh.model import Endpoint, Node
from meshctl.mesh.probe import Echo, Kind, Packet, Place

_REPLIES_PER_S: Final = 10.0  # a peer's schedule asks once in 2 s; a join or a proof asks four times a second
_REPLIES_BURST: Final = 20.0
_REPLAY_WINDOW: Final = 64  # pings that may overtake each other; IPsec's customary window
_RESYNC_AFTER_S: Final = 30.0  # silence after which any packet may be the first of a peer that restarted
_BEFORE_S: Final = 30.0  # for how long the key from before a rotation is taken: the other end may hear of it later
_HALF: Final = 1 << 31
_MASK: Final = (1 << 32) - 1


class Drop(StrEnum):
    """Why a datagram was ignored: a bounded code for metrics."""

    MALFORMED = "malformed"
    STRANGER = "stranger"  # no node of the roster
    MISDIRECTED = "misdirected"  # meant for another node
    SOURCE = "source"  # not from the address of the node it names
    FORGED = "forged"  # wrong tag
    REPLAYED = "replayed"
    RATE = "rate"
    UNASKED = "unasked"  # a pong to no outstanding ping
    LATE = "late"  # a pong after its ping was counted as lost
    UNSENT = "unsent"  # ours: the kernel did not take it


class Gate:
    """How many pings of one peer are answered, and each at most once."""

    __slots__ = ("_at", "_highest", "_refused", "_seen", "_tokens")

    def __init__(self) -> None:
        self._highest, self._seen = 0, 0
        self._refused: int | None = None  # the last one that was far behind
        self._at = float("-inf")
        self._tokens = _REPLIES_BURST

    def admit(self, sequence: int, *, now: float) -> Drop | None:
        """None: answer it. Sequences are compared modulo 2**32 (RFC 1982). A peer that restarted with an earlier clock
        is far behind: it is believed with its second packet, for one alone may be a replay.
        """
        if now - self._at > _RESYNC_AFTER_S:
            self._highest, self._seen, self._refused = sequence - 1 & _MASK, 0, None
            self._tokens, self._at = _REPLIES_BURST, now
        ahead = sequence - self._highest & _MASK
        behind = self._highest - sequence & _MASK
        newer = 0 < ahead < _HALF
        if not newer and behind >= _REPLAY_WINDOW:
            refused, self._refused = self._refused, sequence
            newer = refused is not None and 0 < (sequence - refused & _MASK) < _REPLAY_WINDOW
        if not newer and (behind >= _REPLAY_WINDOW or self._seen >> behind & 1):
            return Drop.REPLAYED
        tokens = min(self._tokens + (now - self._at) * _REPLIES_PER_S, _REPLIES_BURST)
        self._at = now
        if tokens < 1:
            self._tokens = tokens
            return Drop.RATE
        self._tokens = tokens - 1
        if newer:
            self._seen = (self._seen << min(ahead, _REPLAY_WINDOW) | 1) & ((1 << _REPLAY_WINDOW) - 1)
            self._highest = sequence
        else:
            self._seen |= 1 << behind
        return None


class Pair:
    """One peer as its packets see it. Its key is derived when first needed, from both statements."""

    __slots__ = (
        "_before", "_before_until", "_bound", "_derive", "_key", "_place", "_seen", "addresses", "agreed_at",
        "asked_at", "echo", "gate", "heard_ns", "held", "holds", "id", "raw", "sent_ns", "sequence", "span_us",
        "their_span_us", "waiting",
    )  # fmt: skip

    def __init__(
        self, node: Node, derive: Callable[[], PairKey], sequence: int, bound: tuple[bytes, bytes], *, now: float
    ) -> None:
        """`sequence`, of the first ping, grows with the wall clock: a restart does not look like a replay. `bound` are
        the fingerprints of the two statements that the key is bound to.
        """
        self.id, self.raw = node.id, probe.raw_id(node.id)
        self.sequence = sequence & _MASK
        self.heard_ns = 0  # clock in the last packet from the peer
        self.sent_ns = 0  # clock in the last packet to the peer
        self.waiting = 0  # pings without a verdict
        self.asked_at = now
        self.gate, self.echo = Gate(), Echo()
        self.held = 0  # highest serial of our statements that the peer says it holds
        self.span_us = self.their_span_us = 0  # how long each end stood still when the other's key changed
        self.agreed_at: float | None = None  # last packet whose tag is bound to the statements now in force
        self._bound = bound
        self._before: PairKey | None = None
        self._before_until = float("-inf")
        self._derive: Callable[[], PairKey] | None = derive
        self._key: PairKey | None = None
        self._seen: Endpoint | None = None
        self._place: Place = probe.NOWHERE
        self.become(node, derive, bound, now=now)

    def __repr__(self) -> str:
        return f"Pair({self.id})"

    def become(self, node: Node, derive: Callable[[], PairKey], bound: tuple[bytes, bytes], *, now: float) -> None:
        """The peer's addresses or a key statement changed; counters and windows stay."""
        ours = (socket.AF_INET, node.address4.packed), (socket.AF_INET6, node.address6.packed)
        self.addresses = tuple(socket.inet_ntop(*address) for address in ours)  # as sockets spell them, v4 first
        self.holds = node.newest & _MASK
        if bound != self._bound:
            self._before, self._before_until = self.key, now + _BEFORE_S
            self._bound, self._derive, self._key = bound, derive, None
            self.their_span_us = 0

    def key_of(self, datagram: bytes, *, now: float) -> PairKey | None:
        """Which of our keys its tag was made with: the one in force or, for a while, the one before."""
        key = self._key or self.key
        if key is not None and key.is_genuine(datagram):
            self.agreed_at = now
            return key
        if self._before is not None and now < self._before_until and self._before.is_genuine(datagram):
            return self._before
        return None

    def place(self, endpoint: Endpoint | None) -> Place:
        """Where our WireGuard sees the peer, as packets carry it: made anew when it has moved."""
        if endpoint is not self._seen:
            self._seen, self._place = endpoint, probe.place(endpoint)
        return self._place

    @property
    def key(self) -> PairKey | None:
        """None for a crafted statement, with which there is no key."""
        if self._derive is not None:
            derive, self._derive = self._derive, None
            try:
                self._key = derive()
            except TrustError:
                self._key = None
        return self._key


def sender(
    raw: bytes, receiver: bytes, source: str | None, me: bytes, pair_of: Callable[[bytes], Pair | None]
) -> Pair | Drop:
    """Who a packet says it is from, before its tag is looked at; from cheap to dear. `source`: None is not compared."""
    pair = pair_of(raw)
    if pair is None:
        return Drop.STRANGER
    if receiver != me:
        return Drop.MISDIRECTED
    return pair if source is None or source in pair.addresses else Drop.SOURCE


def authenticate(
    datagram: bytes, source: str, me: bytes, pairs: Mapping[bytes, Pair], *, now: float
) -> tuple[Packet, Pair, PairKey] | Drop:
    """Who sent this to me? `source` is the address it came from, which WireGuard binds to the sender's key."""
    try:
        packet = probe.parse(datagram)
    except ProtocolError:
        return Drop.MALFORMED
    pair = sender(packet.sender, packet.receiver, source, me, pairs.get)
    if isinstance(pair, Drop):
        return pair
    key = pair.key_of(datagram, now=now)
    if key is None:
        pair.echo.was_forged(now=now)
        return Drop.FORGED
    if packet.kind != Kind.GO:
        pair.held = max(pair.held, packet.serial)
        if pair.agreed_at == now:
            pair.their_span_us = packet.span_us
    return packet, pair, key


def reply(
    ping: Packet, pair: Pair, key: PairKey, endpoint: Endpoint | None, *, clock_ns: int, now: float
) -> bytes | Drop:
    """The pong for an authenticated ping; `endpoint` is where our WireGuard sees the peer."""
    if refused := pair.gate.admit(ping.sequence, now=now):
        return refused
    if ping.echo_ns and ping.echo_ns == pair.sent_ns:
        pair.echo.proven(now=now)
    pair.heard_ns, pair.sent_ns = ping.clock_ns, clock_ns
    pong = Packet(
        Kind.PONG, ping.receiver, ping.sender, ping.sequence, ping.round, clock_ns, ping.clock_ns,
        *pair.place(endpoint), pair.holds, pair.span_us,
    )  # fmt: skip
    return key.seal(probe.pack(pong))
