"""A join token as text: where the coordinators are, whom to trust there, and a one-time secret (NET-1, ACC-3).

`mesh1.` + base64url of: CA fingerprint 32 | token id 8 | secret 32 | coordinators, comma separated | checksum 4. The
checksum (SHA-256) tells a token that was cut off in copying from one that the mesh does not know.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import Final

from meshctl.errors import UsageError

PREFIX: Final = "mesh1."
_FIXED: Final = 32 + 8 + 32


@dataclass(frozen=True, slots=True)
class JoinToken:
    """What `meshctl join` needs. `repr` hides the secret."""

    ca_fingerprint: bytes
    id: str  # 16 hex characters
    secret: bytes
    coordinators: tuple[str, ...]  # HOST:PORT

    def __repr__(self) -> str:
        return f"JoinToken({self.id}, {', '.join(self.coordinators)})"

    def text(self) -> str:
        """The token to hand out, once."""
        raw = self.ca_fingerprint + bytes.fromhex(self.id) + self.secret + ",".join(self.coordinators).encode()
        return PREFIX + base64.urlsafe_b64encode(raw + _sum(raw)).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> JoinToken:
        """Inverse of `text`. Raises UsageError, saying whether the text is no token at all or damaged."""
        text = text.strip()
        if not text.startswith(PREFIX):
            raise UsageError(
                "this is not a join token", f"a token starts with {PREFIX!r}; pass TOKEN, @FILE or - for standard input"
            )
        body = text.removeprefix(PREFIX)
        try:
            raw = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
        except (binascii.Error, ValueError):
            raw = b""
        if len(raw) <= _FIXED + 4 or _sum(raw[:-4]) != raw[-4:]:
            raise UsageError("this join token is damaged or was cut off", "copy it again, whole, or use @FILE")
        coordinators = tuple(raw[_FIXED:-4].decode("ascii", "replace").split(","))
        return cls(raw[:32], raw[32:40].hex(), raw[40:72], coordinators)


def _sum(raw: bytes) -> bytes:
    return hashlib.sha256(raw).digest()[:4]
