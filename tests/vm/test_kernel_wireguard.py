"""On a kernel that has WireGuard, in an emulated machine: the device's contract (NET-1). Takes minutes: `-m vm`."""

from __future__ import annotations

import pytest

from tests.harness.emulated import machine

pytestmark = pytest.mark.vm


def test_contract_suite_passes_on_kernel_wireguard() -> None:
    said = machine("device")
    assert "skipped" not in said
    assert "kernel 1000 peers" in said
