"""Joins are decided in the order they come, and all who wait together: one etcd transaction for many (ACC-3, NET-1).

`mesh/admission.py` decides about each, on what the registry says and what those before it in the same transaction take;
the transaction's compares make it true for all of them or for none, and then all are decided again. A storm of joins on
one token costs a few round trips to etcd instead of two each, one after the other. Knows nothing of keys or gRPC.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address

from coordinator import records
from coordinator.feed import Feed
from coordinator.keyring import SealedRegistry
from coordinator.records import NodeRecord, Tombstone
from coordinator.registry import ADDRESSES, GONE, NAMES, NODES, TOKENS, Committed, Delete, Expect, Op, Put, Record
from meshctl.errors import ConflictError, MeshError, RefusedError, TrustError
from meshctl.events import Events, TokenUsed
from meshctl.mesh import addressing, admission, limits
from meshctl.mesh.admission import Admitted, Refused, Token
from meshctl.mesh.model import Address, Candidate, Endpoint, MeshInfo, NodeId, Origin
from meshctl.mesh.statement import Statement
from meshctl.wire.codec import JoinAsk

TOGETHER = 20  # joins in one transaction: six operations each, and etcd takes 128
ROUNDS = 32  # how often a lost race is tried again; replicas race, one coordinator does not


@dataclass(frozen=True, slots=True)
class Entered:
    """A member's record, the revision at which it is true, and whether it was one before."""

    record: NodeRecord
    revision: int
    resumed: bool


Verdict = Entered | Refused


@dataclass(slots=True, eq=False)
class _Seat:
    """One who waits."""

    ask: JoinAsk
    node: NodeId
    source: Address
    verdict: asyncio.Future[Verdict]
    name_path: str
    key_path: str

    @property
    def paths(self) -> tuple[str, ...]:
        return TOKENS + self.ask.token_id, NODES + self.node, GONE + self.node, self.name_path, self.key_path


@dataclass(slots=True)
class _Draft:
    """What a transaction would do, as it grows."""

    found: Mapping[str, Record]
    ops: dict[str, Op] = field(default_factory=dict)
    tokens: dict[str, Token] = field(default_factory=dict)
    entering: dict[_Seat, tuple[NodeRecord, Token]] = field(default_factory=dict)  # and the token as it is left
    verdicts: dict[_Seat, Verdict | MeshError] = field(default_factory=dict)

    def token(self, path: str) -> Token | None:
        """With what those before have taken of it."""
        if path not in self.tokens and path in self.found:
            self.tokens[path] = records.decode(self.found[path].value, Token)
        return self.tokens.get(path)

    def taken(self, path: str) -> bool:
        return path in self.found or path in self.ops


@dataclass(frozen=True, slots=True)
class _Either(Container[IPv4Address]):
    """Addresses that are taken, without copying thousands of them for each join."""

    sets: tuple[Container[IPv4Address], ...]

    def __contains__(self, address: object) -> bool:
        return any(address in one for one in self.sets)


class Admissions:
    """`await admit(...)`. `clock` is wall time in unix seconds."""

    def __init__(
        self, mesh: MeshInfo, registry: SealedRegistry, feed: Feed, events: Events, clock: Callable[[], float]
    ) -> None:
        self._mesh, self._registry, self._feed, self._events, self._clock = mesh, registry, feed, events, clock
        self._line: list[_Seat] = []
        self._deciding: asyncio.Task[None] | None = None

    async def admit(self, ask: JoinAsk, node: NodeId, source: Address) -> Verdict:
        """Whether this node comes in; the caller has checked its proofs. Raises MeshError when nobody can say."""
        verdict: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        name_path = NAMES + self._registry.index_key("name", ask.name)
        key_path = NAMES + self._registry.index_key("wireguard", str(ask.statement.wireguard))
        self._line.append(_Seat(ask, node, source, verdict, name_path, key_path))
        if self._deciding is None or self._deciding.done():
            self._deciding = asyncio.ensure_future(self._decide_all())  # of its own: no caller's end is the others'
        return await verdict

    async def _decide_all(self) -> None:
        while self._line:
            batch: dict[NodeId, _Seat] = {}
            for seat in self._line:
                if seat.node not in batch and len(batch) < TOGETHER:
                    batch[seat.node] = seat
            self._line = [seat for seat in self._line if batch.get(seat.node) is not seat]
            seats = [seat for seat in batch.values() if not seat.verdict.done()]  # else its caller has gone
            if seats:
                await self._try(seats)

    async def _try(self, seats: Sequence[_Seat]) -> None:
        try:
            await self._decide(seats)
        except TrustError as error:  # a record was tampered with: it is not everybody's
            if len(seats) == 1:
                _fail(seats, error)
            for seat in seats if len(seats) > 1 else ():
                await self._try([seat])
        except Exception as error:
            _fail(seats, error)

    async def _decide(self, seats: Sequence[_Seat]) -> None:
        lost: set[IPv4Address] = set()
        for _ in range(ROUNDS):
            paths = list(dict.fromkeys(path for seat in seats for path in seat.paths))
            read = await self._registry.read(*paths)
            draft = _Draft({path: record for path, record in zip(paths, read, strict=True) if record})
            for seat in seats:
                try:
                    draft.verdicts[seat] = self._draft(seat, draft, lost)
                except MeshError as error:
                    draft.verdicts[seat] = error
            done = await self._registry.commit(*draft.ops.values()) if draft.ops else Committed(0)
            if isinstance(done, Committed):
                self._tell(draft, done.revision)
                return
            for record, _ in draft.entering.values():
                if done.path == self._address_path(record.address4):  # a replica was faster, our watch has not told yet
                    lost.add(record.address4)
        raise ConflictError("too many nodes joined in the same moment", "try again")

    def _draft(self, seat: _Seat, draft: _Draft, lost: set[IPv4Address]) -> Verdict:
        ask, node = seat.ask, seat.node
        token_path, node_path, gone_path, name_path, key_path = seat.paths
        token = draft.token(token_path)
        gone_at = draft.found.get(gone_path)
        stone = records.decode(gone_at.value, Tombstone) if gone_at else None
        verdict = admission.decide(
            admission.Request(node, ask.name, ask.tags),
            token,
            secret_matches=_secret_matches(token, ask.token_secret),
            member=node_path in draft.found,
            name_taken=draft.taken(name_path),
            key_taken=draft.taken(key_path),
            tombstone=stone.why if stone else None,
            now=self._clock(),
        )
        if isinstance(verdict, Refused):
            return verdict
        if verdict.resumed:
            return self._resume(ask, draft.found[node_path])
        address4 = stone.address4 if stone else self._address(node, lost, draft)
        record = self._record(seat, verdict, address4)
        ops: list[Op] = [
            Put(token_path, records.encode(verdict.token), draft.found[token_path].generation),
            Put(node_path, records.encode(record), 0),
            Put(name_path, node.encode(), 0),
            Put(key_path, node.encode(), 0),
            Delete(gone_path, gone_at.generation) if gone_at else Expect(gone_path, 0),
        ]
        if not stone:
            ops.append(Put(self._address_path(address4), node.encode(), 0))
        draft.ops.update((op.path, op) for op in ops)
        draft.tokens[token_path] = verdict.token
        draft.entering[seat] = record, verdict.token
        return Entered(record, 0, resumed=False)

    def _tell(self, draft: _Draft, revision: int) -> None:
        for seat, verdict in draft.verdicts.items():
            if seat in draft.entering:
                record, token = draft.entering[seat]
                used = TokenUsed(token=token.id, node=seat.node, uses_before=token.uses + 1, uses_after=token.uses)
                self._events.emit(replace(used, actor=f"node:{seat.node}", source=seat.source))
                verdict = Entered(record, revision, resumed=False)  # noqa: PLW2901 - now it is true
            if seat.verdict.done():  # its caller has gone: it resumes when it asks again
                continue
            if isinstance(verdict, MeshError):
                seat.verdict.set_exception(verdict)
            else:
                seat.verdict.set_result(verdict)

    def _record(self, seat: _Seat, verdict: Admitted, address4: IPv4Address) -> NodeRecord:
        return NodeRecord(
            id=seat.node,
            name=seat.ask.name,
            tags=verdict.tags,
            address4=address4,
            address6=addressing.address6(self._mesh.prefix6, seat.node),
            statement=seat.ask.statement.signed,
            candidates=merged(seat.ask.candidates, seat.source),
            ephemeral=verdict.token.ephemeral,
            token=verdict.token.id,
            created_at=self._clock(),
        )

    def _resume(self, ask: JoinAsk, at: Record) -> Entered:
        """The node was admitted before and its device key is proven anew: same place, same name, same statement."""
        record = records.decode(at.value, NodeRecord)
        if Statement(record.statement).body != ask.statement.body:
            raise RefusedError(
                f"node {record.name} is registered with other keys", "mesh-coordinator nodes rm it, then join again"
            )
        return Entered(record, at.revision, resumed=True)

    def _address(self, node: NodeId, lost: set[IPv4Address], draft: _Draft) -> IPv4Address:
        """A free v4 address. In a large mesh the search starts where the id says, so that replicas rarely collide."""
        start = int.from_bytes(hashlib.sha256(node.encode()).digest()[:4], "big") if len(self._feed.members) > 64 else 0
        drafted = {record.address4 for record, _ in draft.entering.values()}
        return addressing.next4(self._mesh.prefix4, _Either((self._feed.addresses_taken, lost, drafted)), start)

    def _address_path(self, address: IPv4Address) -> str:
        return ADDRESSES + self._registry.index_key("address", str(address))


def _fail(seats: Sequence[_Seat], error: Exception) -> None:
    for seat in seats:
        if not seat.verdict.done():
            seat.verdict.set_exception(error)


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
