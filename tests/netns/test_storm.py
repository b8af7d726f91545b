"""Fifty machines with one single-use token, all at once, over real TLS: one comes in, the token is spent once (ACC-3).

No interfaces are needed for that: meshctl.agent.join is what the command line calls, each call with keys of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.mesh import Lab

pytestmark = pytest.mark.root
MANY = 50


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def storm(lab: Lab, folder: Path, token: str, many: int, name: str = "") -> tuple[list[Any], list[Any]]:
    """The members that `many` joins at once made, and the refusals."""
    ends = lab.coordinator.asking("join", str(many), str(folder), name, stdin=token)
    assert len(ends) == many
    assert {end["error"] for end in ends if "error" in end} <= {"RefusedError"}, ends[:3]
    return [end for end in ends if "error" not in end], [end for end in ends if "error" in end]


def test_fifty_joins_on_a_single_use_token_admit_one(
    lab: Lab, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    token, begun = lab.coordinator.token(), time.monotonic()
    members, refused = storm(lab, tmp_path, token, MANY)
    took = time.monotonic() - begun
    record_property("figure", f"{MANY} joins at once on a single-use token: 1 admitted, all answered in {took:.2f} s")
    assert (len(members), len(refused)) == (1, MANY - 1)
    assert {error["what"] for error in refused} == {"this token was used already"}
    assert all("token create" in error["hint"] for error in refused)
    assert list(lab.coordinator.nodes()) == [members[0]["name"]]


def test_fifty_joins_on_a_reusable_token_get_fifty_addresses(
    lab: Lab, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    token, begun = lab.coordinator.token(uses=MANY), time.monotonic()
    members, refused = storm(lab, tmp_path, token, MANY)
    took = time.monotonic() - begun
    record_property("figure", f"{MANY} joins at once on a token for {MANY}: all answered in {took:.2f} s")
    assert all("is taken" in error["what"] for error in refused)  # by the one of the storm before
    assert len({member["address4"] for member in members}) == len({m["address6"] for m in members}) == len(members)


def test_fifty_joins_under_one_name_admit_one(lab: Lab, tmp_path: Path) -> None:
    members, refused = storm(lab, tmp_path, lab.coordinator.token(uses=MANY), MANY, "namesake")
    assert len(members) == 1
    assert {error["what"] for error in refused} == {"the name 'namesake' is taken"}
