"""What every test may ask for: the marks `root` and `vm` skip, and say why, only where this machine lacks the part."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest


def _missing_for_root() -> str:
    if os.geteuid():
        return "not root"
    absent = [tool for tool in ("ip", "nft", "wg", "wireguard-go") if not shutil.which(tool)]
    if absent:
        packages = "iproute2 nftables wireguard-tools wireguard-go"
        return f"not installed: {', '.join(absent)} (apt-get install --no-install-recommends {packages})"
    return "" if Path("/dev/net/tun").exists() else "no /dev/net/tun"


def _missing_for_vm() -> str:
    absent = [tool for tool in ("qemu-system-x86_64", "busybox") if not shutil.which(tool)]
    if absent:
        packages = "qemu-system-x86 busybox-static kmod"
        return f"not installed: {', '.join(absent)} (apt-get install --no-install-recommends {packages})"
    if not any(Path("/boot").glob("vmlinuz-*")):
        return "no kernel in /boot (apt-get install --no-install-recommends linux-image-cloud-amd64 kmod)"
    return _missing_for_root()


def _turn(item: pytest.Item) -> int:
    return next((turn for turn, where in enumerate(("netns", "attacks"), 1) if where in item.path.parts), 0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what cannot run here, with the reason. Meshes come last, and of these last what holds promises in seconds:
    by then the emulated machine beside them is done.
    """
    items.sort(key=_turn)
    for item in items:
        for mark, missing in (("root", _missing_for_root), ("vm", _missing_for_vm)):
            if item.get_closest_marker(mark) and (why := missing()):
                item.add_marker(pytest.mark.skip(reason=f"absent: {why}"))
