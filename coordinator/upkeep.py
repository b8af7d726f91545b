"""What a coordinator does by itself, now and then: old tombstones, ephemeral nodes that stayed away, old keys (ACC-5,
NET-1, NET-5).

Each act is the same transaction an operator's command would be; two coordinators that do it at once do it once.
"""

from __future__ import annotations

import asyncio
import time

from coordinator.feed import Feed
from coordinator.members import Members
from coordinator.presence import PresenceTable
from coordinator.records import Why
from coordinator.registry import Registry
from coordinator.rotations import Rotations
from meshctl.errors import MeshError
from meshctl.mesh import limits, rotation

EVERY_S = 30.0
HEALTH_EVERY_S = 2.0


async def ask_registry(feed: Feed, registry: Registry) -> None:
    """For ever: whether the registry can decide now, for /readyz and the metrics."""
    while True:
        feed.following = (await registry.health()).ok
        await asyncio.sleep(HEALTH_EVERY_S)


async def run(
    members: Members, feed: Feed, presence: PresenceTable, rotations: Rotations, rotate_after_s: float
) -> None:
    """For ever. A registry that does not answer is tried again next time. With `rotate_after_s` 0 no key is too old."""
    started = time.time()
    while True:
        await asyncio.sleep(EVERY_S)
        try:
            await members.sweep()
            await remove_absent(members, feed, presence, started, now=time.time())
            await rotate_old(rotations, feed, rotate_after_s, now=time.time())
        except MeshError:
            continue


async def remove_absent(members: Members, feed: Feed, presence: PresenceTable, started: float, *, now: float) -> None:
    """Take out ephemeral nodes without a stream for EPHEMERAL_AWAY_S. `started`: what was before, we cannot know."""
    for node, member in list(feed.members.items()):
        held = presence.get(node)
        last = held.since if held else max(started, member.record.created_at)
        absent = held is None or not held.connected
        if member.record.ephemeral and absent and now - last > limits.EPHEMERAL_AWAY_S:
            await members.depart(node, Why.REMOVED, "ephemeral and away", "coordinator")


async def rotate_old(rotations: Rotations, feed: Feed, after_s: float, *, now: float) -> None:
    """Open a rotation of the connected nodes whose key is too old. Each has its own limit: they come one by one."""
    if after_s and not (feed.turn and feed.turn.is_open):
        old = tuple(
            node
            for node, member in feed.members.items()
            if now - member.record.rotated_at > rotation.limit_s(node, after_s) and rotations.is_connected(node)
        )
        if old:
            await rotations.open(old, force=False, reason="age", actor="coordinator")
