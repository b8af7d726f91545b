"""join, up, plan and leave where they go wrong: bad tokens, bad coordinators, a machine that lacks something (NET-1,
ACC-3, OPS-4)."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from meshctl.agent.store import Store
from meshctl.cli.main import cli
from meshctl.crypto import pki
from meshctl.mesh.token import JoinToken
from tests.harness import tls
from tests.harness.front import running, until

pytestmark = pytest.mark.root
MESH = tls.Mesh("abcdefghij23")


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MESHCTL_CONFIG", str(tmp_path / "none.toml"))
    monkeypatch.setenv("MESHCTL_STATE_DIR", str(tmp_path / "node"))
    monkeypatch.setenv("MESHCTL_INTERFACE", "cs-mesh0")
    monkeypatch.setenv("MESHCTL_DEVICE", "userspace")
    monkeypatch.setenv("MESHCTL_LISTEN_PORT", str(free_port(socket.SOCK_DGRAM)))
    monkeypatch.delenv("MESHCTL_TOKEN", raising=False)


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def token(*coordinators: str) -> str:
    at = coordinators or (f"127.0.0.1:{free_port()}",)
    return JoinToken(pki.ca_key(MESH.ca), MESH.id, "0123456789abcdef", bytes(32), at).text()


def run(*words: str, text: str | None = None) -> Result:
    return CliRunner().invoke(cli, words, prog_name="meshctl", input=text)


def fails(shown: Result, code: int, *says: str) -> None:
    assert shown.exit_code == code, shown.output
    assert shown.stderr.startswith("error: ")
    assert "\n  hint: " in shown.stderr
    assert "Traceback" not in shown.stderr
    for words in says:
        assert words in shown.stderr


@asynccontextmanager
async def liar(directory: Path, key: pki.Key, *chain: bytes) -> AsyncIterator[int]:
    """A TLS listener that shows these certificates."""
    (directory / "liar.pem").write_bytes(b"".join(map(pki.pem, chain)) + pki.key_pem(key))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "liar.pem")
    context.set_alpn_protocols(["h2"])

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def program(*words: str) -> asyncio.subprocess.Process:
    command: Sequence[str] = (sys.executable, "-m", "meshctl.cli.main", *words)
    return await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )


# ---- the token -------------------------------------------------------------------------------------------------------


def test_token_comes_by_file_standard_input_or_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text(token() + "\n")
    monkeypatch.setenv("MESHCTL_TOKEN", token())
    for shown in (run("join", f"@{tmp_path / 'token'}"), run("join", "-", text=token() + "\n"), run("join", "env")):
        fails(shown, 6, "does not answer")  # read, believed, and then nobody was there
    assert "MESHCTL_TOKEN" not in os.environ  # no child of ours inherits it


def test_bad_token_is_told_before_anything_is_touched(tmp_path: Path) -> None:
    whole = token()
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for given, says in (
        (whole[:-9], "damaged or was cut off"),
        (whole[:40] + "x" + whole[41:], "damaged or was cut off"),
        ("hello", "not a join token"),
        ("", "not a join token"),
        ("env", "not a join token"),
        (f"@{tmp_path / 'absent'}", "cannot read the token"),
        (f"@{tmp_path}", "cannot read the token"),
        (f"@{tmp_path / 'binary'}", "cannot read the token"),
    ):
        fails(run("join", given), 2, says)
    assert not (tmp_path / "node").exists()


def test_bad_name_tag_or_endpoint_is_told_before_anything_is_touched(tmp_path: Path) -> None:
    for words in (("--name", "Not A Name"), ("--tag", "no tag"), ("--endpoint", "here"), ("--endpoint", "1.2.3.4:0")):
        fails(run("join", token(), *words), 9, words[1])
    for words in (("--interface", "a/b"), ("--health-listen", "localhost")):
        fails(run("join", token(), *words), 2)
    assert not (tmp_path / "node").exists()


# ---- the coordinator -------------------------------------------------------------------------------------------------


def test_coordinator_that_is_not_there(tmp_path: Path) -> None:
    at = f"127.0.0.1:{free_port()}"
    fails(run("join", token(at)), 6, f"coordinator {at} does not answer")
    fails(run("join", token("nowhere.invalid:7443")), 6, "nowhere.invalid")
    fails(run("join", token("no-port")), 6, "not a coordinator address")
    assert not Store(tmp_path / "node").is_joined()
    before = (tmp_path / "node" / "identity").read_bytes()
    fails(run("join", token(at)), 6)
    assert (tmp_path / "node" / "identity").read_bytes() == before  # the second try is the same device


async def test_coordinator_of_another_mesh_is_not_believed(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        joining = await program("join", token(f"127.0.0.1:{stack.port}"), "--name", "a")
        out, err = await asyncio.wait_for(joining.communicate(), 30)
        assert joining.returncode == 8
        assert b"shows a certificate of another CA" in err
        assert b"Traceback" not in err
        assert not out
    assert not Store(tmp_path / "node").is_joined()


@pytest.mark.parametrize("shows_the_real_ca", [False, True])
async def test_impostor_with_the_name_of_the_mesh(tmp_path: Path, *, shows_the_real_ca: bool) -> None:
    """Somebody knows the CA's name and public key, and makes a CA that looks like it."""
    thief = tls.Mesh(MESH.id)
    key, leaf = pki.issue_coordinator(thief.ca_key, thief.ca)
    async with liar(tmp_path, key, leaf, MESH.ca if shows_the_real_ca else thief.ca) as port:
        joining = await program("join", token(f"127.0.0.1:{port}"))
        _, err = await asyncio.wait_for(joining.communicate(), 60)
    assert joining.returncode == 8
    assert b"shows a certificate of another CA" in err
    assert not Store(tmp_path / "node").is_joined()


async def test_ctrl_c_ends_a_join_with_130(tmp_path: Path) -> None:
    """A coordinator that accepts and says nothing; the person at the keyboard has no patience."""
    accepted = asyncio.Event()

    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set()
        await asyncio.sleep(60)
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    try:
        joining = await program("join", token(f"127.0.0.1:{server.sockets[0].getsockname()[1]}"))
        await until(accepted.is_set, 30)
        joining.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(joining.communicate(), 30)
        assert joining.returncode == 130
        assert err.decode().strip() == "interrupted; run the same command again to go on"
    finally:
        server.close()


# ---- this machine ----------------------------------------------------------------------------------------------------


def test_state_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    fails(run("join", token(), "--state-dir", str(tmp_path / "file" / "node")), 5, "cannot use", "--state-dir")


def test_port_that_another_program_holds() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        shown = run("join", token(), "--listen-port", str(other.getsockname()[1]))
    fails(shown, 5, "is taken, by another program", "--listen-port")


def test_user_who_is_not_root_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for words in (("join", token()), ("up",), ("plan",), ("leave",)):
        fails(run(*words), 5, "needs root", "sudo")


@pytest.mark.parametrize("words", [("up",), ("plan",), ("leave",), ("status",), ("ping", "a")])
def test_machine_in_no_mesh_says_how_to_join_one(words: tuple[str, ...]) -> None:
    fails(run(*words), 4, "this machine is in no mesh", "meshctl join TOKEN")


def test_damaged_state_is_not_taken_for_no_state(tmp_path: Path) -> None:
    store = Store(tmp_path / "node")
    store.prepare()
    store.identity()
    (tmp_path / "node" / "membership").write_bytes(b"\0" * 100)
    for words in (("up",), ("plan",), ("status",)):
        fails(run(*words), 8, "membership")
    (tmp_path / "node" / "membership").unlink()
    (tmp_path / "node" / "seal.key").write_bytes(b"short")
    fails(run("join", token()), 8, "seal.key")
