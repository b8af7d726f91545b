"""Tries the ways to the coordinators, before joining or after: TCP, TLS, first contact, UDP, path MTU (NET-1, OPS-4).

Sends to the coordinators' own addresses and to nobody else, and no secret: of the token only the CA's fingerprint is
used. Judges nothing (mesh/ways.py does) and changes nothing.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

import grpc

from meshctl.agent import channel
from meshctl.errors import MeshError, TrustError
from meshctl.mesh.ways import Way
from meshctl.wire import codec, status, unary

_IP_MTU: Final = {socket.AF_INET: (socket.IPPROTO_IP, 14), socket.AF_INET6: (socket.IPPROTO_IPV6, 24)}  # linux/in*.h
_UDP_TRIES: Final = 3  # hosts limit how often they refuse
_UDP_WAIT_S: Final = 0.4
_PROBE: Final = b"meshctl netcheck"
_TIMEOUT_S: Final = 10.0


async def look(addresses: Iterable[str], fingerprint: bytes) -> tuple[Way, ...]:
    """All coordinators at once; each answers or does not within seconds."""
    return tuple(await asyncio.gather(*(_way(address, fingerprint) for address in addresses)))


async def _way(address: str, fingerprint: bytes) -> Way:
    try:
        host, port = channel.split(address)
        family, target = await _resolve(address, host, port)
    except MeshError as error:
        return Way(address, error.what, error.hint)
    way = await asyncio.to_thread(_udp, Way(address), family, target)
    try:
        begun = time.monotonic()
        async with asyncio.timeout(channel.CONNECT_TIMEOUT_S):
            _, writer = await asyncio.open_connection(target[0], port)
        way = replace(way, connect_s=time.monotonic() - begun)
        writer.close()
        ca = await channel.fetch_ca(address, fingerprint)
        return await _first_contact(way, ca)
    except MeshError as error:
        return replace(way, error=error.what, hint=error.hint, trusted=not isinstance(error, TrustError))
    except (OSError, TimeoutError) as error:
        why = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        what, hint = f"coordinator {address}: TCP {why}", "is it running, and is its TCP port open from here?"
        return replace(way, error=what, hint=hint)


async def _resolve(address: str, host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise MeshError(
            f"coordinator {address}: its name is not found: {error.strerror}", "is DNS right here?"
        ) from error
    return found[0][0], (str(found[0][4][0]), port)


async def _first_contact(way: Way, ca: bytes) -> Way:
    async with channel.open_channel(way.address, ca) as wire:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await unary.begin(wire, codec.hello())  # its cost is the connection's; the second one tells the time
                sent = time.time()
                challenge = await unary.begin(wire, codec.hello())
                now = time.time()
        except grpc.aio.AioRpcError as error:
            raise status.error(error, f"coordinator {way.address}") from error
    return replace(way, offset_s=challenge.now - (sent + now) / 2, seen=challenge.seen_address)


def _udp(way: Way, family: socket.AddressFamily, target: tuple[str, int]) -> Way:
    """To the port of the coordinator's TCP: nobody listens there with UDP, so its host refuses, and that comes back."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.settimeout(_UDP_WAIT_S)
        try:
            probe.connect(target)
            way = replace(way, source=str(probe.getsockname()[0]), mtu=probe.getsockopt(*_IP_MTU[family]))
            for _ in range(_UDP_TRIES):
                probe.send(_PROBE)
                try:
                    probe.recv(64)
                except TimeoutError:
                    continue
                return replace(way, udp="refused")  # somebody answered, even
        except ConnectionRefusedError:
            return replace(way, udp="refused")
        except OSError as error:
            return replace(way, udp=error.strerror or str(error))
    return replace(way, udp="silent")
