"""Attacks on membership, without a wire: what a stranger, a member and a thief of tokens can send (ACC-3, ACC-4, ACC-5,
ENC-6, OPS-4)."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from coordinator.records import Why
from coordinator.registry import NODES, TOKENS, Record
from meshctl.crypto import pki
from meshctl.crypto.identity import JOIN_CONTEXT, RENEW_CONTEXT, Identity
from meshctl.errors import MeshError, RefusedError, TrustError
from meshctl.mesh import limits, topology
from meshctl.mesh.model import NodeId
from meshctl.wire import codec
from tests.harness.world import SOURCE, Computer, World, endpoint, world

OPERATOR = "operator:0"


async def test_join_request_that_was_overheard_gives_the_thief_nothing() -> None:
    """Sent again within the minute it is the same node's join: resumed, for the same key, and nothing is spent."""
    async with world() as mesh:
        node, token = mesh.computer("a"), await mesh.token(uses=5)
        body = codec.encode_join(node.ask(mesh.first, token))
        signature = node.identity.sign(JOIN_CONTEXT + body)
        first = await mesh.first.enrolment.join(codec.decode_join(body), body, signature, SOURCE)
        again = await mesh.first.enrolment.join(codec.decode_join(body), body, signature, SOURCE)
        assert again.resumed
        assert again.node == first.node
        (spent,) = [t for t in await mesh.first.members.tokens() if t.id == token.id]
        assert spent.uses == 4
        mesh.clock.now += limits.NONCE_LIFE_S
        with pytest.raises(TrustError, match="too old"):
            await mesh.first.enrolment.join(codec.decode_join(body), body, signature, SOURCE)


async def test_join_request_replayed_after_the_node_was_thrown_out() -> None:
    async with world() as mesh:
        node, token = mesh.computer("a"), await mesh.token(uses=5)
        body = codec.encode_join(node.ask(mesh.first, token))
        signature = node.identity.sign(JOIN_CONTEXT + body)
        await mesh.first.enrolment.join(codec.decode_join(body), body, signature, SOURCE)
        await mesh.first.members.depart(node.id, Why.REVOKED, "", OPERATOR)
        with pytest.raises(RefusedError, match="revoked"):
            await mesh.first.enrolment.join(codec.decode_join(body), body, signature, SOURCE)


async def test_signed_join_is_no_renewal_and_the_other_way_round() -> None:
    async with world() as mesh:
        node = await mesh.member("a")
        claim = node.identity.state(mesh.mesh.id, 1)
        body = codec.encode_renew(mesh.first.enrolment.nonce(), claim, node.certificate)
        nonce, statement, last = codec.decode_renew(body)
        for context, signer in ((JOIN_CONTEXT, node.identity), (RENEW_CONTEXT, Identity.generate())):
            with pytest.raises(TrustError, match="signature"):
                await mesh.first.enrolment.renew(nonce, statement, last, body, signer.sign(context + body), SOURCE)


async def test_guessing_a_secret_spends_nothing_and_reads_like_an_unknown_token() -> None:
    async with world() as mesh:
        token, words = await mesh.token(), set()
        for guess in (replace(token, secret=bytes(32)), replace(token, id="f" * 16), replace(token, secret=b"")):
            with pytest.raises(RefusedError) as refused:
                await mesh.computer("a").join(mesh.first, guess)
            words.add((refused.value.what, refused.value.hint))
        assert len(words) == 1
        assert (await mesh.first.members.tokens())[0].uses == 1


async def test_member_with_a_token_cannot_take_over_the_tunnels_of_another() -> None:
    """Whoever joins with a victim's WireGuard key would take its place in every kernel."""
    async with world() as mesh:
        victim = await mesh.member("victim")
        thief = mesh.computer("thief")
        thief.identity = Identity(thief.identity.device, victim.identity.wireguard, thief.identity.probe)
        with pytest.raises(RefusedError, match="another node has this WireGuard key"):
            await thief.join(mesh.first, await mesh.token())
        await victim.sync(mesh.first)
        assert set(victim.book.roster.nodes) == {victim.id}
        await mesh.first.members.depart(victim.id, Why.LEFT, "", OPERATOR)
        await thief.join(mesh.first, await mesh.token())  # the key is free once its node is gone
        with pytest.raises(RefusedError, match="another node has this WireGuard key"):
            await victim.join(mesh.first, await mesh.token())


async def test_two_thieves_race_for_one_key() -> None:
    async with world(coordinators=2) as mesh:
        thieves, token = [mesh.computer(f"t{number}") for number in range(10)], await mesh.token(uses=10)
        for thief in thieves[1:]:
            thief.identity = Identity(thief.identity.device, thieves[0].identity.wireguard, thief.identity.probe)
        answers = await asyncio.gather(
            *(t.join(mesh.coordinators[n % 2], token) for n, t in enumerate(thieves)), return_exceptions=True
        )
        assert sum(not isinstance(answer, MeshError) for answer in answers) == 1


async def test_member_that_floods_tags_names_and_endpoints_breaks_no_map() -> None:
    async with world() as mesh:
        good, token = await mesh.member("good"), await mesh.token(uses=10, tags=["gpu"])
        noisy = mesh.computer("noisy")
        await noisy.join(mesh.first, token, tags=("gpu",) * 500, candidates=tuple(endpoint(n) for n in range(1, 300)))
        await mesh.first.members.set_candidates(noisy.id, [endpoint(n) for n in range(500, 900)], SOURCE)
        await mesh.caught_up()
        fresh = await mesh.restart()  # what was stored can be read again
        await good.sync(fresh)
        await mesh.agrees(good)
        assert len(good.book.roster.nodes[noisy.id].candidates) == limits.ENDPOINTS_PER_NODE


async def test_node_named_like_a_victim_is_not_revoked_or_removed_in_its_place() -> None:
    async with world() as mesh:
        evil = await mesh.member("evil")
        await mesh.member(evil.id)  # a decoy that carries the evil node's id as its name
        assert mesh.first.feed.find(evil.id).node.id == evil.id
        node, _ = await mesh.first.members.depart(evil.id, Why.REVOKED, "", OPERATOR)
        assert node == evil.id


async def test_statement_of_another_mesh_or_of_another_node_is_not_carried_over() -> None:
    async with world() as mesh, world() as other:
        node, foreign = mesh.computer("a"), await other.member("a")
        token = await mesh.token()
        for statement in (foreign.identity.state(other.mesh.id, 1), node.identity.state(other.mesh.id, 1)):
            with pytest.raises(TrustError):
                await node.join(mesh.first, token, statement=statement)
        with pytest.raises(RefusedError, match="no such token"):
            await foreign.join(other.first, token, statement=foreign.identity.state(other.mesh.id, 1))


async def swapped(mesh: World, one: str, other: str) -> None:
    """Whoever holds etcd swaps two sealed values."""
    held = mesh.registry._records
    held[one], held[other] = (
        Record(one, held[other].value, held[one].generation, held[one].created, held[one].revision),
        Record(other, held[one].value, held[other].generation, held[other].created, held[other].revision),
    )


async def test_records_swapped_in_etcd_are_refused_by_name() -> None:
    async with world() as mesh:
        a, b = await mesh.member("a"), await mesh.member("b")
        await swapped(mesh, NODES + a.id, NODES + b.id)
        with pytest.raises(TrustError, match="node/"):
            await mesh.restart()


async def test_used_token_put_back_in_etcd_is_refused() -> None:
    """The record as it was before it was spent, under the generation it has now."""
    async with world() as mesh:
        token = await mesh.token()
        before = mesh.registry._records[TOKENS + token.id]
        await mesh.computer("a").join(mesh.first, token)
        after = mesh.registry._records[TOKENS + token.id]
        mesh.registry._records[TOKENS + token.id] = replace(after, value=before.value)
        with pytest.raises(TrustError, match="token/"):
            await mesh.computer("b").join(mesh.first, token)


async def test_certificate_of_another_mesh_opens_no_window() -> None:
    async with world() as mesh, world() as other:
        node = await mesh.member("a")
        forged = pki.issue_node(
            other.authority.ca_key, mesh.mesh.ca, mesh.mesh.id, node.identity.device_key, node.id, now=mesh.clock()
        )
        with pytest.raises(TrustError, match="last certificate"):
            await node.renew(mesh.first, forged)


async def test_coordinator_that_lies_in_the_map_moves_no_key() -> None:
    """A member's statement cannot be replaced, nobody's address can be made to overlap: the kernel stays as it is."""
    async with world() as mesh:
        a, b = await mesh.member("a"), await mesh.member("b")
        await mesh.caught_up()
        await a.sync(mesh.first)
        before = a.digest(mesh.mesh, a.book.roster)
        liar, forged = Identity.generate(), a.book.roster.nodes[b.id]
        with pytest.raises(MeshError, match="not named after its device key"):
            replace(forged, statement=liar.state(mesh.mesh.id, 9))
        twin = Computer("twin", mesh.mesh)
        clash = replace(
            forged, id=NodeId(twin.id), name="twin", statement=twin.identity.state(mesh.mesh.id, 1)
        )  # the address of b under another key
        feed = mesh.first.feed
        feed.journal.record(feed.seen + 1, clash.id, codec.encode_node(clash))
        feed.seen = feed.revision + 1
        await a.sync(mesh.first)
        me = topology.Me(a.id, a.identity.wireguard, "mesh0", 51820, 1420)
        with pytest.raises(MeshError, match="two peers claim"):
            topology.desired(mesh.mesh, a.book.roster, me, a.book.roster.nodes[a.id])
        feed.journal.record(feed.seen, clash.id, None)
        await a.sync(mesh.first)
        assert a.digest(mesh.mesh, a.book.roster) == before
