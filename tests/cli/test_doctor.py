"""doctor without a mesh and with an agent's socket: catalogue, exit codes, what a stranger may see (NET-7, OPS-4)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from meshctl.cli.main import cli
from meshctl.mesh.catalogue import CATALOGUE
from meshctl.mesh.host_checks import CLAIMS
from tests.cli.test_inspect import FINDING, picture
from tests.harness.agent_socket import agent_socket


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MESHCTL_CONFIG", str(tmp_path / "none.toml"))
    monkeypatch.setenv("MESHCTL_STATE_DIR", str(tmp_path))
    tmp_path.chmod(0o700)


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, words, prog_name="meshctl")


def test_catalogue_is_printed_whole() -> None:
    shown = run("doctor", "--list")
    assert shown.exit_code == 0
    for check in CATALOGUE.values():
        assert f"{check.code}  {check.severity}  {check.title}" in shown.stdout
        assert all(words in shown.stdout for words in (check.claim, check.evidence, check.remedy))
    assert all(code in shown.stdout for code in CLAIMS)
    listed = json.loads(run("doctor", "--list", "--json").stdout)
    assert [check["code"] for check in listed] == list(CATALOGUE)


@pytest.mark.parametrize("flag", ["--help", "-x", "--lost"])
def test_help_and_wrong_flags(flag: str) -> None:
    shown = run("doctor", flag)
    assert shown.exit_code == (0 if flag == "--help" else 2)
    assert "Usage: meshctl doctor" in shown.output


def test_before_joining_there_is_no_row_of_a_mesh() -> None:
    shown = run("doctor", "--json")
    found = json.loads(shown.stdout)
    assert shown.exit_code == ["ok", "degraded", "failed", "unknown"].index(found["verdict"])
    assert found["joined"] is False
    assert not {"HOST-AGENT", "HOST-ROUTE", "HOST-CLOCK"} & {row["code"] for row in found["checks"]}
    assert "in no mesh yet" in run("doctor").stdout


def test_findings_of_the_agent_are_told_with_their_remedy(tmp_path: Path) -> None:
    with agent_socket(tmp_path, {"/status": picture(verdict="failed", findings=[FINDING])}):
        shown = run("doctor")
    assert shown.exit_code == 2
    assert "! HOST-AGENT: answers: failed, findings: 1 -> meshctl status" in shown.stdout
    assert "! MESH-PATH-001 gpu-b7: 3 echoes in a row unanswered (4m) -> is the peer up?" in shown.stdout


@pytest.mark.root
def test_who_is_not_root_is_told_what_could_not_be_looked_at() -> None:
    command = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-m", "meshctl.cli.main")
    with tempfile.TemporaryDirectory(prefix="mn-") as place:
        Path(place).chmod(0o755)
        state = Path(place, "state")
        state.mkdir(0o700)  # a directory that nobody may enter, as a member's is
        environment = {**os.environ, "MESHCTL_STATE_DIR": str(state), "MESHCTL_CONFIG": f"{place}/none.toml"}
        words = (*command, "doctor", "--json")
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=environment)
    assert "Traceback" not in done.stderr, done.stderr
    rows = {row["code"]: row for row in json.loads(done.stdout)["checks"]}
    for code in ("HOST-FIREWALL", "HOST-CAP", "HOST-STATE", "HOST-AGENT", "HOST-ROUTE"):
        assert (rows[code]["verdict"], rows[code]["command"]) == ("unknown", "sudo meshctl doctor"), rows[code]
    assert done.returncode in (1, 3)
