"""An agent that lies: `meshctl`, but it never tells the coordinator of a finding (MESH-ASY-001)."""

from __future__ import annotations

from meshctl.agent.health import Health
from meshctl.cli.main import main

if __name__ == "__main__":
    Health.told = lambda _: ()  # type: ignore[method-assign]
    main()
