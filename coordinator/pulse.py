"""Whether the registry answers, how long ago it last did, and how each of its members is: asked every few seconds
(MON-6, OPS-2).

What is served may be old while it does not answer; nodes are told how old (`age_s`), and move where it is fresh.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from coordinator.feed import Feed
from coordinator.registry import Endpoint, Health, Registry

EVERY_S: Final = 2.0
AGAIN_S: Final = 0.2  # another member may answer
ENDPOINTS_EVERY_S: Final = 10.0


class Pulse:
    """`steady` is a monotonic clock."""

    def __init__(self, feed: Feed, registry: Registry, steady: Callable[[], float]) -> None:
        self._feed, self._registry, self._steady = feed, registry, steady
        self.health = Health(False, "not asked yet", answers=False)
        self.endpoints: tuple[Endpoint, ...] = ()
        self._answered = steady()
        self._looked = float("-inf")
        feed.board.on_change.append(lambda *_: self._hear())

    @property
    def age_s(self) -> float:
        """Since the registry last answered a read that needs a majority, or its watch brought what was said.

        After an election etcd 3.4 may keep such reads waiting for 7 s while all else goes on.
        """
        return max(0.0, self._steady() - self._answered)

    async def run(self) -> None:
        """For ever."""
        while True:
            await self.ask()
            await asyncio.sleep(EVERY_S if self.health.answers else AGAIN_S)

    async def ask(self) -> None:
        """Once."""
        self.health = await self._registry.health()
        self._feed.following = self.health.ok
        if self.health.answers:
            self._hear()
        if self._steady() - self._looked >= ENDPOINTS_EVERY_S:
            await self.look()

    def _hear(self) -> None:
        self._answered = self._steady()

    async def look(self) -> None:
        """At each member."""
        self._looked = self._steady()
        self.endpoints = await self._registry.endpoints()
