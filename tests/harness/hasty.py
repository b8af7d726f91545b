"""`meshctl` and `mesh-coordinator` with less patience: what takes half a minute takes seconds (OPS-2).

    python -m tests.harness.hasty meshctl|mesh-coordinator WORDS...

For tests of what happens when something falls silent. Every interval of the control plane is scaled alike, so that
their order stays; nothing else is changed.
"""

from __future__ import annotations

import sys

from coordinator import asymmetry, fleet, herald
from meshctl.mesh import limits

SCALE = 6.0
REGISTRY_OLD_S = 8.0  # less is within an election of etcd's: nodes would leave coordinators that are well


def hurry() -> None:
    """Scale the intervals of this process."""
    for name in ("HEARTBEAT_S", "REGISTRY_MOVE_EVERY_S"):
        setattr(limits, name, getattr(limits, name) / SCALE)
    limits.REGISTRY_OLD_S = REGISTRY_OLD_S  # type: ignore[misc]
    for name in ("BEAT_EVERY_S", "SILENT_S", "DEAF_S"):
        setattr(fleet, name, getattr(fleet, name) / SCALE)
    herald.BEAT_EVERY_S = asymmetry.BEAT_EVERY_S = fleet.BEAT_EVERY_S  # type: ignore[misc]


if __name__ == "__main__":
    hurry()
    program = sys.argv.pop(1)
    if program == "meshctl":
        from meshctl.cli.main import main
    else:
        from coordinator.cli.main import main
    main()
