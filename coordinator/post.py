"""Carries letters between two nodes whose tunnel is down, about the pre-shared key of the pair (NET-6).

A letter goes down the stream of the node it is for. If that node is connected to another coordinator, it takes the way
through etcd, where each coordinator has a slot for each other one, written over with every batch:

    post/<from>/<to>

As reliable as UDP: who is connected nowhere gets nothing, what comes too fast is dropped, and a slot that is written
over may never be read; nodes say everything again. What is inside is sealed for the two nodes, and nothing is kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from coordinator import records
from coordinator.board import Board
from coordinator.fleet import Fleet
from coordinator.registry import POST, Conflict, Put, Record, Registry
from meshctl.errors import MeshError
from meshctl.mesh.model import NodeId
from meshctl.mesh.psk_packets import Letter

EVERY_S: Final = 1.0
BATCH: Final = 16  # letters in a slot: 15 kB at most. An hour of it, which etcd keeps, is 50 MB per slot
SHARE: Final = 8  # of them from one node


@dataclass(frozen=True, slots=True)
class Batch:
    """Letters as (to whom, from whom, sealed)."""

    letters: tuple[tuple[str, str, bytes], ...]


class Post:
    """Of the coordinator called `me`. `deliver` gives a letter to the stream of a node; False: there is none here."""

    def __init__(self, me: str, registry: Registry, board: Board, fleet: Fleet) -> None:
        self.deliver: Callable[[NodeId, Letter], bool] = lambda _node, _letter: False
        self._me, self._registry, self._fleet = me, registry, fleet
        self._leaving: dict[str, list[tuple[str, str, bytes]]] = {}  # by coordinator
        self._generations: dict[str, int] = {}
        self._wanted = asyncio.Event()
        board.on_change.append(self._changed)

    def take(self, sender: NodeId, letters: Iterable[Letter]) -> None:
        """From a node that is connected here."""
        for letter in letters:
            if self.deliver(letter.peer, Letter(sender, letter.sealed)):
                continue
            if found := self._fleet.where(letter.peer):
                batch = self._leaving.setdefault(found[0].id, [])
                if len(batch) < BATCH and sum(of == sender for _, of, _ in batch) < SHARE:
                    batch.append((letter.peer, sender, letter.sealed))
                    self._wanted.set()

    async def run(self) -> None:
        """For ever. What cannot be written is lost."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            leaving, self._leaving = self._leaving, {}
            with suppress(MeshError):
                for to, batch in leaving.items():
                    await self._write(f"{POST}{self._me}/{to}", records.encode(Batch(tuple(batch))))
            await asyncio.sleep(EVERY_S)

    async def _write(self, path: str, value: bytes) -> None:
        generation = self._generations.get(path, 0)
        if isinstance(await self._registry.commit(Put(path, value, generation)), Conflict):
            (found,) = await self._registry.read(path)  # somebody swept it, or a write was not confirmed
            generation = found.generation if found else 0
            await self._registry.commit(Put(path, value, generation))
        self._generations[path] = generation + 1

    def _changed(self, path: str, record: Record | None) -> None:
        if record and path.startswith(POST) and path.endswith(f"/{self._me}"):
            with suppress(MeshError):
                for to, sender, sealed in records.decode(record.value, Batch).letters:
                    self.deliver(NodeId(to), Letter(NodeId(sender), sealed))

    def is_left(self, path: str) -> bool:
        """Whether this is a slot from or to a coordinator that is no more."""
        living = {self._me, *(other.id for other in self._fleet.known())}
        return path.startswith(POST) and not living.issuperset(path.removeprefix(POST).split("/"))
