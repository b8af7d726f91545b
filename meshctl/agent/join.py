"""Enrolment from the node's side: join with a token, renew with the device key, leave (NET-1, ACC-3, ACC-4).

Keys are made and sealed on disk before anything leaves the host, so a join cut off at any moment is resumed by running
it again: the same device key gets the same membership. Must not touch the interface.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import grpc

from meshctl.agent import channel
from meshctl.agent.store import SavedMembership, Store
from meshctl.config import AgentConfig
from meshctl.crypto import pki
from meshctl.crypto.identity import JOIN_CONTEXT, RENEW_CONTEXT, Identity
from meshctl.errors import EnvironmentFault, MeshError, RefusedError, TrustError, UnreachableError, UsageError
from meshctl.mesh.model import Candidate, MeshInfo, Node, check_name
from meshctl.mesh.token import JoinToken
from meshctl.wire import codec, status, unary


@dataclass(frozen=True, slots=True)
class Member:
    """An opened membership: this node, its mesh, its certificate (DER)."""

    mesh: MeshInfo
    node: Node
    certificate: bytes
    saved: SavedMembership

    @classmethod
    def load(cls, store: Store) -> Member:
        """From disk. Raises NotJoinedError, TrustError."""
        saved = store.membership()
        return cls(codec.decode_mesh(saved.mesh), codec.decode_node(saved.node), saved.certificate, saved)


async def join(
    config: AgentConfig, store: Store, token: JoinToken, name: str, tags: Sequence[str], local: Sequence[Candidate]
) -> tuple[Member, bool]:
    """Become a member -> (membership, resumed). Raises MeshError; nothing but the keys stays behind then."""
    check_name(name)
    if store.is_joined():
        mesh = Member.load(store).mesh
        raise UsageError(f"this machine is already in mesh {mesh.name!r}", "run meshctl up, or meshctl leave first")
    store.prepare()
    identity = store.identity()
    member, resumed = await _enrol(identity, token, name, tags, local)
    saved = SavedMembership(
        codec.encode_mesh(member.mesh),
        codec.encode_node(member.node),
        member.certificate,
        member.node.statement.serial,
        config.interface,
        config.listen_port,
        config.endpoint,
        config.device,
        time.time(),
        config.health_listen,
    )
    store.save_membership(saved)
    return Member(member.mesh, member.node, member.certificate, saved), resumed


async def _enrol(
    identity: Identity, token: JoinToken, name: str, tags: Sequence[str], local: Sequence[Candidate]
) -> tuple[codec.Membership, bool]:
    """At the first coordinator that can: one that cannot reach etcd, whose disk is full, or in whose place
    somebody else answers, is not the only one.

    A coordinator that admitted us and could not say so is no loss: the next one resumes.
    """
    failure: MeshError = UnreachableError("the token names no coordinator", "ask for a new one")
    anchor = pki.anchor(token.mesh, token.ca_key)
    for address in token.coordinators:
        try:
            return await _enrol_at(address, anchor, identity, token, name, tags, local)
        except (UnreachableError, EnvironmentFault, TrustError) as error:
            failure = error
    raise failure


async def _enrol_at(
    address: str,
    anchor: bytes,
    identity: Identity,
    token: JoinToken,
    name: str,
    tags: Sequence[str],
    local: Sequence[Candidate],
) -> tuple[codec.Membership, bool]:
    async with channel.open_channel(address, anchor) as wire:
        try:
            challenge = await unary.begin(wire, codec.hello())
            statement = identity.state(challenge.mesh_id, 1)
            ask = codec.JoinAsk(challenge.nonce, token.id, token.secret, name, tuple(tags), statement, tuple(local))
            body = codec.encode_join(ask)
            answer = await unary.join(wire, codec.signed(body, identity.sign(JOIN_CONTEXT + body)))
        except grpc.aio.AioRpcError as error:
            raise status.error(error, f"coordinator {address}") from error
    member = codec.joined(answer)
    if member.node.id != identity.id or not pki.is_anchored(member.mesh.ca, anchor):
        raise TrustError(
            "the coordinator answered with a membership that is not ours", "report this to the mesh's operator"
        )
    return member, member.resumed


async def renew(store: Store, member: Member, identity: Identity) -> Member:
    """A fresh certificate for the registered device key, whether the old one has expired or not."""
    failure: MeshError = UnreachableError("no coordinator is known", "meshctl join TOKEN")
    for address in member.mesh.coordinators:
        try:
            certificate, mesh = await _renew_at(address, member, identity)
        except MeshError as error:
            failure = error
            if isinstance(error, RefusedError):
                raise
            continue
        saved = replace(member.saved, certificate=certificate, mesh=codec.encode_mesh(mesh))
        store.save_membership(saved)
        return replace(member, certificate=certificate, mesh=mesh, saved=saved)
    raise failure


async def _renew_at(address: str, member: Member, identity: Identity) -> tuple[bytes, MeshInfo]:
    async with channel.open_channel(address, member.mesh.ca) as wire:
        try:
            challenge = await unary.begin(wire, codec.hello())
            body = codec.encode_renew(
                challenge.nonce, identity.state(member.mesh.id, member.saved.serial), member.certificate
            )
            answer = await unary.renew(wire, codec.signed(body, identity.sign(RENEW_CONTEXT + body)))
        except grpc.aio.AioRpcError as error:
            raise status.error(error, f"coordinator {address}") from error
    certificate, mesh = codec.renewed(answer)
    if not hmac.compare_digest(mesh.ca, member.mesh.ca):
        raise TrustError("the coordinator answered with another CA", "report this to the mesh's operator")
    return certificate, mesh


async def leave(member: Member, identity: Identity) -> None:
    """Tell the registry that this node goes. Raises MeshError when no coordinator answers."""
    failure: MeshError = UnreachableError("no coordinator is known", "meshctl leave --force")
    for address in member.mesh.coordinators:
        async with channel.open_channel(address, member.mesh.ca, identity, member.certificate) as wire:
            try:
                await unary.leave(wire, codec.leave_request())
                return
            except grpc.aio.AioRpcError as error:
                failure = status.error(error, f"coordinator {address}")
    raise failure
