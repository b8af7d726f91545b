"""Connections to a coordinator: gRPC over TLS with pinned CA (ENC-3, NET-1).

Every channel is verified against the mesh's CA and nothing else; the first one too, as the token carries the CA's key.
"""

from __future__ import annotations

import grpc

from meshctl.crypto import pki
from meshctl.crypto.identity import Identity
from meshctl.errors import UnreachableError
from meshctl.mesh import limits


def split(address: str) -> tuple[str, int]:
    """HOST:PORT or [HOST]:PORT."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        raise UnreachableError(f"{address!r} is not a coordinator address", "HOST:PORT")
    return host.strip("[]"), int(port)


def open_channel(
    address: str, ca: bytes, identity: Identity | None = None, certificate: bytes = b""
) -> grpc.aio.Channel:
    """A channel to `address`; `ca` is its certificate or an anchor (DER). With identity and certificate it is mutual.

    Raises UnreachableError when `address` is none.
    """
    split(address)
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
