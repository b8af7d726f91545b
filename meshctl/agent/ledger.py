"""Signs what this node tells of its findings, once per transition, and remembers under which number (NET-7, MON-1).

A statement is signed when it is first told: when a finding opens, changes its verdict, or closes; never for a probe
round, a heartbeat or newer words about the same. What opens and closes while no coordinator can be reached is told to
none of them; it stands in the node's own event log. Memory only: after a restart numbers go on from the wall clock, or
above what a coordinator has heard of us, if the clock was set back.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final

from meshctl.crypto.identity import FINDING_CONTEXT, Identity
from meshctl.mesh import evidence
from meshctl.mesh.integrity import Key
from meshctl.wire.codec import FindingRow

CLOSED_KEPT: Final = 64  # closings for coordinators that have not heard them: a node comes back to one after minutes
_UNTOLD: Final = "unknown", "this node says no more of it"


class Ledger:
    """`begin` with each session, `tell` with each report. `wall` in unix seconds."""

    def __init__(self, identity: Identity, mesh: Callable[[], str], wall: Callable[[], float] = time.time) -> None:
        self.open: dict[Key, FindingRow] = {}  # as they were signed, in that order
        self._closed: deque[FindingRow] = deque(maxlen=CLOSED_KEPT)
        self._identity, self._mesh, self._wall = identity, mesh, wall
        self._last = self._said = 0

    def begin(self, heard: int) -> None:
        """A coordinator heard of us up to this number. Above our own: our clock was set back; all is signed anew."""
        self._said = heard
        if self._last < heard < evidence.NUMBER_MAX // 2:
            self._last = heard
            for key, row in list(self.open.items()):
                self.open[key] = self._sign(row)
            self._closed.clear()

    def tell(
        self, rows: Iterable[FindingRow], ended: Mapping[Key, tuple[str, str]]
    ) -> tuple[tuple[FindingRow, ...], tuple[FindingRow, ...]]:
        """(open findings, closings that this session was not told yet), signed; SIGNED_OPEN of them, the oldest.

        `ended`: verdict and evidence that closed a finding.
        """
        now = {(row.code, row.subject): row for row in rows}
        for key in self.open.keys() - now.keys():
            verdict, words = ended.get(key, _UNTOLD)
            over = replace(self.open.pop(key), verdict=verdict, at=round(self._wall(), 3), evidence=words)
            self._closed.append(self._sign(over, closed=True))
        for key, row in now.items():
            held = self.open.get(key)
            if held is None and len(self.open) >= evidence.SIGNED_OPEN:
                continue
            if held is None or held.verdict != row.verdict:
                self.open[key] = self._sign(row)
        closed = tuple(row for row in self._closed if row.number > self._said)
        self._said = max(self._said, self._last)
        return tuple(self.open.values()), closed

    def _sign(self, row: FindingRow, *, closed: bool = False) -> FindingRow:
        self._last = evidence.next_number(self._last, now=self._wall())
        since, at, words = max(0.0, row.since), max(0.0, row.at), row.evidence[: evidence.EVIDENCE_CHARS]
        row = replace(row, since=since, at=at, evidence=words, number=self._last)
        claim = row.claim(self._mesh(), self._identity.id, closed=closed)
        return replace(row, signature=self._identity.sign(FINDING_CONTEXT + claim.body))
