"""Rows from coordinator to coordinator: what is packed unpacks, noise is refused, a bomb takes no memory (NET-7)."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshctl.errors import ProtocolError
from meshctl.mesh.matrix import Held, Share
from meshctl.mesh.model import NodeId
from meshctl.wire import rows

ROSTER = bytes(16)
MOST = 1024 * 1024


def ids(count: int) -> list[NodeId]:
    return [NodeId(f"{number:024}") for number in range(count)]


@st.composite
def shares(draw: st.DrawFn) -> Share:
    columns, count = draw(st.integers(0, 40)), draw(st.integers(0, 12))
    cells = st.binary(min_size=columns, max_size=columns)
    made = [Held(node, draw(st.integers(0, 10**9)) / 10, draw(cells)) for node in ids(count)]
    return Share(draw(st.binary(min_size=16, max_size=16)), tuple(made), draw(st.integers(0, 10**6)))


@given(shares())
def test_rows_survive_the_way(share: Share) -> None:
    assert rows.unpack(rows.pack(share, MOST), 40) == share


@given(shares(), st.data())
def test_rows_cut_short_or_with_something_behind_them_are_refused(share: Share, data: st.DataObject) -> None:
    packed = rows.pack(share, MOST)
    for raw in (packed[: data.draw(st.integers(0, len(packed) - 1))], packed + b"\0"):
        with pytest.raises(ProtocolError):
            rows.unpack(raw, 40)


@given(st.binary(max_size=200), st.booleans())
def test_noise_is_refused(noise: bytes, deflated: bool) -> None:
    raw = zlib.compress(struct.pack("!B16s", 1, ROSTER) + noise[:12].ljust(12, b"\xff") + noise) if deflated else noise
    with pytest.raises(ProtocolError):
        rows.unpack(raw, 0)


def test_more_rows_or_cells_than_there_can_be_and_a_node_named_twice_are_refused() -> None:
    share = Share(ROSTER, tuple(Held(node, 0.0, bytes(9)) for node in ids(7)))
    assert rows.unpack(rows.pack(share, MOST), 9) == share
    twice = Share(ROSTER, (share.rows[0], share.rows[0]))
    stranger = Share(ROSTER, (Held(NodeId("é" * 12), 0.0, b""),))
    narrow = Share(ROSTER, tuple(Held(node, 0.0, bytes(3)) for node in ids(7)))
    for packed, most in ((share, 8), (narrow, 6), (twice, 9), (stranger, 9)):
        with pytest.raises(ProtocolError):
            rows.unpack(rows.pack(packed, MOST), most)
    newer = bytearray(zlib.decompress(rows.pack(share, MOST)))
    newer[0] = 2
    with pytest.raises(ProtocolError, match="version 2"):
        rows.unpack(zlib.compress(newer), 9)


@pytest.mark.parametrize("claimed", [(1000, 1000), (0, 0), (1000, 4_000_000_000)])
def test_bomb_takes_no_memory(claimed: tuple[int, int]) -> None:
    """Two hundred kB that unpack to 200 MB, whatever their head says."""
    packed = zlib.compressobj(9)
    head = struct.pack("!B16sIII", 1, ROSTER, *claimed, 0)
    bomb = packed.compress(head) + b"".join(packed.compress(bytes(1024 * 1024)) for _ in range(200)) + packed.flush()
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            rows.unpack(bomb, 2024)
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()


def test_rows_that_do_not_fit_are_counted_and_the_first_ones_are_whole() -> None:
    random = Random(7)
    share = Share(ROSTER, tuple(Held(node, 0.5, random.randbytes(1000)) for node in ids(300)), 2)
    packed = rows.pack(share, 100_000)
    assert 90_000 < len(packed) <= 100_000
    found = rows.unpack(packed, 1000)
    assert found.rows == share.rows[: len(found.rows)]
    assert len(found.rows) + found.left_out == 302
    assert rows.unpack(rows.pack(share, 0), 1000) == Share(ROSTER, (), 302)
