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
    every_s: float = 0.0  # a check with a rhythm of its own

    @property
    def anchor(self) -> str:
        """Where the README explains it."""
        return f"README.md#{self.code.lower()}"


_W, _C = Severity.WARNING, Severity.CRITICAL
DRIFT, LAG, ROUTE, ROTATION = "MESH-CFG-001", "MESH-CFG-002", "MESH-ROUTE-001", "MESH-ROT-001"
HANDSHAKE, PATH, IDENTITY = "MESH-HS-001", "MESH-PATH-001", "MESH-ID-001"
KEY, CLOCK, ASYMMETRY, CIPHER = "MESH-KEY-001", "MESH-CLK-001", "MESH-ASY-001", "MESH-ENC-003"
PATH_MTU, INTACT = "MESH-PATH-002", "MESH-INT-001"
ENCRYPTED, REPLAY, TAMPER = "MESH-ENC-001", "MESH-RPL-001", "MESH-TMP-001"
SPOOF, STRANGER, PSK = "MESH-SPF-001", "MESH-STR-001", "MESH-ENC-002"

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
        Check(PATH_MTU, "path-mtu", _W, Scope.PEER, "full-size packets pass in both directions",
              "unfragmented echoes of rising size, each lost one beside a small one that came back", (PATH,), 2.0,
              "find what drops large UDP between the endpoints; until then the routes to the peer have a smaller MTU",
              deep=True),
        Check(INTACT, "payload-intact", _C, Scope.PEER, "bytes arrive unchanged",
              "random payloads of several sizes each way, digests in authenticated headers", (PATH,), 0.0,
              "something alters packets after decryption: look for nft or tc rules on the mesh interface, then memory",
              deep=True),
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
        Check(CIPHER, "control-cipher", _C, Scope.NODE, "the control plane speaks AES-256-GCM and nothing weaker",
              "ServerHello read from the wire; offers of less are refused", (), 5.0,
              "whoever answers at the coordinator's address takes weaker ciphers: somebody may be in between",
              deep=True, every_s=3600.0),
        Check(ENCRYPTED, "wire-encrypted", _C, Scope.PEER, "nothing crosses the wire in clear",
              "canaries seen enciphered by taps at both ends; packets in clear with a mesh address", (PATH,), 0.0,
              "a program on that machine sends around the mesh interface: find it by the addresses", deep=True),
        Check(PSK, "post-quantum-key", _W, Scope.PEER, "sessions are also keyed by a secret that ML-KEM-768 agreed on",
              "versions at both ends, handshake younger than the change", (DRIFT,), 0.0,
              "look at meshctl logs of both; is a coordinator reachable from both? Its letters bring lost keys back",
              deep=True),
        Check(REPLAY, "replay-rejected", _C, Scope.PEER, "captured messages are worthless",
              "a captured canary sent again: seen on the peer's wire, how often delivered", (PATH,), 0.0,
              "which WireGuard runs on the peer? No genuine one takes a message twice", deep=True),
        Check(TAMPER, "tamper-rejected", _C, Scope.PEER, "altered messages are dropped",
              "a canary altered in two bits: seen on the peer's wire, not delivered", (PATH,), 0.0,
              "which WireGuard runs on the peer? No genuine one takes an altered message", deep=True),
        Check(SPOOF, "spoof-rejected", _C, Scope.PEER, "inner source addresses are bound to keys",
              "a canary with another node's source: seen on the peer's wire, not delivered", (PATH, DRIFT), 0.0,
              "wg show on the peer: do its allowed IPs hold more than one node's addresses?", deep=True),
        Check(STRANGER, "stranger-rejected", _C, Scope.PEER, "unknown keys get no answer",
              "initiations with a fresh key and, once rotated, our retired one: seen on the peer's wire, no response",
              (PATH,), 0.0,
              "which WireGuard runs on the peer? No genuine one answers a key it does not hold", deep=True),
        Check(ASYMMETRY, "asymmetric", _W, Scope.PAIR, "both ends of a pair say the same",
              "the two rows of the pair", (), 30.0,
              "one end does not see or does not tell what the other does: compare meshctl status of both ends"),
    )
}  # fmt: skip
