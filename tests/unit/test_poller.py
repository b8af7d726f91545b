"""Which poller serves grpc's sockets is chosen before grpc looks (OPS-3)."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from coordinator.backend import POLLER

LOOK = """
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "grpc":
            print(os.environ.get("GRPC_EXPERIMENTS")); sys.stdout.flush(); os._exit(0)
sys.meta_path.insert(0, Watch())
import coordinator.cli.main
"""


@pytest.mark.parametrize("told", ["", "tcp_frame_size_tuning"])
def test_the_poller_is_chosen_before_grpc_is_imported_unless_somebody_else_chose(told: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_EXPERIMENTS"}
    environment |= {"GRPC_EXPERIMENTS": told} if told else {}
    done = subprocess.run(
        [sys.executable, "-c", LOOK], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == (told or POLLER)
