"""mesh-coordinator with its own etcd: init, init again, init cut off, serve that refuses, and the operator's transcript
(OPS-1, OPS-4, ACC-3, ACC-5, ENC-2)."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from coordinator import founding
from coordinator.cli import process
from coordinator.cli.main import cli
from coordinator.keyring import FileKek
from meshctl.agent import join
from meshctl.agent.store import Store
from meshctl.config import AgentConfig
from meshctl.errors import UnreachableError
from meshctl.mesh.token import JoinToken

READY_S = 60.0
ADVERTISE = ("--advertise", "192.0.2.1:7443", "--health-listen", "")
COMMAND = (sys.executable, "-m", "coordinator.cli.main")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words], prog_name="mesh-coordinator")


def init(directory: Path, *more: str) -> Result:
    return run("init", "--data-dir", directory, *ADVERTISE, "--listen", f"127.0.0.1:{free_port()}", *more)


def serve(directory: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """`serve` as a process of its own, which is expected to refuse."""
    command = (*COMMAND, "serve", "--data-dir", str(directory), *more)
    return subprocess.run(command, capture_output=True, text=True, timeout=READY_S, check=False)


def fails(shown: Result | subprocess.CompletedProcess[str], code: int, *says: str) -> None:
    found = shown.exit_code if isinstance(shown, Result) else shown.returncode
    assert found == code, shown.stderr
    assert "error: " in shown.stderr
    assert "Traceback" not in shown.stderr
    for words in says:
        assert words in shown.stderr, shown.stderr


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory as init leaves it. Tests work on copies."""
    directory = tmp_path_factory.mktemp("founded") / "data"
    shown = init(directory, "--name", "prod", "--prefix4", "10.77.0.0/16")
    assert shown.exit_code == 0, shown.output
    return directory


@pytest.fixture
def copy(founded: Path, tmp_path: Path) -> Path:
    return shutil.copytree(founded, tmp_path / "data")


@pytest.fixture(scope="module")
def running(founded: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A coordinator that serves."""
    directory = shutil.copytree(founded, tmp_path_factory.mktemp("running") / "data")
    log = (directory / "log").open("wb")
    with log, subprocess.Popen((*COMMAND, "serve", "--data-dir", directory), stdout=log, stderr=log) as child:
        deadline = time.monotonic() + READY_S
        while run("status", "--data-dir", directory).exit_code:
            assert child.poll() is None, (directory / "log").read_text()
            assert time.monotonic() < deadline, (directory / "log").read_text()
            time.sleep(0.05)
        yield directory
        child.send_signal(signal.SIGTERM)
        assert child.wait(READY_S) == 0
    assert b"Traceback" not in (directory / "log").read_bytes()


def keys(value: Any, path: str = "") -> set[str]:
    """Every path of a JSON value, list items under []."""
    if isinstance(value, dict):
        return {f"{path}.{key}" for key in value} | {k for key, v in value.items() for k in keys(v, f"{path}.{key}")}
    return {k for item in value for k in keys(item, f"{path}[]")} if isinstance(value, list) else set()


# ---- init ------------------------------------------------------------------------------------------------------------


def test_init_says_what_it_made_and_what_comes_next(founded: Path) -> None:
    assert (founded / "kek").stat().st_mode & 0o777 == 0o600
    assert founded.stat().st_mode & 0o777 == 0o700
    assert "init" in run("token", "list", "--data-dir", founded / "elsewhere").stderr


def test_init_twice_leaves_the_first_mesh_alone(copy: Path) -> None:
    before = {path: path.read_bytes() for path in (copy / "kek", copy / "coordinator.toml")}
    fails(init(copy), 2, "already holds a mesh", "mesh-coordinator serve")
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--prefix4", "100.64.0.0/16"), 2, "range of carriers"),
        (("--prefix4", "100.0.0.0/8"), 2, "range of carriers"),
        (("--prefix4", "10.9.4.0/24"), 2, "overlaps 10.9.0.0/16, which this host routes"),
        (("--prefix4", "10.0.0.0/8"), 2, "overlaps 10.9.0.0/16"),
        (("--prefix4", "10.77.0.1/16"), 2, "not an IPv4 prefix"),
        (("--prefix4", "fd00::/64"), 2, "cannot be a mesh prefix"),
        (("--prefix4", "10.0.0.0/30"), 2, "cannot be a mesh prefix"),
        (("--prefix4", "192.0.2.0/24"), 2, "inside the mesh prefix"),
        (("--name", "Not A Name"), 9, "not a node name"),
        (("--listen", "7443"), 5, "not HOST:PORT"),
        (("--advertise", "here"), 5, "not HOST:PORT"),
        (("--etcd", "https://127.0.0.1:2379"), 2, "mutual TLS only"),
    ],
)
def test_init_refuses_before_it_makes_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], code: int, says: str
) -> None:
    monkeypatch.setattr(process, "_host_routes", lambda: [IPv4Network("10.9.0.0/16"), IPv4Network("0.0.0.0/0")])
    fails(init(tmp_path / "data", *words), code, says)
    assert not (tmp_path / "data").exists()


def test_init_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    fails(init(tmp_path / "file" / "data"), 5, "cannot use", "--data-dir")


@pytest.mark.parametrize("weather", [KeyboardInterrupt(), UnreachableError("etcd does not answer", "start it")])
def test_init_cut_off_between_its_two_transactions_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weather: BaseException
) -> None:
    """The ring key is in etcd, wrapped by a KEK that must not be lost; the mesh is not."""

    async def cut(*_: object, **__: object) -> None:
        raise weather

    with monkeypatch.context() as patch:
        patch.setattr(founding, "found", cut)
        assert init(tmp_path / "data").exit_code == (130 if isinstance(weather, KeyboardInterrupt) else 6)
    kek = (tmp_path / "data" / "kek").read_bytes()
    fails(serve(tmp_path / "data"), 2, "holds no mesh", "init")
    shown = init(tmp_path / "data", "--name", "second")
    assert (shown.exit_code, "mesh second" in shown.stdout) == (0, True)
    assert (tmp_path / "data" / "kek").read_bytes() == kek
    assert "Keep a copy elsewhere" in shown.stdout


def test_init_cut_off_after_the_mesh_was_made_finds_it_again(copy: Path) -> None:
    (copy / "coordinator.toml").unlink()
    shown = init(copy, "--name", "other")
    assert shown.exit_code == 0
    assert "mesh prod (" in shown.stdout
    assert "an earlier init was cut off" in shown.stderr


# ---- serve that refuses ----------------------------------------------------------------------------------------------


def test_serve_without_its_kek(copy: Path) -> None:
    (copy / "kek").unlink()
    fails(serve(copy), 5, "cannot read the key file", "restore it")


def test_serve_with_the_kek_of_another_mesh(copy: Path) -> None:
    (copy / "kek").unlink()
    FileKek(copy / "kek").create()
    fails(serve(copy), 8, "this KEK is not the one", "want ")


def test_serve_with_a_kek_that_others_can_read(copy: Path) -> None:
    (copy / "kek").chmod(0o644)
    fails(serve(copy), 5, "is open to others", "chmod 600")


def test_serve_with_a_file_that_is_no_kek(copy: Path) -> None:
    (copy / "kek").write_text("hello")
    fails(serve(copy), 5, "is not a key file")


def test_serve_on_a_port_that_is_taken(copy: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        fails(serve(copy, "--listen", f"127.0.0.1:{port}"), 5, f"cannot listen on 127.0.0.1 port {port}")


def test_serve_on_a_cluster_that_is_not_there(copy: Path) -> None:
    settings = copy / "coordinator.toml"
    tls = copy / "etcd" / "tls"
    for name, file in (("etcd_ca", "ca.pem"), ("etcd_cert", "client.pem"), ("etcd_key", "client.key")):
        settings.write_text(settings.read_text().replace(f'{name} = ""', f'{name} = "{tls / file}"'))
    fails(serve(copy, "--etcd", f"https://127.0.0.1:{free_port()}"), 6, "etcd")


def test_serve_with_settings_that_cannot_be(copy: Path) -> None:
    with (copy / "coordinator.toml").open("a") as file:
        file.write('lisetn = "x"\n')
    fails(serve(copy), 2, "unknown setting 'lisetn'", "known are")


@pytest.mark.parametrize("stun", ["on", "0", "65536", "-1", "", "٣٤٧٨"])
def test_serve_with_a_udp_port_that_is_none(copy: Path, stun: str) -> None:
    fails(serve(copy, "--stun", stun), 2, "is no UDP port for netcheck", "write auto, off")


def test_serve_while_another_one_does(running: Path) -> None:
    fails(serve(running), 5, "another process")


# ---- the operator's transcript ---------------------------------------------------------------------------------------


def test_verbs_without_a_coordinator_say_serve(copy: Path) -> None:
    for words in (("status",), ("token", "list"), ("nodes", "list"), ("revoke", "a"), ("nodes", "rm", "a")):
        fails(run(*words, "--data-dir", copy), 6, "is not running", "mesh-coordinator serve")


def test_socket_that_a_dead_coordinator_left_behind(copy: Path) -> None:
    (copy / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(copy / "run" / "operator.sock"))
    fails(run("status", "--data-dir", copy), 6, "does not answer")


def test_status_of_a_mesh_without_nodes(running: Path) -> None:
    shown = run("status", "--data-dir", running)
    assert shown.exit_code == 0
    assert shown.stdout.startswith("mesh prod (")
    assert "10.77.0.0/16" in shown.stdout
    assert "nodes 0   connected 0" in shown.stdout
    assert "! policy: allow-all" in shown.stdout
    told = json.loads(run("status", "--json", "--data-dir", running).stdout)
    assert {key for key in keys(told) if not key.startswith(".rotation.")} == {
        ".mesh", ".mesh.id", ".mesh.name", ".mesh.prefix4", ".mesh.prefix6", ".mesh.coordinators", ".mesh.ca",
        ".mesh.incarnation", ".mesh.policy", ".revision", ".nodes", ".connected", ".converged", ".started", ".release",
        ".etcd", ".oldest", ".newest", ".registry_age", ".releases", ".rotation",
        ".coordinators", *(f".coordinators[].{key}" for key in (
            "id", "name", "addresses", "release", "started", "age", "silent", "here", "revision", "connected", "behind",
            "p50", "p99", "samples",
        )),
        ".endpoints", *(f".endpoints[].{key}" for key in ("address", "ok", "leader", "version", "size", "words")),
    }  # fmt: skip
    (endpoint,), (coordinator,) = told["endpoints"], told["coordinators"]
    assert (endpoint["ok"], endpoint["leader"], endpoint["version"][:2]) == (True, True, "3.")
    assert (coordinator["here"], coordinator["name"]) == (True, "192.0.2.1:7443")


def test_token_is_shown_once_listed_and_revoked(running: Path) -> None:
    made = run(
        "token", "create", "--uses", "3", "--tag", "gpu", "--expires", "2h", "--note", "rack 7", "--data-dir", running
    )
    assert made.exit_code == 0
    token = JoinToken.parse(made.stdout)
    assert token.coordinators == ("192.0.2.1:7443",)
    assert made.stderr.startswith(f"token {token.id}: 3 uses, 2h. On the new node: meshctl join")
    listed = run("token", "list", "--data-dir", running).stdout
    assert token.id in listed
    assert token.secret.hex() not in listed
    (told,) = [
        t for t in json.loads(run("token", "list", "--json", "--data-dir", running).stdout) if t["id"] == token.id
    ]
    assert told.keys() == {"id", "created", "expires", "uses", "tags", "ephemeral", "revoked", "used_by", "note"}
    assert (told["uses"], told["tags"], told["note"], told["expires"] - told["created"]) == (3, ["gpu"], "rack 7", 7200)
    assert run("token", "revoke", token.id, "--data-dir", running).stdout == f"token {token.id} is revoked\n"
    row = next(line for line in run("token", "list", "--data-dir", running).stdout.splitlines() if token.id in line)
    assert row.split()[1] == "revoked"
    fails(run("token", "revoke", "nosuchtoken", "--data-dir", running), 7, "no token 'nosuchtoken'", "token list")


def test_token_that_makes_no_sense_is_refused(running: Path) -> None:
    fails(run("token", "create", "--tag", "no tag", "--data-dir", running), 9, "not a tag")
    fails(run("token", "create", "--expires", "0s", "--data-dir", running), 2, "a token lives")
    fails(run("token", "create", "--expires", "400d", "--data-dir", running), 2, "a token lives")
    tags = [word for number in range(17) for word in ("--tag", f"t{number}")]
    fails(run("token", "create", *tags, "--data-dir", running), 2, "16 tags at most")


def test_nodes_that_are_not_there(running: Path) -> None:
    assert json.loads(run("nodes", "list", "--json", "--data-dir", running).stdout) == []
    assert run("nodes", "list", "--data-dir", running).stdout.split()[:3] == ["NODE", "ADDRESS", "LINK"]
    for words in (("nodes", "show", "a"), ("nodes", "rm", "a"), ("revoke", "a", "--wait")):
        fails(run(*words, "--data-dir", running), 7, "no node 'a'", "nodes list")


def joined(running: Path, name: str, store: Path) -> str:
    """A node that joins over loopback, as the agent does -> its id."""
    token = JoinToken.parse(run("token", "create", "--tag", "gpu", "--data-dir", running).stdout)
    (listen,) = tomllib.loads((running / "coordinator.toml").read_text())["listen"]
    here = replace(token, coordinators=(listen,))
    member, _ = asyncio.run(join.join(AgentConfig(state_dir=store), Store(store), here, name, (), ()))
    return member.node.id


def test_node_is_listed_shown_removed_and_revoked(running: Path, tmp_path: Path) -> None:
    node = joined(running, "gpu-a1", tmp_path / "node")
    (told,) = json.loads(run("nodes", "list", "--json", "--data-dir", running).stdout)
    assert told.keys() == {
        "id", "name", "address4", "address6", "tags", "wireguard_key", "device_key", "serial", "joined", "endpoints",
        "connected", "since", "applied", "digest_ok", "verdict", "ephemeral", "findings", "via", "release",
    }  # fmt: skip
    assert (told["id"], told["address4"], told["tags"], told["verdict"]) == (node, "10.77.0.1", ["gpu"], "unknown")
    assert run("nodes", "list", "--data-dir", running).stdout.splitlines()[1].split() == [
        "gpu-a1", "10.77.0.1", "not", "yet", "-", "-", "unknown", "gpu", node,
    ]  # fmt: skip
    for word in ("gpu-a1", node):
        assert node in run("nodes", "show", word, "--data-dir", running).stdout
        assert json.loads(run("nodes", "show", word, "--json", "--data-dir", running).stdout) == told
    shown = run("nodes", "rm", "gpu-a1", "--wait", "--data-dir", running)
    assert shown.exit_code == 0
    assert "removal of gpu-a1: applied by 0" in shown.stdout
    fails(run("nodes", "rm", "gpu-a1", "--data-dir", running), 7, "was removed already")
    silent = joined(running, "gpu-b7", tmp_path / "silent")
    joined(running, "gpu-c2", tmp_path / "other")
    shown = run("revoke", silent, "--wait", "--timeout", "1s", "--reason", "stolen", "--data-dir", running)
    assert (shown.exit_code, "not yet by: gpu-c2" in shown.stdout) == (11, True)
    assert run("nodes", "rm", "gpu-c2", "--data-dir", running).exit_code == 0


def test_data_directory_from_the_environment(running: Path) -> None:
    environment = {**os.environ, "MESH_COORDINATOR_DATA_DIR": str(running)}
    command = (*COMMAND, "status")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=READY_S, check=False)
    assert (done.returncode, done.stdout.startswith("mesh prod")) == (0, True)
