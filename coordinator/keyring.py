"""Keys of the registry: a KEK from a provider wraps ring keys, a ring key seals values before they leave the process.

    key/<kid>   JSON in clear: id of the KEK, how a passphrase becomes it, and the ring key wrapped by it

SealedRegistry is the registry's port once more: plaintext above, sealed below. It binds each value to its path and to
etcd's own count of writes, so that swapped, altered and old values put back are refused by name. What it cannot see by
itself: a record deleted and then written anew as often as the old value had been, and a rollback of everything at once.
The newest ring key seals, all of them open; the first one also makes the index of names. Meets ENC-1, ENC-2 (providers:
key file, passphrase), ENC-6 (but for those two).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import os
import stat
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Protocol, Self

from coordinator import records
from coordinator.registry import (
    KEYS,
    Changes,
    Committed,
    Compacted,
    Conflict,
    Deleted,
    Endpoint,
    Health,
    Op,
    Put,
    Record,
    Registry,
)
from meshctl.crypto import sealing
from meshctl.crypto.sealing import Argon2
from meshctl.errors import EnvironmentFault, RefusedError, TrustError, UsageError

_INDEX: Final = b"meshctl/index/v1\0"
_KEK_ID: Final = b"meshctl/kek-id/v1\0"
INDEX_CHARS: Final = 32  # 128 bits: no two names or addresses of a mesh collide


class Kek(Protocol):
    """Where the key-encryption key comes from."""

    def parameters(self) -> Argon2 | None:
        """What a new registry stores in clear beside the wrapped keys, so that the KEK can be had again."""
        ...

    def key(self, parameters: Argon2 | None) -> bytes:
        """The KEK, 32 bytes. May take a tenth of a second and 64 MiB. Raises EnvironmentFault, TrustError."""
        ...


@dataclass(frozen=True, slots=True)
class FileKek:
    """32 random bytes in base64, in a file that its owner alone can read."""

    path: Path

    def create(self) -> None:
        """Make the file. Raises UsageError when there is one already, EnvironmentFault when it cannot be written."""
        try:
            handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(base64.b64encode(sealing.new_key()) + b"\n")
                file.flush()
                os.fsync(handle)
        except FileExistsError as error:
            raise UsageError(f"{self.path} exists", "a key file is never overwritten; choose another path") from error
        except OSError as error:
            raise EnvironmentFault(f"cannot write {self.path}: {error.strerror}") from error

    def parameters(self) -> None:
        """See Kek. None: the file holds the key itself."""

    def key(self, parameters: Argon2 | None) -> bytes:
        """See Kek."""
        if parameters is not None:
            raise TrustError("this registry was made with a passphrase, not with a key file", "give the passphrase")
        try:
            with self.path.open("rb") as file:
                known = os.fstat(file.fileno())
                raw = file.read(1024)
        except OSError as error:
            hint = "restore it from where you keep it: without it nothing in the registry can be read"
            raise EnvironmentFault(f"cannot read the key file {self.path}: {error.strerror}", hint) from error
        if known.st_uid != os.geteuid() or stat.S_IMODE(known.st_mode) & 0o077:
            hint = f"chown {os.geteuid()} {self.path} && chmod 600 {self.path}"
            raise EnvironmentFault(f"the key file {self.path} is open to others", hint)
        try:
            key = base64.b64decode(raw.strip(), validate=True)
        except binascii.Error:
            key = b""
        if len(key) != sealing.KEY_BYTES:
            raise EnvironmentFault(f"{self.path} is not a key file", "it holds 32 bytes in base64 and nothing else")
        return key


@dataclass(frozen=True, slots=True)
class PassphraseKek:
    """Argon2id of what a person remembers."""

    passphrase: str = field(repr=False)

    def parameters(self) -> Argon2:
        """See Kek. A fresh salt."""
        return Argon2.fresh()

    def key(self, parameters: Argon2 | None) -> bytes:
        """See Kek."""
        if parameters is None:
            raise TrustError("this registry was made with a key file, not with a passphrase", "give the key file")
        return parameters.derive(self.passphrase)


@dataclass(frozen=True, slots=True)
class _KeyRecord:
    kek: str
    wrapped: bytes
    argon2: Argon2 | None = None


def kek_id(kek: bytes) -> str:
    """What a KEK is called in messages and beside the keys that it wraps: 16 hex digits of a hash."""
    return hashlib.sha256(_KEK_ID + kek).hexdigest()[:16]


def _path(kid: int) -> str:
    return f"{KEYS}{kid:08x}"


def _context(path: str, kek: str) -> str:
    return f"{path} under KEK {kek}"


def _open_key(record: Record, stored: _KeyRecord, kek: bytes) -> bytes:
    if (have := kek_id(kek)) != stored.kek:
        raise TrustError(
            f"this KEK is not the one this registry was made with (want {stored.kek}, have {have})",
            "give the key file or passphrase that the mesh was made with",
        )
    return sealing.unwrap(kek, _context(record.path, have), stored.wrapped)


class Keyring:
    """The ring keys, open. `current` is the id of the one that seals."""

    def __init__(self, keys: Mapping[int, bytes]) -> None:
        self.current = max(keys)
        self._keys = dict(keys)
        self._index = hmac.digest(keys[min(keys)], _INDEX, hashlib.sha256)

    def __repr__(self) -> str:
        return f"Keyring(current={self.current}, {len(self._keys)} hidden)"

    @classmethod
    async def create(cls, registry: Registry, kek: Kek) -> Self:
        """The first ring key of an empty registry. Raises RefusedError when it has one."""
        parameters, path, key = kek.parameters(), _path(1), sealing.new_key()
        wrapping = await asyncio.to_thread(kek.key, parameters)
        name = kek_id(wrapping)
        stored = _KeyRecord(name, sealing.wrap(wrapping, _context(path, name), key), parameters)
        match await registry.commit(Put(path, records.encode(stored), 0)):
            case Conflict():
                raise RefusedError("this registry already holds a mesh", "open it with its KEK, or use another etcd")
            case Committed():
                return cls({1: key})

    @classmethod
    async def open(cls, registry: Registry, kek: Kek) -> Self:
        """Unwrap all ring keys. Raises TrustError for a wrong KEK, RefusedError when there is no mesh."""
        found, _ = await registry.list(KEYS)
        if not found:
            raise RefusedError("this registry holds no mesh", "make one: mesh-coordinator init")
        keys: dict[int, bytes] = {}
        wrapping: dict[Argon2 | None, bytes] = {}
        for record in found:
            stored = records.decode(record.value, _KeyRecord)
            if stored.argon2 not in wrapping:
                wrapping[stored.argon2] = await asyncio.to_thread(kek.key, stored.argon2)
            key = _open_key(record, stored, wrapping[stored.argon2])
            keys[int(record.path.removeprefix(KEYS), 16)] = key  # its name was authenticated with it
        return cls(keys)

    def index_key(self, kind: str, text: str) -> str:
        """What `text` is called in a path: HMAC-SHA256, 32 hex digits. Outlives rotations of the ring key."""
        return hmac.digest(self._index, f"{kind}\0{text}".encode(), hashlib.sha256).hex()[:INDEX_CHARS]

    def seal(self, path: str, generation: int, plaintext: bytes) -> bytes:
        """Under the current key."""
        return sealing.seal(self._keys[self.current], self.current, path, generation, plaintext)

    def open_value(self, path: str, generation: int, sealed: bytes) -> bytes:
        """Of that path at that generation. Raises TrustError naming the path."""
        kid = sealing.header(path, sealed).kid
        if kid not in self._keys:
            raise TrustError(f"{path} is sealed with ring key {kid}, which this registry does not have")
        return sealing.open_(self._keys[kid], path, sealed, generation=generation)


class SealedRegistry:
    """Implements coordinator.registry.Registry: plaintext here, sealed in `registry`. The ring keys do not appear."""

    def __init__(self, registry: Registry, keyring: Keyring) -> None:
        self._registry = registry
        self._keyring = keyring

    def index_key(self, kind: str, text: str) -> str:
        """See Keyring."""
        return self._keyring.index_key(kind, text)

    def _open(self, record: Record) -> Record:
        return replace(record, value=self._keyring.open_value(record.path, record.generation, record.value))

    async def read(self, *paths: str) -> tuple[Record | None, ...]:
        """See Registry."""
        return tuple(record and self._open(record) for record in await self._registry.read(*paths))

    async def list(self, prefix: str) -> tuple[tuple[Record, ...], int]:
        """See Registry. All or nothing: one record that does not open refuses the list."""
        found, revision = await self._registry.list(prefix)
        return tuple(self._open(record) for record in found if not record.path.startswith(KEYS)), revision

    async def commit(self, *ops: Op) -> Committed | Conflict:
        """See Registry."""
        return await self._registry.commit(*(self._seal(op) if isinstance(op, Put) else op for op in ops))

    def _seal(self, op: Put) -> Put:
        return replace(op, value=self._keyring.seal(op.path, op.generation_expected + 1, op.value))

    async def watch(self, prefix: str, from_revision: int) -> AsyncGenerator[Changes | Compacted, None]:
        """See Registry. Raises TrustError at the first record that does not open."""
        async with aclosing(self._registry.watch(prefix, from_revision)) as inner:
            async for news in inner:
                if isinstance(news, Compacted):
                    yield news
                    return
                ours = (event for event in news.events if not event.path.startswith(KEYS))
                if events := tuple(event if isinstance(event, Deleted) else self._open(event) for event in ours):
                    yield Changes(news.revision, events)

    async def health(self) -> Health:
        """See Registry."""
        return await self._registry.health()

    async def endpoints(self) -> tuple[Endpoint, ...]:
        """See Registry."""
        return await self._registry.endpoints()

    async def close(self) -> None:
        """See Registry."""
        await self._registry.close()
