"""When a loop that looks now and then looks next: all of them in the same moments, so that a node wakes once for all.

A process that sleeps most of the time pays more for waking up, its caches cold, than for most of what it then does.
Nodes beat apart: where in a second a process has its moments is chance. Times are the event loop's, in seconds.
"""

from __future__ import annotations

import math
import random
from typing import Final

_SAME: Final = 1e-6  # of a period: floating point may put a moment that is now a little into the future
_PHASE: Final = random.random()  # noqa: S311 - apart from other nodes, no secret


def following(now: float, every_s: float, *, later_s: float = 0.0) -> float:
    """The first moment after `now`, of those that lie `every_s` apart. `later_s`: those of what must not share a moment
    with the others.
    """
    phase = _PHASE + later_s
    return (math.floor((now - phase) / every_s + _SAME) + 1) * every_s + phase
