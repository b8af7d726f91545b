"""Whose turn it is to be sent what is new: all streams in one pass, in slices, one pass at a time (NET-2, OPS-3).

A change starts a pass; changes during it wait for the next one and reach each stream in one frame. After a pass there
is a pause in proportion, so joins and reports are served however fast the registry moves; the first change after a
quiet time waits for nothing. While many join at once, passes are half a second apart, but for the news that somebody is
gone. Within a pass only so many streams write at a time, and whoever does not take what it is sent is left behind.
Heartbeats come from one wheel, each stream at its own phase. Knows nothing of frames or gRPC.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from meshctl.mesh import pacing

SLICE: Final = 64  # streams woken in one turn of the event loop
WRITING: Final = 256  # at most, in a pass: what else there is to do is done in between
CROWDED_S: Final = 0.5  # from pass to pass while many join: a pass over 1,000 streams takes what ten joins do
CROWDED_PART: Final = 4  # and so many times what the last pass took: the larger the mesh, the fewer of them
CROWDED_MOST_S: Final = 2.0
CROWD_LOOK_S: Final = 0.05  # whether they have joined
STUCK_S: Final = 0.5  # without any of them finishing: they are stuck, the others go on
SPOKES: Final = 20  # many beats at a time cost half of what each costs alone (measured)


class Stream(Protocol):
    """What rests between its turns. `rest` resolves to whether a heartbeat is due."""

    rest: asyncio.Future[bool]

    def is_behind(self) -> bool:
        """Whether there is something new for it."""
        ...


class Passes:
    """`moved` says that there is news; `rests` and `remove` are told by the streams. `nodes` gives the mesh's size,
    `crowded` whether many are about to join.
    """

    def __init__(self, nodes: Callable[[], int], crowded: Callable[[], bool] = lambda: False) -> None:
        self._nodes, self._crowded = nodes, crowded
        self._loop = asyncio.get_running_loop()
        self._spokes: list[dict[Stream, None]] = [{} for _ in range(SPOKES)]
        self._at: dict[Stream, int] = {}
        self._next_spoke = 0
        self._line: deque[Stream] = deque()
        self._writing: set[Stream] = set()
        self._passing = self._asked = self._slicing = self._hurried = False
        self._began = self._not_before = self._kept_until = 0.0
        self._finished = 0  # writes, ever
        self._watch: asyncio.TimerHandle | None = None
        self._wheel: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._at)

    def add(self, stream: Stream) -> None:
        """A stream begins."""
        spoke = len(self._at) % SPOKES
        self._at[stream] = spoke
        self._spokes[spoke][stream] = None
        if self._wheel is None:
            self._turn_wheel()

    def remove(self, stream: Stream) -> None:
        """It has ended."""
        del self._spokes[self._at.pop(stream)][stream]
        self.rests(stream)

    def moved(self) -> None:
        """There is news, for some stream or for all: a pass now, or when the one before and its pause are over."""
        if self._passing or self._asked:
            self._asked = True
            return
        wait = self._not_before - self._loop.time()
        if wait > 0:
            self._asked = True
            self._loop.call_later(wait, self._begin)
        else:
            self._begin()

    def hurry(self) -> None:
        """The next pass is not kept back for the sake of those who join: somebody has been revoked, or has left."""
        self._hurried = True

    def rests(self, stream: Stream) -> None:
        """It has written what there was for it."""
        if stream in self._writing:
            self._writing.remove(stream)
            self._finished += 1
            self._go_on()

    # ---- one pass ----------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        if self._loop.time() < self._kept_until and not self._hurried and self._crowded():
            self._asked = True
            self._loop.call_later(CROWD_LOOK_S, self._begin)
            return
        self._passing, self._asked, self._hurried, self._began = True, False, False, self._loop.time()
        self._line.extend(stream for stream in self._at if stream.is_behind())
        self._watch = self._loop.call_later(STUCK_S, self._look, self._finished)
        self._go_on()

    def _go_on(self) -> None:
        if self._line:
            if not self._slicing and len(self._writing) < WRITING:
                self._slicing = True
                self._loop.call_soon(self._slice)
        elif self._passing and not self._writing:
            self._end()

    def _slice(self) -> None:
        self._slicing = False
        for _ in range(min(SLICE, len(self._line))):
            stream = self._line.popleft()
            if stream in self._at and not stream.rest.done():
                self._writing.add(stream)
                stream.rest.set_result(False)
        self._go_on()

    def _look(self, finished: int) -> None:
        """Leave behind who is stuck."""
        if finished == self._finished:
            self._writing.clear()
            self._go_on()
        if self._passing:
            self._watch = self._loop.call_later(STUCK_S, self._look, self._finished)

    def _end(self) -> None:
        now = self._loop.time()
        self._passing = False
        if self._watch is not None:
            self._watch.cancel()
        lasted = now - self._began
        self._kept_until = now + min(max(CROWDED_S, CROWDED_PART * lasted), CROWDED_MOST_S)
        pause = pacing.pause_s(lasted)
        self._not_before = now + pause
        if self._asked:
            self._loop.call_later(pause, self._begin)

    # ---- heartbeats --------------------------------------------------------------------------------------------------

    def _turn_wheel(self) -> None:
        if not self._at:
            self._wheel = None
            return
        self._wheel = self._loop.call_later(pacing.heartbeat_s(self._nodes()) / SPOKES, self._turn_wheel)
        self._next_spoke = (self._next_spoke + 1) % SPOKES
        for stream in self._spokes[self._next_spoke]:
            if not stream.rest.done():
                stream.rest.set_result(True)
