"""WireGuard's handshake initiation: one as anybody may send it, to see whether it is answered (MESH-STR-001), and whose
one is that came (NET-5).

Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s, after Donenfeld, "WireGuard: Next Generation Kernel Network Tunnel", sections
5.4.2 and 5.4.4. The first message alone: no session is ever made here, and nobody's key is stored. The pre-shared key
enters with the second message.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import x25519
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from meshctl.crypto.identity import public_key
from meshctl.errors import TrustError
from meshctl.mesh import frames
from meshctl.mesh.keys import PrivateKey, PublicKey

_CONSTRUCTION: Final = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
_IDENTIFIER: Final = b"WireGuard v1 zx2c4 Jason@zx2c4.com"
_LABEL_MAC1: Final = b"mac1----"
_TAI64_OFFSET: Final = 0x400000000000000A
_NONCE: Final = bytes(12)
_BODY_BYTES: Final = 116  # of an initiation: without its two MACs


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
    point = ephemeral.public_key().public_bytes_raw()
    chain, digest = _begun(theirs, point)
    chain, key = _kdf(chain, shared)
    sealed_static = ChaCha20Poly1305(key).encrypt(_NONCE, static.public_key().public_bytes_raw(), digest)
    digest = _hash(digest, sealed_static)
    chain, key = _kdf(chain, static_shared)
    sealed_time = ChaCha20Poly1305(key).encrypt(_NONCE, tai64n(unix_ns), digest)
    body = struct.pack("<II", 1, index) + point + sealed_static + sealed_time
    return body + _mac1(theirs, body) + bytes(16)


def initiator(message: bytes, ours: PrivateKey) -> PublicKey | None:
    """Whose initiation to the owner of `ours` this is; only the key's owner can make it. None: nobody's, not to us."""
    me, body = public_key(ours), message[:_BODY_BYTES]
    if len(message) != frames.INITIATION_BYTES or not hmac.compare_digest(message[_BODY_BYTES:-16], _mac1(me, body)):
        return None
    static = x25519.X25519PrivateKey.from_private_bytes(ours.raw)
    point, sealed_static, sealed_time = message[8:40], message[40:88], message[88:_BODY_BYTES]
    chain, digest = _begun(me, point)
    try:
        chain, key = _kdf(chain, static.exchange(x25519.X25519PublicKey.from_public_bytes(point)))
        theirs = ChaCha20Poly1305(key).decrypt(_NONCE, sealed_static, digest)
        _, key = _kdf(chain, static.exchange(x25519.X25519PublicKey.from_public_bytes(theirs)))
        ChaCha20Poly1305(key).decrypt(_NONCE, sealed_time, _hash(digest, sealed_static))
    except (InvalidTag, ValueError):  # ValueError: a point of small order
        return None
    return PublicKey(theirs)


def _begun(responder: PublicKey, point: bytes) -> tuple[bytes, bytes]:
    """(chaining key, hash) after the ephemeral key."""
    chain = _hash(_CONSTRUCTION)
    digest = _hash(_hash(chain, _IDENTIFIER), responder.raw)
    return _kdf(chain, point)[0], _hash(digest, point)


def _mac1(receiver: PublicKey, body: bytes) -> bytes:
    return hashlib.blake2s(body, key=_hash(_LABEL_MAC1, receiver.raw), digest_size=16).digest()
