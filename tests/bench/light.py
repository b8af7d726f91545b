"""A gRPC client small enough for thousands in one process: TLS on memory BIOs, HTTP/2 frames by hand (OPS-3).

For benches only. It knows as much of HTTP/2 as a client of our own coordinator needs: one literal header block per
call, no Huffman, no dynamic table, a receive window that never fills. stock grpcio costs 100 kB and 1 ms of CPU per
connection, which would be measured instead of the coordinator.
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections.abc import Callable

from meshctl.crypto import pki

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, ACK, PADDED = 0x1, 0x1, 0x8
WINDOW = 2**31 - 1
PREFACE = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    + struct.pack(">I", 18)[1:] + bytes([SETTINGS, 0]) + bytes(4)
    + struct.pack(">HIHIHI", 1, 0, 2, 0, 4, WINDOW)  # no header table, no push, widest window
    + struct.pack(">I", 4)[1:] + bytes([8, 0]) + bytes(4) + struct.pack(">I", WINDOW - 65535)
)  # fmt: skip
SETTINGS_ACK = b"\0\0\0\x04\x01\0\0\0\0"


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One HTTP/2 frame."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def headers(path: str, authority: str) -> bytes:
    """The header block of a gRPC call: static names where HPACK has them, literals without indexing else."""

    def text(value: str) -> bytes:
        return bytes([len(value)]) + value.encode()

    block = b"\x83\x87"  # :method POST, :scheme https
    block += b"\x04" + text(path) + b"\x01" + text(authority)
    for name, value in (("te", "trailers"), ("content-type", "application/grpc")):
        block += b"\x00" + text(name) + text(value)
    return block


def message(raw: bytes) -> bytes:
    """A gRPC message, uncompressed."""
    return b"\0" + struct.pack(">I", len(raw)) + raw


class Wire:
    """One TLS connection. Give `readable` and `writable` the loop's events; it calls back.

    `on_open()` after the handshake, `on_message(stream, raw)`, `on_end(stream)`, `on_lost(why)` once at the end.
    Without a context it is a plain TCP connection, on which every piece of plaintext is a message.
    """

    __slots__ = (
        "_in", "_left", "_out", "_pending", "_tls", "connected_at", "on_end", "on_lost", "on_message", "on_open",
        "open", "partial", "received", "sock",
    )  # fmt: skip

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=pki.COORDINATOR_NAME) if context else None
        self.open, self.connected_at = False, 0.0
        self._pending = self._left = b""
        self.partial: dict[int, bytearray] = {}
        self.received = 0  # frames that carry messages
        self.on_open: Callable[[], None]
        self.on_message: Callable[[int, bytes], None]
        self.on_end: Callable[[int], None]
        self.on_lost: Callable[[str], None]

    def dial(self, address: tuple[str, int], source: str) -> socket.socket:
        """Begin to connect; register the socket for reading and writing."""
        self.sock = sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT: the same port for several sources
        sock.bind((source, 0))
        sock.connect_ex(address)
        return sock

    def writable(self) -> None:
        """TCP is connected, or there is room again."""
        if not self.connected_at:
            if error := self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self.on_lost(f"connect: {error}")
                return
            self.connected_at = time.monotonic()
            if self._tls is None:
                self.open = True
                self.on_open()
            else:
                self._shake()
        self._push(b"")

    def readable(self) -> None:
        """Bytes have come, or the end."""
        try:
            data = self.sock.recv(262144)
        except BlockingIOError:
            return
        except OSError as error:
            self.on_lost(f"read: {error.errno}")
            return
        if not data:
            self.on_lost("closed")
            return
        if self._tls is None:
            self.on_message(0, data)
            return
        self._in.write(data)
        if not self.open:
            self._shake()
        if self.open:
            self._take()

    def _shake(self) -> None:
        assert self._tls is not None
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._push(self._out.read())
            return
        except ssl.SSLError as error:
            self.on_lost(f"tls: {error.reason}")
            return
        self.open = True
        self._tls.write(PREFACE)
        self._push(self._out.read())
        self.on_open()

    def _take(self) -> None:
        assert self._tls is not None
        parts = []
        ended = ""
        try:
            while part := self._tls.read(65536):
                parts.append(part)
            ended = "closed"
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            ended = f"tls: {error.reason}"
        if parts:
            plain = parts[0] if len(parts) == 1 else b"".join(parts)
            self._frames(self._left + plain if self._left else plain)
        if ended:
            self.on_lost(ended)

    def _frames(self, data: bytes) -> None:
        at, size = 0, len(data)
        while size - at >= 9:
            end = at + 9 + int.from_bytes(data[at : at + 3], "big")
            if end > size:
                break
            kind, flags = data[at + 3], data[at + 4]
            stream = int.from_bytes(data[at + 5 : at + 9], "big")
            if kind == DATA:
                self._data(stream, data[at + 9 : end])
            elif kind == SETTINGS and not flags & ACK:
                self.send_raw(SETTINGS_ACK)
            elif kind == PING and not flags & ACK:
                self.send_raw(frame(PING, ACK, 0, data[at + 9 : end]))
            elif kind == GOAWAY:
                self.on_lost("goaway")
                return
            if kind == RST_STREAM or (kind in (DATA, HEADERS) and flags & END_STREAM):
                self.on_end(stream)
            at = end
        self._left = data[at:]

    def _data(self, stream: int, payload: bytes) -> None:
        held = self.partial.get(stream)
        if held is None:
            need = int.from_bytes(payload[1:5], "big") + 5 if len(payload) >= 5 else -1
            if len(payload) == need:  # the usual case: one message, one frame
                self.received += 1
                self.on_message(stream, payload[5:])
                return
            held = self.partial[stream] = bytearray()
        held += payload
        while len(held) >= 5 and len(held) >= (need := int.from_bytes(held[1:5], "big") + 5):
            raw = bytes(held[5:need])
            del held[:need]
            self.received += 1
            self.on_message(stream, raw)
        if not held:
            self.partial.pop(stream, None)

    def call(self, stream: int, path: str, *messages: bytes, end: bool = False) -> None:
        """Begin a call with its first messages."""
        block = frame(HEADERS, 0x4, stream, headers(path, pki.COORDINATOR_NAME))
        body = b"".join(message(raw) for raw in messages)
        self.send_raw(block + frame(DATA, END_STREAM if end else 0, stream, body))

    def send(self, stream: int, raw: bytes) -> None:
        """One more message."""
        self.send_raw(frame(DATA, 0, stream, message(raw)))

    def send_raw(self, data: bytes) -> None:
        """Bytes of HTTP/2, or of whatever is spoken."""
        if self._tls is None:
            self._push(data)
            return
        self._tls.write(data)
        self._push(self._out.read())

    def _push(self, data: bytes) -> None:
        data = self._pending + data if self._pending else data
        if not data:
            return
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # the read side tells
        self._pending = data[sent:]

    @property
    def stuck(self) -> bool:
        """Whether something waits for room."""
        return bool(self._pending)
