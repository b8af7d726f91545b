"""What is said about rotations, as values: the order down, the report up, the state for operators (NET-5).

Beside codec.py; the values are mesh/rotation.py's, this file decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from meshctl.mesh.model import NodeId
from meshctl.mesh.rotation import NAMED, NO_GAPS, Gaps, Order, Phase, Report, Stage
from meshctl.wire.codec import plain, strict
from meshctl.wire.v1 import mesh_pb2 as pb


def order_frame(order: Order | None) -> bytes:
    """To the node whose turn it is; None: it is not any more."""
    told = pb.RotationOrder()
    if order is not None:
        told = pb.RotationOrder(rotation=order.rotation, phase=order.phase, grant=order.grant, force=order.force)
    return pb.Down(order=told).SerializeToString()


def order(m: pb.RotationOrder) -> Order:
    """Inverse of `order_frame`; one without a rotation's id ends the turn. Raises ValueError."""
    return Order(m.rotation, Phase(m.phase or Phase.CLOSED), m.grant, m.force)


def _gaps_message(gaps: Gaps) -> pb.Gaps:
    return pb.Gaps(p50=gaps.p50, worst=gaps.worst)


def _gaps(m: pb.Gaps) -> Gaps:
    return Gaps(m.p50, m.worst)


def report_message(report: Report) -> pb.RotationReport:
    """For Up."""
    out, into = _gaps_message(report.out), _gaps_message(report.into)
    return pb.RotationReport(**plain(report, waiting=report.waiting[:NAMED], out=out, into=into))


def report(m: pb.RotationReport) -> Report:
    """Inverse of `report_message`. Raises ValueError."""
    waiting = tuple(NodeId(node) for node in m.waiting[:NAMED])
    return Report(
        m.rotation, Stage(m.stage), m.statement, m.question, m.pairs, m.proven, waiting, _gaps(m.out), _gaps(m.into)
    )


@dataclass(frozen=True, slots=True)
class TurnEnded:
    """How one node's turn ended, by name; `why` is empty for a success."""

    node: str
    why: str
    pairs: int
    proven: int
    waiting: tuple[str, ...]
    out: Gaps
    into: Gaps


@dataclass(frozen=True, slots=True)
class RotationState:
    """The open rotation or the last one, as operators see it. Without an `id` there never was one."""

    id: str = ""
    actor: str = ""
    opened_at: float = 0.0
    targets: int = 0
    force: bool = False
    node: str = ""
    phase: str = Phase.CLOSED
    waiting: tuple[str, ...] = ()
    pairs: int = 0
    proven: int = 0
    done: int = 0
    left: int = 0
    failed: tuple[TurnEnded, ...] = ()
    ended: tuple[TurnEnded, ...] = ()
    gap: Gaps = NO_GAPS
    cancelled: bool = False
    closed_at: float = 0.0
    turns_ended: int = 0
    all_pairs: int = 0
    all_proven: int = 0

    @property
    def is_open(self) -> bool:
        """Whether somebody has a turn."""
        return self.phase != Phase.CLOSED


def _ended_message(e: TurnEnded) -> pb.RotationEnded:
    return pb.RotationEnded(**plain(e, out=_gaps_message(e.out), into=_gaps_message(e.into)))


def _ended(messages: Iterable[pb.RotationEnded]) -> tuple[TurnEnded, ...]:
    return tuple(
        TurnEnded(m.node, m.why, m.pairs, m.proven, tuple(m.waiting), _gaps(m.out), _gaps(m.into)) for m in messages
    )


def state_message(state: RotationState) -> pb.RotationState:
    """For Rotate, Rotation and RotationCancel."""
    failed, ended = ([_ended_message(e) for e in some] for some in (state.failed, state.ended))
    return pb.RotationState(**plain(state, failed=failed, ended=ended, gap=_gaps_message(state.gap)))


def state(m: pb.RotationState) -> RotationState:
    """Inverse of `state_message`."""
    with strict("state of a rotation"):
        return RotationState(
            m.id, m.actor, m.opened_at, m.targets, m.force, m.node, m.phase, tuple(m.waiting), m.pairs, m.proven,
            m.done, m.left, _ended(m.failed), _ended(m.ended), _gaps(m.gap), m.cancelled, m.closed_at,
            m.turns_ended, m.all_pairs, m.all_proven,
        )  # fmt: skip


def rotate_request(nodes: tuple[str, ...], tags: tuple[str, ...], everybody: bool, force: bool, reason: str) -> object:
    """For Rotate."""
    return pb.RotateRequest(nodes=nodes, tags=tags, all=everybody, force=force, reason=reason)
