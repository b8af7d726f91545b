"""Sealing of stored bytes: XAES-256-GCM, bound to where they are kept and to how often they were written.

    magic "MCR1" 4 | version 1 | key id 4 | generation 8 | nonce 24 || ciphertext | tag 16        (big endian)

Besides the content, these are authenticated: version, key id, generation and path (any context string: a registry path,
the name of a file). So a value moved to another path, or given another generation, does not open. An *old* value with
its own generation does open: whoever reads compares the generation with what it expects. It does not commit to the key:
look the key up by its id, never try several. XAES-256-GCM is AES-256-GCM under a key derived for each message from a
192-bit nonce (C2SP specification): no limit of 2^32 messages per key. No I/O here. Meets ENC-1, ENC-4.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import algorithms
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.cmac import CMAC
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from meshctl.errors import TrustError

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 24
TAG_BYTES: Final = 16
_HEADER: Final = struct.Struct(">4sBIQ")
OVERHEAD_BYTES: Final = _HEADER.size + NONCE_BYTES + TAG_BYTES
_MAGIC: Final = b"MCR1"
_VERSION: Final = 1
_RECORD: Final = b"meshctl/rec/v1\0"
_WRAP: Final = b"meshctl/key/v1\0"

# RFC 9106 section 4, second recommended option (64 MiB, 3 passes, 4 lanes): for machines with little memory to spare.
ARGON2_MEMORY_KIB: Final = 64 * 1024
ARGON2_PASSES: Final = 3
ARGON2_LANES: Final = 4
SALT_BYTES: Final = 16
_ARGON2_MOST_MEMORY_KIB: Final = 1024 * 1024  # stored parameters may be forged: never allocate more than 1 GiB for them
_ARGON2_MOST_PASSES: Final = 16
_ARGON2_MOST_LANES: Final = 64


@lru_cache(maxsize=16)
def _cmac(key: bytes) -> CMAC:
    """Keyed once: a new AES context costs 9 us, a copy 1 us. The few keys of a process live as long as it anyway."""
    return CMAC(algorithms.AES(key))


def xaes(key: bytes, nonce: bytes) -> tuple[AESGCM, bytes]:
    """XAES-256-GCM: the AES-256-GCM key and its 12-byte nonce for one message. `key` 32 bytes, `nonce` 24 bytes.

    The derived key is CMAC-AES-256 in counter mode over the nonce's first half (SP 800-108r1; c2sp.org/XAES-256-GCM).
    """
    halves = []
    for counter in (1, 2):
        mac = _cmac(key).copy()
        mac.update(bytes((0, counter)) + b"X\0" + nonce[:12])
        halves.append(mac.finalize())
    return AESGCM(b"".join(halves)), nonce[12:]


@dataclass(frozen=True, slots=True)
class Header:
    """What a sealed value says of itself in clear; true only once it has been opened."""

    kid: int
    generation: int


def new_key() -> bytes:
    """32 bytes from the operating system's generator."""
    return os.urandom(KEY_BYTES)


def _aad(header: bytes, path: str) -> bytes:
    where = path.encode()
    return _RECORD + header[len(_MAGIC) :] + struct.pack(">I", len(where)) + where


def seal(key: bytes, kid: int, path: str, generation: int, plaintext: bytes) -> bytes:
    """`plaintext` under `key` (32 bytes), whose id is `kid`, for `path` at `generation`. 57 bytes longer."""
    header, nonce = _HEADER.pack(_MAGIC, _VERSION, kid, generation), os.urandom(NONCE_BYTES)
    cipher, rest = xaes(key, nonce)
    return header + nonce + cipher.encrypt(rest, plaintext, _aad(header, path))


def header(path: str, sealed: bytes) -> Header:
    """Which key and generation a sealed value claims. Raises TrustError when it is not one of ours."""
    if len(sealed) < OVERHEAD_BYTES or not sealed.startswith(_MAGIC):
        raise TrustError(f"{path} is not a sealed value", "somebody else wrote there, or the value was cut")
    _, version, kid, generation = _HEADER.unpack_from(sealed)
    if version != _VERSION:
        raise TrustError(f"{path} is sealed in version {version}, this release knows {_VERSION}", "upgrade it")
    return Header(kid, generation)


def open_(key: bytes, path: str, sealed: bytes, *, generation: int | None = None) -> bytes:
    """What `seal` sealed for `path`; with `generation`, only of that very generation. Raises TrustError."""
    claim = header(path, sealed)
    if generation is not None and claim.generation != generation:
        raise TrustError(
            f"{path} holds a value of generation {claim.generation}, expected {generation}",
            "an old value was put back, or somebody else wrote there",
        )
    cipher, rest = xaes(key, sealed[_HEADER.size : _HEADER.size + NONCE_BYTES])
    try:
        return cipher.decrypt(rest, sealed[_HEADER.size + NONCE_BYTES :], _aad(sealed[: _HEADER.size], path))
    except InvalidTag as error:
        hint = "it was altered, moved from another place, or sealed with another key"
        raise TrustError(f"{path} does not open", hint) from error


def wrap(kek: bytes, context: str, key: bytes) -> bytes:
    """A key under a key-encryption key (both 32 bytes), bound to `context`: 24 nonce, 32 ciphertext, 16 tag."""
    nonce = os.urandom(NONCE_BYTES)
    cipher, rest = xaes(kek, nonce)
    return nonce + cipher.encrypt(rest, key, _WRAP + context.encode())


def unwrap(kek: bytes, context: str, wrapped: bytes) -> bytes:
    """Inverse of `wrap`. Raises TrustError."""
    if len(wrapped) != NONCE_BYTES + KEY_BYTES + TAG_BYTES:
        raise TrustError(f"the wrapped key {context} has not the length of one")
    cipher, rest = xaes(kek, wrapped[:NONCE_BYTES])
    try:
        return cipher.decrypt(rest, wrapped[NONCE_BYTES:], _WRAP + context.encode())
    except InvalidTag as error:
        hint = "the key-encryption key is another one, or it was altered"
        raise TrustError(f"the wrapped key {context} does not open", hint) from error


@dataclass(frozen=True, slots=True)
class Argon2:
    """Salt and cost of a passphrase's derivation (RFC 9106); kept in clear beside what the derived key wraps."""

    salt: bytes
    memory_kib: int = ARGON2_MEMORY_KIB
    passes: int = ARGON2_PASSES
    lanes: int = ARGON2_LANES

    @classmethod
    def fresh(cls) -> Argon2:
        """A new salt at today's cost."""
        return cls(os.urandom(SALT_BYTES))

    def derive(self, passphrase: str) -> bytes:
        """32 bytes by Argon2id: about 0.1 s and 64 MiB, so call it from a thread. Raises TrustError on absurd costs."""
        most = (_ARGON2_MOST_MEMORY_KIB, _ARGON2_MOST_PASSES, _ARGON2_MOST_LANES)
        cost = (self.memory_kib, self.passes, self.lanes)
        if len(self.salt) < SALT_BYTES or any(not 0 < have <= top for have, top in zip(cost, most, strict=True)):
            raise TrustError("the passphrase's stored parameters make no sense", "they were altered; restore a backup")
        kdf = Argon2id(
            salt=self.salt, length=KEY_BYTES, iterations=self.passes, lanes=self.lanes, memory_cost=self.memory_kib
        )
        return kdf.derive(passphrase.encode())
