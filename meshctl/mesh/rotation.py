"""Key rotation as values and questions: the registry's half and the node's half (NET-5, MESH-ROT-001).

A rotation is a queue of nodes; the turn of one node has three phases:

    prepare    it makes its next key and publishes its next statement; every peer verifies and stores it
    granted    every peer with a live tunnel has it: the node may switch, within GRANT_S of having asked
    switched   its new statement is in force; every pair is proven anew, or named

**Law: the two ends of a pair never rotate at the same time.** In a full mesh that means one node after the other. A
grant answers one numbered question and ends by the node's own steady clock; coordinators wait twice as long before the
next turn begins, so that no clock has to agree with another and a node that was cut off cannot switch late.

A switch that most pairs do not survive is taken back by the node: a statement with a higher serial and the old key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum, StrEnum, auto
from typing import Final

from meshctl.mesh.model import NodeId

GRANT_S: Final = 5.0  # a node's question, the transaction and the answer take some 20 ms; an etcd election 1 to 2 s
GRANT_LOST_S: Final = 2 * GRANT_S + 2.0  # by then the node has switched or never will: two steady clocks, rounded up
PREPARE_PATIENCE_S: Final = 30.0  # to make a key, tell every peer and hear from each; a slow stream is 10 s behind
PROOF_PATIENCE_S: Final = 20.0  # WireGuard repeats a lost initiation after 5 s; three of them
ASK_EVERY_S: Final = 1.0
BACK_AFTER_S: Final = 10.0  # two of WireGuard's attempts: who is not there by then will not come by waiting
SILENT_AFTER_S: Final = 12.0  # WireGuard answers data within 10 s (KEEPALIVE_TIMEOUT), whatever became of the agent
RESTLESS_S: Final = (4.5, 5.7)  # age at which WireGuard may repeat an initiation of its own: a switch waits it out
SETTLED_S: Final = 0.02  # from a first handshake under a new key to a peer's first step: packets overtake each other
HOLD_S: Final = 0.1  # the same from "go", for who saw no handshake: by then our key is set and ours is sent (0.03 seen)
HOLD_PER_PEER_S: Final = 60e-6  # "go" is sent to one peer after the other (30 us each, measured)
NAMED: Final = 16  # stragglers that a report names
ENDED_KEPT: Final = 16


class Phase(StrEnum):
    """Where the turn of a node stands, as the registry has it."""

    PREPARE = "prepare"
    GRANTED = "granted"
    SWITCHED = "switched"
    CLOSED = "closed"  # of the whole rotation: nobody's turn


class Stage(StrEnum):
    """What a node says of itself."""

    PREPARED = "prepared"  # its next key is sealed on disk
    READY = "ready"  # and every live peer holds the statement: may I?
    SWITCHED = "switched"
    PROVEN = "proven"  # and every pair that lived before lives again
    BACK = "back"  # it has returned to its old key


@dataclass(frozen=True, slots=True)
class Order:
    """What a coordinator tells the node whose turn it is. `grant` is the number of the question it answers."""

    rotation: str
    phase: Phase
    grant: int = 0
    force: bool = False


def _middle(found: Sequence[float]) -> float:
    """The median of sorted numbers; the lower one of two."""
    return found[(len(found) - 1) // 2]


@dataclass(frozen=True, slots=True)
class Gaps:
    """How long pairs stood still, in seconds: median and worst, of one direction; zero when nothing was measured."""

    p50: float = 0.0
    worst: float = 0.0

    @classmethod
    def of(cls, gaps: Iterable[float]) -> Gaps:
        """Of the pairs measured."""
        found = sorted(gaps)
        return cls(_middle(found), found[-1]) if found else cls()


NO_GAPS: Final = Gaps()


@dataclass(frozen=True, slots=True)
class Report:
    """What the node whose turn it is says. `pairs` lived before the switch; `waiting` are (some) that do not yet."""

    rotation: str
    stage: Stage
    statement: bytes  # the next one, or the one in force
    question: int = 0
    pairs: int = 0
    proven: int = 0
    waiting: tuple[NodeId, ...] = ()
    out: Gaps = NO_GAPS  # from this node to its peers
    into: Gaps = NO_GAPS


# ---- the registry's half ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Plan:
    """What was ordered; never changes. `opened_at` in unix seconds."""

    id: str
    actor: str
    opened_at: float
    targets: tuple[NodeId, ...]
    force: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """How the turn of one node ended. `why` is empty for a success; `waiting` are pairs not proven by then."""

    node: NodeId
    why: str = ""
    pairs: int = 0
    proven: int = 0
    waiting: tuple[NodeId, ...] = ()
    out: Gaps = NO_GAPS
    into: Gaps = NO_GAPS


@dataclass(frozen=True, slots=True)
class Turn:
    """The moving half of a rotation: whose turn, and how the turns before ended."""

    rotation: str
    node: NodeId
    phase: Phase
    begun: int = 1  # targets taken from the plan
    grant: int = 0
    waiting: tuple[NodeId, ...] = ()
    pairs: int = 0
    proven: int = 0
    out: Gaps = NO_GAPS
    into: Gaps = NO_GAPS
    again: tuple[NodeId, ...] = ()  # postponed: tried once more when all others had their turn
    retrying: bool = False
    done: int = 0
    failed: tuple[Ended, ...] = ()  # not rotated, or not proven on every pair
    ended: tuple[Ended, ...] = ()  # the last ENDED_KEPT
    turns_ended: int = 0
    all_pairs: int = 0  # of all turns that ended: live pairs, and those that were proven
    all_proven: int = 0
    gaps: tuple[float, ...] = ()  # the median of each turn
    worst: float = 0.0
    cancelled: bool = False
    closed_at: float = 0.0

    @property
    def is_open(self) -> bool:
        """Whether somebody has a turn."""
        return self.phase is not Phase.CLOSED

    @property
    def gap(self) -> Gaps:
        """Over all turns that ended: the median of their medians, and the worst pair."""
        return Gaps(_middle(sorted(self.gaps)) if self.gaps else 0.0, self.worst)


def opened(plan: Plan) -> Turn:
    """The first turn of a plan, which has at least one target."""
    return Turn(plan.id, plan.targets[0], Phase.PREPARE)


def order(plan: Plan, turn: Turn, node: NodeId) -> Order | None:
    """What to tell `node`: nothing when it is not its turn."""
    if not turn.is_open or turn.node != node:
        return None
    return Order(turn.rotation, turn.phase, turn.grant, plan.force)


def heard(plan: Plan, turn: Turn, report: Report, *, now: float) -> Turn:
    """The turn after a report of the node whose turn it is; the very same object when nothing changes.

    `now` in unix seconds. The caller writes what the statement in the report makes necessary in the same transaction.
    """
    said = {name: getattr(report, name) for name in ("waiting", "pairs", "proven", "out", "into")}
    told = replace(turn, **said)
    match turn.phase, report.stage:
        case Phase.PREPARE, Stage.PREPARED:
            return turn if told == turn else told
        case ((Phase.PREPARE | Phase.GRANTED), Stage.READY) if report.question != turn.grant:
            return replace(told, phase=Phase.GRANTED, grant=report.question)
        case ((Phase.GRANTED | Phase.PREPARE | Phase.SWITCHED), Stage.SWITCHED):
            told = replace(told, phase=Phase.SWITCHED)
            return turn if told == turn else told
        case ((Phase.GRANTED | Phase.PREPARE | Phase.SWITCHED), Stage.PROVEN):
            return following(plan, told, "", now=now)
        case _, Stage.BACK:
            why = f"rolled back: {report.proven} of {report.pairs} pairs were proven"
            return following(plan, told, why, now=now)
        case _:
            return turn


def overdue(plan: Plan, turn: Turn, waited_s: float, *, now: float, connected: bool) -> Turn:
    """The turn after `waited_s` without a change of phase or grant (the caller's steady clock); the same if not late.

    What cannot be prepared is postponed, once. A grant that was not used is over. What was switched stays switched.
    """
    match turn.phase:
        case Phase.PREPARE if waited_s > PREPARE_PATIENCE_S or (not connected and waited_s > GRANT_S):
            return postponed(plan, turn, _why_unprepared(turn, connected), now=now)
        case Phase.GRANTED if waited_s > GRANT_LOST_S:
            return postponed(plan, turn, "it did not say whether it switched", now=now)
        case Phase.SWITCHED if waited_s > PROOF_PATIENCE_S:
            return following(plan, turn, "", now=now)
        case _:
            return turn


def _why_unprepared(turn: Turn, connected: bool) -> str:
    if not connected:
        return "it is not connected"
    if turn.waiting:
        return "peers with a live tunnel have not acknowledged its next statement"
    return "it has not prepared a key"


def postponed(plan: Plan, turn: Turn, why: str, *, now: float) -> Turn:
    """The node has another turn at the end; without one left, that is how it ended."""
    if turn.retrying or turn.cancelled:
        return following(plan, turn, why, now=now)
    return _next(plan, replace(turn, again=(*turn.again, turn.node)), now=now)


def following(plan: Plan, turn: Turn, why: str, *, now: float) -> Turn:
    """The turn of `turn.node` ended, well or for a reason: whose is next?"""
    how = Ended(turn.node, why, turn.pairs, turn.proven, turn.waiting, turn.out, turn.into)
    measured = [gap for gap in (how.out, how.into) if gap.worst]
    fine = not why and not how.waiting
    after = replace(
        turn,
        done=turn.done + (not why),
        failed=turn.failed if fine else (*turn.failed, how),
        ended=(*turn.ended, how)[-ENDED_KEPT:],
        turns_ended=turn.turns_ended + 1,
        all_pairs=turn.all_pairs + turn.pairs,
        all_proven=turn.all_proven + turn.proven,
        gaps=(*turn.gaps, round(max(gap.p50 for gap in measured), 6)) if measured else turn.gaps,
        worst=max([turn.worst, *(gap.worst for gap in measured)]),
    )
    return _next(plan, after, now=now)


def _next(plan: Plan, turn: Turn, *, now: float) -> Turn:
    fresh = replace(turn, phase=Phase.PREPARE, grant=0, waiting=(), pairs=0, proven=0, out=NO_GAPS, into=NO_GAPS)
    if not turn.cancelled and turn.begun < len(plan.targets):
        return replace(fresh, node=plan.targets[turn.begun], begun=turn.begun + 1)
    if not turn.cancelled and turn.again:
        return replace(fresh, node=turn.again[0], again=turn.again[1:], retrying=True)
    return replace(fresh, phase=Phase.CLOSED, closed_at=now)


def cancelled(plan: Plan, turn: Turn, *, now: float) -> Turn:
    """No further turns. One that is only being prepared ends now; a granted or switched one is seen through."""
    stopped = replace(turn, cancelled=True)
    if turn.phase is Phase.PREPARE:
        return following(plan, stopped, "cancelled by an operator", now=now)
    return stopped


def limit_s(node: NodeId, after_s: float) -> float:
    """At which age a node's key is rotated by itself: 90 to 100 % of `after_s`, so that not all fall due at once."""
    return after_s * (1 - hashlib.sha256(node.encode()).digest()[0] / 2550)


def left(plan: Plan, turn: Turn) -> int:
    """Turns that have not ended."""
    return len(plan.targets) - turn.begun + len(turn.again) + turn.is_open


# ---- the node's half -------------------------------------------------------------------------------------------------


class Act(Enum):
    """What the node does next."""

    REST = auto()
    PREPARE = auto()  # make a key and seal it
    DISCARD = auto()  # the turn is over and nothing was switched
    ASK = auto()  # the next question
    SWITCH = auto()
    BACK = auto()
    CLOSE = auto()  # forget the old key


@dataclass(frozen=True, slots=True)
class Hand:
    """What a node holds of its turn, sealed on disk. `serial` is that of the statement it states in `stage`."""

    rotation: str
    stage: Stage  # PREPARED, SWITCHED or BACK
    serial: int
    switched_at: float = 0.0  # unix seconds


@dataclass(frozen=True, slots=True)
class View:
    """What the node sees. `pairs` lived at the switch, `proven` of them again; the registry has serial `registered`.
    Who cannot read its own WireGuard has seen no pair fail.
    """

    connected: bool
    order: Order | None = None
    waiting: int = 0  # live peers that do not hold the next statement
    restless: bool = False
    question: int = 0  # number of the last question, and its age in seconds
    asked_s: float = float("inf")
    switched_s: float = 0.0  # seconds from the switch to the reading of WireGuard that the next two are from
    pairs: int = 0
    proven: int = 0
    registered: int = 0


def act(hand: Hand | None, view: View) -> Act:
    """What to do now: level-triggered, the same answer for the same view."""
    order = view.order
    if hand is None:
        return Act.PREPARE if order and order.phase is Phase.PREPARE else Act.REST
    mine = order is not None and order.rotation == hand.rotation
    if hand.stage is Stage.PREPARED:
        return _while_prepared(view) if mine else Act.DISCARD if view.connected else Act.REST
    if view.connected and not mine and view.registered == hand.serial:
        return Act.CLOSE
    late = view.switched_s > BACK_AFTER_S and 2 * view.proven < view.pairs
    return Act.BACK if hand.stage is Stage.SWITCHED and mine and late else Act.REST


def _while_prepared(view: View) -> Act:
    assert view.order is not None
    if view.order.phase is Phase.GRANTED and view.order.grant == view.question and view.asked_s < GRANT_S:
        return Act.REST if view.restless else Act.SWITCH
    if view.waiting and not view.order.force:
        return Act.REST
    return Act.ASK if view.asked_s >= ASK_EVERY_S else Act.REST


def is_restless(handshake_ages_s: Iterable[float]) -> bool:
    """Whether WireGuard might start a handshake of its own in this very moment, and cross the one of a peer."""
    return any(RESTLESS_S[0] < age < RESTLESS_S[1] for age in handshake_ages_s)


def holds_s(peers: Sequence[object], pass_s: float) -> list[float]:
    """How long each peer waits after "go", in the order in which they are told: all until our key is set. `pass_s` is
    how long one of our reconcile passes takes: a machine that is slow at that is slow at this.
    """
    hold = max(HOLD_S, pass_s)
    return [hold + HOLD_PER_PEER_S * (len(peers) - place) for place in range(len(peers))]
