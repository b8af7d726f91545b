"""A real coordinator for the benches: `init`, members written by the product's own code, `serve` as a process (OPS-3).

Also what a bench asks of a process from outside: CPU of all its threads, resident memory, descriptors.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

from coordinator import founding, records, server
from coordinator.config import CoordinatorConfig, load
from coordinator.embedded import Layout
from coordinator.enrol import Authority
from coordinator.etcd import EtcdRegistry
from coordinator.feed import Feed
from coordinator.keyring import FileKek, Keyring, SealedRegistry
from coordinator.members import Members
from coordinator.records import NodeRecord
from coordinator.registry import ADDRESSES, NAMES, NODES, Committed, Op, Put
from meshctl.crypto import pki
from meshctl.crypto.identity import Identity
from meshctl.eventlog import Unheard
from meshctl.mesh import addressing
from meshctl.mesh.model import Candidate, Endpoint, NodeId, Origin
from meshctl.mesh.token import JoinToken

COORDINATOR = (sys.executable, "-m", "coordinator.cli.main")
FIRST_PORT = 21443  # below the ephemeral range
NODES_PER_COMMIT = 32
READY_S = 60.0


class Process:
    """What the kernel says of a process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def cpu_s(self) -> float:
        """Time on a core, all threads."""
        spent = 0
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            with contextlib.suppress(OSError):
                spent += int((task / "schedstat").read_text().split()[0])
        return spent / 1e9

    def resident_kb(self) -> int:
        line = next(x for x in Path(f"/proc/{self.pid}/status").read_text().splitlines() if x.startswith("VmRSS"))
        return int(line.split()[1])

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))


def busy_s() -> float:
    """Time that all cores of this machine have been busy."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


@dataclass
class Seed:
    """What the simulated agents need to know."""

    ca: bytes
    mesh_id: str
    incarnation: str
    members: list[tuple[bytes, bytes]]  # private keys, certificate

    def save(self, path: Path) -> None:
        path.write_bytes(pickle.dumps((self.ca, self.mesh_id, self.incarnation, self.members)))

    @classmethod
    def load(cls, path: Path) -> Seed:
        return cls(*pickle.loads(path.read_bytes()))


class Coordinator:
    """One `mesh-coordinator serve`; the first one of a mesh runs the etcd."""

    def __init__(self, home: Path, number: int = 0) -> None:
        self.home, self.number, self.port = home, number, FIRST_PORT + number
        self.address = ("127.0.0.1", self.port)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> Process:
        assert self._process is not None
        return Process(self._process.pid)

    def found(self) -> None:
        """`init`."""
        where = f"127.0.0.1:{self.port}"
        words = ("init", "--name", "bench", "--advertise", where, "--listen", where, "--health-listen", "")
        subprocess.run([*COORDINATOR, *words, "--data-dir", self.home], check=True, capture_output=True, timeout=60)

    def follow(self, first: Coordinator) -> None:
        """Serve the mesh of `first`, on its etcd, which runs."""
        if first is self:
            return
        self.home.mkdir(mode=0o700)
        at = first.layout().address
        config = CoordinatorConfig(
            listen=(f"127.0.0.1:{self.port}",), etcd=tuple(f"https://{where}" for where in at.endpoints),
            etcd_ca=str(at.ca), etcd_cert=str(at.certificate), etcd_key=str(at.key), kek_file=str(first.home / "kek"),
            health_listen="",
        )  # fmt: skip
        (self.home / "coordinator.toml").write_text(config.text())

    def spawn(self) -> None:
        """`serve`, not waited for."""
        with (self.home / "serve.log").open("ab") as log:
            command = [*COORDINATOR, "serve", "--data-dir", self.home]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._since = (self.home / "serve.log").stat().st_size

    async def ready(self) -> None:
        """Until it says that it serves."""
        assert self._process is not None
        deadline = time.monotonic() + READY_S
        while b"serving mesh" not in (self.home / "serve.log").read_bytes()[self._since :]:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError((self.home / "serve.log").read_text()[-2000:])
            await asyncio.sleep(0.02)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it and wait."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def layout(self) -> Layout:
        """Where its etcd listens."""
        ports = json.loads((self.home / "etcd" / "ports.json").read_text())
        return Layout(self.home / "etcd", *ports)

    def etcd(self) -> Process:
        """The etcd child."""
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                text = path.read_text()
                if "(etcd)" in text and int(text.rsplit(")", 1)[1].split()[1]) == self.process.pid:
                    return Process(int(path.parent.name))
        raise AssertionError("no etcd child")

    @contextlib.asynccontextmanager
    async def registry(self, *, own: bool = False) -> AsyncIterator[tuple[SealedRegistry, Authority]]:
        """The sealed registry: of the running coordinator, or by an etcd of our own before it runs."""
        async with contextlib.AsyncExitStack() as stack:
            if own:
                opened = server.open_registry(self.home, load(self.home), lambda _: None)
                raw, _ = await stack.enter_async_context(opened)
            else:
                raw = await EtcdRegistry.connect(self.layout().address)
                stack.push_async_callback(raw.close)
            sealed = SealedRegistry(raw, await Keyring.open(raw, FileKek(self.home / "kek")))
            yield sealed, await founding.authority(sealed)

    async def seed(self, count: int) -> Seed:
        """Make `count` members, as Enrolment would have written them."""
        async with self.registry(own=True) as (sealed, authority):
            mesh, members, taken = authority.mesh, [], mesh_addresses(authority, count)
            ops: list[Op] = []
            for number in range(count):
                one = Identity.generate()
                leaf = pki.issue_node(authority.ca_key, mesh.ca, mesh.id, one.device_key, one.id, now=time.time())
                members.append((one.to_bytes(), leaf))
                claim = one.state(mesh.id, 1)
                address6 = addressing.address6(mesh.prefix6, one.id)
                record = NodeRecord(
                    one.id, f"n{number:05}", taken[number], address6, claim.signed, time.time(), token="seed"
                )
                ops += [
                    Put(NODES + one.id, records.encode(record), 0),
                    Put(NAMES + sealed.index_key("name", record.name), one.id.encode(), 0),
                    Put(NAMES + sealed.index_key("wireguard", str(claim.wireguard)), one.id.encode(), 0),
                    Put(ADDRESSES + sealed.index_key("address", str(taken[number])), one.id.encode(), 0),
                ]
                if len(ops) == 4 * NODES_PER_COMMIT or number == count - 1:
                    assert isinstance(await sealed.commit(*ops), Committed)
                    ops = []
            return Seed(mesh.ca, mesh.id, mesh.incarnation, members)


def mesh_addresses(authority: Authority, count: int) -> list:
    """The first `count` addresses of the mesh's prefix that nodes may have."""
    hosts = authority.mesh.prefix4.hosts()
    return [next(hosts) for _ in range(count + 1)][1:]


class Changer:
    """Makes changes as an endpoint that moves does: one committed write of one node's record."""

    def __init__(self, registry: SealedRegistry, authority: Authority) -> None:
        self._registry, self._authority, self._port = registry, authority, 20000

    async def move(self, node: NodeId) -> tuple[int, float]:
        """Another endpoint for `node` -> (revision, moment of the commit's answer on the machine's clock)."""
        (at,) = await self._registry.read(NODES + node)
        assert at is not None
        self._port = 20000 + (self._port + 1) % 10000
        here = Candidate(Endpoint(self._authority.mesh.prefix4[1], self._port), Origin.CONFIGURED)
        record = replace(records.decode(at.value, NodeRecord), candidates=(here,))
        done = await self._registry.commit(Put(at.path, records.encode(record), at.generation))
        assert isinstance(done, Committed)
        return done.revision, time.monotonic()

    async def token(self, uses: int) -> JoinToken:
        """For real joins."""
        members = Members(self._authority.mesh, self._registry, Feed(self._registry), Unheard(), time.time)
        return await members.create_token(3600, uses, (), False, "bench", "bench")
