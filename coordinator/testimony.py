"""Lines of a coordinator's log that tell what nodes found: the events, and how each verifies by itself (MON-1).

Beside meshctl/events.py, for what only a coordinator tells. Decides nothing about findings: findings.py does.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Final

import msgspec

from meshctl.crypto.identity import FINDING_CONTEXT, verify
from meshctl.errors import ProtocolError, TrustError
from meshctl.events import Event, Outcome, happening
from meshctl.mesh.evidence import Claim
from meshctl.mesh.model import NodeId, node_id

LINE_BYTES: Final = 64 * 1024  # ours are under 2 kB


@dataclass(frozen=True, slots=True, kw_only=True)
class _NodeFinding(Event):
    """The fields of mesh/evidence.py, times in unix milliseconds; keys and signatures are base64. With them the line
    verifies by itself: the node's id is the hash of `device_key`.
    """

    mesh: str
    node: NodeId
    number: int
    code: str
    subject: str
    verdict: str
    since_ms: int
    at_ms: int
    evidence: str
    device_key: str
    signature: str


@happening("node-finding.opened", Outcome.FAILURE)
class NodeFindingOpened(_NodeFinding):
    """A node told a coordinator, signed by its device key, what it found, or that the verdict of it is another now."""


@happening("node-finding.closed")
class NodeFindingClosed(_NodeFinding):
    """The same of what is over."""


@happening("node-finding.dropped", Outcome.FAILURE)
class NodeFindingDropped(Event):
    """A node says no more of a signed finding (`number`) and has not signed that it is over: it started anew, came
    back with an earlier release, or hides it.
    """

    node: NodeId
    number: int
    code: str
    subject: str


@happening("node-finding.refused", Outcome.REFUSED)
class NodeFindingRefused(Event):
    """What a node said it had found was not believed; `why` is one of few words, each told once a minute."""

    node: NodeId
    why: str
    number: int
    code: str
    subject: str


_KINDS: Final = {kind.kind: kind for kind in (NodeFindingOpened, NodeFindingClosed)}


def event_of(claim: Claim, device_key: bytes, signature: bytes) -> NodeFindingOpened | NodeFindingClosed:
    """The event that `audit` reads again."""
    kind = NodeFindingClosed if claim.closed else NodeFindingOpened
    signed = {one.name: getattr(claim, one.name) for one in fields(claim) if one.name != "closed"}
    key, proof = (base64.b64encode(raw).decode() for raw in (device_key, signature))
    return kind(actor=f"node:{claim.node}", device_key=key, signature=proof, **signed)


class _Line(msgspec.Struct):
    event: str
    outcome: str
    actor: str
    mesh: str
    node: str
    number: int
    code: str
    subject: str
    verdict: str
    since_ms: int
    at_ms: int
    evidence: str
    device_key: str
    signature: str

    def claim(self) -> Claim:
        kind = _KINDS[self.event]
        if self.outcome != kind.outcome or self.actor != f"node:{self.node}":
            raise TrustError("who did it, or how it ended, is not what the node signed")
        return Claim(
            self.mesh, NodeId(self.node), self.number, self.event == NodeFindingClosed.kind,
            self.code, self.subject, self.verdict, self.since_ms, self.at_ms, self.evidence,
        )  # fmt: skip


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two fields with one name readers would pick either."""
    told = dict(pairs)
    if len(told) != len(pairs):
        raise ValueError("a field twice")
    return told


def audit(line: bytes) -> Claim | None:
    """What a line of an event log proves by itself: that the node with this id said so. None: a line of another kind.

    When it was written (`seq`, `at`) and from where it came (`source`) are the coordinator's words: nobody signed them.
    Raises ProtocolError for what is no line, TrustError where it was altered or is not the node's.
    """
    try:
        if len(line) > LINE_BYTES:
            raise ValueError(len(line))
        told = json.loads(line, object_pairs_hook=_once)
        if not isinstance(told, dict):
            raise TypeError(told)
        if told.get("event") not in _KINDS:
            return None
        found = msgspec.convert(told, _Line)
        device_key = base64.b64decode(found.device_key, validate=True)
        signature = base64.b64decode(found.signature, validate=True)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        raise ProtocolError("not a line of an event log", "name a file like events.jsonl") from error
    claim = found.claim()
    if node_id(device_key) != claim.node:
        raise TrustError("the device key is not the node's: an id is the hash of its key")
    if len(signature) != 64:
        raise TrustError("the signature has not the length of one")
    verify(device_key, FINDING_CONTEXT + claim.body, signature)
    return claim


def audited(lines: Iterable[bytes]) -> Iterator[tuple[int, Claim | str]]:
    """(number of the line, what it proves or why it does not), of the lines that tell of a node's finding."""
    for number, line in enumerate(lines, 1):
        try:
            claim = audit(line)
        except (ProtocolError, TrustError) as error:
            yield number, error.what
        else:
            if claim:
                yield number, claim
