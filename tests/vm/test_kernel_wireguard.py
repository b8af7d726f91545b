"""On a kernel that has WireGuard, in an emulated machine: the device's contract, and a rotation (NET-1, NET-5).

Takes minutes: `-m vm`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.vm


def machine(what: str, *prefix: str) -> str:
    """What the machine printed, to its end."""
    done = subprocess.run(
        [*prefix, sys.executable, str(Path(__file__).with_name("run.py")), what],
        capture_output=True,
        text=True,
        check=False,
        timeout=1600,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


def test_all_keys_rotate_under_traffic_on_kernel_wireguard(record_property: Callable[[str, object], None]) -> None:
    said = machine("rotation")
    found = re.search(r"UDP, .* nothing lost beyond the control in (\d+) of (\d+) runs; .*ms", said)
    assert found, said[-3000:]
    record_property("figure", f"kernel WireGuard, emulated: {found[0]}")
    assert int(found[1]) >= int(found[2]) - 1  # the emulator may stand still for longer than WireGuard's queue holds


def test_contract_suite_passes_on_kernel_wireguard() -> None:
    said = machine("device", "nice", "-n", "5")  # nothing in it depends on time; what runs beside it does
    assert "skipped" not in said
    assert "kernel 1000 peers" in said
