"""The matrix on a real mesh: one direction of one pair is dropped, the grid names that pair alone (NET-7)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.mesh import MESHCTL, Lab, until

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        made.members("a", "b", "c")
        yield made


def matrix(lab: Lab, *words: str) -> str:
    done = lab.coordinator.run(*MESHCTL, "matrix", *words, "--data-dir", str(lab.coordinator.data))
    assert done.returncode == 0, done.stderr
    return done.stdout


def seen(lab: Lab) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(matrix(lab, "--json"))
    return found


def symbols(lab: Lab) -> list[str]:
    return [node["row"] for node in seen(lab)["nodes"]]


def test_one_way_drop_names_its_pair_alone(
    lab: Lab, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    until(lambda: symbols(lab) == [".oo", "o.o", "oo."], 40, f"all is well: {symbols(lab)}")
    a, b = lab.nodes[0], lab.nodes[1]
    a.ns.command("nft", "add table inet wire")
    a.ns.command("nft", "add chain inet wire out { type filter hook output priority 0; }")
    begun = time.monotonic()
    a.ns.command("nft", f"add rule inet wire out ip daddr {b.address} udp dport 51820 drop")
    try:
        until(lambda: symbols(lab) == [".xo", "x.o", "oo."], 40, f"the pair is named: {symbols(lab)}")
        record_property("figure", f"one-way drop in the matrix after {time.monotonic() - begun:.1f} s")
        (pair,) = seen(lab)["complaints"]
        assert (pair["first"], pair["second"]) == ("a", "b")
        assert {pair["first_says"]["verdict"], pair["second_says"]["verdict"]} == {"failed"}
        shown = matrix(lab)
        assert "! a -> b: failed MESH-" in shown
        page = tmp_path / "matrix.html"
        assert "wrote" in matrix(lab, "--html", str(page))
        assert page.read_text().count("<td class=failed ") == 2
    finally:
        a.ns.command("nft", "delete table inet wire")
    until(lambda: symbols(lab) == [".oo", "o.o", "oo."], 60, f"all is well again: {symbols(lab)}")


def test_row_of_a_node_that_went_away_is_not_shown(lab: Lab) -> None:
    c = lab.nodes[2]
    c.stop()
    until(lambda: not seen(lab)["nodes"][2]["known"], 20, "c is not connected")
    assert symbols(lab)[2] == "--."
    assert "not connected" in matrix(lab)
    c.up()
    until(lambda: symbols(lab)[2] == "oo.", 40, "it is back")
