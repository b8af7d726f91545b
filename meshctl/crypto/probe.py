"""The key of a pair, and the tags of its echoes (NET-7).

The key comes from both probe keys *and* both key statements: an echo with a valid tag proves that the other end holds
the probe key of the registry's statement, and that it believes the same of us. No packet format here (mesh/probe.py).
"""

from __future__ import annotations

import hashlib
import hmac

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import x25519
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from meshctl.errors import TrustError
from meshctl.mesh.model import node_id
from meshctl.mesh.probe import TAG_BYTES
from meshctl.mesh.statement import Statement

_CONTEXT = b"meshctl/probe/v1"


class PairKey:
    """Keyed BLAKE2s, 16 bytes of tag. Holds the keyed state, not the key."""

    __slots__ = ("_keyed",)

    def __init__(self, key: bytes) -> None:
        self._keyed = hashlib.blake2s(key=key, digest_size=TAG_BYTES)

    def __repr__(self) -> str:
        return "PairKey(hidden)"

    def _tag(self, body: bytes) -> bytes:
        state = self._keyed.copy()
        state.update(body)
        return state.digest()

    def seal(self, body: bytes) -> bytes:
        """`body` and its tag."""
        return body + self._tag(body)

    def is_genuine(self, datagram: bytes) -> bool:
        """Whether the last 16 bytes are the tag of the others. Constant time."""
        return hmac.compare_digest(self._tag(datagram[:-TAG_BYTES]), datagram[-TAG_BYTES:])


def pair_key(private: x25519.X25519PrivateKey, mine: Statement, theirs: Statement) -> PairKey:
    """The key both ends of a pair derive from X25519 and HKDF-SHA256.

    Raises TrustError for a peer's probe key that is no point of large order.
    """
    first, second = sorted((mine, theirs), key=lambda s: node_id(s.device_key))
    try:
        shared = private.exchange(x25519.X25519PublicKey.from_public_bytes(theirs.probe))
    except ValueError as error:
        raise TrustError("a node states a probe key that cannot be one", "revoke that node: it crafted it") from error
    info = _CONTEXT + first.fingerprint + second.fingerprint
    return PairKey(HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(shared))
