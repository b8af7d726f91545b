"""How long a healthy mesh says nothing: `python -m tests.bench.quiet [SECONDS]`, 1800 if not given (NET-7).

Six real nodes; each finding, of whatever severity, is printed and fails it.
"""

from __future__ import annotations

import sys

from tests.attacks.watch import Seen, Watch
from tests.harness.mesh import Lab

NAMES = "abcdef"


def run(seconds: float) -> tuple[int, list[Seen]]:
    """(answers of the six, findings) until the time is up or something opens."""
    with Lab() as lab, Watch(lab.members(*NAMES)) as watch:
        watch.first(seconds)
        return watch.answers, watch.seen


def main() -> None:
    """See the module."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 1800.0
    answers, seen = run(seconds)
    for one in seen:
        print(f"! {one.key} {one.severity}: {one.evidence}")
    print(f"{len(NAMES)} nodes, {seconds:.0f} s asked, {answers} answers, {len(seen)} findings")
    raise SystemExit(bool(seen))


if __name__ == "__main__":
    main()
