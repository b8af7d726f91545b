"""Puts together what makes a coordinator one of several: fleet, herald, questions, asks, gather, post, views (OPS-2).

Once, for `serve` and for tests alike. Holds no state itself and decides nothing.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from coordinator.asks import Asks
from coordinator.asymmetry import Asymmetry
from coordinator.convergence import Convergence
from coordinator.feed import Feed
from coordinator.findings import Findings
from coordinator.fleet import Beat, Fleet
from coordinator.gather import Gather
from coordinator.herald import Herald
from coordinator.matrix import Matrix
from coordinator.post import Post
from coordinator.presence import PresenceTable
from coordinator.pulse import Pulse
from coordinator.questions import Questions
from coordinator.registry import Registry
from coordinator.views import Views
from meshctl.mesh.model import MeshInfo


@dataclass(frozen=True, slots=True)
class Fellowship:
    """The parts; `loops` are to run until the coordinator ends."""

    fleet: Fleet
    herald: Herald
    questions: Questions
    asks: Asks
    convergence: Convergence
    views: Views
    post: Post

    def loops(self) -> list[Coroutine[Any, Any, None]]:
        """For ever, each of them."""
        return [self.fleet.run(), self.herald.run(), self.questions.run(), self.post.run(), self.views.pulse.run()]


def fellowship(
    mesh: MeshInfo,
    about: Beat,
    registry: Registry,
    feed: Feed,
    presence: PresenceTable,
    steady: Callable[[], float] = time.monotonic,
) -> Fellowship:
    """Of a coordinator that is new at each start; to be made before the feed loads. `about`: see Herald."""
    me = secrets.token_hex(4)
    fleet = Fleet(me, presence, feed.board, steady)
    convergence = Convergence(feed, presence, steady)
    asymmetry, matrix = Asymmetry(feed, presence, fleet), Matrix(feed, presence, fleet, steady)
    herald = Herald(me, about, registry, feed, presence, convergence, steady, asymmetry.unreached)
    questions = Questions(me, registry, feed.board, fleet)
    asks = Asks(questions, feed, presence, fleet)
    gather = Gather(questions, matrix, feed, fleet, steady)
    pulse, findings = Pulse(feed, registry, steady), Findings(mesh.id, feed, steady)
    views = Views(mesh, feed, presence, asymmetry, matrix, gather, fleet, herald, pulse, findings)
    return Fellowship(fleet, herald, questions, asks, convergence, views, Post(me, registry, feed.board, fleet))
