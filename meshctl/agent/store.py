"""What a node keeps on disk, sealed: identity, membership, last-known-good map, pre-shared keys (ENC-4, NET-4, NET-6).

AES-256-GCM under a file key (`seal.key`, 0600) in a 0700 directory; each file is sealed to its own name, so files
cannot be swapped. Writes are atomic: a crash leaves the old file or the new one. Must not decide anything.
"""

from __future__ import annotations

import errno
import os
import secrets
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from meshctl.crypto import sealing
from meshctl.crypto.identity import Identity
from meshctl.errors import EnvironmentFault, NotJoinedError, ProtocolError, TrustError
from meshctl.mesh.keys import PresharedKey, PrivateKey
from meshctl.mesh.model import NodeId
from meshctl.mesh.psk import Bunch, Key
from meshctl.mesh.rotation import Stage


@dataclass(frozen=True, slots=True)
class SavedMembership:
    """What join left. `mesh` and `node` are wire bytes; `certificate` and inside `mesh` the CA are DER."""

    mesh: bytes
    node: bytes
    certificate: bytes
    serial: int
    interface: str
    listen_port: int
    endpoints: tuple[str, ...] = ()
    device: str = "auto"
    key_made_at: float = 0.0  # unix seconds
    health_listen: str | None = None  # None: an earlier release joined


@dataclass(frozen=True, slots=True)
class SavedMap:
    """The last-known-good map: encoded nodes exactly as they came, and what we believe where that is something else."""

    incarnation: str
    revision: int
    nodes: tuple[bytes, ...]
    pinned: tuple[bytes, ...] = ()  # signed statements believed in place of the ones in `nodes`


@dataclass(frozen=True, slots=True)
class SavedRotation:
    """A turn under way: the keys of both sides of the switch. `stage` says which is in force (mesh/rotation.py)."""

    rotation: str
    stage: str
    serial: int  # of the next statement; after the switch, of the one in force
    next: bytes
    previous: bytes
    switched_at: float = 0.0  # unix seconds


@dataclass(frozen=True, slots=True)
class SavedBunch:
    """The pre-shared keys of one pair (mesh/psk.py): (version, key, made at, shared) each."""

    keys: tuple[tuple[int, bytes, float, bool], ...]
    now: int
    good: int
    set_at: float


class Store:
    """The state directory of one node."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._key: bytes | None = None

    def prepare(self) -> None:
        """Make the directory and the seal key where they are missing. Raises EnvironmentFault."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self.directory.chmod(0o700)
            path = self.directory / "seal.key"
            if not path.exists():
                self._write("seal.key", secrets.token_bytes(32))
            self._key = path.read_bytes()
        except OSError as error:
            raise EnvironmentFault(
                f"cannot use {self.directory}: {error.strerror}", "run as root, or choose --state-dir"
            ) from error
        if len(self._key) != 32:
            raise TrustError(f"{path} is damaged", "restore it, or meshctl leave --force and join again")

    def _write(self, name: str, data: bytes) -> None:
        path = self.directory / name
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            if os.write(handle, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(handle)
        finally:
            os.close(handle)
        temporary.replace(path)

    def _seal(self, name: str, data: bytes) -> None:
        if self._key is None:
            self.prepare()
        assert self._key is not None
        try:
            self._write(name, sealing.seal(self._key, 0, f"meshctl/node/{name}", 1, data))
        except OSError as error:
            raise EnvironmentFault(
                f"cannot write {self.directory / name}: {error.strerror}", "free some space"
            ) from error

    def _open(self, name: str) -> bytes | None:
        path = self.directory / name
        if not path.exists():
            return None
        if self._key is None:
            self.prepare()
        assert self._key is not None
        return sealing.open_(self._key, f"meshctl/node/{name}", path.read_bytes())

    def identity(self) -> Identity:
        """The node's keys in force; made and sealed before anything else when there are none."""
        raw = self._open("identity")
        if raw is None:
            identity = Identity.generate()
            self._seal("identity", identity.to_bytes())
            return identity
        identity, turn = Identity.from_bytes(raw), self.rotation()
        if turn and turn.stage == Stage.SWITCHED:
            return replace(identity, wireguard=PrivateKey(turn.next))
        return identity

    def save_identity(self, identity: Identity) -> None:
        """After a rotation: the old key is forgotten."""
        self._seal("identity", identity.to_bytes())

    def rotation(self) -> SavedRotation | None:
        """The turn under way, if there is one. Raises TrustError: without it nobody can say which key is in force."""
        raw = self._open("rotation")
        return msgspec.msgpack.decode(raw, type=SavedRotation) if raw is not None else None

    def save_rotation(self, saved: SavedRotation) -> None:
        """Before each step of a turn."""
        self._seal("rotation", msgspec.msgpack.encode(saved))

    def end_rotation(self) -> None:
        """The turn is over; what is in force stands in `identity`."""
        (self.directory / "rotation").unlink(missing_ok=True)

    def save_membership(self, membership: SavedMembership) -> None:
        """After a join, a renewal or a changed mesh record."""
        self._seal("membership", msgspec.json.encode(membership))

    def membership(self) -> SavedMembership:
        """Raises NotJoinedError."""
        raw = self._open("membership")
        if raw is None:
            raise NotJoinedError("this machine is in no mesh", "meshctl join TOKEN")
        return msgspec.json.decode(raw, type=SavedMembership)

    def is_joined(self) -> bool:
        """Whether a membership is on disk."""
        return (self.directory / "membership").exists()

    def save_map(self, saved: SavedMap) -> None:
        """Called off the event loop: a map of 10,000 nodes is 3 MB."""
        self._seal("map", msgspec.msgpack.encode(saved))

    def map(self) -> SavedMap | None:
        """None when there is none, or when it does not open: a fresh snapshot replaces it."""
        try:
            raw = self._open("map")
            return msgspec.msgpack.decode(raw, type=SavedMap) if raw is not None else None
        except (TrustError, msgspec.DecodeError):
            return None

    def save_narrow(self, narrow: tuple[tuple[NodeId, int], ...]) -> None:
        """Peers that only packets of so many bytes reach: a restarted agent must not take their routes away."""
        self._seal("narrow", msgspec.msgpack.encode(narrow))

    def narrow(self) -> tuple[tuple[NodeId, int], ...]:
        """Nothing when there is no such file or it does not open: it is learned again."""
        try:
            raw = self._open("narrow")
            found = msgspec.msgpack.decode(raw, type=tuple[tuple[str, int], ...]) if raw is not None else ()
        except (TrustError, msgspec.DecodeError):
            return ()
        return tuple((NodeId(peer), size) for peer, size in found)

    def save_bunch(self, peer: NodeId, bunch: Bunch) -> None:
        """Off the event loop. On disk when this returns, also if the power fails: a peer builds on it."""
        keys = tuple((k.version, k.key.raw, k.made_at, k.shared) for k in bunch.keys)
        saved = SavedBunch(keys, bunch.now, bunch.good, bunch.set_at)
        try:
            self._bunches.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise EnvironmentFault(f"cannot make {self._bunches}: {error.strerror}", "free some space") from error
        self._seal(f"psk/{peer}", msgspec.msgpack.encode(saved))
        handle = os.open(self._bunches, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def bunches(self) -> dict[NodeId, Bunch]:
        """Of all peers. What does not open is left out: the pair agrees anew, or says why it cannot."""
        found: dict[NodeId, Bunch] = {}
        for path in sorted(self._bunches.glob("[!.]*")):
            try:
                saved = msgspec.msgpack.decode(self._open(f"psk/{path.name}") or b"", type=SavedBunch)
                keys = tuple(Key(version, PresharedKey(key), at, shared) for version, key, at, shared in saved.keys)
            except (TrustError, ProtocolError, msgspec.DecodeError, OSError):
                continue
            found[NodeId(path.name)] = Bunch(keys, saved.now, saved.good, saved.set_at)
        return found

    def forget_bunch(self, peer: NodeId) -> None:
        """The peer has left."""
        (self._bunches / peer).unlink(missing_ok=True)

    def forget_bunches(self) -> None:
        """Those of another membership."""
        for path in self._bunches.glob("*"):
            path.unlink(missing_ok=True)
        if self._bunches.exists():
            self._bunches.rmdir()

    @property
    def _bunches(self) -> Path:
        return self.directory / "psk"

    def forget(self) -> None:
        """Remove everything of this membership, keys included (meshctl leave)."""
        self.forget_bunches()
        for name in ("membership", "map", "identity", "rotation", "narrow", "seal.key", "guard.nft", "agent.sock"):
            (self.directory / name).unlink(missing_ok=True)
