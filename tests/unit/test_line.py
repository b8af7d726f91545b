"""Who is served next when many wait (OPS-4, OPS-3)."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from coordinator import line
from coordinator.line import Line

HERE, THERE = b"here", b"there"


def served(waiting: Line[int], *, now: float, held: Counter[bytes] | None = None, free: int = 64) -> int | None:
    item = waiting.first(held or Counter(), free, now=now)
    for source in (HERE, THERE) if item is not None else ():
        waiting.discard(source, item)
    return item


def test_addresses_take_turns_and_within_one_the_first_comes_first() -> None:
    waiting: Line[int] = Line()
    for item in range(3):
        waiting.add(HERE, item, now=0)
    waiting.add(THERE, 10, now=1)
    assert [served(waiting, now=2) for _ in range(5)] == [0, 10, 1, 2, None]
    assert len(waiting) == 0


def test_address_that_holds_its_share_waits_and_others_do_not() -> None:
    waiting: Line[int] = Line()
    waiting.add(HERE, 1, now=0)
    waiting.add(THERE, 2, now=0)
    held = Counter({HERE: 40})
    assert served(waiting, now=0, held=held, free=20) == 2
    assert served(waiting, now=0, held=held, free=20) is None
    assert served(waiting, now=0, free=0) is None
    assert served(waiting, now=0, held=held, free=21) == 1


def test_after_a_long_wait_the_newest_come_first_and_nobody_is_passed_over_for_ever() -> None:
    waiting: Line[int] = Line()
    for item in range(100):
        waiting.add(HERE, item, now=0)
    late = line.LONG_S
    order = [served(waiting, now=late) for _ in range(8)]
    assert order == [99, 98, 97, 0, 96, 95, 94, 1]
    waiting.add(HERE, 1000, now=late)
    assert served(waiting, now=late) == 1000


def served_within(seconds: float) -> int:
    """Of 2,000 clients who come within ten seconds, 40 a second find a place, and need it for 0.3 s. Each gives up
    after 10 s and comes again within one. How many have been served?
    """
    dice, waiting, done = random.Random(7), Line[int](), 0
    coming = {client: dice.uniform(0, 10) for client in range(2000)}
    since: dict[int, float] = {}
    placed: dict[int, float] = {}
    for step in range(int(seconds * 40)):
        now = step / 40
        for client in [client for client, at in coming.items() if at <= now]:
            since[client] = now
            del coming[client]
            waiting.add(HERE, client, now=now)
        for client in [client for client, at in placed.items() if now - at >= 0.3]:
            del placed[client], since[client]
            done += 1
        for client in [client for client, at in since.items() if now - at >= 10]:
            del since[client]
            placed.pop(client, None)
            waiting.discard(HERE, client)
            coming[client] = now + dice.uniform(0, 1)
        if (client := served(waiting, now=now)) is not None:
            placed[client] = now
    return done


def test_mesh_that_comes_back_faster_than_it_can_be_served_does_not_wait_in_vain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert served_within(40) >= 0.75 * 40 * 40
    monkeypatch.setattr(line, "LONG_S", float("inf"))
    assert served_within(40) < 0.5 * 40 * 40, "first in, first out serves those who give up"
