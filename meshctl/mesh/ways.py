"""What the ways to the coordinators are like, in sentences: reached, trusted, translated, wide enough, in time (NET-1).

Judges only what agent/netcheck.py saw. What was not tested is said as such: a coordinator answers no UDP, so whether
WireGuard's packets reach this machine shows at the first tunnel and not before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from meshctl.mesh import limits
from meshctl.mesh.catalogue import Verdict
from meshctl.mesh.host_checks import LEAST_MTU_BYTES
from meshctl.mesh.spans import span

OK, DEGRADED, FAILED, UNKNOWN = Verdict.OK, Verdict.DEGRADED, Verdict.FAILED, Verdict.UNKNOWN
NOT_TESTED: Final = (
    "UDP into this machine, and how a NAT maps UDP, are not tested: coordinators answer no UDP. The first tunnel tells."
)


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
    udp: str = ""  # refused (it went there and the answer came back), silent, or an error's words


class Sentence(NamedTuple):
    """One thing that is known; `remedy` where something is to be done."""

    about: str
    verdict: Verdict
    words: str
    remedy: str = ""


def judge(ways: Sequence[Way]) -> tuple[Sentence, ...]:
    """Sentences in the order in which a person would ask."""
    return (*_reached(ways), *_seen(ways), *_udp(ways), *_mtu(ways), *_clock(ways))


def _reached(ways: Sequence[Way]) -> Iterator[Sentence]:
    alone = not any(not way.error for way in ways)
    for way in ways:
        if way.error:
            verdict = FAILED if alone or not way.trusted else DEGRADED
            yield Sentence("reach", verdict, way.error, way.hint)
        else:
            ms = f"TCP in {way.connect_s * 1e3:.1f} ms, " if way.connect_s is not None else ""
            yield Sentence("reach", OK, f"{way.address} answers: {ms}TLS, and its CA has the mesh's fingerprint")


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
                "nat", DEGRADED, f"{words}; it leaves by several ways", "meshctl join --endpoint ADDRESS:PORT"
            )
        elif seen and len([way for way in views if mark in way.seen]) > 1:
            yield Sentence("nat", OK, f"all coordinators see the same {version} address")


def _udp(ways: Sequence[Way]) -> Iterator[Sentence]:
    for way in ways:
        if way.udp == "refused":
            yield Sentence("udp", OK, f"UDP to {way.address} arrives: its refusal came back")
        elif way.udp == "silent":
            yield Sentence("udp", OK, f"UDP to {way.address} was sent and nothing came back, which proves nothing")
        elif way.udp:
            remedy = "meshctl doctor names the rule that drops it"
            yield Sentence("udp", FAILED, f"UDP to {way.address} does not leave this machine: {way.udp}", remedy)
    yield Sentence("udp", OK, NOT_TESTED)


def _mtu(ways: Sequence[Way]) -> Iterator[Sentence]:
    known = [way for way in ways if way.mtu]
    if not known:
        return
    least = min(known, key=lambda way: way.mtu or 0)
    assert least.mtu
    words = f"the way to {least.address} carries {least.mtu} bytes as far as the kernel knows"
    if least.mtu < LEAST_MTU_BYTES:
        yield Sentence("mtu", DEGRADED, f"{words}: IPv6 in the tunnel needs {LEAST_MTU_BYTES}", "meshctl doctor")
    else:
        yield Sentence("mtu", OK, f"{words}: {least.mtu - limits.WIREGUARD_OVERHEAD_BYTES} inside the tunnel")


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
