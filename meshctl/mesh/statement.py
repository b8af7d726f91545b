"""A node's key statement: the fixed 125 bytes that its device key signs, and the 64 bytes of signature.

Peers verify these very bytes and never re-encode them. Layout, big endian:

    magic "MKS1" 4 | mesh id 16, zero padded | device key 33 (compressed P-256 point) | WireGuard key 32 |
    probe key 32 (X25519) | serial 8 || signature 64 (ECDSA P-256 SHA-256, r and s)

A fixed layout is canonical by construction; protobuf is not. Endpoints are left out: they are hints. Signing and
verifying live in crypto/identity.py. Meets NET-2.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from meshctl.errors import ProtocolError
from meshctl.mesh import limits
from meshctl.mesh.keys import PublicKey

_BODY: Final = struct.Struct(">4s16s33s32s32sQ")
_MAGIC: Final = b"MKS1"


def body(mesh_id: str, device_key: bytes, wireguard: PublicKey, probe: bytes, serial: int) -> bytes:
    """The bytes to sign. `serial` starts at 1 and only grows."""
    return _BODY.pack(_MAGIC, mesh_id.encode(), device_key, wireguard.raw, probe, serial)


@dataclass(frozen=True)
class Statement:
    """Parsed view of `signed`; equality is equality of the signed bytes. Parsing verifies nothing."""

    signed: bytes

    def __post_init__(self) -> None:
        if len(self.signed) != limits.STATEMENT_BYTES or not self.signed.startswith(_MAGIC):
            raise ProtocolError("not a key statement of a version this release knows")

    @cached_property
    def _fields(self) -> tuple[bytes, bytes, bytes, bytes, bytes, int]:
        return _BODY.unpack_from(self.signed)

    @property
    def body(self) -> bytes:
        """What is signed."""
        return self.signed[: _BODY.size]

    @property
    def signature(self) -> bytes:
        """r and s, 32 bytes each."""
        return self.signed[_BODY.size :]

    @property
    def mesh_id(self) -> str:
        """The mesh this statement is for: a statement of another mesh is worthless here."""
        return self._fields[1].rstrip(b"\0").decode("ascii", "replace")

    @property
    def device_key(self) -> bytes:
        """Compressed P-256 point."""
        return self._fields[2]

    @cached_property
    def wireguard(self) -> PublicKey:
        """The node's WireGuard public key."""
        return PublicKey(self._fields[3])

    @property
    def probe(self) -> bytes:
        """X25519 public key from which each pair derives its probe key."""
        return self._fields[4]

    @property
    def serial(self) -> int:
        """Grows with every statement of a node; a lower one than seen is a replay."""
        return self._fields[5]

    @cached_property
    def fingerprint(self) -> bytes:
        """SHA-256 of the signed body: what probe keys are bound to."""
        return hashlib.sha256(self.body).digest()
