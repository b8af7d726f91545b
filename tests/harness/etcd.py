"""A real etcd with mutual TLS on loopback, to be killed and restarted by tests; and a proxy that loses answers.

    with RealEtcd(tmp_path) as etcd: registry = await EtcdRegistry.connect(etcd.address)

Synchronous on purpose: it outlives the event loop of one test. It stops only what it started.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from coordinator import embedded
from coordinator.etcd import EtcdAddress

HEALTHY_WITHIN_S = 20.0


class RealEtcd:
    """etcd as the coordinator runs it (same flags, same certificates), plus `flags`."""

    def __init__(self, data_dir: Path, *flags: str) -> None:
        self.layout = embedded.prepare(data_dir)
        self._flags = flags
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> EtcdAddress:
        return self.layout.address

    @property
    def database(self) -> Path:
        return self.layout.data_dir / "etcd" / "member"

    def start(self) -> None:
        """Run it and wait until it has a leader."""
        self.spawn()
        self.wait()

    def spawn(self) -> None:
        """Run it. It dies with the *thread* that calls this, so never call it through asyncio.to_thread."""
        command = [*self.layout.command(embedded.find_binary()), *self._flags]
        with (self.layout.data_dir / "etcd.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def wait(self) -> None:
        """Return once it has a leader."""
        assert self._process is not None
        context = ssl.create_default_context(cafile=str(self.address.ca))
        context.load_cert_chain(self.address.certificate, self.address.key)
        deadline = time.monotonic() + HEALTHY_WITHIN_S
        while not self._healthy(context):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError((self.layout.data_dir / "etcd.log").read_text())
            time.sleep(0.02)

    def _healthy(self, context: ssl.SSLContext) -> bool:
        connection = http.client.HTTPSConnection("127.0.0.1", self.layout.client_port, context=context, timeout=2)
        with suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/health")
            return json.loads(connection.getresponse().read())["health"] == "true"
        connection.close()
        return False

    def kill(self) -> None:
        """kill -9, as the weather does it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    async def restart(self) -> None:
        """kill -9 and up again on the same data."""
        self.kill()
        self.spawn()
        await asyncio.to_thread(self.wait)

    def ctl(self, *words: str) -> str:
        """etcdctl with the client certificate; its output."""
        at = self.address
        flags = [f"--endpoints={at.endpoints[0]}", f"--cacert={at.ca}", f"--cert={at.certificate}", f"--key={at.key}"]
        environment = {**os.environ, "ETCDCTL_API": "3"}
        run = subprocess.run(["etcdctl", *flags, *words], check=True, capture_output=True, timeout=20, env=environment)
        return run.stdout.decode()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealEtcd]:
    """One etcd for the tests of a module; they keep apart by their paths."""
    with RealEtcd(tmp_path_factory.mktemp("etcd")) as running:
        yield running


class Proxy:
    """TCP in front of etcd. While `muted`, requests pass and answers are swallowed; `cut` ends all connections."""

    def __init__(self, etcd: RealEtcd) -> None:
        self._etcd = etcd
        self.muted = False
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def address(self) -> EtcdAddress:
        port = self._server.sockets[0].getsockname()[1]
        return replace(self._etcd.address, endpoints=(f"127.0.0.1:{port}",))

    def cut(self) -> None:
        """End every connection now."""
        self.muted = False
        for writer in self._open:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        there = None
        try:
            back, there = await asyncio.open_connection("127.0.0.1", self._etcd.layout.client_port)
            self._open |= {writer, there}
            await asyncio.gather(self._pump(reader, there, answers=False), self._pump(back, writer, answers=True))
        except OSError:
            pass
        finally:
            for end in filter(None, (writer, there)):
                end.transport.abort()
                self._open.discard(end)
            self._tasks.discard(task)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, answers: bool) -> None:
        while data := await source.read(65536):
            if not (answers and self.muted):
                sink.write(data)
                await sink.drain()
        raise ConnectionResetError
