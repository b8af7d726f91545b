"""The judges of the experiments on the wire: MESH-ENC-001, RPL, TMP, SPF, STR (NET-7, the probe of ENC-3).

**Law: that something was not delivered counts only with two positive controls in the same run:** the peer's tap saw
exactly those bytes on its wire, and a sibling canary by the same path and ports was delivered. A tap sees packets that
a firewall then drops, and such a firewall may well let siblings pass; so a third thing is asked for: that the very
bytes came out *behind* the peer's firewall, on the way to WireGuard's port. What lacks one is unknown and says which.

Pure: facts and `now` in, a Reading out. What was delivered although it must not be needs no control.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address
from typing import Final, NamedTuple

from meshctl.mesh.catalogue import ENCRYPTED, REPLAY, SPOOF, STRANGER, TAMPER, Verdict
from meshctl.mesh.integrity import Reading
from meshctl.mesh.model import Node, NodeId
from meshctl.mesh.spans import short
from meshctl.mesh.witness import Sight

CODES: Final = (ENCRYPTED, REPLAY, TAMPER, SPOOF, STRANGER)


class Controls(NamedTuple):
    """What every experiment of a run shares."""

    drops: int = 0  # packets that a tap of either end missed
    sibling: bool = False  # a canary sent afterwards, by the same path and ports, was delivered


class Clear(NamedTuple):
    """Packets in clear with a mesh address, at one end: how many, and the ends of one of them (raw addresses)."""

    packets: int = 0
    source: bytes = b""
    target: bytes = b""


class Hail(NamedTuple):
    """An initiation that nobody should answer: what the peer saw of it, and what came back."""

    sight: Sight
    responses: int = 0
    cookies: int = 0


def encrypted(
    peer: NodeId, canaries: Sequence[Sight], legible: bool, here: Clear, there: Clear, controls: Controls, *, now: float
) -> Reading:
    """`canaries`: what the peer saw of those that this end saw leave for the peer's current endpoint. `legible`: one of
    them showed its contents.
    """
    for end, clear in (("here", here), ("at the peer", there)):
        if clear.packets:
            words = f"{clear.packets} packets in clear {end}: {_name(clear.source)} to {_name(clear.target)}"
            return Reading(ENCRYPTED, peer, Verdict.FAILED, now, words)
    if legible:
        return Reading(ENCRYPTED, peer, Verdict.FAILED, now, "the contents of a canary can be read in its message")
    seen = [sight for sight in canaries if sight.wire]
    if not canaries:
        missing = "no message to the peer's current endpoint was seen leaving"
    elif not seen:
        missing = "the peer's tap saw none of the messages"
    elif not any(sight.current for sight in seen):
        missing = "the peer's tap saw them come from elsewhere than its WireGuard believes"
    else:
        missing = _missing(controls)
    if missing:
        return Reading(ENCRYPTED, peer, Verdict.UNKNOWN, now, missing)
    words = f"{len(seen)} canaries seen enciphered at both ends, nothing in clear"
    return Reading(ENCRYPTED, peer, Verdict.OK, now, words)


def replay(peer: NodeId, sight: Sight, delivered: int, controls: Controls, *, now: float) -> Reading:
    """A canary's message, sent once more: what the peer saw of both, and how often the canary was delivered."""
    if delivered > 1:
        return Reading(REPLAY, peer, Verdict.FAILED, now, f"a message sent twice was delivered {delivered} times")
    missing = _missing(controls) or _unseen(sight, 2)
    if not missing and not delivered:
        missing = "the message itself was not delivered"
    return _rejected(REPLAY, peer, missing, "a message sent twice", "delivered once", now=now)


def tamper(peer: NodeId, original: Sight, altered: Sight, delivered: int, controls: Controls, *, now: float) -> Reading:
    """A canary and its altered copy: what the peer saw of each, and how often the canary was delivered, in any form."""
    if delivered > 1:
        return Reading(TAMPER, peer, Verdict.FAILED, now, "an altered message was delivered beside its original")
    if delivered and altered.passed and not original.passed and not controls.drops:
        return Reading(TAMPER, peer, Verdict.FAILED, now, "an altered message was delivered in its original's place")
    missing = _missing(controls) or _unseen(altered, 1)
    if not missing and not (delivered and original.passed):
        missing = "the original was not delivered"
    return _rejected(TAMPER, peer, missing, "an altered message", "not delivered", now=now)


def spoof(peer: NodeId, source: str, sight: Sight, delivered: int, controls: Controls, *, now: float) -> Reading:
    """A packet sent through the tunnel from the inner address `source`, which is not ours."""
    if delivered:
        return Reading(SPOOF, peer, Verdict.FAILED, now, f"the peer took a packet from {source} out of our tunnel")
    missing = _missing(controls) or _unseen(sight, 1)
    return _rejected(SPOOF, peer, missing, f"a packet from {source}", "not delivered", now=now)


def stranger(
    peer: NodeId, fresh: Hail, retired: Hail | None, heard: bool, controls: Controls, *, now: float
) -> Reading:
    """Initiations with a fresh key and, if we have one, with the key that we retired, from our WireGuard's port; the
    worse of the two. `heard`: this end's tap saw the peer send something to that port afterwards. Cookies are allowed:
    a busy WireGuard answers any initiation with one.
    """
    hails = {"an unknown key": fresh} | ({"our retired key": retired} if retired else {})
    if answered := [key for key, hail in hails.items() if hail.responses]:
        words = f"{' and '.join(answered)} got a handshake response"
        return Reading(STRANGER, peer, Verdict.FAILED, now, words)
    for key, hail in hails.items():
        missing = _missing(controls) or _unseen(hail.sight, 1)
        if not missing and not heard:
            missing = "nothing of the peer was seen here, an answer would not have been either"
        if missing:
            return _rejected(STRANGER, peer, missing, f"an initiation with {key}", "", now=now)
    outcome = "answered with a cookie alone" if any(hail.cookies for hail in hails.values()) else "not answered"
    return _rejected(STRANGER, peer, "", f"an initiation with {' and one with '.join(hails)}", outcome, now=now)


def untried(peer: NodeId, why: str, codes: Sequence[str] = CODES, *, now: float) -> list[Reading]:
    """All of them unknown, for one reason."""
    return [Reading(code, peer, Verdict.UNKNOWN, now, short(why)) for code in codes]


def _missing(controls: Controls) -> str:
    if controls.drops:
        return f"the taps missed {controls.drops} packets"
    return "" if controls.sibling else "no sibling canary was delivered"


def _unseen(sight: Sight, times: int) -> str:
    if sight.wire < times:
        return "the peer's tap did not see it arrive"
    if sight.passed < times:
        return "it arrived, but a firewall before the peer's WireGuard took it"
    return ""


def _rejected(code: str, peer: NodeId, missing: str, what: str, outcome: str, *, now: float) -> Reading:
    if missing:
        return Reading(code, peer, Verdict.UNKNOWN, now, f"{what}: {missing}")
    return Reading(code, peer, Verdict.OK, now, f"{what} reached the peer's WireGuard: {outcome}, a sibling was")


def _name(raw: bytes) -> str:
    """An address for people; one that a report gave as an IPv4-mapped one as IPv4."""
    try:
        address = ip_address(raw)
    except ValueError:
        return "?"
    return str((address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address)


def foreign_source(nodes: Iterable[Node], peer: NodeId, me: NodeId, prefix: IPv4Network) -> IPv4Address | None:
    """An inner address that is neither end's: another node's, so that the peer has a route back and nothing but
    WireGuard minds it; in a mesh of two one that is nobody's. None: the prefix has no third address.
    """
    nodes = tuple(nodes)
    others = [node for node in nodes if node.id not in {peer, me}]
    if others:
        return min(others, key=lambda node: node.id).address4
    taken = {node.address4 for node in nodes}
    last = int(prefix.broadcast_address)
    free = (IPv4Address(number) for number in range(last - 1, int(prefix.network_address), -1))
    return next((address for address in free if address not in taken), None)
