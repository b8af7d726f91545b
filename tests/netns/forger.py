"""A coordinator that lies: `mesh-coordinator`, but key statements are replaced on their way into the feed.

Run as a program by test_forgery.py. The file FORGER_FILE maps node ids to the statements (hex) to tell instead.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import msgspec

from coordinator.cli.main import main
from meshctl.mesh.model import Node
from meshctl.mesh.statement import Statement
from meshctl.wire import codec

honest = codec.encode_node


def forged(node: Node) -> bytes:
    """What peers are told of `node`."""
    lies: dict[str, str] = msgspec.json.decode(Path(os.environ["FORGER_FILE"]).read_bytes())
    if node.id not in lies:
        return honest(node)
    return honest(replace(node, statement=Statement(bytes.fromhex(lies[node.id]))))


if __name__ == "__main__":
    codec.encode_node = forged
    main()
