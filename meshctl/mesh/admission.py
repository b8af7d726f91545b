"""May this node join? (request, token, what is known of it, now) -> Admitted | Refused (ACC-3, NET-1).

The decision only: the nonce and the proof of the device key are checked before, the transaction that consumes the token
and registers the node comes after (coordinator/enrol.py) and fails if anything read here changed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from meshctl.mesh.model import NodeId


@dataclass(frozen=True, slots=True)
class Token:
    """A join token as the registry keeps it. `hash` is SHA-256 of the secret, which is 256 random bits."""

    id: str
    hash: bytes
    created: float  # unix seconds
    expires: float  # unix seconds
    uses: int  # how many nodes may still join with it
    tags: tuple[str, ...] = ()
    ephemeral: bool = False
    revoked: bool = False
    used_by: tuple[NodeId, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Admitted:
    """The token as it is after this join, and whether the node was admitted before (a join that is being resumed)."""

    token: Token
    resumed: bool
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """Why not, in a bounded code for metrics, and in words for the person who reads the terminal."""

    code: str
    what: str
    hint: str


@dataclass(frozen=True, slots=True)
class Request:
    """What a node asks for: who it is, how it wants to be called, with which tags."""

    node: NodeId
    name: str
    tags: tuple[str, ...] = ()


ASK_AGAIN = "ask the operator for a new one: mesh-coordinator token create"


def decide(
    request: Request,
    token: Token | None,
    *,
    secret_matches: bool,
    member: bool,
    name_taken: bool,
    key_taken: bool = False,
    tombstone: str | None,
    now: float,
) -> Admitted | Refused:
    """Admit or refuse. `member`: this device is registered already, so a join that was cut off is being resumed.
    `tombstone`: why this very device left before ("revoked", "removed", "left"), or None. `now` in unix seconds."""
    if token is None or not secret_matches:
        return Refused("token-unknown", "this mesh knows no such token", "check that it was copied whole; " + ASK_AGAIN)
    if tombstone == "revoked":
        return Refused(
            "node-revoked", f"node {request.node} was revoked", "it cannot join again with this identity; " + ASK_AGAIN
        )
    if member:
        return Admitted(token, resumed=True, tags=())
    if token.revoked:
        return Refused("token-revoked", "this token was revoked", ASK_AGAIN)
    if now >= token.expires:
        return Refused("token-expired", f"this token expired {now - token.expires:.0f} s ago", ASK_AGAIN)
    if token.uses < 1:
        return Refused("token-used", "this token was used already", ASK_AGAIN)
    if name_taken:
        return Refused("name-taken", f"the name {request.name!r} is taken", "choose another: meshctl join --name NAME")
    if key_taken:
        return Refused(
            "key-taken", "another node has this WireGuard key", "meshctl leave --force makes new keys, then join again"
        )
    tags = tuple(dict.fromkeys(request.tags))
    if extra := set(tags) - set(token.tags):
        return Refused(
            "tag-denied", f"this token does not allow the tag {min(extra)!r}", "mesh-coordinator token create --tag"
        )
    spent = replace(token, uses=token.uses - 1, used_by=(*token.used_by, request.node)[-64:])
    return Admitted(spent, resumed=False, tags=tags or token.tags)
