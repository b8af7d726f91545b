"""Is a peer up, and if not: when is its next handshake attempt due, and at which endpoint? (NET-3, NET-8)

**Law: one side only starts the handshake of a new pair.** Two initiations that cross overwrite each other's state and
both ends retry 5.000 s later in lock-step, for ever (measured). The node that joined later leads: it tries at once.
The other follows 2.5 s after, every 5 s, so that a leader that cannot reach it (NAT, firewall) is met half-way. Each
attempt takes the next candidate. A jitter computed from the pair breaks what lock-step may remain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from meshctl.mesh import limits
from meshctl.mesh.interface import Session
from meshctl.mesh.keys import PublicKey
from meshctl.mesh.model import Candidate, Endpoint, Network, Node, Origin

_PREFERENCE = {Origin.CONFIGURED: 1, Origin.PEER: 2, Origin.LOCAL: 3, Origin.COORDINATOR: 4}


def alive(sessions: Mapping[PublicKey, Session], *, now: float) -> frozenset[PublicKey]:
    """Whose session is younger than REJECT_AFTER_TIME: it carries packets. `now` is wall clock, as WireGuard's stamps
    are.
    """
    since = max(now - limits.REJECT_AFTER_S, 0.0)
    return frozenset([key for key, session in sessions.items() if session.last_handshake > since])


def order(candidates: Sequence[Candidate], local: Sequence[Network]) -> tuple[Endpoint, ...]:
    """Endpoints in the order worth trying: shared subnets first, then what people set, peers saw, nodes claim."""

    def preference(candidate: Candidate) -> tuple[int, str]:
        address = candidate.endpoint.address
        near = any(address in net for net in local if net.version == address.version)
        return (0 if near else _PREFERENCE[candidate.origin], str(candidate.endpoint))

    return tuple(dict.fromkeys(c.endpoint for c in sorted(candidates, key=preference)))


def leads(me: Node, peer: Node) -> bool:
    """Whether `me` starts the handshake: the later joined of the two, then the greater id. Both ends agree."""
    return (me.joined, me.id) > (peer.joined, peer.id)


@dataclass(frozen=True, slots=True)
class Attempts:
    """Where one peer without a session stands: down since when, attempts made, when the next is due (monotonic s), and
    where, if not at the next candidate.
    """

    since: float
    made: int
    next_at: float
    at: Endpoint | None = None


def first(leader: bool, *, now: float) -> Attempts:
    """A pair that has just lost, or never had, its session."""
    return Attempts(now, 0, now if leader else now + limits.FOLLOWER_OFFSET_S)


def heir(at: Endpoint, *, now: float) -> Attempts:
    """A peer that changed its key, tried just now where its session was: once more there, whoever of us leads. The
    initiation of a rotated pair is ours; if it is lost, WireGuard repeats it after 5 s only.
    """
    return Attempts(now, len(limits.LEADER_ATTEMPTS_S), now + limits.HEIR_AGAIN_S, at)


def tried(attempts: Attempts, leader: bool, pair: bytes) -> Attempts:
    """After one attempt: when the next is due. `pair`, any constant of this end of the pair, seeds the jitter."""
    made = attempts.made + 1
    if leader and made < len(limits.LEADER_ATTEMPTS_S):
        return Attempts(attempts.since, made, attempts.since + limits.LEADER_ATTEMPTS_S[made])
    jitter = hashlib.sha256(pair + made.to_bytes(8, "big")).digest()[0] / 255  # 0..1 s
    pause = limits.ATTEMPT_EVERY_S if made < limits.PATIENT_AFTER_ATTEMPTS else limits.PATIENT_EVERY_S
    return Attempts(attempts.since, made, attempts.next_at + pause + jitter)


def step(
    states: Mapping[PublicKey, Attempts],
    peers: Mapping[PublicKey, tuple[bool, Sequence[Endpoint]]],
    alive: frozenset[PublicKey],
    *,
    now: float,
) -> tuple[dict[PublicKey, Attempts], dict[PublicKey, Endpoint]]:
    """One turn over all peers -> (states, attempts due now with the endpoint to try).

    `peers` maps each key to (do I lead?, candidates in order). Peers alive or without candidates are forgotten.
    """
    after: dict[PublicKey, Attempts] = {}
    due: dict[PublicKey, Endpoint] = {}
    for key, (leader, endpoints) in peers.items():
        if key in alive or not endpoints:
            continue
        state = states.get(key) or first(leader, now=now)
        if now >= state.next_at:
            due[key] = state.at or endpoints[state.made % len(endpoints)]
            state = tried(state, leader, key.raw)
        after[key] = state
    return after, due
