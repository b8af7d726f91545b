"""What coordinators know of each other, through etcd alone: who lives, and which nodes are connected where (OPS-2).

    coordinator/<id>/beat        said at least every BEAT_EVERY_S: release, addresses, revision, figures, and the nodes
                                 of other coordinators that its own cannot reach
    coordinator/<id>/roll/<c>    nodes whose id begins with c that are connected there, with their verdicts

No clock is compared with another's. What a coordinator said ages on the *reader's* steady clock, and that one stands
still while the reader itself is deaf: asleep, or cut off from etcd. It knows that by its own beat, which comes back
through the same watch, in order: whoever hears himself has heard all that others said before. So silence is the
other's, never ours, and no node is taken for absent because we could not listen. Decides nothing about nodes; writes
nothing (herald.py does).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from coordinator import records
from coordinator.board import Board
from coordinator.presence import PresenceTable
from coordinator.registry import COORDINATORS, Record
from meshctl.errors import ProtocolError
from meshctl.mesh.model import NodeId

BEAT_EVERY_S: Final = 5.0  # a beat is 0.5 kB: three coordinators write 0.6 records a second
SILENT_S: Final = 3 * BEAT_EVERY_S  # two beats may be lost to an election of etcd's
DEAF_S: Final = 1.5 * BEAT_EVERY_S  # with what others may owe by then it stays below SILENT_S
TICK_S: Final = 1.0
NAMED: Final = 64  # nodes that a beat names
ACCUSED: Final = 256  # pairs that a beat names: 7 to 15 kB, while there are so many


@dataclass(frozen=True, slots=True)
class Beat:
    """What a coordinator says of itself. `started` in unix seconds by its own clock, `p50` and `p99` in seconds."""

    home: str  # machine and data directory: a successor there takes the notes of its predecessor down
    release: str = ""
    started: float = 0.0
    addresses: tuple[str, ...] = ()
    revision: int = 0  # of its map
    connected: int = 0
    behind: int = 0  # of those connected, how many have not applied `revision`
    oldest: int = 0  # least and greatest revision applied by those connected; 0 while there is none
    newest: int = 0
    laggards: dict[str, int] = field(default_factory=dict)  # NAMED of those behind: the revision each applied
    differ: tuple[str, ...] = ()  # NAMED of those whose kernel is not what it should be
    releases: dict[str, int] = field(default_factory=dict)  # of nodes
    p50: float = 0.0  # from hearing of a change to a node's acknowledgement
    p99: float = 0.0
    samples: int = 0
    unreached: dict[str, tuple[str, ...]] = field(default_factory=dict)  # node elsewhere -> ours that cannot reach it
    unreached_cut: bool = False  # there are more than ACCUSED such pairs; these are the newest

    @property
    def name(self) -> str:
        """What people call it: where nodes reach it, else where it lives."""
        return self.addresses[0] if self.addresses else self.home


@dataclass(frozen=True, slots=True)
class Roll:
    """Nodes that are connected: id -> (since when, in unix seconds by that coordinator's clock; verdict)."""

    nodes: dict[str, tuple[int, str]]


@dataclass(slots=True)
class Other:
    """One coordinator as we hear of it. `heard` on the listening clock."""

    id: str
    heard: float
    beat: Beat = field(default_factory=lambda: Beat(""))
    rolls: dict[str, Roll] = field(default_factory=dict)
    silent: bool = False

    def nodes(self) -> Iterator[tuple[NodeId, tuple[int, str]]]:
        """All that are connected there."""
        return ((NodeId(node), seen) for roll in self.rolls.values() for node, seen in roll.nodes.items())

    def find(self, node: NodeId) -> tuple[int, str] | None:
        """One of them."""
        roll = self.rolls.get(shard(node))
        return roll.nodes.get(node) if roll else None


def shard(node: NodeId) -> str:
    """Rolls are cut by the first character: one of 32, so that a verdict that flaps rewrites a thirty-second."""
    return node[:1]


def beat_path(coordinator: str) -> str:
    """Where a coordinator's beat stands."""
    return f"{COORDINATORS}{coordinator}/beat"


def roll_path(coordinator: str, of: str) -> str:
    """Where a part of its roll stands."""
    return f"{COORDINATORS}{coordinator}/roll/{of}"


class Fleet:
    """The view of the coordinator called `me`. `steady` is its monotonic clock; `clock` counts while it listens."""

    def __init__(self, me: str, presence: PresenceTable, board: Board, steady: Callable[[], float]) -> None:
        self.me = me
        self.clock = 0.0
        self._presence, self._steady = presence, steady
        self._others: dict[str, Other] = {}
        self._left: dict[NodeId, float] = {}  # when a node's last connection anywhere ended
        self._ticked = self._echoed = steady()
        board.on_change.append(self._changed)
        presence.on_closed.append(self._closed)

    # ---- questions ---------------------------------------------------------------------------------------------------

    def others(self) -> list[Other]:
        """Coordinators besides this one that were heard of lately, in the order of their ids."""
        return [other for _, other in sorted(self._others.items()) if not other.silent and other.beat.home]

    def known(self) -> list[Other]:
        """The same, and those that fell silent within the last hour (upkeep.py takes their notes down)."""
        return [other for _, other in sorted(self._others.items()) if other.beat.home]

    def age_s(self, other: Other) -> float:
        """How long it has been silent, while we listened."""
        return self.clock - other.heard

    def where(self, node: NodeId) -> tuple[Other, int, str] | None:
        """At which other coordinator a node is connected, since when, with which verdict; the newest of several."""
        found = [(other, *seen) for other in self.others() if (seen := other.find(node))]
        return max(found, key=lambda entry: entry[1], default=None)

    def is_connected(self, node: NodeId) -> bool:
        """Whether the node has a live stream anywhere."""
        return self._presence.is_connected(node) or any(other.find(node) for other in self.others())

    def away_s(self, node: NodeId) -> float:
        """How long the node has been connected nowhere, as far as we listened.

        One that was never seen counts from the first question about it: what was before we cannot know.
        """
        return 0.0 if self.is_connected(node) else self.clock - self._left.setdefault(node, self.clock)

    def connected(self) -> set[NodeId]:
        """All nodes with a live stream anywhere."""
        here = {node for node, _ in self._presence.connected()}
        return here.union(*({node for node, _ in other.nodes()} for other in self.others()))

    # ---- what happens ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """For ever: let time pass."""
        while True:
            self.tick()
            await asyncio.sleep(TICK_S)

    def tick(self) -> None:
        """Time passes only while we hear ourselves: what we slept through counts as one tick."""
        now = self._steady()
        if now - self._echoed <= DEAF_S:
            self.clock += min(now - self._ticked, 2 * TICK_S)
        self._ticked = now
        for other in self._others.values():
            if not other.silent and self.age_s(other) > SILENT_S:
                self._mute(other)

    def forget(self, node: NodeId) -> None:
        """The node is gone from the mesh."""
        self._left.pop(node, None)

    def _closed(self, node: NodeId) -> None:
        self._left[node] = self.clock

    def _mute(self, other: Other) -> None:
        other.silent = True
        for node, _ in other.nodes():
            self._left[node] = self.clock

    def _changed(self, path: str, record: Record | None) -> None:
        if not path.startswith(COORDINATORS):
            return
        who, _, what = path.removeprefix(COORDINATORS).partition("/")
        if who == self.me:
            self._echoed = self._steady()
            return
        try:
            self._take(who, what, record)
        except ProtocolError:  # of a release that speaks of itself otherwise: it is not counted, and nothing breaks
            self._others.pop(who, None)

    def _take(self, who: str, what: str, record: Record | None) -> None:
        other = self._others.get(who)
        if other is None:
            if record is None:
                return
            other = self._others[who] = Other(who, self.clock)
        if what == "beat":
            if record is None:
                self._mute(other)
                del self._others[who]
                return
            other.beat, other.heard, other.silent = records.decode(record.value, Beat), self.clock, False
            return
        _, _, part = what.partition("/")
        before = other.rolls.pop(part, None)
        after = records.decode(record.value, Roll) if record else None
        if after:
            other.rolls[part] = after
        for node in (before.nodes if before else {}).keys() - (after.nodes if after else {}).keys():
            self._left[NodeId(node)] = self.clock
