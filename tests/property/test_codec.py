"""Every value survives the wire, and every string of bytes is a value or one ProtocolError (NET-2, OPS-4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator import records
from coordinator.records import MeshRecord, NodeRecord, Tombstone, Why
from meshctl import __version__
from meshctl.crypto.identity import Identity
from meshctl.errors import ProtocolError
from meshctl.mesh import limits
from meshctl.mesh.admission import Token
from meshctl.mesh.model import Candidate, Endpoint, MeshInfo, Node, Origin
from meshctl.mesh.rotation import NAMED, Gaps, Order, Phase, Report, Stage
from meshctl.wire import codec, session, turns
from meshctl.wire.codec import FindingRow, JoinAsk, Membership
from meshctl.wire.session import UpFrame
from meshctl.wire.v1 import mesh_pb2 as pb

few = settings(max_examples=40, deadline=None)
KEYS = [Identity.generate() for _ in range(4)]
LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
V4, V6 = st.ip_addresses(v=4), st.ip_addresses(v=6)
CANDIDATE = st.builds(
    Candidate, st.builds(Endpoint, st.one_of(V4, V6), st.integers(1, 65535)), st.sampled_from(list(Origin))
)
TAGS = st.lists(LABEL, max_size=limits.TAGS_PER_NODE).map(tuple)
CANDIDATES = st.lists(CANDIDATE, max_size=limits.ENDPOINTS_PER_NODE).map(tuple)
TIME = st.floats(0, 1e11, allow_nan=False)


@st.composite
def nodes(draw: st.DrawFn) -> Node:
    keys = draw(st.sampled_from(KEYS))
    statement = keys.state(draw(LABEL)[:16], draw(st.integers(0, 2**64 - 1)))
    following = keys.state(draw(LABEL)[:16], draw(st.integers(0, 2**64 - 1))) if draw(st.booleans()) else None
    joined, tags, candidates = draw(st.integers(0, 2**63)), draw(TAGS), draw(CANDIDATES)
    return Node(keys.id, draw(LABEL), draw(V4), draw(V6), statement, joined, tags, candidates, following)


MESHES = st.builds(
    MeshInfo,
    LABEL,
    st.text(max_size=20),
    st.integers(0, 2**16 - 1).map(lambda n: IPv4Network((n << 16, 16))),
    st.integers(0, 2**64 - 1).map(lambda n: IPv6Network((n << 64, 64))),
    st.lists(st.text(max_size=30), max_size=4).map(tuple),
    st.binary(max_size=400),
    st.text(max_size=16),
    st.text(max_size=16),
)
FINDINGS = st.lists(st.builds(FindingRow, LABEL, LABEL, LABEL, TIME, TIME, st.text(max_size=256)), max_size=20).map(
    tuple
)


@few
@given(nodes())
def test_node_survives_and_is_always_the_same_bytes(node: Node) -> None:
    chunk = codec.encode_node(node)
    assert codec.decode_node(chunk) == node
    assert codec.encode_node(codec.decode_node(chunk)) == chunk


@few
@given(nodes(), MESHES, st.binary(max_size=600), st.booleans())
def test_membership_survives(node: Node, mesh: MeshInfo, certificate: bytes, resumed: bool) -> None:
    held = Membership(certificate, mesh, node, resumed)
    assert codec.joined(pb.Joined.FromString(codec.joined_message(held).SerializeToString())) == held


@few
@given(nodes(), st.binary(max_size=40), LABEL, st.binary(max_size=32), TAGS)
def test_join_request_survives(node: Node, nonce: bytes, token: str, secret: bytes, tags: tuple[str, ...]) -> None:
    ask = JoinAsk(nonce, token, secret, node.name, tags, node.statement, node.candidates)
    assert codec.decode_join(codec.encode_join(ask)) == ask
    assert repr(secret) not in repr(ask)
    assert codec.decode_renew(codec.encode_renew(nonce, node.statement, secret)) == (nonce, node.statement, secret)


GAPS = st.builds(Gaps, st.floats(0, 10), st.floats(0, 10))
COUNT = st.integers(0, 2**32 - 1)
TURNS = st.builds(
    Report, LABEL, st.sampled_from(Stage), st.binary(max_size=200), COUNT, COUNT, COUNT,
    st.lists(LABEL, max_size=NAMED).map(tuple), GAPS, GAPS,
)  # fmt: skip


@few
@given(st.none() | st.builds(Order, LABEL, st.sampled_from(Phase), COUNT, st.booleans()))
def test_order_survives(order: Order | None) -> None:
    nobody = Order("", Phase.CLOSED)
    assert session.decode_down(turns.order_frame(order)).order == (order or nobody)


@few
@given(
    st.builds(
        UpFrame,
        resume=st.none() | st.tuples(st.text(max_size=16), st.integers(0, 2**64 - 1), st.binary(max_size=32)),
        candidates=st.none() | CANDIDATES,
        again=st.booleans(),
        rotation=st.none() | TURNS,
    ),
    st.none() | st.tuples(st.tuples(st.integers(0, 2**64 - 1), st.binary(max_size=32), LABEL), FINDINGS),
)
def test_report_survives(frame: UpFrame, said: tuple[Any, Any] | None) -> None:
    applied, findings = said if said else (None, None)
    release = __version__ if frame.resume else ""  # the encoder says which one it is
    frame = replace(frame, applied=applied, findings=findings, release=release)
    assert session.decode_up(session.parse_up(session.serialize_up(session.encode_up(frame)))) == frame


@few
@given(
    st.lists(st.tuples(LABEL, st.none() | st.binary(min_size=1, max_size=300)), max_size=20),
    st.integers(0, 2**63),
    st.integers(1, 2**63),
    st.booleans(),
)
def test_joined_bytes_are_what_protobuf_itself_would_write(
    changes: list[tuple[str, bytes | None]], begin: int, end: int, snapshot: bool
) -> None:
    (raw,) = session.frames(changes, begin, end, b"h" * 32, snapshot=snapshot)
    frame = session.decode_down(raw)
    assert frame.put == tuple(chunk for _, chunk in changes if chunk is not None)
    assert frame.gone == tuple(node for node, chunk in changes if chunk is None)
    assert (frame.from_revision, frame.to_revision, frame.snapshot, frame.more) == (begin, end, snapshot, False)


@few
@given(nodes(), TIME, st.booleans(), st.sampled_from(list(Why)), MESHES)
def test_stored_record_survives(node: Node, at: float, ephemeral: bool, why: Why, mesh: MeshInfo) -> None:
    record = NodeRecord(
        node.id, node.name, node.address4, node.address6, node.statement.signed, at, node.tags,
        node.candidates, ephemeral, "token", next=node.next.signed if node.next else b"",
    )  # fmt: skip
    read = records.decode(records.encode(record), NodeRecord)
    assert read.node(node.joined) == node
    assert records.encode(read) == records.encode(record)
    stone = Tombstone(node.id, node.name, node.address4, why, at, "because")
    assert records.decode(records.encode(stone), Tombstone) == stone
    assert records.decode(records.encode(MeshRecord(mesh, at)), MeshRecord) == MeshRecord(mesh, at)
    token = Token("id", node.statement.fingerprint, at, at, 3, node.tags, ephemeral, used_by=(node.id,))
    assert records.decode(records.encode(token), Token) == token


DECODERS: dict[str, Callable[[bytes], object]] = {
    "node": codec.decode_node,
    "mesh": codec.decode_mesh,
    "join": codec.decode_join,
    "renew": codec.decode_renew,
    "down": session.decode_down,
    "node record": lambda raw: records.decode(raw, NodeRecord),
    "token": lambda raw: records.decode(raw, Token),
    "tombstone": lambda raw: records.decode(raw, Tombstone),
    "mesh record": lambda raw: records.decode(raw, MeshRecord),
}
NODE = Node(
    KEYS[0].id, "a", ip_address("10.0.0.1"), ip_address("fd00::1"), KEYS[0].state("m", 1), 1, ("t",),
    (Candidate(Endpoint(ip_address("192.0.2.1"), 1), Origin.LOCAL),),
)  # type: ignore[arg-type] # fmt: skip
SAMPLES = [
    codec.encode_node(NODE),
    codec.encode_join(JoinAsk(b"n", "t", b"s", "a", ("t",), NODE.statement, NODE.candidates)),
    *session.frames([("a", codec.encode_node(NODE)), ("b", None)], 1, 2, bytes(32)),
    records.encode(NodeRecord(NODE.id, "a", NODE.address4, NODE.address6, NODE.statement.signed, 1.0, ("t",))),
]


@pytest.mark.parametrize("what", DECODERS)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_bytes_of_a_stranger_are_a_value_or_one_error(what: str, data: st.DataObject) -> None:
    raw = bytearray(data.draw(st.one_of(st.binary(max_size=200), st.sampled_from(SAMPLES))))
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4)):
        if raw:
            raw[place % len(raw)] = value
    try:
        DECODERS[what](bytes(raw[: data.draw(st.integers(0, 10_000))]))
    except ProtocolError:
        pass
