"""Messages by example: what an older or newer release, or a stranger, may send (NET-2, OPS-4)."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import grpc
import pytest

from meshctl import errors
from meshctl.crypto.identity import Identity
from meshctl.errors import MeshError, ProtocolError, UnreachableError
from meshctl.mesh import limits
from meshctl.mesh.model import Candidate, Endpoint, MeshInfo, Node, NodeId, Origin
from meshctl.mesh.psk_packets import LARGEST_BYTES, Letter
from meshctl.wire import codec, operator, session, status
from meshctl.wire.codec import FindingRow
from meshctl.wire.session import UpFrame
from meshctl.wire.v1 import mesh_pb2 as pb

KEYS = Identity.generate()
NODE = Node(
    KEYS.id, "gpu-a1", IPv4Address("10.77.0.9"), IPv6Address("fd00::9"), KEYS.state("testmesh", 1), 7, ("gpu",),
    (Candidate(Endpoint(IPv4Address("192.0.2.1"), 51820), Origin.LOCAL),),
)  # fmt: skip
MESH = MeshInfo("m", "prod", IPv4Network("10.77.0.0/16"), IPv6Network("fd00::/64"), ("h:1",), b"ca", "inc", "allow-all")


def altered(change: Callable[[Any], None]) -> bytes:
    message = codec.node_message(NODE)
    change(message)
    return bytes(message.SerializeToString())


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "id", "a" * 24),
        lambda m: setattr(m, "name", "Not A Name"),
        lambda m: setattr(m, "address4", b"\x0a\x4d"),
        lambda m: setattr(m, "address4", b""),
        lambda m: setattr(m, "address6", b"\x0a\x4d\x00\x01"),
        lambda m: setattr(m, "statement", b""),
        lambda m: setattr(m, "statement", bytes(limits.STATEMENT_BYTES)),
        lambda m: setattr(m.candidates[0], "address", b"12345"),
        lambda m: setattr(m.candidates[0], "port", 0),
        lambda m: setattr(m.candidates[0], "port", 70000),
        lambda m: m.tags.extend(["t"] * 20),
        lambda m: m.candidates.extend([m.candidates[0]] * 20),
    ],
)
def test_malformed_node_is_one_kind_of_error(change: Callable[[Any], None]) -> None:
    with pytest.raises(ProtocolError):
        codec.decode_node(altered(change))


def test_fields_of_a_later_release_are_passed_over() -> None:
    chunk = codec.encode_node(NODE)
    assert codec.decode_node(chunk + b"\xfa\x3f\x03new") == NODE
    assert codec.decode_node(altered(lambda m: setattr(m.candidates[0], "origin", 99))).candidates[0].origin is (
        Origin.COORDINATOR
    )


@pytest.mark.parametrize(("low", "high"), [(3, 9), (0, 0)])
def test_protocol_mismatch_names_both_ranges(low: int, high: int) -> None:
    with pytest.raises(
        ProtocolError, match=rf"release 9\.9 speaks protocol {low} to {high}, this one .* speaks 1 to 2"
    ) as told:
        codec.agree(pb.Hello(protocol_min=low, protocol_max=high, release="9.9"))
    assert "upgrade" in told.value.hint
    assert codec.agree(pb.Hello(protocol_min=0, protocol_max=9)) == codec.PROTOCOL
    assert codec.agree(pb.Hello(protocol_min=1, protocol_max=1)) == 1 < codec.SIGNED


def test_mesh_record_with_wrong_prefixes_is_refused() -> None:
    assert codec.decode_mesh(codec.encode_mesh(MESH)) == MESH
    for prefix4, prefix6 in (
        ("fd00::/64", "fd00::/64"),
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.0.0.1/8", "fd00::/64"),
        ("", ""),
    ):
        message = codec.mesh_message(MESH)
        message.prefix4, message.prefix6 = prefix4, prefix6
        with pytest.raises(ProtocolError):
            codec.decode_mesh(message.SerializeToString())


def test_report_is_cut_to_what_one_message_may_hold() -> None:
    rows = tuple(FindingRow("MESH-PATH-001", KEYS.id, "failed", 1.0, 2.0, "e" * 5000) for _ in range(5000))
    told = tuple(Candidate(Endpoint(IPv4Address("192.0.2.1"), n + 1), Origin.LOCAL) for n in range(500))
    message = session.encode_up(UpFrame(applied=(7, bytes(32), "failed"), findings=rows, candidates=told))
    assert message.ByteSize() < limits.UP_MESSAGE_BYTES
    up = session.decode_up(message)
    assert up.findings is not None
    assert len(up.findings) == 256
    assert up.candidates == told[: limits.ENDPOINTS_PER_NODE]


def test_letters_travel_both_ways_no_more_than_a_frame_holds_and_a_long_one_is_refused() -> None:
    letter = Letter(KEYS.id, bytes(LARGEST_BYTES))
    sixteen = (letter,) * session.LETTERS_PER_FRAME
    assert session.decode_up(session.encode_up(UpFrame(letters=sixteen))).letters == sixteen
    down = session.decode_down(session.letters_frame(sixteen))
    assert (down.letters, down.moves_map) == (sixteen, False)
    assert session.decode_up(session.encode_up(UpFrame(letters=(letter,) * 5000))).letters == sixteen
    for wrong in (Letter(KEYS.id, bytes(LARGEST_BYTES + 1)), Letter(NodeId("a" * 25), b"")):
        with pytest.raises(ProtocolError):
            session.decode_up(session.encode_up(UpFrame(letters=(wrong,))))


def test_empty_list_of_findings_closes_them_and_silence_does_not() -> None:
    assert session.decode_up(session.encode_up(UpFrame(applied=(1, b"", "ok"), findings=()))).findings == ()
    assert session.decode_up(session.encode_up(UpFrame(again=True))) == UpFrame(again=True)


def test_heartbeat_moves_no_map_and_welcome_says_where_we_are_seen() -> None:
    beat = session.decode_down(session.heartbeat_frame(7, now=5.0))
    assert not beat.moves_map
    welcome = session.decode_down(session.welcome_frame(MESH, "192.0.2.1", 7, now=5.0))
    assert (welcome.mesh, welcome.moves_map) == (MESH, False)
    assert welcome.beat is not None
    assert welcome.beat.seen_address == "192.0.2.1"


def test_frame_of_a_mesh_at_any_size_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SNAPSHOT_NODES_PER_FRAME", 3)
    for count in range(8):
        changes: list[tuple[str, bytes | None]] = [(f"n{n}", b"x" * 200 if n % 2 else None) for n in range(count)]
        frames = [session.decode_down(raw) for raw in session.frames(changes, 5, 9, b"h" * 32, snapshot=True)]
        assert [f.more for f in frames] == [True] * (len(frames) - 1) + [False]
        assert [f.snapshot for f in frames] == [True] + [False] * (len(frames) - 1)
        assert [f.map_hash for f in frames] == [b""] * (len(frames) - 1) + [b"h" * 32]
        assert sum(len(f.put) + len(f.gone) for f in frames) == count


# ---- errors ----------------------------------------------------------------------------------------------------------

KINDS = [
    kind for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, MeshError) and kind not in (MeshError, errors.NotJoinedError)
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_refusal_reads_the_same_on_both_sides(kind: type[MeshError]) -> None:
    said = kind("what happened", "what to do")
    heard = status.meant(status.code(said), status.details(said), "coordinator h:1")
    assert (type(heard), heard.what, heard.hint) == (kind, said.what, said.hint)


def test_what_grpc_says_itself_is_an_unreachable_coordinator() -> None:
    for code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
        heard = status.meant(code, "failed to connect to all addresses", "coordinator h:1")
        assert isinstance(heard, UnreachableError)
        assert "h:1" in heard.what
    odd = status.meant(grpc.StatusCode.UNKNOWN, "", "coordinator h:1")
    assert odd.what == "coordinator h:1 failed: UNKNOWN"


def test_operators_never_see_a_tokens_hash() -> None:
    assert "hash" not in {field.name for field in pb.Token.DESCRIPTOR.fields}
    assert operator.named("n", "r").name == "n"
