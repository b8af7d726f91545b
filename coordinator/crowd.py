"""Whether many nodes are joining at once, so that other work may wait for them a little (OPS-3).

Only those count who were admitted: nobody without a token can make it so. It is over a moment after the last one.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

MANY: Final = 6
WITHIN_S: Final = 0.5
GAP_S: Final = 0.1  # between one and the next, who is still in TLS and cannot be seen


class Crowd:
    """`joining` around each attempt, `admitted` in it. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._joining = 0
        self._came: deque[float] = deque([float("-inf")] * MANY, maxlen=MANY)  # when the last ones were admitted

    @contextmanager
    def joining(self) -> Iterator[None]:
        """Somebody tries."""
        self._joining += 1
        try:
            yield
        finally:
            self._joining -= 1

    def admitted(self) -> None:
        """Somebody is a member."""
        self._came.append(self._clock())

    def is_there(self) -> bool:
        """MANY came within WITHIN_S, and somebody tries, or was admitted within GAP_S."""
        now = self._clock()
        return now - self._came[0] < WITHIN_S and (self._joining > 0 or now - self._came[-1] < GAP_S)
