"""When a node leaves a coordinator that still talks to it: real gRPC and TLS front, the agent's own follower (NET-2,
OPS-2)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from meshctl.events import SessionClosed
from meshctl.mesh import limits
from meshctl.mesh.rotation import Phase
from meshctl.wire import session
from meshctl.wire.session import UpFrame
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


async def test_welcome_says_whose_turn_it_is(tmp_path: Path) -> None:
    """A node that moves in the middle of its turn must not take it for ended, for as long as a frame takes."""
    async with serving(tmp_path / "run") as served:
        a, b = await served.live("a"), await served.live("b")
        rotations = served.mesh.first.rotations
        await rotations.open(rotations.targets(["a"], (), everybody=False), force=False, reason="", actor="operator:0")
        await until(lambda: a.follower.link.order is not None, WITHIN_S)
        for node, phase in ((a, Phase.PREPARE), (b, Phase.CLOSED)):
            async with served.open(node) as wire:
                at = node.book.roster.incarnation, node.book.roster.revision, node.book.map_hash
                call: Any = wire.stream_stream(session.METHOD, None, None)()
                await call.write(session.serialize_up(session.encode_up(UpFrame(resume=at))))
                frame = session.decode_down(await call.read())
                call.cancel()
            assert frame.beat is not None
            assert frame.order is not None
            assert frame.order.phase is phase
        assert b.follower.link.order is None
