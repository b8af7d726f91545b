"""The experiments on the wire with one peer: canaries, a replay, an altered copy, a spoof, a stranger (NET-7).

One run of about a second: both ends open their taps; a short run of canaries goes through the tunnel, among them one
with a foreign inner source; this end finds their messages on its own wire, sends one again, one altered, and an
initiation with a key that nobody knows, and after a rotation one with our retired key, from WireGuard's own port; then
siblings, and the peer says what it saw. Mesh/exams.py judges.

**Law: only our own packets are ever touched.** They are known by their sizes: random, all different, and accepted only
in that very order under consecutive counters, addressed to the endpoint that WireGuard has of the peer now.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from meshctl.agent import tap as wire
from meshctl.agent.peers import Peers
from meshctl.agent.prober import Prober
from meshctl.agent.renew import Keeper
from meshctl.agent.responder import Pair
from meshctl.agent.retired import Retired
from meshctl.agent.tap import Leak, Seen, Tap
from meshctl.agent.witness import Answer, Witness, digest
from meshctl.config import AgentConfig
from meshctl.crypto.probe import PairKey
from meshctl.errors import EnvironmentFault, UnreachableError
from meshctl.mesh import exams, frames, limits, witness
from meshctl.mesh.catalogue import SPOOF, STRANGER, Verdict
from meshctl.mesh.exams import Clear, Controls, Hail
from meshctl.mesh.frames import Datagram, Transport
from meshctl.mesh.integrity import Reading
from meshctl.mesh.keys import PrivateKey
from meshctl.mesh.model import Endpoint, MeshInfo, Node, NodeId
from meshctl.mesh.probe import raw_id
from meshctl.mesh.witness import Head, Kind, Report, Standing

_RUN: Final = 5  # canaries in a row
_SPOOFED, _REPLAYED, _ALTERED = 2, 1, 3  # places in the run
_TRIES: Final = 4  # users' packets between ours break a run
_CAPTURE_S: Final = 1.0
_SETTLE_S: Final = 0.3  # beside two round trips: for what should not come to come
_LOOKS: Final = 4  # at what the peer saw, while a control is missing
_ASK_S: Final = 2.0
_BUSY_TRIES: Final = 8
_INNER_UNITS: Final = range(8, 75)  # inner packets of 128 to 1184 bytes, in WireGuard's steps of 16
_SIBLINGS: Final = (witness.NUMBERS - 2, witness.NUMBERS - 1)  # their numbers; two, as one may be lost


class Exam:
    """Implements deep.Experiment."""

    codes: tuple[str, ...] = exams.CODES

    def __init__(
        self,
        prober: Prober,
        speaker: Witness,
        tap: Tap,
        me: NodeId,
        interface: str,
        mesh: Callable[[], MeshInfo],
        nodes: Callable[[], Sequence[Node]],
        endpoint_of: Callable[[NodeId], Endpoint | None],
        retired: Retired,
    ) -> None:
        """`nodes` are all others; `endpoint_of` says where our WireGuard has a peer now."""
        self._prober, self._speaker, self._tap, self._me = prober, speaker, tap, me
        self._interface, self._mesh, self._nodes, self._endpoint_of = interface, mesh, nodes, endpoint_of
        self._retired = retired

    async def run(self, peer: Node) -> Sequence[Reading]:
        """See deep.Experiment."""
        pair, endpoint = self._prober.pair(peer.id), self._endpoint_of(peer.id)
        key = pair.key if pair else None
        sock = self._prober.socket_for(str(peer.address4))
        if pair is None or key is None or endpoint is None or sock is None:
            raise UnreachableError("there is no session with the peer now")
        foreign = exams.foreign_source(self._nodes(), peer.id, self._me, self._mesh().prefix4)
        spoofed = str(foreign) if foreign else ""
        old = self._retired.of(peer.id)
        names = raw_id(self._me), self._interface, endpoint, spoofed
        trial = _Trial(self._speaker, self._tap, pair, key, sock, *names, old)
        self._tap.hold()
        try:
            with trial.watching():
                readings = await trial.run(peer, self._prober.echo(peer.id).rtt_s or 0.0)
        finally:
            trial.close()
            self._tap.release()
        if any(reading.code == STRANGER and reading.verdict is Verdict.OK for reading in readings):
            self._retired.refused(peer.id, old)
        return readings


def on_the_wire(config: AgentConfig, keeper: Keeper, prober: Prober, peers: Peers, retired: Retired) -> Exam:
    """The experiments of this node, and the witness that answers those of others."""
    me, where = keeper.member.node.id, peers.endpoint_of
    tap = Tap(config.interface, config.listen_port, lambda: keeper.member.mesh.prefixes)
    speaker, mesh = Witness(prober, tap, me, where), lambda: keeper.member.mesh
    return Exam(prober, speaker, tap, me, config.interface, mesh, peers.others, where, retired)


class _Trial:
    """One run with one peer."""

    def __init__(
        self, speaker: Witness, tap: Tap, pair: Pair, key: PairKey, sock: socket.socket, me: bytes, interface: str,
        endpoint: Endpoint, spoofed: str, retired: PrivateKey | None,
    ) -> None:  # fmt: skip
        self._speaker, self._tap, self._pair, self._key, self._sock, self._me = speaker, tap, pair, key, sock, me
        self._interface, self._spoofed, self._may_spoof = interface, spoofed, bool(spoofed)
        self._peer_at = endpoint.address.packed, endpoint.port
        self._experiment = secrets.token_bytes(8)
        self._sizes: list[int] = []
        self._left: list[Transport] = []  # ours, perhaps
        self._path: Datagram | None = None  # addresses and ports of what left
        self._news = asyncio.Event()
        self._leaks: list[Leak] = []
        self._leak_count = 0
        # A key of our own would be a known one, unless it is retired: this one is nobody's.
        keys = [PrivateKey(secrets.token_bytes(32)), *([retired] if retired else [])]
        self._strangers = dict(zip(secrets.SystemRandom().sample(range(2**32), len(keys)), keys, strict=True))
        self._answers: Counter[tuple[int, int]] = Counter()  # by the stranger's index and the kind
        self._heard = 0

    # ---- the run -----------------------------------------------------------------------------------------------------

    async def run(self, peer: Node, rtt_s: float) -> Sequence[Reading]:
        if why := await self._open():
            return exams.untried(peer.id, why, now=time.monotonic())
        found, base, with_spoof = await self._captured()
        if not found:
            why = "no run of our canaries was seen leaving for the peer's endpoint"
            return exams.untried(peer.id, why, now=time.monotonic())
        names = [digest(message.payload) for message in found]
        before = await self._look(names)  # the originals are there before their copies leave
        names += map(digest, self._inject(found, peer))
        self._heard = 0
        report = before
        for number in _SIBLINGS:
            self._canary(number, _inner_size())
        for _ in range(_LOOKS):
            await asyncio.sleep(_SETTLE_S + 2 * rtt_s)
            report = await self._look(names)
            if self._controlled(report) and all(sight.passed for sight in report.sights[: len(names)]):
                break
        return self._judge(peer.id, found, base, report, with_spoof=with_spoof)

    async def _open(self) -> str:
        """Have the peer watch; why it does not."""
        question = self._sealed(Kind.ASK)
        for _ in range(_BUSY_TRIES):
            answer = await self._ask(question, Kind.READY)
            if answer is None:
                return "the peer's witness does not answer"
            match answer[0]:
                case Standing.OPEN:
                    return ""
                case Standing.POWERLESS:
                    return f"{wire.NO_RIGHT} at the peer"
                case Standing.BROKEN:
                    return "the peer cannot tap its wire"
            await asyncio.sleep(0.5 + secrets.randbelow(1000) / 1000)
        return "the peer's witness is busy with others"

    async def _captured(self) -> tuple[tuple[Transport, ...], int, bool]:
        """Our messages as they left, the number of their first, and whether the spoofed one is among them."""
        for attempt in range(_TRIES):
            # Last without it: a machine may not let it out, and the other experiments can do without.
            with_spoof = self._may_spoof and attempt < _TRIES - 1
            base, count = 8 * attempt, _RUN if with_spoof else _RUN - 1
            inner = secrets.SystemRandom().sample(_INNER_UNITS, count)
            self._sizes, self._left = [frames.padded(16 * units) for units in inner], []
            for place, units in enumerate(inner):
                if with_spoof and place == _SPOOFED:
                    self._spoof(base + place, 16 * units)
                else:
                    self._canary(base + place, 16 * units)
            if with_spoof and not self._may_spoof:
                continue
            try:
                async with asyncio.timeout(_CAPTURE_S):
                    while not (found := frames.find_run(self._left, self._sizes)):
                        self._news.clear()
                        await self._news.wait()
            except TimeoutError:
                continue
            return found, base, with_spoof
        return (), 0, False

    def _inject(self, found: tuple[Transport, ...], peer: Node) -> list[bytes]:
        """Put the copies and the strangers on the wire -> [the altered copy, an initiation of each stranger]."""
        from meshctl.crypto.noise import initiation  # late: until there is a peer nobody needs it

        assert self._path is not None  # found is not empty
        path = self._path[:4]
        altered = frames.flipped(found[-2].payload, *witness.altered_at(frames.TRANSPORT_HEAD_BYTES))
        theirs, now = peer.statement.wireguard, time.time_ns()
        hellos = [initiation(key, theirs, index, unix_ns=now) for index, key in self._strangers.items()]
        for payload in (found[_REPLAYED].payload, altered, *hellos):
            wire.inject(*path, payload)
        return [altered, *hellos]

    def _judge(
        self, peer: NodeId, found: Sequence[Transport], base: int, report: Report, *, with_spoof: bool
    ) -> list[Reading]:
        now, count = time.monotonic(), len(found)
        sights, delivered = report.sights, report.delivered
        controls = Controls(report.drops + self._tap.drops(), self._controlled(report))
        altered = sights[count]
        fresh, *retired = (
            Hail(sight, self._answers[index, frames.RESPONSE], self._answers[index, frames.COOKIE])
            for index, sight in zip(self._strangers, sights[count + 1 :], strict=False)  # a report is padded
        )
        copied = delivered.get(base + count - 2, 0)
        here = self._leaks[0] if self._leaks else Leak(b"", b"")
        legible = any(witness.padding(32) in message.payload for message in found)
        clear_here = Clear(self._leak_count, *here)
        clear_there = Clear(report.clear, report.clear_source, report.clear_target)
        own = [sight for place, sight in enumerate(sights[:count]) if not (with_spoof and place == _SPOOFED)]
        readings = [
            exams.encrypted(peer, own, legible, clear_here, clear_there, controls, now=now),
            exams.replay(peer, sights[_REPLAYED], delivered.get(base + _REPLAYED, 0), controls, now=now),
            exams.tamper(peer, sights[count - 2], altered, copied, controls, now=now),
            exams.stranger(peer, fresh, next(iter(retired), None), self._heard > 0, controls, now=now),
        ]
        if with_spoof:
            number = base + _SPOOFED
            sight, got = sights[_SPOOFED], delivered.get(number, 0)
            return [*readings, exams.spoof(peer, self._spoofed, sight, got, controls, now=now)]
        why = "no packet with a foreign source was seen leaving this machine"
        return [*readings, *exams.untried(peer, why, (SPOOF,), now=now)]

    # ---- what is seen ------------------------------------------------------------------------------------------------

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Told by the tap meanwhile."""
        self._tap.on_seen.append(self._saw)
        self._tap.on_leak.append(self._leaked)
        try:
            yield
        finally:
            self._tap.on_seen.remove(self._saw)
            self._tap.on_leak.remove(self._leaked)

    def _saw(self, seen: Seen) -> None:
        datagram, message = seen.datagram, seen.message
        if seen.outgoing:
            if (datagram.target, datagram.target_port) != self._peer_at or len(message) not in self._sizes:
                return
            if (left := frames.transport(message)) is not None:
                self._left.append(left)
                self._path = datagram
                self._news.set()
        elif not seen.behind and (datagram.source, datagram.source_port) == self._peer_at:
            self._heard += 1
            for index in self._strangers:
                self._answers[index, frames.answer_to(message, index)] += 1

    def _leaked(self, leak: Leak) -> None:
        self._leak_count += 1
        if not self._leaks:
            self._leaks.append(leak)

    # ---- what is said ------------------------------------------------------------------------------------------------

    def _controlled(self, report: Report) -> bool:
        return any(report.delivered.get(number) for number in _SIBLINGS)

    async def _look(self, names: Sequence[bytes]) -> Report:
        head = Head(Kind.QUERY, Standing.OPEN, self._me, self._pair.raw, self._experiment)
        answer = await self._ask(self._key.seal(witness.pack_query(head, names)), Kind.REPORT)
        if answer is None or answer[1] is None:
            raise UnreachableError("the peer's witness fell silent in the middle")
        return answer[1]

    async def _ask(self, question: bytes, answer: Kind) -> Answer | None:
        return await self._speaker.ask(question, self._experiment, answer, self._send, patience_s=_ASK_S)

    def _sealed(self, kind: Kind, number: int = 0) -> bytes:
        head = Head(kind, Standing.OPEN, self._me, self._pair.raw, self._experiment, number)
        return self._key.seal(witness.pack(head))

    def _padded(self, number: int, inner_bytes: int) -> bytes:
        return self._sealed(Kind.CANARY, number) + witness.padding(inner_bytes - witness.INNER_HEAD_BYTES)

    def _canary(self, number: int, inner_bytes: int) -> None:
        self._send(self._padded(number, inner_bytes))

    def _send(self, datagram: bytes) -> None:
        try:
            self._sock.sendto(datagram, (self._pair.addresses[0], limits.PROBE_PORT))
        except OSError as error:
            raise UnreachableError(f"a canary cannot be sent: {error.strerror or error}") from error

    def _spoof(self, number: int, inner_bytes: int) -> None:
        """A canary from a foreign inner source, unless this machine refuses that."""
        source, target = (socket.inet_aton(address) for address in (self._spoofed, self._pair.addresses[0]))
        body = frames.udp(source, limits.PROBE_PORT, target, limits.PROBE_PORT, self._padded(number, inner_bytes))
        packet = frames.ipv4(source, target, body, secrets.randbits(16))
        try:
            wire.forge(self._interface, self._pair.addresses[0], packet)
        except EnvironmentFault:
            self._may_spoof = False

    def close(self) -> None:
        """Tell the peer that it is over. If that is lost, its tap closes by itself."""
        try:
            self._send(self._sealed(Kind.DONE))
        except UnreachableError:
            pass


def _inner_size() -> int:
    return 16 * secrets.choice(_INNER_UNITS)
