"""A join token as text: where the coordinators are, whom to trust there, and a one-time secret (NET-1, ACC-3).

`mesh2.` + base64url of: the CA's public key 33 | mesh id 12 | token id 8 | secret 32 | coordinators, comma separated |
checksum 4. The checksum (SHA-256) tells a token that was cut off in copying from one that the mesh does not know. With
the key itself, not its fingerprint, the first connection is a verified one: there is nothing to fetch before.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from dataclasses import dataclass
from typing import Final

from meshctl.errors import UsageError
from meshctl.mesh import limits

PREFIX: Final = "mesh2."
OLD_PREFIX: Final = "mesh1."
_PARTS: Final = struct.Struct(f"!33s{limits.MESH_ID_CHARS}s8s32s")


@dataclass(frozen=True, slots=True)
class JoinToken:
    """What `meshctl join` needs. `repr` hides the secret."""

    ca_key: bytes  # P-256, compressed
    mesh: str  # its id
    id: str  # 16 hex characters
    secret: bytes
    coordinators: tuple[str, ...]  # HOST:PORT

    def __repr__(self) -> str:
        return f"JoinToken({self.id}, {', '.join(self.coordinators)})"

    def text(self) -> str:
        """The token to hand out, once."""
        fixed = _PARTS.pack(self.ca_key, self.mesh.encode(), bytes.fromhex(self.id), self.secret)
        raw = fixed + ",".join(self.coordinators).encode()
        return PREFIX + base64.urlsafe_b64encode(raw + _sum(raw)).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> JoinToken:
        """Inverse of `text`. Raises UsageError, saying whether the text is no token at all or damaged."""
        text = text.strip()
        if text.startswith(OLD_PREFIX):
            raise UsageError("this token is of an older release of meshctl", "ask for a new one")
        if not text.startswith(PREFIX):
            raise UsageError(
                "this is not a join token", f"a token starts with {PREFIX!r}; pass TOKEN, @FILE or - for standard input"
            )
        body = text.removeprefix(PREFIX)
        try:
            raw = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
        except (binascii.Error, ValueError):
            raw = b""
        if len(raw) <= _PARTS.size + 4 or _sum(raw[:-4]) != raw[-4:]:
            raise UsageError("this join token is damaged or was cut off", "copy it again, whole, or use @FILE")
        ca_key, mesh, name, secret = _PARTS.unpack_from(raw)
        coordinators = tuple(raw[_PARTS.size : -4].decode("ascii", "replace").split(","))
        return cls(ca_key, mesh.decode("ascii", "replace"), name.hex(), secret, coordinators)


def _sum(raw: bytes) -> bytes:
    return hashlib.sha256(raw).digest()[:4]
