"""The matrix as it travels: a node's row up, everybody's rows to the operator (NET-7). Beside codec.py."""

from __future__ import annotations

import zlib
from typing import Final

from meshctl.errors import ProtocolError
from meshctl.mesh.matrix import FINGERPRINT_BYTES, Grid, Line, MatrixRow
from meshctl.wire.codec import strict
from meshctl.wire.v1 import mesh_pb2 as pb

_FAST: Final = 1  # the same byte a million times: no level finds less in it


def row_message(row: MatrixRow) -> pb.MatrixRow:
    """For Up."""
    return pb.MatrixRow(roster=row.roster, cells=row.cells)


def row(message: pb.MatrixRow) -> MatrixRow:
    """Inverse of `row_message`. Raises ProtocolError."""
    if len(message.roster) != FINGERPRINT_BYTES:
        raise ProtocolError("a matrix row without the fingerprint of its map")
    return MatrixRow(message.roster, message.cells)


def grid_message(grid: Grid) -> pb.Grid:
    """For operators."""
    return pb.Grid(
        mesh=grid.mesh,
        revision=grid.revision,
        cells=zlib.compress(grid.cells, _FAST),
        lines=[
            pb.GridLine(id=x.id, name=x.name, known=x.known, heard=x.heard_s, connected=x.connected, via=x.via)
            for x in grid.lines
        ],
    )


def grid(message: pb.Grid) -> Grid:
    """Inverse of `grid_message`. Raises ProtocolError."""
    with strict("matrix"):
        lines = tuple(Line(m.id, m.name, m.known, m.heard, m.connected, m.via) for m in message.lines)
        size = len(lines) ** 2
        try:
            cells = zlib.decompressobj().decompress(message.cells, size + 1)
        except zlib.error as error:
            raise ProtocolError("a matrix that does not unpack") from error
        if len(cells) != size:
            raise ProtocolError(f"a matrix of {len(lines)} nodes with {len(cells)} cells")
        return Grid(message.mesh, message.revision, lines, cells)
