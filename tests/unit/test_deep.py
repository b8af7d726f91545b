"""Which peer is examined deeply, and when: who is new first, then in turn, one at a time (NET-7)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest

from meshctl.agent.deep import CALM_S, RESTED_S, Deep
from meshctl.crypto.identity import Identity
from meshctl.errors import EnvironmentFault
from meshctl.mesh.catalogue import PATH, Verdict
from meshctl.mesh.integrity import Reading
from meshctl.mesh.model import Node, NodeId


def peer(number: int, identity: Identity | None = None) -> Node:
    identity = identity or Identity.generate()
    v4, v6 = IPv4Address(f"10.77.0.{number}"), IPv6Address(f"fd00::{number}")
    return Node(identity.id, f"n{number}", v4, v6, identity.state("mesh00000001", 1))


class Trial:
    codes = (PATH,)
    verdict = Verdict.OK
    bad: frozenset[NodeId] = frozenset()

    def __init__(self) -> None:
        self.tried: list[NodeId] = []
        self.fault: Exception | None = None

    async def run(self, peer: Node) -> Sequence[Reading]:
        self.tried.append(peer.id)
        if self.fault:
            raise self.fault
        return [Reading(PATH, peer.id, self.verdict if peer.id in self.bad else Verdict.OK, 0.0, "fine")]


class Stage:
    def __init__(self) -> None:
        self.now = 0.0
        self.rotating = Identity.generate()
        self.peers = [peer(2, self.rotating), peer(3), peer(4)]
        self.silent: set[NodeId] = set()
        self.trial = Trial()
        me = peer(1).id
        self.deep = Deep(
            [self.trial], lambda: self.peers, lambda n: n not in self.silent, me, monotonic=lambda: self.now
        )

    async def go(self) -> list[NodeId]:
        """Whom it tries until it rests."""
        before = len(self.trial.tried)
        while (due := self.deep._due()) is not None:
            await self.deep.examine(due)
        return self.trial.tried[before:]


async def test_the_new_first_then_each_in_turn() -> None:
    stage = Stage()
    everybody = sorted(node.id for node in stage.peers)
    first = await stage.go()
    assert sorted(set(first)) == everybody
    turns = []
    for _ in range(3):
        stage.now += 10.0
        turns += await stage.go()
    assert sorted(turns) == everybody
    assert {reading.verdict for reading in stage.deep.readings.values()} == {Verdict.OK}


async def test_a_rotated_peer_is_tried_soon_and_a_gone_one_forgotten() -> None:
    stage = Stage()
    await stage.go()
    rotated = stage.rotating.state("mesh00000001", 2)
    stage.peers = [replace(stage.peers[0], statement=rotated), stage.peers[1]]
    assert await stage.go() == [], "the next node may be rotating now"
    stage.now += CALM_S
    assert (await stage.go())[0] == stage.peers[0].id
    assert {subject for _, subject in stage.deep.readings} == {node.id for node in stage.peers}


async def test_after_our_own_rotation_every_peer_is_tried_anew_and_a_gone_one_is_still_forgotten() -> None:
    stage = Stage()
    await stage.go()
    assert await stage.go() == []
    gone = stage.peers.pop()
    stage.deep.anew()
    assert await stage.go() == []
    stage.now += CALM_S
    assert sorted(await stage.go()) == sorted(node.id for node in stage.peers)
    assert gone.id not in {subject for _, subject in stage.deep.readings}


async def test_while_keys_change_on_one_node_after_the_other_only_the_new_are_tried() -> None:
    stage = Stage()
    await stage.go()
    stage.now += 100.0
    for serial in range(2, 7):
        stage.peers[0] = replace(stage.peers[0], statement=stage.rotating.state("mesh00000001", serial))
        stage.now += CALM_S * 0.9
        assert await stage.go() == []
    stage.peers.append(peer(5))
    assert set(await stage.go()) == {stage.peers[-1].id}
    stage.now += CALM_S
    assert (await stage.go())[0] == stage.peers[0].id


async def test_a_rotation_of_a_thousand_nodes_does_not_blind_us() -> None:
    stage = Stage()
    await stage.go()
    tried, serial = 0, 2
    while stage.now < 10 * RESTED_S:
        stage.peers[0] = replace(stage.peers[0], statement=stage.rotating.state("mesh00000001", serial))
        tried += len(await stage.go())
        stage.now, serial = stage.now + 1.0, serial + 1
    assert 8 <= tried <= 10, "one experiment, and a rest"


async def test_a_silent_peer_is_not_tried_before_it_answers() -> None:
    stage = Stage()
    stage.silent = {stage.peers[0].id}
    assert stage.peers[0].id not in await stage.go()
    stage.silent.clear()
    assert await stage.go() == [stage.peers[0].id]


@pytest.mark.parametrize(
    ("fault", "words"), [(EnvironmentFault("no CAP_NET_RAW"), "no CAP_NET_RAW"), (TimeoutError(), "not done within")]
)
async def test_an_experiment_that_cannot_be_done_is_unknown_and_says_why(fault: Exception, words: str) -> None:
    stage = Stage()
    stage.trial.fault = fault
    await stage.go()
    for reading in stage.deep.readings.values():
        assert (reading.verdict, words in reading.evidence) == (Verdict.UNKNOWN, True)


@pytest.mark.parametrize("verdict", [Verdict.FAILED, Verdict.DEGRADED])
async def test_who_has_something_wrong_is_tried_again_one_every_ten_seconds_the_longest_waiting_first(
    verdict: Verdict,
) -> None:
    stage = Stage()
    stage.deep._next_at = float("inf")  # turns are another test's
    bad = {node.id for node in stage.peers[:2]}
    stage.trial.bad, stage.trial.verdict = frozenset(bad), verdict
    first = [node for node in await stage.go() if node in bad]
    again = first[2:]  # one of them at once
    stage.now += 9.9
    assert await stage.go() == []
    for _ in range(4):
        stage.now += 10.0
        again += await stage.go()
    assert len(again) == 5
    assert set(again[:2]) == set(again[2:4]) == bad
    assert again[0] == again[2] == again[4]
    stage.trial.bad = frozenset()
    stage.now += 30.0
    assert len(await stage.go()) == 1
    stage.now += 10.0
    assert len(await stage.go()) == 1
    stage.now += 10.0
    assert await stage.go() == [], "all is well"


async def test_what_went_wrong_is_looked_at_again_at_once_whatever_else_was_just_tried() -> None:
    stage = Stage()
    await stage.go()
    stage.deep._next_at = float("inf")
    stage.trial.bad, stage.trial.verdict = frozenset({stage.peers[1].id}), Verdict.FAILED
    stage.deep.soon(stage.peers[1].id)
    assert await stage.go() == [stage.peers[1].id] * 2
    stage.now += 9.0
    assert await stage.go() == []


async def test_what_could_not_be_told_is_tried_again_once() -> None:
    stage = Stage()
    stage.deep._next_at = float("inf")
    stage.peers = stage.peers[:1]
    stage.trial.fault = TimeoutError()
    assert len(await stage.go()) == 2, "as new, and once more"
    for _ in range(3):
        stage.now += 10.0
        assert await stage.go() == []


async def test_a_reason_to_try_a_peer_is_heard_once_and_ends_with_the_peer() -> None:
    stage = Stage()
    await stage.go()
    stage.deep._next_at = float("inf")
    for _ in range(3):
        stage.deep.soon(stage.peers[1].id)
    assert await stage.go() == [stage.peers[1].id]
    stage.deep.soon(stage.peers[1].id)
    assert await stage.go() == [], "a peer that keeps asking is tried every 10 s"
    stage.now += 10.0
    assert await stage.go() == [stage.peers[1].id]
    stage.deep.soon(stage.peers[1].id)
    del stage.peers[1]
    stage.now += 10.0
    assert await stage.go() == []


async def test_no_peers_is_no_error() -> None:
    stage = Stage()
    stage.peers = []
    assert await asyncio.wait_for(stage.go(), 1) == []
