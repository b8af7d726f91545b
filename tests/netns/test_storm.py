"""Fifty machines with one single-use token, all at once, over real TLS: one comes in, the token is spent once (ACC-3).

No interfaces are needed for that: meshctl.agent.join is what the command line calls, each call with keys of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from meshctl.agent import join
from meshctl.agent.store import Store
from meshctl.config import AgentConfig
from meshctl.errors import MeshError, RefusedError
from meshctl.mesh.token import JoinToken
from tests.harness.mesh import Lab

pytestmark = pytest.mark.root
MANY = 50


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


async def storm(folder: Path, token: str, many: int, name: str = "") -> list[join.Member | MeshError]:
    """How each of `many` joins ended."""

    async def one(number: int) -> join.Member | MeshError:
        store = Store(folder / str(number))
        try:
            member, _ = await join.join(AgentConfig(), store, JoinToken.parse(token), name or f"n{number}", (), ())
        except MeshError as error:
            assert not store.is_joined()
            return error
        return member

    return await asyncio.gather(*(one(number) for number in range(many)))


async def test_fifty_joins_on_a_single_use_token_admit_one(
    lab: Lab, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    token, begun = lab.coordinator.token(), time.monotonic()
    ends = await lab.hub.run(storm(tmp_path, token, MANY))
    took = time.monotonic() - begun
    record_property("figure", f"{MANY} joins at once on a single-use token: 1 admitted, all answered in {took:.2f} s")
    members = [end for end in ends if isinstance(end, join.Member)]
    refused = [end for end in ends if isinstance(end, RefusedError)]
    assert (len(members), len(refused)) == (1, MANY - 1), [str(e) for e in ends if isinstance(e, MeshError)][:5]
    assert {error.what for error in refused} == {"this token was used already"}
    assert all("token create" in error.hint for error in refused)
    assert list(lab.coordinator.nodes()) == [members[0].node.name]


async def test_fifty_joins_on_a_reusable_token_get_fifty_addresses(
    lab: Lab, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    token, begun = lab.coordinator.token(uses=MANY), time.monotonic()
    ends = await lab.hub.run(storm(tmp_path, token, MANY))
    took = time.monotonic() - begun
    record_property("figure", f"{MANY} joins at once on a token for {MANY}: all answered in {took:.2f} s")
    members = [end for end in ends if isinstance(end, join.Member)]
    taken = [str(end) for end in ends if isinstance(end, RefusedError)]
    assert len(members) + len(taken) == MANY
    assert all("is taken" in words for words in taken), taken  # by the one of the storm before
    assert len({member.node.address4 for member in members}) == len({m.node.address6 for m in members}) == len(members)


async def test_fifty_joins_under_one_name_admit_one(lab: Lab, tmp_path: Path) -> None:
    token = lab.coordinator.token(uses=MANY)
    ends = await lab.hub.run(storm(tmp_path, token, MANY, "namesake"))
    members = [end for end in ends if isinstance(end, join.Member)]
    assert len(members) == 1
    assert {error.what for error in ends if isinstance(error, RefusedError)} == {"the name 'namesake' is taken"}
    left = next(t for t in lab.coordinator.tokens() if t.id == JoinToken.parse(token).id)
    assert left.uses == MANY - 1, "the refused ones spent nothing"
