"""Messages <-> values of the core: the only hand-written code that touches generated protobuf (NET-2).

Decoders raise ProtocolError on anything malformed. Encoders return bytes or message objects that callers treat as
opaque. What nodes sign or hash is never re-encoded: it travels as the bytes it was.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

from google.protobuf.message import DecodeError

from meshctl import __version__
from meshctl.errors import ProtocolError
from meshctl.mesh.evidence import EVIDENCE_CHARS, Claim
from meshctl.mesh.model import Candidate, Endpoint, MeshInfo, Node, NodeId, Origin
from meshctl.mesh.statement import Statement
from meshctl.wire.v1 import mesh_pb2 as pb

PROTOCOL_MIN, PROTOCOL = 1, 2  # from SIGNED on nodes sign what they find, and nothing else is believed of them
SIGNED = 2
_ORIGIN = {
    Origin.CONFIGURED: pb.ORIGIN_CONFIGURED,
    Origin.LOCAL: pb.ORIGIN_LOCAL,
    Origin.COORDINATOR: pb.ORIGIN_COORDINATOR,
    Origin.PEER: pb.ORIGIN_PEER,
}
_ORIGIN_BACK = {number: origin for origin, number in _ORIGIN.items()}


def plain(value: Any, **instead: Any) -> dict[str, Any]:
    """The fields of a dataclass, for a message that has the same ones; some of them as they travel."""
    return {f.name: getattr(value, f.name) for f in fields(value) if f.name not in instead} | instead


class strict:  # a function with a yield would cost every message 3 us
    """Turn every way a message can be malformed into one ProtocolError."""

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, at: object) -> None:
        if isinstance(error, DecodeError | ValueError | TypeError | OverflowError):
            raise ProtocolError(f"malformed {self._what}", "the two sides may run incompatible releases") from error


# ---- nodes ---------------------------------------------------------------------------------------------------------
def candidate_message(candidate: Candidate) -> pb.Candidate:
    """One endpoint and who says so."""
    endpoint = candidate.endpoint
    return pb.Candidate(address=endpoint.address.packed, port=endpoint.port, origin=_ORIGIN[candidate.origin])


def candidate(message: pb.Candidate) -> Candidate:
    """Inverse of `candidate_message`; an unknown origin is the least trusted."""
    if not 0 < message.port < 65536:
        raise ProtocolError("an endpoint without a port")
    endpoint = Endpoint(ip_address(message.address), message.port)
    return Candidate(endpoint, _ORIGIN_BACK.get(message.origin, Origin.COORDINATOR))


def node_message(node: Node) -> pb.Node:
    """A node as its peers see it."""
    return pb.Node(
        id=node.id,
        name=node.name,
        tags=node.tags,
        address4=node.address4.packed,
        address6=node.address6.packed,
        statement=node.statement.signed,
        candidates=[candidate_message(c) for c in node.candidates],
        joined=node.joined,
        next_statement=node.next.signed if node.next else b"",
    )


def encode_node(node: Node) -> bytes:
    """The chunk: encoded once, hashed, stored and sent as these very bytes."""
    return node_message(node).SerializeToString(deterministic=True)


def node(message: pb.Node) -> Node:
    """A node message as a value; raises ValueError or ProtocolError on malformed fields."""
    return Node(
        id=NodeId(message.id),
        name=message.name,
        address4=IPv4Address(message.address4),
        address6=IPv6Address(message.address6),
        statement=Statement(message.statement),
        joined=message.joined,
        tags=tuple(message.tags),
        candidates=tuple(candidate(c) for c in message.candidates),
        next=Statement(message.next_statement) if message.next_statement else None,
    )


def decode_node(chunk: bytes) -> Node:
    """Inverse of `encode_node`; verifies no signature (crypto/identity.py does)."""
    with strict("node"):
        return node(pb.Node.FromString(chunk))


def mesh_message(mesh: MeshInfo) -> pb.MeshInfo:
    """What every member knows of the mesh."""
    return pb.MeshInfo(
        id=mesh.id,
        name=mesh.name,
        prefix4=str(mesh.prefix4),
        prefix6=str(mesh.prefix6),
        coordinators=mesh.coordinators,
        ca=mesh.ca,
        incarnation=mesh.incarnation,
        policy=mesh.policy,
    )


def mesh_info(message: pb.MeshInfo) -> MeshInfo:
    """Inverse of `mesh_message`; raises ValueError on malformed prefixes."""
    prefix4, prefix6 = ip_network(message.prefix4), ip_network(message.prefix6)
    if prefix4.version != 4 or prefix6.version != 6:
        raise ProtocolError("mesh prefixes of the wrong family")
    return MeshInfo(
        message.id,
        message.name,
        prefix4,
        prefix6,
        tuple(message.coordinators),
        message.ca,
        message.incarnation,
        message.policy,
    )


def encode_mesh(mesh: MeshInfo) -> bytes:
    """For the node's own store."""
    return mesh_message(mesh).SerializeToString()


def decode_mesh(raw: bytes) -> MeshInfo:
    """Inverse of `encode_mesh`."""
    with strict("mesh"):
        return mesh_info(pb.MeshInfo.FromString(raw))


# ---- enrolment -----------------------------------------------------------------------------------------------------
def hello() -> pb.Hello:
    """What this release speaks."""
    return pb.Hello(protocol_min=PROTOCOL_MIN, protocol_max=PROTOCOL, release=__version__)


def agree(message: pb.Hello) -> int:
    """The highest protocol both speak. Raises ProtocolError naming both ranges."""
    if message.protocol_max < PROTOCOL_MIN or message.protocol_min > PROTOCOL:
        raise ProtocolError(
            f"release {message.release or 'unknown'} speaks protocol {message.protocol_min} to {message.protocol_max}, "
            f"this one ({__version__}) speaks {PROTOCOL_MIN} to {PROTOCOL}",
            "upgrade the older side; coordinators first",
        )
    return min(message.protocol_max, PROTOCOL)


@dataclass(frozen=True, slots=True)
class JoinAsk:
    """A node's request to become a member, as its device key signed it."""

    nonce: bytes
    token_id: str
    token_secret: bytes
    name: str
    tags: tuple[str, ...]
    statement: Statement
    candidates: tuple[Candidate, ...]

    def __repr__(self) -> str:
        return f"JoinAsk({self.name!r})"


def encode_join(ask: JoinAsk) -> bytes:
    """The body to sign."""
    return pb.JoinRequest(
        nonce=ask.nonce,
        token_id=ask.token_id,
        token_secret=ask.token_secret,
        name=ask.name,
        tags=ask.tags,
        statement=ask.statement.signed,
        candidates=[candidate_message(c) for c in ask.candidates],
        release=__version__,
    ).SerializeToString()


def decode_join(body: bytes) -> JoinAsk:
    """Inverse of `encode_join`."""
    with strict("join request"):
        m = pb.JoinRequest.FromString(body)
        found = tuple(candidate(c) for c in m.candidates)
        return JoinAsk(m.nonce, m.token_id, m.token_secret, m.name, tuple(m.tags), Statement(m.statement), found)


def encode_renew(nonce: bytes, statement: Statement, certificate: bytes) -> bytes:
    """The body to sign for a new certificate; `certificate` is the last one (DER), expired or not."""
    return pb.RenewRequest(nonce=nonce, statement=statement.signed, certificate=certificate).SerializeToString()


def decode_renew(body: bytes) -> tuple[bytes, Statement, bytes]:
    """(nonce, statement, last certificate)."""
    with strict("renewal"):
        m = pb.RenewRequest.FromString(body)
        return m.nonce, Statement(m.statement), m.certificate


def signed(body: bytes, signature: bytes) -> pb.Signed:
    """A body and the device key's signature of it."""
    return pb.Signed(body=body, signature=signature)


def challenge(nonce: bytes, mesh_id: str, protocol: int, seen_address: str = "", *, now: float) -> pb.Challenge:
    """The answer to Begin."""
    return pb.Challenge(protocol=protocol, nonce=nonce, now=now, mesh_id=mesh_id, seen_address=seen_address)


@dataclass(frozen=True, slots=True)
class Membership:
    """What joining gives: a certificate (DER), the mesh, and this node as the registry has it."""

    certificate: bytes
    mesh: MeshInfo
    node: Node
    resumed: bool = False


def joined_message(membership: Membership) -> pb.Joined:
    """The answer to Join."""
    return pb.Joined(
        certificate=membership.certificate,
        mesh=mesh_message(membership.mesh),
        self=node_message(membership.node),
        resumed=membership.resumed,
    )


def joined(message: pb.Joined) -> Membership:
    """Inverse of `joined_message`."""
    with strict("join answer"):
        return Membership(message.certificate, mesh_info(message.mesh), node(message.self), message.resumed)


def renewed_message(certificate: bytes, mesh: MeshInfo) -> pb.Renewed:
    """The answer to Renew."""
    return pb.Renewed(certificate=certificate, mesh=mesh_message(mesh))


def renewed(message: pb.Renewed) -> tuple[bytes, MeshInfo]:
    """(certificate DER, mesh)."""
    with strict("renewal answer"):
        return message.certificate, mesh_info(message.mesh)


# ---- what people read: findings, tokens, node states -----------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class FindingRow:
    """A finding as it travels. `subject` is a node id, or empty for the node itself; times in unix seconds.

    `signature` of its `claim` by the device key of the node that says it; empty where nobody signed: nodes of earlier
    releases, and what a coordinator concludes by itself.
    """

    code: str
    subject: str
    verdict: str
    since: float
    at: float
    evidence: str
    number: int = 0
    signature: bytes = b""

    def claim(self, mesh: str, node: NodeId, *, closed: bool) -> Claim:
        """What `node` signs of it. Raises ProtocolError for times that are none."""
        try:
            since, at = round(self.since * 1000), round(self.at * 1000)
        except (ValueError, OverflowError):
            raise ProtocolError("a finding without a time", "the node may run an incompatible release") from None
        return Claim(
            mesh, node, self.number, closed, self.code, self.subject, self.verdict, since, at, self.evidence
        )


def finding_messages(rows: Iterable[FindingRow]) -> list[pb.Finding]:
    """Findings for Up and for NodeState."""
    return [
        pb.Finding(
            code=r.code,
            subject=r.subject,
            verdict=r.verdict,
            since=r.since,
            at=r.at,
            evidence=r.evidence[:EVIDENCE_CHARS],
            number=r.number,
            signature=r.signature,
        )
        for r in rows
    ]


def finding_rows(messages: Iterable[pb.Finding]) -> tuple[FindingRow, ...]:
    """Inverse of `finding_messages`."""
    return tuple(
        FindingRow(m.code, m.subject, m.verdict, m.since, m.at, m.evidence, m.number, m.signature) for m in messages
    )


def leave_request() -> pb.LeaveRequest:
    """Empty: the certificate says who leaves."""
    return pb.LeaveRequest()
