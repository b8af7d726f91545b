"""The registry in etcd: the only file that speaks to it. Layout of the keys: registry.py.

Translates once: etcd3aio's and grpc's exceptions become MeshError here. Decides nothing and looks into no value. Two
habits of the client are not relied upon. It would repeat a transaction whose answer was lost: repeating is done here,
where our own bytes at the path tell our commit from a stranger's. And after a reconnect its watch goes on from the
*store's* revision at the last answer, which skips events not yet delivered: a reconnected watch is dropped and opened
again at the revision that we have reached. Meets ENC-3 (mutual TLS to etcd), OPS-2.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import grpc
from etcd3aio import EtcdConnectionError, EtcdError, EtcdTransientError, prefix_range_end
from etcd3aio.connections import ConnectionManager
from etcd3aio.kv import KVService
from etcd3aio.maintenance import MaintenanceService
from etcd3aio.watch import WatchService

from coordinator.registry import (
    MESH,
    Changes,
    Committed,
    Compacted,
    Conflict,
    Deleted,
    Endpoint,
    Expect,
    Health,
    Op,
    Put,
    Record,
    check,
)
from meshctl.errors import EnvironmentFault, MeshError, ProtocolError, TrustError, UnreachableError, UsageError

T = TypeVar("T")

ATTEMPT_S: Final = 2.0  # one call; etcd's own election takes about 1 s
OPERATION_S: Final = 6.0  # all attempts of one operation: rides out a restart of etcd (measured: 1 to 2 s)
CONNECTION_LOST: Final = "Internal error from Core"  # what grpc.aio says of a stream whose connection ended as it wrote
FIRST_PAUSE_S: Final = 0.05
MOST_PAUSE_S: Final = 0.5
ENDPOINT_S: Final = 1.0  # one member, asked how it is
LIST_PAGE: Final = 1000  # about 1 MB of records
LIST_ATTEMPTS: Final = 3  # history may be compacted under a slow list
CHANNEL: Final = [
    ("grpc.enable_retries", 1),
    # A watch on a member that stands still with its connections open (paused, its machine hung) ends after 8 s. etcd
    # allows a ping every 5 s, and none without a call: after three too many it hangs up, and grpc pings half as often
    # from then on. Without the last line grpc itself stops pinging a watch on which nothing is sent.
    ("grpc.keepalive_time_ms", 6_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),  # grpc's default of two minutes would outlast any restart
    ("grpc.max_receive_message_length", -1),  # etcd is trusted by mutual TLS; a page or a watch answer may pass 4 MiB
]


@dataclass(frozen=True, slots=True)
class EtcdAddress:
    """Where etcd is and how to prove who we are to it; all files PEM."""

    endpoints: tuple[str, ...]  # HOST:PORT
    ca: Path
    certificate: Path
    key: Path
    server_name: str = ""  # a name in every endpoint's certificate; by default the first endpoint's host


def _pem(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise EnvironmentFault(
            f"cannot read {path}: {error.strerror}", "check the etcd certificate settings"
        ) from error


class _Member:
    """Our connection to one member of the cluster."""

    def __init__(self, endpoint: str, address: EtcdAddress, server_name: str) -> None:
        self.endpoint = endpoint
        manager = ConnectionManager([endpoint])
        manager.target, manager.grpc_options = f"dns:///{endpoint}", list(CHANNEL)
        files = _pem(address.ca), _pem(address.key), _pem(address.certificate)
        self.channel: grpc.aio.Channel = manager.get_channel(*files, tls_server_name=server_name)
        self.kv, self.maintenance = KVService(self.channel), MaintenanceService(self.channel)
        self.watch = WatchService(self.channel, reconnect_backoff_seconds=0.1, max_reconnect_backoff_seconds=1.0)
        # A member cut off from its cluster must end the watch instead of staying silent; the client has no word for it.
        self.watch._metadata = (("hasleader", "true"),)


class EtcdRegistry:
    """Implements coordinator.registry.Registry on an etcd cluster. Make it with `connect`.

    All is asked of one member, until it fails: then of the next. Taking turns, as grpc would, a member that hangs costs
    every third call its time, and a call that is repeated may meet it again and again.
    """

    def __init__(self, members: Sequence[_Member]) -> None:
        self._members = members
        self._at = secrets.randbelow(len(members))
        self._where = ", ".join(member.endpoint for member in members)

    @classmethod
    async def connect(cls, address: EtcdAddress) -> Self:
        """Prepare the channels; nothing is sent before the first operation. Raises UsageError, EnvironmentFault."""
        if not address.endpoints or not all(endpoint.rpartition(":")[0] for endpoint in address.endpoints):
            raise UsageError(f"{address.endpoints} are not etcd endpoints", "write HOST:PORT")
        server_name = address.server_name or address.endpoints[0].rpartition(":")[0].strip("[]")
        return cls([_Member(endpoint, address, server_name) for endpoint in address.endpoints])

    @property
    def _member(self) -> _Member:
        return self._members[self._at]

    @property
    def _kv(self) -> KVService:
        return self._member.kv

    def _leave(self, failed: _Member) -> None:
        """Ask the next member from now on; somebody else may have said so already."""
        if self._member is failed:
            self._at = (self._at + 1) % len(self._members)

    async def read(self, *paths: str) -> tuple[Record | None, ...]:
        """See Registry."""
        if not 0 < len(paths) <= 128:
            raise ProtocolError(f"a read names 1 to 128 paths, not {len(paths)}", "split it")
        gets = [KVService.txn_op_get(path) for path in paths]
        answer = await self._repeat(lambda _: self._kv.txn([], gets, timeout=ATTEMPT_S, max_attempts=1))
        found = (part.response_range.kvs for part in answer.responses)
        return tuple(_record(kvs[0]) if kvs else None for kvs in found)

    async def list(self, prefix: str) -> tuple[tuple[Record, ...], int]:
        """See Registry. Read page by page, all pages at the revision of the first."""
        for _ in range(LIST_ATTEMPTS):
            if (found := await self._list(prefix)) is not None:
                return found
        raise UnreachableError("etcd drops its history faster than it can be read", "raise --auto-compaction-retention")

    async def _list(self, prefix: str) -> tuple[tuple[Record, ...], int] | None:
        start, end, revision = prefix.encode(), prefix_range_end(prefix), 0
        records: list[Record] = []
        while True:
            once = self._page(start, end, revision)
            try:
                page = await self._repeat(once)
            except _HistoryGone:
                return None
            revision = revision or page.header.revision
            records += map(_record, page.kvs)
            if not page.more:
                return tuple(records), revision
            start = page.kvs[-1].key + b"\0"

    def _page(self, start: bytes, end: bytes, revision: int) -> Callable[[int], Awaitable[Any]]:
        return lambda _: self._kv.get(start, end, revision=revision, limit=LIST_PAGE, timeout=ATTEMPT_S, max_attempts=1)

    async def commit(self, *ops: Op) -> Committed | Conflict:
        """See Registry. One etcd transaction; its else-branch reads what is there instead."""
        check(ops)
        expected = {op.path: op.generation if isinstance(op, Expect) else op.generation_expected for op in ops}
        puts = {op.path: op.value for op in ops if isinstance(op, Put)}
        compare = [KVService.txn_compare_version(path, generation) for path, generation in expected.items()]
        then = [
            KVService.txn_op_put(op.path, op.value) if isinstance(op, Put) else KVService.txn_op_delete(op.path)
            for op in ops
            if not isinstance(op, Expect)
        ]
        otherwise = [KVService.txn_op_get(path) for path in expected]

        async def once(attempt: int) -> Committed | Conflict:
            answer = await self._kv.txn(compare, then, otherwise, timeout=ATTEMPT_S, max_attempts=1)
            if answer.succeeded:
                return Committed(answer.header.revision)
            found = {path: part.response_range.kvs for path, part in zip(expected, answer.responses, strict=True)}
            for path, value in puts.items():
                # Only a repeated commit can meet its own bytes; a transaction is whole, so one of them proves them all.
                if attempt > 0 and found[path] and found[path][0].value == value:
                    return Committed(found[path][0].mod_revision)
            return Conflict(next(p for p, kvs in found.items() if (kvs[0].version if kvs else 0) != expected[p]))

        return await self._repeat(once)

    async def watch(self, prefix: str, from_revision: int) -> AsyncGenerator[Changes | Compacted, None]:
        """See Registry. While etcd is down it waits; `health` tells whether that is so."""
        following = from_revision
        while True:
            member = self._member
            answers = member.watch.watch(prefix, prefix_range_end(prefix), start_revision=following)
            created = False
            try:
                async with aclosing(answers):
                    async for answer in answers:
                        if answer.compact_revision:
                            yield Compacted(answer.compact_revision)
                            return
                        if answer.canceled or (answer.created and created):
                            break
                        if answer.created:
                            created = True
                            await self._refuse_past(answer.header.revision, following)
                        elif answer.events:
                            changes = _changes(answer.events)
                            following = changes.revision + 1
                            yield changes
            except UnreachableError:
                pass  # there is no majority to say how far the store is: we stay where we are
            except (EtcdError, grpc.aio.AioRpcError) as error:
                if not _is_transient(error):
                    raise self._translated(error) from error
            self._leave(member)
            await asyncio.sleep(FIRST_PAUSE_S)

    async def _refuse_past(self, revision: int, following: int) -> None:
        """Events before `following` were seen: a store that never came so far is another one (a member may lag)."""
        if revision < following - 1:
            answer = await self._repeat(lambda _: self._kv.get(MESH, timeout=ATTEMPT_S, max_attempts=1))
            if answer.header.revision < following - 1:
                raise TrustError(
                    f"the registry went back: it is at revision {answer.header.revision}, but {following - 1} was seen",
                    "etcd was restored from an older backup, or replaced; restart the coordinator once you know which",
                )

    async def health(self) -> Health:
        """See Registry. Asks for a read that needs a majority, then for the alarms that forbid writing."""
        member = self._member
        try:
            await member.kv.get(MESH, count_only=True, timeout=ATTEMPT_S, max_attempts=1)
        except (EtcdError, grpc.aio.AioRpcError, TimeoutError) as error:
            self._leave(member)
            return Health(False, self._translated(error).what, answers=False)
        try:
            status = await member.maintenance.status(timeout=ATTEMPT_S, max_attempts=1)
        except (EtcdError, grpc.aio.AioRpcError, TimeoutError) as error:
            return Health(True, f"etcd answers, but one member: {self._translated(error).what}")
        words = f"etcd {status.version}, {status.dbSize / 1e6:.1f} MB"
        return Health(not status.errors, ", ".join([words, *status.errors]))

    async def endpoints(self) -> tuple[Endpoint, ...]:
        """See Registry."""
        return tuple(await asyncio.gather(*map(self._endpoint, self._members)))

    async def _endpoint(self, member: _Member) -> Endpoint:
        address = member.endpoint
        try:
            status = await member.maintenance.status(timeout=ENDPOINT_S, max_attempts=1)
        except (EtcdError, grpc.aio.AioRpcError, TimeoutError) as error:
            return Endpoint(address, ok=False, words="does not answer" if _is_transient(error) else _status(error)[1])
        words = ", ".join(status.errors) or ("" if status.leader else "no leader")
        leads = status.leader == status.header.member_id
        return Endpoint(address, not words, leads, status.version, status.dbSize, words)

    async def close(self) -> None:
        """See Registry."""
        for member in self._members:
            await member.channel.close(None)

    async def _repeat(self, once: Callable[[int], Awaitable[T]]) -> T:
        """Call `once(attempt)` until it answers, fails for good, or OPERATION_S are over."""
        now = asyncio.get_running_loop().time
        deadline, pause, attempt = now() + OPERATION_S, FIRST_PAUSE_S, 0
        while True:
            member = self._member
            try:
                return await once(attempt)
            except (EtcdError, grpc.aio.AioRpcError, TimeoutError) as error:
                self._leave(member)
                if not _is_transient(error) or now() + pause > deadline:
                    raise self._translated(error) from error
            await asyncio.sleep(pause)
            attempt, pause = attempt + 1, min(2 * pause, MOST_PAUSE_S)

    def _translated(self, error: Exception) -> MeshError:
        code, details = _status(error)
        where = f"etcd at {self._where}"
        if _is_tls(details) or code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            hint = "check the CA, the client certificate and the server name that etcd is configured with"
            return TrustError(f"{where} and we do not trust each other: {details}", hint)
        if "database space exceeded" in details:
            hint = "etcdctl compact REVISION; etcdctl defrag; etcdctl alarm disarm; then raise --quota-backend-bytes"
            return EnvironmentFault(f"{where} is full and takes no writes", hint)
        if "too large" in details or "larger than max" in details or "too many operations" in details:
            return ProtocolError(f"{where} refuses the request: {details}", "split it")
        if "required revision has been compacted" in details:
            return _HistoryGone(f"{where} has dropped the revision asked for")
        if _is_transient(error):
            hint = "check that etcd runs and has a majority; a change whose answer was lost can be repeated safely"
            return UnreachableError(f"{where} does not answer ({details or 'timeout'})", hint)
        return EnvironmentFault(f"{where} failed: {details or code}", "look into etcd's log")


class _HistoryGone(MeshError):
    """The revision that a list is pinned to was compacted meanwhile."""


def _record(kv: Any) -> Record:
    return Record(kv.key.decode(), kv.value, kv.version, kv.create_revision, kv.mod_revision)


def _changes(events: Sequence[Any]) -> Changes:
    taken = tuple(
        Deleted(event.kv.key.decode(), event.kv.mod_revision) if event.type else _record(event.kv) for event in events
    )
    return Changes(taken[-1].revision, taken)


def _status(error: BaseException) -> tuple[grpc.StatusCode | None, str]:
    """grpc's code and words behind an exception of the client."""
    cause = error if isinstance(error, grpc.aio.AioRpcError) else error.__cause__
    return (cause.code(), cause.details() or "") if isinstance(cause, grpc.aio.AioRpcError) else (None, str(error))


def _is_tls(details: str) -> bool:
    """A handshake refused by us (SSL_ERROR, verification) or by etcd (TLS 1.3 tells that on the first read: TSI_)."""
    return any(sign in details for sign in ("SSL_ERROR", "TSI_", "erification check failed"))


def _is_transient(error: Exception) -> bool:
    code, details = _status(error)
    unavailable = code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED) or details == CONNECTION_LOST
    return (unavailable or isinstance(error, TimeoutError | EtcdConnectionError | EtcdTransientError)) and not _is_tls(
        details
    )
