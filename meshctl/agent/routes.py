"""Links, addresses and routes of this host, as one mesh interface needs them, and the kernel's announcements of change.

Shared by both kinds of WireGuard; pyroute2 is imported late, because it is 13 MB. Must not know of keys or peers, and
never touches a link, address or route that is not the mesh interface's or our fail-closed one. Meets NET-3, NET-4.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from meshctl import lean
from meshctl.agent.lookup import RouteLookup
from meshctl.errors import EnvironmentFault
from meshctl.mesh.interface import AddressOnLink, Route, network
from meshctl.mesh.model import Address, Network

if TYPE_CHECKING:
    from pyroute2.iproute.linux import AsyncIPRoute

# linux/netlink.h, linux/rtnetlink.h, linux/netfilter/nfnetlink.h
_NETLINK_NETFILTER: Final = 12
_GROUPS: Final = {
    "route": (socket.NETLINK_ROUTE, 0x1 | 0x550 | 0x40080),  # links; addresses and routes of v4, v6; rules of v4, v6
    "nft": (_NETLINK_NETFILTER, 1 << 6),  # NFNLGRP_NFTABLES is group 7
}
_MAIN_TABLE: Final = 254
_UNICAST: Final = 1
_SCOPE_NOWHERE: Final = 255  # any, in a deletion
_UNREACHABLE: Final = 7
_PROTO_KERNEL: Final = 2
_PROTO_MESHCTL: Final = 109  # in /etc/iproute2/rt_protos nobody has it; it marks our fail-closed routes as ours
_V6_METRIC: Final = 1024  # IP6_RT_PRIO_USER: what the kernel makes of no metric
_LOCK_MTU: Final = 1 << 2  # RTAX_MTU
_IFF_UP: Final = 1
_TUNNELS: Final = {"wireguard", "tun"}
_NO_ROUTE: Final = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL}
_DEFAULT_MTU: Final = 1500  # Ethernet, where no device says otherwise
_RECEIVE_BYTES: Final = 65536


class Announcements:
    """What the kernel says has changed since it was last asked: `route` (links and addresses too) and `nft`."""

    def __init__(self) -> None:
        self._stale = set(_GROUPS)
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._sockets = {kind: _listener(*address) for kind, address in _GROUPS.items()}
        for kind, listener in self._sockets.items():
            self._loop.add_reader(listener, self._drain, kind)

    def _drain(self, kind: str) -> None:
        try:
            while True:
                self._sockets[kind].recv(_RECEIVE_BYTES)
                self._announce(kind)
        except BlockingIOError:
            pass
        except OSError:  # ENOBUFS: announcements were lost, which is an announcement
            self._announce(kind)

    def _announce(self, kind: str) -> None:
        self._stale.add(kind)
        self._news.set()

    def take(self, kind: Literal["route", "nft"]) -> bool:
        """Whether `kind` has changed since the last take; what follows is news again."""
        self._drain(kind)
        stale = kind in self._stale
        self._stale.discard(kind)
        return stale

    async def wait(self) -> None:
        """Until something is announced."""
        await self._news.wait()
        self._news.clear()

    def close(self) -> None:
        """Stop listening."""
        for listener in self._sockets.values():
            self._loop.remove_reader(listener)
            listener.close()


def _listener(protocol: int, groups: int) -> socket.socket:
    listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
    try:
        listener.bind((0, groups))
    except OSError as error:
        listener.close()
        raise EnvironmentFault(
            f"cannot listen to the kernel: {error.strerror}", "meshctl needs root (CAP_NET_ADMIN)"
        ) from error
    return listener


@dataclass(frozen=True, slots=True)
class Link:
    """The mesh interface as a link. `routes` are its own and our unreachable ones, without what the kernel makes."""

    index: int
    mtu: int
    up: bool
    addresses: frozenset[AddressOnLink]
    routes: frozenset[Route]


class Host:
    """The one link we may change, and what is around it."""

    def __init__(self, interface: str, ipr: AsyncIPRoute) -> None:
        self._interface, self._ipr, self._lookup = interface, ipr, RouteLookup()
        self._fail_closed: set[Network] = set()  # set by this process: ours whatever else is gone

    @classmethod
    async def open(cls, interface: str) -> Host:
        """With its own netlink sockets, in the network namespace of the caller."""
        with lean.imports():
            from pyroute2.iproute.linux import AsyncIPRoute

        with _translated():
            ipr = AsyncIPRoute(strict_check=True)
            await ipr.setup_endpoint()
            return cls(interface, ipr)

    async def close(self) -> None:
        """Let go of the sockets."""
        self._lookup.close()
        self._ipr.close()

    async def look(self, guarded: frozenset[Network]) -> Link | None:
        """The link now, or None. Our unreachable routes are known by protocol and by a prefix of this mesh."""
        with _translated():
            link = await self._link()
            if link is None:
                return None
            index = link["index"]
            addresses = {
                ip_interface(f"{a.get('local') or a.get('address')}/{a['prefixlen']}")
                async for a in await self._ipr.addr("dump", index=index)
                if a["index"] == index
            }
            routes = frozenset(
                [_route(r) async for r in self._routes(oif=index) if r["type"] == _UNICAST and _is_foreign(r)]
            )
        mesh = guarded | {route.prefix for route in routes}
        return Link(
            index, link.get("mtu"), bool(link["flags"] & _IFF_UP),
            frozenset(a for a in addresses if not a.is_link_local), routes | await self.unreachable(mesh),
        )  # fmt: skip

    async def unreachable(self, mesh: frozenset[Network]) -> frozenset[Route]:
        """Our fail-closed routes, of the prefixes in `mesh` and of those this process has set."""
        mine = mesh | self._fail_closed
        with _translated():
            found = [_route(r) async for r in self._routes(type=_UNREACHABLE) if r["proto"] == _PROTO_MESHCTL]
        return frozenset(route for route in found if route.unreachable and route.prefix in mine)

    async def _link(self) -> Any:
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            return (await self._ipr.link("get", ifname=self._interface))[0]
        except NetlinkError as error:
            if error.code == errno.ENODEV:
                return None
            raise

    async def _routes(self, **match: int) -> AsyncIterator[Any]:
        for family in (socket.AF_INET, socket.AF_INET6):
            async for route in await self._ipr.route("dump", family=family, table=_MAIN_TABLE, **match):
                # An old kernel does not filter dumps: look again.
                if route.get("table") == _MAIN_TABLE and match.get("oif") in (None, route.get("oif")):
                    yield route

    async def _index(self) -> int:
        link = await self._link()
        if link is None:
            raise EnvironmentFault(f"interface {self._interface} is gone", "the next pass creates it again")
        return int(link["index"])

    async def create_link(self, kind: str) -> None:
        """A new link of this kind, down. Raises EnvironmentFault, also when the name is taken."""
        with _translated():
            await self._ipr.link("add", ifname=self._interface, kind=kind)

    async def remove_link(self) -> None:
        """Remove the link, and with it its addresses and routes, if it is there."""
        with _translated():
            link = await self._link()
            if link is not None:
                await self._ipr.link("del", index=link["index"])

    async def set_mtu(self, mtu: int) -> None:
        """Bytes of the largest packet inside the tunnel."""
        with _translated():
            await self._ipr.link("set", index=await self._index(), mtu=mtu)

    async def set_up(self) -> None:
        """Bring the link up, with IPv6 on it even where the host's default is none."""
        with contextlib.suppress(OSError):  # no IPv6 at all, or /proc is read-only: adding the address will say so
            Path(f"/proc/sys/net/ipv6/conf/{self._interface}/disable_ipv6").write_text("0")  # noqa: ASYNC240
        with _translated():
            await self._ipr.link("set", index=await self._index(), state="up")

    async def add_address(self, address: AddressOnLink) -> None:
        """Add, or keep."""
        with _translated():
            await self._ipr.addr(
                "replace", index=await self._index(), address=str(address.ip), prefixlen=address.network.prefixlen
            )

    async def remove_address(self, address: AddressOnLink) -> None:
        """Remove an address that is there."""
        with _translated():
            await self._ipr.addr(
                "del", index=await self._index(), address=str(address.ip), prefixlen=address.network.prefixlen
            )

    async def add_route(self, route: Route) -> None:
        """Add, in place of any route of the same prefix and metric."""
        with _translated():
            # Locked: packets are fragmented down to it, and what a router claims does not change it.
            metrics = {"metrics": {"mtu": route.mtu, "lock": _LOCK_MTU}} if route.mtu else {}
            await self._ipr.route("replace", proto=_PROTO_MESHCTL, **metrics, **await self._specified(route))
        if route.unreachable:
            self._fail_closed.add(route.prefix)

    async def remove_route(self, route: Route) -> None:
        """Remove a route that is there."""
        with _translated():
            # Whoever made it: without these, pyroute2 looks for a route of protocol static, type unicast.
            anybody = {"proto": 0, "scope": _SCOPE_NOWHERE, "type": 0}
            await self._ipr.route("del", **anybody | await self._specified(route))

    async def _specified(self, route: Route) -> dict[str, object]:
        target: dict[str, object] = {"dst": str(route.prefix), "table": _MAIN_TABLE}
        if route.metric:
            target["priority"] = route.metric
        if route.unreachable:
            return target | {"type": "unreachable"}
        return target | {"oif": await self._index()}

    async def underlay_mtu(self) -> int:
        """See Device: the default route's device, else the least of all that are up and no tunnel."""
        links = await self._underlay()
        with _translated():
            defaults = [
                (r.get("priority") or 0, r.get("oif"))
                async for r in self._routes()
                if r["dst_len"] == 0 and r.get("oif") in links
            ]
        if defaults:
            return int(links[min(defaults)[1]].get("mtu"))
        return min((int(link.get("mtu")) for link in links.values()), default=_DEFAULT_MTU)

    async def local_networks(self) -> tuple[tuple[Address, Network], ...]:
        """See Device."""
        links = await self._underlay()
        with _translated():
            found = [
                ip_interface(f"{a.get('local') or a.get('address')}/{a['prefixlen']}")
                async for a in await self._ipr.addr("dump")
                if a["index"] in links
            ]
        return tuple((item.ip, network(str(item.network))) for item in found if not item.is_link_local)

    async def _underlay(self) -> dict[int, Any]:
        """Links that are up, by index: neither loopback nor tunnel, as only another tunnel's packets leave by those."""
        with _translated():
            return {
                link["index"]: link
                async for link in await self._ipr.link("dump")
                if link["flags"] & _IFF_UP
                and link.get("ifname") not in ("lo", self._interface)
                and link.get(("linkinfo", "kind")) not in _TUNNELS
            }

    async def route_leaks(self, addresses: Iterable[Address]) -> tuple[Address, ...]:
        """See Device. One lookup per address, as the kernel would do it for a packet of this host."""
        leaks = []
        with _translated():
            link = await self._link()
            for address in addresses:
                try:
                    device = self._lookup.device(address)
                except OSError as error:
                    if error.errno not in _NO_ROUTE:
                        raise
                    continue
                if link is None or device != link["index"]:
                    leaks.append(address)
        return tuple(leaks)


def _route(message: Any) -> Route:
    version6 = message["family"] == socket.AF_INET6
    base = message.get("dst") or ("::" if version6 else "0.0.0.0")
    metric = message.get("priority") or 0
    unreachable = message["type"] == _UNREACHABLE
    prefix, mtu = network(f"{base}/{message['dst_len']}"), message.get(("metrics", "mtu")) or 0
    return Route(prefix, unreachable, 0 if version6 and metric == _V6_METRIC else metric, mtu)


def _is_foreign(message: Any) -> bool:
    """Not made by the kernel itself for an address, nor IPv6 link-local or multicast."""
    destination = message.get("dst")
    return message["proto"] != _PROTO_KERNEL and not (
        destination and (ip_address(destination).is_link_local or ip_address(destination).is_multicast)
    )


@contextmanager
def _translated() -> Iterator[None]:
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        yield
    except NetlinkError as error:
        hint = "meshctl needs root (CAP_NET_ADMIN)" if error.code in (errno.EPERM, errno.EACCES) else ""
        raise EnvironmentFault(f"the kernel refused: {os.strerror(error.code)}", hint) from error
    except OSError as error:
        raise EnvironmentFault(f"netlink: {error.strerror}") from error
