"""A tiny HTTP/1.1 server for machines that watch: GET and HEAD, one request a connection, answers from memory (MON-6).

For /healthz, /readyz and /metrics of nodes and coordinators, and for the root-only status socket. Not a web framework:
no bodies in, no routing patterns, no keep-alive, no TLS. Everything a client can take is bounded: bytes of the request,
time to send it, time to read the answer, connections at once.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISSOCK
from typing import Final
from urllib.parse import parse_qsl, urlsplit

import msgspec

from meshctl.errors import EnvironmentFault, ProtocolError

_REQUEST_BYTES: Final = 8 * 1024  # request line and headers; scrapers send under 1 kB
_REQUEST_S: Final = 5.0
_ANSWER_S: Final = 10.0  # Prometheus' default scrape timeout
_CONNECTIONS: Final = 64
_REASONS: Final = {
    200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed",
    431: "Request Header Fields Too Large", 500: "Internal Server Error", 503: "Service Unavailable",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Request:
    """What a handler may know of a request."""

    method: str
    path: str
    query: Mapping[str, str]
    accept: str

    @property
    def wants_json(self) -> bool:
        """`?json`, or an Accept header that names it."""
        return "json" in self.query or "application/json" in self.accept


@dataclass(frozen=True, slots=True)
class Response:
    """What goes back."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"

    @classmethod
    def text(cls, status: int, words: str) -> Response:
        """Short words, ended by a line break."""
        return cls(status, words.encode() + b"\n")

    @classmethod
    def json(cls, status: int, value: object) -> Response:
        """Any value msgspec can encode."""
        return cls(status, msgspec.json.encode(value) + b"\n", "application/json")


Handler = Callable[[Request], Response]


class Server:
    """Serves `handlers`, which answer from memory and at once, on any number of sockets until closed."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers
        self._servers: list[asyncio.Server] = []
        self._paths: list[Path] = []
        self._open: set[asyncio.StreamWriter] = set()

    async def listen(self, host: str, port: int) -> int:
        """Serve on a TCP address; returns the port, which for 0 the system chose. Raises EnvironmentFault."""
        try:
            server = await asyncio.start_server(self._serve, host, port, limit=_REQUEST_BYTES)
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            hint = "choose another address in the settings" if taken else "does this machine have that address?"
            raise EnvironmentFault(f"cannot listen on {host} port {port}: {error.strerror or error}", hint) from error
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def listen_unix(self, path: Path) -> None:
        """Serve on a socket file for this user alone. Takes over a file nobody serves. Raises EnvironmentFault."""
        sock = _private_socket(path)
        self._servers.append(await asyncio.start_unix_server(self._serve, sock=sock, limit=_REQUEST_BYTES))
        self._paths.append(path)

    async def close(self) -> None:
        """Stop listening, cut what is open, remove the socket files."""
        for server in self._servers:
            server.close()
        for writer in list(self._open):
            writer.transport.abort()
        for path in self._paths:
            path.unlink(missing_ok=True)
        self._servers.clear()
        self._paths.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= _CONNECTIONS:
            writer.transport.abort()
            return
        self._open.add(writer)
        closed = False
        try:
            async with asyncio.timeout(_REQUEST_S):
                answer = await self._answer(reader)
            async with asyncio.timeout(_ANSWER_S):
                writer.write(answer)
                await writer.drain()
                writer.close()
                await writer.wait_closed()
            closed = True
        except (TimeoutError, OSError, EOFError):
            pass
        finally:
            self._open.discard(writer)
            if not closed:  # asyncio fails on a transport that has ended after a long answer
                writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        try:
            request = _parse(await reader.readuntil(b"\r\n\r\n"))
        except asyncio.LimitOverrunError:
            return _encode(Response.text(431, f"requests have at most {_REQUEST_BYTES} bytes"))
        except ProtocolError as error:
            return _encode(Response.text(400, error.what))
        if request.method not in {"GET", "HEAD"}:
            return _encode(Response.text(405, "only GET and HEAD"))
        handler = self._handlers.get(request.path)
        if handler is None:
            response = Response.text(404, "there are: " + " ".join(sorted(self._handlers)))
        else:
            try:
                response = handler(request)
            except Exception as error:  # whatever breaks in a handler must show, and must not stop the server
                response = Response.text(500, f"this is a bug, please report it: {type(error).__name__}")
        return _encode(response, with_body=request.method == "GET")


def _parse(head: bytes) -> Request:
    lines = head[:-4].decode("latin-1").split("\r\n")
    parts = lines[0].split(" ")
    if len(parts) != 3 or not parts[1].startswith("/") or not parts[2].startswith("HTTP/1."):
        raise ProtocolError("not an HTTP/1.1 request")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise ProtocolError("a header line without a name")
        headers[name.lower()] = value.strip()
    if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
        raise ProtocolError("requests have no body here")
    try:
        url = urlsplit(parts[1])
        query = dict(parse_qsl(url.query, keep_blank_values=True, max_num_fields=16))
    except ValueError as error:
        raise ProtocolError("not a URL") from error
    return Request(parts[0], url.path, query, headers.get("accept", ""))


def _encode(response: Response, *, with_body: bool = True) -> bytes:
    head = (
        f"HTTP/1.1 {response.status} {_REASONS.get(response.status, 'Status')}\r\n"
        f"Content-Type: {response.content_type}\r\nContent-Length: {len(response.body)}\r\n"
        "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (response.body if with_body else b"")


def _private_socket(path: Path) -> socket.socket:
    """Bound with mode 0600 from its first moment: a chmod afterwards would leave a gap."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        if path.exists() and S_ISSOCK(path.stat().st_mode):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.settimeout(1.0)
                if probe.connect_ex(str(path)) == 0:
                    raise EnvironmentFault(f"{path} is served already", "another meshctl runs here: stop it first")
            path.unlink()
        sock.bind(str(path))
    except OSError as error:
        sock.close()
        what = f"cannot make the socket {path}: {error.strerror or error}"
        raise EnvironmentFault(what, "is its directory there, and ours?") from error
    except EnvironmentFault:
        sock.close()
        raise
    finally:
        os.umask(before)
    return sock
