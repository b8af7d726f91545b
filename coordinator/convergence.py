"""How long nodes take to follow: from hearing of a change to a node's word that it applied it (NET-2, OPS-2, OPS-3).

One sample per acknowledgement: the oldest change that it covers, so that conflation never makes the figure better. What
a node missed while it was away is not counted against it. Memory is bounded; nothing here waits or writes.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Callable
from itertools import accumulate
from typing import Final

from coordinator.feed import Feed
from coordinator.presence import Presence, PresenceTable

CHANGES_KEPT: Final = 1024
SAMPLES_KEPT: Final = 4096
BUCKETS_S: Final = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Convergence:
    """Listens to a feed and a presence table. `steady` is a monotonic clock."""

    def __init__(self, feed: Feed, presence: PresenceTable, steady: Callable[[], float]) -> None:
        self._feed, self._steady = feed, steady
        self._changes: deque[tuple[int, float]] = deque(maxlen=CHANGES_KEPT)  # (revision, when we heard of it)
        self._samples: deque[float] = deque(maxlen=SAMPLES_KEPT)
        self._counts = [0] * (len(BUCKETS_S) + 1)
        self._sum = 0.0
        feed.on_move.append(self._moved)
        presence.on_applied.append(self._applied)

    def _moved(self) -> None:
        self._changes.append((self._feed.revision, self._steady()))

    def _applied(self, held: Presence, before: int) -> None:
        if held.applied > self._feed.revision:  # it comes from a coordinator that is ahead of us
            return
        first = bisect.bisect_right(self._changes, (before, float("inf")))
        while first < len(self._changes) and self._changes[first][1] < held.opened:
            first += 1
        if first < len(self._changes) and self._changes[first][0] <= held.applied:
            self._take(self._steady() - self._changes[first][1])

    def _take(self, seconds: float) -> None:
        self._samples.append(seconds)
        self._counts[bisect.bisect_left(BUCKETS_S, seconds)] += 1
        self._sum += seconds

    @property
    def samples(self) -> int:
        """Since the start."""
        return sum(self._counts)

    def quantile(self, share: float) -> float:
        """Over the last SAMPLES_KEPT, in seconds; 0 while there is none."""
        ordered = sorted(self._samples)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0

    def histogram(self) -> tuple[list[tuple[str, float]], float]:
        """Cumulative counts by upper bound, and the sum of all samples: as Prometheus wants them."""
        bounds = [*map(str, BUCKETS_S), "+Inf"]
        return list(zip(bounds, map(float, accumulate(self._counts)), strict=True)), self._sum
