"""The judges of the integrity catalogue: one per code, from raw observations to a Reading (NET-7).

Here is what counts as evidence, and how much of it; what follows from a reading is integrity.py's. Times are seconds of
the caller's clock. No judge looks at another check.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from meshctl.mesh import limits, pacing
from meshctl.mesh.catalogue import (
    ASYMMETRY,
    CIPHER,
    CLOCK,
    DRIFT,
    HANDSHAKE,
    IDENTITY,
    INTACT,
    KEY,
    LAG,
    PATH,
    PATH_MTU,
    PSK,
    ROTATION,
    ROUTE,
    Verdict,
)
from meshctl.mesh.hello import WEAK, Suite, chosen, is_refusal
from meshctl.mesh.integrity import Reading, Row
from meshctl.mesh.model import NodeId
from meshctl.mesh.pathmtu import Payloads, Width
from meshctl.mesh.probe import DOWN_AFTER, LOSSY_ABOVE, Echo
from meshctl.mesh.spans import DAY_S, ago, short, span

_KEY_WARNINGS_S: Final = (DAY_S, 7 * DAY_S, 30 * DAY_S)  # before a key is older than policy allows
_RENEWS_WITHIN_S: Final = 600.0  # after half life: two tries at the longest pause between them
DIFFER_S: Final = 15.0  # one end sets its pre-shared key a moment before the other
_KNOCKS_S: Final = 60.0  # each end tries what keys it has within that
_REMEMBERED_S: Final = 60.0  # how long a repaired interface or a forged echo is still told


def drift(repaired: Sequence[object], repaired_at: float, error: str, *, now: float) -> Reading:
    """Of the pass that ended `now`: what it could not do, or which foreign changes (printed steps) it undid lately."""
    if error:
        return Reading(DRIFT, "", Verdict.FAILED, now, short(error))
    if repaired and now - repaired_at < _REMEMBERED_S:
        words = f"{len(repaired)} foreign changes undone {ago(now - repaired_at)}: {repaired[0]}"
        return Reading(DRIFT, "", Verdict.DEGRADED, now, short(words))
    return Reading(DRIFT, "", Verdict.OK, now, "the kernel holds the plan")


def lag(
    applied: int,
    server: int,
    heartbeat_age_s: float | None,
    refused: Sequence[str] = (),
    *,
    silent_s: float = pacing.silence_s(0),
    now: float,
) -> Reading:
    """Revisions applied here and known to the server; None: no heartbeat since this process began.

    `refused`: why key statements of the registry were not believed, one sentence each. `silent_s`: the age at which a
    stream counts as dead in a mesh of this size.
    """
    if refused:
        return Reading(LAG, "", Verdict.FAILED, now, short(f"{len(refused)} key statements refused: {refused[0]}"))
    if heartbeat_age_s is None:
        return Reading(LAG, "", Verdict.DEGRADED, now, f"no heartbeat yet, revision {applied} in force")
    if heartbeat_age_s > silent_s:
        words = f"last heartbeat {ago(heartbeat_age_s)}, revision {applied} in force"
        return Reading(LAG, "", Verdict.DEGRADED, now, words)
    verdict = Verdict.FAILED if applied < server else Verdict.OK
    return Reading(LAG, "", verdict, now, f"applied {applied} of {server}, heartbeat {ago(heartbeat_age_s)}")


def routes(leaks: Sequence[str], fail_closed: bool, *, now: float) -> Reading:
    """`leaks`: a sentence per mesh address that would leave elsewhere; `fail_closed`: the unreachable routes hold."""
    if leaks:
        return Reading(ROUTE, "", Verdict.FAILED, now, short(f"{len(leaks)} leaks: {leaks[0]}"))
    if not fail_closed:
        return Reading(ROUTE, "", Verdict.DEGRADED, now, "the fail-closed route is missing")
    return Reading(ROUTE, "", Verdict.OK, now, "every peer is routed to the mesh interface, fail-closed route present")


def handshake(peer: NodeId, age_s: float | None, sent: bool, *, now: float) -> Reading:
    """Age of the last handshake (None: never), and whether traffic was sent since."""
    words = "no handshake yet" if age_s is None else f"last handshake {ago(age_s)}"
    if age_s is not None and age_s <= limits.REJECT_AFTER_S:
        return Reading(HANDSHAKE, peer, Verdict.OK, now, words)
    if sent:
        return Reading(HANDSHAKE, peer, Verdict.FAILED, now, f"{words}, though traffic was sent")
    return Reading(HANDSHAKE, peer, Verdict.UNKNOWN, now, f"{words}, and nothing was sent since")


def path(peer: NodeId, echo: Echo, *, now: float) -> Reading:
    """Echo statistics. The reading is as old as the last finished test."""
    at = now if echo.tested_at is None else echo.tested_at
    if echo.missed >= DOWN_AFTER:
        answered = "none ever" if echo.last_ok_at is None else f"the last {ago(now - echo.last_ok_at)}"
        words = f"{echo.missed} echoes in a row unanswered, {answered} came back"
        return Reading(PATH, peer, Verdict.FAILED, at, words)
    if echo.last_ok_at is None:
        return Reading(PATH, peer, Verdict.UNKNOWN, at, f"{echo.sent} echoes tried, none answered yet")
    words = "the peer led"
    if echo.rtt_s is not None:
        words = f"rtt {echo.rtt_s * 1e3:.1f} ms, jitter {echo.jitter_s * 1e3:.1f} ms"
    words += f", loss {echo.loss:.0%} of {echo.sent}"
    lossy = echo.loss > LOSSY_ABOVE and echo.sent - echo.received > 1  # one of the first few is chance, too
    return Reading(PATH, peer, Verdict.DEGRADED if lossy else Verdict.OK, at, words)


def path_mtu(
    peer: NodeId, outward: Width | None, inward: Width | None, route: int, their_route: int, *, now: float
) -> Reading:
    """How wide each direction is (None: small packets were lost beside large ones). `route` and `their_route`: limits
    of the two routes, where they are in force: packets that are cut to them arrive.
    """
    if outward is None or inward is None:
        words = "small packets are lost too, so nothing can be said of large ones"
        return Reading(PATH_MTU, peer, Verdict.UNKNOWN, now, words)
    ways = ("outbound", outward, route), ("inbound", inward, their_route)
    narrow = [way for way in ways if not way[1].is_full]
    if not narrow:
        words = f"{outward.full} bytes pass outbound, {inward.full} inbound"
        return Reading(PATH_MTU, peer, Verdict.OK, now, words)
    found = (f"packets over {w.passes} of {w.full} bytes vanish {way} ({w.lost} lost)" for way, w, _ in narrow)
    words = "; ".join(found)
    if min(w.passes for _, w, _ in narrow) < limits.MIN_MTU_BYTES:
        return Reading(PATH_MTU, peer, Verdict.FAILED, now, f"{words}; IPv6 needs {limits.MIN_MTU_BYTES}")
    if not all(0 < held <= w.passes for _, w, held in narrow):
        return Reading(PATH_MTU, peer, Verdict.FAILED, now, words)
    return Reading(PATH_MTU, peer, Verdict.DEGRADED, now, f"{words}; the routes keep to it")


def intact(peer: NodeId, outward: Payloads, inward: Payloads, *, now: float) -> Reading:
    """Random payloads, and how they arrived."""
    ways = ("outbound", outward), ("inbound", inward)
    altered = [
        f"{len(p.altered)} of {p.sent} payloads altered {way}, in packets of {min(p.altered)} to {max(p.altered)} bytes"
        for way, p in ways
        if p.altered
    ]
    if altered:
        return Reading(INTACT, peer, Verdict.FAILED, now, "; ".join(altered))
    if not outward.sent or not inward.sent:
        return Reading(INTACT, peer, Verdict.UNKNOWN, now, "no payload arrived")
    most = f"in packets of up to {outward.largest} bytes outbound, {inward.largest} inbound"
    words = f"{outward.sent} payloads each way unchanged, {most}"
    return Reading(INTACT, peer, Verdict.OK, now, words)


def identity(peer: NodeId, echo: Echo, *, now: float) -> Reading:
    """Tags of the packets that came from the peer's address. The reading is as old as the last packet with one."""
    ok_at, forged_at = echo.last_ok_at, echo.forged_at
    if forged_at is not None and (ok_at is None or ok_at < forged_at or now - forged_at < _REMEMBERED_S):
        genuine = ok_at is not None and ok_at >= forged_at
        words = f"{echo.forged} packets with a wrong tag, the last {ago(now - forged_at)}"
        at = ok_at if ok_at is not None and ok_at >= forged_at else forged_at
        return Reading(IDENTITY, peer, Verdict.DEGRADED if genuine else Verdict.FAILED, at, words)
    if ok_at is None:
        return Reading(IDENTITY, peer, Verdict.UNKNOWN, now, "no echo with a tag yet")
    return Reading(IDENTITY, peer, Verdict.OK, ok_at, f"valid tag {ago(now - ok_at)}")


def rotation(
    peer: NodeId, changed_s: float | None, handshake_s: float | None, agreed_s: float | None, *, now: float
) -> Reading:
    """Ages: of the last change of either end's key (None: none since this agent began), of the last handshake, and of
    the last echo whose tag is bound to the statements in force.
    """
    if changed_s is None:
        return Reading(ROTATION, peer, Verdict.OK, now, "no key changed since this agent began")
    words = f"a key changed {ago(changed_s)}"
    if handshake_s is None or handshake_s > changed_s:
        return Reading(ROTATION, peer, Verdict.FAILED, now, f"{words}, and there was no handshake since")
    if agreed_s is None or agreed_s > changed_s:
        return Reading(ROTATION, peer, Verdict.FAILED, now, f"{words}, and no echo agrees on both statements since")
    return Reading(
        ROTATION, peer, Verdict.OK, now, f"{words}, handshake {changed_s - handshake_s:.3f} s later, echo agrees"
    )


def preshared(
    peer: NodeId, version: int, good: int, theirs: int | None, *, differs_s: float | None, age_s: float, set_s: float,
    within_s: float, knocks_s: float | None = None, why: str = "", now: float,
) -> Reading:  # fmt: skip
    """`version` of the pre-shared key in force here (0: none), the one a handshake last proved, the peer's (None: not
    known). Seconds: since the two differ, since the key was made, since it was set here; `within_s`: in which a
    handshake must have proved it; `knocks_s`: since the peer's handshakes arrive and none succeeds. `why`: what is
    known of why nothing was agreed.
    """
    if differs_s is not None and differs_s > DIFFER_S:
        words = f"this end has {_version(version)} in force, the peer {_version(theirs or 0)}, {span(differs_s)} long"
        return Reading(PSK, peer, Verdict.FAILED, now, words)
    if knocks_s is not None and knocks_s > _KNOCKS_S:
        words = f"{_version(version)} here; the peer's handshakes arrive, and none succeeds"
        return Reading(PSK, peer, Verdict.DEGRADED, now, f"{words}: another key there, or no way back")
    if not version:
        words = f"no pre-shared key is agreed yet{': ' if why else ''}{why}"
        return Reading(PSK, peer, Verdict.UNKNOWN, now, short(words))
    words = f"{_version(version)}, {span(max(age_s, 0))} old"
    if version == good:
        return Reading(PSK, peer, Verdict.OK, now, f"{words}, proven by a handshake")
    if set_s > within_s:
        return Reading(PSK, peer, Verdict.FAILED, now, f"{words}, set {ago(set_s)}: no handshake was made with it")
    if good:
        return Reading(PSK, peer, Verdict.OK, now, f"{_version(good)} is proven; {words}, waits for a handshake")
    return Reading(PSK, peer, Verdict.UNKNOWN, now, f"{words}, waits for a handshake")


def _version(version: int) -> str:
    return f"version {version}" if version else "none"


def cipher(coordinator: str, strong: bytes | None, weak: Mapping[Suite, bytes | None], *, now: float) -> Reading:
    """First bytes of a coordinator's answers to one offer each. That the strong one is taken is the control: without
    it a refusal, or silence, proves nothing.
    """
    for suite, answer in weak.items():
        if answer and chosen(answer) is not None:
            return Reading(CIPHER, "", Verdict.FAILED, now, short(f"{coordinator} takes {WEAK[suite]}"))
    if not strong or chosen(strong) != Suite.AES_256_GCM:
        words = f"{coordinator} did not answer an offer of AES-256-GCM: refusals prove nothing"
        return Reading(CIPHER, "", Verdict.UNKNOWN, now, short(words))
    silent = [WEAK[suite] for suite, answer in weak.items() if answer is None or not is_refusal(answer)]
    if silent:
        words = f"{coordinator} did not refuse {silent[0]}, nor take it"
        return Reading(CIPHER, "", Verdict.UNKNOWN, now, short(words))
    refused = ", ".join(WEAK.values())
    words = f"ServerHello of {coordinator} names 0x{Suite.AES_256_GCM:04x}; refused: {refused}"
    return Reading(CIPHER, "", Verdict.OK, now, short(words))


def keys(key_age_s: float, certificate_left_s: float, *, now: float) -> Reading:
    """Age of the WireGuard key against policy; life left of the certificate, which renews itself at half life."""
    left = limits.KEY_AGE_FAIL_S - key_age_s
    words = f"WireGuard key {span(key_age_s)} old, certificate valid for {span(max(certificate_left_s, 0))}"
    if left <= 0:
        allowed = span(limits.KEY_AGE_FAIL_S)
        return Reading(KEY, "", Verdict.FAILED, now, f"WireGuard key {span(key_age_s)} old, {allowed} are allowed")
    if certificate_left_s <= 0:
        return Reading(KEY, "", Verdict.FAILED, now, f"certificate expired {ago(-certificate_left_s)}")
    if certificate_left_s < limits.CERTIFICATE_LIFE_S / 2 - _RENEWS_WITHIN_S:
        return Reading(KEY, "", Verdict.DEGRADED, now, f"{words}: past half life and not renewed")
    if tier := next((tier for tier in _KEY_WARNINGS_S if left <= tier), None):
        return Reading(KEY, "", Verdict.DEGRADED, now, f"{words}: must rotate within {span(tier)}")
    return Reading(KEY, "", Verdict.OK, now, words)


def clock(stream_offset_s: float | None, peer_offsets_s: Iterable[float], *, now: float) -> Reading:
    """Others' wall clocks minus ours, the coordinator's and the peers': of these the median, as one may be wrong."""
    peers = sorted(peer_offsets_s)
    median = peers[len(peers) // 2] if peers else None
    measured = {"the coordinator": stream_offset_s, f"the median of {len(peers)} peers": median}
    known = {who: offset for who, offset in measured.items() if offset is not None}
    if not known:
        return Reading(CLOCK, "", Verdict.UNKNOWN, now, "no other clock was seen yet")
    who, worst = max(known.items(), key=lambda item: abs(item[1]))
    if abs(worst) > limits.CLOCK_SKEW_FAIL_S:
        verdict = Verdict.FAILED
    else:
        verdict = Verdict.DEGRADED if abs(worst) > limits.CLOCK_SKEW_WARN_S else Verdict.OK
    words = f"this clock is {abs(worst):.2f} s {'behind' if worst > 0 else 'ahead of'} {who}"
    return Reading(CLOCK, "", verdict, now, words)


def asymmetry(peer: NodeId, here: Row | None, there: Row | None, *, now: float) -> Reading:
    """The same check seen from this end and from `peer`'s (None: not reported)."""
    ours, theirs = _end(here), _end(there)
    words = f"this end says {ours}, the peer {theirs}"
    if Verdict.UNKNOWN in {ours, theirs}:
        return Reading(ASYMMETRY, peer, Verdict.UNKNOWN, now, words)
    split = (ours is Verdict.FAILED) != (theirs is Verdict.FAILED)
    return Reading(ASYMMETRY, peer, Verdict.FAILED if split else Verdict.OK, now, words)


def _end(row: Row | None) -> Verdict:
    if row is None:
        return Verdict.UNKNOWN
    return Verdict.FAILED if row.because else row.verdict
