"""Looks at this host for `meshctl doctor`: /proc, /sys, `ip -j`, `nft -j` -> Facts (NET-7, OPS-4).

Works before and after joining, as root or not: what could not be looked at is named with the reason. Judges nothing
(mesh/host_checks.py does), changes nothing, and is no part of a running agent.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import re
import socket
import subprocess
from collections.abc import Iterable, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final

from meshctl.agent import sockets
from meshctl.agent.device import is_installed
from meshctl.agent.join import Member
from meshctl.agent.store import Store
from meshctl.config import AgentConfig
from meshctl.errors import MeshError
from meshctl.mesh import host_checks
from meshctl.mesh.catalogue import CLOCK, Verdict
from meshctl.mesh.host_checks import Facts, Flusher, HostRoute, Uplink
from meshctl.mesh.model import Endpoint

_OURS: Final = "109"  # protocol of our fail-closed routes (agent/routes.py)
_NFT_FILE: Final = Path("/etc/nftables.conf")
_WANTS: Final = "/etc/systemd/system/{}.wants/nftables.service"
_TIME_DAEMONS: Final = {"chronyd", "ntpd", "ntpsec", "openntpd", "systemd-timesyn", "systemd-timesyncd"}
_SEALED: Final = ("seal.key", "identity", "membership", "map", "rotation")
_STA_UNSYNC: Final = 0x40  # linux/timex.h
_STATUS_AT: Final = 40  # offset of `status` in struct timex, 64 bit
_NOT_ROOT: Final = "only root may look"
_SKIP: Final = {"local", "broadcast", "multicast", "anycast", "throw", "blackhole"}


def gather(config: AgentConfig, picture: dict[str, Any] | None, silence: str) -> Facts:
    """Everything. `picture`: what the agent answers, if it does; `silence`: why it does not."""
    root, unseen = os.geteuid() == 0, dict[str, str]()
    loose = _loose(config.state_dir)  # before anything opens the store
    joined, saved = _membership(config, unseen)
    interface = saved.saved.interface if saved else config.interface
    port = saved.saved.listen_port if saved else config.listen_port
    kernel = config.device != "userspace" and _kernel_has_wireguard()
    ruleset = _ruleset(unseen) if root else None
    links = _network(interface, unseen)
    commands, watches, owners = _processes() if root else (_commands(), 0, {})
    if not root:
        for code in (host_checks.FIREWALL, host_checks.CAPABILITY, host_checks.INOTIFY, host_checks.TUN):
            unseen[code] = _NOT_ROOT
    if loose is None:
        unseen[host_checks.STATE] = _NOT_ROOT
    most = _number(Path("/proc/sys/fs/inotify/max_user_instances"))
    return Facts(
        interface=interface, port=port, root=root, joined=joined, systemd=Path("/run/systemd/system").exists(),
        prefixes=saved.mesh.prefixes if saved else (),
        uplinks=links[0] if links else None, routes=links[1] if links else None,
        endpoints=frozenset(_endpoint_families(picture, saved)), ipv6=Path("/proc/net/if_inet6").exists(),
        forwarding6=bool(_number(Path("/proc/sys/net/ipv6/conf/all/forwarding"))),
        clock_kept=_clock_kept(), time_daemon=next(iter(sorted(_TIME_DAEMONS & commands)), ""),
        skew=_skew(picture), ruleset=ruleset, legacy_tables=_has_legacy_tables(),
        firewalls=frozenset(_firewalls(commands)), flushers=tuple(_flushers()),
        nft=is_installed("nft"), tun=_tun() if root else "", capabilities=_capabilities() if root else None,
        kernel_wireguard=kernel, wireguard_go=is_installed("wireguard-go"),
        state_dir=str(config.state_dir), loose=loose,
        port_holder=_port_holder(port, interface, owners, root=root, unseen=unseen),
        agent=_agent(picture, silence, joined=joined),
        inotify=(watches, most) if root and most else None, unseen=unseen,
    )  # fmt: skip


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


# ---- membership and agent --------------------------------------------------------------------------------------------


def _membership(config: AgentConfig, unseen: dict[str, str]) -> tuple[bool | None, Member | None]:
    store = Store(config.state_dir)
    try:
        (config.state_dir / "membership").stat()  # exists() would take what is hidden from us for absent
        return True, Member.load(store)
    except (FileNotFoundError, NotADirectoryError):
        return False, None
    except PermissionError:
        why = _NOT_ROOT
    except MeshError as error:
        why = error.what
    for code in (host_checks.ROUTE, host_checks.AGENT):
        unseen[code] = why
    return None, None


def _loose(directory: Path) -> tuple[str, ...] | None:
    """What others than the owner may read. None: nobody lets us look."""
    found = []
    for path in (directory, *(directory / name for name in _SEALED)):
        try:
            if path.stat().st_mode & 0o077:
                found.append(str(path))
        except PermissionError:
            return None
        except OSError:  # not there
            continue
    return tuple(found)


def _agent(picture: dict[str, Any] | None, silence: str, *, joined: bool | None) -> tuple[Verdict, str] | None:
    if picture is not None:
        verdict = Verdict(picture["verdict"])
        return verdict, f"answers: {verdict}, findings: {len(picture['findings'])}"
    return (Verdict.FAILED, silence) if joined else None


def _skew(picture: dict[str, Any] | None) -> tuple[Verdict, str] | None:
    rows = picture["rows"] if picture else ()
    return next(((Verdict(row["verdict"]), row["evidence"]) for row in rows if row["code"] == CLOCK), None)


def _endpoint_families(picture: dict[str, Any] | None, saved: Member | None) -> Iterator[int]:
    """Of the endpoints in use by sessions, and of those that the operator told us to announce."""
    told = saved.saved.endpoints if saved else ()
    used = (peer["endpoint"] for peer in picture["peers"] if peer["endpoint"]) if picture else ()
    for text in (*told, *used):
        yield Endpoint.parse(text).address.version


# ---- programs and the kernel -----------------------------------------------------------------------------------------


def _kernel_has_wireguard() -> bool:
    if Path("/sys/module/wireguard").exists():
        return True
    modules = Path("/lib/modules", platform.release())
    for name in ("modules.dep", "modules.builtin"):
        try:
            if "/wireguard.ko" in (modules / name).read_text():
                return True
        except OSError:
            continue
    return False


def _tun() -> str:
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/net/tun: {error.strerror}"
    return ""


def _capabilities() -> int:
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1], 16) if found else 0


def _clock_kept() -> bool | None:
    """As the kernel has it, whoever keeps it: a container's clock is its host's."""
    if platform.architecture()[0] != "64bit":
        return None
    timex = ctypes.create_string_buffer(512)  # modes = 0: only asks
    if ctypes.CDLL(None).adjtimex(timex) < 0:
        return None
    return not int.from_bytes(timex.raw[_STATUS_AT : _STATUS_AT + 4], "little") & _STA_UNSYNC


def _commands() -> set[str]:
    """Names of all programs that run."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            found.add(path.read_text().strip())
        except OSError:
            continue
    return found


def _processes() -> tuple[set[str], int, dict[str, int]]:
    """(names of programs, inotify instances of root, socket inode -> process): one walk through /proc."""
    watches, owners = 0, dict[str, int]()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            is_root = process.stat().st_uid == 0
            for entry in os.scandir(process / "fd"):
                target = os.readlink(entry.path)  # noqa: PTH115 - thousands of them
                if target.startswith("socket:["):
                    owners[target[8:-1]] = int(process.name)
                watches += is_root and target == "anon_inode:inotify"
        except OSError:  # it ended meanwhile
            continue
    return _commands(), watches, owners


def _port_holder(
    port: int, interface: str, owners: dict[str, int], *, root: bool, unseen: dict[str, str]
) -> str | None:
    """Who has the UDP port; empty when nobody has, or this mesh."""
    inodes = sockets.inodes(port)
    if not inodes and not _is_taken(port):
        return ""
    for inode in inodes:
        if pid := owners.get(inode):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:  # it ended meanwhile
                return ""
            ours = Path(words[0]).name == "wireguard-go" and interface in words
            return "" if ours else f"{Path(words[0]).name} (process {pid})"
    if not root:
        unseen[host_checks.PORT] = f"UDP {port} is taken; {_NOT_ROOT} by whom"
        return None
    try:
        ours = "DEVTYPE=wireguard" in Path(f"/sys/class/net/{interface}/uevent").read_text()
    except OSError:
        ours = False
    return "" if ours else "the kernel, for a WireGuard interface that is not ours"


def _is_taken(port: int) -> bool:
    """A kernel's WireGuard socket stands in no table."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("", port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


# ---- firewalls -------------------------------------------------------------------------------------------------------


def _run(*command: str) -> Any:
    """What it prints, as JSON. Raises OSError or ValueError, with words."""
    done = subprocess.run(command, capture_output=True, timeout=30, check=False)
    if done.returncode:
        raise OSError(errno.EIO, done.stderr.decode(errors="replace").strip().partition("\n")[0])
    return json.loads(done.stdout or b"[]")


def _ruleset(unseen: dict[str, str]) -> tuple[dict[str, Any], ...] | None:
    if not is_installed("nft"):
        unseen[host_checks.FIREWALL] = "nftables is not installed"
        return None
    try:
        return tuple(_run("nft", "-j", "list", "ruleset")["nftables"])
    except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
        for code in (host_checks.FIREWALL, host_checks.NFT):
            unseen[code] = f"nft does not list its rules: {getattr(error, 'strerror', None) or error}"
        return None


def _has_legacy_tables() -> bool:
    try:
        return any(Path(f"/proc/net/{name}_tables_names").read_text().strip() for name in ("ip", "ip6"))
    except OSError:
        return False


def _firewalls(commands: set[str]) -> Iterator[str]:
    if "firewalld" in commands:
        yield "firewalld"
    try:
        if re.search(r"^ENABLED=yes", Path("/etc/ufw/ufw.conf").read_text(), re.MULTILINE):
            yield "ufw"
    except OSError:
        return


def _flushers() -> Iterator[Flusher]:
    if not any(os.path.lexists(_WANTS.format(target)) for target in ("sysinit.target", "multi-user.target")):
        return
    try:
        text = _NFT_FILE.read_text()
    except OSError:
        return
    if re.search(r"^\s*flush ruleset", text, re.MULTILINE):
        yield Flusher(str(_NFT_FILE), tuple(re.findall(r"^\s*table\s+(\w+ \w+)\s*\{", text, re.MULTILINE)))


# ---- links and routes ------------------------------------------------------------------------------------------------


def _network(interface: str, unseen: dict[str, str]) -> tuple[tuple[Uplink, ...], tuple[HostRoute, ...]] | None:
    try:
        links = {link["ifname"]: link for link in _run("ip", "-j", "address", "show")}
        told = {family: _run("ip", "-j", f"-{family}", "route", "show", "table", "all") for family in (4, 6)}
    except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
        words = "iproute2 is not installed" if isinstance(error, FileNotFoundError) else f"ip fails: {error}"
        unseen.update(dict.fromkeys((host_checks.RPF, host_checks.MTU, host_checks.ROUTE), words))
        return None
    kept = {f: [route for route in told[f] if route.get("type", "unicast") not in _SKIP] for f in told}
    routes = [*kept[4], *kept[6]]
    gates = {f: {device for route in kept[f] for device in _gateways(route)} & links.keys() - {interface} for f in kept}
    through = gates[4] | gates[6]
    held = {f: {name for name in links.keys() - {interface} if _has_address(links[name], f)} for f in kept}
    # Where a family only has a route through a device, an address of another one serves.
    carried = {f: held[f] | (gates[f] if held[f] else set()) for f in kept}
    addressed = {name for name in held[4] | held[6] if _may_carry(links[name])}
    by_ra = {route.get("dev") for route in routes if route.get("protocol") == "ra" and route.get("dst") == "default"}
    uplinks = tuple(
        Uplink(
            name, int(links[name]["mtu"]), _rp_filter(name), _accept_ra(name), name in by_ra, bool(through),
            frozenset(f for f in carried if name in carried[f]) or frozenset({4}),
        )
        for name in sorted(through or addressed)
    )  # fmt: skip
    return uplinks, tuple(_host_routes(routes))


def _gateways(route: dict[str, Any]) -> Iterator[str]:
    for hop in (route, *route.get("nexthops", ())):
        if ("gateway" in hop or "via" in hop) and "dev" in hop:
            yield hop["dev"]


def _has_address(link: dict[str, Any], family: int) -> bool:
    kind = {4: "inet", 6: "inet6"}[family]
    held = ((address.get("family"), address.get("scope")) for address in link.get("addr_info", ()))
    return (kind, "global") in held


def _may_carry(link: dict[str, Any]) -> bool:
    return {"UP", "LOWER_UP"} <= set(link.get("flags", ())) and link.get("link_type") == "ether"


def _rp_filter(device: str) -> int:
    return max(_number(Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter")) for name in ("all", device))


def _accept_ra(device: str) -> int:
    return _number(Path(f"/proc/sys/net/ipv6/conf/{device}/accept_ra"))


def _host_routes(routes: Iterable[dict[str, Any]]) -> Iterator[HostRoute]:
    for route in routes:
        if route["dst"] == "default" or route.get("protocol") == _OURS:
            continue
        device, kind, table = route.get("dev", ""), route.get("type", ""), route.get("table", "")
        words = [kind, route["dst"], f"dev {device}" if device else "", f"table {table}" if table else ""]
        yield HostRoute(ip_network(route["dst"]), device, " ".join(filter(None, words)))
