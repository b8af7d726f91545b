"""Whose turn it is, and what a node does in its turn: the decisions of a rotation, without anybody to carry them out
(NET-5, MESH-ROT-001).
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshctl.mesh import rotation
from meshctl.mesh.model import NodeId
from meshctl.mesh.rotation import Act, Gaps, Hand, Order, Phase, Plan, Report, Stage, Turn, View

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")
PLAN = Plan("r1", "operator:0", 100.0, (A, B, C))
START = rotation.opened(PLAN)


def said(stage: Stage, **more: object) -> Report:
    return replace(Report("r1", stage, b"statement"), **more)  # type: ignore[arg-type]


def hear(turn: Turn, *reports: Report) -> Turn:
    for report in reports:
        turn = rotation.heard(PLAN, turn, report, now=200.0)
    return turn


READY, SWITCHED = said(Stage.READY, question=7, pairs=2), said(Stage.SWITCHED, pairs=2, proven=1, waiting=(C,))
PROVEN = said(Stage.PROVEN, pairs=2, proven=2, out=Gaps(0.02, 0.03), into=Gaps(0.01, 0.05))


# ---- the registry's half ---------------------------------------------------------------------------------------------


def test_turns_follow_one_another_and_the_last_closes() -> None:
    turn = START
    for node in (A, B, C):
        assert (turn.node, turn.phase) == (node, Phase.PREPARE)
        turn = hear(turn, said(Stage.PREPARED, waiting=(B,)), READY)
        assert (turn.phase, turn.grant) == (Phase.GRANTED, 7)
        turn = hear(turn, SWITCHED)
        assert (turn.phase, turn.proven, turn.waiting) == (Phase.SWITCHED, 1, (C,))
        turn = hear(turn, PROVEN)
    assert not turn.is_open
    assert (turn.done, turn.failed, turn.turns_ended, turn.closed_at) == (3, (), 3, 200.0)
    assert (turn.all_pairs, turn.all_proven) == (6, 6)
    assert turn.gap == Gaps(0.02, 0.05)
    assert rotation.left(PLAN, turn) == 0


def test_only_the_node_whose_turn_it_is_is_told_anything() -> None:
    assert rotation.order(PLAN, START, A) == Order("r1", Phase.PREPARE)
    assert rotation.order(PLAN, START, B) is None
    granted = hear(START, READY)
    assert rotation.order(PLAN, granted, A) == Order("r1", Phase.GRANTED, 7)
    assert rotation.order(PLAN, replace(granted, phase=Phase.CLOSED), A) is None


def test_report_that_says_nothing_new_changes_nothing() -> None:
    prepared = hear(START, said(Stage.PREPARED, waiting=(B,)))
    assert hear(prepared, said(Stage.PREPARED, waiting=(B,))) is prepared
    granted = hear(START, READY)
    assert hear(granted, READY) is granted
    switched = hear(granted, SWITCHED)
    assert hear(switched, SWITCHED, READY) is switched


def test_second_question_is_granted_anew() -> None:
    assert hear(START, READY, replace(READY, question=8)).grant == 8


def test_node_that_switched_unheard_goes_on_where_it_is() -> None:
    """The coordinator died between the grant and the report; another one hears of the switch first."""
    assert hear(START, SWITCHED).phase is Phase.SWITCHED
    assert hear(START, PROVEN).node == B


@pytest.mark.parametrize(
    ("waited_s", "connected", "late"),
    [(1.0, True, False), (1.0, False, False), (6.0, False, True), (29.0, True, False), (31.0, True, True)],
)
def test_node_that_does_not_prepare_is_postponed_once(waited_s: float, connected: bool, late: bool) -> None:
    turn = rotation.overdue(PLAN, START, waited_s, now=0.0, connected=connected)
    assert (turn is START) == (not late)
    if late:
        assert (turn.node, turn.again, turn.failed, turn.turns_ended) == (B, (A,), (), 0)


def test_postponed_node_has_one_more_turn_and_is_named_then() -> None:
    waiting = hear(START, said(Stage.PREPARED, waiting=(C,)))
    turn = rotation.overdue(PLAN, waiting, 31.0, now=0.0, connected=True)
    turn = hear(turn, READY, PROVEN, READY, PROVEN)
    assert (turn.node, turn.retrying, turn.again) == (A, True, ())
    turn = hear(turn, said(Stage.PREPARED, waiting=(C,)))
    turn = rotation.overdue(PLAN, turn, 31.0, now=9.0, connected=True)
    assert (turn.phase, turn.done, turn.closed_at) == (Phase.CLOSED, 2, 9.0)
    (failed,) = turn.failed
    assert (failed.node, failed.waiting) == (A, (C,))
    assert "have not acknowledged" in failed.why


def test_unused_grant_is_over_only_when_the_node_can_no_longer_use_it() -> None:
    """Law: two ends never rotate at once. A node takes a grant for GRANT_S; nobody goes on before twice that."""
    granted = hear(START, READY)
    assert rotation.overdue(PLAN, granted, 2 * rotation.GRANT_S, now=0.0, connected=False) is granted
    after = rotation.overdue(PLAN, granted, rotation.GRANT_LOST_S + 0.1, now=0.0, connected=False)
    assert (after.node, after.again) == (B, (A,))
    taken = View(connected=True, order=rotation.order(PLAN, granted, A), question=7, asked_s=rotation.GRANT_S)
    assert rotation.act(Hand("r1", Stage.PREPARED, 2), taken) is not Act.SWITCH


def test_switch_that_is_not_proven_everywhere_counts_and_names() -> None:
    switched = hear(START, READY, SWITCHED)
    assert rotation.overdue(PLAN, switched, 19.0, now=0.0, connected=True) is switched
    turn = rotation.overdue(PLAN, switched, 21.0, now=0.0, connected=True)
    assert (turn.node, turn.done) == (B, 1)
    assert [(how.node, how.why, how.waiting, how.proven) for how in turn.failed] == [(A, "", (C,), 1)]


def test_roll_back_ends_the_turn_as_a_failure() -> None:
    turn = hear(START, READY, SWITCHED, said(Stage.BACK, pairs=3, proven=1))
    assert (turn.node, turn.done) == (B, 0)
    assert turn.failed[0].why == "rolled back: 1 of 3 pairs were proven"


@pytest.mark.parametrize(("reports", "open_after"), [((), False), ((READY,), True), ((READY, SWITCHED), True)])
def test_cancelling_sees_through_what_was_granted(reports: tuple[Report, ...], open_after: bool) -> None:
    turn = rotation.cancelled(PLAN, hear(START, *reports), now=5.0)
    assert (turn.is_open, turn.cancelled) == (open_after, True)
    if open_after:
        turn = hear(turn, PROVEN)
    assert not turn.is_open
    assert turn.done == int(open_after)


def test_cancelled_rotation_has_no_second_tries() -> None:
    turn = rotation.cancelled(PLAN, hear(START, READY), now=5.0)
    turn = rotation.overdue(PLAN, turn, 13.0, now=6.0, connected=True)
    assert not turn.is_open
    assert turn.failed[0].why == "it did not say whether it switched"


HAPPENINGS = ["ready", "switched", "proven", "back", "late", "away", "cancel", "stale"]


@given(st.lists(st.sampled_from(HAPPENINGS), max_size=60))
def test_whatever_happens_every_target_ends_once_and_the_queue_ends(happenings: list[str]) -> None:
    turn = START
    for what in happenings:
        if not turn.is_open:
            break
        match what:
            case "late" | "away":
                turn = rotation.overdue(PLAN, turn, 99.0, now=1.0, connected=what == "late")
            case "cancel":
                turn = rotation.cancelled(PLAN, turn, now=1.0)
            case "stale":
                turn = hear(turn, said(Stage.PREPARED))
            case stage:
                turn = hear(turn, said(Stage(stage), question=3))
        assert turn.turns_ended + rotation.left(PLAN, turn) == len(PLAN.targets) or turn.cancelled
        assert turn.done + sum(bool(how.why) for how in turn.failed) == turn.turns_ended
        assert len({how.node for how in turn.ended}) == len(turn.ended)
    for _ in range(2 * len(PLAN.targets) + 1):
        turn = rotation.overdue(PLAN, turn, 99.0, now=1.0, connected=True) if turn.is_open else turn
    assert not turn.is_open


def test_keys_of_one_day_do_not_fall_due_together() -> None:
    limits = {rotation.limit_s(NodeId(f"n{number}"), 1000.0) for number in range(200)}
    assert len(limits) > 100
    assert min(limits) >= 900.0
    assert max(limits) <= 1000.0


# ---- the node's half -------------------------------------------------------------------------------------------------

PREPARE, GRANT = Order("r1", Phase.PREPARE), Order("r1", Phase.GRANTED, 7)
PREPARED, IN_FORCE = Hand("r1", Stage.PREPARED, 2), Hand("r1", Stage.SWITCHED, 2, 50.0)


@pytest.mark.parametrize(
    ("hand", "view", "act"),
    [
        pytest.param(None, View(True), Act.REST, id="nobody asks"),
        pytest.param(None, View(True, PREPARE), Act.PREPARE, id="its turn"),
        pytest.param(None, View(True, GRANT), Act.REST, id="a grant without a key is for nobody"),
        pytest.param(PREPARED, View(True, PREPARE, waiting=1), Act.REST, id="a live peer has not acknowledged"),
        pytest.param(PREPARED, View(True, PREPARE), Act.ASK, id="all have"),
        pytest.param(PREPARED, View(True, replace(PREPARE, force=True), waiting=1), Act.ASK, id="forced"),
        pytest.param(PREPARED, View(True, PREPARE, asked_s=0.5, question=7), Act.REST, id="asked a moment ago"),
        pytest.param(PREPARED, View(True, PREPARE, asked_s=1.5, question=7), Act.ASK, id="asked in vain"),
        pytest.param(PREPARED, View(True, GRANT, asked_s=0.5, question=7), Act.SWITCH, id="granted"),
        pytest.param(PREPARED, View(True, GRANT, asked_s=0.5, question=7, waiting=1), Act.SWITCH, id="granted before"),
        pytest.param(PREPARED, View(True, GRANT, asked_s=0.5, question=8), Act.REST, id="answer to another question"),
        pytest.param(PREPARED, View(True, GRANT, asked_s=5.1, question=7), Act.ASK, id="answer that came too late"),
        pytest.param(PREPARED, View(True, GRANT, asked_s=0.5, question=7, restless=True), Act.REST, id="restless"),
        pytest.param(PREPARED, View(False), Act.REST, id="cut off: nothing is lost by waiting"),
        pytest.param(PREPARED, View(True), Act.DISCARD, id="its turn is over"),
        pytest.param(PREPARED, View(True, replace(PREPARE, rotation="r2")), Act.DISCARD, id="another rotation"),
        pytest.param(IN_FORCE, View(True, GRANT, switched_s=1, pairs=3), Act.REST, id="too early to give up"),
        pytest.param(IN_FORCE, View(True, GRANT, switched_s=11, pairs=3, proven=1), Act.BACK, id="most are lost"),
        pytest.param(IN_FORCE, View(True, GRANT, switched_s=-1, pairs=3), Act.REST, id="nothing was read since"),
        pytest.param(IN_FORCE, View(True, GRANT, switched_s=11, pairs=4, proven=2), Act.REST, id="half live: named"),
        pytest.param(IN_FORCE, View(True, GRANT, switched_s=11), Act.REST, id="alone in the mesh"),
        pytest.param(IN_FORCE, View(False, switched_s=99, pairs=3), Act.REST, id="cut off: the switch stands"),
        pytest.param(IN_FORCE, View(True, registered=1), Act.REST, id="the registry does not know yet"),
        pytest.param(IN_FORCE, View(True, registered=2), Act.CLOSE, id="it does"),
        pytest.param(IN_FORCE, View(True, GRANT, registered=2), Act.REST, id="it does, but pairs are being proven"),
        pytest.param(Hand("r1", Stage.BACK, 3), View(True, GRANT, switched_s=99, pairs=3), Act.REST, id="once back"),
        pytest.param(Hand("r1", Stage.BACK, 3), View(True, registered=3), Act.CLOSE, id="back, and known"),
    ],
)
def test_node_does_what_its_view_says(hand: Hand | None, view: View, act: Act) -> None:
    assert rotation.act(hand, view) is act


def test_switch_waits_while_wireguard_may_start_a_handshake_of_its_own() -> None:
    assert rotation.is_restless([100.0, 5.0])
    assert not rotation.is_restless([0.2, 4.0, 6.0, 100.0])


def test_peers_told_first_wait_longest() -> None:
    holds = rotation.holds_s(range(1000), 0.0)
    assert holds == sorted(holds, reverse=True)
    assert holds[-1] >= rotation.HOLD_S
    assert rotation.holds_s(range(1), 0.4)[0] > 0.4, "a slow machine asks for more time"
    assert holds[0] - holds[-1] >= 1000 * 30e-6, "as long as it takes to tell them all"


def test_gaps_are_of_what_was_measured() -> None:
    assert Gaps.of([]) == Gaps(0.0, 0.0)
    assert Gaps.of([0.03, 0.01, 0.02]) == Gaps(0.02, 0.03)
