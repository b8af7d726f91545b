"""WireGuard in userspace: a `wireguard-go` that outlives the agent, spoken to through its UAPI socket (NET-1, NET-4).

The daemon detaches itself, so an agent that restarts finds its sessions alive. It ends when its interface is removed,
so nobody has to remember or kill a process. Must not touch links or routes, and sends no replace_peers (that ends
every session).
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from itertools import chain
from pathlib import Path
from typing import Final, assert_never

from meshctl.agent import sockets
from meshctl.agent.device import PeerMemory, Wire, WireStep
from meshctl.errors import EnvironmentFault
from meshctl.mesh import plan
from meshctl.mesh.interface import Peer, Session, network
from meshctl.mesh.keys import KEY_BYTES, PresharedKey, PrivateKey, PublicKey
from meshctl.mesh.model import Endpoint

ANSWER_WITHIN_S: Final = 10.0  # 10,000 new peers in one transaction take 1.5 s, a new private key with as many 0.9 s
START_WITHIN_S: Final = 10.0
_POLL_S: Final = 0.005
_RECEIVE_BYTES: Final = 1 << 20
_GONE: Final = (FileNotFoundError, ConnectionError)  # no daemon, or one that ended while we spoke
_ZEROS: Final = bytes(KEY_BYTES)
_NOTHING: Final = ("", ("", ""))
# What moves by itself sits together between these, in the middle of a peer's lines; wireguard-go writes tx before rx.
_MOVING: Final = "last_handshake_time_sec="
_STILL: Final = "persistent_keepalive_interval="


def socket_path(interface: str) -> Path:
    """Where every userspace WireGuard listens for its configuration. Compiled into wireguard-go."""
    return Path(f"/var/run/wireguard/{interface}.sock")


async def is_served(interface: str) -> bool:
    """Whether a userspace WireGuard answers for `interface`."""
    try:
        with closing(await _connect(interface)):
            return True
    except OSError:
        return False


class UserspaceWireGuard:
    """The WireGuard port over UAPI."""

    kind = "userspace"

    def __init__(self, interface: str) -> None:
        self._interface = interface
        self._memory = PeerMemory(_peer, _session)
        self._told: dict[str, tuple[str, tuple[str, str]]] = {}  # of each peer, by its key: the text, and its parts

    async def create(self) -> None:
        """Start the daemon and wait until it answers. See WireGuard."""
        # Without LOG_LEVEL the daemon logs nothing and takes none of our file descriptors with it.
        environment = {k: v for k, v in os.environ.items() if k != "LOG_LEVEL"}
        starter = await asyncio.create_subprocess_exec(
            "wireguard-go", self._interface, env=environment, start_new_session=True,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            async with asyncio.timeout(START_WITHIN_S):
                said, _ = await starter.communicate()
                while starter.returncode == 0 and not await is_served(self._interface):  # noqa: ASYNC110
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as error:
            raise EnvironmentFault(
                "wireguard-go does not answer", f"see whether something else owns {self._interface}"
            ) from error
        if starter.returncode:
            last = said.decode(errors="replace").strip().rpartition("\n")[2]
            raise EnvironmentFault(
                f"wireguard-go did not start: {last}", "meshctl needs root (CAP_NET_ADMIN) and /dev/net/tun"
            )

    async def read(self) -> Wire | None:
        """See WireGuard. One transaction; only what has changed since the last one is parsed."""
        try:
            text = await transact(self._interface, "get=1\n\n")
        except _GONE:
            return None
        head, *blocks = text.removesuffix("\n\n").rpartition("\nerrno=")[0].split("\npublic_key=")
        own = dict(line.split("=", 1) for line in head.split("\n") if line)
        before, self._told = self._told, {}
        for block in blocks:  # the daemon's order is another one each time
            key = block[: 2 * KEY_BYTES]
            told = before.get(key, _NOTHING)
            self._told[key] = told if told[0] == block else (block, _apart(block))
        peers, sessions = self._memory.recall(dict([parts for _, parts in self._told.values()]))
        private = bytes.fromhex(own.get("private_key", ""))
        return Wire(
            PrivateKey(private) if private.strip(b"\0") else None, int(own.get("listen_port", 0)), peers, sessions
        )

    async def configure(self, steps: Sequence[WireStep]) -> None:
        """See WireGuard."""
        try:
            answer = await transact(self._interface, "".join(chain(["set=1\n"], map(_uapi, steps), ["\n"])))
        except _GONE as error:
            raise EnvironmentFault(f"no WireGuard serves {self._interface}", "the next pass starts one") from error
        number = abs(int(answer.strip().removeprefix("errno=")))
        if number:
            hint = (
                "another process has this UDP port: choose one with --listen-port" if number == errno.EADDRINUSE else ""
            )
            raise EnvironmentFault(f"wireguard-go refused: {os.strerror(number)}", hint)

    async def raised(self) -> None:
        """See WireGuard: the daemon hears of its link by itself, a moment later, and opens its UDP port then."""
        with suppress(TimeoutError):
            async with asyncio.timeout(START_WITHIN_S):
                while (wire := await self.read()) and not sockets.inodes(wire.listen_port):  # noqa: ASYNC110
                    await asyncio.sleep(_POLL_S)

    async def close(self) -> None:
        """Nothing is held between two transactions."""


async def _connect(interface: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        await asyncio.get_running_loop().sock_connect(connection, str(socket_path(interface)))
    except BaseException:
        connection.close()
        raise
    return connection


async def transact(interface: str, request: str) -> str:
    """One UAPI transaction: the answer with its errno line. Raises EnvironmentFault; a daemon that is gone, `_GONE`."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(ANSWER_WITHIN_S):
            with closing(await _connect(interface)) as connection:
                await loop.sock_sendall(connection, request.encode())
                answer = bytearray()
                while not answer.endswith(b"\n\n"):
                    part = await loop.sock_recv(connection, _RECEIVE_BYTES)
                    if not part:
                        raise ConnectionRefusedError(errno.ECONNREFUSED, "closed in the middle of an answer")
                    answer += part
                return answer.decode()
    except _GONE:
        raise
    except TimeoutError as error:
        raise EnvironmentFault(
            f"wireguard-go does not answer for {interface}", "it hangs: end it, the next pass starts another"
        ) from error
    except OSError as error:
        raise EnvironmentFault(f"cannot speak to wireguard-go: {error.strerror}", "meshctl needs root") from error


def _apart(block: str) -> tuple[str, str]:
    """What the daemon tells of one peer: what stands still, and what moves by itself."""
    before, _, rest = block.partition(_MOVING)
    moving, _, after = rest.partition(_STILL)
    return f"{before}{_STILL}{after}", moving


def _peer(description: str) -> Peer:
    lines = [line.partition("=") for line in f"public_key={description}".split("\n") if line]
    values = {key: value for key, _, value in lines}
    preshared = bytes.fromhex(values.get("preshared_key", ""))
    return Peer(
        PublicKey(bytes.fromhex(values["public_key"])),
        tuple(network(value) for key, _, value in lines if key == "allowed_ip"),
        Endpoint.parse(values["endpoint"]) if "endpoint" in values else None,
        int(values.get("persistent_keepalive_interval", 0)),
        PresharedKey(preshared) if preshared.strip(b"\0") else None,
    )


def _session(peer: Peer, moving: str) -> Session:
    seconds, nanoseconds, sent, received = (int(line.rpartition("=")[2]) for line in moving.splitlines())
    return Session(peer.endpoint, seconds + nanoseconds / 1e9, received, sent)


def _uapi(step: WireStep) -> str:
    match step:
        case plan.SetPrivateKey(key):
            return f"private_key={key.raw.hex()}\n"
        case plan.SetListenPort(port):
            return f"listen_port={port}\n"
        case plan.RemovePeer(key):
            return f"public_key={key.raw.hex()}\nremove=true\n"
        case plan.AddPeer(peer):
            return _whole(peer)
        case plan.RestartPeer(peer):
            return f"public_key={peer.public_key.raw.hex()}\nremove=true\n{_whole(peer)}"
        case plan.UpdatePeer(peer, changed):
            return f"public_key={peer.public_key.raw.hex()}\nupdate_only=true\n" + "".join(_lines(peer, changed))
        case _ as never:
            assert_never(never)


def _whole(peer: Peer) -> str:
    name = f"public_key={peer.public_key.raw.hex()}\n"
    # A peer works from its second mention on, and the daemon drops what it would send to one that does not work yet.
    text = f"{name}{''.join(_lines(peer, ('preshared_key', 'endpoint')))}"
    text += f"{name}{''.join(_lines(peer, ('allowed_ips', 'keepalive_s')))}"
    if peer.endpoint is None or peer.keepalive_s:
        return text
    # A keepalive that is switched on is sent at once, and starts the handshake; then it is switched off again.
    return f"{text}{name}persistent_keepalive_interval=1\n{name}persistent_keepalive_interval=0\n"


def _lines(peer: Peer, fields: Sequence[str]) -> Iterator[str]:
    for field in fields:
        match field:
            case "preshared_key":
                yield f"preshared_key={(peer.preshared_key.raw if peer.preshared_key else _ZEROS).hex()}\n"
            case "endpoint" if peer.endpoint:
                yield f"endpoint={peer.endpoint}\n"
            case "keepalive_s":
                yield f"persistent_keepalive_interval={peer.keepalive_s}\n"
            case "allowed_ips":
                yield "replace_allowed_ips=true\n"
                yield from (f"allowed_ip={ip}\n" for ip in peer.allowed_ips)
