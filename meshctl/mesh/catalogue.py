"""The integrity catalogue as data: what is claimed, how it is proven, how much its failure matters (NET-7, MON-6).

**Law: the README's table, the alert rules in deploy/ and `meshctl doctor --list` are made from these rows.** To add a
check: a row here, a judge in judges.py, and a fault in tests/attacks that makes it fail.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Verdict(StrEnum):
    """What evidence says of one claim."""

    OK = "ok"
    DEGRADED = "degraded"
    FAILED = "failed"
    UNKNOWN = "unknown"


class Severity(StrEnum):
    """How much a failed check matters: one absent peer is weather, a leak is not."""

    WARNING = "warning"
    CRITICAL = "critical"


class Scope(StrEnum):
    """What a check is about: the node itself, each of its peers, or (at the coordinator) both ends of a pair."""

    NODE = "node"
    PEER = "peer"
    PAIR = "pair"


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the catalogue. A failed check of `depends_on` explains this one's failure; `anchor` is its page.

    `grace_s` is for what may pass by itself. Evidence that has waited already has none: three echoes in a row, or a
    step that was undone.
    """

    code: str
    title: str
    severity: Severity
    scope: Scope
    claim: str
    evidence: str
    depends_on: tuple[str, ...]
    grace_s: float
    remedy: str
    deep: bool = False  # tried by the deep schedule, not with every sweep

    @property
    def anchor(self) -> str:
        """Where the README explains it."""
        return f"README.md#{self.code.lower()}"


_W, _C = Severity.WARNING, Severity.CRITICAL
DRIFT, LAG, ROUTE, ROTATION = "MESH-CFG-001", "MESH-CFG-002", "MESH-ROUTE-001", "MESH-ROT-001"
HANDSHAKE, PATH, IDENTITY = "MESH-HS-001", "MESH-PATH-001", "MESH-ID-001"
KEY, CLOCK, ASYMMETRY = "MESH-KEY-001", "MESH-CLK-001", "MESH-ASY-001"

CATALOGUE: Final[Mapping[str, Check]] = {
    check.code: check
    for check in (
        Check(DRIFT, "interface-drift", _C, Scope.NODE, "the kernel holds what the plan says",
              "steps of the last pass", (), 0.0,
              "meshctl plan shows the difference; find who else configures the interface"),
        Check(LAG, "revision-lag", _W, Scope.NODE, "the node follows the registry",
              "applied revision, the server's, age of the last heartbeat", (), 15.0,
              "is a coordinator reachable from here? meshctl status names the one in use"),
        Check(ROUTE, "route-exclusive", _C, Scope.NODE, "mesh addresses leave only by the mesh interface",
              "the kernel's route for each peer, and the fail-closed route", (), 0.0,
              "remove the foreign route or rule that ip route get ADDRESS shows"),
        Check(HANDSHAKE, "handshake-fresh", _W, Scope.PEER, "sessions are re-keyed while traffic is sent",
              "age of the last handshake", (DRIFT,), 15.0, "does UDP reach the peer's endpoint? meshctl ping PEER"),
        Check(PATH, "peer-reachable", _W, Scope.PEER, "both directions carry packets",
              "authenticated echoes: loss, round trip, jitter", (HANDSHAKE, IDENTITY, ROTATION), 0.0,
              "is the peer up? meshctl status on its side; then firewalls between the two endpoints"),
        Check(IDENTITY, "peer-identity", _C, Scope.PEER, "the other end is the node in the registry",
              "tag of the echo, bound to both key statements", (), 15.0,
              "somebody answers at this address without the node's keys: revoke the node until you know why"),
        Check(ROTATION, "rotation-proven", _W, Scope.PEER, "a key that changed is in force at both ends",
              "handshake, and echo bound to both statements, younger than the change", (DRIFT,), 20.0,
              "meshctl status on the peer's side; a node that was cut off follows when its coordinator link is back"),
        Check(KEY, "key-age", _W, Scope.NODE, "keys and certificates are young",
              "age of the WireGuard key, life left of the certificate", (), 30.0,
              "a certificate renews by itself while a coordinator is reachable; a key: meshctl keys rotate"),
        Check(CLOCK, "clock-skew", _W, Scope.NODE, "clocks agree",
              "heartbeat of the coordinator and median of the peers' echoes", (), 30.0,
              "start a time daemon: chrony or systemd-timesyncd"),
        Check(ASYMMETRY, "asymmetric", _W, Scope.PAIR, "both ends of a pair say the same",
              "the two rows of the pair", (), 30.0,
              "one end does not see or does not tell what the other does: compare meshctl status of both ends"),
    )
}  # fmt: skip
