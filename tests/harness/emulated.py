"""The emulated machine, as a test asks for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

RUN = Path(__file__).resolve().parents[1] / "vm/run.py"


def machine(what: str) -> str:
    """What the machine printed, to its end."""
    command = [sys.executable, str(RUN), what]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1600)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout
