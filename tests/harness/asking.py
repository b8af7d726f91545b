"""A program that asks a coordinator many things at once, as a process of its own inside a namespace; answers in JSON.

    python -m tests.harness.asking join COUNT FOLDER [NAME]     the token on standard input
    python -m tests.harness.asking renew STATE

A process of its own, because gRPC keeps threads for the life of a process and a thread keeps its namespace: in the
tests' process it would ask from whichever namespace the first test happened to be in.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from meshctl.agent import join
from meshctl.agent.join import Member
from meshctl.agent.store import Store
from meshctl.config import AgentConfig
from meshctl.errors import MeshError
from meshctl.mesh.token import JoinToken


def told(error: MeshError) -> dict[str, Any]:
    """An error, as it would be shown."""
    return {"error": type(error).__name__, "what": error.what, "hint": error.hint}


async def one_join(folder: Path, token: JoinToken, name: str) -> dict[str, Any]:
    """How one join ended."""
    store = Store(folder)
    try:
        member, _ = await join.join(AgentConfig(), store, token, name, (), ())
    except MeshError as error:
        assert not store.is_joined()
        return told(error)
    node = member.node
    return {"name": node.name, "address4": str(node.address4), "address6": str(node.address6)}


async def joins(count: int, folder: Path, name: str, token: JoinToken) -> list[dict[str, Any]]:
    """`count` machines with keys of their own, all at once."""
    asked = (one_join(folder / str(n), token, name or f"n{n}") for n in range(count))
    return list(await asyncio.gather(*asked))


async def renewal(state: Path) -> dict[str, Any]:
    """What the coordinator says to a proof of the device key."""
    store = Store(state)
    try:
        await join.renew(store, Member.load(store), store.identity())
    except MeshError as error:
        return told(error)
    return {}


def main() -> None:
    """See the module."""
    match sys.argv[1:]:
        case ["join", count, folder, *name]:
            token = JoinToken.parse(sys.stdin.read())
            answer: Any = asyncio.run(joins(int(count), Path(folder), "".join(name), token))
        case ["renew", state]:
            answer = asyncio.run(renewal(Path(state)))
        case _:
            raise SystemExit(__doc__)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
