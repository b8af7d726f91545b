"""Says what this coordinator is and who is connected to it, for the others to read in etcd (OPS-2).

A beat every BEAT_EVERY_S, sooner when what it says about revisions has changed; the roll by parts, each when it has
changed; both at most once a second, in as few transactions as etcd allows. No lease: readers let it age (fleet.py).
What cannot be written is said anew a second later. Decides nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Final

from coordinator import records
from coordinator.convergence import Convergence
from coordinator.feed import Feed
from coordinator.fleet import BEAT_EVERY_S, NAMED, Beat, Roll, beat_path, roll_path, shard
from coordinator.presence import PresenceTable
from coordinator.registry import COMMIT_OPS, COORDINATORS, Committed, Conflict, Delete, Op, Put, Registry
from meshctl.errors import ConflictError, MeshError

SAY_EVERY_S: Final = 1.0
LEAVE_WITHIN_S: Final = 2.0


class Herald:
    """One coordinator's voice. `about` is what never changes of its beat; `unreached` see Asymmetry."""

    def __init__(
        self,
        me: str,
        about: Beat,
        registry: Registry,
        feed: Feed,
        presence: PresenceTable,
        convergence: Convergence,
        steady: Callable[[], float],
        unreached: Callable[[], tuple[dict[str, tuple[str, ...]], bool]],
    ) -> None:
        self._unreached = unreached
        self._me, self._about, self._registry = me, about, registry
        self._feed, self._presence, self._convergence, self._steady = feed, presence, convergence, steady
        self._generations: dict[str, int] = {}  # of our own records; a missing one is not there
        self._stale: set[str] = set()  # parts of the roll that have changed since they were written
        self._said: tuple[object, ...] = ()
        self._said_at = float("-inf")
        self._counted: Beat | None = None
        self._counted_at = (-1, -1)
        presence.on_change.append(lambda node: self._stale.add(shard(node)))

    async def run(self) -> None:
        """For ever. What a predecessor left behind is taken down first."""
        cleared = False
        while True:
            with suppress(MeshError):
                cleared = cleared or await self.succeed()
                # Whoever hears what he said is not deaf; a watch that does not bring it is overtaken, and opened anew.
                await self._feed.caught_up(await self.speak())
            await asyncio.sleep(SAY_EVERY_S)

    async def succeed(self) -> bool:
        """Take down the notes of whoever ran from our data directory before; its nodes are not connected to it."""
        homes = {
            path: records.decode(record.value, Beat).home
            for path, record in self._feed.board.held.items()
            if path.startswith(COORDINATORS) and path.endswith("/beat")
        }
        before = {path.removesuffix("beat") for path, home in homes.items() if home == self._about.home}
        await self.take_down(
            lambda path: any(map(path.startswith, before - {beat_path(self._me).removesuffix("beat")}))
        )
        return True

    async def take_down(self, wanted: Callable[[str], bool]) -> None:
        """Remove these notes from the board, as they are known here; one that has just changed stays."""
        found = [record for path, record in self._feed.board.held.items() if wanted(path)]
        for start in range(0, len(found), COMMIT_OPS):
            await self._registry.commit(*(Delete(r.path, r.generation) for r in found[start : start + COMMIT_OPS]))

    async def speak(self) -> int:
        """Write what is new, if anything is -> the revision of it, or 0. Raises MeshError; then it is new still."""
        beat, stale = self.beat(), set(self._stale)
        said = (beat.revision, beat.connected, beat.laggards, beat.behind, beat.differ, beat.releases)
        wanted: dict[str, bytes | None] = {}
        if stale:
            rolls = self._rolls(stale)
            wanted = {roll_path(self._me, of): records.encode(rolls[of]) if of in rolls else None for of in stale}
        if said != self._said or self._steady() - self._said_at >= BEAT_EVERY_S:
            pairs, cut = self._unreached()  # news of these alone is no reason to write: they wait for the next beat
            wanted[beat_path(self._me)] = records.encode(replace(beat, unreached=pairs, unreached_cut=cut))
        if not wanted:
            return 0
        self._stale -= stale
        try:
            revision = await self._write(wanted)
        except BaseException:
            self._stale |= stale
            raise
        if beat_path(self._me) in wanted:
            self._said, self._said_at = said, self._steady()
        return revision

    def beat(self) -> Beat:
        """What we say of ourselves now. It is counted only when a node, or the map, has moved (each acknowledgement is
        such a move): at 5,000 that takes 1 % of a core each second.
        """
        stand = self._feed.revision, self._presence.version
        if self._counted is None or self._counted_at != stand:
            self._counted, self._counted_at = self._count(), stand
        return self._counted

    def _count(self) -> Beat:
        revision, connected = self._feed.revision, dict(self._presence.connected())
        members = {node: held for node, held in connected.items() if node in self._feed.members}
        behind = {node: held.applied for node, held in members.items() if held.applied < revision}
        applied = [held.applied for held in members.values() if held.applied]
        differ = [
            node for node, held in members.items()
            if node not in behind and self._feed.expected_digest(node, held.applied) != held.digest
        ]  # fmt: skip
        return replace(
            self._about,
            revision=revision,
            connected=len(members),
            behind=len(behind),
            oldest=min(applied, default=0),
            newest=max(applied, default=0),
            laggards=dict(sorted(behind.items())[:NAMED]),
            differ=tuple(sorted(differ)[:NAMED]),
            releases=dict(Counter(held.release for held in members.values()).most_common(8)),
            p50=round(self._convergence.quantile(0.5), 4),
            p99=round(self._convergence.quantile(0.99), 4),
            samples=self._convergence.samples,
        )

    def _rolls(self, wanted: set[str]) -> dict[str, Roll]:
        made: dict[str, Roll] = {}
        for node, held in self._presence.connected():
            if (of := shard(node)) in wanted:
                made.setdefault(of, Roll({})).nodes[node] = (int(held.since), held.verdict)
        return made

    async def _write(self, wanted: Mapping[str, bytes | None]) -> int:
        """All of it, or what is left of it the next time. Somebody may have taken our notes down: then we look."""
        ops: list[Op] = []
        revision = 0
        for path, value in wanted.items():
            generation = self._generations.get(path, 0)
            if value is not None:
                ops.append(Put(path, value, generation))
            elif generation:
                ops.append(Delete(path, generation))
        for start in range(0, len(ops), COMMIT_OPS):
            part = ops[start : start + COMMIT_OPS]
            done = await self._registry.commit(*part)
            if isinstance(done, Conflict):
                await self._look([op.path for op in part])
                raise ConflictError("somebody else wrote our notes", "they are written anew")
            assert isinstance(done, Committed)
            revision = done.revision
            for op in part:
                if isinstance(op, Put):
                    self._generations[op.path] = op.generation_expected + 1
                else:
                    self._generations.pop(op.path, None)
        return revision

    async def _look(self, paths: list[str]) -> None:
        for path, record in zip(paths, await self._registry.read(*paths), strict=True):
            if record:
                self._generations[path] = record.generation
            else:
                self._generations.pop(path, None)

    async def leave(self) -> None:
        """Take our notes down, if etcd answers soon: the others need not wait until we have been silent for a while."""
        with suppress(MeshError, TimeoutError):
            async with asyncio.timeout(LEAVE_WITHIN_S):
                paths = list(self._generations)
                await self._look(paths)
                await self._write(dict.fromkeys(paths))
