"""When a storm of joins is one (OPS-3)."""

from __future__ import annotations

from coordinator import crowd
from coordinator.crowd import Crowd


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_few_or_slow_joins_are_no_crowd() -> None:
    clock = Clock()
    made = Crowd(clock)
    with made.joining():
        for _ in range(3 * crowd.MANY):
            made.admitted()
            clock.now += crowd.WITHIN_S / (crowd.MANY - 1)
            assert not made.is_there()


def test_strangers_who_only_try_are_no_crowd() -> None:
    made = Crowd(Clock())
    for _ in range(1000):
        made.joining().__enter__()
    assert not made.is_there()


def test_storm_is_over_a_moment_after_the_last_one() -> None:
    clock = Clock()
    made = Crowd(clock)
    with made.joining():
        for _ in range(crowd.MANY):
            made.admitted()
        clock.now += 2 * crowd.GAP_S
        assert made.is_there(), "somebody is about to come"
    assert not made.is_there()
    made.admitted()
    assert made.is_there()
    clock.now += 1.5 * crowd.GAP_S
    assert not made.is_there()
