"""The embedded etcd: first start, every way to die, and who may speak to it (ENC-3, OPS-1, OPS-2)."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from coordinator import embedded
from coordinator.embedded import EmbeddedEtcd
from coordinator.etcd import EtcdAddress, EtcdRegistry
from coordinator.registry import ROOT, Committed, Put
from meshctl.errors import EnvironmentFault

KEY = ROOT + "test/x"


@asynccontextmanager
async def running(data_dir: Path) -> AsyncIterator[tuple[EmbeddedEtcd, EtcdAddress, list[str]]]:
    told: list[str] = []
    etcd = EmbeddedEtcd(data_dir, told.append)
    try:
        yield etcd, await etcd.start(), told
    finally:
        await etcd.stop()


async def put_and_count(address: EtcdAddress) -> int:
    """Write once more; how often that was."""
    registry = await EtcdRegistry.connect(address)
    try:
        (old,) = await registry.read(KEY)
        generation = old.generation if old else 0
        assert isinstance(await registry.commit(Put(KEY, b"%d" % generation, generation)), Committed)
        return generation + 1
    finally:
        await registry.close()


def alive(pid: int) -> bool:
    """Whether it runs; a zombie that nobody has buried yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_stopped_and_started_it_is_the_same_registry_at_the_same_address(tmp_path: Path) -> None:
    async with running(tmp_path / "data") as (etcd, first, _):
        assert await put_and_count(first) == 1
        pid = etcd.pid
        assert pid is not None
        assert os.path.samefile(f"/proc/{pid}/exe", embedded.find_binary())
    assert not alive(pid)
    async with running(tmp_path / "data") as (_, second, told):
        assert second == first
        assert await put_and_count(second) == 2
    assert told == []


async def test_its_files_are_for_us_alone_and_nothing_is_secret_in_argv(tmp_path: Path) -> None:
    async with running(tmp_path / "data") as (etcd, address, _):
        assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
        for path in (tmp_path / "data" / "tls").iterdir():
            assert path.stat().st_mode & 0o777 == 0o600, path
        argv = Path(f"/proc/{etcd.pid}/cmdline").read_text()
        assert "PRIVATE" not in argv
        listening = subprocess.run(["ss", "-Hltnp"], check=True, capture_output=True, text=True).stdout.splitlines()
        ours = [line.split()[3] for line in listening if f"pid={etcd.pid}," in line]
        assert len(ours) == 2
        for host, _, port in (at.rpartition(":") for at in ours):
            assert host == "127.0.0.1"
            assert 20000 <= int(port) < 32768
        assert address.endpoints[0] in ours


async def test_local_user_without_certificate_reaches_neither_port(tmp_path: Path) -> None:
    async with running(tmp_path / "data") as (_, address, _):
        ports = [int(port) for port in (tmp_path / "data" / "ports.json").read_text().strip("[]").split(",")]
        assert address.endpoints == (f"127.0.0.1:{ports[0]}",)
        for port in ports:
            context = ssl.create_default_context(cafile=str(address.ca))

            def ask(port: int = port, context: ssl.SSLContext = context) -> bytes:
                with (
                    socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
                    context.wrap_socket(plain, server_hostname="127.0.0.1") as tls,
                ):
                    tls.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
                    return tls.recv(100)

            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.to_thread(ask)


async def test_killed_child_is_restarted_and_reported(tmp_path: Path) -> None:
    async with running(tmp_path / "data") as (etcd, address, told):
        watchdog = asyncio.create_task(etcd.watchdog())
        try:
            assert await put_and_count(address) == 1
            killed = etcd.pid
            assert killed is not None
            os.kill(killed, signal.SIGKILL)
            assert await put_and_count(address) == 2
            assert etcd.pid not in (None, killed)
            assert len(told) == 1
            assert "killed by signal 9" in told[0]
        finally:
            watchdog.cancel()
            with suppress(asyncio.CancelledError):
                await watchdog


async def test_child_that_always_dies_is_given_up_in_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "RESTARTS", 2)
    async with running(tmp_path / "data") as (etcd, _, _):
        watchdog = asyncio.create_task(etcd.watchdog())
        killed: set[int] = set()
        async with asyncio.timeout(30):
            while not watchdog.done():
                if (pid := etcd.pid) and pid not in killed:
                    killed.add(pid)
                    os.kill(pid, signal.SIGKILL)
                await asyncio.sleep(0.02)
        with pytest.raises(EnvironmentFault, match=r"etcd (ended|does not start)"):
            await watchdog


async def test_stop_ends_the_watchdog(tmp_path: Path) -> None:
    async with running(tmp_path / "data") as (etcd, _, told):
        watchdog = asyncio.create_task(etcd.watchdog())
        await asyncio.sleep(0)
        await etcd.stop()
        await asyncio.wait_for(watchdog, 5)
        assert told == []


PARENT = """
import asyncio, sys
from pathlib import Path
from coordinator.embedded import EmbeddedEtcd

async def main() -> None:
    etcd = EmbeddedEtcd(Path(sys.argv[1]), print)
    address = await etcd.start()
    print(etcd.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_coordinator_killed_takes_its_etcd_along_and_the_next_one_starts_at_once(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    async with running(data_dir) as (_, address, _):
        assert await put_and_count(address) == 1
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(data_dir)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    try:
        assert parent.stdout is not None
        child = int(await asyncio.to_thread(parent.stdout.readline))
        assert alive(child)
        parent.kill()
        async with running(data_dir) as (_, address, _):
            assert not alive(child)
            assert await put_and_count(address) == 2
    finally:
        parent.kill()
        parent.communicate()


async def test_second_coordinator_on_one_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "LOCK_WITHIN_S", 0.2)
    async with running(tmp_path / "data") as (_, address, _):
        with pytest.raises(EnvironmentFault, match="is in use"):
            await EmbeddedEtcd(tmp_path / "data", print).start()
        assert await put_and_count(address) == 1


async def test_port_taken_meanwhile_is_replaced_and_the_data_stays(tmp_path: Path) -> None:
    async with running(tmp_path / "data") as (_, first, _):
        assert await put_and_count(first) == 1
    with socket.create_server(("127.0.0.1", int(first.endpoints[0].rpartition(":")[2]))):
        async with running(tmp_path / "data") as (_, second, _):
            assert second.endpoints != first.endpoints
            assert await put_and_count(second) == 2


async def test_crash_while_certificates_are_made_leaves_no_half(tmp_path: Path) -> None:
    half = tmp_path / "data" / "tls.new"
    half.mkdir(parents=True)
    (half / "ca.pem").write_text("half")
    async with running(tmp_path / "data") as (_, address, _):
        assert await put_and_count(address) == 1
    assert not half.exists()


async def test_missing_binary_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentFault, match="not installed") as caught:
        await EmbeddedEtcd(tmp_path / "data", print).start()
    assert "apt-get install" in caught.value.hint


async def test_etcd_that_cannot_start_says_why(tmp_path: Path) -> None:
    async with running(tmp_path / "data"):
        pass
    (database,) = (tmp_path / "data").rglob("snap/db")
    database.write_bytes(b"not a database" * 4096)
    with pytest.raises(EnvironmentFault, match="does not start") as caught:
        await EmbeddedEtcd(tmp_path / "data", print).start()
    assert "etcd.log" in caught.value.hint
