"""The registry's port: opaque values at paths, changed by compare-and-commit, followed by revision. And the layout.

A record's *generation* counts how often it was written since it was made (etcd's `version`), its *revision* is the
registry-wide number of its last change (etcd's `mod_revision`). No adapter looks into a value; sealing is one layer up
(keyring.py). Implemented by etcd.py and, for tests, by tests/harness/memory_registry.py: one contract suite for both.

Layout, all of it under ROOT; ids are opaque, names and addresses appear only as HMACs, because paths are not encrypted:

    mesh              what every member knows of the mesh            key/<kid>       ring key, wrapped by the KEK
    policy            who may reach whom                             secret/<name>   CA key, nonce key
    node/<id>         a member                                       token/<id>      a join token
    gone/<id>         its tombstone                                  address/<hmac>, name/<hmac>   taken by which node
    rotation/plan     what the last rotation is to do                rotation/turn    how far it is
    coordinator/<id>/beat, coordinator/<id>/roll/<c>   what a coordinator says of itself, and who is connected there
    ask/<id>, ask/<id>/<coordinator>                   a question, and what each coordinator answers, while one waits

Meets ENC-1 (what is readable in etcd is listed here), OPS-2 (every decision is one transaction with compares).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Final, Protocol

from meshctl.errors import ProtocolError

ROOT: Final = "/meshctl/v1/"
MESH: Final = ROOT + "mesh"
POLICY: Final = ROOT + "policy"
KEYS: Final = ROOT + "key/"
SECRETS: Final = ROOT + "secret/"
NODES: Final = ROOT + "node/"
GONE: Final = ROOT + "gone/"
TOKENS: Final = ROOT + "token/"
NAMES: Final = ROOT + "name/"
ADDRESSES: Final = ROOT + "address/"
PLAN: Final = ROOT + "rotation/plan"
TURN: Final = ROOT + "rotation/turn"
COORDINATORS: Final = ROOT + "coordinator/"
ASKS: Final = ROOT + "ask/"
POST: Final = ROOT + "post/"

COMMIT_OPS: Final = 128  # etcd's default --max-txn-ops
COMMIT_BYTES: Final = 1024 * 1024  # etcd refuses requests over 1.5 MiB; the rest is room for paths and framing


@dataclass(frozen=True, slots=True)
class Record:
    """One path as it is at `revision`."""

    path: str
    value: bytes = field(repr=False)
    generation: int  # 1 when made, one more at each put
    created: int  # revision at which it was made
    revision: int  # revision of its last put


@dataclass(frozen=True, slots=True)
class Put:
    """Write `value`, if the record is at `generation_expected`; 0 means that there must be none.

    Values of competing writers must differ (sealing sees to it): a writer recognises its own commit by them when the
    answer was lost.
    """

    path: str
    value: bytes = field(repr=False)
    generation_expected: int


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove the record, if it is at `generation_expected`."""

    path: str
    generation_expected: int


@dataclass(frozen=True, slots=True)
class Expect:
    """Change nothing, but let the commit happen only while the record is at `generation` (0: while there is none)."""

    path: str
    generation: int


Op = Put | Delete | Expect


@dataclass(frozen=True, slots=True)
class Committed:
    """All of it happened, at `revision`."""

    revision: int


@dataclass(frozen=True, slots=True)
class Conflict:
    """None of it happened, because `path` is not at the generation expected: read again and decide again.

    Said also of our own delete or put when its answer was lost and somebody else has written since.
    """

    path: str


@dataclass(frozen=True, slots=True)
class Deleted:
    """`path` was removed at `revision`."""

    path: str
    revision: int


@dataclass(frozen=True, slots=True)
class Changes:
    """What happened under a watched prefix, in order, up to and including `revision`. Never half a commit."""

    revision: int
    events: tuple[Record | Deleted, ...]


@dataclass(frozen=True, slots=True)
class Compacted:
    """History before `revision` is gone, the watch has ended: list anew and watch from there."""

    revision: int


@dataclass(frozen=True, slots=True)
class Health:
    """Can the registry decide now? `words` for the person who reads it. `answers`: it can be read, if not written."""

    ok: bool
    words: str
    answers: bool = True


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One member of the store, asked by itself."""

    address: str
    ok: bool
    leader: bool = False
    version: str = ""
    size: int = 0  # bytes of its database
    words: str = ""  # what is wrong


class Registry(Protocol):
    """What the coordinator asks of its store. Every method may raise UnreachableError, TrustError, EnvironmentFault."""

    async def read(self, *paths: str) -> tuple[Record | None, ...]:
        """These records (at most COMMIT_OPS) as they are at one moment; None where there is none."""
        ...

    async def list(self, prefix: str) -> tuple[tuple[Record, ...], int]:
        """All records under `prefix` in order of path, and the revision at which that is true."""
        ...

    async def commit(self, *ops: Op) -> Committed | Conflict:
        """All of `ops` or none, in one transaction. Raises ProtocolError when they can never be committed."""
        ...

    def watch(self, prefix: str, from_revision: int) -> AsyncGenerator[Changes | Compacted, None]:
        """Everything that happens under `prefix` at or after `from_revision`: after `list` at r, watch from r + 1.

        Rides out restarts of the store without losing or repeating an event. Ends after Compacted.
        """
        ...

    async def health(self) -> Health:
        """Whether a read and a write would go through now. Never raises for a store that is down."""
        ...

    async def endpoints(self) -> tuple[Endpoint, ...]:
        """Each member of the store, asked by itself. Never raises for one that is down."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


def check(ops: tuple[Op, ...]) -> None:
    """Raise ProtocolError unless `ops` can be one commit."""
    if not 0 < len(ops) <= COMMIT_OPS:
        raise ProtocolError(f"a commit has 1 to {COMMIT_OPS} operations, not {len(ops)}", "split it")
    if len({op.path for op in ops}) != len(ops):
        raise ProtocolError("a commit names one path twice")
    size = sum(len(op.value) for op in ops if isinstance(op, Put))
    if size > COMMIT_BYTES:
        raise ProtocolError(f"a commit of {size} bytes is too large, {COMMIT_BYTES} is the limit", "split it")
