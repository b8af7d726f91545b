"""matrix without a coordinator: help, wrong flags, and what it says when there is nobody to ask (NET-7, OPS-4)."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from meshctl.cli.main import cli


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, ["matrix", *words], prog_name="meshctl")


def test_help_and_wrong_flags(tmp_path: Path) -> None:
    shown = run("--help")
    assert (shown.exit_code, "Usage: meshctl matrix" in shown.output) == (0, True)
    for words in (("--no-such-flag",), ("--html", str(tmp_path)), ("somebody",)):
        shown = run(*words)
        assert (shown.exit_code, shown.stdout) == (2, "")
        assert "Usage: meshctl matrix" in shown.stderr


def test_machine_without_a_coordinator_says_so(tmp_path: Path) -> None:
    shown = run("--data-dir", str(tmp_path))
    assert (shown.exit_code, f"{tmp_path} holds no mesh" in shown.stderr) == (2, True)
    (tmp_path / "coordinator.toml").touch()
    shown = run("--data-dir", str(tmp_path))
    assert (shown.exit_code, "is not running" in shown.stderr) == (6, True)
