"""Settings of both programs: which source wins, and what a wrong one is told (OPS-4)."""

from __future__ import annotations

import os
from dataclasses import fields, replace
from pathlib import Path

import pytest

from coordinator.config import CoordinatorConfig
from coordinator.config import load as load_coordinator
from meshctl.config import AgentConfig, load
from meshctl.errors import EnvironmentFault, UsageError


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "meshctl.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    path = written(tmp_path, 'interface = "file0"\nlisten_port = 1\ndevice = "kernel"\nendpoint = ["192.0.2.1:1"]\n')
    environment = {"MESHCTL_LISTEN_PORT": "2", "MESHCTL_DEVICE": "userspace", "MESHCTL_ENDPOINT": "a:1,b:2"}
    config = load({"device": "auto", "listen_port": None, "endpoint": (), "json": True}, environment, path)
    assert config == AgentConfig(interface="file0", listen_port=2, device="auto", endpoint=("a:1", "b:2"))


def test_every_setting_can_be_given_in_every_place(tmp_path: Path) -> None:
    given = {
        "state_dir": "/s", "interface": "i", "listen_port": 7, "endpoint": ["a:1"], "device": "kernel",
        "health_listen": "", "psk_renew_s": 60.0,
    }  # fmt: skip
    assert given.keys() == {f.name for f in fields(AgentConfig)}
    text = "".join(f"{k} = {v!r}\n" for k, v in given.items()).replace("'", '"')
    environment = {f"MESHCTL_{k.upper()}": ",".join(v) if isinstance(v, list) else str(v) for k, v in given.items()}
    expected = AgentConfig(Path("/s"), "i", 7, ("a:1",), "kernel", "", 60.0)
    assert load({}, {}, written(tmp_path, text)) == expected
    assert load({}, environment, tmp_path / "none") == expected
    assert load(given, {}, tmp_path / "none") == expected
    assert expected.socket == Path("/s/agent.sock")


def test_file_named_in_the_environment_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, "listen_port = 99\n")
    assert load({}, {"MESHCTL_CONFIG": str(path)}).listen_port == 99


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("listen_prot = 1\n", "unknown setting 'listen_prot'"),
        ("listen_port = \n", "cannot be read"),
        (b"\xff\xfe\x00", "cannot be read"),
        ('listen_port = "http"\n', "does not fit"),
        ("listen_port = 0\n", "not a UDP port"),
        ("psk_renew_s = 1\n", "no period"),
        ('psk_renew_s = "inf"\n', "no period"),
        ('psk_renew_s = "nan"\n', "no period"),
        ('psk_renew_s = "daily"\n', "does not fit"),
        ("listen_port = 65536\n", "not a UDP port"),
        ("state_dir = 5\n", "does not fit"),
        ("endpoint = 5\n", "does not fit"),
        ('interface = ""\n', "not an interface name"),
        ('interface = "a-name-that-is-too-long"\n', "not an interface name"),
        ('interface = "../../x"\n', "not an interface name"),
        ('interface = "mesh 0"\n', "not an interface name"),
        ('device = "hardware"\n', "unknown device kind"),
        ('health_listen = "localhost"\n', "not ADDRESS:PORT"),
    ],
)
def test_wrong_setting_is_named(tmp_path: Path, text: str | bytes, says: str) -> None:
    with pytest.raises(UsageError, match=says) as refused:
        load({}, {}, written(tmp_path, text))
    assert refused.value.hint


def test_file_that_is_a_directory_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        load({}, {}, tmp_path)


# ---- the coordinator's -----------------------------------------------------------------------------------------------


def coordinator(tmp_path: Path, text: str | bytes) -> CoordinatorConfig:
    (tmp_path / "coordinator.toml").write_bytes(text.encode() if isinstance(text, str) else text)
    return load_coordinator(tmp_path)


def test_coordinator_reads_what_it_wrote(tmp_path: Path) -> None:
    odd = 'quote" back\\slash ümlaut'
    for config in (
        CoordinatorConfig(),
        replace(CoordinatorConfig(), etcd=("https://a:1", "https://b:2"), kek_file=odd),
    ):
        assert coordinator(tmp_path, config.text()) == config


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("listne = 5\n", "unknown setting 'listne'"),
        ("listen = \n", "cannot read"),
        (b"\xff\xfe\x00", "cannot read"),
        ("listen = 5\n", "listen"),
        ('listen = "0.0.0.0:7443"\n', "listen"),
        ("listen = [5]\n", "listen"),
        ("kek_file = 5\n", "kek_file"),
        ('kek = "hsm"\n', "kek"),
        ('stun = "on"\n', "no UDP port for netcheck"),
        ('stun = "65536"\n', "no UDP port for netcheck"),
        ('stun = "0"\n', "no UDP port for netcheck"),
    ],
)
def test_wrong_setting_of_a_coordinator_is_named(tmp_path: Path, text: str | bytes, says: str) -> None:
    with pytest.raises((UsageError, EnvironmentFault), match=says) as refused:
        coordinator(tmp_path, text)
    assert refused.value.hint


@pytest.mark.parametrize(("text", "second"), [("auto", None), ("off", 0), ("3479", 3479)])
def test_udp_ports_for_netcheck(tmp_path: Path, text: str, second: int | None) -> None:
    assert coordinator(tmp_path, f'stun = "{text}"\n').second_port == second


def test_directory_without_a_mesh_says_init(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no mesh") as refused:
        load_coordinator(tmp_path / "nowhere")
    assert "init" in refused.value.hint


def test_environment_of_this_process_is_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MESHCTL_CONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("MESHCTL_INTERFACE", "env0")
    assert load({}).interface == os.environ["MESHCTL_INTERFACE"]
