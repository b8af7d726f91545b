"""What the values in the registry mean: typed records <-> bytes. Sealing happens below, in keyring.py.

JSON of frozen dataclasses by msgspec. Fields are only ever added, with a default; unknown ones are passed over, so that
two releases can share a registry. Nothing here knows paths. Meets OPS-4 (a malformed record says so).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from meshctl.errors import MeshError, ProtocolError
from meshctl.mesh.model import Candidate, Endpoint, MeshInfo, Node, NodeId, Origin
from meshctl.mesh.statement import Statement

T = TypeVar("T")

if TYPE_CHECKING:
    Candidates = tuple[Candidate, ...]
else:

    class Candidates(tuple):
        """A type of its own, because msgspec cannot tell the two kinds of address in an Endpoint apart."""


class NodeState(StrEnum):
    """Whether a member may renew and connect."""

    ACTIVE = "active"
    LOCKED = "locked"


class Why(StrEnum):
    """Why a node is no member any more."""

    REVOKED = "revoked"  # never again with this device key
    REMOVED = "removed"
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class MeshRecord:
    """The mesh itself; `created` in unix seconds."""

    info: MeshInfo
    created: float


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """One member as the coordinator knows it; `created_at` in unix seconds, `token` the id of its join token."""

    id: NodeId
    name: str
    address4: IPv4Address
    address6: IPv6Address
    statement: bytes
    created_at: float
    tags: tuple[str, ...] = ()
    candidates: Candidates = ()
    ephemeral: bool = False
    token: str = ""
    state: NodeState = NodeState.ACTIVE
    next: bytes = b""  # the statement of a rotation that is being prepared
    previous: bytes = b""  # the one before `statement`: a node may return to its key
    key_made_at: float = 0.0  # unix seconds at which `statement` came into force; 0: at `created_at`

    @property
    def wireguard_keys(self) -> set[str]:
        """Base64 of the keys that are this node's and nobody else's: in force, next, and the one it may return to."""
        return {str(Statement(one).wireguard) for one in (self.statement, self.next, self.previous) if one}

    @property
    def rotated_at(self) -> float:
        """When its WireGuard key came into force, unix seconds."""
        return self.key_made_at or self.created_at

    def node(self, joined: int) -> Node:
        """The member as its peers see it; `joined` is the revision that made its record. Raises ProtocolError."""
        return Node(
            id=self.id,
            name=self.name,
            address4=self.address4,
            address6=self.address6,
            statement=Statement(self.statement),
            joined=joined,
            tags=self.tags,
            candidates=tuple(self.candidates),
            next=Statement(self.next) if self.next else None,
        )


@dataclass(frozen=True, slots=True)
class Tombstone:
    """Who is gone, and keeps the address from being given to somebody else too soon; `at` in unix seconds."""

    id: NodeId
    name: str
    address4: IPv4Address
    why: Why
    at: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PolicyRecord:
    """Who may reach whom: the kind of policy, and its text where the kind has one."""

    kind: str = "allow-all"
    text: str = ""


def _candidates(found: Any) -> Candidates:
    return Candidates(
        Candidate(Endpoint(ip_address(one["endpoint"]["address"]), int(one["endpoint"]["port"])), Origin(one["origin"]))
        for one in found
    )


_PARSERS: Final[dict[object, Callable[[Any], Any]]] = {
    Candidates: _candidates,
    IPv4Address: IPv4Address,
    IPv6Address: IPv6Address,
    IPv4Network: IPv4Network,
    IPv6Network: IPv6Network,
}


def encode(record: object) -> bytes:
    """Any record of this file, or a mesh.admission.Token, as JSON."""
    return msgspec.json.encode(record, enc_hook=str)


def decode(raw: bytes, kind: type[T]) -> T:
    """Inverse of `encode`. Raises ProtocolError."""
    try:
        return msgspec.json.decode(raw, type=kind, dec_hook=lambda wanted, found: _PARSERS[wanted](found))
    except (msgspec.MsgspecError, ValueError, KeyError, TypeError, MeshError) as error:
        hint = "a coordinator of another release wrote it; run the same release everywhere"
        raise ProtocolError(f"a stored {kind.__name__} cannot be read: {error}", hint) from error
