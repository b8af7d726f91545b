"""The matrix as it travels: a node's row up, rows from coordinator to coordinator, everybody's rows to the operator
(NET-7). Beside codec.py.

Whatever unpacks is given a bound beforehand, and takes no more memory than that, whoever wrote it.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

from meshctl.errors import ProtocolError
from meshctl.mesh import limits
from meshctl.mesh.matrix import FINGERPRINT_BYTES, Grid, Held, Line, MatrixRow, Share
from meshctl.mesh.model import NodeId
from meshctl.wire.codec import strict
from meshctl.wire.v1 import mesh_pb2 as pb

MOST_CELLS: Final = 16 * 1024 * 1024  # in one share: the rows of 4,000 nodes
_FAST: Final = 1  # the same byte a million times: no level finds less in it
_VERSION: Final = 1
_HEAD: Final = struct.Struct(f"!B{FINGERPRINT_BYTES}sIII")  # version, roster, columns, rows, left out
_ROW: Final = struct.Struct(f"!{limits.NODE_ID_CHARS}sI")  # node, tenths of a second; all of these, then all cells


def row_message(row: MatrixRow) -> pb.MatrixRow:
    """For Up."""
    return pb.MatrixRow(roster=row.roster, cells=row.cells)


def row(message: pb.MatrixRow) -> MatrixRow:
    """Inverse of `row_message`. Raises ProtocolError."""
    if len(message.roster) != FINGERPRINT_BYTES:
        raise ProtocolError("a matrix row without the fingerprint of its map")
    return MatrixRow(message.roster, message.cells)


def pack(share: Share, most: int) -> bytes:
    """In at most `most` bytes, deflated: the first rows, as many as fit; the others are counted as left out.

    Cells are mostly one byte a million times; at worst they do not shrink at all.
    """
    columns = len(share.rows[0].cells) if share.rows else 0
    count = min(len(share.rows), MOST_CELLS // max(columns, 1))
    while True:
        packed, left_out = zlib.compressobj(_FAST), share.left_out + len(share.rows) - count
        parts = [packed.compress(_HEAD.pack(_VERSION, share.roster, columns, count, left_out))]
        heads = (_ROW.pack(one.node.encode(), min(round(one.heard_s * 10), 2**32 - 1)) for one in share.rows[:count])
        parts += map(packed.compress, heads)
        parts += [packed.compress(one.cells) for one in share.rows[:count]]
        parts.append(packed.flush())
        size = sum(map(len, parts))
        if size <= most or not count:
            return b"".join(parts)
        count = min(count - 1, count * most // size)


def unpack(raw: bytes, most: int) -> Share:
    """Inverse of `pack`, to a tenth of a second: at most `most` rows of `most` cells each. Raises ProtocolError."""
    flow = zlib.decompressobj()
    try:
        head = flow.decompress(raw, _HEAD.size)
        if len(head) != _HEAD.size:
            raise ProtocolError("rows without their head")
        version, roster, columns, count, left_out = _HEAD.unpack(head)
        if version != _VERSION or columns > most or count > most or columns * count > MOST_CELLS:
            raise ProtocolError(f"{count} rows of {columns} cells, of version {version}")
        size = count * (_ROW.size + columns)
        body = flow.decompress(flow.unconsumed_tail, size + 1)
    except zlib.error as error:
        raise ProtocolError("rows that do not unpack") from error
    if len(body) != size or not flow.eof or flow.unused_data:
        raise ProtocolError(f"{count} rows of {columns} cells in {len(body)} bytes")
    cells = memoryview(body)[count * _ROW.size :]
    found = _ROW.iter_unpack(memoryview(body)[: count * _ROW.size])
    try:
        rows = tuple(
            Held(NodeId(node.decode("ascii")), tenths / 10, bytes(cells[at * columns : (at + 1) * columns]))
            for at, (node, tenths) in enumerate(found)
        )
    except UnicodeDecodeError as error:
        raise ProtocolError("rows of no node") from error
    if len({one.node for one in rows}) != count:
        raise ProtocolError("two rows of one node")
    return Share(roster, rows, left_out)


def grid_message(grid: Grid) -> pb.Grid:
    """For operators."""
    return pb.Grid(
        mesh=grid.mesh,
        revision=grid.revision,
        cells=zlib.compress(grid.cells, _FAST),
        lines=[
            pb.GridLine(
                id=x.id, name=x.name, known=x.known, heard=x.heard_s, connected=x.connected, via=x.via, why=x.why
            )
            for x in grid.lines
        ],
    )


def grid(message: pb.Grid) -> Grid:
    """Inverse of `grid_message`. Raises ProtocolError."""
    with strict("matrix"):
        lines = tuple(Line(m.id, m.name, m.known, m.heard, m.connected, m.via, m.why) for m in message.lines)
        size = len(lines) ** 2
        try:
            cells = zlib.decompressobj().decompress(message.cells, size + 1)
        except zlib.error as error:
            raise ProtocolError("a matrix that does not unpack") from error
        if len(cells) != size:
            raise ProtocolError(f"a matrix of {len(lines)} nodes with {len(cells)} cells")
        return Grid(message.mesh, message.revision, lines, cells)
