"""The feed and what hangs on it: lagging watches, compactions, restarts, digests, and pairs whose ends disagree (NET-2,
NET-4, NET-7, ACC-5, OPS-2)."""

from __future__ import annotations

import asyncio

import pytest

from coordinator import asymmetry
from coordinator import feed as feed_module
from coordinator.presence import PresenceTable
from coordinator.records import Why
from coordinator.registry import GONE
from coordinator.service import sessions
from meshctl.errors import UnreachableError
from meshctl.mesh import catalogue, limits
from meshctl.mesh.model import NodeId
from meshctl.wire.codec import FindingRow
from tests.harness.world import SOURCE, Clock, Computer, World, endpoint, world

OPERATOR = "operator:0"


async def three(mesh: World) -> list[Computer]:
    made = [await mesh.member(name) for name in "abc"]
    await mesh.caught_up()
    return made


async def test_streams_that_stand_at_one_place_are_sent_the_very_same_bytes() -> None:
    async with world() as mesh:
        await three(mesh)
        feed = mesh.first.feed
        assert feed.frames(0) is feed.frames(0)
        for cursor in range(1, 200):
            feed.frames(cursor)
        assert len(feed._frames) <= 64


async def test_crowd_that_comes_at_once_is_sent_one_map_and_never_one_with_who_has_gone() -> None:
    async with world() as mesh:
        nodes, feed = await three(mesh), mesh.first.feed
        first, reached = feed.beginning(crowded=True)
        await mesh.member("late")
        await mesh.caught_up()
        again, place = feed.beginning(crowded=True)
        assert (again is first, place < feed.revision) == (True, True)
        assert place == reached
        assert feed.beginning(crowded=False)[1] == feed.revision
        kept, _ = feed.beginning(crowded=True)
        await mesh.first.members.depart(nodes[0].id, Why.REVOKED, "", OPERATOR)
        await mesh.caught_up()
        fresh, place = feed.beginning(crowded=True)
        assert (fresh is kept, place) == (False, feed.revision)


async def test_resume_after_every_kind_of_restart_moves_no_node() -> None:
    async with world() as mesh:
        a, b, c = await three(mesh)
        for one in (a, b, c):
            assert await one.sync(mesh.first) == 0
            one.moved = 0
        await mesh.restart()
        for one in (a, b, c):
            one.restart()
            assert await one.sync(mesh.first) == 0
            assert one.moved == 0
            await mesh.agrees(one)


async def test_resume_moves_no_node_even_when_the_last_change_was_swept_away() -> None:
    async with world() as mesh:
        a, _, c = await three(mesh)
        await mesh.first.members.depart(c.id, Why.REMOVED, "", OPERATOR)
        await a.sync(mesh.first)
        mesh.clock.now += limits.TOMBSTONE_LIFE_S + 1
        await mesh.first.members.sweep()
        await mesh.restart()
        assert mesh.first.feed.revision < a.book.roster.revision
        a.moved = 0
        await a.sync(mesh.first)
        assert a.moved == 0
        await mesh.agrees(a)
        await mesh.member("d")
        assert await a.sync(mesh.first) == 0
        assert a.moved == 1
        await mesh.agrees(a)


async def test_cursor_older_than_a_swept_tombstone_is_sent_everything() -> None:
    async with world() as mesh:
        a, _, c = await three(mesh)
        await a.sync(mesh.first)
        await mesh.first.members.depart(c.id, Why.REMOVED, "", OPERATOR)
        mesh.clock.now += limits.TOMBSTONE_LIFE_S + 1
        await mesh.first.members.sweep()
        await mesh.caught_up()
        a.moved = 0
        assert a.frames(mesh.first, await a.begin(mesh.first))[0].snapshot
        assert await a.sync(mesh.first) == 0
        await mesh.agrees(a)


async def test_after_a_restart_the_hash_finds_what_a_swept_tombstone_no_longer_tells() -> None:
    async with world() as mesh:
        a, _, c = await three(mesh)
        await a.sync(mesh.first)
        await mesh.first.members.depart(c.id, Why.REMOVED, "", OPERATOR)
        await mesh.member("d")
        mesh.clock.now += limits.TOMBSTONE_LIFE_S + 1
        await mesh.first.members.sweep()
        await mesh.restart()
        assert await a.sync(mesh.first) == 1  # the delta did not fit, and was not taken
        await mesh.agrees(a)


async def test_node_ahead_of_a_lagging_coordinator_is_never_sent_back_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "JUST_JOINED_S", 0.05)
    async with world(coordinators=2) as mesh:
        a, b, _ = await three(mesh)
        ahead, behind = mesh.coordinators
        await a.sync(ahead)
        await behind.lag()
        await ahead.members.depart(b.id, Why.REVOKED, "stolen", OPERATOR)
        await a.sync(ahead)
        with pytest.raises(UnreachableError, match="has not heard of revision"):
            await a.begin(behind)
        assert b.id not in a.book.roster.nodes
        waiting = asyncio.ensure_future(a.begin(behind))
        behind.follow()
        assert await waiting == a.book.roster.revision


async def test_map_of_another_incarnation_begins_from_nothing() -> None:
    async with world() as mesh:
        (a, *_) = await three(mesh)
        await a.sync(mesh.first)
        for resume in (
            ("before-the-restore", a.book.roster.revision, a.book.map_hash),
            (mesh.mesh.incarnation, 0, b""),
        ):
            assert await mesh.first.service.cursor(resume) == 0
        assert await mesh.first.service.cursor((mesh.mesh.incarnation, a.book.roster.revision, b"wrong")) == 0


async def test_compaction_while_the_watch_was_away_loses_nothing() -> None:
    async with world() as mesh:
        a, b, c = await three(mesh)
        await a.sync(mesh.first)
        feed = mesh.first.feed
        await mesh.first.lag()
        other = await mesh.coordinator()
        await other.members.depart(b.id, Why.REVOKED, "", OPERATOR)
        await other.members.depart(c.id, Why.REMOVED, "", OPERATOR)
        await other.members.set_candidates(a.id, [endpoint(7)], SOURCE)
        d = mesh.computer("d")
        await d.join(other, await mesh.token())
        mesh.clock.now += limits.TOMBSTONE_LIFE_S + 1
        await other.members.sweep()
        await mesh.registry.compact(mesh.registry.revision)
        mesh.first.follow()
        async with asyncio.timeout(5):
            await feed.reached(mesh.registry.revision)
        assert feed.members.keys() == {a.id, d.id}
        assert feed.gone.keys() == {b.id}
        assert set(mesh.first.cut) == {b.id, c.id}
        await a.sync(mesh.first)
        await mesh.agrees(a)
        await mesh.restart(1)
        assert await mesh.coordinators[1].service.cursor(
            (mesh.mesh.incarnation, a.book.roster.revision, a.book.map_hash)
        )


async def test_load_that_overtakes_the_watch_is_not_undone_by_old_news() -> None:
    async with world(coordinators=2) as mesh:
        a, b, _ = await three(mesh)
        slow, other = mesh.coordinators
        await slow.lag()
        await other.members.set_candidates(b.id, [endpoint(7)], SOURCE)
        await other.members.depart(b.id, Why.REVOKED, "", OPERATOR)
        stale = mesh.sealed.watch("/meshctl/v1/", slow.feed.seen + 1)  # opened before the load, read after it
        await slow.feed.load()
        assert b.id not in slow.feed.members
        slow.feed._registry = _Once(stale, mesh.sealed)  # type: ignore[assignment]
        slow.follow()
        await mesh.member("d", at=1)
        await mesh.caught_up()
        assert b.id not in slow.feed.members
        assert slow.cut == [b.id]
        await a.sync(slow)
        await mesh.agrees(a, at=0)


class _Once:
    """A registry whose first watch is one that is open already."""

    def __init__(self, first: object, registry: object) -> None:
        self._first, self._registry = first, registry

    def watch(self, prefix: str, from_revision: int) -> object:
        return self._first

    def __getattr__(self, name: str) -> object:
        return getattr(self._registry, name)


async def test_digest_of_the_past_is_unknown_rather_than_wrong() -> None:
    async with world() as mesh:
        a, b, _ = await three(mesh)
        await a.sync(mesh.first)
        then = a.book.roster
        await mesh.first.members.depart(b.id, Why.REMOVED, "", OPERATOR)
        feed = mesh.first.feed
        assert feed.expected_digest(a.id, then.revision) == a.digest(mesh.mesh, then)
        assert feed.expected_digest(b.id, then.revision) is None
        assert feed.expected_digest(a.id, 1) is None
        await mesh.restart()
        assert mesh.first.feed.expected_digest(a.id, then.revision) is None
        await a.sync(mesh.first)
        await mesh.agrees(a)


async def test_connection_that_overlaps_with_itself_counts_until_the_last_one_ends() -> None:
    table, node = PresenceTable(), NodeId("n")
    table.opened(node, "192.0.2.1", now=1.0)
    table.opened(node, "192.0.2.2", now=2.0)
    table.closed(node, now=3.0)
    assert table[node].connected
    assert [n for n, _ in table.connected()] == [node]
    table.closed(node, now=4.0)
    assert (table[node].connected, table[node].since) == (False, 4.0)
    table.forget(node)
    table.closed(node, now=5.0)
    assert table.get(node) is None


# ---- pairs whose ends disagree ---------------------------------------------------------------------------------------

GRACE_S = catalogue.CATALOGUE[catalogue.ASYMMETRY].grace_s


def down(*peers: Computer) -> list[FindingRow]:
    return [FindingRow(catalogue.PATH, p.id, "failed", 0.0, 0.0, "3 echoes unanswered") for p in peers]


async def test_one_sided_silence_is_told_to_both_after_the_grace_and_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world() as mesh:
        clock = Clock()
        monkeypatch.setattr(asymmetry, "time", type("Time", (), {"time": clock}))
        a, b, c = await three(mesh)
        pairs, presence = mesh.first.asymmetry, mesh.first.presence

        def report(node: Computer, *findings: FindingRow) -> None:
            presence[node.id].reported = clock()
            pairs.take(node.id, findings)

        def found() -> list[list[str]]:
            return [[row.subject for row in pairs.of(n.id)] for n in (a, b, c)]

        for node in (a, b, c):
            presence.opened(node.id, "", now=clock())
        report(a, *down(b), FindingRow(catalogue.KEY, "", "failed", 0, 0, ""))
        clock.now += GRACE_S * 2
        assert found() == [[], [], []]  # b has not said anything yet
        report(b)
        assert found() == [[], [], []]
        clock.now += GRACE_S
        assert found() == [[b.id], [a.id], []]
        assert pairs.pairs() == 1
        (row,) = pairs.of(a.id)
        assert (row.code, row.since, row.evidence) == (
            catalogue.ASYMMETRY, clock() - GRACE_S, "this end says failed, the peer ok",
        )  # fmt: skip
        report(b, *down(a))  # now both say so: a dead path, not a one-sided one
        assert found() == [[], [], []]
        report(a)
        assert found() == [[], [], []]  # and b alone now: a new disagreement has its own grace
        clock.now += GRACE_S
        assert found() == [[b.id], [a.id], []]
        report(b)
        assert found() == [[], [], []]
        report(b, *down(a, c))
        found()
        clock.now += GRACE_S
        presence.closed(a.id, now=clock())
        assert found() == [[], [], []]  # a is not connected, and c has never reported


async def test_node_that_is_gone_is_no_longer_accused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world() as mesh:
        clock = Clock()
        monkeypatch.setattr(asymmetry, "time", type("Time", (), {"time": clock}))
        a, b, _ = await three(mesh)
        pairs, presence = mesh.first.asymmetry, mesh.first.presence
        for node in (a, b):
            presence.opened(node.id, "", now=clock())
            presence[node.id].reported = clock()
        pairs.take(a.id, down(b))
        pairs.of(a.id)
        clock.now += GRACE_S
        assert pairs.of(a.id)
        presence.forget(b.id)
        pairs.forget(b.id)
        assert not pairs.of(a.id)
        pairs.take(a.id, down(b))
        pairs.take(a.id, ())
        assert not pairs._since
        assert mesh.first.feed.members


async def test_tombstone_of_a_node_that_came_back_is_gone() -> None:
    async with world() as mesh:
        a, b, _ = await three(mesh)
        await a.sync(mesh.first)
        await mesh.first.members.depart(b.id, Why.LEFT, "", OPERATOR)
        await a.sync(mesh.first)
        assert b.id in mesh.first.feed.gone
        await b.join(mesh.first, await mesh.token())
        assert b.id not in mesh.first.feed.gone
        assert await mesh.sealed.read(GONE + b.id) == (None,)
        await a.sync(mesh.first)
        assert not a.book.refused  # its statement was signed anew, over the same keys
        await mesh.agrees(a)


async def test_watch_that_stands_still_does_not_keep_an_operator_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """It hangs on a member of etcd that is paused; what we committed ourselves is read instead."""
    monkeypatch.setattr(feed_module, "WATCH_LATE_S", 0.05)
    async with world(coordinators=2) as mesh:
        a, b, _ = await three(mesh)
        await a.sync(mesh.first)
        await mesh.first.lag()
        async with asyncio.timeout(5):
            await asyncio.gather(
                mesh.first.members.depart(b.id, Why.REVOKED, "", OPERATOR),
                mesh.first.feed.caught_up(mesh.registry.revision),
            )
        await a.sync(mesh.first)
        assert b.id not in a.book.roster.nodes
        mesh.first.follow()
        await mesh.caught_up()
        await mesh.agrees(a)
