"""netcheck's words: help, wrong flags, bad tokens, a machine in no mesh (NET-1, OPS-4)."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from meshctl.cli.main import cli


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--help",), 0, "Usage: meshctl netcheck"),
        (("--no-such-flag",), 2, "No such option"),
        (("one", "two"), 2, "Usage: meshctl netcheck"),
        (("nonsense",), 2, "this is not a join token"),
        (("mesh2.AAAA",), 2, "damaged"),
        (("mesh1.AAAA",), 2, "of an older release"),
        (("@no-such-file",), 2, "cannot read the token"),
        (("env",), 2, "this is not a join token"),
        ((), 4, "this machine is in no mesh"),
    ],
)
def test_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: tuple[str, ...], code: int, says: str) -> None:
    monkeypatch.setenv("MESHCTL_CONFIG", str(tmp_path / "none.toml"))
    monkeypatch.setenv("MESHCTL_STATE_DIR", str(tmp_path))
    monkeypatch.delenv("MESHCTL_TOKEN", raising=False)
    shown = CliRunner().invoke(cli, ["netcheck", *words], prog_name="meshctl")
    assert (shown.exit_code, says in shown.output) == (code, True), shown.output
