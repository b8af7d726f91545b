"""What operators and coordinators say to each other, as values (OPS-4, ACC-5). Beside codec.py, for the Operator
service.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from meshctl.mesh.admission import Token
from meshctl.mesh.model import Node
from meshctl.wire import codec
from meshctl.wire.codec import FindingRow, plain, strict
from meshctl.wire.v1 import mesh_pb2 as pb


@dataclass(frozen=True, slots=True)
class NodeState:
    """A node as operators see it. `since` (unix s): when it connected, or was last seen, by a coordinator; 0 = never.

    `via` is the coordinator where it is connected, when that is not the one that answers.
    """

    node: Node
    connected: bool
    since: float
    applied: int
    digest_ok: bool
    verdict: str
    ephemeral: bool
    findings: tuple[FindingRow, ...]
    seen_address: str
    key_made_at: float = 0.0  # unix seconds
    via: str = ""
    release: str = ""


def token_request(life_s: float, uses: int, tags: tuple[str, ...], ephemeral: bool, note: str) -> pb.TokenRequest:
    """For TokenCreate."""
    return pb.TokenRequest(life_s=life_s, uses=uses, tags=tags, ephemeral=ephemeral, note=note)


def token_created(name: str, text: str) -> pb.TokenCreated:
    """The one message that ever holds a token's secret."""
    return pb.TokenCreated(id=name, text=text)


def tokens_message(tokens: Iterable[Token]) -> pb.Tokens:
    """Without hashes: nobody needs them."""
    return pb.Tokens(
        tokens=[
            pb.Token(
                id=t.id,
                created=t.created,
                expires=t.expires,
                uses=t.uses,
                tags=t.tags,
                ephemeral=t.ephemeral,
                revoked=t.revoked,
                used_by=t.used_by,
                note=t.note,
            )
            for t in tokens
        ]
    )


def tokens(message: pb.Tokens) -> tuple[Token, ...]:
    """Inverse of `tokens_message`; hashes are empty."""
    return tuple(
        Token(t.id, b"", t.created, t.expires, t.uses, tuple(t.tags), t.ephemeral, t.revoked, tuple(t.used_by), t.note)  # type: ignore[arg-type]
        for t in message.tokens
    )


def named(name: str, reason: str = "") -> pb.Named:
    """A node or token, and why."""
    return pb.Named(name=name, reason=reason)


def nothing() -> pb.Nothing:
    """An empty request."""
    return pb.Nothing()


def done(revision: int, what: str) -> pb.Done:
    """An act was carried out, at this revision of the registry."""
    return pb.Done(revision=revision, what=what)


def applied_request(revision: int, timeout_s: float) -> pb.AppliedRequest:
    """Wait until all members have applied `revision`; 0: the one of now."""
    return pb.AppliedRequest(revision=revision, timeout_s=timeout_s)


def applied_reply(applied: int, stragglers: Iterable[str], waiting: int, seconds: float) -> pb.AppliedReply:
    """How many did, who (the first few of `waiting`) did not, and how long it took."""
    return pb.AppliedReply(applied=applied, stragglers=stragglers, waiting=waiting, seconds=seconds)


def states_message(states: Iterable[NodeState], revision: int) -> pb.NodeStates:
    """All nodes at one revision of the map."""
    nodes = (plain(s, node=codec.node_message(s.node), findings=codec.finding_messages(s.findings)) for s in states)
    return pb.NodeStates(revision=revision, nodes=[pb.NodeState(**node) for node in nodes])


def states(message: pb.NodeStates) -> tuple[NodeState, ...]:
    """Inverse of `states_message`."""
    with strict("list of nodes"):
        return tuple(
            NodeState(
                codec.node(m.node),
                m.connected,
                m.since,
                m.applied,
                m.digest_ok,
                m.verdict,
                m.ephemeral,
                codec.finding_rows(m.findings),
                m.seen_address,
                m.key_made_at,
                m.via,
                m.release,
            )
            for m in message.nodes
        )

