"""What the demo prints: headings with the time, commands with their output, numbered claims, and the last line."""

import os
import sys
import time

COLOUR = sys.stdout.isatty() and "NO_COLOR" not in os.environ
BOLD, DIM, RED, GREEN, CYAN = 1, 2, 31, 32, 36
begun = time.monotonic()
verdicts: list[bool] = []


def _painted(text: str, code: int) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if COLOUR else text


def heading(text: str) -> None:
    """A new phase, and when it begins."""
    clock = f"{time.monotonic() - begun:.1f} s"
    line = f"{'=' * (92 - len(text) - len(clock))} {clock}"
    print(f"\n{_painted(f'== {text}', BOLD)} {_painted(line, DIM)}", flush=True)


def note(text: str) -> None:
    """Something to know."""
    print(_painted(f"   {text}", DIM), flush=True)


def command(where: str, words: str, output: str = "") -> None:
    """What was typed where, and what it said."""
    print(f"   {_painted(f'{where} #', CYAN)} {_painted(words, BOLD)}")
    print("".join(f"   {line}\n" for line in output.rstrip().splitlines()), end="", flush=True)


def claim(text: str, held: bool, figure: str) -> None:
    """One numbered claim and what was measured."""
    verdicts.append(held)
    word = _painted("ok    ", GREEN) if held else _painted("FAILED", RED)
    print(f"{len(verdicts):>2} {word} {text}\n          {_painted(figure, BOLD)}", flush=True)


def last() -> int:
    """The last line, and the exit code."""
    held = sum(verdicts)
    print(f"\ndemo: {held} of {len(verdicts)} claims held in {time.monotonic() - begun:.0f} s", flush=True)
    return 0 if held == len(verdicts) else 1
