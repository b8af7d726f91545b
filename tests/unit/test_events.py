"""The event log on a real disk: crashes, full disks, restarts, rotation, and no secret in any field (MON-1, OPS-4)."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import stat
import subprocess
import sys
import types
import typing
from enum import Enum
from ipaddress import IPv4Address, IPv6Address, ip_interface, ip_network
from pathlib import Path

import pytest

from coordinator import testimony
from meshctl import eventlog, events
from meshctl.errors import EnvironmentFault
from meshctl.eventlog import EventLog, HumanLog
from meshctl.mesh import plan
from meshctl.mesh.interface import Peer, Route
from meshctl.mesh.keys import PresharedKey, PrivateKey, PublicKey
from meshctl.mesh.model import Endpoint

TYPES = {item for kinds in (events, testimony) for item in vars(kinds).values() if isinstance(item, type)}
CLASSES = sorted(
    (cls for cls in TYPES if issubclass(cls, events.Event) and cls.kind), key=lambda cls: cls.__name__
)
SAFE = {str, int, float, bool, type(None), PublicKey, Endpoint, IPv4Address, IPv6Address, *eventlog.ADDRESSES}
SECRET = bytes(range(100, 132))


def left(number: int) -> events.NodeLeft:
    return events.NodeLeft(node=f"n{number}", name="gpu-a1")


def opened(path: Path, stream: typing.TextIO | None = None, redact: bool = False, **options: int) -> EventLog:
    return EventLog(path, actor="agent:test", human=HumanLog(stream or io.StringIO(), redact=redact), **options)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def leaves(hint: object) -> typing.Iterator[object]:
    hint = getattr(hint, "__supertype__", hint)
    args = typing.get_args(hint)
    assert not args or typing.get_origin(hint) in (tuple, typing.Union, types.UnionType), hint
    for arg in args or (hint,):
        yield from leaves(arg) if args else [arg]


def fields_of(cls: type[events.Event]) -> dict[str, object]:
    hints = typing.get_type_hints(cls)
    return {name: hint for name, hint in hints.items() if typing.get_origin(hint) is not typing.ClassVar}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_no_event_has_room_for_a_secret(cls: type[events.Event]) -> None:
    for name, hint in fields_of(cls).items():
        odd = [leaf for leaf in leaves(hint) if leaf not in SAFE and leaf is not ...]
        assert not odd, f"{cls.__name__}.{name} may not hold {odd}"


def test_kinds_are_unique_and_bounded() -> None:
    kinds = [c.kind for c in CLASSES]
    assert len(set(kinds)) == len(kinds) > 20
    assert all(re.fullmatch(r"[a-z-]+\.[a-z-]+", kind) for kind in kinds)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_every_event_survives_the_journey_to_disk(cls: type[events.Event], tmp_path: Path) -> None:
    samples = {str: "text", int: 7, float: 1.5, bool: True, IPv4Address: IPv4Address("10.77.0.1"),
               IPv6Address: IPv6Address("fd00::1"), PublicKey: PublicKey(SECRET)}  # fmt: skip
    hints = fields_of(cls)
    values = {n: next((samples[leaf] for leaf in leaves(hint) if leaf in samples), None) for n, hint in hints.items()}
    values |= {name: () for name, hint in hints.items() if typing.get_origin(hint) is tuple}
    log = opened(tmp_path / "events.jsonl")
    log.emit(cls(**values))
    log.close()
    (record,) = lines(tmp_path / "events.jsonl")
    assert {"seq", "at", "event", "outcome", "actor", "source"} <= record.keys()
    assert record["event"] == cls.kind
    assert isinstance(cls.outcome, Enum)


STEPS: list[plan.Step] = [
    plan.SetPrivateKey(PrivateKey(SECRET)),
    plan.AddPeer(Peer(PublicKey(bytes(32)), (ip_network("10.77.0.9/32"),), preshared_key=PresharedKey(SECRET))),
    plan.UpdatePeer(Peer(PublicKey(bytes(32)), (), preshared_key=PresharedKey(SECRET)), ("preshared_key",)),
    plan.RestartPeer(Peer(PublicKey(bytes(32)), (), Endpoint(IPv4Address("192.0.2.1"), 51820))),
    plan.RemovePeer(PublicKey(bytes(32))),
    plan.AddAddress(ip_interface("10.77.0.1/32")),
    plan.RemoveRoute(Route(ip_network("10.77.0.0/16"))),
    plan.SetGuard("mesh0", frozenset({ip_network("10.77.0.0/16")})),
    plan.SetMtu(1420),
]


@pytest.mark.parametrize("step", STEPS, ids=events.step_name)
def test_applied_step_is_told_without_its_keys(step: plan.Step, tmp_path: Path) -> None:
    human = io.StringIO()
    log = opened(tmp_path / "e", human)
    log.emit(events.StepApplied.of(step, "mesh0", foreign=True))
    log.close()
    told = (tmp_path / "e").read_text() + human.getvalue()
    assert events.step_name(step) in told
    assert PrivateKey(SECRET).reveal() not in told
    assert repr(SECRET)[2:-1] not in told


def test_foreign_change_names_what_was_changed(tmp_path: Path) -> None:
    log = opened(tmp_path / "e")
    log.emit(events.StepApplied.of(STEPS[2], "mesh0", foreign=True))
    log.close()
    (record,) = lines(tmp_path / "e")
    assert (record["step"], record["foreign"], record["changed"]) == ("update-peer", True, ["preshared_key"])
    assert record["actor"] == "agent:test"


def test_sequence_goes_on_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "new" / "events.jsonl"
    for run in range(3):
        log = opened(path)
        assert [log.emit(left(i)) for i in range(5)] == [run * 5 + i + 1 for i in range(5)]
        log.close()
    assert [r["seq"] for r in lines(path)] == list(range(1, 16))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("torn", [b'{"seq":4,"at":1.0,"ev', b"\0" * 512, b"\xff\xfe garbage\n", b"[]\n{}\n"])
@pytest.mark.parametrize("before", [0, 3])
def test_torn_last_line_is_set_aside_and_reported(tmp_path: Path, torn: bytes, before: int) -> None:
    path = tmp_path / "events.jsonl"
    log = opened(path)
    for i in range(before):
        log.emit(left(i))
    log.close()
    with path.open("ab") as file:
        file.write(torn)
    opened(path).close()
    after = lines(path)
    assert [r["seq"] for r in after] == list(range(1, before + 2))
    assert (after[-1]["event"], after[-1]["torn_bytes"]) == ("events.repaired", len(torn))
    assert (tmp_path / str(after[-1]["kept_in"])).read_bytes() == torn


def test_rotation_is_bounded_and_the_sequence_continues(tmp_path: Path) -> None:
    path = tmp_path / "e"
    before = len(os.listdir("/proc/self/fd"))
    log = opened(path, file_bytes=2000, files_kept=3)
    for i in range(200):
        log.emit(left(i))
    assert len(os.listdir("/proc/self/fd")) <= before + 4  # nobody confirmed, and still no descriptor is hoarded
    log.close()
    assert len(os.listdir("/proc/self/fd")) == before
    files = [path.with_name(name) for name in ("e.3", "e.2", "e.1", "e")]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    numbers = [r["seq"] for file in files for r in lines(file)]
    assert numbers == list(range(numbers[0], 201))
    path.write_bytes(b"")  # a crash right after a rotation
    log = opened(path)
    assert log.emit(left(0)) == lines(path.with_name("e.1"))[-1]["seq"] + 1
    log.close()


def test_second_writer_is_refused(tmp_path: Path) -> None:
    log = opened(tmp_path / "e")
    with pytest.raises(EnvironmentFault, match="another process writes"):
        opened(tmp_path / "e")
    log.close()


def test_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "e").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EnvironmentFault, match="cannot write the event log"):
        opened(tmp_path / "e")


async def test_many_commits_share_few_fsyncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(fd), real(fd)))
    log = opened(tmp_path / "e")
    numbers = await asyncio.gather(*(log.commit(left(i)) for i in range(500)))
    assert sorted(numbers) == list(range(1, 501))
    assert len(synced) <= 4  # the folder once, then the first commit alone and all others together
    log.close()
    assert [r["seq"] for r in lines(tmp_path / "e")] == numbers


async def test_failed_fsync_is_never_confirmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = opened(tmp_path / "e")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        with pytest.raises(EnvironmentFault, match="Input/output error"):
            await log.commit(left(1))
    with pytest.raises(EnvironmentFault):  # the disk is back, but what it dropped is not
        await log.commit(left(2))
    with pytest.raises(EnvironmentFault):
        log.close()


async def test_full_disk_refuses_the_act_and_loses_no_event(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("absent: root, to mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=True)
    try:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(52 * 1024))
        human = io.StringIO()
        log = opened(disk / "e", human)
        with pytest.raises(EnvironmentFault, match="No space left"):
            await asyncio.gather(*(log.commit(left(i)) for i in range(200)))
        assert "events.unwritable" in human.getvalue()
        assert lines(disk / "e")  # whole lines only: a half-written one was taken back
        ballast.unlink()
        last = await log.commit(left(0))
        log.close()
        assert [r["seq"] for r in lines(disk / "e")] == list(range(1, last + 1))
    finally:
        subprocess.run(["umount", disk], check=True)


WRITER = """
import asyncio, io, sys
from pathlib import Path
from meshctl.eventlog import EventLog, HumanLog
from meshctl.events import NodeLeft
async def main():
    human = HumanLog(io.StringIO())
    log = EventLog(Path(sys.argv[1]), actor="agent:test", human=human, file_bytes=20_000, files_kept=1000)
    while True:
        print(await log.commit(NodeLeft(node="n", name="x" * 50)), flush=True)
asyncio.run(main())
"""


def test_killed_writer_loses_nothing_that_was_confirmed(tmp_path: Path) -> None:
    path, confirmed = tmp_path / "e", 0
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout
            confirmed = max(int(child.stdout.readline()) for _ in range(150))
            child.send_signal(signal.SIGKILL)
            confirmed = max([confirmed, *(int(n) for n in child.stdout.read().split("\n")[:-1])])
    log = opened(path)
    assert log.emit(left(0)) > confirmed
    log.close()
    kept = sorted(r["seq"] for file in tmp_path.iterdir() if file.suffix != ".torn" for r in lines(file))
    assert kept == list(range(1, len(kept) + 1))


def test_strangers_name_cannot_forge_a_line(tmp_path: Path) -> None:
    human = io.StringIO()
    log = opened(tmp_path / "e", human)
    nasty = "x\n2026-01-01 node.joined\x1b[2J" + "y" * 10_000
    log.emit(events.JoinRefused(node="n", name=nasty, token="t", code="token-unknown", why="no"))
    log.close()
    assert human.getvalue().count("\n") == 1
    assert "\x1b" not in human.getvalue()
    (record,) = lines(tmp_path / "e")
    assert len(str(record["name"])) == eventlog.TEXT_CHARS
    assert record["outcome"] == "refused"


def test_redacted_line_shows_no_address_and_no_name(tmp_path: Path) -> None:
    human = io.StringIO()
    log = opened(tmp_path / "e", human, redact=True)
    v4, v6 = IPv4Address("10.77.0.1"), IPv6Address("fd00::1")
    source = IPv4Address("192.0.2.7")
    log.emit(events.NodeJoined(node="n1", name="gpu-a1", address4=v4, address6=v6, token="t1", source=source))
    log.emit(events.StepApplied.of(STEPS[3], "mesh0"))
    log.emit(events.StepApplied.of(STEPS[1], "mesh0"))
    log.close()
    shown = human.getvalue()
    assert "n1" in shown
    assert not re.search(r"gpu-a1|192\.0\.2|10\.77|fd00", shown)
    assert lines(tmp_path / "e")[0]["source"] == "192.0.2.7"  # the record itself keeps them
