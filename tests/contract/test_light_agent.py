"""The light agents of the benches see what a real follower sees, frame by frame (NET-2, OPS-3)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from meshctl.wire import session
from meshctl.wire.session import DownFrame
from tests.bench.joiner import Joiner
from tests.bench.swarm import Agent, Map, Swarm
from tests.harness.front import until
from tests.harness.served import WITHIN_S, Live, Served, serving


class RecordingSwarm(Swarm):
    """Keeps what agents take."""

    def __init__(self, served: Served) -> None:
        mesh = served.mesh.mesh
        super().__init__(mesh.ca, mesh.incarnation, [served.front.addresses[0]])
        self.taken: list[DownFrame] = []

    def stepped(self, held: Map, raws: tuple[bytes, ...]) -> Map | None:
        self.taken += map(session.decode_down, raws)
        return super().stepped(held, raws)

    async def until(self, done: Callable[[], bool]) -> None:
        """Turn in a thread of its own: the coordinator's loop is this one."""
        assert await asyncio.to_thread(self.loop.until, done, WITHIN_S)


def light(swarm: Swarm, node: Live) -> Agent:
    agent = Agent(swarm, 0, node.computer.identity, node.member.certificate)
    swarm.agents.append(agent)
    agent.connect()
    return agent


async def test_light_agent_and_real_follower_see_the_same_frames(tmp_path: Path) -> None:
    async with serving(tmp_path / "run") as served:
        quiet = await served.node("quiet")
        real = await served.live("real")
        swarm = RecordingSwarm(served)
        agent = light(swarm, quiet)
        await swarm.until(lambda: len(agent.map.nodes) == 2)
        begin = len([frame for frame in real.book.frames if frame.to_revision <= agent.map.revision])
        swarm.taken.clear()
        for name in ("x", "y", "z"):
            await served.node(name)
            await swarm.until(lambda: agent.map.revision == served.mesh.first.feed.revision)
            await until(lambda: real.book.roster.revision == agent.map.revision)
        assert swarm.taken == real.book.frames[begin:]
        assert (agent.map.hash, len(agent.map.nodes)) == (real.book.map_hash, 5)
        held = served.mesh.first.presence[agent.identity.id]
        await swarm.until(lambda: held.applied == agent.map.revision)


async def test_light_joiner_becomes_a_member_and_leaves(tmp_path: Path) -> None:
    async with serving(tmp_path / "run") as served:
        swarm = RecordingSwarm(served)
        joiner = Joiner(swarm, await served.mesh.token(), "newcomer", 1)
        joiner.start()
        await swarm.until(lambda: bool(joiner.failed or (joiner.agent and joiner.agent.map.nodes)))
        assert not joiner.failed
        assert joiner.agent is not None
        assert {member.node.name for member in served.mesh.first.feed.members.values()} == {"newcomer"}
        joiner.agent.leave()
        await swarm.until(lambda: joiner.agent is not None and joiner.agent.left)
        assert not served.mesh.first.feed.members


async def test_light_agent_resumes_without_moving_the_map(tmp_path: Path) -> None:
    async with serving(tmp_path / "run") as served:
        swarm = RecordingSwarm(served)
        agent = light(swarm, await served.node("a"))
        await swarm.until(lambda: len(agent.map.nodes) == 1)
        served.front.cut(agent.identity.id)
        await swarm.until(lambda: not agent.welcomed)
        await served.node("b")
        await swarm.until(lambda: len(agent.map.nodes) == 2)
        assert [frame.snapshot for frame in swarm.taken] == [True, False]
