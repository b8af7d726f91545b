"""Whom do I ping in this round? (node ids, round) -> peers, with no message exchanged (NET-7).

Every node sorts the ids by hashes of them into the same rings. Three schedules run on the rings:

- the *expander*: each node watches its two neighbours on each of four rings, every round: a dead node is noticed in
  seconds by up to eight others at any size. (Simulated with 8 neighbours: 99.4 % of the living stay connected when half
  fail.)
- the *sweep*: on a fifth ring a node leads the pairs with those who follow it by 1 .. N/2 places, spread over the
  rounds of a coverage period. All nodes use the same distances in a round: everybody sends and receives equally many.

- the *deep* round: every node tries each of its peers in turn, in the order of the fifth ring, with the experiments
  that are too dear for the sweep: within an hour at 50 nodes, within a day at 1,000.

A ring changes only next to who comes or goes. Below ten nodes everybody pings everybody, every round.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from meshctl.mesh import limits
from meshctl.mesh.model import NodeId

_WATCH_RINGS: Final = 4  # 8 neighbours; 4 fall apart when half the nodes fail, 16 cost twice for nothing
_EVERYBODY_BELOW: Final = 10  # 8 neighbours and oneself
_LED_PER_S: Final = 8.0  # pings of the sweep per node and second: N/2 pairs in N/16 s
_COVERAGE_MIN_S: Final = 5.0
_COVERAGE_MAX_S: Final = 60.0
_DEEP_S: Final = 72.0
_DEEP_FULL_NODES: Final = 50
_DEEP_LEAST_S: Final = 10.0
_BUDGET_NODES: Final = 1000  # beyond, the sweep keeps its rate and takes longer


def coverage_s(nodes: int) -> float:
    """Seconds within which every pair of a mesh of `nodes` is tested: N/16, from 5 to 60; N/16 beyond 1,000 nodes."""
    unhurried = nodes / 2 / _LED_PER_S
    return max(_COVERAGE_MIN_S, unhurried if nodes > _BUDGET_NODES else min(unhurried, _COVERAGE_MAX_S))


@dataclass(frozen=True, slots=True)
class Schedule:
    """One node's part. `watch`: pinged every round; `sweep`: one slot of led pairs per round, over and over."""

    watch: tuple[NodeId, ...] = ()
    sweep: tuple[tuple[NodeId, ...], ...] = ((),)
    coverage_s: float = _COVERAGE_MIN_S

    def due(self, turn: int) -> tuple[NodeId, ...]:
        """Whom to ping in round `turn`, each once."""
        return tuple(dict.fromkeys(self.watch + self.sweep[turn % len(self.sweep)]))


def schedule(nodes: Iterable[NodeId], me: NodeId) -> Schedule:
    """The part of `me` among `nodes`, which include it. All nodes that know the same ids agree, in whatever order."""
    ids = sorted(set(nodes))
    others = tuple(node for node in ids if node != me)
    coverage = coverage_s(len(ids))
    if len(ids) < _EVERYBODY_BELOW:
        return Schedule(others, ((),), coverage)
    hashes = {node: _hash(node) for node in ids}
    watch: dict[NodeId, None] = {}
    for number in range(_WATCH_RINGS):
        ring = _ring(ids, hashes, number)
        at = ring.index(me)
        watch[ring[at - 1]] = watch[ring[(at + 1) % len(ring)]] = None
    rounds = max(1, math.ceil(coverage / limits.WATCH_EVERY_S) - 1)  # over before the period is
    led = _led(_ring(ids, hashes, _WATCH_RINGS), me)
    return Schedule(tuple(watch), tuple(led[slot::rounds] for slot in range(rounds)), coverage)


def deep_every_s(nodes: int) -> float:
    """Seconds between two peers that one node examines deeply: 72 from 50 nodes on, 10 at least."""
    return max(_DEEP_LEAST_S, _DEEP_S * min(1.0, nodes / _DEEP_FULL_NODES))


def deep_period_s(nodes: int) -> float:
    """Seconds within which a node has examined all its peers: 1 h at 50 nodes, 20 h at 1,000."""
    return deep_every_s(nodes) * max(nodes - 1, 1)


def deep(nodes: Iterable[NodeId], me: NodeId, turn: int) -> NodeId:
    """Whom `me` examines in its `turn`. `nodes` include it, and at least one other."""
    ids = sorted(set(nodes))
    ring = _ring(ids, {node: _hash(node) for node in ids}, _WATCH_RINGS)
    at = ring.index(me)
    return ring[(at + 1 + turn % (len(ring) - 1)) % len(ring)]


def _hash(node: NodeId) -> bytes:
    return hashlib.blake2b(node.encode(), person=b"meshctl/sched/v1").digest()


def _ring(ids: list[NodeId], hashes: dict[NodeId, bytes], number: int) -> list[NodeId]:
    """The ids in the order of the `number`-th 12 bytes of their hashes."""
    start = 12 * number
    return sorted(ids, key=lambda node: hashes[node][start : start + 12])


def _led(ring: list[NodeId], me: NodeId) -> tuple[NodeId, ...]:
    """Those who follow `me` by less than half the ring, and of two opposite nodes the one of the first half leads."""
    at, size = ring.index(me), len(ring)
    opposite = size % 2 == 0 and at < size // 2
    return tuple(ring[(at + distance) % size] for distance in range(1, (size - 1) // 2 + 1 + opposite))
