"""Nonces that any coordinator of the mesh can check and none has to remember: time and randomness under a shared key
(ACC-3).

A replay within the minute gains nothing: the transaction that consumes the token decides, and the answer goes to who
holds the device key. Must not be used for anything that has to happen once.
"""

from __future__ import annotations

import hashlib
import hmac
import struct

from meshctl.errors import TrustError
from meshctl.mesh import limits

_TAG = 16


def make(key: bytes, entropy: bytes, *, now: float) -> bytes:
    """40 bytes: time 8, entropy 16, tag 16. `now` in unix seconds."""
    body = struct.pack(">d", now) + entropy[:16]
    return body + hmac.digest(key, body, hashlib.sha256)[:_TAG]


def check(key: bytes, nonce: bytes, *, now: float) -> None:
    """Raise TrustError unless `nonce` is ours and younger than NONCE_LIFE_S."""
    body, tag = nonce[:-_TAG], nonce[-_TAG:]
    if len(nonce) != 40 or not hmac.compare_digest(hmac.digest(key, body, hashlib.sha256)[:_TAG], tag):
        raise TrustError("the nonce is not one of this mesh's", "try again")
    (made,) = struct.unpack_from(">d", body)
    if not -limits.NONCE_LIFE_S < now - made < limits.NONCE_LIFE_S:
        raise TrustError("the nonce is too old", "try again; if it stays so, the coordinators' clocks disagree")
