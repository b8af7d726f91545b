"""What a coordinator does by itself, now and then: old tombstones, ephemeral nodes that stayed away, notes of dead
coordinators, old keys (ACC-5, NET-1, NET-5, OPS-2).

Each act is the same transaction an operator's command would be; two coordinators that do it at once do it once.
"""

from __future__ import annotations

import asyncio
import time

from coordinator.feed import Feed
from coordinator.fleet import Fleet
from coordinator.herald import Herald
from coordinator.members import Members
from coordinator.post import Post
from coordinator.questions import Questions
from coordinator.records import Why
from coordinator.registry import COORDINATORS
from coordinator.rotations import Rotations
from meshctl.errors import MeshError
from meshctl.mesh import limits, rotation

EVERY_S = 30.0
NOTES_KEPT_S = 3600.0  # of a coordinator that fell silent: long enough to be seen in `status`


async def run(
    members: Members,
    feed: Feed,
    fleet: Fleet,
    herald: Herald,
    questions: Questions,
    post: Post,
    rotations: Rotations,
    rotate_after_s: float,
) -> None:
    """For ever. A registry that does not answer is tried again next time. With `rotate_after_s` 0 no key is too old."""
    while True:
        await asyncio.sleep(EVERY_S)
        try:
            await members.sweep()
            await remove_absent(members, feed, fleet)
            await take_down_old_notes(fleet, herald)
            await questions.sweep()
            await herald.take_down(post.is_left)
            await rotate_old(rotations, feed, rotate_after_s, now=time.time())
        except MeshError:
            continue


async def remove_absent(members: Members, feed: Feed, fleet: Fleet) -> None:
    """Take out ephemeral nodes that had no stream to any coordinator for EPHEMERAL_AWAY_S, as long as we listened.

    No wall clock is asked, and what was before our start we cannot know.
    """
    for node, member in list(feed.members.items()):
        if member.record.ephemeral and fleet.away_s(node) > limits.EPHEMERAL_AWAY_S:
            await members.depart(node, Why.REMOVED, "ephemeral and away", "coordinator")


async def take_down_old_notes(fleet: Fleet, herald: Herald) -> None:
    """Of coordinators that have been silent for NOTES_KEPT_S."""
    for other in fleet.known():
        if other.silent and fleet.age_s(other) > NOTES_KEPT_S:
            await herald.take_down(lambda path, of=other: path.startswith(f"{COORDINATORS}{of.id}/"))  # type: ignore[misc]


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
