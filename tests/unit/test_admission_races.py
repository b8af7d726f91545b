"""Several coordinators decide at once, on old pictures: counts, names, addresses stay exact (NET-1, ACC-5, OPS-2)."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Network

import pytest

from coordinator import records
from coordinator.records import Why
from coordinator.registry import ADDRESSES, GONE, NAMES, NODES, TOKENS
from meshctl.errors import MeshError, RefusedError
from meshctl.events import NodeRevoked
from meshctl.mesh import limits
from meshctl.mesh.admission import Token
from meshctl.mesh.model import NodeId
from tests.harness.world import SOURCE, World, endpoint, world

OPERATOR = "operator:0"


async def kept(mesh: World, token: str) -> Token:
    (at,) = await mesh.sealed.read(TOKENS + token)
    assert at is not None
    return records.decode(at.value, Token)


# ---- races -----------------------------------------------------------------------------------------------------------


async def test_two_hundred_nodes_race_for_one_token_at_two_coordinators() -> None:
    async with world(coordinators=2) as mesh:
        token = await mesh.token(uses=150)
        computers = [mesh.computer(f"n{number:03}") for number in range(200)]
        async with asyncio.timeout(60):
            answers = await asyncio.gather(
                *(c.join(mesh.coordinators[n % 2], token) for n, c in enumerate(computers)), return_exceptions=True
            )
        joined = [a for a in answers if not isinstance(a, BaseException)]
        assert {type(a) for a in answers if isinstance(a, BaseException)} == {RefusedError}
        assert len(joined) == 150
        nodes = await mesh.nodes()
        assert len({n.address4 for n in nodes.values()}) == len({n.name for n in nodes.values()}) == 150
        spent = await kept(mesh, token.id)
        assert (spent.uses, len(spent.used_by)) == (0, 64)
        for prefix, count in ((NODES, 150), (ADDRESSES, 150), (NAMES, 300)):
            assert len((await mesh.sealed.list(prefix))[0]) == count
        await mesh.caught_up()
        for at, one in enumerate(mesh.coordinators):
            assert one.feed.members.keys() == nodes.keys(), at


async def test_one_name_is_given_once_however_many_ask_at_once() -> None:
    async with world(coordinators=2) as mesh:
        token = await mesh.token(uses=20)
        answers = await asyncio.gather(
            *(mesh.computer("same").join(mesh.coordinators[n % 2], token) for n in range(20)), return_exceptions=True
        )
        assert sum(not isinstance(a, MeshError) for a in answers) == 1
        assert (await kept(mesh, token.id)).uses == 19


async def test_coordinators_whose_watch_stands_still_never_give_one_address_twice() -> None:
    async with world(coordinators=2, prefix="10.77.0.0/28") as mesh:
        token = await mesh.token(uses=50)
        for one in mesh.coordinators:
            await one.lag()

        async def admitted(number: int) -> None:
            with pytest.raises(TimeoutError):  # admitted, but confirmed only when the watch tells
                async with asyncio.timeout(0.05):
                    await mesh.computer(f"n{number}").join(mesh.coordinators[number % 2], token)

        for number in range(14):
            await admitted(number)
        assert len({n.address4 for n in (await mesh.nodes()).values()}) == 14
        with pytest.raises(RefusedError, match=r"no free address in 10\.77\.0\.0/28"):
            await mesh.computer("late").join(mesh.first, token)
        assert (await kept(mesh, token.id)).uses == 36


async def test_two_operators_throw_the_same_node_out() -> None:
    async with world(coordinators=2) as mesh:
        node = await mesh.member("a")
        await mesh.caught_up()
        answers = await asyncio.gather(
            *(one.members.depart("a", Why.REVOKED, "", OPERATOR) for one in mesh.coordinators), return_exceptions=True
        )
        done = [a for a in answers if isinstance(a, tuple)]
        assert len(done) == 1
        assert {type(a) for a in answers} == {tuple, RefusedError}
        assert sum(isinstance(e, NodeRevoked) for e in mesh.events.durable) == 1
        await mesh.caught_up()
        assert all(node.id in one.cut for one in mesh.coordinators)


async def test_node_thrown_out_while_it_joins_is_told_so() -> None:
    async with world(coordinators=2) as mesh:
        slow, other = mesh.coordinators
        node, token = mesh.computer("a"), await mesh.token()
        await slow.lag()
        joining = asyncio.ensure_future(node.join(slow, token))
        async with asyncio.timeout(5):
            while node.id not in other.feed.members:
                await asyncio.sleep(0)
        await other.members.depart(node.id, Why.REVOKED, "", OPERATOR)
        slow.follow()
        with pytest.raises(RefusedError, match="thrown out while it joined"):
            await joining


# ---- addresses and tombstones ----------------------------------------------------------------------------------------


async def test_address_is_free_again_only_when_its_tombstone_was_swept() -> None:
    async with world(prefix="10.77.0.0/28") as mesh:
        token = await mesh.token(uses=30, life_s=90 * 86400.0)
        for number in range(14):
            await mesh.computer(f"n{number}").join(mesh.first, token)
        gone = (await mesh.first.members.depart("n3", Why.REMOVED, "", OPERATOR))[0]
        with pytest.raises(RefusedError, match="no free address"):
            await mesh.computer("new").join(mesh.first, token)
        mesh.clock.now += limits.TOMBSTONE_LIFE_S + 1
        assert await mesh.first.members.sweep() == 1
        await mesh.caught_up()
        assert await mesh.sealed.read(GONE + gone) == (None,)
        joined = await mesh.computer("new").join(mesh.first, token)
        assert joined.node.address4 == IPv4Network("10.77.0.0/28")[4]


async def test_sweep_with_an_old_picture_leaves_a_node_that_came_back_its_address() -> None:
    async with world(coordinators=2) as mesh:
        node = await mesh.member("a")
        await mesh.first.members.depart("a", Why.REMOVED, "", OPERATOR)
        mesh.clock.now += limits.TOMBSTONE_LIFE_S + 1
        await mesh.caught_up()
        late = mesh.coordinators[1]
        await late.lag()
        await node.join(mesh.first, await mesh.token())
        assert NodeId(node.id) in late.feed.gone
        assert await late.members.sweep() == 0
        assert len((await mesh.sealed.list(ADDRESSES))[0]) == 1


async def test_endpoints_are_written_when_they_changed_and_only_then() -> None:
    async with world() as mesh:
        node = await mesh.member("a")
        before = mesh.registry.revision
        await mesh.first.members.set_candidates(node.id, [endpoint(1000)], SOURCE)
        await mesh.caught_up()
        assert mesh.registry.revision == before + 1
        told = (await mesh.nodes())[node.id].candidates
        assert [(str(c.endpoint), str(c.origin)) for c in told] == [
            ("198.51.100.1:1000", "local"), ("192.0.2.10:1000", "coordinator"),
        ]  # fmt: skip
        await mesh.first.members.set_candidates(node.id, [endpoint(1000)], SOURCE)
        await mesh.first.members.set_candidates(NodeId("nobody"), [endpoint(1)], SOURCE)
        assert mesh.registry.revision == before + 1
        await mesh.first.members.set_candidates(node.id, [endpoint(n) for n in range(1, 200)], SOURCE)
        assert len((await mesh.nodes())[node.id].candidates) == limits.ENDPOINTS_PER_NODE
