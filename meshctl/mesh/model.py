"""The vocabulary of the mesh: nodes, endpoints, and the roster of all nodes at one revision.

Values only. A Roster changes by `apply(Put | Gone)` and by nothing else. Meets NET-2.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final, NewType, assert_never

from meshctl.errors import ProtocolError
from meshctl.mesh import limits
from meshctl.mesh.statement import Statement

NodeId = NewType("NodeId", str)
Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def node_id(device_key: bytes) -> NodeId:
    """The id of the node that holds `device_key` (33 bytes, compressed P-256 point): the hash of the key.

    120 bits of SHA-256. Because the id *is* the key, nobody, coordinator included, can put another key under a known
    id.
    """
    return NodeId(base64.b32encode(hashlib.sha256(device_key).digest()[:15]).decode().lower())


def check_name(name: str) -> str:
    """A node's name is a DNS label. Returns it; raises ProtocolError."""
    if not _NAME.fullmatch(name):
        raise ProtocolError(
            f"{name!r} is not a node name", "use 1 to 63 of a-z, 0-9 and -, not starting or ending with -"
        )
    return name


def check_tag(tag: str) -> str:
    """A tag is written like a name. Returns it; raises ProtocolError."""
    if not _NAME.fullmatch(tag):
        raise ProtocolError(f"{tag!r} is not a tag", "use 1 to 63 of a-z, 0-9 and -, not starting or ending with -")
    return tag


class Origin(StrEnum):
    """Who says that a node can be reached at an endpoint."""

    CONFIGURED = "configured"  # the operator: --endpoint
    LOCAL = "local"  # an address of one of its interfaces
    COORDINATOR = "coordinator"  # where its control connection comes from
    PEER = "peer"  # where a peer's WireGuard saw it


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    """An underlay address and UDP port."""

    address: Address
    port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if self.address.version == 6 else f"{self.address}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """From `192.0.2.1:51820` or `[2001:db8::1]:51820`. Raises ProtocolError."""
        host, _, port = text.rpartition(":")
        try:
            number = int(port)
            if not 0 < number < 65536 or (":" in host) != (host.startswith("[") and host.endswith("]")):
                raise ValueError(text)
            return cls(ip_address(host.strip("[]").partition("%")[0]), number)
        except ValueError as error:
            raise ProtocolError(f"{text!r} is not an endpoint", "write ADDRESS:PORT or [ADDRESS]:PORT") from error


@dataclass(frozen=True, slots=True)
class Candidate:
    """An endpoint that might work, and who says so. A hint, never authority: WireGuard authenticates."""

    endpoint: Endpoint
    origin: Origin


@dataclass(frozen=True, slots=True)
class Node:
    """One member as its peers may see it.

    `statement` is what the node itself signed and what its peers verify; `next` is the one of a rotation that is being
    prepared. `joined` is the registry revision of its first record, the total order that decides which end of a pair
    starts the handshake.
    """

    id: NodeId
    name: str
    address4: IPv4Address
    address6: IPv6Address
    statement: Statement
    joined: int = 0
    tags: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    next: Statement | None = None

    def __post_init__(self) -> None:
        if any(node_id(stated.device_key) != self.id for stated in (self.statement, self.next or self.statement)):
            raise ProtocolError(f"node {self.id} is not named after its device key")
        if len(self.candidates) > limits.ENDPOINTS_PER_NODE or len(self.tags) > limits.TAGS_PER_NODE:
            raise ProtocolError(f"node {self.id} names too many endpoints or tags")
        check_name(self.name)

    @property
    def newest(self) -> int:
        """The highest serial of its statements."""
        return (self.next or self.statement).serial


@dataclass(frozen=True, slots=True)
class Put:
    """A node appeared or changed."""

    node: Node


@dataclass(frozen=True, slots=True)
class Gone:
    """A node left, was removed or was revoked."""

    id: NodeId


@dataclass(frozen=True)
class Roster:
    """All nodes visible at one revision of one incarnation of the registry."""

    incarnation: str = ""
    revision: int = 0
    nodes: Mapping[NodeId, Node] = field(default_factory=dict)

    def apply(self, changes: Iterable[Put | Gone], revision: int) -> Roster:
        """The roster after `changes`; its revision is `revision`."""
        nodes = dict(self.nodes)
        for change in changes:
            match change:
                case Put(node):
                    nodes[node.id] = node
                case Gone(gone):
                    nodes.pop(gone, None)
                case _ as never:
                    assert_never(never)
        return replace(self, revision=revision, nodes=nodes)


@dataclass(frozen=True, slots=True)
class MeshInfo:
    """What every member knows of the mesh itself."""

    id: str
    name: str
    prefix4: IPv4Network
    prefix6: IPv6Network
    coordinators: tuple[str, ...]  # HOST:PORT
    ca: bytes  # DER of the mesh CA certificate
    incarnation: str = ""
    policy: str = "allow-all"

    @property
    def prefixes(self) -> tuple[Network, Network]:
        """Both families, v4 first."""
        return self.prefix4, self.prefix6
