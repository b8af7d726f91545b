"""Thousands of simulated agents in one process, each on a TLS connection of its own (OPS-3).

An agent does what agent/follow.py does on the wire: resumes at the map in hand, checks and applies deltas, verifies the
map's hash, acknowledges what it applied (paced as the real one is), and comes back by the same rule after a loss.
Equal maps are one object: every agent's step from map to map is checked, each different step is computed once.
`Loop` is the process' event loop: epoll and a heap of timers.
"""

from __future__ import annotations

import functools
import heapq
import random
import select
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from coordinator import tls as server_tls
from meshctl.crypto.identity import Identity
from meshctl.mesh import journal, limits, pacing
from meshctl.wire import session
from meshctl.wire.session import DownFrame, UpFrame
from meshctl.wire.v1 import mesh_pb2 as pb
from tests.bench.light import Wire
from tests.harness import tls

STREAM, LEAVE_STREAM = 1, 3
STEPS_KEPT = 512
REPORT = b"a" * 79  # of a plain agent: what a report is with its HTTP/2 framing
REVISIONS_KEPT = 64
TIMERS = 16  # in a turn: who has dialled speaks at once, as on a machine of its own, not when all others have dialled
CONNECT_S = 10.0  # agent/channel.py: until TLS is done
FIRST_BACKOFF_S = 0.2  # agent/follow.py


class Loop:
    """epoll, timers, and a clock."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._wires: dict[int, Wire] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def add(self, wire: Wire) -> None:
        """Serve a wire that has been dialled."""
        self._wires[wire.sock.fileno()] = wire
        self._epoll.register(wire.sock, select.EPOLLIN | select.EPOLLOUT)

    def drop(self, wire: Wire) -> None:
        """Close it."""
        if self._wires.pop(wire.sock.fileno(), None):
            self._epoll.unregister(wire.sock)
            wire.sock.close()

    def later(self, after_s: float, act: Callable[[], None]) -> None:
        """Call `act` once."""
        self._count += 1
        heapq.heappush(self._timers, (time.monotonic() + after_s, self._count, act))

    def turn(self, most_s: float = 0.05) -> None:
        """Wait a little and serve what has come."""
        if self._timers:
            most_s = min(most_s, max(0.0, self._timers[0][0] - time.monotonic()))
        for fd, events in self._epoll.poll(most_s, 1024):
            wire = self._wires.get(fd)
            if wire is None:
                continue
            if events & select.EPOLLOUT:
                wire.writable()
                if self._wires.get(fd) is wire and not wire.stuck and wire.connected_at:
                    self._epoll.modify(fd, select.EPOLLIN)
            if events & ~select.EPOLLOUT and self._wires.get(fd) is wire:
                wire.readable()
                if wire.stuck and self._wires.get(fd) is wire:
                    self._epoll.modify(fd, select.EPOLLIN | select.EPOLLOUT)
        now = time.monotonic()
        for _ in range(TIMERS):
            if not self._timers or self._timers[0][0] > now:
                break
            heapq.heappop(self._timers)[2]()

    def until(self, done: Callable[[], bool], within_s: float) -> bool:
        """Turn until `done`; False when it does not come."""
        deadline = time.monotonic() + within_s
        while not done():
            if time.monotonic() > deadline:
                return False
            self.turn()
        return True


@dataclass(slots=True)
class Map:
    """What one or many agents hold: revision, sum of hashes, nodes with their hash."""

    revision: int = 0
    total: int = 0
    nodes: dict[str, int] = field(default_factory=dict)

    @property
    def hash(self) -> bytes:
        return (self.total % (1 << 256)).to_bytes(32, "big")


def step(held: Map, parts: list[DownFrame]) -> Map | None:
    """The map after a delta or a snapshot; None when it does not fit."""
    if parts[0].snapshot:
        held = Map()
    elif parts[0].from_revision != held.revision:
        return None
    nodes, total = dict(held.nodes), held.total
    for part in parts:
        for chunk in part.put:
            name, fresh = pb.Node.FromString(chunk).id, journal.chunk_hash(chunk)
            total += fresh - nodes.get(name, 0)
            nodes[name] = fresh
        for name in part.gone:
            total -= nodes.pop(name, 0)
    after = Map(parts[-1].to_revision, total, nodes)
    return after if after.hash == parts[-1].map_hash else None


class Swarm:
    """All agents of this process and what they saw."""

    def __init__(self, ca: bytes, incarnation: str, addresses: list[tuple[str, int]]) -> None:
        self.loop, self.ca, self.incarnation, self.addresses = Loop(), ca, incarnation, addresses
        self.context = tls.client_context("h2", ca=ca)
        self.agents: list[Agent] = []
        self.map = Map()  # the newest one any agent has
        self.counts: Counter[str] = Counter()
        self.at: OrderedDict[int, list[float]] = OrderedDict()
        self.size = 0  # of the mesh, where maps do not tell
        self.mute = False  # agents acknowledge nothing: for the cost of one direction
        self._steps: OrderedDict[tuple[bytes, ...], Map | None] = OrderedDict()

    def stepped(self, held: Map, raws: tuple[bytes, ...]) -> Map | None:
        """`held` after these frames; equal steps are computed once."""
        key = (held.hash, *raws)
        if key not in self._steps:
            self._steps[key] = step(held, [session.decode_down(raw) for raw in raws])
            while len(self._steps) > STEPS_KEPT:
                self._steps.popitem(last=False)
        return self._steps[key]

    def arrived(self, agent: Agent) -> None:
        """An agent has a newer map."""
        at = self.at.get(agent.map.revision)
        if at is None:
            at = self.at[agent.map.revision] = []
            while len(self.at) > REVISIONS_KEPT:
                self.at.popitem(last=False)
        at.append(time.monotonic())
        if agent.map.revision > self.map.revision:
            self.map = agent.map

    def numbered(self, raw: bytes) -> Map:
        """A map that is only a revision; the same bytes give the same one."""
        key = (raw,)
        if key not in self._steps:
            self._steps[key] = Map(session.decode_down(raw).to_revision)
        found = self._steps[key]
        assert found is not None
        return found

    def live(self) -> int:
        """Agents with a session."""
        return sum(agent.welcomed for agent in self.agents)


@functools.lru_cache(maxsize=64)
def applied(revision: int) -> bytes:
    """What an agent says when it has applied a revision. Of its endpoints it says nothing: the bench moves them."""
    up = UpFrame(applied=(revision, bytes(32), "ok"), findings=())
    return session.encode_up(up).SerializeToString()


class Agent:
    """One member with its session."""

    def __init__(self, swarm: Swarm, number: int, identity: Identity, certificate: bytes) -> None:
        self.swarm, self.number, self.identity, self.certificate = swarm, number, identity, certificate
        self.map = Map()
        self.welcomed = self.left = False
        self.frames = 0
        self.resumed_at = 0.0
        self._parts: list[bytes] = []
        self._wire: Wire | None = None
        self._fresh: Wire | None = None
        self._due = False
        self._said = float("-inf")
        self._failures = self._attempts = 0

    def prepare(self) -> None:
        """Make the TLS object now, so that it is not measured later: 1.4 ms, in OpenSSL 3.0's reading of keys."""
        if self._fresh is not None:
            return
        context = self.swarm.context
        server_tls.load_leaf(context, server_tls.Credentials(self.swarm.ca, self.certificate, self.identity.device))
        self._fresh = Wire(context)

    def connect(self) -> None:
        """Begin a session with the map in hand."""
        if self.left or self._wire is not None:
            return
        self.prepare()
        assert self._fresh is not None
        wire, self._fresh = self._fresh, None
        self._wire = wire
        wire.on_open, wire.on_message, wire.on_end, wire.on_lost = self._open, self._take, self._end, self.lost
        turn = self.number + self._failures
        wire.dial(self.swarm.addresses[turn % len(self.swarm.addresses)], f"127.0.{1 + self.number // 250 % 250}.1")
        self.swarm.loop.add(wire)
        self._attempts += 1
        self.swarm.loop.later(CONNECT_S, functools.partial(self._give_up, self._attempts))

    def _give_up(self, attempt: int) -> None:
        if attempt == self._attempts and self._wire is not None and not self._wire.open:
            self.lost("slow")

    def _open(self) -> None:
        assert self._wire is not None
        resume = UpFrame(resume=(self.swarm.incarnation, self.map.revision, self.map.hash))
        self._wire.call(STREAM, session.METHOD, session.encode_up(resume).SerializeToString())

    def _take(self, stream: int, raw: bytes) -> None:
        if stream == LEAVE_STREAM:
            self.left = True
            return
        self.frames += 1
        if not self.welcomed:  # the first frame; it moves no map
            assert session.decode_down(raw).mesh is not None
            self.welcomed, self.resumed_at = True, time.monotonic()
            self._report_soon()
            return
        if raw[0] == 0x42:  # a heartbeat alone
            self.swarm.counts["heartbeats"] += 1
            return
        self._parts.append(raw)
        if len(raw) > 4096 and session.decode_down(raw).more:
            return
        raws, self._parts = tuple(self._parts), []
        after = self.swarm.stepped(self.map, raws)
        if after is None:
            self.swarm.counts["misfits"] += 1
            assert self._wire is not None
            self._wire.send(STREAM, session.encode_up(UpFrame(again=True)).SerializeToString())
            return
        self.swarm.counts["snapshots" if session.decode_down(raws[0]).snapshot else "deltas"] += 1
        self.map = after
        self.swarm.arrived(self)
        self._report_soon()

    def _report_soon(self) -> None:
        if self._due or self.swarm.mute:
            return
        self._due = True
        size, since = self.swarm.size or len(self.map.nodes), time.monotonic() - self._said
        self.swarm.loop.later(pacing.report_after_s(size, since, chance=random.random()), self._report)

    def _report(self) -> None:
        self._due = False
        if self._wire is not None and self.welcomed and self.map.revision:
            self._wire.send(STREAM, applied(self.map.revision))
            self._said = time.monotonic()
            self.swarm.counts["reports"] += 1

    def propose(self, up: UpFrame) -> None:
        """Say something else than usual."""
        assert self._wire is not None
        self._wire.send(STREAM, session.encode_up(up).SerializeToString())

    def leave(self) -> None:
        """Ask to go; `left` tells when it is confirmed."""
        assert self._wire is not None
        self._wire.call(LEAVE_STREAM, "/meshctl.wire.v1.Mesh/Leave", b"", end=True)

    def _end(self, stream: int) -> None:
        if stream == STREAM:
            self.lost("ended")

    def lost(self, why: str) -> None:
        """The connection is over; come back as agent/follow.py does."""
        if self._wire is None:
            return
        self.swarm.loop.drop(self._wire)
        if not self._wire.connected_at:
            self._fresh = self._wire
        self._wire = None
        self._parts = []
        served = self.welcomed and time.monotonic() - self.resumed_at > limits.HEARTBEAT_S
        self.welcomed = False
        if self.left:
            return
        self.swarm.counts[f"lost: {why}"] += 1
        self._failures = 0 if served else self._failures + 1
        longest = pacing.longest_backoff_s(len(self.map.nodes))
        pause = min(FIRST_BACKOFF_S * 2.0 ** min(self._failures, 10), longest)
        self.swarm.loop.later(random.uniform(0.5, 1) * pause, self.connect)


class PlainAgent(Agent):
    """The other end of a plain socket: reads what comes, answers as many bytes as a report has."""

    def prepare(self) -> None:
        self._fresh = Wire(None)

    def _open(self) -> None:
        self.welcomed, self.resumed_at = True, time.monotonic()

    def _take(self, stream: int, raw: bytes) -> None:
        self.frames += 1
        self.map = self.swarm.numbered(raw)
        self.swarm.arrived(self)
        self._report_soon()

    def _report(self) -> None:
        self._due = False
        if self._wire is not None:
            self._wire.send_raw(REPORT)
            self._said = time.monotonic()
            self.swarm.counts["reports"] += 1
