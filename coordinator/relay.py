"""One client of the TLS front: its phases from the first byte to the last, and the relay to grpc (ENC-3, ACC-4, OPS-4).

TLS runs on memory BIOs, so that a connection owns no read buffer of its own and cryptography starts when the front says
so. What one side cannot write, the other does not read. An exception stays in the connection it came from. Who may
connect, and how many at once, is the front's business, not this file's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import struct
from collections.abc import Callable
from enum import Enum, StrEnum, auto
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Concatenate, Final, ParamSpec, cast

from coordinator import peer, tls
from meshctl.errors import TrustError

if TYPE_CHECKING:
    from coordinator.front import Front

_log: Final = logging.getLogger(__name__)

RECORD_BYTES: Final = 16 * 1024  # RFC 8446, 5.1: plaintext of one record
HELD_BYTES: Final = 1024  # a report has 80; more is no chatter
WRITE_BUFFER_BYTES: Final = 64 * 1024  # asyncio's default high-water mark, per direction
ANONYMOUS_BYTES: Final = 64 * 1024  # client to server, TLS included: four times limits.PRE_AUTH_MESSAGE_BYTES
BACKEND_RETRY_S: Final = 0.02  # the backend's accept queue (4096) is full only for as long as its loop is busy
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER: drop what is queued in the kernel, answer with a reset
_CERTIFICATE_EXPIRED: Final = 10  # X509_V_ERR_CERT_HAS_EXPIRED


class Phase(Enum):
    """Where a connection stands."""

    HELLO = auto()  # its ClientHello is incomplete; nothing was spent on it
    WAITING = auto()  # for its turn
    HANDSHAKE = auto()
    CONNECTING = auto()  # to the backend
    RELAY = auto()
    CLOSING = auto()  # one side said its last word, the rest is being delivered
    CLOSED = auto()


class Why(StrEnum):
    """Why the front refused or cut a connection: bounded codes for metrics."""

    FULL = "full"  # too many connections for this process' file descriptors
    CROWDED = "crowded"  # too many unauthenticated ones, of this address or altogether
    SILENT = "silent"  # no complete ClientHello in time
    MALFORMED = "malformed"  # not a ClientHello
    SLOW = "slow"  # handshake not finished in time
    HANDSHAKE = "handshake"  # TLS alert: wrong version or suite, broken record
    UNTRUSTED = "untrusted"  # certificate not of our CA
    EXPIRED = "expired"
    PROTOCOL = "protocol"  # ALPN names nothing we speak
    IDENTITY = "identity"  # certificate of our CA, but not one SPIFFE id of this mesh
    REVOKED = "revoked"
    BACKEND = "backend"  # grpc did not take the connection
    GONE = "gone"  # the client left before it was served
    TOO_MUCH = "too-much"  # an anonymous client sent more than it may
    TOO_LONG = "too-long"  # an anonymous client stayed longer than it may
    SURPLUS = "surplus"  # one identity, too many connections: the oldest goes
    STUCK = "stuck"  # did not take its last bytes in time
    FAULT = "fault"  # an exception of ours
    STOPPED = "stopped"


SERVED: Final = (Phase.RELAY, Phase.CLOSING)

_P = ParamSpec("_P")


def _contained(step: Callable[Concatenate[Connection, _P], None]) -> Callable[Concatenate[Connection, _P], None]:
    """What goes wrong in one connection ends that connection; the event loop and the others never hear of it."""

    def guarded(self: Connection, /, *args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            step(self, *args, **kwargs)
        except Exception:
            _log.exception("a connection from %s ended by a fault of the TLS front", self.address)
            self.end(Why.FAULT)

    return guarded


def _pause(transport: asyncio.Transport) -> None:
    if not transport.is_closing():
        transport.pause_reading()


def _resume(transport: asyncio.Transport) -> None:
    if not transport.is_closing():
        transport.resume_reading()


class _Backend(asyncio.BufferedProtocol):
    """The side of a relay that faces grpc."""

    def __init__(self, client: Connection) -> None:
        self.client = client
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self.client.connected(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.client.front.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.client.send(self.client.front.buffer[:nbytes])

    def eof_received(self) -> bool:
        self.client.finish()
        return True

    def pause_writing(self) -> None:
        _pause(self.client.transport)

    def resume_writing(self) -> None:
        _resume(self.client.transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.client.finish()
        self.client.side_lost()


class Connection(asyncio.BufferedProtocol):
    """The side of a relay that faces the client, and the state of both."""

    def __init__(self, front: Front) -> None:
        self.front = front
        self.phase, self.since = Phase.HELLO, front.ticks
        self.client = tls.Client()
        self.address: IPv4Address | IPv6Address | None = None
        self.transport: asyncio.Transport
        self._backend: _Backend | None = None
        self._sides = 0  # sockets that are not closed yet
        self._received = 0
        self._held = b""  # for grpc, while the front gathers
        self._hello = bytearray()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject

    # ---- what the event loop calls -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._sides += 1
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self._arrive()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.front.buffer

    @_contained
    def buffer_updated(self, nbytes: int) -> None:
        data = self.front.buffer[:nbytes]
        self._received += nbytes
        match self.phase:
            case Phase.HELLO:
                self._listen(data)
            case Phase.WAITING:  # a TLS client has nothing to say before our answer
                self.end(Why.MALFORMED)
            case Phase.HANDSHAKE:
                self._incoming.write(data)
                self._shake()
            case Phase.CONNECTING:
                self._incoming.write(data)
            case Phase.RELAY:
                self._incoming.write(data)
                self._receive()
            case Phase.CLOSING | Phase.CLOSED:
                pass

    def eof_received(self) -> bool:
        """The client's last word, by TLS or by TCP: grpc hears of it and may still answer."""
        if self.phase is Phase.RELAY and self._backend is not None:
            self.release()
            self.enter(Phase.CLOSING)
            if not self._backend.transport.is_closing():
                self._backend.transport.write_eof()
        elif self.phase is not Phase.CLOSING:
            self.end(Why.GONE)
        return True

    def pause_writing(self) -> None:
        if self._backend is not None:
            _pause(self._backend.transport)

    def resume_writing(self) -> None:
        if self._backend is not None:
            _resume(self._backend.transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.phase not in (*SERVED, Phase.CLOSED):
            self.front.ended(self, Why.GONE)
        self.enter(Phase.CLOSED)
        if self._backend is not None:
            self._backend.transport.abort()
        self.side_lost()

    # ---- from the first byte to the relay ----------------------------------------------------------------------------

    def enter(self, phase: Phase) -> None:
        """Go on to `phase`; its time starts now."""
        lasted = self.front.ticks - self.since
        self.phase, self.since = phase, self.front.ticks
        self.front.entered(self, lasted)

    @_contained
    def _arrive(self) -> None:
        name = self.transport.get_extra_info("peername")
        if name is None:  # reset before it was accepted
            self.end(Why.GONE)
            return
        self.address = peer.client_address(name[0])
        self.front.arrived(self)

    def _listen(self, data: memoryview) -> None:
        self._hello += data
        try:
            complete = tls.client_hello_bytes(self._hello)
        except TrustError:
            self.end(Why.MALFORMED)
            return
        if complete is not None and complete == len(self._hello):
            self._incoming.write(self._hello)
            self._hello.clear()
            self.enter(Phase.WAITING)

    @_contained
    def start(self, context: ssl.SSLContext) -> None:
        """It is this connection's turn: answer the ClientHello."""
        self.enter(Phase.HANDSHAKE)
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._shake()

    def _shake(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
        except ssl.SSLCertVerificationError as error:
            self.end(Why.EXPIRED if error.verify_code == _CERTIFICATE_EXPIRED else Why.UNTRUSTED)
        except ssl.SSLError:
            self.end(Why.HANDSHAKE)
        else:
            self._flush()
            self._identify()

    def _identify(self) -> None:
        protocol, certificate = self._tls.selected_alpn_protocol(), self._tls.getpeercert(binary_form=True)
        if protocol != tls.GRPC_PROTOCOL:
            self.end(Why.PROTOCOL)
            return
        try:
            self.client = tls.client_of(certificate, self.front.mesh_id)
        except TrustError:
            self.end(Why.IDENTITY)
            return
        if (refusal := self.front.admitted(self, certificate)) is not None:
            self.end(refusal)
            return
        self.enter(Phase.CONNECTING)
        self.transport.pause_reading()
        end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sides += 1
        self.front.spawn(self._connect(end))

    async def _connect(self, end: socket.socket) -> None:
        """A named socket to grpc. Its connect() never blocks: it succeeds, or the accept queue is full."""
        assert self.address is not None
        try:
            end.setblocking(False)
            end.bind(peer.socket_name(peer.PeerIdentity(self.address, self.client.uri)))
            while self.phase is Phase.CONNECTING:
                with contextlib.suppress(BlockingIOError):
                    end.connect(str(self.front.backend))
                    await asyncio.get_running_loop().create_unix_connection(lambda: _Backend(self), sock=end)
                    return
                await asyncio.sleep(BACKEND_RETRY_S)
        except Exception as error:
            _log.error("no connection to grpc's socket: %s", error)
            self.end(Why.BACKEND)
        end.close()
        self.side_lost()

    @_contained
    def connected(self, backend: _Backend) -> None:
        """The backend took the connection: let the bytes flow."""
        self._backend = backend
        if self.phase is not Phase.CONNECTING:
            backend.transport.abort()
            return
        self.enter(Phase.RELAY)
        self.transport.resume_reading()
        self._receive()

    # ---- the relay ---------------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        if self.client.uri is None and self._received > ANONYMOUS_BYTES:
            self.end(Why.TOO_MUCH)
            return
        try:
            while self._incoming.pending:
                plain = self._tls.read(RECORD_BYTES)
                if not plain:
                    self.eof_received()
                    break
                self._forward(plain)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            self.end(Why.HANDSHAKE)
        self._flush()

    def _forward(self, plain: bytes) -> None:
        if self._held:
            self._held += plain
            if len(self._held) > HELD_BYTES:
                self.release()
        elif len(plain) <= HELD_BYTES and self.client.uri and self.front.gathers(self):
            self._held = plain
        elif self._backend is not None:
            self._backend.transport.write(plain)

    @_contained
    def release(self) -> None:
        """Give grpc what was kept for it."""
        plain, self._held = self._held, b""
        if plain and self.phase in SERVED and self._backend is not None and not self._backend.transport.is_closing():
            self._backend.transport.write(plain)

    @_contained
    def send(self, data: memoryview) -> None:
        """Encrypt what grpc says. A write takes one record at a time."""
        if self.phase in SERVED:
            while data:
                data = data[self._tls.write(data) :]
            self._flush()

    def _flush(self) -> None:
        if self._outgoing.pending and not self.transport.is_closing():
            self.transport.write(self._outgoing.read())

    # ---- the end -----------------------------------------------------------------------------------------------------

    @_contained
    def finish(self) -> None:
        """Nothing more will come for the client: deliver what there is, say goodbye, close."""
        if self.phase is Phase.CLOSED or self.transport.is_closing():
            return
        with contextlib.suppress(ssl.SSLError):  # it wants the client's goodbye, which nobody waits for
            self._tls.unwrap()
        self._flush()
        self.enter(Phase.CLOSING)
        self.transport.close()
        if self._backend is not None:
            self._backend.transport.close()

    def end(self, why: Why) -> None:
        """Refuse or cut, now. A refused handshake still sends its alert; a cut leaves nothing to be delivered."""
        if self.phase is Phase.CLOSED:
            return
        explained = self.phase is Phase.HANDSHAKE
        self.front.ended(self, why)
        self.enter(Phase.CLOSED)
        if explained:
            self._flush()
            self.transport.close()
        else:
            with contextlib.suppress(OSError):
                self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.transport.abort()
        if self._backend is not None:
            self._backend.transport.abort()

    def side_lost(self) -> None:
        """One of the sockets is closed; after the last one the front forgets this connection."""
        self._sides -= 1
        if not self._sides:
            self._backend = None
            self.front.gone(self)
