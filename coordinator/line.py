"""Those who wait for a place: addresses in turn, and of one address whoever is worth serving first (OPS-4, OPS-3).

First in, first out, until the wait is so long that clients give up: served in their order then, all of them would give
up just before their turn, and the line would only do work that nobody waits for any more (5,000 nodes that came back at
once on a slow machine did). Then the newest come first, but for every fourth: nobody is passed over for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Generic, TypeVar

T = TypeVar("T")

SHARE: Final = 2  # an address has at most so many places per free one: two thirds of them, so some stay free for others
LONG_S: Final = 4.0  # an agent's attempt to connect takes 10 s at most (agent/channel.py), the handshake included
OLDEST_EVERY: Final = 4


class Line(Generic[T]):
    """`now` is monotonic, in seconds."""

    def __init__(self) -> None:
        self._of: dict[bytes, dict[T, float]] = {}  # by address; and since when each waits
        self._count = self._turns = 0

    def __len__(self) -> int:
        return self._count

    def add(self, source: bytes, item: T, *, now: float) -> None:
        """Somebody comes."""
        self._of.setdefault(source, {})[item] = now
        self._count += 1

    def discard(self, source: bytes, item: T) -> None:
        """It is served, or has gone."""
        own = self._of.get(source, {})
        if item in own:
            del own[item]
            self._count -= 1
            if not own:
                del self._of[source]

    def first(self, held: Mapping[bytes, int], free: int, *, now: float) -> T | None:
        """Whose turn it is, of an address that has no more than its share: `held` places while `free` are left."""
        for source in self._of if free > 0 else ():
            if held.get(source, 0) < SHARE * free:
                self._of[source] = own = self._of.pop(source)  # its next one comes after everybody else's
                return self._next(own, now)
        return None

    def _next(self, own: dict[T, float], now: float) -> T:
        oldest = next(iter(own))
        if now - own[oldest] < LONG_S:
            return oldest
        self._turns += 1
        return next(reversed(own)) if self._turns % OLDEST_EVERY else oldest
