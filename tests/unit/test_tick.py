"""Loops that look now and then wake the process together (OPS-1)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshctl.agent import tick

PHASES = st.floats(0, 1, exclude_max=True)
TIMES = st.floats(0, 1e7)


@given(TIMES, PHASES, st.sampled_from((1.0, 2.0, 10.0)), st.sampled_from((0.0, 0.5)))
def test_next_moment_comes_within_one_period_and_never_now(
    now: float, phase: float, every_s: float, later_s: float
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tick, "_PHASE", phase)
        _next_is_one_period_on(now, every_s, later_s)


def _next_is_one_period_on(now: float, every_s: float, later_s: float) -> None:
    at = tick.following(now, every_s, later_s=later_s)
    assert now < at <= now + every_s * (1 + 1e-5)
    assert tick.following(at, every_s, later_s=later_s) == pytest.approx(at + every_s)


@given(TIMES)
def test_slow_loop_wakes_only_when_a_quick_one_does(now: float) -> None:
    at = tick.following(now, 2.0)
    assert tick.following(at - 1e-3, 1.0) == pytest.approx(at)


@given(TIMES)
def test_what_keeps_apart_shares_no_moment(now: float) -> None:
    apart = tick.following(now, 2.0, later_s=0.5)
    assert tick.following(apart - 0.1, 1.0) - apart == pytest.approx(0.5)
