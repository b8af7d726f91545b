"""watch and an agent's socket: lines of changes in a pipe, a table in place on a terminal, Ctrl-C (MON-6, OPS-4)."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from click.testing import CliRunner

from meshctl.agent.store import SavedMembership, Store
from meshctl.cli.main import cli
from tests.cli.test_inspect import FINDING, picture
from tests.harness.agent_socket import agent_socket

WITHIN_S = 30.0


@contextmanager
def watching(state: Path, out: int | IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    command = (sys.executable, "-m", "meshctl.cli.main", "watch", "-n", "0.2", "--state-dir", str(state))
    environment = {**os.environ, "MESHCTL_CONFIG": str(state / "none.toml"), "COLUMNS": "120", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stderr
        process.stderr.close()


def ends(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    assert process.wait(WITHIN_S) == 0
    assert process.stderr
    assert process.stderr.read() == b""


def read_until(handle: int, wanted: str) -> str:
    seen, deadline = "", time.monotonic() + WITHIN_S
    while wanted not in seen:
        left = deadline - time.monotonic()
        assert left > 0, f"never came: {wanted!r} in {seen!r}"
        if select.select([handle], [], [], left)[0]:
            seen += os.read(handle, 65536).decode()
    return seen


def test_pipe_gets_one_line_per_change(tmp_path: Path) -> None:
    answers: dict[str, Any] = {"/status": picture()}
    with agent_socket(tmp_path, answers), watching(tmp_path, subprocess.PIPE) as process:
        assert process.stdout
        handle = process.stdout.fileno()
        read_until(handle, "gpu-a1 in mesh secretproject: ok, 1 of 1 peers ok\n")
        answers["/status"] = picture(verdict="degraded", findings=[FINDING])
        seen = read_until(handle, "-> is the peer up?\n")
        assert "verdict ok -> degraded" in seen
        assert "! MESH-PATH-001 gpu-b7 opened: 3 echoes in a row unanswered" in seen
        answers["/status"] = picture()
        seen = read_until(handle, "closed after 4 min\n")
        assert "\033" not in seen
        ends(process)
        process.stdout.close()


def test_terminal_gets_the_table_in_place(tmp_path: Path) -> None:
    here, there = pty.openpty()
    try:
        with agent_socket(tmp_path, {"/status": picture()}), watching(tmp_path, there) as process:
            seen = read_until(here, "peers ok")
            assert "\033[H\033[J" in seen
            assert "PEER    ADDRESS     PATH" in seen
            ends(process)
    finally:
        os.close(here)
        os.close(there)


def test_agent_that_restarts_is_waited_for(tmp_path: Path) -> None:
    Store(tmp_path).save_membership(SavedMembership(b"", b"", b"", 1, "mesh0", 51820))
    with watching(tmp_path, subprocess.PIPE) as process:
        assert process.wait(WITHIN_S) == 6  # there never was one
        assert process.stdout
        process.stdout.close()
    with ExitStack() as stack:
        socket = ExitStack()
        socket.enter_context(agent_socket(tmp_path, {"/status": picture()}))
        process = stack.enter_context(watching(tmp_path, subprocess.PIPE))
        assert process.stdout
        handle = process.stdout.fileno()
        read_until(handle, "peers ok\n")
        socket.close()
        read_until(handle, "! the agent does not answer\n")
        with agent_socket(tmp_path, {"/status": picture()}):
            read_until(handle, "peers ok\n")
            ends(process)
        process.stdout.close()


def test_help_wrong_flags_and_a_machine_in_no_mesh(tmp_path: Path) -> None:
    def run(*words: str) -> tuple[int, str]:
        shown = CliRunner().invoke(cli, ["watch", *words], prog_name="meshctl")
        return shown.exit_code, shown.output

    assert run("--help")[0] == 0
    for words in (("--json",), ("-n", "0"), ("now",)):
        assert run(*words)[0] == 2
    assert run("--state-dir", str(tmp_path))[0] == 4
