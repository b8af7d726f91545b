"""A mesh's certificates, stock grpcio channels and raw TLS bytes, for tests of the front. Decides nothing by itself."""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from coordinator import tls
from meshctl.crypto import identity, pki

MESH_ID = "testmesh"
RECORD_HEADER = 5
HANDSHAKE, SERVER_HELLO = 22, 2
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"  # and an empty SETTINGS frame


@dataclass(frozen=True)
class Node:
    """A client's key and certificate."""

    id: str
    key: pki.Key
    certificate: bytes

    @property
    def uri(self) -> str:
        return pki.spiffe_id(MESH_ID, self.id)


@dataclass
class Mesh:
    """A CA and what it issues."""

    id: str = MESH_ID
    ca_key: pki.Key = field(init=False)
    ca: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.ca_key, self.ca = pki.make_ca(self.id)

    def credentials(self) -> tls.Credentials:
        """A coordinator's, with a fresh leaf."""
        key, leaf = pki.issue_coordinator(self.ca_key, self.ca)
        return tls.Credentials(self.ca, leaf, key)

    def node(self, *, now: float | None = None, life_s: float = 3600.0, mesh_id: str | None = None) -> Node:
        """A new node; `mesh_id` is what the certificate claims."""
        keys = identity.Identity.generate()
        at = time.time() if now is None else now
        leaf = pki.issue_node(self.ca_key, self.ca, mesh_id or self.id, keys.device_key, keys.id, now=at, life_s=life_s)
        return Node(keys.id, keys.device, leaf)

    def node_named(self, uris: Sequence[str]) -> Node:
        """A certificate of our CA with exactly these URIs, which pki would never issue."""
        keys = identity.Identity.generate()
        ca, now = x509.load_der_x509_certificate(self.ca), dt.datetime.now(dt.UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, keys.id)])
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(ca.subject).serial_number(1)
        builder = builder.public_key(keys.device.public_key())
        hour = dt.timedelta(hours=1)  # before, too: the clock that OpenSSL asks lags by milliseconds
        builder = builder.not_valid_before(now - hour).not_valid_after(now + hour)
        names = [x509.UniformResourceIdentifier(uri) for uri in uris]
        for extension in (
            x509.SubjectAlternativeName(names),
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]),
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self.ca_key.public_key()),
        ):
            builder = builder.add_extension(extension, critical=False)
        leaf = builder.sign(self.ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
        return Node(keys.id, keys.device, leaf)


def channel(port: int, ca: bytes, node: Node | None = None, host: str = "127.0.0.1") -> grpc.aio.Channel:
    """Stock grpcio, as an agent uses it; without `node` it shows no certificate."""
    credentials = grpc.ssl_channel_credentials(
        root_certificates=pki.pem(ca),
        private_key=pki.key_pem(node.key) if node else None,
        certificate_chain=pki.pem(node.certificate) if node else None,
    )
    options = [
        ("grpc.ssl_target_name_override", pki.COORDINATOR_NAME),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 0),
    ]
    return grpc.aio.secure_channel(f"{host}:{port}", credentials, options)


def client_context(*protocols: str, ca: bytes | None = None) -> ssl.SSLContext:
    """Python's own TLS client; without `ca` it believes anybody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if ca is not None:
        context.load_verify_locations(cadata=ca)
        context.verify_mode = ssl.CERT_REQUIRED
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


def client_hello() -> bytes:
    """The first flight of a TLS client that speaks gRPC."""
    outgoing = ssl.MemoryBIO()
    client = client_context("h2").wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=pki.COORDINATOR_NAME)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("a handshake cannot end before it began")


def server_hello_suite(stream: bytes) -> int:
    """The cipher suite in the ServerHello that `stream`, as seen on the wire, begins with (RFC 8446, 4.1.3)."""
    kind, message = stream[0], stream[RECORD_HEADER:]
    assert kind == HANDSHAKE, f"record type {kind} is not a handshake"
    assert message[0] == SERVER_HELLO, f"message {message[0]} is not a ServerHello"
    session = 4 + 2 + 32  # behind header, version and random
    suite = session + 1 + message[session]
    return int.from_bytes(message[suite : suite + 2], "big")


@dataclass
class Recording:
    """What went over the wire, in both directions."""

    port: int = 0
    up: bytearray = field(default_factory=bytearray)
    down: bytearray = field(default_factory=bytearray)


@asynccontextmanager
async def recorded(port: int) -> AsyncIterator[Recording]:
    """A TCP relay to 127.0.0.1:`port` that keeps a copy of all bytes."""
    recording = Recording()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray) -> None:
        try:
            while data := await reader.read(65536):
                kept += data
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.TaskGroup() as both:
            both.create_task(copy(reader, far_writer, recording.up))
            both.create_task(copy(far_reader, writer, recording.down))

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    recording.port = server.sockets[0].getsockname()[1]
    try:
        yield recording
    finally:
        server.close()
        await server.wait_closed()
