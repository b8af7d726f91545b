"""The retired key: for whom it is still kept, and when it is let go (MESH-STR-001, NET-5)."""

from __future__ import annotations

import asyncio
import secrets

import pytest

from meshctl.agent import retired as module
from meshctl.agent.retired import Retired
from meshctl.mesh.keys import PrivateKey
from meshctl.mesh.model import NodeId

B, C, D = NodeId("b"), NodeId("c"), NodeId("d")


def key() -> PrivateKey:
    return PrivateKey(secrets.token_bytes(32))


async def test_it_is_kept_for_those_who_have_not_refused_it_and_then_let_go() -> None:
    retired, old, told = Retired(), key(), []
    retired.on_retired = lambda: told.append(1)
    assert retired.of(B) is None
    retired.retire(old, [B, C])
    assert (retired.of(B), retired.of(C), retired.of(D), told) == (old, old, None, [1])
    retired.refused(B, old)
    assert (retired.of(B), retired.of(C)) == (None, old)
    retired.refused(C, old)
    assert vars(retired)["_key"] is None
    assert vars(retired)["_timer"] is None


async def test_a_later_rotation_takes_its_place_and_an_old_refusal_says_nothing_of_it() -> None:
    retired, old, later = Retired(), key(), key()
    retired.retire(old, [B])
    retired.retire(later, [B])
    retired.refused(B, old)
    retired.refused(B, None)
    assert retired.of(B) == later


async def test_it_is_let_go_in_time_whoever_was_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_S", 0.0)
    retired, old = Retired(), key()
    retired.retire(old, [B])
    while retired.of(B):
        await asyncio.sleep(0)
    assert vars(retired)["_key"] is None


async def test_a_node_without_peers_keeps_nothing_and_nothing_shows_it() -> None:
    retired, old = Retired(), key()
    retired.retire(old, [])
    assert vars(retired)["_key"] is None
    retired.retire(old, [B])
    assert old.reveal() not in f"{retired!r} {vars(retired)!r}"
