"""Who comes in, and stays: joins and renewals (ACC-3, ACC-4, NET-1).

Proofs are checked here, admit.py decides about those whose proofs hold. Events are on disk before an act is confirmed.
Knows nothing of gRPC.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from coordinator import nonces
from coordinator.admit import Admissions
from coordinator.crowd import Crowd
from coordinator.feed import Feed
from coordinator.keyring import SealedRegistry
from meshctl.crypto import identity, pki
from meshctl.errors import RefusedError, TrustError
from meshctl.events import (
    CertificateIssued,
    CertificateRenewed,
    Events,
    JoinRefused,
    NodeJoined,
    StatementAccepted,
)
from meshctl.mesh import limits
from meshctl.mesh.admission import Refused
from meshctl.mesh.model import Address, MeshInfo, NodeId, check_name, node_id
from meshctl.mesh.statement import Statement
from meshctl.wire.codec import JoinAsk, Membership


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
        self._admissions = Admissions(authority.mesh, registry, feed, events, clock)
        self.crowd = Crowd()

    def nonce(self) -> bytes:
        """For a caller that is about to prove its device key."""
        return nonces.make(self.authority.nonce_key, secrets.token_bytes(16), now=self._clock())

    @property
    def mesh(self) -> MeshInfo:
        """Its record as it is now: further coordinators may have come."""
        return self._feed.mesh or self.authority.mesh

    async def join(self, ask: JoinAsk, body: bytes, signature: bytes, source: Address) -> Membership:
        """Admit a node, or raise RefusedError, TrustError, ProtocolError."""
        with self.crowd.joining():
            return await self._join(ask, body, signature, source)

    async def _join(self, ask: JoinAsk, body: bytes, signature: bytes, source: Address) -> Membership:
        mesh = self.mesh
        nonces.check(self.authority.nonce_key, ask.nonce, now=self._clock())
        check_name(ask.name)
        node = node_id(ask.statement.device_key)
        identity.check(ask.statement, mesh.id, seen_serial=1)
        identity.verify(ask.statement.device_key, identity.JOIN_CONTEXT + body, signature)
        entered = await self._admissions.admit(ask, node, source)
        if isinstance(entered, Refused):
            await self._turn_away(entered, ask, node, source)
        self.crowd.admitted()
        record = entered.record
        await self._feed.caught_up(entered.revision)
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
                resumed=entered.resumed,
            )
        )
        return Membership(certificate, mesh, member.node, entered.resumed)

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

