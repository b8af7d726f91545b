"""The node's own map under broken, replayed and forged frames: whatever comes, no node is lost by it (NET-2, NET-4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest

from meshctl.agent.book import Book
from meshctl.agent.store import SavedMap
from meshctl.crypto.identity import Identity
from meshctl.errors import ProtocolError
from meshctl.mesh import limits
from meshctl.mesh.journal import Journal
from meshctl.mesh.model import Node
from meshctl.mesh.statement import Statement
from meshctl.wire import codec, session
from meshctl.wire.session import DownFrame

MESH, NOW = "testmesh", "incarnation-1"
KEYS = [Identity.generate() for _ in range(5)]


def node(number: int, serial: int = 1, statement: Statement | None = None, keys: Identity | None = None) -> Node:
    who = KEYS[number]
    return Node(
        id=who.id,
        name=f"n{number}",
        address4=IPv4Address(f"10.77.0.{number + 1}"),
        address6=IPv6Address(number + 1),
        statement=statement or (keys or who).state(MESH, serial),
        joined=number,
    )


NODES = [node(number) for number in range(5)]


class Source:
    """What a coordinator would send."""

    def __init__(self) -> None:
        self.journal = Journal()

    def put(self, *nodes: Node) -> None:
        for one in nodes:
            self.journal.record(self.journal.revision + 1, one.id, codec.encode_node(one))

    def gone(self, *nodes: Node) -> None:
        for one in nodes:
            self.journal.record(self.journal.revision + 1, one.id, None)

    def frames(self, cursor: int = 0) -> list[DownFrame]:
        log = self.journal
        changes = log.since(cursor) if cursor else log.snapshot()
        made = session.frames(changes, cursor, log.revision, log.hash, snapshot=not cursor)
        return [session.decode_down(raw) for raw in made]


def filled() -> tuple[Source, Book]:
    source, book = Source(), Book(MESH)
    source.put(*NODES[:4])
    assert take(book, source.frames())
    return source, book


def take(book: Book, frames: Sequence[DownFrame]) -> bool:
    fits = [book.take(frame, NOW) for frame in frames]  # every frame counts, also behind one that does not fit
    return all(fits)


def state(book: Book) -> object:
    return book.roster, book.map_hash, dict(book.refused), book.saved()


def test_snapshot_and_deltas_arrive_in_as_many_frames_as_they_like(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SNAPSHOT_NODES_PER_FRAME", 1)
    source, book = filled()
    at = source.journal.revision
    source.put(NODES[4])
    source.gone(NODES[0], NODES[1])
    frames = source.frames(at)
    assert [frame.more for frame in frames] == [True, True, False]
    before = state(book)
    for frame in frames[:-1]:
        assert book.take(frame, NOW)
        assert state(book) == before  # half a delta changes nothing
    assert book.take(frames[-1], NOW)
    assert set(book.roster.nodes) == {n.id for n in NODES[2:]}
    assert book.map_hash == source.journal.hash


def test_connection_that_breaks_in_the_middle_of_a_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SNAPSHOT_NODES_PER_FRAME", 1)
    source, book = filled()
    before = state(book)
    source.gone(NODES[0])
    for cut in (1, 2):
        assert take(book, source.frames()[:cut])
        assert state(book) == before
    assert take(book, source.frames())
    assert book.map_hash == source.journal.hash


def test_connection_that_breaks_in_the_middle_of_a_delta(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SNAPSHOT_NODES_PER_FRAME", 1)
    source, book = filled()
    at = source.journal.revision
    source.put(NODES[4])
    source.gone(NODES[0])
    assert take(book, source.frames(at)[:1])
    assert take(book, source.frames(at)) or take(book, source.frames())
    assert book.map_hash == source.journal.hash


BROKEN = {
    "starts elsewhere": lambda f: replace(f, from_revision=f.from_revision + 1),
    "starts earlier": lambda f: replace(f, from_revision=f.from_revision - 1),
    "other hash": lambda f: replace(f, map_hash=bytes(32)),
    "no hash": lambda f: replace(f, map_hash=b""),
    "a node is missing": lambda f: replace(f, put=()),
    "a departure is missing": lambda f: replace(f, gone=()),
    "everybody is gone": lambda f: replace(f, gone=tuple(n.id for n in NODES)),
    "an empty snapshot": lambda f: replace(f, snapshot=True, put=(), gone=()),
    "half a snapshot": lambda f: replace(f, snapshot=True),
}


@pytest.mark.parametrize("how", BROKEN)
def test_frame_that_does_not_fit_asks_for_a_snapshot_and_changes_nothing(how: str) -> None:
    source, book = filled()
    at = source.journal.revision
    source.put(NODES[4])
    source.gone(NODES[0])
    before = state(book)
    (frame,) = source.frames(at)
    assert not book.take(BROKEN[how](frame), NOW)
    assert state(book) == before
    assert take(book, source.frames())
    assert book.map_hash == source.journal.hash


@pytest.mark.parametrize("snapshot", [True, False])
@pytest.mark.parametrize("garbage", [b"", b"\xff\xff", b"\x0a\x05abc"])
def test_node_that_cannot_be_read_refuses_the_whole_frame(garbage: bytes, snapshot: bool) -> None:
    source, book = filled()
    at = source.journal.revision
    source.put(NODES[4])
    before = state(book)
    (frame,) = source.frames(0 if snapshot else at)
    with pytest.raises(ProtocolError):
        book.take(replace(frame, put=(*frame.put, garbage)), NOW)
    assert state(book) == before
    assert take(book, source.frames(at))


def test_delta_of_another_incarnation_is_not_taken() -> None:
    source, book = filled()
    at = source.journal.revision
    source.put(NODES[4])
    assert not book.take(source.frames(at)[0], "incarnation-2")
    assert book.take(source.frames()[0], "incarnation-2")
    assert book.roster.incarnation == "incarnation-2"


def test_delta_that_is_sent_twice_is_taken_once() -> None:
    source, book = filled()
    at = source.journal.revision
    source.put(NODES[4])
    assert take(book, source.frames(at))
    before = state(book)
    assert not take(book, source.frames(at))
    assert state(book) == before


# ---- statements ------------------------------------------------------------------------------------------------------


def forged(number: int, serial: int) -> Statement:
    good = KEYS[number].state(MESH, serial).signed
    return Statement(good[:-1] + bytes([good[-1] ^ 1]))


@pytest.mark.parametrize(
    ("claim", "why"),
    [
        (forged(1, 2), "signature"),
        (KEYS[1].state("othermesh", 2), "for mesh 'othermesh'"),
        (Identity(KEYS[1].device, KEYS[0].wireguard, KEYS[1].probe).state(MESH, 1), "replayed: serial 1"),
    ],
)
def test_statement_that_does_not_verify_leaves_the_pinned_one_in_force(claim: Statement, why: str) -> None:
    source, book = filled()
    at = source.journal.revision
    source.put(node(1, statement=claim), NODES[4])
    assert take(book, source.frames(at))
    assert book.roster.nodes[NODES[1].id].statement == NODES[1].statement
    assert NODES[4].id in book.roster.nodes  # the rest of the frame counts
    assert why in book.refused[NODES[1].id]
    assert book.map_hash == source.journal.hash  # the hash is over what came, not over what we believe
    source.gone(NODES[1])
    assert take(book, source.frames(source.journal.revision - 1))
    assert not book.refused


def test_unknown_node_with_a_forged_statement_never_becomes_a_peer() -> None:
    source, book = Source(), Book(MESH)
    source.put(NODES[0], node(1, statement=forged(1, 1)))
    assert take(book, source.frames())
    assert set(book.roster.nodes) == {NODES[0].id}
    source.put(NODES[1])
    assert take(book, source.frames(source.journal.revision - 1))
    assert NODES[1].id in book.roster.nodes
    assert not book.refused


def test_old_statement_is_no_way_back_to_an_old_key() -> None:
    source, book = filled()
    fresh = Identity.generate()
    rotated = node(1, serial=2, keys=Identity(KEYS[1].device, fresh.wireguard, KEYS[1].probe))
    source.put(rotated)
    assert take(book, source.frames(source.journal.revision - 1))
    assert book.roster.nodes[rotated.id].statement == rotated.statement
    source.put(NODES[1])
    assert take(book, source.frames())
    assert book.roster.nodes[rotated.id].statement == rotated.statement
    assert "replayed" in book.refused[rotated.id]


def test_node_that_signs_the_same_keys_anew_is_no_replay() -> None:
    source, book = filled()
    again = node(1)
    assert again.statement != NODES[1].statement
    source.put(again)
    assert take(book, source.frames(source.journal.revision - 1))
    assert not book.refused


# ---- on disk ---------------------------------------------------------------------------------------------------------


def test_book_restored_from_disk_resumes_where_it_was() -> None:
    source, book = filled()
    again = Book(MESH)
    again.restore(book.saved())
    assert state(again) == state(book)
    source.put(NODES[4])
    assert take(again, source.frames(source.journal.revision - 1))
    assert again.map_hash == source.journal.hash


def test_restored_map_is_verified_all_the_same() -> None:
    bad = tuple(codec.encode_node(n) for n in (NODES[0], node(1, statement=forged(1, 1))))
    book = Book(MESH)
    book.restore(SavedMap(NOW, 7, bad))
    assert set(book.roster.nodes) == {NODES[0].id}
    assert book.refused
