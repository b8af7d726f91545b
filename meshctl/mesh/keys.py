"""WireGuard keys: parse, print, compare. Secrets do not show themselves.

Keys are 32 raw bytes; their text form is the standard base64 of `wg`. No computation on curves happens here (crypto/).
Meets ENC-4 (secrets have a redacted repr).
"""

from __future__ import annotations

import base64
import binascii
import hmac
from dataclasses import dataclass
from typing import Self

from meshctl.errors import ProtocolError

KEY_BYTES = 32


def _checked(raw: bytes) -> bytes:
    if len(raw) != KEY_BYTES:
        raise ProtocolError(f"a WireGuard key has {KEY_BYTES} bytes, not {len(raw)}")
    return raw


def _from_text(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ProtocolError("a WireGuard key is 44 characters of base64") from error


class PublicKey(bytes):
    """A peer's public key: its name inside WireGuard. Bytes, because it is looked up hundreds of times a second."""

    __slots__ = ()

    def __new__(cls, raw: bytes) -> Self:
        """Raises ProtocolError."""
        return super().__new__(cls, _checked(raw))

    @classmethod
    def parse(cls, text: str) -> Self:
        """From the base64 that `wg` prints. Raises ProtocolError."""
        return cls(_from_text(text))

    @property
    def raw(self) -> bytes:
        """The plain bytes."""
        return bytes(self)

    def __str__(self) -> str:
        return base64.b64encode(self).decode()

    def __repr__(self) -> str:
        return f"PublicKey({self})"


@dataclass(frozen=True, slots=True, repr=False)
class _Secret:
    raw: bytes

    def __post_init__(self) -> None:
        _checked(self.raw)

    @classmethod
    def parse(cls, text: str) -> Self:
        """From the base64 that `wg` prints. Raises ProtocolError."""
        return cls(_from_text(text))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(hidden)"

    __str__ = __repr__

    def reveal(self) -> str:
        """Base64, for the one place that hands the key to WireGuard."""
        return base64.b64encode(self.raw).decode()

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and hmac.compare_digest(self.raw, other.raw)

    def __hash__(self) -> int:
        return hash((type(self), self.raw))


class PrivateKey(_Secret):
    """An X25519 private key, clamped (RFC 7748, section 5). Never leaves the node (ENC-4)."""

    __slots__ = ()

    def __post_init__(self) -> None:
        _Secret.__post_init__(self)
        # WireGuard hands back clamped keys: an unclamped one would differ for ever, and setting it ends sessions.
        clamped = bytes([self.raw[0] & 0xF8, *self.raw[1:31], self.raw[31] & 0x7F | 0x40])
        object.__setattr__(self, "raw", clamped)


class PresharedKey(_Secret):
    """The symmetric key of one pair of nodes. Never seen by the coordinator (NET-6)."""

    __slots__ = ()
