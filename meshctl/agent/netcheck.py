"""Tries the ways to the coordinators, before joining or after: TCP, TLS, first contact, UDP, path MTU (NET-1, OPS-4).

Sends to the coordinators' own addresses and to nobody else, and no secret: of the token only what stands for the
CA is used. Judges nothing (mesh/ways.py does) and changes nothing; natcheck.py is the part that speaks UDP.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

import grpc

from meshctl.agent import channel, natcheck
from meshctl.errors import MeshError, TrustError
from meshctl.mesh.ways import Way
from meshctl.wire import codec, status, unary

_TIMEOUT_S: Final = 10.0
_CONNECT_S: Final = 5.0  # TCP alone


Found = Mapping[socket.AddressFamily, natcheck.Address]


async def look(addresses: Iterable[str], ca: bytes, port: int) -> tuple[Way, ...]:
    """All coordinators at once; each answers or does not within seconds. `ca`: its certificate or an anchor (DER);
    `port`: WireGuard's, for UDP.
    """
    names = tuple(dict.fromkeys(addresses))
    found = dict(zip(names, await asyncio.gather(*map(_resolve, names)), strict=True))
    there = {address: places for address, places in found.items() if not isinstance(places, Way)}
    async with asyncio.TaskGroup() as group:
        udp = group.create_task(natcheck.measure({a: places.items() for a, places in there.items()}, port))
        tcp = {a: group.create_task(_way(a, places, ca)) for a, places in there.items()}
    looks, ways = udp.result(), {address: task.result() for address, task in tcp.items()}
    return tuple(
        places
        if isinstance(places, Way)
        else replace(ways[a], looks=looks[a], udp=looks[a][0].answer if looks[a] else "")
        for a, places in found.items()
    )


async def _way(address: str, places: Found, ca: bytes) -> Way:
    family, target = next(iter(places.items()))
    here = natcheck.local(family, target)
    way = Way(address) if isinstance(here, str) else Way(address, source=here.host, mtu=here.mtu)
    try:
        begun = time.monotonic()
        async with asyncio.timeout(_CONNECT_S):
            _, writer = await asyncio.open_connection(target[0], target[1])
        way = replace(way, connect_s=time.monotonic() - begun)
        writer.close()
        return await _first_contact(way, ca)
    except MeshError as error:
        return replace(way, error=error.what, hint=error.hint, trusted=not isinstance(error, TrustError))
    except (OSError, TimeoutError) as error:
        why = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        what, hint = f"coordinator {address}: TCP {why}", "is it running, and is its TCP port open from here?"
        return replace(way, error=what, hint=hint)


async def _resolve(address: str) -> Found | Way:
    """Its first address of each IP version; a Way that says why there is none."""
    try:
        host, port = channel.split(address)
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except MeshError as error:
        return Way(address, error.what, error.hint)
    except OSError as error:
        return Way(address, f"coordinator {address}: its name is not found: {error.strerror}", "is DNS right here?")
    places: dict[socket.AddressFamily, natcheck.Address] = {}
    for family, _, _, _, target in found:
        places.setdefault(family, target)
    return places


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
