"""etcd as a child of the coordinator: for one coordinator on one machine, with nothing to configure.

Loopback only, mutual TLS for clients and peers, with a CA whose key is forgotten once it has signed one server and one
client. The child dies with this process (PR_SET_PDEATHSIG, set by a launcher that then becomes etcd, so nothing of ours
runs between fork and exec). It also inherits the lock on the data directory: who gets the lock knows that no other etcd
is left. Not for replicas: they share an etcd cluster of their own. Meets ENC-3, OPS-1, OPS-2 (one machine).

    data_dir/  lock   ports.json   etcd.log   tls/{ca,server,client}.pem, tls/{server,client}.key   etcd/
"""

from __future__ import annotations

import asyncio
import fcntl
import ipaddress
import json
import os
import secrets
import shutil
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from coordinator.etcd import EtcdAddress, EtcdRegistry
from meshctl.crypto import pki
from meshctl.errors import EnvironmentFault

HEALTHY_WITHIN_S: Final = 30.0  # a slow disk replays its log; a new etcd here takes 0.5 s
LOCK_WITHIN_S: Final = 15.0
STOP_WITHIN_S: Final = 5.0
POLL_S: Final = 0.05
STARTS: Final = 3  # somebody may take a port between looking and listening
RESTARTS: Final = 5  # within RESTART_WINDOW_S: more is a fault that restarting does not cure
RESTART_WINDOW_S: Final = 60.0
PAUSE_S: Final = (0.1, 5.0)  # before the first restart, and at most
PORTS: Final = range(20000, 32768)  # below Linux's ephemeral range, where no outgoing connection squats
QUOTA_BYTES: Final = 2 * 1024**3  # etcd's own default, said aloud
LOG_TAIL_BYTES: Final = 2000

# Runs in the child before etcd does. A parent that died before prctl would never be noticed, hence the second look.
_LAUNCHER: Final = """
import ctypes, os, signal, sys
if ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0) or os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where an etcd of ours lives and listens."""

    data_dir: Path
    client_port: int
    peer_port: int

    @property
    def address(self) -> EtcdAddress:
        """What a client needs."""
        tls = self.data_dir / "tls"
        endpoint = f"127.0.0.1:{self.client_port}"
        return EtcdAddress((endpoint,), tls / "ca.pem", tls / "client.pem", tls / "client.key")

    def command(self, binary: str) -> list[str]:
        """argv of a child that is etcd and dies with the calling thread's process. Nothing in it is secret."""
        tls = self.data_dir / "tls"
        client, peer = (f"https://127.0.0.1:{port}" for port in (self.client_port, self.peer_port))
        flags = {
            "name": "embedded",
            "data-dir": self.data_dir / "etcd",
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"embedded={peer}",
            **{f"{side}client-cert-auth": "true" for side in ("", "peer-")},
            **{f"{side}trusted-ca-file": tls / "ca.pem" for side in ("", "peer-")},
            **{f"{side}cert-file": tls / "server.pem" for side in ("", "peer-")},
            **{f"{side}key-file": tls / "server.key" for side in ("", "peer-")},
            "enable-grpc-gateway": "false",  # a second way in, with holes of its own
            "quota-backend-bytes": QUOTA_BYTES,
            "auto-compaction-mode": "periodic",
            "auto-compaction-retention": "1h",
            "snapshot-count": 10000,  # etcd 3.4 keeps ten times as many entries in memory
            "heartbeat-interval": 20,  # milliseconds; alone, it elects itself: no need to wait a second for others
            "election-timeout": 200,
            "logger": "zap",
            "log-level": "error",
            "log-outputs": "stderr",
        }
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), binary]
        return launcher + [f"--{name}={value}" for name, value in flags.items()]


def find_binary() -> str:
    """Path of etcd. Raises EnvironmentFault."""
    found = shutil.which("etcd")
    if found is None:
        raise EnvironmentFault("etcd is not installed", "apt-get install --no-install-recommends etcd-server")
    return found


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _new_ports() -> tuple[int, int]:
    for _ in range(100):
        client, peer = (PORTS[secrets.randbelow(len(PORTS))] for _ in range(2))
        if client != peer and _free(client) and _free(peer):
            return client, peer
    raise EnvironmentFault("no free port on 127.0.0.1 between 20000 and 32767", "stop what holds them")


def _ports(remembered: Path) -> tuple[int, int]:
    """The ports of last time while they are free, else new ones, remembered."""
    try:
        client, peer = map(int, json.loads(remembered.read_text()))
        if _free(client) and _free(peer):
            return client, peer
    except (OSError, ValueError, TypeError):
        pass
    client, peer = _new_ports()
    remembered.write_text(json.dumps([client, peer]))
    return client, peer


def _leaf(ca_key: pki.Key, ca: bytes, name: str, *purposes: x509.ObjectIdentifier) -> tuple[pki.Key, bytes]:
    key = pki.new_key()
    builder = x509.CertificateBuilder().issuer_name(x509.load_der_x509_certificate(ca).subject)
    builder = builder.subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(pki.ALWAYS).not_valid_after(pki.EVER)
    builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")])
    builder = builder.add_extension(here, critical=False)
    return key, builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def _make_tls(directory: Path) -> None:
    """All of it or nothing. They have no end: they are worth something on this machine's loopback only."""
    ca_key, ca = pki.make_ca("etcd")
    both = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)  # etcd is its own peer
    server_key, server = _leaf(ca_key, ca, "etcd", *both)
    client_key, client = _leaf(ca_key, ca, "coordinator", ExtendedKeyUsageOID.CLIENT_AUTH)
    fresh = directory.with_suffix(".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    for name, content in {
        "ca.pem": pki.pem(ca),
        "server.pem": pki.pem(server),
        "client.pem": pki.pem(client),
        "server.key": pki.key_pem(server_key),
        "client.key": pki.key_pem(client_key),
    }.items():
        handle = os.open(fresh / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(handle)
    fresh.rename(directory)


def prepare(data_dir: Path) -> Layout:
    """Directory (0700), certificates and ports of an etcd of ours; what is there is kept. Raises EnvironmentFault."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        data_dir.chmod(0o700)
        (data_dir / "etcd").mkdir(mode=0o700, exist_ok=True)
        if not (data_dir / "tls").exists():
            _make_tls(data_dir / "tls")
        return Layout(data_dir, *_ports(data_dir / "ports.json"))
    except OSError as error:
        raise EnvironmentFault(
            f"cannot prepare {data_dir} for etcd: {error.strerror}", "check its owner and its disk"
        ) from error


class EmbeddedEtcd:
    """`start` -> address; `watchdog` restarts it while it runs; `stop`. Call from the thread that outlives it.

    PR_SET_PDEATHSIG looks at the thread that made the child: a coordinator runs its loop in its main thread.
    `on_restart` is told why, in a sentence.
    """

    def __init__(self, data_dir: Path, on_restart: Callable[[str], None]) -> None:
        self._data_dir = data_dir
        self._on_restart = on_restart
        self._lock: int | None = None
        self._process: Process | None = None
        self._address: EtcdAddress | None = None

    @property
    def pid(self) -> int | None:
        """Of the child that runs now."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self) -> EtcdAddress:
        """Run etcd until it is healthy. Raises EnvironmentFault: not installed, directory in use, does not come up."""
        found = find_binary()
        try:
            self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._lock is None:
                self._lock = await self._acquire()
        except OSError as error:
            raise EnvironmentFault(
                f"cannot use {self._data_dir} for etcd: {error.strerror}", "check its owner"
            ) from error
        try:
            for _ in range(STARTS):
                layout = prepare(self._data_dir)
                if await self._run(found, layout):
                    self._address = layout.address
                    return self._address
        except BaseException:
            await self.stop()
            raise
        await self.stop()
        raise EnvironmentFault(f"etcd does not start: {self._log_tail()}", f"look into {self._data_dir / 'etcd.log'}")

    async def _acquire(self) -> int:
        handle = os.open(self._data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        deadline = asyncio.get_running_loop().time() + LOCK_WITHIN_S
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if asyncio.get_running_loop().time() > deadline:
                    os.close(handle)
                    hint = "another coordinator runs on it: stop that one, or give each its own --data-dir"
                    raise EnvironmentFault(f"{self._data_dir} is in use", hint) from error
                await asyncio.sleep(POLL_S)
            else:
                return handle

    async def _run(self, found: str, layout: Layout) -> bool:
        """True once it is healthy, False when it ended by itself."""
        assert self._lock is not None
        log = os.open(self._data_dir / "etcd.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *layout.command(found),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(self._lock,),
                start_new_session=True,  # ^C is for the coordinator, which stops etcd last
            )
        finally:
            os.close(log)
        deadline = asyncio.get_running_loop().time() + HEALTHY_WITHIN_S
        registry = await EtcdRegistry.connect(layout.address)
        try:
            while not (health := await registry.health()).ok:
                if self._process.returncode is not None:
                    return False
                if asyncio.get_running_loop().time() > deadline:
                    hint = f"look into {self._data_dir / 'etcd.log'}"
                    raise EnvironmentFault(f"etcd runs but is not healthy: {health.words}", hint)
                await asyncio.sleep(POLL_S)
        finally:
            await registry.close()
        return True

    async def watchdog(self) -> None:
        """Restart etcd whenever it ends, until cancelled. Raises EnvironmentFault when restarting does not help."""
        ended: deque[float] = deque(maxlen=RESTARTS)
        now, before = asyncio.get_running_loop().time, self._address
        while (process := self._process) is not None:
            code = await process.wait()
            if self._process is not process:
                return
            recent = sum(at > now() - RESTART_WINDOW_S for at in ended)
            if recent == RESTARTS:
                raise EnvironmentFault(
                    f"etcd ended {RESTARTS + 1} times within {RESTART_WINDOW_S:.0f} s: {self._log_tail()}",
                    f"look into {self._data_dir / 'etcd.log'}",
                )
            ended.append(now())
            how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            self._on_restart(f"etcd {how} and is restarted: {self._log_tail()}")
            await asyncio.sleep(min(PAUSE_S[0] * 2**recent, PAUSE_S[1]))
            if await self.start() != before:
                raise EnvironmentFault("somebody took etcd's port while it restarted", "start the coordinator again")

    async def stop(self) -> None:
        """End etcd, first kindly, and give the directory back. Does nothing when it does not run."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), STOP_WITHIN_S)
            except TimeoutError:
                process.kill()
                await process.wait()
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def _log_tail(self) -> str:
        try:
            return (self._data_dir / "etcd.log").read_text(errors="replace")[
                -LOG_TAIL_BYTES:
            ].strip() or "it said nothing"
        except OSError:
            return "it left no log"
