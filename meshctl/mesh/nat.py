"""What UDP is like between here and the coordinators, in sentences: out, mapping, filter, with what it means (NET-8).

Judges what agent/natcheck.py measured. A NAT is *easy* when it shows this machine alike to every destination asked, and
*hard* when it does not (RFC 4787: endpoint-independent mapping, or not). A filter that lets in only whom this machine
has written to is what nearly every firewall does, and costs no verdict.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from meshctl.mesh.catalogue import Verdict

ANSWERED, REFUSED, SILENT = "answered", "refused", "silent"
NOT_TESTED: Final = (
    "how a NAT maps UDP, and what it lets in, is not tested: no coordinator answers netcheck over UDP. "
    "The first tunnel tells"
)
_SHOWN = 4


@dataclass(frozen=True, slots=True)
class Look:
    """One coordinator's address over one IP version. Endpoints are ADDRESS:PORT; empty and None: not learned."""

    address: str  # the coordinator, as it is named
    version: int  # 4 or 6
    answer: str  # answered, refused (it went there, and the answer came back), silent, or an error's words
    source: str = ""  # our own endpoint
    seen: str = ""  # our endpoint, as its first port sees it
    seen_second: str = ""  # the same, as its second port does
    unasked: bool | None = None  # does a packet get in from a port that we never wrote to?
    rtt_s: float | None = None
    passes: int | None = None  # largest IP packet that was answered, in bytes
    lost: int | None = None  # the next larger one that was not


class Sentence(NamedTuple):
    """One thing that is known; `remedy` where something is to be done."""

    about: str
    verdict: Verdict
    words: str
    remedy: str = ""


def judge(looks: Sequence[Look], reached: Collection[str], wanted: int) -> Iterator[Sentence]:
    """`reached`: coordinators that answer TCP; `wanted`: WireGuard's own port."""
    if not looks:
        return
    for look in looks:
        yield from _udp(look, reached, wanted, alone=not any(one.answer in {ANSWERED, REFUSED} for one in looks))
    answered = [look for look in looks if look.answer == ANSWERED]
    if not answered:
        yield Sentence("nat", Verdict.OK, NOT_TESTED)
        return
    for version in (4, 6):
        those = [look for look in answered if look.version == version]
        if those:
            yield from _mapping(those, wanted)
            yield from _filter(those, wanted)
        else:
            words = f"IPv{version} is not tested: no coordinator answered over it"
            yield Sentence("nat", Verdict.OK, words)
    used = {_port(look.source) for look in answered} - {wanted}
    if used:
        words = f"measured from UDP port {min(used)}, as {wanted} is in use: rules for {wanted} alone do not show"
        yield Sentence("port", Verdict.OK, words)


def _udp(look: Look, reached: Collection[str], wanted: int, *, alone: bool) -> Iterator[Sentence]:
    way = f"UDP to {look.address} over IPv{look.version}"
    match look.answer:
        case "answered":
            ms = f" in {look.rtt_s * 1e3:.1f} ms" if look.rtt_s is not None else ""
            yield Sentence("udp", Verdict.OK, f"{way} is answered{ms}")
        case "refused":
            words = "arrives: its refusal came back; netcheck is off there, or the release is an earlier one"
            yield Sentence("udp", Verdict.OK, f"{way} {words}")
        case "silent" if look.address not in reached:
            return  # it may be down: that is said elsewhere
        case "silent" if alone:
            words = "is not answered, while TCP is: UDP does not get out of here, or is not let in there"
            port = _port(look.address)
            remedy = f"let UDP out here, from port {wanted} to all: without it no tunnel works; and UDP {port} in there"
            yield Sentence("udp", Verdict.FAILED, f"{way} {words}", remedy)
        case "silent":
            yield Sentence("udp", Verdict.OK, f"{way} is not answered, which proves nothing: other UDP is")
        case words:
            remedy = "meshctl doctor names the rule that drops it"
            yield Sentence("udp", Verdict.FAILED, f"{way} does not leave this machine: {words}", remedy)


def _mapping(looks: Sequence[Look], wanted: int) -> Iterator[Sentence]:
    name = f"IPv{looks[0].version}"
    views = [seen for look in looks for seen in (look.seen, look.seen_second) if seen]
    shown = sorted(set(views))
    if all(seen in {look.source, ""} for look in looks for seen in (look.seen, look.seen_second)):
        words = f"{name}: the world sees {' and '.join(shown)}, this machine's own address and port: no NAT"
        yield Sentence("nat", Verdict.OK, words)
    elif len(shown) > 1:
        some = ", ".join(shown[:_SHOWN])
        words = (
            f"{name}: a NAT shows this machine to each destination under another address or port ({some}): a hard one. "
            "Peers reach it only after it has begun, and two machines behind such NATs never reach each other"
        )
        remedy = f"forward UDP {wanted} to this machine, and meshctl join --endpoint ADDRESS:{wanted}"
        yield Sentence("nat", Verdict.DEGRADED, words, remedy)
    elif len(views) == 1:
        words = f"{name}: a NAT shows this machine as {shown[0]}; whether to all alike is not known, with one to ask"
        yield Sentence("nat", Verdict.OK, words)
    else:
        kept = _port(shown[0]) == _port(looks[0].source)
        port = "keeps its port, so what peers are told of it is right" if kept else (
            f"changes its port, so peers reach it after it has begun, or with --endpoint {shown[0]}"
        )  # fmt: skip
        words = (
            f"{name}: a NAT shows this machine as {shown[0]} to all {len(views)} destinations asked: an easy one. It"
        )
        yield Sentence("nat", Verdict.OK, f"{words} {port}")


def _filter(looks: Sequence[Look], wanted: int) -> Iterator[Sentence]:
    name = f"IPv{looks[0].version}"
    if any(look.unasked for look in looks):
        words = f"{name}: UDP gets in from a port that this machine has not written to: peers may begin"
        yield Sentence("filter", Verdict.OK, words)
    else:
        words = (
            f"{name}: UDP gets in only from where this machine has written to: a firewall or NAT. A tunnel needs this "
            f"machine to begin, too, which it does; UDP {wanted} opened or forwarded to it lets peers begin"
        )
        yield Sentence("filter", Verdict.OK, words)


def _port(endpoint: str) -> int:
    return int(endpoint.rpartition(":")[2])
