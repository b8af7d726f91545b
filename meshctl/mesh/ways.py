"""What the ways to the coordinators are like, in sentences: reached, trusted, translated, wide enough, in time (NET-1).

Judges only what agent/netcheck.py saw; what was not tested is said as such. UDP and NAT: nat.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from meshctl.mesh import limits, nat
from meshctl.mesh.catalogue import Verdict
from meshctl.mesh.host_checks import LEAST_MTU_BYTES
from meshctl.mesh.nat import Look, Sentence
from meshctl.mesh.spans import span

OK, DEGRADED, FAILED, UNKNOWN = Verdict.OK, Verdict.DEGRADED, Verdict.FAILED, Verdict.UNKNOWN


@dataclass(frozen=True, slots=True)
class Way:
    """What one coordinator's address answered. Empty and None: it did not come to that."""

    address: str
    error: str = ""
    hint: str = ""
    trusted: bool = True  # False: somebody else answers there
    connect_s: float | None = None
    source: str = ""  # our address towards it
    seen: str = ""  # our address as the coordinator sees it
    offset_s: float | None = None  # its clock minus ours
    mtu: int | None = None  # bytes, as the kernel knows the path
    udp: str = ""  # the answer of the first of `looks`
    looks: tuple[Look, ...] = ()  # one per IP version


def judge(ways: Sequence[Way], port: int) -> tuple[Sentence, ...]:
    """Sentences in the order in which a person would ask; `port` is WireGuard's."""
    looks, reached = [look for way in ways for look in way.looks], {way.address for way in ways if not way.error}
    return (*_reached(ways), *_seen(ways), *nat.judge(looks, reached, port), *_mtu(ways), *_clock(ways))


def _reached(ways: Sequence[Way]) -> Iterator[Sentence]:
    alone = not any(not way.error for way in ways)
    for way in ways:
        if way.error:
            verdict = FAILED if alone or not way.trusted else DEGRADED
            yield Sentence("reach", verdict, way.error, way.hint)
        else:
            ms = f"TCP in {way.connect_s * 1e3:.1f} ms, " if way.connect_s is not None else ""
            yield Sentence("reach", OK, f"{way.address} answers: {ms}TLS, and its certificate is of the mesh's CA")


def _seen(ways: Sequence[Way]) -> Iterator[Sentence]:
    views = [way for way in ways if way.seen]
    if not views:
        if any(not way.error for way in ways):
            yield Sentence(
                "address", UNKNOWN, "the coordinator does not tell where it sees this machine: an older release"
            )
        return
    for way in views:
        if way.seen == way.source:
            yield Sentence("address", OK, f"{way.address} sees this machine as {way.seen}, its own address: no NAT")
        else:
            words = f"{way.address} sees this machine as {way.seen}, not as {way.source}: there is a NAT in between"
            yield Sentence("address", OK, f"{words}; peers reach this machine if it begins, or with --endpoint")
    for version, mark in (("IPv4", "."), ("IPv6", ":")):
        seen = {way.seen for way in views if mark in way.seen}
        if len(seen) > 1:
            words = f"coordinators see different {version} addresses of this machine: {', '.join(sorted(seen))}"
            yield Sentence(
                "address", DEGRADED, f"{words}; it leaves by several ways", "meshctl join --endpoint ADDRESS:PORT"
            )
        elif seen and len([way for way in views if mark in way.seen]) > 1:
            yield Sentence("address", OK, f"all coordinators see the same {version} address")


def _mtu(ways: Sequence[Way]) -> Iterator[Sentence]:
    """Measured where UDP was answered, else as the kernel knows it."""
    measured = {way.address: min(look.passes for look in way.looks if look.passes) for way in ways if _passes(way)}
    known = {way.address: min(way.mtu or 0, measured.get(way.address, way.mtu or 0)) for way in ways if way.mtu}
    if not known:
        return
    name, least = min(known.items(), key=lambda one: one[1])
    if name in measured:
        words = f"the way to {name} carries {least} bytes, as measured"
    else:
        words = f"the way to {name} carries {least} bytes as far as the kernel knows"
    vanishing = min((look.lost for way in ways if way.address == name for look in way.looks if look.lost), default=None)
    if vanishing:
        words += f"; {vanishing} vanish"
    if least < LEAST_MTU_BYTES:
        yield Sentence("mtu", DEGRADED, f"{words}: IPv6 in the tunnel needs {LEAST_MTU_BYTES}", "meshctl doctor")
        return
    words += f": {least - limits.WIREGUARD_OVERHEAD_BYTES} inside the tunnel"
    if vanishing:  # the kernel does not know, so WireGuard's interface is too wide
        remedy = f"the mesh finds it out per peer (MESH-PATH-002); ip link set dev UPLINK mtu {least} says it at once"
        yield Sentence("mtu", DEGRADED, words, remedy)
    else:
        yield Sentence("mtu", OK, words)


def _passes(way: Way) -> bool:
    return any(look.passes for look in way.looks)


def _clock(ways: Sequence[Way]) -> Iterator[Sentence]:
    known = [way for way in ways if way.offset_s is not None]
    if not known:
        return
    worst = max(known, key=lambda way: abs(way.offset_s or 0.0))
    off = worst.offset_s or 0.0
    words = f"this clock is {span(abs(off))} {'behind' if off > 0 else 'ahead of'} that of {worst.address}"
    remedy = "start a time daemon: chrony or systemd-timesyncd"
    if abs(off) > limits.CLOCK_SKEW_FAIL_S:
        yield Sentence("clock", FAILED, words, remedy)
    elif abs(off) > limits.CLOCK_SKEW_WARN_S:
        yield Sentence("clock", DEGRADED, words, remedy)
    else:
        yield Sentence("clock", OK, f"this clock agrees with that of {worst.address}")
