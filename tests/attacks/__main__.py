"""`python -m tests.attacks [FAULT...]`: injects every fault, prints the table, fails when one was missed (NET-7)."""

from __future__ import annotations

import sys

from tests.attacks import campaign


def main() -> None:
    """See the module."""
    done = campaign.run(sys.argv[1:])
    print(campaign.table(done))
    for one in done.stray:
        print(f"! critical, and nobody did it: {one.key} {one.evidence}")
    for one in done.outcomes.values():
        if one.error:
            print(one.error, file=sys.stderr)
    missed = [
        one for one in done.outcomes.values()
        if one.error or (one.fault.code and (one.detected_s is None or one.detected_s > one.fault.promised_s
                                             or one.closed_s is None or not one.printed))
    ]  # fmt: skip
    raise SystemExit(bool(missed or done.stray))


if __name__ == "__main__":
    main()
