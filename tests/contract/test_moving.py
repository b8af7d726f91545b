"""When a node leaves a coordinator that still talks to it: real gRPC and TLS front, the agent's own follower (NET-2,
OPS-2)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from meshctl.events import SessionClosed
from meshctl.mesh import limits
from tests.harness.front import until
from tests.harness.served import WITHIN_S, serving


async def test_coordinator_that_is_deaf_is_left_only_where_there_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its heartbeats say for how long etcd has not answered. With all of them deaf nodes do not run in circles."""
    monkeypatch.setattr(limits, "HEARTBEAT_S", 0.05)
    async with serving(tmp_path / "run") as served:
        a, b = await served.live("a"), await served.live("b")
        b.member = replace(
            b.member, mesh=replace(b.member.mesh, coordinators=(served.address, f"localhost:{served.port}"))
        )
        served.mesh.first.steady.now += 10 * limits.REGISTRY_OLD_S

        def left() -> list[str]:
            return [e.node for e in served.mesh.events.all if isinstance(e, SessionClosed) and "has not heard" in e.why]

        await until(lambda: b.follower.link.coordinator == f"localhost:{served.port}", WITHIN_S)
        beats = a.follower.link.beat_at, b.follower.link.beat_at
        await until(lambda: b.follower.link.connected and b.follower.link.beat_at > beats[1] + 0.3, WITHIN_S)
        assert a.follower.link.beat_at > beats[0]
        assert left() == [b.computer.id]
