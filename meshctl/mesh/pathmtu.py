"""How large a packet passes? Which size to try next, and what was found of one direction (NET-7, PATH-002).

WireGuard pads what it encrypts to multiples of 16 bytes, so only such sizes, and the full one, are worth a try. Sizes
are bytes of the IP packet inside the tunnel. Nothing here sends, waits or judges: judges.py does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

GRAIN_BYTES: Final = 16


class Width(NamedTuple):
    """One direction. `passes`: the largest size that was seen to arrive; `lost`: tries at larger sizes, all in vain."""

    full: int
    passes: int
    lost: int = 0

    @property
    def is_full(self) -> bool:
        """Whether full-size packets arrive."""
        return self.passes >= self.full


@dataclass(slots=True)
class Payloads:
    """Packets of one direction that arrived, and the sizes of those whose payload was not what was sent."""

    sent: int = 0
    largest: int = 0
    altered: list[int] = field(default_factory=list)

    def count(self, size: int, *, intact: bool) -> None:
        """One more."""
        self.sent, self.largest = self.sent + 1, max(self.largest, size)
        if not intact:
            self.altered.append(size)


class Search:
    """Bisects from a size that is lost and one that passes. Ask `next`, tell `tell`, until there is none."""

    def __init__(self, passes: int, full: int, hint: int = 0) -> None:
        """`full` is known to be lost. `hint` is what passed before: it and the size above it are tried first."""
        self.passes, self._fails = passes, full
        self._hints = [hint, hint + GRAIN_BYTES] if hint else []

    def next(self) -> int | None:
        """A size between what passes and what does not; None when there is none worth a try."""
        while self._hints:
            hint = self._hints.pop(0) // GRAIN_BYTES * GRAIN_BYTES
            if self.passes < hint < self._fails:
                return hint
        low, high = self.passes // GRAIN_BYTES, -(-self._fails // GRAIN_BYTES)
        return (low + high) // 2 * GRAIN_BYTES if high - low > 1 else None

    def tell(self, size: int, *, passed: bool) -> None:
        """What became of it. An answer is proof; it outweighs what was lost at less."""
        if passed:
            self.passes = max(self.passes, size)
        else:
            self._fails = min(self._fails, size)
