"""The vocabulary of happenings (MON-1).

Every security-relevant happening is one frozen dataclass: who did it, from where, how it ended, what it changed.
Callers hold the port `Events` and never learn which sink is behind it (today meshctl/eventlog.py).
No event may carry a secret: fields are text, numbers, public keys and addresses; a test walks all types to hold it.
What is not a happening (progress, debugging) does not belong here. Nothing here decides or waits.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from typing import ClassVar, Protocol, TypeVar, dataclass_transform

from meshctl.mesh import plan
from meshctl.mesh.interface import AddressOnLink
from meshctl.mesh.keys import PublicKey
from meshctl.mesh.model import Address, Endpoint, Network, NodeId


class Outcome(StrEnum):
    """How it ended."""

    SUCCESS = "success"
    REFUSED = "refused"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What all happenings have: an actor and where it acted from."""

    kind: ClassVar[str] = ""
    outcome: ClassVar[Outcome] = Outcome.SUCCESS

    actor: str = ""  # `node:ID` or `operator:UID`; empty: the process that keeps the log
    source: Address | None = None  # None: this very machine


E = TypeVar("E", bound=Event)


@dataclass_transform(frozen_default=True, kw_only_default=True)
def happening(kind: str, outcome: Outcome = Outcome.SUCCESS) -> Callable[[type[E]], type[E]]:
    """Make a class an event called `kind` (noun.verb; names are never reused for something else)."""

    def make(cls: type[E]) -> type[E]:
        made = dataclass(frozen=True, slots=True, kw_only=True)(cls)
        made.kind, made.outcome = kind, outcome
        return made

    return make


# ---- membership ------------------------------------------------------------------------------------------------------


@happening("node.joined")
class NodeJoined(Event):
    """A node was admitted; `resumed` when it had been before and asked again."""

    node: NodeId
    name: str
    address4: IPv4Address
    address6: IPv6Address
    token: str
    tags: tuple[str, ...] = ()
    resumed: bool = False


@happening("node.join-refused", Outcome.REFUSED)
class JoinRefused(Event):
    """A join was turned away; `code` as in mesh/admission.py."""

    node: NodeId
    name: str
    token: str
    code: str
    why: str


@happening("node.revoked")
class NodeRevoked(Event):
    """A node was thrown out for good."""

    node: NodeId
    name: str


@happening("node.removed")
class NodeRemoved(Event):
    """An operator took a node off the registry."""

    node: NodeId
    name: str


@happening("node.left")
class NodeLeft(Event):
    """A node took its leave."""

    node: NodeId
    name: str


@happening("token.created")
class TokenCreated(Event):
    """A join token; the id, never the secret. `expires` in unix seconds."""

    token: str
    expires: float
    uses: int
    tags: tuple[str, ...] = ()


@happening("token.revoked")
class TokenRevoked(Event):
    """Nobody joins with this token any more."""

    token: str


@happening("token.used")
class TokenUsed(Event):
    """One use of a token was consumed."""

    token: str
    node: NodeId
    uses_before: int
    uses_after: int


@happening("certificate.issued")
class CertificateIssued(Event):
    """A node's first certificate; `expires` in unix seconds."""

    node: NodeId
    expires: float


@happening("certificate.renewed")
class CertificateRenewed(Event):
    """The same device key, a later end; `late` when the old certificate had expired. Unix seconds."""

    node: NodeId
    expires: float
    late: bool = False


@happening("statement.accepted")
class StatementAccepted(Event):
    """A node's key statement is in force; `serial_before` is 0 for a node's first."""

    node: NodeId
    serial_before: int
    serial_after: int
    wireguard: PublicKey


@happening("statement.refused", Outcome.REFUSED)
class StatementRefused(Event):
    """A key statement was forged, replayed, or meant for another mesh."""

    node: NodeId
    why: str


@happening("rotation.opened")
class RotationOpened(Event):
    """The keys of so many nodes are to be rotated, one after the other."""

    rotation: str
    targets: int
    force: bool
    reason: str


@happening("rotation.turn-ended")
class TurnEnded(Event):
    """One node's key was rotated and so many of its pairs are proven, or it was not and why."""

    rotation: str
    node: NodeId
    why: str
    pairs: int
    proven: int
    worst_gap_s: float


@happening("rotation.closed")
class RotationClosed(Event):
    """No turn is left; `failed` were not rotated or are not proven on every pair."""

    rotation: str
    done: int
    failed: tuple[NodeId, ...]
    worst_gap_s: float


@happening("key.switched")
class KeySwitched(Event):
    """This node has another WireGuard key in force, or (`returned`) the one before again."""

    rotation: str
    serial: int
    wireguard: PublicKey
    returned: bool = False


@happening("psk.set")
class PresharedKeySet(Event):
    """This node's WireGuard has another pre-shared key for a peer; `proven`: one that had been proven before."""

    node: NodeId
    version: int
    proven: bool = False


# ---- access ----------------------------------------------------------------------------------------------------------


@happening("session.opened")
class SessionOpened(Event):
    """A node follows the registry from `revision` on; told by both ends."""

    node: NodeId
    revision: int


@happening("session.closed")
class SessionClosed(Event):
    """A node's stream ended, or was cut (`why`); told by both ends."""

    node: NodeId
    why: str
    lasted_s: float


@happening("call.refused", Outcome.REFUSED)
class CallRefused(Event):
    """Somebody asked for what is not theirs to ask."""

    method: str
    why: str


@happening("policy.changed")
class PolicyChanged(Event):
    """Versions of the policy record, or the name of a built-in one."""

    before: str
    after: str


@happening("policy.allow-all")
class PolicyAllowAll(Event):
    """A process noticed that the mesh it serves denies nothing."""


# ---- the node's interface and its health -----------------------------------------------------------------------------


@happening("interface.step-applied")
class StepApplied(Event):
    """One step of a plan. `foreign`: it undid what somebody else did to the interface; `changed` names the fields."""

    interface: str
    step: str
    foreign: bool = False
    peer: PublicKey | None = None
    endpoint: Endpoint | None = None
    networks: tuple[Network | AddressOnLink, ...] = ()
    changed: tuple[str, ...] = ()

    @classmethod
    def of(cls, step: plan.Step, interface: str, *, actor: str = "", foreign: bool = False) -> StepApplied:
        """What of `step` may be told: private and pre-shared keys stay behind."""
        peer: PublicKey | None = None
        endpoint: Endpoint | None = None
        networks: tuple[Network | AddressOnLink, ...] = ()
        match step:
            case plan.AddPeer(held) | plan.RestartPeer(held) | plan.UpdatePeer(held):
                peer, endpoint, networks = held.public_key, held.endpoint, held.allowed_ips
            case plan.RemovePeer(peer):
                pass
            case plan.AddAddress(address) | plan.RemoveAddress(address):
                networks = (address,)
            case plan.AddRoute(route) | plan.RemoveRoute(route):
                networks = (route.prefix,)
            case plan.SetGuard(prefixes=prefixes):
                networks = tuple(sorted(prefixes, key=str))
        changed = step.changed if isinstance(step, plan.UpdatePeer) else ()
        return cls(
            actor=actor,
            interface=interface,
            step=step_name(step),
            foreign=foreign,
            peer=peer,
            endpoint=endpoint,
            networks=networks,
            changed=changed,
        )


def step_name(step: plan.Step) -> str:
    """A bounded name of a step: `update-peer`."""
    return re.sub(r"(?<=.)([A-Z])", r"-\1", type(step).__name__).lower()


@happening("interface.step-failed", Outcome.FAILURE)
class StepFailed(Event):
    """The kernel or nftables refused a step."""

    interface: str
    step: str
    why: str


@happening("finding.opened", Outcome.FAILURE)
class FindingOpened(Event):
    """An experiment failed past its grace period. `code` of the integrity catalogue, `subject` a node or interface."""

    code: str
    subject: str
    severity: str
    before: str
    after: str
    evidence: str


@happening("finding.closed")
class FindingClosed(Event):
    """Evidence says that it is over."""

    code: str
    subject: str
    open_s: float
    evidence: str


# ---- processes -------------------------------------------------------------------------------------------------------


@happening("coordinator.started")
class CoordinatorStarted(Event):
    """A coordinator serves."""

    release: str
    incarnation: str


@happening("coordinator.stopped")
class CoordinatorStopped(Event):
    """A coordinator stopped on request."""

    why: str


@happening("agent.started")
class AgentStarted(Event):
    """A node's agent looks after `interface`."""

    release: str
    interface: str


@happening("agent.stopped")
class AgentStopped(Event):
    """A node's agent stopped; the tunnels stay."""

    why: str


@happening("events.repaired", Outcome.FAILURE)
class LogRepaired(Event):
    """The event log ended in the middle of a line (a crash); `kept_in` has the torn bytes."""

    torn_bytes: int
    kept_in: str


# ---- where events go -------------------------------------------------------------------------------------------------


class Events(Protocol):
    """The port. Callers hold this and never learn which sink is behind it."""

    def emit(self, event: Event) -> int:
        """Take note; returns the sequence number. Never fails, never waits for a disk."""

    async def commit(self, event: Event) -> int:
        """Take note; returns once it will survive a power cut. Raises EnvironmentFault: then do not confirm the act."""
