"""WireGuard hangs: it is said, and nothing is concluded from sessions as they were before (NET-7, MON-6)."""

from __future__ import annotations

import os
import signal
from typing import Any

import msgspec
import pytest

from meshctl.mesh.catalogue import DRIFT, HANDSHAKE, PATH
from tests.harness.mesh import READY_S, Lab, Node, until

pytestmark = pytest.mark.root
SAID_S = 40.0  # an answer is awaited for 10 s, and a reading holds for a coverage period


def row(node: Node, code: str) -> dict[str, Any]:
    """The worst the node says of a check, of itself or of a peer."""
    told = msgspec.json.decode(node.meshctl("health", "--json").stdout)
    rows = [row for row in told["rows"] if row["code"] == code]
    return max(rows, key=lambda row: row["verdict"] != "ok")


def test_wireguard_that_hangs_is_said_and_sessions_are_unknown_until_it_answers() -> None:
    with Lab() as lab:
        a, b = lab.members("a", "b")
        until(lambda: row(a, HANDSHAKE)["verdict"] == "ok", READY_S, "a has judged the handshake")
        pid = a.wireguard_go()
        os.kill(pid, signal.SIGSTOP)
        try:
            until(lambda: row(a, HANDSHAKE)["verdict"] == "unknown", SAID_S, "a judges no session that it cannot read")
            until(lambda: "does not answer" in row(a, DRIFT)["evidence"], SAID_S, "a says why")
            until(lambda: row(a, PATH)["because"] == DRIFT, SAID_S, "a knows what its path lacks")
            until(lambda: row(b, PATH)["verdict"] == "failed", SAID_S, "b sees that the path is gone")
        finally:
            os.kill(pid, signal.SIGCONT)
        for node in (a, b):
            for code in (HANDSHAKE, PATH, DRIFT):
                until(lambda n=node, c=code: row(n, c)["verdict"] == "ok", SAID_S, f"{node.name}: {code} is well again")
