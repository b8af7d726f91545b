"""Packets about pre-shared keys through the prober's socket: sends, authenticates, puts halves together (NET-6).

Decides nothing and keeps no key. Whatever comes is dropped and counted before anything is kept, unless a peer of the
roster tagged it with the pair's key: at most one unfinished exchange per peer is held, and ten packets a second taken.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Final

from meshctl.agent.prober import Prober
from meshctl.agent.responder import Drop, Gate, Pair, sender
from meshctl.crypto import kem
from meshctl.errors import ProtocolError
from meshctl.mesh import limits, psk_packets
from meshctl.mesh.model import NodeId
from meshctl.mesh.probe import raw_id
from meshctl.mesh.psk import Bunch, Heard
from meshctl.mesh.psk_packets import MAGIC, PARTS, Head, Kind, Letter

_SEQUENCES_PER_S: Final = 32  # a restarted agent begins above what it used
_MASK: Final = 0xFFFFFFFF
_NO_MARK: Final = bytes(psk_packets.MARK_BYTES)
_HALVED: Final = frozenset({Kind.OFFER, Kind.ANSWER})


class Talk:
    """`heard` is what each peer last said of its keys."""

    def __init__(
        self,
        prober: Prober,
        me: NodeId,
        bunch_of: Callable[[NodeId], Bunch | None],
        told: Callable[[NodeId, Head, bytes], None],
        post: Callable[[Letter], None],
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`bunch_of`: a peer's keys here, None while they change and nothing can be said. `told` hears each packet once
        it is whole: the peer, its head, an encapsulation key or a ciphertext. `post` has a coordinator carry it.
        """
        self.by_letter: set[NodeId] = set()  # to whom nothing comes through the tunnel
        self.heard: dict[NodeId, Heard] = {}
        self._post = post
        self._prober, self._raw, self._bunch_of, self._told, self._monotonic = (
            prober, raw_id(me), bunch_of, told, monotonic,
        )  # fmt: skip
        self._sequence = int(wall() * _SEQUENCES_PER_S) & _MASK
        self._gates: dict[NodeId, Gate] = {}
        self._halves: dict[NodeId, tuple[Kind, bytes, dict[int, bytes]]] = {}
        prober.others[MAGIC] = self._receive

    def forget(self, peer: NodeId) -> None:
        """It has left."""
        for kept in (self.heard, self._gates, self._halves):
            kept.pop(peer, None)
        self.by_letter.discard(peer)

    def write_to(self, peer: NodeId) -> None:
        """The tunnel is down: by letter from now on. What was heard is as old as the tunnel."""
        if peer not in self.by_letter:
            self.by_letter.add(peer)
            self.heard.pop(peer, None)

    # ---- out ---------------------------------------------------------------------------------------------------------

    def send(
        self, peer: NodeId, kind: Kind, version: int = 0, exchange: bytes = _NO_MARK,
        bodies: tuple[bytes, ...] = (b"",), *, ask: bool = False,
    ) -> None:  # fmt: skip
        """Say `kind`, and what we have; one packet for each body."""
        bunch, pair = self._bunch_of(peer), self._prober.pair(peer)
        if bunch is None or pair is None or pair.key is None:
            return
        held = bunch.key
        mark = kem.mark(held, self._raw, bunch.now) if held else _NO_MARK
        for part, body in enumerate(bodies):
            self._sequence = self._sequence + 1 & _MASK
            head = Head(
                kind, part, ask, self._raw, pair.raw, self._sequence, bunch.now, mark, bunch.next, bunch.good, version,
                exchange,
            )  # fmt: skip
            self._put(pair, pair.key.seal(psk_packets.pack(head, body)))

    def send_set(self, peer: NodeId, version: int) -> None:
        """Say that both have this version on file, and show it."""
        bunch = self._bunch_of(peer)
        if bunch and (key := bunch.find(version)):
            self.send(peer, Kind.SET, version, kem.mark(key.key, self._raw, version))

    def _put(self, pair: Pair, datagram: bytes) -> None:
        if pair.id in self.by_letter and not self._prober.is_proven(pair.id):
            self._post(Letter(pair.id, datagram))
            return
        self.by_letter.discard(pair.id)
        for address in pair.addresses:
            if sock := self._prober.socket_for(address):
                try:
                    sock.sendto(datagram, (address, limits.PROBE_PORT))
                except OSError:
                    self._prober.drops[Drop.UNSENT] += 1
                return

    # ---- in ----------------------------------------------------------------------------------------------------------

    def _receive(self, datagram: bytes, source: tuple[str, int], _: socket.socket) -> None:
        """One datagram with our magic, whoever sent it."""
        if refused := self._take(datagram, source[0], by_letter=False):
            self._prober.drops[refused] += 1

    def take(self, letter: Letter) -> None:
        """What a coordinator brings. While the tunnel carries packets nobody has a reason to write."""
        pair, refused = self._prober.pair(letter.peer), None
        if pair is None:
            refused = Drop.STRANGER
        elif self._prober.is_proven(pair.id):
            refused = Drop.UNASKED
        else:
            refused = self._take(letter.sealed, next(iter(pair.addresses)), by_letter=True)
        if refused:
            self._prober.drops[refused] += 1

    def _take(self, datagram: bytes, source: str, *, by_letter: bool) -> Drop | None:
        try:
            head, body = psk_packets.parse(datagram)
        except ProtocolError:
            return Drop.MALFORMED
        pair = sender(head.sender, head.receiver, source, self._raw, self._prober.pair_of)
        if isinstance(pair, Drop):
            return pair
        now = self._monotonic()
        if pair.key_of(datagram, now=now) is None:
            return Drop.FORGED
        if refused := self._gates.setdefault(pair.id, Gate()).admit(head.sequence, now=now):
            return refused
        bunch = self._bunch_of(pair.id)
        if bunch is None:
            return Drop.RATE  # it is said again
        if by_letter:
            self.write_to(pair.id)
        else:
            self.by_letter.discard(pair.id)
        held = bunch.find(head.now)
        valid = kem.is_mark(head.mark, held.key, head.sender, head.now) if held else head.now == 0
        self.heard[pair.id] = Heard(head.now, head.next, head.good, valid)
        whole = self._whole(pair.id, head, body)
        if whole is not None:
            self._told(pair.id, head, whole)
        return None

    def _whole(self, peer: NodeId, head: Head, body: bytes) -> bytes | None:
        """What the halves make, once both are there; a later exchange replaces an unfinished one."""
        if head.kind not in _HALVED:
            return b""
        kind, exchange, parts = self._halves.get(peer, (head.kind, head.exchange, {}))
        if (kind, exchange) != (head.kind, head.exchange):
            parts = {}
        parts[head.part] = body
        if len(parts) < PARTS:
            self._halves[peer] = head.kind, head.exchange, parts
            return None
        self._halves.pop(peer, None)
        return b"".join(parts[number] for number in range(PARTS))
