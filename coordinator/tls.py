"""What the TLS front demands: one suite, one plausible ClientHello, one SPIFFE id per certificate (ENC-3, ACC-4).

Builds the server's context and judges bytes and certificates; it opens no socket and keeps no state. It must never fall
back to a wider choice of ciphers: where OpenSSL cannot be held to AES-256, the coordinator does not start.
"""

from __future__ import annotations

import _ssl
import ctypes
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509

from meshctl.crypto import pki
from meshctl.errors import EnvironmentFault, TrustError

SUITE: Final = "TLS_AES_256_GCM_SHA384"  # ENC-3; 0x1302 on the wire
GRPC_PROTOCOL: Final = "h2"
CLIENT_HELLO_BYTES: Final = 8 * 1024  # stock grpcio with ML-KEM and our ALPN sends 1.8 kB
_RECORD_HEADER_BYTES: Final = 5  # RFC 8446, 5.1: type, version, length
_MESSAGE_HEADER_BYTES: Final = 4  # RFC 8446, 4: type, 24-bit length


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """What one coordinator shows and trusts: the mesh's CA (DER), its own leaf (DER) and the leaf's key."""

    ca: bytes
    certificate: bytes
    key: pki.Key

    def __repr__(self) -> str:
        return f"Credentials(ca={pki.fingerprint(self.ca).hex()[:16]}, key=hidden)"


@dataclass(frozen=True, slots=True)
class Client:
    """Who a verified certificate names; `uri` is None for a client without one. `expires` is in unix seconds."""

    uri: str | None = None
    expires: float = float("inf")


def server_context(credentials: Credentials) -> ssl.SSLContext:
    """TLS 1.3 with AES-256-GCM alone, client certificates optional but verified, no resumption.

    A resumed session would skip the client certificate's verification, so no tickets are given. Raises EnvironmentFault
    where OpenSSL cannot be restricted, TrustError where the credentials do not fit together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    context.verify_mode = ssl.CERT_OPTIONAL
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.set_alpn_protocols([GRPC_PROTOCOL])
    _restrict(context)
    try:
        context.load_verify_locations(cadata=credentials.ca)
        load_leaf(context, credentials)
    except ssl.SSLError as error:
        raise TrustError(f"the coordinator's TLS credentials do not fit together: {error.reason}") from error
    return context


def load_leaf(context: ssl.SSLContext, credentials: Credentials) -> None:
    """Python's ssl reads a key from a path only; an anonymous memory file keeps it off every disk."""
    memory = os.memfd_create("leaf")
    try:
        os.write(memory, pki.key_pem(credentials.key) + pki.pem(credentials.certificate))
        context.load_cert_chain(Path(f"/proc/self/fd/{memory}"))
    finally:
        os.close(memory)


def _suites(context: ssl.SSLContext) -> list[str]:
    return [suite["name"] for suite in context.get_ciphers() if suite["protocol"] == "TLSv1.3"]


def _restrict(context: ssl.SSLContext) -> None:
    """Leave `SUITE` as the only suite, by whichever way this Python has, and look whether it worked."""
    if hasattr(context, "set_ciphersuites"):  # Python 3.15
        context.set_ciphersuites(SUITE)
    elif _suites(context) != [SUITE]:  # an OPENSSL_CONF may have done it already
        _restrict_by_pointer(context)
    if _suites(context) != [SUITE]:
        raise EnvironmentFault(
            f"this Python's OpenSSL cannot be restricted to {SUITE}",
            f"set OPENSSL_CONF to a file whose system_default section says Ciphersuites = {SUITE}",
        )


def _restrict_by_pointer(context: ssl.SSLContext) -> None:
    """Before 3.15 `ssl` hides SSL_CTX_set_ciphersuites; the SSL_CTX pointer comes first after the object's header.

    The function is looked up through `_ssl` itself, so it is of the very library that made the context.
    """
    library = ctypes.CDLL(getattr(_ssl, "__file__", None))
    function = getattr(library, "SSL_CTX_set_ciphersuites", None)
    if function is None:
        return
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_char_p), ctypes.c_int
    function(ctypes.c_void_p.from_address(id(context) + object.__basicsize__), SUITE.encode())


def client_hello_bytes(data: bytes | bytearray) -> int | None:
    """Length of the ClientHello record that `data` begins with, None while too little has come to know.

    Cheap plausibility, before any cryptography: exactly one handshake record with exactly one ClientHello. Raises
    TrustError for anything else, and for more bytes than the record has: no client may speak again before our answer.
    """
    need = _RECORD_HEADER_BYTES + _MESSAGE_HEADER_BYTES
    expected = (b"\x16", b"\x03", b"\x01\x02\x03")
    if any(byte not in allowed for byte, allowed in zip(data, expected, strict=False)):
        raise TrustError("not a TLS handshake")
    if len(data) < need:
        return None
    record = int.from_bytes(data[3:5], "big")
    message = int.from_bytes(data[6:9], "big")
    if data[5] != 1 or message != record - _MESSAGE_HEADER_BYTES or record > CLIENT_HELLO_BYTES:
        raise TrustError("not one ClientHello of a sane size")
    total = _RECORD_HEADER_BYTES + record
    if len(data) > total:
        raise TrustError("data behind the ClientHello")
    return total


def client_of(certificate: bytes | None, mesh_id: str) -> Client:
    """The client that a certificate verified by OpenSSL names. Raises TrustError.

    OpenSSL has checked chain, dates and purpose. What is left: exactly one name, which is a SPIFFE URI of this mesh.
    """
    if certificate is None:
        return Client()
    try:
        parsed = x509.load_der_x509_certificate(certificate)
        names = list(parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except (ValueError, x509.ExtensionNotFound) as error:
        raise TrustError("the client certificate carries no readable name") from error
    if len(names) != 1 or not isinstance(names[0], x509.UniformResourceIdentifier):
        raise TrustError("the client certificate must carry exactly one name, a SPIFFE URI")
    uri = names[0].value
    pki.node_of(uri, mesh_id)
    return Client(uri, parsed.not_valid_after_utc.timestamp())
