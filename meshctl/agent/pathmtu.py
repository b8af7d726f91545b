"""Do full-size packets reach a peer, and come back unchanged? One deep experiment for PATH-002 and INT-001 (NET-7).

A size counts as lost when several tries in a row are, each beside a small packet that does come back: what is lost
together says nothing. What was learned of a narrow path goes into the desired state (mesh/topology.py) and to disk, and
the reconciler sets the route. Must not set routes itself; mesh/pathmtu.py says which size is next, judges.py judges.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from meshctl.agent.prober import Prober
from meshctl.agent.reconcile import Reconciler
from meshctl.agent.sizing import Answer, Line, Sizing
from meshctl.agent.store import Store
from meshctl.errors import EnvironmentFault, UnreachableError
from meshctl.mesh import judges, limits, topology
from meshctl.mesh.catalogue import INTACT, PATH_MTU
from meshctl.mesh.integrity import Reading
from meshctl.mesh.model import Node, NodeId
from meshctl.mesh.pathmtu import Payloads, Search, Width
from meshctl.mesh.sizing import LARGEST_BYTES

SMALL_BYTES: Final = 200  # the control: passes wherever anything does
MIDDLE_BYTES: Final = 640
TRIES: Final = 3  # of one size, each beside a control
FULL_ROUNDS: Final = 2  # of TRIES: random loss of one packet in ten looks like a narrow path once in a million runs
APART_S: Final = 0.02  # one burst is lost as one
WAIT_LEAST_S: Final = 0.25
WAIT_MOST_S: Final = 1.0


@dataclass(slots=True)
class _Talk:
    """One run with one peer."""

    line: Line
    wait_s: float
    last: Answer | None = None
    out: Payloads = field(default_factory=Payloads)
    back: Payloads = field(default_factory=Payloads)


@contextlib.contextmanager
def _first_fault() -> Iterator[None]:
    """The first fault of a task group as itself: Deep knows MeshError, not groups of them."""
    try:
        yield
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from group


class PathTrial:
    """The experiment; `narrow` is what has been learned."""

    codes: tuple[str, ...] = (PATH_MTU, INTACT)

    def __init__(
        self, me: NodeId, prober: Prober, reconciler: Reconciler, store: Store, nodes: Callable[[], Iterable[Node]],
        monotonic: Callable[[], float],
    ) -> None:  # fmt: skip
        """`nodes` are all the peers."""
        self._prober, self._reconciler, self._store, self._nodes = prober, reconciler, store, nodes
        self._monotonic = monotonic
        self._passing: dict[NodeId, int] = dict(store.narrow())
        self.sizing = Sizing(prober, me, lambda: reconciler.mtu, self._route, monotonic=monotonic)

    @property
    def narrow(self) -> tuple[tuple[NodeId, int], ...]:
        """Peers that packets of so many bytes reach, and no larger ones."""
        return tuple(sorted(self._passing.items()))

    async def run(self, peer: Node) -> Sequence[Reading]:
        """See Experiment."""
        line, rtt_s = self.sizing.line(peer.id), self._prober.echo(peer.id).rtt_s or 0.0
        talk = _Talk(line, min(max(4 * rtt_s, WAIT_LEAST_S), WAIT_MOST_S))
        for _ in range(TRIES):
            if await self._try(talk, SMALL_BYTES, SMALL_BYTES):
                break
        if talk.last is None:
            raise UnreachableError("no size echo is answered", "an agent of an earlier release has none")
        if min(talk.last.mtu, self._reconciler.mtu) < limits.MIN_MTU_BYTES:
            raise UnreachableError("one end does not know its own MTU yet", "it is tried again")
        full_out, full_in = (min(mtu, LARGEST_BYTES + line.overhead) for mtu in (self._reconciler.mtu, talk.last.mtu))
        whole = False
        for out, back in ((MIDDLE_BYTES, MIDDLE_BYTES), (full_out, full_in), (full_out, full_in)):
            whole = (await self._try(talk, out, back) and out == full_out) or whole
        outward: Width | None = Width(full_out, full_out)
        inward: Width | None = Width(full_in, full_in)
        if not whole:
            hint = self._passing.get(peer.id, 0)
            with _first_fault():
                async with asyncio.TaskGroup() as group:
                    ways = (full_out, False), (full_in, True)
                    tasks = [group.create_task(self._width(talk, full, hint, inward=way)) for full, way in ways]
            outward, inward = (task.result() for task in tasks)
        await self._learn(peer, talk, outward, inward)
        now = self._monotonic()
        return (
            judges.path_mtu(peer.id, outward, inward, self._route(peer.id), talk.last.route, now=now),
            judges.intact(peer.id, talk.out, talk.back, now=now),
        )

    # ---- what is sent ------------------------------------------------------------------------------------------------

    async def _try(self, talk: _Talk, out: int, back: int) -> bool:
        """One exchange, counted. An altered packet has arrived, too."""
        answer = await self.sizing.exchange(talk.line, out, back, talk.wait_s)
        if answer is None:
            return False
        if answer.busy:
            raise UnreachableError("the peer answers no more size echoes for now", "it is tried again")
        talk.last = answer
        talk.out.count(out, intact=answer.intact_out)
        talk.back.count(back, intact=answer.intact_in)
        return True

    async def _round(self, talk: _Talk, size: int, *, inward: bool) -> bool | None:
        """Whether packets of this size arrive; None when the controls do not either."""
        sizes = (SMALL_BYTES, size) if inward else (size, SMALL_BYTES)

        async def later(number: int, out: int, back: int) -> bool:
            await asyncio.sleep(number * APART_S)
            return await self._try(talk, out, back)

        with _first_fault():
            async with asyncio.TaskGroup() as group:
                controls = [group.create_task(later(n, SMALL_BYTES, SMALL_BYTES)) for n in range(TRIES)]
                tries = [group.create_task(later(n, *sizes)) for n in range(TRIES)]
                for done in asyncio.as_completed(tries):
                    if await done:
                        for task in (*tries, *controls):
                            task.cancel()
                        return True
        return False if all(task.result() for task in controls) else None

    async def _width(self, talk: _Talk, full: int, hint: int, *, inward: bool) -> Width | None:
        """How wide one direction is; None when that cannot be told."""
        lost = 0
        for _ in range(FULL_ROUNDS):
            passed = await self._round(talk, full, inward=inward)
            if passed is not False:
                return Width(full, full) if passed else None
            lost += TRIES
        search = Search(SMALL_BYTES, full, hint)
        while (size := search.next()) is not None:
            passed = await self._round(talk, size, inward=inward)
            if passed is None:
                return None
            lost += 0 if passed else TRIES
            search.tell(size, passed=passed)
        return Width(full, search.passes, lost)

    # ---- what is made of it ------------------------------------------------------------------------------------------

    def _route(self, peer: NodeId) -> int:
        """Limit of our route to this peer, when it is in the kernel; else 0."""
        passing = self._passing.get(peer)
        node = next((node for node in self._nodes() if node.id == peer), None) if passing else None
        if passing is None or node is None:
            return 0
        routes = topology.narrow(node, passing, self._reconciler.mtu)
        return routes[0].mtu if routes and self._reconciler.routes.issuperset(routes) else 0

    async def _learn(self, peer: Node, talk: _Talk, outward: Width | None, inward: Width | None) -> None:
        """The least of both directions, because TCP announces to the other end what our route says."""
        if outward is None or inward is None:
            return
        if inward.is_full:
            self.sizing.heard.pop(peer.id, None)
        else:
            self.sizing.heard[peer.id] = inward.passes
            if talk.last is None or not 0 < talk.last.route <= inward.passes:
                await self._try(talk, SMALL_BYTES, SMALL_BYTES)  # the peer hears of it, and looks for itself
        passing = min((w.passes for w in (outward, inward) if not w.is_full), default=0)
        peers = {node.id for node in self._nodes()}
        learned = {key: size for key, size in self._passing.items() if key in peers and key != peer.id}
        learned |= {peer.id: passing} if passing else {}
        if learned != self._passing:
            self._passing = learned
            with contextlib.suppress(EnvironmentFault):  # a full disk: it is learned again after a restart
                self._store.save_narrow(self.narrow)
            self._reconciler.wake.set()
