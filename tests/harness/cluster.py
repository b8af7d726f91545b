"""A cluster of three real etcd, a machine (namespace) each, mutual TLS among them and for clients (OPS-2, ENC-3).

    cluster = Cluster(lab, directory); cluster.start(); cluster.leader().kill()

Members are killed, paused, unplugged and filled by tests. Only what was started here is ended.
"""

from __future__ import annotations

import ipaddress
import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from meshctl.crypto import pki
from tests.harness.netns import Namespace, unique

CLIENT, PEER = 2379, 2380
NAME = "etcd.lab"  # in every member's certificate
QUOTA_BYTES = 24 * 1024 * 1024  # a test fills it


def until_healthy(check: Callable[[], bool], what: str) -> None:
    """Wait for a cluster; the import is late because mesh.py builds on this file's neighbours."""
    from tests.harness.mesh import until

    until(check, 40, what)


def make_tls(directory: Path, addresses: list[str]) -> None:
    """ca.pem, and server.pem and client.pem with their keys."""
    directory.mkdir()
    ca_key, ca = pki.make_ca("etcd")
    (directory / "ca.pem").write_bytes(pki.pem(ca))
    names: list[x509.GeneralName] = [x509.DNSName(NAME), x509.DNSName("localhost")]
    names += [x509.IPAddress(ipaddress.ip_address(address)) for address in (*addresses, "127.0.0.1")]
    both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    for name, purposes in (("server", both), ("client", both[1:])):
        key = pki.new_key()
        builder = x509.CertificateBuilder().issuer_name(x509.load_der_x509_certificate(ca).subject)
        builder = builder.subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
        builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(pki.ALWAYS).not_valid_after(pki.EVER)
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        leaf = builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
        (directory / f"{name}.pem").write_bytes(pki.pem(leaf))
        (directory / f"{name}.key").write_bytes(pki.key_pem(key))


class Member:
    """One etcd."""

    def __init__(self, cluster: Cluster, name: str, ns: Namespace, address: str) -> None:
        self.cluster, self.name, self.ns, self.address = cluster, name, ns, address
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"{self.address}:{CLIENT}"

    def start(self) -> None:
        """Returns at once."""
        tls, client, peer = self.cluster.tls, f"https://{self.endpoint}", f"https://{self.address}:{PEER}"
        flags = {
            "name": self.name, "data-dir": self.cluster.directory / self.name,
            "listen-client-urls": f"{client},https://127.0.0.1:{CLIENT}", "advertise-client-urls": client,
            "listen-peer-urls": peer, "initial-advertise-peer-urls": peer, "initial-cluster": self.cluster.initial,
            "initial-cluster-token": "lab", "quota-backend-bytes": QUOTA_BYTES, "logger": "zap", "log-level": "error",
            "log-outputs": "stderr",
            **{f"{side}client-cert-auth": "true" for side in ("", "peer-")},
            **{f"{side}trusted-ca-file": tls / "ca.pem" for side in ("", "peer-")},
            **{f"{side}cert-file": tls / "server.pem" for side in ("", "peer-")},
            **{f"{side}key-file": tls / "server.key" for side in ("", "peer-")},
        }  # fmt: skip
        command = ["ip", "netns", "exec", self.ns.name, "etcd", *(f"--{key}={value}" for key, value in flags.items())]
        with (self.cluster.directory / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def signal(self, number: int) -> None:
        """SIGSTOP puts it to sleep, SIGCONT wakes it."""
        assert self._process
        self._process.send_signal(number)

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def unplug(self) -> None:
        """Off the wire."""
        self.ns.command("ip", "link", "set", "eth0", "down")

    def plug(self) -> None:
        """On it again."""
        self.ns.command("ip", "link", "set", "eth0", "up")

    def ctl(self, *words: str, timeout_s: float = 5) -> str:
        """etcdctl from this member's own machine; empty when it fails."""
        tls = self.cluster.tls
        flags = [f"--endpoints=127.0.0.1:{CLIENT}", f"--cacert={tls}/ca.pem", f"--cert={tls}/client.pem"]
        command = ["ip", "netns", "exec", self.ns.name, "etcdctl", *flags, f"--key={tls}/client.key", *words]
        with suppress(subprocess.SubprocessError):
            environment = {**os.environ, "ETCDCTL_API": "3"}
            done = subprocess.run(command, capture_output=True, timeout=timeout_s, env=environment)
            return (done.stdout or done.stderr).decode() if done.returncode == 0 else ""  # `health` tells on stderr
        return ""

    def status(self) -> dict[str, int]:
        """Its view: header.member_id, leader, dbSize; empty when it does not answer."""
        told = self.ctl("endpoint", "status", "--write-out=json", "--command-timeout=2s")
        return msgspec.json.decode(told)[0]["Status"] if told else {}

    def leads(self) -> bool:
        """Whether it is the leader, in its own eyes."""
        status = self.status()
        return bool(status) and status.get("leader") == status["header"]["member_id"]  # without a leader, not told


class Cluster:
    """Three members on the wire of a lab."""

    def __init__(self, stack: ExitStack, directory: Path, plug: Callable[[Namespace, str], None]) -> None:
        self.directory, self.tls = directory, directory / "tls"
        directory.mkdir()
        addresses = [f"203.0.113.{number}" for number in (2, 3, 4)]
        make_tls(self.tls, addresses)
        self.members: list[Member] = []
        for number, address in enumerate(addresses, 1):
            ns = stack.enter_context(Namespace(unique("mn-")))
            plug(ns, address)
            member = Member(self, f"e{number}", ns, address)
            self.members.append(member)
            stack.callback(member.kill)
        self.initial = ",".join(f"{m.name}=https://{m.address}:{PEER}" for m in self.members)

    @property
    def urls(self) -> str:
        """For --etcd."""
        return ",".join(f"https://{member.endpoint}" for member in self.members)

    @property
    def flags(self) -> tuple[str, ...]:
        """For `init`."""
        tls = f"--etcd-ca={self.tls}/ca.pem", f"--etcd-cert={self.tls}/client.pem", f"--etcd-key={self.tls}/client.key"
        return f"--etcd={self.urls}", *tls, f"--etcd-server-name={NAME}"

    def start(self) -> None:
        """Those that do not run; until all see a leader."""
        for member in self.members:
            if not member.is_running:
                member.start()
        self.healthy()

    def healthy(self) -> None:
        """Wait until every member that runs can decide."""
        try:
            until_healthy(lambda: all(m.ctl("endpoint", "health") for m in self.members), "all of etcd is healthy")
        except AssertionError as error:
            logs = (self.directory / f"{member.name}.log" for member in self.members)
            raise AssertionError(*error.args, [log.read_text()[-600:] for log in logs]) from None

    def leader(self) -> Member:
        """Who leads now."""
        found: list[Member] = []

        def look() -> bool:
            found[:] = [member for member in self.members if member.is_running and member.leads()]
            return bool(found)

        until_healthy(look, "etcd has a leader")
        return found[0]

    def followers(self) -> list[Member]:
        """The others."""
        leader = self.leader()
        return [member for member in self.members if member is not leader]

    def mend(self) -> None:
        """Wake, plug and start all."""
        for member in self.members:
            if member.is_running:
                member.signal(signal.SIGCONT)
            member.plug()
        self.start()

    def fill(self) -> None:
        """Until it takes no more writes."""
        member, value = self.leader(), "x" * 100_000
        for number in range(1000):
            if not member.ctl("put", f"/filler/{number}", value):
                return
        raise AssertionError("the quota was never reached")

    def drain(self) -> None:
        """What an administrator does then."""
        member = self.leader()
        member.ctl("del", "--prefix", "/filler/")
        revision = member.status()["header"]["revision"]  # type: ignore[index]
        member.ctl("compact", str(revision))
        for one in self.members:
            one.ctl("defrag", timeout_s=20)
        member.ctl("alarm", "disarm")
