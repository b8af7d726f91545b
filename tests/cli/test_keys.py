"""`meshctl keys` as an operator sees it: the transcript, the exit codes, and a coordinator that goes away meanwhile
(NET-5, OPS-4). What the coordinator says is given here; tests/netns/test_rotation.py has the real one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from meshctl.cli import keys
from meshctl.cli.main import cli
from meshctl.errors import UnreachableError
from meshctl.mesh.rotation import Gaps
from meshctl.wire import turns
from meshctl.wire.turns import RotationState, TurnEnded

OUT, INTO = Gaps(0.028, 0.033), Gaps(0.009, 0.015)
GAPS = "out: gap p50 28 ms, worst 33 ms; in: gap p50 9 ms, worst 15 ms"
FIRST = TurnEnded("gpu-a1", "", 2, 2, (), OUT, INTO)
SECOND = TurnEnded("gpu-b7", "", 2, 1, ("gpu-c2",), OUT, INTO)
POSTPONED = TurnEnded("gpu-c2", "it is not connected", 0, 0, (), Gaps(), Gaps())
OPEN = RotationState(
    id="8cc4daa2d4a432a6", actor="operator:0", opened_at=100.0, targets=2, node="gpu-a1", phase="prepare", left=2,
    waiting=("gpu-c2",),
)  # fmt: skip
HALF = replace(OPEN, node="gpu-b7", phase="switched", left=1, pairs=2, proven=1, done=1, ended=(FIRST,), turns_ended=1,
               waiting=(), all_pairs=2, all_proven=2)  # fmt: skip
DONE = replace(HALF, phase="closed", left=0, done=2, ended=(FIRST, replace(FIRST, node="gpu-b7")), turns_ended=2,
               closed_at=101.0, gap=Gaps(0.028, 0.033), all_pairs=4, all_proven=4)  # fmt: skip


class Desk:
    """Answers in turn; the last one again and again."""

    def __init__(self, *answers: RotationState | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def __call__(self, _data_dir: Path, method: str, _request: Any) -> Any:
        self.asked.append(method)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return turns.state_message(answer)


@pytest.fixture(autouse=True)
def _at_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "LOOK_EVERY_S", 0.0)
        yield


def run(monkeypatch: pytest.MonkeyPatch, desk: Desk, *words: str) -> Result:
    monkeypatch.setattr(keys, "_call", desk)
    return CliRunner().invoke(cli, ["keys", *words], prog_name="meshctl")


def test_rotation_is_a_line_per_node_and_a_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = run(monkeypatch, Desk(OPEN, OPEN, HALF, DONE), "rotate", "--all", "--wait")
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.splitlines() == [
        "rotation 8cc4daa2d4a432a6 of 2 nodes is open",
        "gpu-a1: 2 of 2 pairs proven, out: gap p50 28 ms, worst 33 ms; in: gap p50 9 ms, worst 15 ms",
        "gpu-b7: 2 of 2 pairs proven, out: gap p50 28 ms, worst 33 ms; in: gap p50 9 ms, worst 15 ms",
        "rotated 2 of 2 nodes in 1.0 s: 4 of 4 proofs, gap p50 28 ms, worst 33 ms",
    ]


def test_without_wait_it_says_how_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(OPEN)
    shown = run(monkeypatch, desk, "rotate", "--node", "gpu-a1")
    assert (shown.exit_code, desk.asked) == (0, ["Rotate"])
    assert shown.stdout.endswith("meshctl keys status --wait shows how it goes\n")


def test_stragglers_are_named_and_are_exit_code_11(monkeypatch: pytest.MonkeyPatch) -> None:
    state = replace(DONE, done=1, failed=(SECOND, POSTPONED), ended=(FIRST, SECOND), all_proven=3)
    shown = run(monkeypatch, Desk(state), "status")
    assert shown.exit_code == 11
    assert shown.stdout.splitlines()[-2:] == [
        f"! gpu-b7: 1 of 2 pairs proven, {GAPS}; not proven: gpu-c2",
        "! gpu-c2: it is not connected",
    ]


def test_open_rotation_tells_whose_turn_it_is_and_for_whom_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = run(monkeypatch, Desk(OPEN), "status")
    assert shown.exit_code == 0
    assert "2 turns are left" in shown.stdout
    assert "now gpu-a1: prepare, 0 of 0 pairs proven, waiting for gpu-c2" in shown.stdout


def test_coordinator_that_restarts_meanwhile_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = UnreachableError("the coordinator on this machine is not running", "mesh-coordinator serve")
    shown = run(monkeypatch, Desk(OPEN, gone, gone, HALF, gone, DONE), "rotate", "--all", "--wait")
    assert shown.exit_code == 0, shown.output
    assert "rotated 2 of 2 nodes" in shown.stdout


def test_coordinator_that_stays_away_is_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = UnreachableError("the coordinator on this machine is not running", "mesh-coordinator serve")
    monkeypatch.setattr(keys, "PATIENCE_S", 0.0)
    shown = run(monkeypatch, Desk(OPEN, gone), "rotate", "--all", "--wait")
    assert shown.exit_code == 6
    assert "is not running" in shown.stderr


def test_time_that_is_up_is_not_success(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = run(monkeypatch, Desk(OPEN), "rotate", "--all", "--wait", "--timeout", "0s")
    assert shown.exit_code == 11
    assert "2 turns are left" in shown.stdout


def test_nothing_was_rotated_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = run(monkeypatch, Desk(RotationState()), "status")
    assert (shown.exit_code, shown.stdout) == (0, "no key was rotated yet\n")


def test_json_has_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = run(monkeypatch, Desk(HALF), "status", "--json")
    found = json.loads(shown.stdout)
    assert (found["node"], found["phase"]) == ("gpu-b7", "switched")
    assert found["ended"][0]["out"] == {"p50": 0.028, "worst": 0.033}


def test_machine_without_a_coordinator_says_so(tmp_path: Path) -> None:
    shown = CliRunner().invoke(cli, ["keys", "list", "--data-dir", str(tmp_path)], prog_name="meshctl")
    assert shown.exit_code == 2
    assert "holds no mesh" in shown.stderr
