"""Spans of time in words, as evidence and reports say them."""

from __future__ import annotations

from typing import Final

DAY_S: Final = 86400.0


def span(seconds: float) -> str:
    """One unit, at least two of it: 90 s, 12 min, 30 h, 6 d."""
    for unit, length in (("d", DAY_S), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def ago(seconds: float) -> str:
    """`span`, as an age."""
    return f"{span(max(seconds, 0.0))} ago"
