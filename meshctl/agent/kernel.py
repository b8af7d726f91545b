"""WireGuard in the kernel, through pyroute2's generic netlink (NET-1, NET-3).

pyroute2 carries the messages; the peers inside are packed and unpacked here (its own encoder takes 204 us a peer and
one message each, this one 5 us and 250 a message). A dump arrives in several messages: a peer may be continued in the
next one, and a dump that was interrupted is read again. Must not touch links or routes, sends no fwmark (that clears
cached source addresses) and no replace_peers (that ends every session).
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from ipaddress import ip_address
from struct import Struct
from typing import Any, Final, assert_never

from meshctl.agent.device import PeerMemory, Wire, WireStep
from meshctl.agent.routes import Host
from meshctl.errors import EnvironmentFault
from meshctl.mesh import plan
from meshctl.mesh.interface import Peer, Session, network
from meshctl.mesh.keys import KEY_BYTES, PresharedKey, PrivateKey, PublicKey
from meshctl.mesh.model import Endpoint

# linux/netlink.h, linux/wireguard.h
_REQUEST: Final = 0x1
_ACK: Final = 0x4
_DUMP: Final = 0x300
_DUMP_INTR: Final = 0x10
_GET, _SET = 0, 1
_PEER_PUBLIC_KEY, _PEER_PRESHARED_KEY, _PEER_FLAGS, _PEER_ENDPOINT, _PEER_KEEPALIVE = 1, 2, 3, 4, 5
_PEER_LAST_HANDSHAKE, _PEER_RX, _PEER_TX, _PEER_ALLOWED_IPS = 6, 7, 8, 9
_REMOVE, _REPLACE_ALLOWED_IPS, _UPDATE_ONLY = 1, 2, 4
_IP_FAMILY, _IP_ADDRESS, _IP_MASK = 1, 2, 3
_NESTED: Final = 0x8000
_TYPE_MASK: Final = 0x3FFF

_HEADER: Final = Struct("=HH")
_U8, _U16, _U32, _U64 = Struct("=B"), Struct("=H"), Struct("=I"), Struct("=Q")
_TIMESPEC: Final = Struct("=qq")
_NO_KEY: Final = bytes(KEY_BYTES)
_DUMP_TRIES: Final = 5  # each is interrupted only by a peer that comes or goes within its milliseconds

Still = tuple[bytes, bytes, bytes, bytes, bytes]  # public key, preshared key, endpoint, keepalive, allowed IPs
Moving = tuple[bytes, bytes, bytes]  # last handshake, received, sent


class KernelWireGuard:
    """The WireGuard port over generic netlink."""

    kind = "kernel"

    def __init__(self, interface: str, host: Host, netlink: Any) -> None:
        self._interface, self._host, self._netlink = interface, host, netlink
        self._memory = PeerMemory(_peer, _session)

    @classmethod
    async def open(cls, interface: str, host: Host) -> KernelWireGuard | None:
        """None when the kernel has no WireGuard; asking for the family loads the module where there is one."""
        from pyroute2.netlink.exceptions import NetlinkError
        from pyroute2.netlink.generic import AsyncGenericNetlinkSocket

        netlink = AsyncGenericNetlinkSocket()
        netlink.module_err_level = "debug"  # its absence is an answer, not an error
        try:
            await netlink.bind("wireguard", _message())
        except NetlinkError as error:
            netlink.close()
            if error.code == errno.ENOENT:
                return None
            raise _fault(error.code) from error
        return cls(interface, host, netlink)

    async def create(self) -> None:
        """See WireGuard."""
        await self._host.create_link("wireguard")

    async def raised(self) -> None:
        """See WireGuard: the kernel knows at once."""

    async def close(self) -> None:
        """See WireGuard."""
        self._netlink.close()

    async def read(self) -> Wire | None:
        """See WireGuard. Raises EnvironmentFault when the name belongs to another kind of link."""
        parts = await self.dump()
        if not parts:
            return None
        peers, sessions = self._memory.recall(_rows(part.get("peers") or b"" for part in parts))
        private = parts[0].get("private_key") or _NO_KEY
        port = parts[0].get("listen_port") or 0
        return Wire(PrivateKey(private) if private != _NO_KEY else None, port, peers, sessions)

    async def dump(self) -> list[Any]:
        """The messages of one uninterrupted dump; none when there is no such interface. Raises EnvironmentFault."""
        for _ in range(_DUMP_TRIES):
            parts = await self._request(_GET, _REQUEST | _DUMP, [], (errno.ENODEV,))
            if not any(part["header"]["flags"] & _DUMP_INTR for part in parts):
                return parts
        raise EnvironmentFault(f"{self._interface} changes faster than it can be read", "see who else configures it")

    async def configure(self, steps: Sequence[WireStep]) -> None:
        """See WireGuard."""
        attributes: list[tuple[str, object]] = []
        peers = bytearray()
        for step in steps:
            match step:
                case plan.SetPrivateKey(key):
                    attributes.append(("WGDEVICE_A_PRIVATE_KEY", key.raw))
                case plan.SetListenPort(port):
                    attributes.append(("WGDEVICE_A_LISTEN_PORT", port))
                case _:
                    peers += b"".join(_packed(step))
        if peers:
            attributes.append(("WGDEVICE_A_PEERS", bytes(peers)))
        await self._request(_SET, _REQUEST | _ACK, attributes)

    async def _request(
        self, command: int, flags: int, attributes: list[tuple[str, object]], absent: tuple[int, ...] = ()
    ) -> list[Any]:
        from pyroute2.netlink.exceptions import NetlinkError

        message = _message()()
        message["cmd"], message["version"] = command, 1
        message["attrs"] = [("WGDEVICE_A_IFNAME", self._interface), *attributes]
        try:
            answers = await self._netlink.nlm_request(message, msg_type=self._netlink.prid, msg_flags=flags)
            return [answer async for answer in answers]
        except NetlinkError as error:
            if error.code in absent:
                return []
            raise _fault(error.code) from error
        except OSError as error:
            raise _fault(error.errno or errno.EIO) from error


def _fault(code: int) -> EnvironmentFault:
    hints = {
        errno.EPERM: "meshctl needs root (CAP_NET_ADMIN)",
        errno.EADDRINUSE: "another process has this UDP port: choose one with --listen-port",
        errno.EOPNOTSUPP: "another kind of interface has this name: choose one with --interface",
    }
    return EnvironmentFault(f"WireGuard refused: {os.strerror(code)}", hints.get(code, ""))


@cache
def _message() -> type[Any]:
    """pyroute2's message with the peers left as bytes. Made late, as pyroute2 is imported late."""
    from pyroute2.netlink import genlmsg

    class Message(genlmsg):  # type: ignore[misc]
        prefix = "WGDEVICE_A_"
        nla_map = (
            ("WGDEVICE_A_UNSPEC", "none"),
            ("WGDEVICE_A_IFINDEX", "uint32"),
            ("WGDEVICE_A_IFNAME", "asciiz"),
            ("WGDEVICE_A_PRIVATE_KEY", "cdata"),
            ("WGDEVICE_A_PUBLIC_KEY", "cdata"),
            ("WGDEVICE_A_FLAGS", "uint32"),
            ("WGDEVICE_A_LISTEN_PORT", "uint16"),
            ("WGDEVICE_A_FWMARK", "uint32"),
            ("WGDEVICE_A_PEERS", "nested_cdata"),
        )

        class nested_cdata(genlmsg.cdata):  # type: ignore[misc]
            nla_flags = _NESTED  # the kernel refuses a list that does not say that it is one

    return Message


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        length, kind = _HEADER.unpack_from(data, at)
        if length < 4:
            return
        yield kind & _TYPE_MASK, data[at + 4 : at + length]
        at += (length + 3) & ~3


def _rows(parts: Iterable[bytes]) -> dict[Still, Moving]:
    """Every peer of a dump, those continued in a later message merged."""
    peers: dict[bytes, dict[int, bytes]] = {}
    for part in parts:
        for _, nested in _attributes(part):
            row = dict(_attributes(nested))
            known = peers.setdefault(row[_PEER_PUBLIC_KEY], row)
            if known is not row:
                known[_PEER_ALLOWED_IPS] = known.get(_PEER_ALLOWED_IPS, b"") + row.get(_PEER_ALLOWED_IPS, b"")
    rows = {}
    for key, row in peers.items():
        still = row.get(_PEER_PRESHARED_KEY, _NO_KEY), row.get(_PEER_ENDPOINT, b""), row.get(_PEER_KEEPALIVE, b"\0\0")
        moving = row.get(_PEER_LAST_HANDSHAKE, bytes(16)), row.get(_PEER_RX, bytes(8)), row.get(_PEER_TX, bytes(8))
        rows[(key, *still, row.get(_PEER_ALLOWED_IPS, b""))] = moving
    return rows


def _session(peer: Peer, moving: Moving) -> Session:
    stamp, received, sent = moving
    seconds, nanoseconds = _TIMESPEC.unpack(stamp)
    return Session(peer.endpoint, seconds + nanoseconds / 1e9, _U64.unpack(received)[0], _U64.unpack(sent)[0])


def _peer(still: Still) -> Peer:
    key, preshared, endpoint, keepalive, allowed = still
    ips = []
    for _, nested in _attributes(allowed):
        entry = dict(_attributes(nested))
        ips.append(network(f"{ip_address(entry[_IP_ADDRESS])}/{entry[_IP_MASK][0]}"))
    return Peer(
        PublicKey(key), tuple(ips), _endpoint(endpoint), _U16.unpack(keepalive)[0],
        PresharedKey(preshared) if preshared != _NO_KEY else None,
    )  # fmt: skip


def _endpoint(sockaddr: bytes) -> Endpoint | None:
    if not sockaddr:
        return None
    port = int.from_bytes(sockaddr[2:4], "big")
    v4 = _U16.unpack_from(sockaddr)[0] == socket.AF_INET
    return Endpoint(ip_address(sockaddr[4:8] if v4 else sockaddr[8:24]), port)


def _sockaddr(endpoint: Endpoint) -> bytes:
    port = endpoint.port.to_bytes(2, "big")
    if endpoint.address.version == 4:
        return _U16.pack(socket.AF_INET) + port + endpoint.address.packed + bytes(8)
    return _U16.pack(socket.AF_INET6) + port + bytes(4) + endpoint.address.packed + bytes(4)


def _attribute(kind: int, data: bytes) -> bytes:
    return _HEADER.pack(len(data) + 4, kind) + data + bytes(-len(data) % 4)


def _packed(step: WireStep) -> Iterator[bytes]:
    """A peer step as members of WGDEVICE_A_PEERS, which the kernel does one after the other."""
    match step:
        case plan.RemovePeer(key):
            yield _member(key, _REMOVE)
        case plan.AddPeer(peer):
            yield from _whole(peer)
        case plan.RestartPeer(peer):
            yield _member(peer.public_key, _REMOVE)
            yield from _whole(peer)
        case plan.UpdatePeer(peer, changed):
            yield _fields(peer, changed, _UPDATE_ONLY)
        case plan.SetPrivateKey() | plan.SetListenPort():
            raise TypeError(f"not of a peer: {step}")
        case _ as never:
            assert_never(never)


def _whole(peer: Peer) -> Iterator[bytes]:
    yield _fields(peer, ("preshared_key", "endpoint", "allowed_ips", "keepalive_s"), 0)
    if peer.endpoint and not peer.keepalive_s:
        # A keepalive that is switched on is sent at once, and starts the handshake; then it is switched off again.
        for seconds in (1, 0):
            yield _member(peer.public_key, _UPDATE_ONLY, _attribute(_PEER_KEEPALIVE, _U16.pack(seconds)))


def _fields(peer: Peer, names: Sequence[str], flags: int) -> bytes:
    parts = []
    for name in names:
        match name:
            case "preshared_key":
                parts.append(_attribute(_PEER_PRESHARED_KEY, peer.preshared_key.raw if peer.preshared_key else _NO_KEY))
            case "endpoint" if peer.endpoint:
                parts.append(_attribute(_PEER_ENDPOINT, _sockaddr(peer.endpoint)))
            case "keepalive_s":
                parts.append(_attribute(_PEER_KEEPALIVE, _U16.pack(peer.keepalive_s)))
            case "allowed_ips":
                flags |= _REPLACE_ALLOWED_IPS
                ips = b"".join(
                    _attribute(
                        _NESTED,
                        _attribute(_IP_FAMILY, _U16.pack(socket.AF_INET if ip.version == 4 else socket.AF_INET6))
                        + _attribute(_IP_ADDRESS, ip.network_address.packed)
                        + _attribute(_IP_MASK, _U8.pack(ip.prefixlen)),
                    )
                    for ip in peer.allowed_ips
                )
                parts.append(_attribute(_PEER_ALLOWED_IPS | _NESTED, ips))
    return _member(peer.public_key, flags, *parts)


def _member(key: PublicKey, flags: int, *parts: bytes) -> bytes:
    return _attribute(
        _NESTED, _attribute(_PEER_PUBLIC_KEY, key.raw) + _attribute(_PEER_FLAGS, _U32.pack(flags)) + b"".join(parts)
    )
