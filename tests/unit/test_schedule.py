"""The schedule: every pair in time, equal load, and all nodes agree without a message (NET-7)."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshctl.mesh import limits
from meshctl.mesh.model import NodeId, node_id
from meshctl.mesh.schedule import Schedule, coverage_s, deep, deep_every_s, deep_period_s, schedule


def ids(count: int, seed: int = 1) -> list[NodeId]:
    return [node_id(b"%d/%d" % (seed, number)) for number in range(count)]


def everybody(nodes: list[NodeId]) -> dict[NodeId, Schedule]:
    return {node: schedule(nodes, node) for node in nodes}


def test_coverage_period_is_clamped_and_grows_beyond_the_budget() -> None:
    assert [coverage_s(n) for n in (0, 1, 80, 160, 960, 1000)] == [5.0, 5.0, 5.0, 10.0, 60.0, 60.0]
    assert coverage_s(10_000) == 625.0


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 60), st.integers(0, 10_000), st.integers(0, 1000))
def test_every_pair_is_tested_within_the_coverage_period(count: int, seed: int, start: int) -> None:
    plans = everybody(ids(count, seed))
    rounds = len(plans[ids(count, seed)[0]].sweep)
    assert rounds * limits.WATCH_EVERY_S < coverage_s(count)
    turns = range(start, start + rounds)
    tested = {frozenset((me, peer)) for me, plan in plans.items() for turn in turns for peer in plan.due(turn)}
    assert len(tested) == count * (count - 1) // 2


@pytest.mark.parametrize("count", [10, 61, 300, 301])
def test_load_is_equal_and_both_ways(count: int) -> None:
    plans = everybody(ids(count))
    watchers = Counter(peer for plan in plans.values() for peer in plan.watch)
    assert all(watchers[node] == len(plan.watch) for node, plan in plans.items())
    assert all(me in plans[peer].watch for me, plan in plans.items() for peer in plan.watch)
    for slot in range(len(plans[ids(count)[0]].sweep)):
        led = Counter(peer for plan in plans.values() for peer in plan.sweep[slot])
        sent = [len(plan.sweep[slot]) for plan in plans.values()]
        assert max(sent) - min(sent) <= 1
        assert max(led.values()) - min(led.values()) <= 1


def test_one_side_leads_each_pair_of_the_sweep() -> None:
    for count in (10, 11, 64):
        plans = everybody(ids(count))
        led = Counter(frozenset((me, peer)) for me, plan in plans.items() for slot in plan.sweep for peer in slot)
        assert len(led) == count * (count - 1) // 2
        assert set(led.values()) == {1}


def test_all_nodes_agree_without_messages_whatever_order_they_learned_the_ids_in() -> None:
    nodes = ids(100)
    shuffled = random.Random(7).sample(nodes, len(nodes))
    assert everybody(nodes) == everybody(shuffled)


def test_small_meshes_watch_everybody_every_round() -> None:
    nodes = ids(9)
    assert all(set(schedule(nodes, me).due(turn)) == set(nodes) - {me} for me in nodes for turn in range(3))
    assert schedule([nodes[0]], nodes[0]).due(0) == ()


def test_a_newcomer_moves_only_its_neighbours() -> None:
    nodes, newcomer = ids(200), node_id(b"newcomer")
    before, after = everybody(nodes), everybody([*nodes, newcomer])
    moved = [node for node in nodes if before[node].watch != after[node].watch]
    assert set(moved) <= set(after[newcomer].watch)


def test_half_the_nodes_die_and_nearly_every_one_has_a_living_watcher() -> None:
    nodes = ids(1000)
    dead = set(random.Random(3).sample(nodes, 500))
    plans = {node: schedule(nodes, node) for node in dead}
    unwatched = [node for node, plan in plans.items() if dead.issuperset(plan.watch)]
    assert len(unwatched) <= 10


def test_a_round_stays_within_its_budget_at_any_size() -> None:
    for count in (100, 1000, 3000):
        plan = schedule(ids(count), ids(count)[0])
        assert 4 <= len(plan.watch) <= 8
        assert max(map(len, plan.sweep)) <= 50


def test_every_peer_is_examined_deeply_once_in_a_round_of_turns() -> None:
    nodes = ids(30)
    met = [deep(nodes, nodes[3], turn) for turn in range(29)]
    assert sorted(met) == sorted(set(nodes) - {nodes[3]})
    assert deep(nodes, nodes[3], 29) == met[0]


@pytest.mark.parametrize(("count", "within_s"), [(2, 10), (6, 60), (50, 3600), (1000, 86400)])
def test_deep_examinations_keep_their_promise_at_any_size(count: int, within_s: float) -> None:
    assert deep_period_s(count) <= within_s
    assert deep_every_s(count) >= 10
