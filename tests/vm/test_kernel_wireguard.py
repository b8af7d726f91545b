"""The device's contract on a kernel that has WireGuard, in an emulated machine (NET-1). Takes minutes: `-m vm`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.vm
def test_contract_suite_passes_on_kernel_wireguard() -> None:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("run.py"))],
        capture_output=True,
        text=True,
        check=False,
        timeout=1600,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout
    assert "kernel 1000 peers" in done.stdout
