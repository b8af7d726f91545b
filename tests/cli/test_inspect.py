"""status, health, ping, logs and debug bundle, against an agent's socket that says what the test wants (MON-6, NET-7,
OPS-4)."""

from __future__ import annotations

import copy
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from meshctl.cli.main import cli
from meshctl.crypto.identity import Identity, public_key
from tests.harness.agent_socket import agent_socket

NODE, PEER, GONE = Identity.generate(), Identity.generate(), Identity.generate()
FINDING = {
    "code": "MESH-PATH-001", "title": "peer-reachable", "severity": "warning", "subject": PEER.id, "name": "gpu-b7",
    "subject_name": "gpu-b7", "verdict": "failed", "since": 1.0, "at": 2.0, "age_s": 240.0,
    "evidence": "3 echoes in a row unanswered", "remedy": "is the peer up?", "anchor": "checks.md#mesh-path-001",
}  # fmt: skip
PICTURE: dict[str, Any] = {
    "verdict": "ok", "exit_code": 0, "ready": True,
    "rows": [
        {"code": "MESH-PATH-001", "subject": PEER.id, "name": "gpu-b7", "verdict": "ok", "at": 1.0, "evidence": "",
         "because": ""},
    ],
    "findings": [], "mesh_findings": [],
    "mesh": {"id": "abcdefgh2345", "name": "secretproject", "policy": "allow-all"},
    "node": {"id": NODE.id, "name": "gpu-a1", "address4": "10.77.0.9", "address6": "fd12:3456::9"},
    "interface": {"name": "mesh0", "kind": "kernel", "listen_port": 51820},
    "revision": {"applied": 4182, "server": 4182, "age_s": 3.0},
    "link": {"coordinator": "coord.example.org:7443", "connected": True, "age_s": 60.0, "error": ""},
    "keys": {"age_s": 518400.0, "certificate_left_s": 40000.0},
    "peers": [
        {
            "id": PEER.id, "name": "gpu-b7", "address4": "10.77.0.12", "address6": "fd12:3456::12", "tags": [],
            "endpoint": "203.0.113.7:51820", "handshake_age_s": 41.0, "rtt_ms": 4.1, "loss": 0.0,
            "proven": {"ok": 3, "of": 3, "age_s": 8.0}, "state": "ok",
        }
    ],
}  # fmt: skip


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MESHCTL_CONFIG", str(tmp_path / "none.toml"))
    monkeypatch.setenv("MESHCTL_STATE_DIR", str(tmp_path))


def picture(**changes: Any) -> dict[str, Any]:
    return copy.deepcopy(PICTURE) | changes


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, words, prog_name="meshctl")


def asked(tmp_path: Path, answer: Any, *words: str) -> Result:
    with agent_socket(tmp_path, {"/status": answer}):
        return run(*words)


def test_status_is_one_line_per_peer_with_evidence(tmp_path: Path) -> None:
    shown = asked(tmp_path, picture(), "status")
    assert shown.exit_code == 0
    assert shown.stdout.splitlines() == [
        "mesh secretproject   node gpu-a1   10.77.0.9   revision 4182 applied 3s ago   kernel WireGuard   key 6d old",
        "coordinator coord.example.org:7443 connected 1m",
        "PEER    ADDRESS     PATH                      HANDSHAKE  RTT    LOSS  PROVEN  STATE",
        "gpu-b7  10.77.0.12  direct 203.0.113.7:51820  41s        4.1ms  0%    3/3 8s  ok",
        "! policy: allow-all",
    ]


def test_status_has_a_column_for_narrow_paths_where_there_is_one(tmp_path: Path) -> None:
    wide, older = PICTURE["peers"][0] | {"mtu": None}, PICTURE["peers"][0] | {"name": "gpu-old"}
    shown = asked(tmp_path, picture(peers=[wide, wide | {"name": "gpu-c2", "mtu": 1340}, older]), "status")
    assert shown.stdout.splitlines()[2:6] == [
        "PEER     ADDRESS     PATH                      HANDSHAKE  RTT    LOSS  MTU   PROVEN  STATE",
        "gpu-b7   10.77.0.12  direct 203.0.113.7:51820  41s        4.1ms  0%    full  3/3 8s  ok",
        "gpu-c2   10.77.0.12  direct 203.0.113.7:51820  41s        4.1ms  0%    1340  3/3 8s  ok",
        "gpu-old  10.77.0.12  direct 203.0.113.7:51820  41s        4.1ms  0%    full  3/3 8s  ok",
    ]
    assert "MTU" not in asked(tmp_path, picture(peers=[wide]), "status").stdout


def test_status_of_a_node_alone_and_cut_off(tmp_path: Path) -> None:
    link = {"coordinator": "", "connected": False, "age_s": None, "error": "coordinator h:1 does not answer"}
    shown = asked(tmp_path, picture(peers=[], link=link, verdict="degraded", findings=[FINDING]), "status")
    assert shown.exit_code == 1
    assert "no peers yet" in shown.stdout
    assert (
        "! coordinator - not connected since never: coordinator h:1 does not answer; the mesh works on" in shown.stdout
    )
    assert "! MESH-PATH-001 gpu-b7: 3 echoes in a row unanswered (4m) -> is the peer up?" in shown.stdout


def test_peer_that_was_never_heard_of_shows_no_invented_numbers(tmp_path: Path) -> None:
    silent = {"endpoint": None, "handshake_age_s": None, "rtt_ms": None, "loss": None, "state": "unknown"}
    peer = PICTURE["peers"][0] | silent | {"proven": {"ok": 0, "of": 3, "age_s": None}}
    shown = asked(tmp_path, picture(peers=[peer], verdict="unknown"), "status")
    assert shown.exit_code == 3
    assert shown.stdout.splitlines()[3].split() == ["gpu-b7", "10.77.0.12", "none", "never", "-", "-", "0/3", "unknown"]


@pytest.mark.parametrize(
    ("verdict", "code", "word"),
    [("ok", 0, "OK"), ("degraded", 1, "WARNING"), ("failed", 2, "CRITICAL"), ("unknown", 3, "UNKNOWN")],
)
def test_exit_codes_are_those_of_monitoring_plugins(tmp_path: Path, verdict: str, code: int, word: str) -> None:
    findings = [] if verdict == "ok" else [FINDING]
    with agent_socket(tmp_path, {"/status": picture(verdict=verdict, findings=findings)}):
        for words in (("status",), ("status", "--json"), ("health",), ("health", "--json")):
            assert run(*words).exit_code == code
        shown = run("health")
    first = f"{word}: 1 of 1 peers proven, 1 of 1 checks ok, findings: {len(findings)}"
    assert shown.stdout.splitlines()[0] == first
    assert len(shown.stdout.splitlines()) == 1 + len(findings)


@pytest.mark.parametrize("answer", [None, b"<html>", b'{"half": '])
def test_health_without_an_answer_is_unknown_never_ok(tmp_path: Path, answer: bytes | None) -> None:
    def look(*words: str) -> Result:
        return run(*words) if answer is None else asked(tmp_path, answer, *words)

    shown = look("health")
    assert shown.exit_code == 3
    assert shown.stdout.startswith("UNKNOWN: ")
    shown = look("health", "--json")
    assert shown.exit_code == 3
    assert json.loads(shown.stdout).keys() == {"verdict", "why"}
    assert look("status").exit_code == 4  # no membership on disk: this machine is in no mesh
    assert "error: " in look("status").stderr


def test_health_of_the_mesh_counts_what_the_coordinator_finds(tmp_path: Path) -> None:
    asymmetric = FINDING | {"code": "MESH-ASY-001"}
    with agent_socket(tmp_path, {"/status": picture(mesh_findings=[asymmetric])}):
        assert run("health").exit_code == 0
        shown = run("health", "--mesh")
        assert (shown.exit_code, "! MESH-ASY-001 gpu-b7" in shown.stdout) == (1, True)
    with agent_socket(tmp_path, {"/status": picture(link=PICTURE["link"] | {"connected": False})}):
        assert run("health").exit_code == 0
        assert run("health", "--mesh").exit_code == 3  # nobody has compared the two ends


def test_json_has_a_stable_shape(tmp_path: Path) -> None:
    told = picture(findings=[FINDING], verdict="degraded")
    with agent_socket(tmp_path, {"/status": told}):
        assert json.loads(run("status", "--json").stdout) == told
        assert json.loads(run("health", "--json").stdout) == {
            "verdict": "degraded", "ready": True, "rows": told["rows"], "findings": [FINDING],
        }  # fmt: skip


def test_ping_proves_each_echo(tmp_path: Path) -> None:
    answer = {
        "name": "gpu-b7",
        "address4": "10.77.0.12",
        "endpoint": "203.0.113.7:51820",
        "rtt_ms": 4.13,
        "ok_age_s": 0.0,
    }
    with agent_socket(tmp_path, {"/echo": answer}) as targets:
        shown = run("ping", "gpu b7/../x", "-c", "2")
    assert (shown.exit_code, shown.stdout.splitlines()[-1]) == (0, "2 of 2 echoes proven")
    assert "echo 1 from gpu-b7 (10.77.0.12) via 203.0.113.7:51820: 4.1 ms, tag valid" in shown.stdout
    assert targets[0] == "/echo?peer=gpu%20b7/../x&kick"


def test_ping_that_is_not_answered_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshctl.mesh.limits.ECHO_LOST_AFTER_S", 0.05)
    answer = {"name": "gpu-b7", "address4": "10.77.0.12", "endpoint": None, "rtt_ms": None, "ok_age_s": None}
    with agent_socket(tmp_path, {"/echo": answer}):
        shown = run("ping", "gpu-b7", "-c", "2")
    assert (shown.exit_code, shown.stdout.splitlines()[-1]) == (2, "0 of 2 echoes proven")
    with agent_socket(tmp_path, {"/echo": {"error": "there is no peer 'ghost'"}}):
        shown = run("ping", "ghost")
    assert (shown.exit_code, shown.stderr.splitlines()[0]) == (7, "error: there is no peer 'ghost'")


# ---- logs and the debug bundle ---------------------------------------------------------------------------------------

KEYS = [str(public_key(Identity.generate().wireguard)) for _ in range(60)]
EVENTS = [
    {"seq": 1, "at": 1.8e9, "event": "agent.started", "outcome": "success", "actor": f"agent:{NODE.id}"},
    {"seq": 2, "at": 1.8e9, "event": "node.left", "outcome": "success", "node": GONE.id, "name": "gone-node",
     "source": "198.51.100.77", "actor": f"node:{GONE.id}"},
    *({"seq": n, "at": 1.8e9, "event": "statement.accepted", "wireguard": key, "outcome": "success"}
      for n, key in enumerate(KEYS, 3)),
    {"seq": 99, "at": 1.8e9, "event": "step",
     "what": f"peer {KEYS[0]} at [2001:db8::77]:51820 gets 10.77.0.12/32, fd12:3456::12/128"},
]  # fmt: skip


def write_events(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in EVENTS))


def test_logs_are_sentences_or_the_lines_themselves(tmp_path: Path) -> None:
    assert (run("logs").exit_code, run("logs").stdout) == (0, "")
    write_events(tmp_path)
    with (tmp_path / "events.jsonl").open("a") as log:
        log.write("torn li")
    shown = run("logs", "-n", "2").stdout.splitlines()
    assert shown[0].split()[2:4] == ["99", "step"]
    assert shown[1] == "torn li"
    assert run("logs", "--json", "-n", "100").stdout.splitlines()[:-1] == [json.dumps(event) for event in EVENTS]


def unpacked(path: Path) -> str:
    with tarfile.open(path) as archive:
        assert {m.name for m in archive} == {
            f"meshctl-debug/{n}" for n in ("status.json", "events.jsonl", "versions.txt")
        }
        return "\n".join(archive.extractfile(m).read().decode() for m in archive)  # type: ignore[union-attr]


def test_anonymised_bundle_names_nobody(tmp_path: Path) -> None:
    write_events(tmp_path)
    secrets = [
        NODE.id, PEER.id, GONE.id, "gpu-a1", "gpu-b7", "gone-node", "secretproject", "abcdefgh2345",
        "coord.example.org", "10.77.0.9", "10.77.0.12", "203.0.113.7", "198.51.100.77", "fd12:3456", "2001:db8", *KEYS,
    ]  # fmt: skip
    output = tmp_path / "bundle.tar.gz"
    shown = asked(tmp_path, picture(findings=[FINDING]), "debug", "bundle", "--anonymize", "-o", str(output))
    assert (shown.exit_code, shown.stdout) == (0, f"wrote {output}, anonymised\n")
    text = unpacked(output)
    assert not [secret for secret in secrets if secret in text]
    assert "MESH-PATH-001" in text
    assert text.count("51820") >= 2  # ports say nothing about anybody
    assert output.stat().st_mode & 0o777 == 0o600


def test_same_thing_has_the_same_pseudonym_within_a_bundle_only(tmp_path: Path) -> None:
    write_events(tmp_path)
    seen = []
    for number in range(2):
        output = tmp_path / f"{number}.tar.gz"
        run("debug", "bundle", "--anonymize", "-o", str(output))
        events = [json.loads(line) for line in unpacked(output).splitlines() if '"seq"' in line]
        seen.append(events[-1]["what"].split()[1])
        assert events[2]["wireguard"] == seen[-1]
    assert seen[0] != seen[1]


def test_bundle_says_that_it_names_nodes_and_where_it_could_not_be_written(tmp_path: Path) -> None:
    write_events(tmp_path)
    shown = run("debug", "bundle", "-o", str(tmp_path / "b.tar.gz"))
    assert "--anonymize hides them" in shown.stdout
    assert GONE.id in unpacked(tmp_path / "b.tar.gz")
    shown = run("debug", "bundle", "-o", str(tmp_path / "no" / "b.tar.gz"))
    assert (shown.exit_code, "cannot write" in shown.stderr) == (5, True)
