"""Connections to a coordinator: first contact by fingerprint, then gRPC over TLS with pinned CA (ENC-3, NET-1).

The node knows the SHA-256 of the CA from its token. It fetches the CA over TLS without trusting anything (ALPN
`meshctl-ca`), compares, and from then on every channel is verified against that CA and nothing else.
"""

from __future__ import annotations

import asyncio
import hmac

import grpc

from meshctl.crypto import pki
from meshctl.crypto.identity import Identity
from meshctl.errors import TrustError, UnreachableError
from meshctl.mesh import limits

CA_PROTOCOL = "meshctl-ca"
CONNECT_TIMEOUT_S = 5.0


def split(address: str) -> tuple[str, int]:
    """HOST:PORT or [HOST]:PORT."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        raise UnreachableError(f"{address!r} is not a coordinator address", "HOST:PORT")
    return host.strip("[]"), int(port)


async def fetch_ca(address: str, fingerprint: bytes) -> bytes:
    """The mesh's CA certificate (DER) from one coordinator.

    Raises UnreachableError, or TrustError when somebody else answers under that address.
    """
    import ssl  # late: only a node that joins needs it (lean.py)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # what arrives is compared with the fingerprint, nothing else counts
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([CA_PROTOCOL])
    host, port = split(address)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, port, ssl=context)
            try:
                der = await reader.read(limits.PRE_AUTH_MESSAGE_BYTES)
            finally:
                writer.close()
    except (OSError, ssl.SSLError, TimeoutError) as error:
        raise UnreachableError(
            f"coordinator {address} does not answer", "is it running, and is its TCP port open from here?"
        ) from error
    if not hmac.compare_digest(pki.fingerprint(der), fingerprint):
        raise TrustError(
            f"{address} is not a coordinator of this token's mesh: its CA has another fingerprint",
            "check the address in the token; somebody may be in between",
        )
    return der


def open_channel(
    address: str, ca: bytes, identity: Identity | None = None, certificate: bytes = b""
) -> grpc.aio.Channel:
    """A channel to `address`; with identity and certificate (DER) it is mutual."""
    credentials = grpc.ssl_channel_credentials(
        root_certificates=pki.pem(ca),
        private_key=pki.key_pem(identity.device) if identity else None,
        certificate_chain=pki.pem(certificate) if identity else None,
    )
    options = [
        ("grpc.ssl_target_name_override", pki.COORDINATOR_NAME),
        ("grpc.default_authority", pki.COORDINATOR_NAME),
        ("grpc.max_receive_message_length", limits.DOWN_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 300_000),  # the coordinator's heartbeats show a dead stream sooner (mesh/pacing.py)
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.enable_retries", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.min_reconnect_backoff_ms", 10_000),  # how long one attempt may take: past a storm's queue at the front
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 1_000),
    ]
    return grpc.aio.secure_channel(address, credentials, options=options)
