"""Who goes, and what changes about those who stay: revoke, remove, leave, endpoints, tokens (ACC-5, NET-1, OPS-4).

Each act is one transaction with compares and is on disk as an event before it is confirmed. A tombstone keeps the
address of a node that is gone, and tells a revoked one from one that may come back.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace

from coordinator import records
from coordinator.admit import merged
from coordinator.feed import Feed
from coordinator.keyring import SealedRegistry
from coordinator.records import NodeRecord, Tombstone, Why
from coordinator.registry import ADDRESSES, GONE, NAMES, NODES, TOKENS, Committed, Delete, Op, Put
from meshctl.crypto import pki
from meshctl.errors import ConflictError, RefusedError, UsageError
from meshctl.events import Event, Events, NodeLeft, NodeRemoved, NodeRevoked, TokenCreated, TokenRevoked
from meshctl.mesh import limits
from meshctl.mesh.admission import Token
from meshctl.mesh.model import Address, Candidate, MeshInfo, NodeId
from meshctl.mesh.token import JoinToken

ROUNDS = 16
_EVENT: dict[Why, type[NodeRevoked] | type[NodeRemoved] | type[NodeLeft]] = {
    Why.REVOKED: NodeRevoked,
    Why.REMOVED: NodeRemoved,
    Why.LEFT: NodeLeft,
}


class Members:
    """The verbs of operators, and of nodes about themselves. `clock` is wall time in unix seconds."""

    def __init__(
        self, mesh: MeshInfo, registry: SealedRegistry, feed: Feed, events: Events, clock: Callable[[], float]
    ) -> None:
        self._mesh = mesh
        self._registry, self._feed, self._events, self._clock = registry, feed, events, clock

    @property
    def mesh(self) -> MeshInfo:
        """Its record as it is now: a token names all coordinators."""
        return self._feed.mesh or self._mesh

    async def depart(
        self, name: str, why: Why, reason: str, actor: str, source: Address | None = None
    ) -> tuple[NodeId, int]:
        """Take a node out for `why` (revoked, removed, left) -> (id, revision). Peers hear of it by the map."""
        for _ in range(ROUNDS):
            member = self._feed.find(name)
            node = member.node
            name_path = NAMES + self._registry.index_key("name", node.name)
            index = self._registry.index_key
            key_paths = [NAMES + index("wireguard", key) for key in sorted(member.record.wireguard_keys)]
            at, gone_at, *own = await self._registry.read(NODES + node.id, GONE + node.id, name_path, *key_paths)
            if at is None or records.decode(at.value, NodeRecord).wireguard_keys != member.record.wireguard_keys:
                await self._feed.load()  # gone, or its key was rotated: our watch has not told us yet
                continue
            stone = Tombstone(node.id, node.name, node.address4, why, self._clock(), reason)
            ops: list[Op] = [  # the tombstone first: whoever hears that the node is gone can say why
                Put(GONE + node.id, records.encode(stone), gone_at.generation if gone_at else 0),
                Delete(at.path, at.generation),
            ]
            ops += [Delete(r.path, r.generation) for r in own if r and r.value == node.id.encode()]
            done = await self._registry.commit(*ops)
            if isinstance(done, Committed):
                event: Event = _EVENT[why](actor=actor, source=source, node=node.id, name=node.name)
                await self._events.commit(event)
                await self._feed.caught_up(done.revision)
                return node.id, done.revision
        raise ConflictError(f"node {name} is being changed by somebody else", "try again")

    async def set_candidates(self, node: NodeId, told: Sequence[Candidate], source: Address) -> None:
        """A node's endpoints as it and we see them; written only when they changed."""
        wanted = merged(told, source)
        member = self._feed.members.get(node)
        if member is None or set(member.record.candidates) == set(wanted):
            return
        (at,) = await self._registry.read(NODES + node)
        if at is not None:
            record = replace(records.decode(at.value, NodeRecord), candidates=wanted)
            await self._registry.commit(
                Put(at.path, records.encode(record), at.generation)
            )  # a lost race: the node tells again

    async def sweep(self) -> int:
        """Remove tombstones past their time, and with them what they kept from being reused."""
        now = self._clock()
        swept = 0
        for stone in [
            s for s in self._feed.gone.values() if now - s.at > limits.TOMBSTONE_LIFE_S and s.why is not Why.REVOKED
        ]:
            address_path = ADDRESSES + self._registry.index_key("address", str(stone.address4))
            gone_at, address_at = await self._registry.read(GONE + stone.id, address_path)
            if gone_at is None:  # it has come back meanwhile: the address is its own again
                continue
            ops = [Delete(r.path, r.generation) for r in (gone_at, address_at) if r]
            if isinstance(await self._registry.commit(*ops), Committed):
                swept += 1
        return swept

    # ---- tokens ----------------------------------------------------------------------------------------------------
    async def create_token(
        self, life_s: float, uses: int, tags: tuple[str, ...], ephemeral: bool, note: str, actor: str
    ) -> JoinToken:
        """A new token; its secret exists in the answer and nowhere else."""
        if not 0 < life_s <= 366 * 86400 or not 0 < uses <= 100_000:
            raise UsageError("a token lives up to a year and admits 1 to 100000 nodes", "--expires 1h --uses 1")
        tags = tuple(dict.fromkeys(tags))
        if len(tags) > limits.TAGS_PER_NODE:
            raise UsageError(f"a node has {limits.TAGS_PER_NODE} tags at most, not {len(tags)}", "name fewer --tag")
        now = self._clock()
        secret, name = secrets.token_bytes(32), secrets.token_hex(8)
        token = Token(name, hashlib.sha256(secret).digest(), now, now + life_s, uses, tags, ephemeral, note=note)
        await self._registry.commit(Put(TOKENS + name, records.encode(token), 0))
        await self._events.commit(TokenCreated(actor=actor, token=name, expires=token.expires, uses=uses, tags=tags))
        return JoinToken(pki.ca_key(self.mesh.ca), self.mesh.id, name, secret, self.mesh.coordinators)

    async def tokens(self) -> tuple[Token, ...]:
        """All tokens, newest first; hashes only."""
        found, _ = await self._registry.list(TOKENS)
        return tuple(sorted((records.decode(r.value, Token) for r in found), key=lambda t: -t.created))

    async def revoke_token(self, name: str, actor: str) -> None:
        """Nobody joins with it any more; nodes that did stay."""
        for _ in range(ROUNDS):
            (at,) = await self._registry.read(TOKENS + name)
            if at is None:
                raise RefusedError(f"this mesh has no token {name!r}", "mesh-coordinator token list")
            token = replace(records.decode(at.value, Token), revoked=True)
            if isinstance(await self._registry.commit(Put(at.path, records.encode(token), at.generation)), Committed):
                await self._events.commit(TokenRevoked(actor=actor, token=name))
                return
        raise ConflictError(f"token {name} is in use this very moment", "try again")
