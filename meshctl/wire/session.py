"""The frames of one session, up and down (NET-2). Beside codec.py, which encodes the values inside them.

Down frames are flat, so that encoded nodes are joined as bytes: no per-recipient encoding of nodes ever happens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from google.protobuf.message import Message

from meshctl.errors import ProtocolError
from meshctl.mesh import evidence, limits
from meshctl.mesh.matrix import MatrixRow
from meshctl.mesh.model import Candidate, MeshInfo, NodeId
from meshctl.mesh.psk_packets import LARGEST_BYTES, Letter
from meshctl.mesh.rotation import Order, Report
from meshctl.wire import codec, rows, turns
from meshctl.wire.codec import FindingRow, strict
from meshctl.wire.v1 import mesh_pb2 as pb

_PUT_TAG = b"\x0a"  # field 1, length-delimited
_GONE_TAG = b"\x12"  # field 2
FINDINGS_PER_REPORT = evidence.SIGNED_OPEN  # of 410 bytes at most: as many open and closed ones are one message
LETTERS_PER_FRAME = 16


METHOD = "/meshctl.wire.v1.Mesh/Session"


def serialize_up(up: pb.Up) -> bytes:
    """What the client's stream writes."""
    return up.SerializeToString()


def parse_up(raw: bytes) -> pb.Up:
    """What the server's stream reads. Raises ProtocolError, to whoever reads the stream."""
    with strict("report"):
        return pb.Up.FromString(raw)


def parse_nothing(raw: bytes) -> pb.Nothing:
    """An empty request."""
    return pb.Nothing.FromString(raw)


def serialize(message: Message) -> bytes:
    """Any answer."""
    return message.SerializeToString()


def _varint(number: int) -> bytes:
    if 0x80 <= number < 0x4000:  # a node, nearly always
        return bytes((number & 0x7F | 0x80, number >> 7))
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


@lru_cache(maxsize=1 << 14)  # every snapshot is made of the same chunks, and in a storm of joins there are many
def put_field(chunk: bytes) -> bytes:
    """An encoded node as it stands inside a frame."""
    return _PUT_TAG + _varint(len(chunk)) + chunk


def gone_field(node: str) -> bytes:
    """A departed node as it stands inside a frame."""
    raw = node.encode()
    return _GONE_TAG + _varint(len(raw)) + raw


def frames(
    changes: Iterable[tuple[str, bytes | None]],
    from_revision: int,
    to_revision: int,
    map_hash: bytes,
    *,
    snapshot: bool = False,
) -> list[bytes]:
    """Changes as one or more frames of at most SNAPSHOT_NODES_PER_FRAME nodes; the last one carries the map's hash."""
    fields = [gone_field(node) if chunk is None else put_field(chunk) for node, chunk in changes]
    size = limits.SNAPSHOT_NODES_PER_FRAME
    parts = [fields[i : i + size] for i in range(0, len(fields), size)] or [[]]
    out = []
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        head = pb.Down(
            from_revision=from_revision,
            to_revision=to_revision,
            snapshot=snapshot and index == 0,
            more=not last,
            map_hash=map_hash if last else b"",
        )
        out.append(head.SerializeToString() + b"".join(part))
    return out


def heartbeat_frame(
    revision: int, findings: Sequence[FindingRow] = (), registry_age_s: float = 0.0, heard: int = 0, *, now: float
) -> bytes:
    """The server's clock and revision, what it finds of this node, how long the registry has not answered it, and the
    number of the node's last signed statement that it took.
    """
    found = codec.finding_messages(findings)
    beat = pb.Heartbeat(now=now, revision=revision, findings=found, registry_age=registry_age_s, heard=heard)
    return pb.Down(heartbeat=beat).SerializeToString()


def welcome_frame(
    mesh: MeshInfo, seen_address: str, revision: int, heard: int = 0, protocol: int = codec.PROTOCOL, *, now: float
) -> bytes:
    """First frame of a session. `protocol`: as agreed."""
    beat = pb.Heartbeat(now=now, revision=revision, seen_address=seen_address, heard=heard)
    return pb.Down(heartbeat=beat, mesh=codec.mesh_message(mesh), protocol=protocol).SerializeToString()


def letters_frame(letters: Iterable[Letter]) -> bytes:
    """What peers sent while their tunnels to this node are down."""
    return pb.Down(letters=_letter_messages(letters)).SerializeToString()


def _letter_messages(letters: Iterable[Letter]) -> list[pb.Letter]:
    return [pb.Letter(peer=letter.peer, sealed=letter.sealed) for letter in letters]


def _letters(found: Sequence[pb.Letter]) -> tuple[Letter, ...]:
    if not found:  # nearly always
        return ()
    letters = tuple(Letter(NodeId(m.peer), m.sealed) for m in islice(found, LETTERS_PER_FRAME))
    if any(len(letter.sealed) > LARGEST_BYTES or len(letter.peer) > limits.NODE_ID_CHARS for letter in letters):
        raise ProtocolError("a letter is too long")
    return letters


def mesh_frame(mesh: MeshInfo) -> bytes:
    """The mesh's record has changed."""
    return pb.Down(mesh=codec.mesh_message(mesh)).SerializeToString()


@dataclass(frozen=True, slots=True)
class Beat:
    """Heartbeat: the server's wall clock (unix s), its revision, what it found, where it sees us, age of its map."""

    now: float
    revision: int
    findings: tuple[FindingRow, ...]
    seen_address: str
    registry_age_s: float = 0.0
    heard: int = 0  # number of our last signed statement that it took


@dataclass(frozen=True, slots=True)
class DownFrame:
    """A decoded frame. `changes` keeps nodes as the bytes they came in."""

    put: tuple[bytes, ...]
    gone: tuple[str, ...]
    from_revision: int
    to_revision: int
    map_hash: bytes
    snapshot: bool
    more: bool
    beat: Beat | None
    mesh: MeshInfo | None
    order: Order | None  # one without a rotation's id: it is not this node's turn any more
    letters: tuple[Letter, ...] = ()

    @property
    def moves_map(self) -> bool:
        """Whether the frame says something about the roster."""
        return self.snapshot or self.to_revision > 0


def decode_down(raw: bytes) -> DownFrame:
    """One frame from the coordinator."""
    with strict("frame"):
        m = pb.Down.FromString(raw)
        h = m.heartbeat
        beat = None
        if m.HasField("heartbeat"):
            beat = Beat(h.now, h.revision, codec.finding_rows(h.findings), h.seen_address, h.registry_age, h.heard)
        mesh = codec.mesh_info(m.mesh) if m.HasField("mesh") else None
        order = turns.order(m.order) if m.HasField("order") else None
        put, gone = tuple(m.put), tuple(m.gone)
        moved = m.from_revision, m.to_revision, m.map_hash, m.snapshot, m.more
        return DownFrame(put, gone, *moved, beat, mesh, order, _letters(m.letters))


@dataclass(frozen=True, slots=True)
class UpFrame:
    """What a node says: at most one of each."""

    resume: tuple[str, int, bytes] | None = None  # incarnation, revision, map hash
    applied: tuple[int, bytes, str] | None = None  # revision, digest, verdict
    candidates: tuple[Candidate, ...] | None = None
    findings: tuple[FindingRow, ...] | None = None
    again: bool = False
    rotation: Report | None = None
    release: str = ""  # of the node, told with `resume`
    row: MatrixRow | None = None  # when it has changed
    closed: tuple[FindingRow, ...] = ()  # told with `applied`
    protocol: int = codec.PROTOCOL  # as agreed, told with `resume`
    letters: tuple[Letter, ...] = ()  # LETTERS_PER_FRAME at most


def encode_up(frame: UpFrame) -> pb.Up:
    """For the stub."""
    up = pb.Up(again=frame.again)
    if frame.resume is not None:
        incarnation, revision, map_hash = frame.resume
        up.resume.CopyFrom(
            pb.Resume(hello=codec.hello(), incarnation=incarnation, revision=revision, map_hash=map_hash)
        )
    if frame.applied is not None:
        revision, digest, verdict = frame.applied
        up.applied.CopyFrom(pb.Applied(revision=revision, digest=digest, verdict=verdict))
        up.findings.extend(codec.finding_messages((frame.findings or ())[:FINDINGS_PER_REPORT]))
        up.closed.extend(codec.finding_messages(frame.closed[:FINDINGS_PER_REPORT]))
    if frame.candidates is not None:
        up.candidates.CopyFrom(pb.Candidates(candidates=[codec.candidate_message(c) for c in frame.candidates]))
    if frame.rotation is not None:
        up.rotation.CopyFrom(turns.report_message(frame.rotation))
    if frame.row is not None:
        up.row.CopyFrom(rows.row_message(frame.row))
    up.letters.extend(_letter_messages(frame.letters))
    return up


def decode_up(up: pb.Up) -> UpFrame:
    """From the servicer. Findings come with every report, so an empty list closes them."""
    with strict("report"):
        resume, release, protocol = None, "", codec.PROTOCOL
        if up.HasField("resume"):
            release = up.resume.hello.release
            protocol = codec.agree(up.resume.hello)
            resume = up.resume.incarnation, up.resume.revision, up.resume.map_hash
        applied = (up.applied.revision, up.applied.digest, up.applied.verdict) if up.HasField("applied") else None
        found = codec.finding_rows(up.findings[:FINDINGS_PER_REPORT]) if applied else None
        closed = codec.finding_rows(up.closed[:FINDINGS_PER_REPORT]) if applied else ()
        candidates = None
        if up.HasField("candidates"):
            candidates = tuple(codec.candidate(c) for c in up.candidates.candidates[: limits.ENDPOINTS_PER_NODE])
        rotation = turns.report(up.rotation) if up.HasField("rotation") else None
        row = rows.row(up.row) if up.HasField("row") else None
        said = resume, applied, candidates, found, up.again, rotation, release, row, closed, protocol
        return UpFrame(*said, _letters(up.letters))
