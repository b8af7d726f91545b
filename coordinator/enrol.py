"""Who comes in, and stays: joins and renewals, each decision one etcd transaction (ACC-3, ACC-4, NET-1).

`mesh/admission.py` decides, this file reads what it needs, commits with compares, and decides again when somebody was
faster. Events are on disk before an act is confirmed. Knows nothing of gRPC.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from typing import NoReturn

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from coordinator import nonces, records
from coordinator.feed import Feed
from coordinator.keyring import SealedRegistry
from coordinator.records import NodeRecord, Tombstone
from coordinator.registry import ADDRESSES, GONE, NAMES, NODES, TOKENS, Committed, Delete, Expect, Op, Put, Record
from meshctl.crypto import identity, pki
from meshctl.errors import ConflictError, RefusedError, TrustError
from meshctl.events import (
    CertificateIssued,
    CertificateRenewed,
    Events,
    JoinRefused,
    NodeJoined,
    StatementAccepted,
    TokenUsed,
)
from meshctl.mesh import addressing, admission, limits
from meshctl.mesh.admission import Admitted, Refused, Token
from meshctl.mesh.model import Address, Candidate, Endpoint, MeshInfo, NodeId, Origin, check_name, node_id
from meshctl.mesh.statement import Statement
from meshctl.wire.codec import JoinAsk, Membership

ROUNDS = 32  # how often a lost race is tried again; replicas race, one coordinator does not (see _one_at_a_time)


@dataclass(frozen=True, slots=True, repr=False)
class Authority:
    """What signs and what checks: the mesh record, the CA, the nonce key."""

    mesh: MeshInfo
    ca_key: pki.Key
    nonce_key: bytes = field(repr=False)


class Enrolment:
    """The membership verbs of one coordinator. `clock` is wall time in unix seconds."""

    def __init__(
        self, authority: Authority, registry: SealedRegistry, feed: Feed, events: Events, clock: Callable[[], float]
    ) -> None:
        self.authority = authority
        self._registry, self._feed, self._events, self._clock = registry, feed, events, clock
        self._one_at_a_time = asyncio.Lock()  # joins on one token would only lose races against each other

    def nonce(self) -> bytes:
        """For a caller that is about to prove its device key."""
        return nonces.make(self.authority.nonce_key, secrets.token_bytes(16), now=self._clock())

    @property
    def mesh(self) -> MeshInfo:
        """Its record as it is now: further coordinators may have come."""
        return self._feed.mesh or self.authority.mesh

    async def join(self, ask: JoinAsk, body: bytes, signature: bytes, source: Address) -> Membership:
        """Admit a node, or raise RefusedError, TrustError, ProtocolError."""
        mesh = self.mesh
        nonces.check(self.authority.nonce_key, ask.nonce, now=self._clock())
        check_name(ask.name)
        node = node_id(ask.statement.device_key)
        identity.check(ask.statement, mesh.id, seen_serial=1)
        identity.verify(ask.statement.device_key, identity.JOIN_CONTEXT + body, signature)
        async with self._one_at_a_time:
            record, revision, resumed = await self._admit(ask, node, source)
        await self._feed.caught_up(revision)
        member = self._feed.members.get(node)
        if member is None:
            raise RefusedError("this node was thrown out while it joined")
        now = self._clock()
        certificate = self._certify(node, ask.statement.device_key)
        self._events.emit(
            StatementAccepted(
                actor=f"node:{node}",
                source=source,
                node=node,
                serial_before=0,
                serial_after=ask.statement.serial,
                wireguard=ask.statement.wireguard,
            )
        )
        self._events.emit(
            CertificateIssued(actor=f"node:{node}", source=source, node=node, expires=now + limits.CERTIFICATE_LIFE_S)
        )
        await self._events.commit(
            NodeJoined(
                actor=f"node:{node}",
                source=source,
                node=node,
                name=record.name,
                address4=record.address4,
                address6=record.address6,
                token=ask.token_id,
                tags=record.tags,
                resumed=resumed,
            )
        )
        return Membership(certificate, mesh, member.node, resumed)

    async def _admit(self, ask: JoinAsk, node: NodeId, source: Address) -> tuple[NodeRecord, int, bool]:
        request = admission.Request(node, ask.name, ask.tags)
        name_path = NAMES + self._registry.index_key("name", ask.name)
        key_path = NAMES + self._registry.index_key("wireguard", str(ask.statement.wireguard))
        lost: set[IPv4Address] = set()
        for _ in range(ROUNDS):
            token_at, node_at, gone_at, name_at, key_at = await self._registry.read(
                TOKENS + ask.token_id, NODES + node, GONE + node, name_path, key_path
            )
            token = records.decode(token_at.value, Token) if token_at else None
            stone = records.decode(gone_at.value, Tombstone) if gone_at else None
            verdict = admission.decide(
                request,
                token,
                secret_matches=_secret_matches(token, ask.token_secret),
                member=node_at is not None,
                name_taken=name_at is not None,
                key_taken=key_at is not None,
                tombstone=stone.why if stone else None,
                now=self._clock(),
            )
            match verdict:
                case Refused():
                    await self._turn_away(verdict, ask, node, source)
                case Admitted(resumed=True):
                    assert node_at is not None
                    return self._resume(ask, node_at)
                case Admitted(spent, tags=tags):
                    assert token_at is not None
                    address4 = stone.address4 if stone else self._address(node, lost)
                    record = self._record(ask, node, spent, tags, address4, source)
                    ops: list[Op] = [
                        Put(token_at.path, records.encode(spent), token_at.generation),
                        Put(NODES + node, records.encode(record), 0),
                        Put(name_path, node.encode(), 0),
                        Put(key_path, node.encode(), 0),
                        Delete(gone_at.path, gone_at.generation) if gone_at else Expect(GONE + node, 0),
                    ]
                    if not stone:
                        ops.append(Put(self._address_path(address4), node.encode(), 0))
                    done = await self._registry.commit(*ops)
                    if isinstance(done, Committed):
                        before, after = spent.uses + 1, spent.uses
                        used = TokenUsed(token=spent.id, node=node, uses_before=before, uses_after=after)
                        self._events.emit(replace(used, actor=f"node:{node}", source=source))
                        return record, done.revision, False
                    if done.path == self._address_path(address4):  # a replica was faster, our watch has not told us yet
                        lost.add(address4)
        raise ConflictError("too many nodes joined in the same moment", "try again")

    async def _turn_away(self, why: Refused, ask: JoinAsk, node: NodeId, source: Address) -> NoReturn:
        told = JoinRefused(
            actor=f"node:{node}",
            source=source,
            node=node,
            name=ask.name,
            token=ask.token_id,
            code=why.code,
            why=why.what,
        )
        await self._events.commit(told)
        raise RefusedError(why.what, why.hint)

    def _record(
        self, ask: JoinAsk, node: NodeId, token: Token, tags: tuple[str, ...], address4: IPv4Address, source: Address
    ) -> NodeRecord:
        return NodeRecord(
            id=node,
            name=ask.name,
            tags=tags,
            address4=address4,
            address6=addressing.address6(self.authority.mesh.prefix6, node),
            statement=ask.statement.signed,
            candidates=merged(ask.candidates, source),
            ephemeral=token.ephemeral,
            token=token.id,
            created_at=self._clock(),
        )

    def _resume(self, ask: JoinAsk, at: Record) -> tuple[NodeRecord, int, bool]:
        """The node was admitted before and its device key is proven anew: same place, same name, same statement."""
        record = records.decode(at.value, NodeRecord)
        if Statement(record.statement).body != ask.statement.body:
            raise RefusedError(
                f"node {record.name} is registered with other keys", "mesh-coordinator nodes rm it, then join again"
            )
        return record, at.revision, True

    def _address(self, node: NodeId, lost: set[IPv4Address]) -> IPv4Address:
        """A free v4 address. In a large mesh the search starts where the id says, so that replicas rarely collide."""
        start = int.from_bytes(hashlib.sha256(node.encode()).digest()[:4], "big") if len(self._feed.members) > 64 else 0
        return addressing.next4(self.authority.mesh.prefix4, self._feed.addresses_taken() | lost, start)

    def _address_path(self, address: IPv4Address) -> str:
        return ADDRESSES + self._registry.index_key("address", str(address))

    async def renew(
        self, nonce: bytes, claim: Statement, last: bytes, body: bytes, signature: bytes, source: Address
    ) -> bytes:
        """A fresh certificate (DER) for a member's device key; its last one may have expired, within the window.

        Raises RefusedError when the node is no member any more, TrustError when the proof does not hold.
        """
        now = self._clock()
        nonces.check(self.authority.nonce_key, nonce, now=now)
        identity.verify(claim.device_key, identity.RENEW_CONTEXT + body, signature)
        node = node_id(claim.device_key)
        stone, member = self._feed.gone.get(node), self._feed.members.get(node)
        if member is None:
            why = stone.why if stone else "never registered"
            raise RefusedError(
                f"this node is no member any more ({why})", "meshctl leave --force, then join with a new token"
            )
        late = self._lateness(last, claim.device_key, now=now)
        if late > limits.RENEWAL_WINDOW_S:
            raise RefusedError(
                f"this node's certificate ended {late / 86400:.0f} days ago",
                "mesh-coordinator nodes rm it, then join again",
            )
        await self._events.commit(
            CertificateRenewed(
                actor=f"node:{node}", source=source, node=node, expires=now + limits.CERTIFICATE_LIFE_S, late=late > 0
            )
        )
        return self._certify(node, claim.device_key)

    def _lateness(self, certificate: bytes, device_key: bytes, *, now: float) -> float:
        """Seconds since a certificate that our CA gave this very key ended; negative while it runs."""
        try:
            leaf, ca = (
                x509.load_der_x509_certificate(certificate),
                x509.load_der_x509_certificate(self.authority.mesh.ca),
            )
            leaf.verify_directly_issued_by(ca)
            key = leaf.public_key()
            if not isinstance(key, pki.PublicKey) or identity.compressed(key) != device_key:
                raise ValueError("another key's")  # a coordinator's own leaf never ends
        except (ValueError, TypeError, InvalidSignature) as error:
            raise TrustError(
                "the last certificate is not one that this mesh gave this node",
                "meshctl leave --force, then join again",
            ) from error
        return now - leaf.not_valid_after_utc.timestamp()

    def _certify(self, node: NodeId, device_key: bytes) -> bytes:
        a = self.authority
        return pki.issue_node(a.ca_key, a.mesh.ca, a.mesh.id, device_key, node, now=self._clock())


def _secret_matches(token: Token | None, secret: bytes) -> bool:
    """Compared in constant time, against nothing when the token is unknown."""
    held = token.hash if token else bytes(32)
    return hmac.compare_digest(held, hashlib.sha256(secret).digest()) and token is not None


def merged(candidates: Sequence[Candidate], source: Address) -> tuple[Candidate, ...]:
    """What a node says of its endpoints, and where its control connection comes from, at the port it listens on."""
    told = [c for c in candidates if c.origin is not Origin.COORDINATOR]
    if told and not source.is_loopback and all(c.endpoint.address != source for c in told):
        told.append(Candidate(Endpoint(source, told[0].endpoint.port), Origin.COORDINATOR))
    return tuple(told[: limits.ENDPOINTS_PER_NODE])
