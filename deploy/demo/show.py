"""What the demo prints: headings with the time, commands with their output, numbered claims, and the last line."""

from __future__ import annotations

import os
import sys
import time

COLOUR = sys.stdout.isatty() and "NO_COLOR" not in os.environ
begun = time.monotonic()
verdicts: list[bool] = []


def _painted(text: str, code: int) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if COLOUR else text


def heading(text: str) -> None:
    """A new phase, and when it begins."""
    clock = f"{time.monotonic() - begun:.1f} s"
    print(f"\n{_painted(f'== {text}', 1)} {_painted('=' * max(92 - len(text) - len(clock), 2), 2)} {_painted(clock, 2)}", flush=True)


def note(text: str) -> None:
    """Something to know before what follows."""
    print(_painted(f"   {text}", 2), flush=True)


def command(where: str, words: str, output: str = "") -> None:
    """What was typed where, and what it said."""
    print(f"   {_painted(f'{where}#', 36)} {_painted(words, 1)}")
    for line in output.rstrip().splitlines():
        print(f"   {line}")
    sys.stdout.flush()


def claim(text: str, held: bool, figure: str) -> None:
    """One numbered claim with what was measured."""
    verdicts.append(held)
    word = _painted("ok    ", 32) if held else _painted("FAILED", 31)
    print(f"{len(verdicts):>3} {word} {text}: {_painted(figure, 1)}", flush=True)


def last() -> int:
    """The last line, and the exit code."""
    held = sum(verdicts)
    print(f"\ndemo: {held} of {len(verdicts)} claims held in {time.monotonic() - begun:.0f} s", flush=True)
    return 0 if verdicts and held == len(verdicts) else 1
