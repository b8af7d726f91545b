"""What nodes say they found, believed only with their signature, and written where it verifies later (NET-7, MON-1).

Each report names all open findings of a node, as they were signed once. What is known is passed over by comparison; a
new statement is verified with the node's registered device key and must have a higher number than any before. What is
wrong or replayed is refused, counted and told; the stream stands, and so does what was believed before. The latest
signed statement of each open finding is kept, SIGNED_OPEN of a node, and as many that it stopped saying without a
signed end: a report of a session that has ended may come late, and the next one says them again.

A node of an earlier release (protocol 1) cannot sign: it is believed as it always was, shown as unsigned, and leaves no
lines here. One that has agreed on protocol 2 is believed nothing unsigned. Memory only: a coordinator that starts anew
verifies what is open anew. What this does not show: that no line is missing from a log (MON-2).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from coordinator.feed import Feed
from coordinator.testimony import NodeFindingDropped, NodeFindingRefused, event_of
from meshctl.crypto.identity import FINDING_CONTEXT, verify
from meshctl.errors import ProtocolError, TrustError
from meshctl.events import Event
from meshctl.mesh.evidence import SIGNED_OPEN, Claim
from meshctl.mesh.integrity import Key
from meshctl.mesh.model import NodeId
from meshctl.wire.codec import FindingRow

BURST: Final = 2.0 * SIGNED_OPEN  # statements of one node at once: everything opens, and closes again
PER_S: Final = 2.0  # sustained; each costs 0.2 ms and a line of 0.8 kB
TOLD_EVERY_S: Final = 60.0  # of refusals of one kind by one node
AT_ONCE: Final = 16  # verified before others have their turn: 2 ms


class Why(StrEnum):
    """Why a statement is not believed."""

    MALFORMED = "malformed"
    UNSIGNED = "unsigned"
    REPLAYED = "replayed"
    TOO_MANY = "too-many"  # it is looked at again with the node's next report
    FORGED = "forged"


@dataclass(slots=True)
class _Node:
    """What a coordinator holds of one node."""

    at: float  # when `allowance` was reckoned
    last: int = 0
    open: dict[Key, FindingRow] = field(default_factory=dict)
    lapsed: dict[Key, FindingRow] = field(default_factory=dict)  # said no more, and never said to be over
    allowance: float = BURST
    told: dict[Why, float] = field(default_factory=dict)

    def may_speak(self, now: float) -> bool:
        self.allowance, self.at = min(BURST, self.allowance + (now - self.at) * PER_S), now
        if self.allowance < 1:
            return False
        self.allowance -= 1
        return True


class Findings:
    """`take` each report. `steady` is a monotonic clock."""

    def __init__(self, mesh: str, feed: Feed, steady: Callable[[], float] = time.monotonic) -> None:
        self.refused: Counter[Why] = Counter(dict.fromkeys(Why, 0))
        self.signed = 0  # statements that were verified and believed
        self._mesh, self._feed, self._steady = mesh, feed, steady
        self._nodes: dict[NodeId, _Node] = {}

    def heard(self, node: NodeId) -> int:
        """Number of the node's last statement that was believed; 0: none."""
        held = self._nodes.get(node)
        return held.last if held else 0

    @property
    def open(self) -> int:
        """Signed findings that are open."""
        return sum(len(held.open) for held in self._nodes.values())

    def forget(self, node: NodeId) -> None:
        """The node is gone from the mesh."""
        self._nodes.pop(node, None)

    async def take(
        self, node: NodeId, rows: Sequence[FindingRow], closed: Sequence[FindingRow], tell: Callable[[Event], object]
    ) -> tuple[FindingRow, ...]:
        """Which of `rows` are believed. `tell` hears of each that opened, closed, was dropped or refused."""
        member, now = self._feed.members.get(node), self._steady()
        if member is None or not (rows or closed or node in self._nodes):
            return ()
        held = self._nodes.setdefault(node, _Node(now))
        steps = sorted([*((r, False) for r in rows), *((r, True) for r in closed)], key=lambda step: step[0].number)
        device_key, verified = member.node.statement.device_key, 0
        for row, over in steps:
            known = held.open.get((row.code, row.subject))
            if known is None if over else known == row:
                continue  # what closes nothing here, and what is believed already
            claim = self._claim(node, row, closed=over)
            why = self._doubt(held, claim, row, device_key, now)
            if why:
                self._refuse(node, held, row, why, tell)
                if why is Why.TOO_MANY:
                    break  # a higher number must not overtake it
            elif claim:
                self._believe(held, row, claim, device_key, tell)
            verified += 1
            if verified % AT_ONCE == 0:
                await asyncio.sleep(0)
        said = [(row.code, row.subject) for row in rows]
        self._drop(node, held, held.open.keys() - set(said), tell)
        return tuple(held.open[key] for key in dict.fromkeys(said) if key in held.open)

    def take_unsigned(
        self, node: NodeId, rows: tuple[FindingRow, ...], tell: Callable[[Event], object]
    ) -> tuple[FindingRow, ...]:
        """Of a node whose release does not sign: as it says, and without what might pass for a signature."""
        if held := self._nodes.get(node):
            self._drop(node, held, set(held.open), tell)
        return tuple(replace(row, number=0, signature=b"") for row in rows)

    def _claim(self, node: NodeId, row: FindingRow, *, closed: bool) -> Claim | None:
        try:
            claim = row.claim(self._mesh, node, closed=closed)
            return claim if claim.body else None
        except ProtocolError:
            return None

    @staticmethod
    def _doubt(held: _Node, claim: Claim | None, row: FindingRow, device_key: bytes, now: float) -> Why | None:
        """The cheap questions first: nobody makes us verify more than PER_S."""
        if not row.signature:
            return Why.UNSIGNED
        if claim is None or len(row.signature) != 64:
            return Why.MALFORMED
        if claim.number <= held.last and held.lapsed.get((row.code, row.subject)) != row:
            return Why.REPLAYED
        if not held.may_speak(now):
            return Why.TOO_MANY
        try:
            verify(device_key, FINDING_CONTEXT + claim.body, row.signature)
        except TrustError:
            return Why.FORGED
        return None

    def _believe(
        self, held: _Node, row: FindingRow, claim: Claim, device_key: bytes, tell: Callable[[Event], object]
    ) -> None:
        held.last, key = max(held.last, claim.number), (row.code, row.subject)
        held.lapsed.pop(key, None)
        self.signed += 1
        if claim.closed:
            held.open.pop(key, None)
        else:
            held.open[key] = row
        tell(event_of(claim, device_key, row.signature))

    def _refuse(
        self, node: NodeId, held: _Node, row: FindingRow, why: Why, tell: Callable[[Event], object]
    ) -> None:
        self.refused[why] += 1
        now = self._steady()
        if now - held.told.get(why, float("-inf")) >= TOLD_EVERY_S:
            held.told[why] = now
            actor, code, subject = f"node:{node}", row.code[:64], row.subject[:64]
            tell(NodeFindingRefused(actor=actor, node=node, why=why, number=row.number, code=code, subject=subject))

    @staticmethod
    def _drop(node: NodeId, held: _Node, keys: set[Key], tell: Callable[[Event], object]) -> None:
        for key in sorted(keys):
            row = held.lapsed[key] = held.open.pop(key)
            while len(held.lapsed) > SIGNED_OPEN:
                del held.lapsed[next(iter(held.lapsed))]
            tell(NodeFindingDropped(node=node, number=row.number, code=row.code, subject=row.subject))
