"""WireGuard's handshake initiation, as anybody may send one: to see whether it is answered (MESH-STR-001).

Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s, after Donenfeld, "WireGuard: Next Generation Kernel Network Tunnel", sections
5.4.2 and 5.4.4. The first message alone: no session is ever made here, and nobody's key is stored. The pre-shared key
enters with the second message.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import Final

from cryptography.hazmat.primitives.asymmetric import x25519
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from meshctl.errors import TrustError
from meshctl.mesh.keys import PrivateKey, PublicKey

_CONSTRUCTION: Final = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
_IDENTIFIER: Final = b"WireGuard v1 zx2c4 Jason@zx2c4.com"
_LABEL_MAC1: Final = b"mac1----"
_TAI64_OFFSET: Final = 0x400000000000000A
_NONCE: Final = bytes(12)


def _hash(*parts: bytes) -> bytes:
    return hashlib.blake2s(b"".join(parts)).digest()


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "blake2s")


def _kdf(key: bytes, data: bytes) -> tuple[bytes, bytes]:
    secret = _hmac(key, data)
    first = _hmac(secret, b"\x01")
    return first, _hmac(secret, first + b"\x02")


def tai64n(unix_ns: int) -> bytes:
    """A moment as the 12 bytes in which WireGuard compares them."""
    seconds, rest = divmod(unix_ns, 10**9)
    return struct.pack(">QI", _TAI64_OFFSET + seconds, rest)


def initiation(ours: PrivateKey, theirs: PublicKey, index: int, *, unix_ns: int) -> bytes:
    """148 bytes: type 1 from the owner of `ours` to the owner of `theirs`; an answer would name `index`.

    Raises TrustError for a key that is no point of large order.
    """
    static, ephemeral = x25519.X25519PrivateKey.from_private_bytes(ours.raw), x25519.X25519PrivateKey.generate()
    responder = x25519.X25519PublicKey.from_public_bytes(theirs.raw)
    try:
        shared, static_shared = ephemeral.exchange(responder), static.exchange(responder)
    except ValueError as error:
        raise TrustError("a node states a WireGuard key that cannot be one", "revoke that node") from error
    chain = _hash(_CONSTRUCTION)
    digest = _hash(_hash(chain, _IDENTIFIER), theirs.raw)
    point = ephemeral.public_key().public_bytes_raw()
    chain = _kdf(chain, point)[0]
    digest = _hash(digest, point)
    chain, key = _kdf(chain, shared)
    sealed_static = ChaCha20Poly1305(key).encrypt(_NONCE, static.public_key().public_bytes_raw(), digest)
    digest = _hash(digest, sealed_static)
    chain, key = _kdf(chain, static_shared)
    sealed_time = ChaCha20Poly1305(key).encrypt(_NONCE, tai64n(unix_ns), digest)
    body = struct.pack("<II", 1, index) + point + sealed_static + sealed_time
    mac1 = hashlib.blake2s(body, key=_hash(_LABEL_MAC1, theirs.raw), digest_size=16).digest()
    return body + mac1 + bytes(16)
