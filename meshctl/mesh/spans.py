"""How evidence is worded: spans of time, and an end to what quotes others."""

from __future__ import annotations

from typing import Final

DAY_S: Final = 86400.0
EVIDENCE_CHARS: Final = 160
_UNITS: Final = (("d", DAY_S), ("h", 3600.0), ("min", 60.0))


def span(seconds: float) -> str:
    """One unit, at least two of it: 90 s, 12 min, 30 h, 6 d."""
    if seconds < 120:  # nearly always
        return f"{seconds:.0f} s"
    unit, length = next((unit, length) for unit, length in _UNITS if seconds >= 2 * length)
    return f"{seconds / length:.0f} {unit}"


def ago(seconds: float) -> str:
    """`span`, as an age."""
    return f"{span(max(seconds, 0.0))} ago"


def short(words: str) -> str:
    """Evidence that quotes others has an end."""
    return words if len(words) <= EVIDENCE_CHARS else words[: EVIDENCE_CHARS - 3] + "..."
