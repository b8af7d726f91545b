"""Joins and renewals against a real registry: every refusal, every resumption, races between coordinators, a full disk
(ACC-3, ACC-4, ACC-5, NET-1, MON-1, OPS-2)."""

from __future__ import annotations

import pytest

from coordinator import records
from coordinator.records import Why
from coordinator.registry import TOKENS
from meshctl.crypto import pki
from meshctl.crypto.identity import JOIN_CONTEXT, RENEW_CONTEXT, Identity
from meshctl.errors import EnvironmentFault, ProtocolError, RefusedError, TrustError, UsageError
from meshctl.events import JoinRefused, NodeJoined, NodeRevoked, TokenUsed
from meshctl.mesh import limits
from meshctl.mesh.admission import Token
from meshctl.mesh.statement import Statement
from meshctl.wire import codec
from tests.harness.world import SOURCE, World, world

OPERATOR = "operator:0"


async def kept(mesh: World, token: str) -> Token:
    (at,) = await mesh.sealed.read(TOKENS + token)
    assert at is not None
    return records.decode(at.value, Token)


def refusal(mesh: World) -> str:
    return next(event.code for event in reversed(mesh.events.durable) if isinstance(event, JoinRefused))


# ---- every refusal ---------------------------------------------------------------------------------------------------


async def test_every_refusal_has_its_code_a_hint_and_an_event_on_disk() -> None:
    async with world() as mesh:
        at, token = mesh.first, await mesh.token(uses=50, tags=["gpu"])
        taken, out, new = await mesh.member("taken"), await mesh.member("out"), mesh.computer("new")
        await at.members.depart("out", Why.REVOKED, "stolen", OPERATOR)
        revoked, used, short = await mesh.token(), await mesh.token(), await mesh.token(life_s=10.0)
        await at.members.revoke_token(revoked.id, OPERATOR)
        await mesh.computer("user").join(at, used)
        mesh.clock.now += 10.0
        twin = mesh.computer("twin")
        twin.identity = Identity(twin.identity.device, taken.identity.wireguard, twin.identity.probe)
        cases = [
            ("token-unknown", new.join(at, token, token_secret=bytes(32))),
            ("token-unknown", new.join(at, token, token_id="0" * 16)),
            ("token-unknown", new.join(at, token, token_id="../node/" + taken.id)),
            ("token-revoked", new.join(at, revoked)),
            ("token-used", new.join(at, used)),
            ("token-expired", new.join(at, short)),
            ("name-taken", new.join(at, token, name="taken")),
            ("key-taken", twin.join(at, token)),
            ("tag-denied", new.join(at, token, tags=("gpu", "admin"))),
            ("node-revoked", out.join(at, token)),
        ]
        for code, attempt in cases:
            with pytest.raises(RefusedError) as refused:
                await attempt
            assert refused.value.hint
            assert refusal(mesh) == code
            assert mesh.events.durable[-1].source == SOURCE
        assert (await kept(mesh, token.id)).uses == 50
        assert new.id not in await mesh.nodes()


async def test_proof_that_does_not_hold_is_refused_before_anything_is_read() -> None:
    async with world() as mesh, world() as other:
        at, token, node, stranger = mesh.first, await mesh.token(), mesh.computer("a"), Identity.generate()
        old = at.enrolment.nonce()
        mesh.clock.now += limits.NONCE_LIFE_S
        early = at.enrolment.nonce()
        mesh.clock.now -= limits.NONCE_LIFE_S
        forged = bytes([old[0]]) + old[1:-1] + bytes([old[-1] ^ 1])
        for wrong in (early, forged, b"", old[:39], other.first.enrolment.nonce()):
            with pytest.raises(TrustError, match="nonce"):
                await node.join(at, token, nonce=wrong)
        mesh.clock.now += limits.NONCE_LIFE_S
        with pytest.raises(TrustError, match="too old"):
            await node.join(at, token, nonce=old)
        with pytest.raises(TrustError, match="for mesh"):
            await node.join(at, token, statement=node.identity.state("othermesh", 1))
        with pytest.raises(TrustError, match="replayed"):
            await node.join(at, token, statement=node.identity.state(mesh.mesh.id, 0))
        with pytest.raises(TrustError, match="signature"):
            await node.join(at, token, statement=stranger.state(mesh.mesh.id, 1))
        good = node.identity.state(mesh.mesh.id, 1).signed
        with pytest.raises(TrustError, match="signature"):
            await node.join(at, token, statement=Statement(good[:-1] + bytes([good[-1] ^ 1])))
        with pytest.raises(ProtocolError, match="not a node name"):
            await node.join(at, token, name="../etc")
        assert (await kept(mesh, token.id)).uses == 1


async def test_join_signed_by_another_key_or_for_another_purpose() -> None:
    async with world() as mesh:
        at, token, node = mesh.first, await mesh.token(), mesh.computer("a")
        body = codec.encode_join(node.ask(at, token))
        signatures = (
            Identity.generate().sign(JOIN_CONTEXT + body),
            node.identity.sign(RENEW_CONTEXT + body),
            node.identity.sign(JOIN_CONTEXT + body + b"\0"),
            b"",
            bytes(64),
        )
        for signature in signatures:
            with pytest.raises(TrustError, match="signature"):
                await at.enrolment.join(codec.decode_join(body), body, signature, SOURCE)
        assert not await mesh.nodes()


# ---- resuming, coming back -------------------------------------------------------------------------------------------


async def test_join_that_was_cut_off_gets_the_same_place_and_spends_nothing() -> None:
    async with world() as mesh:
        at, token, node = mesh.first, await mesh.token(), mesh.computer("a")
        first = await node.join(at, token)
        before = mesh.registry.revision
        mesh.clock.now += 7200.0  # the token has expired and is used up: the join goes on all the same
        again = await node.join(at, token, name="renamed", tags=("admin",))
        assert (first.resumed, again.resumed) == (False, True)
        assert again.node == first.node
        assert mesh.registry.revision == before
        assert (await kept(mesh, token.id)).used_by == (node.id,)
        assert [e.resumed for e in mesh.events.durable if isinstance(e, NodeJoined)] == [False, True]
        with pytest.raises(RefusedError, match="this mesh knows no such token"):
            await node.join(at, token, token_secret=bytes(32))


async def test_member_cannot_slip_in_other_keys_by_resuming() -> None:
    async with world() as mesh:
        at, token, node = mesh.first, await mesh.token(uses=2), mesh.computer("a")
        await node.join(at, token)
        other = Identity.generate()
        node.identity = Identity(node.identity.device, other.wireguard, other.probe)
        with pytest.raises(RefusedError, match="registered with other keys"):
            await node.join(at, token)


async def test_reusable_token_counts_down_and_grants_its_tags() -> None:
    async with world() as mesh:
        token = await mesh.token(uses=3, tags=["gpu", "eu"])
        tags = []
        for number, wanted in enumerate([(), ("eu",), ("gpu",) * 40]):
            joined = await mesh.computer(f"n{number}").join(mesh.first, token, tags=wanted)
            tags.append(joined.node.tags)
            assert (await kept(mesh, token.id)).uses == 2 - number
        assert tags == [("gpu", "eu"), ("eu",), ("gpu",)]
        with pytest.raises(RefusedError, match="used already"):
            await mesh.computer("late").join(mesh.first, token)
        assert [(e.uses_before, e.uses_after) for e in mesh.events.all if isinstance(e, TokenUsed)] == [
            (3, 2), (2, 1), (1, 0),
        ]  # fmt: skip


async def test_token_with_more_tags_than_a_node_may_have_is_never_made() -> None:
    async with world() as mesh:
        with pytest.raises(UsageError, match="16 tags at most"):
            await mesh.token(tags=[f"t{n}" for n in range(17)])
        token = await mesh.token(tags=["same"] * 40)
        assert (await kept(mesh, token.id)).tags == ("same",)


@pytest.mark.parametrize("why", [Why.REMOVED, Why.LEFT])
async def test_removed_node_comes_back_to_its_address_and_revoked_one_never(why: Why) -> None:
    async with world() as mesh:
        at, node = mesh.first, await mesh.member("a")
        address = (await mesh.nodes())[node.id].address4
        await at.members.depart("a", why, "", OPERATOR)
        other = await mesh.member("b")  # the address of a gone node is not given away
        assert (await mesh.nodes())[other.id].address4 != address
        back = await node.join(at, await mesh.token())
        assert (back.node.address4, back.resumed) == (address, False)
        await at.members.depart("a", Why.REVOKED, "", OPERATOR)
        mesh.clock.now += limits.TOMBSTONE_LIFE_S * 2
        await at.members.sweep()
        with pytest.raises(RefusedError, match="revoked"):
            await node.join(at, await mesh.token())
        with pytest.raises(RefusedError, match="revoked already"):
            at.feed.find("a")


async def test_name_of_a_node_that_left_is_free_and_its_way_back_asks_for_another() -> None:
    async with world() as mesh:
        node = await mesh.member("a")
        await mesh.first.members.depart("a", Why.LEFT, "", OPERATOR)
        await mesh.member("a")
        with pytest.raises(RefusedError, match="name 'a' is taken"):
            await node.join(mesh.first, await mesh.token())
        await node.join(mesh.first, await mesh.token(), name="a2")


async def test_node_that_calls_itself_by_anothers_id_is_not_taken_for_it() -> None:
    async with world() as mesh:
        victim = await mesh.member("victim")
        decoy = await mesh.member(victim.id)
        await mesh.first.members.depart(victim.id, Why.LEFT, "", f"node:{victim.id}")
        assert set(await mesh.nodes()) == {decoy.id}


# ---- renewing --------------------------------------------------------------------------------------------------------


async def test_certificate_renews_before_and_long_after_its_end_until_the_window_closes() -> None:
    async with world() as mesh:
        node = await mesh.member("a")
        end = pki.expiry(node.certificate)
        for at in (end - 60, end + 60, end + limits.RENEWAL_WINDOW_S):
            mesh.clock.now = at
            fresh = await node.renew(mesh.first)
            assert pki.expiry(fresh) == int(at) + limits.CERTIFICATE_LIFE_S
        mesh.clock.now = end + limits.RENEWAL_WINDOW_S + 1
        with pytest.raises(RefusedError, match="ended 30 days ago"):
            await node.renew(mesh.first)
        assert [e.late for e in mesh.events.durable if e.kind == "certificate.renewed"] == [False, True, True]  # type: ignore[attr-defined]


async def test_window_cannot_be_opened_with_a_certificate_of_somebody_else() -> None:
    async with world() as mesh, world() as other:
        node, friend = await mesh.member("a"), await mesh.member("b")
        _, leaf = pki.issue_coordinator(mesh.authority.ca_key, mesh.mesh.ca)
        stranger = await other.member("a")
        mesh.clock.now += limits.RENEWAL_WINDOW_S * 2
        young = pki.issue_node(
            mesh.authority.ca_key, mesh.mesh.ca, mesh.mesh.id, friend.identity.device_key, friend.id, now=mesh.clock()
        )
        for last in (young, leaf, mesh.mesh.ca, stranger.certificate, b"", b"\x30\x00"):
            with pytest.raises(TrustError, match="last certificate"):
                await node.renew(mesh.first, last)


async def test_nobody_renews_after_revocation_or_without_being_a_member() -> None:
    async with world() as mesh:
        node, never = await mesh.member("a"), mesh.computer("never")
        never.certificate = node.certificate
        with pytest.raises(RefusedError, match="never registered"):
            await never.renew(mesh.first)
        await mesh.first.members.depart("a", Why.REVOKED, "", OPERATOR)
        with pytest.raises(RefusedError, match="revoked"):
            await node.renew(mesh.first)


# ---- the event log ---------------------------------------------------------------------------------------------------


async def test_full_disk_refuses_to_confirm_and_the_act_can_be_asked_for_again() -> None:
    """The registry decides first, the log confirms: what was decided stays decided, and nobody is told it succeeded."""
    async with world() as mesh:
        node, token, members = mesh.computer("a"), await mesh.token(), mesh.first.members
        mesh.events.full = True
        with pytest.raises(EnvironmentFault, match="event log"):
            await node.join(mesh.first, token)
        assert not node.certificate  # admitted, its token spent, but without a certificate
        assert node.id in await mesh.nodes()
        assert (await kept(mesh, token.id)).uses == 0
        with pytest.raises(EnvironmentFault):
            await mesh.token()
        assert len(await members.tokens()) == 2  # its secret was never shown: nobody can use it
        mesh.events.full = False
        assert (await node.join(mesh.first, token)).resumed
        mesh.events.full = True
        with pytest.raises(EnvironmentFault):
            await node.renew(mesh.first)
        with pytest.raises(EnvironmentFault):
            await members.depart("a", Why.REVOKED, "", OPERATOR)
        await mesh.caught_up()
        assert mesh.first.cut == [node.id]  # out, at once, even though the log could not say so
        mesh.events.full = False
        with pytest.raises(RefusedError, match="revoked already"):
            await members.depart("a", Why.REVOKED, "", OPERATOR)
        assert any(isinstance(event, NodeRevoked) for event in mesh.events.all)  # pending: written with the next commit


async def test_refused_acts_leave_nothing_half_done() -> None:
    async with world() as mesh:
        members, before = mesh.first.members, mesh.registry.revision
        with pytest.raises(RefusedError, match="no node 'ghost'"):
            await members.depart("ghost", Why.REMOVED, "", OPERATOR)
        with pytest.raises(RefusedError, match="no token 'beef'"):
            await members.revoke_token("beef", OPERATOR)
        for life_s, uses in ((0, 1), (-1, 1), (400 * 86400, 1), (60, 0), (60, 100_001), (float("nan"), 1)):
            with pytest.raises(UsageError, match="a token lives"):
                await members.create_token(life_s, uses, (), False, "", OPERATOR)
        assert mesh.registry.revision == before
