"""Both programs, without a mesh: help of every verb, wrong flags, and what each kind of failure looks like (OPS-4)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from coordinator.cli.main import cli as coordinator
from meshctl import errors, terminal
from meshctl.cli.main import cli as meshctl
from meshctl.errors import MeshError, RefusedError

PROGRAMS: dict[str, click.Group] = {"meshctl": meshctl, "mesh-coordinator": coordinator}


def verbs(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from verbs(inner, (*path, name))


VERBS = [path for name, program in PROGRAMS.items() for path in verbs(program, (name,))]


def run(*words: str, **more: Any) -> Result:
    program, *arguments = words
    return CliRunner().invoke(PROGRAMS[program], arguments, prog_name=program, **more)


@pytest.mark.parametrize("path", VERBS, ids=" ".join)
def test_every_verb_explains_itself(path: tuple[str, ...]) -> None:
    for flag in ("--help", "-h") if len(path) == 1 else ("--help",):
        shown = run(*path, flag)
        assert shown.exit_code == 0
        assert shown.output.startswith(f"Usage: {' '.join(path)}")
        assert "--help" in shown.output
        sentence = shown.output.split("\n\n")[1].strip()
        assert len(sentence.split()) >= 2, "a verb without a sentence"


@pytest.mark.parametrize("path", VERBS, ids=" ".join)
def test_wrong_flag_says_how_the_verb_is_used(path: tuple[str, ...]) -> None:
    shown = run(*path, "--no-such-flag")
    assert shown.exit_code == 2
    assert "Usage: " in shown.stderr
    assert "No such option" in shown.stderr
    assert not shown.stdout


@pytest.mark.parametrize(
    "words",
    [
        ("meshctl", "dance"),
        ("meshctl", "join"),
        ("meshctl", "join", "TOKEN", "--listen-port", "0"),
        ("meshctl", "join", "TOKEN", "--device", "hardware"),
        ("meshctl", "logs", "-n", "0"),
        ("mesh-coordinator", "init"),
        ("mesh-coordinator", "revoke"),
        ("mesh-coordinator", "token", "create", "--uses", "0"),
        ("mesh-coordinator", "token", "create", "--expires", "soon"),
        ("mesh-coordinator", "nodes", "rm", "a", "--timeout", "1.5h"),
    ],
)
def test_wrong_words_are_usage(words: tuple[str, ...]) -> None:
    shown = run(*words)
    assert shown.exit_code == 2
    assert "Usage: " in shown.stderr


def test_version_is_one_line() -> None:
    for name in PROGRAMS:
        assert run(name, "--version").output.startswith(f"{name}, version ")


# ---- how things end --------------------------------------------------------------------------------------------------

DOCUMENTED = {
    "MeshError": 1, "UsageError": 2, "NotJoinedError": 4, "EnvironmentFault": 5, "UnreachableError": 6,
    "RefusedError": 7, "TrustError": 8, "ProtocolError": 9, "ConflictError": 10,
}  # fmt: skip


def failing(act: Callable[[], object]) -> Result:
    @click.group(cls=terminal.Group)
    def program() -> None:
        """A program."""

    @program.command()
    def verb() -> None:
        act()

    return CliRunner().invoke(program, ["verb"])


def raising(error: BaseException) -> Callable[[], object]:
    def act() -> None:
        raise error

    return act


def test_no_kind_of_failure_is_undocumented() -> None:
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, MeshError)]
    assert {kind.__name__: kind.exit_code for kind in kinds} == DOCUMENTED


@pytest.mark.parametrize("name", DOCUMENTED)
def test_failure_is_a_sentence_a_hint_and_its_code(name: str) -> None:
    shown = failing(raising(getattr(errors, name)("the thing broke", "mend it")))
    assert shown.exit_code == DOCUMENTED[name]
    assert shown.stderr == "error: the thing broke\n  hint: mend it\n"
    assert not shown.stdout


def test_failure_of_a_loop_is_told_like_any_other() -> None:
    async def serve() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(refuse())
            group.create_task(asyncio.sleep(60))

    async def refuse() -> None:
        raise RefusedError("the thing broke", "mend it")

    shown = failing(lambda: asyncio.run(serve()))
    assert (shown.exit_code, shown.stderr) == (7, "error: the thing broke\n  hint: mend it\n")


def test_ctrl_c_is_130_and_says_that_it_can_go_on() -> None:
    for error in (KeyboardInterrupt(), click.Abort()):
        shown = failing(raising(error))
        assert shown.exit_code == 130
        assert shown.stderr.strip() == "interrupted; run the same command again to go on"


def test_fault_of_ours_is_said_to_be_one_and_shows_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MESHCTL_DEBUG", raising=False)
    shown = failing(raising(ValueError("odd")))
    assert shown.exit_code == 1
    assert shown.stderr.startswith("error: unexpected ValueError: odd\n  hint: ")
    monkeypatch.setenv("MESHCTL_DEBUG", "1")
    assert isinstance(failing(raising(ValueError("odd"))).exception, ValueError)
