"""The coordinator's TLS front: who may connect, how many at once, for how long (ENC-3, ACC-4, ACC-5, OPS-4).

grpcio can restrict neither suites nor versions, knows no revocation and keeps a channel past its certificate's end. So
this front speaks TLS and a stock grpc.aio server listens behind it on a unix socket that only we can reach.

Admission: an unauthenticated connection gets three seconds for one whole ClientHello (which costs us nothing), then
waits its turn in a line (line.py), fairly among addresses, for one of 64 places; no address ever holds all of them, so
handshakes that never finish do not delay a good client from elsewhere. When many wait, a handshake may take four times
as long as those that succeed lately: a mesh that reconnects at once, however slowly, does not time itself out.
Deadlines count ticks, not seconds: while this process is too busy to read, nobody's time runs out.

What a caller may do is the services' business (coordinator/peer.py tells them who calls); revocation is decided by the
`admit` callback. Nothing here parses HTTP/2.
"""

from __future__ import annotations

import asyncio
import functools
import resource
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final

from coordinator import tls
from coordinator.line import Line
from coordinator.peer import PeerIdentity, peer_identity
from coordinator.relay import SERVED, Connection, Phase, Why
from coordinator.tls import Credentials
from meshctl.crypto import pki
from meshctl.errors import EnvironmentFault

__all__ = ["Credentials", "Figures", "Front", "PeerIdentity", "Why", "peer_identity"]

TICK_S: Final = 0.1  # while somebody's time is running
QUIET_TICK_S: Final = 1.0  # else: only certificates end. Ten ticks a second cost 0.1 % of a core (measured)
HANDSHAKES: Final = 64  # in flight: 5,000 clients at once took 9 s and none failed (measured)
WAITING_MANY: Final = HANDSHAKES  # more than a whole round of them waits: time to be strict
STRICT_HANDSHAKE_S: Final = 0.5  # a round trip to the other side of the planet; who stalls longer tries again
SLOWER_THAN_OTHERS: Final = 4  # but never stricter than so many times what handshakes took that did succeed
FORGETS: Final = 0.98  # of that time, at each success
KEEPALIVE_S: Final = (30, 10, 3)  # idle, between probes, probes: the kernel finds vanished nodes, at no cost to us
UNACKNOWLEDGED_MS: Final = 40_000
GATHER_S: Final = 0.005  # under load, what members say reaches grpc in one go: 60 us each instead of 100 (measured)
CROWD: Final = 4  # members who speak within that time are load; one who calls again and again is not
PER_ADDRESS: Final = 512  # unauthenticated connections of one IPv4 address or IPv6 /64: a site behind one NAT
PER_IDENTITY: Final = 8  # an agent holds one; the rest are its dead ones that TCP has not noticed yet
ANONYMOUS_PART: Final = 4  # at most a quarter of all connections may be clients without certificate
ACCEPTS: Final = 8  # in a turn of the event loop: uvloop takes one per handle, and the kernel's queue knows no fairness
BACKLOG: Final = 4096  # the kernel's somaxconn; asyncio's 100 made 5,000 connects take 47 s
READ_BUFFER_BYTES: Final = 64 * 1024  # one for all connections: asyncio's own TLS keeps 256 kB for each
DESCRIPTORS_RESERVED: Final = 128  # etcd, logs, the audit's segments, listening sockets
DESCRIPTORS_PER_CONNECTION: Final = 3  # client, our end and grpc's end of the unix socket
PATIENCE: Final[dict[Phase, tuple[float, Why]]] = {  # seconds in a phase, and what it is called when they are over
    Phase.HELLO: (3.0, Why.SILENT),
    Phase.HANDSHAKE: (3.0, Why.SLOW),
    Phase.CONNECTING: (3.0, Why.BACKEND),
    Phase.RELAY: (30.0, Why.TOO_LONG),  # anonymous clients only: a join takes 12 ms, attestation some seconds
    Phase.CLOSING: (5.0, Why.STUCK),
}


@dataclass(frozen=True, slots=True)
class Figures:
    """Counts for metrics. `accepted`, `refused` and `cut` since the start; the others now."""

    accepted: int
    refused: Mapping[Why, int]
    cut: Mapping[Why, int]
    live: int
    waiting: int
    handshakes: int
    anonymous: int


def _keep_alive(server: asyncio.Server) -> None:
    """What a listening socket is told, the connections it accepts inherit (Linux)."""
    idle, interval, probes = KEEPALIVE_S
    for listener in server.sockets:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (
            (socket.TCP_KEEPIDLE, idle), (socket.TCP_KEEPINTVL, interval), (socket.TCP_KEEPCNT, probes),
            (socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS),
        ):  # fmt: skip
            listener.setsockopt(socket.IPPROTO_TCP, option, value)


def _source(connection: Connection) -> bytes:
    """What counts as one address: nobody gets a single IPv6 address, but a /64."""
    match connection.address:
        case IPv4Address() as address:
            return address.packed
        case IPv6Address() as address:
            return address.packed[:8]
        case None:
            return b""


class Front:
    """TLS in front of grpc's unix socket `backend`, which must lie in a directory of mode 0700.

    `admit(spiffe_uri, certificate)` says whether a verified client is still welcome; `clock` gives unix seconds.
    """

    def __init__(
        self, credentials: Credentials, mesh_id: str, backend: Path,
        *, admit: Callable[[str, bytes], bool], clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self.mesh_id, self.backend = mesh_id, backend
        self.buffer = memoryview(bytearray(READ_BUFFER_BYTES))
        self.ticks = 0
        self._admit, self._clock = admit, clock
        self._servers: list[asyncio.Server] = []
        self._open: set[Connection] = set()
        self._timed: set[Connection] = set()  # those whose phase has an end
        self._line: Line[Connection] = Line()
        self._handshakes: set[Connection] = set()
        self._held: Counter[bytes] = Counter()  # places, by address
        self._usual_s = 0.0  # what the slower ones of the handshakes take that succeed
        self._anonymous: set[Connection] = set()
        self._nodes: dict[str, dict[Connection, None]] = {}
        self._unproven: dict[bytes, set[Connection]] = {}
        self._soonest = float("inf")  # no certificate of a live connection ends before
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._quiet = False  # nobody's time is running: the timer is slow
        self._stopping = False
        self._emptied = asyncio.Event()
        self._gathered: list[Connection] = []
        self._speakers: set[Connection] = set()
        self._crowded = False
        self._accepted = 0
        self._refused: Counter[Why] = Counter()
        self._cut: Counter[Why] = Counter()
        self._capacity = 0
        self.reload(credentials)

    def reload(self, credentials: Credentials) -> None:
        """Use these from the next handshake on; live connections go on. Raises TrustError, EnvironmentFault.

        One context serves all handshakes: a fresh one each would cost 2 ms, more than the handshake.
        """
        self._context: ssl.SSLContext = tls.server_context(credentials)

    async def start(self, addresses: Sequence[tuple[str, int]]) -> None:
        """Listen on every (host, port). Raises EnvironmentFault and listens on none if one of them fails."""
        directory = self.backend.parent.stat()
        if directory.st_mode & 0o077:
            raise EnvironmentFault(f"{self.backend.parent} is open to others", "make it a directory of mode 0700")
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._capacity = max(1, (descriptors - DESCRIPTORS_RESERVED) // DESCRIPTORS_PER_CONNECTION)
        loop = asyncio.get_running_loop()
        self._wind()
        for host, port in addresses:
            try:
                make = functools.partial(Connection, self)
                server = await loop.create_server(make, host, port, backlog=BACKLOG)
                self._servers.append(server)
                _keep_alive(server)
                for listener in server.sockets * (ACCEPTS - 1):  # the same socket again
                    self._servers.append(await loop.create_server(make, sock=listener.dup(), backlog=BACKLOG))
            except OSError as error:
                await self.stop()
                what = f"cannot listen on {host} port {port}: {error.strerror}"
                raise EnvironmentFault(what, "is the address this machine's, and the port free?") from error

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """(host, port) of every listening socket."""
        names = (listener.getsockname()[:2] for server in self._servers for listener in server.sockets)
        return list(dict.fromkeys(names))

    @property
    def connections(self) -> Figures:
        """The figures of this moment."""
        return Figures(
            self._accepted, dict(self._refused), dict(self._cut), len(self._open), len(self._line),
            len(self._handshakes), len(self._anonymous),
        )  # fmt: skip

    def cut(self, identity: str) -> int:
        """Close every connection of a node id or SPIFFE URI at once -> how many. Make `admit` refuse it first."""
        uri = identity if "://" in identity else pki.spiffe_id(self.mesh_id, identity)
        live = [connection for connection in self._nodes.get(uri, ()) if connection.phase is not Phase.CLOSED]
        for connection in live:
            connection.end(Why.REVOKED)
        return len(live)

    async def stop(self) -> None:
        """Close all sockets. Stop the grpc server first, with grace, to let calls end in peace."""
        self._stopping = True
        for server in self._servers:
            server.close()
        for connection in list(self._open):
            connection.end(Why.STOPPED)
        while self._open or self._tasks:
            self._emptied.clear()
            await self._emptied.wait()
        for server in self._servers:
            await server.wait_closed()
        self._servers.clear()
        if self._timer is not None:
            self._timer.cancel()

    # ---- what connections report -------------------------------------------------------------------------------------

    def arrived(self, connection: Connection) -> None:
        """A client connected. Refuses it if there are too many."""
        self._accepted += 1
        self._open.add(connection)
        same = self._unproven.setdefault(_source(connection), set())
        same.add(connection)
        if self._stopping:
            connection.end(Why.STOPPED)
        elif len(self._open) > self._capacity:
            connection.end(Why.FULL)
        elif len(same) > PER_ADDRESS:
            connection.end(Why.CROWDED)
        else:
            connection.enter(Phase.HELLO)

    def entered(self, connection: Connection, ticks: int) -> None:
        """A connection went on to its phase, `ticks` after the one before: give it its place, take away that one's."""
        phase = connection.phase
        if phase is Phase.WAITING:
            self._line.add(_source(connection), connection, now=asyncio.get_running_loop().time())
            self._call_next()
        else:
            self._line.discard(_source(connection), connection)
        if phase is Phase.HANDSHAKE:
            self._handshakes.add(connection)
            self._held[_source(connection)] += 1
        elif connection in self._handshakes:
            self._handshakes.remove(connection)
            self._leave(_source(connection))
            if phase is Phase.CONNECTING:
                self._usual_s = max(self._usual_s * FORGETS, ticks * TICK_S)
            self._call_next()
        if phase in PATIENCE and not (phase is Phase.RELAY and connection.client.uri):
            self._timed.add(connection)
            if self._quiet:
                self._wind()
        else:
            self._timed.discard(connection)

    def admitted(self, connection: Connection, certificate: bytes | None) -> Why | None:
        """Judge a client whose certificate TLS has verified -> why it is refused, or None."""
        uri = connection.client.uri
        if uri is None or certificate is None:
            if len(self._anonymous) * ANONYMOUS_PART >= self._capacity:
                return Why.CROWDED
            self._anonymous.add(connection)
            return None
        if connection.client.expires <= self._clock():
            return Why.EXPIRED
        if not self._admit(uri, certificate):
            return Why.REVOKED
        own = self._nodes.setdefault(uri, {})
        if len(own) >= PER_IDENTITY:
            next(iter(own)).end(Why.SURPLUS)
        own[connection] = None
        self._soonest = min(self._soonest, connection.client.expires)
        self._proven(connection)
        return None

    def ended(self, connection: Connection, why: Why) -> None:
        """Count a refusal or, if the connection was being served, a cut."""
        (self._cut if connection.phase in SERVED else self._refused)[why] += 1

    def gone(self, connection: Connection) -> None:
        """All sockets of a connection are closed."""
        self._open.discard(connection)
        self._timed.discard(connection)
        self._anonymous.discard(connection)
        self._proven(connection)
        uri = connection.client.uri
        if uri is not None and (own := self._nodes.get(uri)) is not None:
            own.pop(connection, None)
            if not own:
                del self._nodes[uri]
        self._emptied.set()

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Run `work` and keep it alive."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def gathers(self, connection: Connection) -> bool:
        """Whether `connection` is to keep what it has for grpc until it is told `release`: only in a crowd."""
        if not self._speakers:
            asyncio.get_running_loop().call_later(GATHER_S, self._release)
        self._speakers.add(connection)
        if self._crowded:
            self._gathered.append(connection)
        return self._crowded

    # ---- the machinery -----------------------------------------------------------------------------------------------

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._emptied.set()

    def _proven(self, connection: Connection) -> None:
        source = _source(connection)
        same = self._unproven.get(source, set())
        same.discard(connection)
        if not same:
            self._unproven.pop(source, None)

    def _leave(self, source: bytes) -> None:
        self._held[source] -= 1
        if not self._held[source]:
            del self._held[source]

    def _release(self) -> None:
        self._crowded = len(self._speakers) >= CROWD
        self._speakers.clear()
        gathered, self._gathered = self._gathered, []
        for connection in gathered:
            connection.release()

    def _call_next(self) -> None:
        """One handshake per turn of the event loop: the others' packets are read in between."""
        asyncio.get_running_loop().call_soon(self._start_next)

    def _start_next(self) -> None:
        free, now = HANDSHAKES - len(self._handshakes), asyncio.get_running_loop().time()
        if (connection := self._line.first(self._held, free, now=now)) is not None:
            connection.start(self._context)
            self._call_next()

    def _wind(self) -> None:
        """A quick timer is never set anew: whoever comes again and again does not keep it from running out."""
        if self._timer is not None:
            self._timer.cancel()
        self._quiet = not self._timed
        wait = QUIET_TICK_S if self._quiet else TICK_S
        self._timer = asyncio.get_running_loop().call_later(wait, self._tick)

    def _tick(self) -> None:
        self._wind()
        self.ticks += 1
        strict = len(self._line) > WAITING_MANY
        strict_s = max(STRICT_HANDSHAKE_S, SLOWER_THAN_OTHERS * self._usual_s)
        for connection in list(self._timed):
            limit_s, why = PATIENCE[connection.phase]
            if strict and connection.phase is Phase.HANDSHAKE:
                limit_s = min(limit_s, strict_s)
            if (self.ticks - connection.since) * TICK_S >= limit_s:
                connection.end(why)
        if self._clock() >= self._soonest:
            self._expire()

    def _expire(self) -> None:
        now = self._clock()
        live = [connection for own in self._nodes.values() for connection in own]
        for connection in live:
            if connection.client.expires <= now:
                connection.end(Why.EXPIRED)
        self._soonest = min((c.client.expires for c in live if c.client.expires > now), default=float("inf"))
