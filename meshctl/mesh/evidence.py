"""What a node signs when a finding opens, changes its verdict, or closes: the canonical bytes (NET-7, MON-1).

    magic "MFE1" 4 | mesh id 16, zero padded | node id 24 | number 8 | closed 1 | since 8 | at 8 |
    code, subject, verdict, evidence: each 2 bytes of length, then UTF-8

Big endian, times in unix milliseconds. Other signed things travel as the bytes they were; this one is laid out anew
from its fields, because it must verify from a line of a log, which is text. So the layout is fixed and has one form per
value. The compact row of the matrix is not signed: it changes with the age of evidence alone, in every coverage period,
and what it accuses somebody of is signed here. Signing and verifying live in crypto/identity.py.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Final

from meshctl.errors import ProtocolError
from meshctl.mesh.model import NodeId

EVIDENCE_CHARS: Final = 256
SIGNED_OPEN: Final = 256  # findings of one node: within limits.UP_MESSAGE_BYTES when every peer is down
NUMBER_MAX: Final = 2**62  # milliseconds are at 2^41; nobody can be talked into a number without a successor
TIME_MAX_MS: Final = 2**48
_HEAD: Final = struct.Struct(">4s16s24sQ?QQ")
_MAGIC: Final = b"MFE1"
_MESH, _NODE = re.compile(r"[!-~]{1,16}"), re.compile(r"[a-z2-7]{24}")
_CODE, _SUBJECT, _VERDICT = re.compile(r"[A-Z0-9-]{1,32}"), re.compile(r"[!-~]{0,64}"), re.compile(r"[a-z]{1,16}")


@dataclass(frozen=True, slots=True)
class Claim:
    """One statement of a node about itself or a peer (`subject`: a node id, or empty). Times in unix milliseconds.

    `number` only grows with each statement of a node, whatever it is about.
    """

    mesh: str
    node: NodeId
    number: int
    closed: bool
    code: str
    subject: str
    verdict: str
    since_ms: int
    at_ms: int
    evidence: str

    @property
    def body(self) -> bytes:
        """The bytes to sign. Raises ProtocolError for what no node says."""
        shapes = (self.mesh, _MESH), (self.node, _NODE), (self.code, _CODE), (self.subject, _SUBJECT)
        fits = all(shape.fullmatch(text) for text, shape in (*shapes, (self.verdict, _VERDICT)))
        fits &= 0 < self.number < NUMBER_MAX and all(0 <= at < TIME_MAX_MS for at in (self.since_ms, self.at_ms))
        if not fits or len(self.evidence) > EVIDENCE_CHARS:
            raise ProtocolError("a finding that no node says", "the node may run an incompatible release")
        names = self.mesh.encode(), self.node.encode()
        head = _HEAD.pack(_MAGIC, *names, self.number, self.closed, self.since_ms, self.at_ms)
        try:
            texts = [text.encode() for text in (self.code, self.subject, self.verdict, self.evidence)]
        except UnicodeEncodeError:
            raise ProtocolError("a finding that is no text", "the node may run an incompatible release") from None
        return head + b"".join(len(text).to_bytes(2, "big") + text for text in texts)


def next_number(last: int, *, now: float) -> int:
    """Of the next statement: the wall clock in milliseconds, but never one that was used. `now` in unix seconds."""
    return max(last + 1, int(now * 1000))
