"""Which pre-shared key of a pair is in force, which comes next, and who does what now (NET-6, MESH-ENC-002).

Versions are numbers. The end with the lower raw id leads: it offers a version above all that either end has on file.
OFFER -> the follower files the key, ANSWER -> the leader files it, SET -> the follower sets it, DONE -> the leader
sets it.
A live session does not notice: WireGuard takes the key at its next handshake, and that handshake proves it.

**Law: a key is forgotten only when the other end surely has a later one.** What was last proven (`good`) stays on file
until a handshake proves another one *and* the other end says that it has that one in force too. So both files always
share a key, whoever is killed in between, and `choice` finds it: while no handshake succeeds, each end tries what it
has, at two speeds, so that within minutes both try the same. None is tried only before any version was ever proven.

Pure: no I/O and no clock; `now` in unix seconds, spans in seconds. Decides nothing about packets (psk_packets.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from hashlib import blake2b
from typing import Final, NamedTuple

from meshctl.mesh import limits
from meshctl.mesh.keys import PresharedKey
from meshctl.mesh.model import NodeId

KEYS: Final = 4  # on file at once: the proven one, the one in force, the next one, and one that was given up
RENEW_S: Final = 86400.0
STALL_S: Final = 15.0  # three tries of a handshake; then it is the key, and not chance
# A handshake that was under way when the key changed is of the key before: WireGuard repeats one for as long as this.
MARGIN_S: Final = limits.REKEY_TIMEOUT_S
PROVEN_WITHIN_S: Final = 200.0  # sessions are renewed after 120 s, and end after 180
_HASTY_S: Final = 480.0  # for so long each choice gets STALL_S, then eight times that: the peer is probably just away
_SLOWER: Final = 8.0
_SPREAD: Final = 0.2  # of the period: pairs that began at once are not renewed at once
_PAUSE_S: Final = 1.0
_PAUSE_MOST_S: Final = 8.0
_STRANGE_AFTER: Final = 6  # questions without any answer: an agent of an earlier release
_STRANGE_EVERY_S: Final = 120.0


class Key(NamedTuple):
    """One version. `shared`: the other end is known to have had it on file."""

    version: int
    key: PresharedKey
    made_at: float
    shared: bool


@dataclass(frozen=True, slots=True)
class Bunch:
    """All keys of a pair at one end, in order of version. `now` is in force since `set_at` (0: not in the device yet),
    `good` was last proven; 0 is none.
    """

    keys: tuple[Key, ...] = ()
    now: int = 0
    good: int = 0
    set_at: float = 0.0

    def find(self, version: int) -> Key | None:
        """The key of this version."""
        return next((key for key in self.keys if key.version == version), None)

    @property
    def key(self) -> PresharedKey | None:
        """In force; None: none."""
        found = self.find(self.now)
        return found.key if found else None

    @property
    def newest(self) -> int:
        """The highest version on file."""
        return self.keys[-1].version if self.keys else 0

    @property
    def next(self) -> int:
        """The highest version on file that is not in force."""
        return max((key.version for key in self.keys if key.version != self.now), default=0)

    @property
    def proven(self) -> bool:
        """Whether a handshake has proven what is in force."""
        return self.now > 0 and self.now == self.good

    @property
    def choices(self) -> tuple[int, ...]:
        """What the other end may have in force."""
        shared = tuple(key.version for key in self.keys if key.shared or key.version == self.now)
        return shared if self.good else (0, *shared)

    def without(self, version: int) -> Bunch:
        """The other end has something else under this number; what is in force or proven stays all the same."""
        gone = version not in (self.now, self.good)
        return replace(self, keys=tuple(k for k in self.keys if k.version != version)) if gone else self

    # ---- what may happen to it ---------------------------------------------------------------------------------------

    def filed(self, version: int, key: PresharedKey, *, shared: bool, now: float) -> Bunch:
        """With another version. One that the other end never acknowledged makes room for it."""
        kept = [k for k in self.keys if k.version < version and (k.shared or k.version in (self.now, self.good))]
        while len(kept) >= KEYS:
            kept.remove(next(k for k in kept if k.version not in (self.now, self.good)))
        return replace(self, keys=(*kept, Key(version, key, now, shared)))

    def set(self, version: int) -> Bunch:
        """Both ends have it: it comes in force, and of the others what was proven stays."""
        kept = tuple(
            k._replace(shared=k.shared or k.version == version) for k in self.keys if k.version in (version, self.good)
        )
        return replace(self, keys=kept, now=version, set_at=0.0)

    def stepped(self, version: int) -> Bunch:
        """No handshake succeeds: another one is tried, and none is forgotten."""
        return replace(self, now=version, set_at=0.0)

    def applied(self, *, now: float) -> Bunch:
        """The device has it."""
        return replace(self, set_at=now)

    def confirmed(self) -> Bunch:
        """A handshake with it succeeded, and the other end says the same: what is older is forgotten."""
        return replace(self, keys=tuple(k for k in self.keys if k.version >= self.now), good=self.now)


class Heard(NamedTuple):
    """What the other end last said of itself. `valid`: it has the very key that we have under the version `now`."""

    now: int
    next: int
    good: int
    valid: bool


class Act(Enum):
    """What to say to the other end."""

    REST = auto()
    ASK = auto()
    OFFER = auto()
    SET = auto()


def agrees(bunch: Bunch, heard: Heard | None) -> bool:
    """Whether both ends have the same in force, as far as is known."""
    return heard is not None and heard.now == bunch.now and heard.valid


def act(bunch: Bunch, heard: Heard | None, *, leads: bool, due: bool) -> tuple[Act, int]:
    """(what to say, the version to set). `due`: what is in force is older than it may be."""
    if heard is None:
        return Act.ASK, 0
    agreed = agrees(bunch, heard)
    if not leads:
        return (Act.REST if agreed else Act.ASK), 0
    wanted = bunch.newest
    if not wanted or (agreed and wanted == bunch.now):
        return (Act.OFFER if not agreed or not wanted or due else Act.REST), 0
    # What the follower has on file it has from us, unless one of the two files is older than the other knows.
    held = heard.valid if heard.now == wanted else heard.next == wanted
    return (Act.SET, wanted) if held else (Act.OFFER, 0)


def first_above(bunch: Bunch, heard: Heard) -> int:
    """The version to offer."""
    return max(bunch.newest, heard.now, heard.next, heard.good) + 1


def is_due(bunch: Bunch, pair: bytes, period_s: float, *, now: float) -> bool:
    """Whether what is in force is as old as it may be; sooner by up to a fifth, by the pair. A clock that was stepped
    back counts as due: nobody knows the age then.
    """
    held = bunch.find(bunch.now)
    chance = blake2b(pair + bunch.now.to_bytes(8, "big"), digest_size=1).digest()[0] / 255
    return held is not None and not 0 <= now - held.made_at < period_s * (1 - _SPREAD * chance)


def proves(bunch: Bunch, heard: Heard | None, handshake_at: float) -> bool:
    """Whether the handshake of that moment shows that what is in force works, and the other end has it in force too.

    The stamp alone could be wrong: a responder stamps a handshake when the first packet of the session comes, which may
    be long after it answered with the key before.
    """
    return bunch.set_at > 0 and bunch.now > 0 and handshake_at > bunch.set_at + MARGIN_S and agrees(bunch, heard)


def is_stalled(age_s: float | None, coverage_s: float) -> bool:
    """Whether a handshake should have been made by now: WireGuard renews a session in use after 120 s, and every
    coverage period an echo uses it.
    """
    return age_s is None or age_s > limits.REKEY_AFTER_S + min(coverage_s, limits.REJECT_AFTER_S - limits.REKEY_AFTER_S)


def is_over(age_s: float | None) -> bool:
    """Whether the last session is over, if there was one."""
    return age_s is None or age_s > limits.REJECT_AFTER_S


def choice(bunch: Bunch, began_with: int, stalled_s: float, *, leads: bool) -> int:
    """The version to try after so long without a handshake. The leader goes through all it has while the follower, once
    it has left what it began with, stays with one: so all combinations occur.
    """
    choices = bunch.choices
    paced_s = min(stalled_s, _HASTY_S) + max(stalled_s - _HASTY_S, 0.0) / _SLOWER
    turn = int(paced_s / STALL_S)
    if not leads:
        turn = 0 if turn < 2 else 1 + (turn - 2) // (KEYS + 1)
    start = choices.index(began_with) if began_with in choices else 0
    return choices[(start - turn) % len(choices)]


def pause_s(tries: int, strange: bool) -> float:
    """Until the same is said again, after so many times. `strange`: nothing was ever heard."""
    if strange and tries >= _STRANGE_AFTER:
        return _STRANGE_EVERY_S
    return min(_PAUSE_S * (1 << min(tries - 1, 8)), _PAUSE_MOST_S)


def is_strange(tries: int) -> bool:
    """Whether a peer that never answered so many questions probably cannot."""
    return tries >= _STRANGE_AFTER


def in_force(bunches: Mapping[NodeId, Bunch]) -> dict[NodeId, PresharedKey]:
    """What the device is to hold."""
    return {peer: key for peer, bunch in bunches.items() if (key := bunch.key)}
