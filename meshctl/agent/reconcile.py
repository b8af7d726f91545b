"""One round: observe -> desired -> plan -> apply, printing each step first -> re-observe -> outcome (NET-3, NET-4).

Level-triggered: the same full pass whether a roster, the kernel or the clock woke it. It never retries a step blindly;
the next pass observes again. Knows nothing of coordinators: a roster is a value, however old.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from meshctl.agent import tick
from meshctl.agent.candidates import Surroundings
from meshctl.agent.device import Device
from meshctl.errors import MeshError
from meshctl.events import Events, StepApplied, StepFailed
from meshctl.mesh import interface, limits, liveness, topology
from meshctl.mesh.interface import Interface, Observation, Route, Session
from meshctl.mesh.keys import PresharedKey, PrivateKey, PublicKey
from meshctl.mesh.model import Endpoint, MeshInfo, Node, NodeId, Roster
from meshctl.mesh.plan import RemovePeer, RestartPeer, SetPrivateKey, Step, diff, foreign
from meshctl.mesh.topology import Me

DRAIN_S = 0.01  # packets that WireGuard has taken for encryption leave within a millisecond or two


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the last pass found and did. `at` is monotonic; `read_at`, when WireGuard was last read, is earlier where a
    pass has failed since. `repaired` are steps nobody here had caused.
    """

    at: float = 0.0
    read_at: float = 0.0
    revision: int = 0
    digest: bytes = b""
    steps: tuple[Step, ...] = ()
    repaired: tuple[Step, ...] = ()
    repaired_at: float = 0.0
    error: str = ""
    alive: frozenset[PublicKey] = frozenset()
    sessions: Mapping[PublicKey, Session] = field(default_factory=dict)

    @property
    def news(self) -> tuple[object, ...]:
        """What others want to hear of at once."""
        return self.revision, self.digest, self.error, self.repaired_at, self.alive


@dataclass(frozen=True, slots=True)
class Desire:
    """What the pass works towards: the mesh, this node's half, its own record, the roster, pre-shared keys."""

    mesh: MeshInfo
    me: Me
    node: Node
    roster: Roster
    psks: Mapping[NodeId, PresharedKey] = field(default_factory=dict)


class Reconciler:
    """Holds what one pass hands to the next; `outcome` and `underlay` are for reading."""

    def __init__(
        self,
        device: Device,
        surroundings: Surroundings,
        desire: Callable[[int], Desire],
        events: Events,
        *,
        started: Callable[[frozenset[PublicKey]], None],
        moved: Callable[[], object],
    ) -> None:
        """`desire` is asked at every pass, with the MTU found; `started` hears which handshakes a pass has started,
        `moved` that the outcome has something new for others: another revision, digest or error."""
        self.outcome = Outcome()
        self.wake = asyncio.Event()
        self.on_announced: Callable[[], object] = lambda: None
        self.announced = 0  # changes of links, addresses, routes and rules that the kernel told of
        self.passed = asyncio.Event()
        self._took: deque[float] = deque((0.0,), maxlen=8)  # seconds, of the last passes
        self._surroundings = surroundings
        self._device, self._desire, self._events, self._started, self._moved = device, desire, events, started, moved
        self._attempts: dict[PublicKey, liveness.Attempts] = {}
        self._settled: Interface | None = None  # what was wanted when the kernel last fitted
        self._fitting: Interface | None = None  # what the kernel held then
        self._held: Interface | None = None  # what it held after the last pass, fitting or not
        self._digest = b""
        self._one_at_a_time = asyncio.Lock()  # a pass, or the switch of our own key
        self._mtu = 0
        self._underlay_at = float("-inf")
        self._key: tuple[object, ...] = ()  # what `_wanted` and `_peers` were made from
        self._wanted: Interface | None = None
        self._peers: dict[PublicKey, tuple[bool, tuple[Endpoint, ...]]] = {}

    async def run(self) -> None:
        """For ever: a pass when woken, when the kernel announces a change, and every TICK_S."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen())
            while True:
                self.wake.clear()
                failed = self.outcome.error
                if (await self.once()).error and failed:  # what it did is announced too: it would wake itself for ever
                    await asyncio.sleep(limits.TICK_S)
                loop = asyncio.get_running_loop()
                timer = loop.call_at(tick.following(loop.time(), limits.TICK_S), self.wake.set)
                await self.wake.wait()
                timer.cancel()

    async def _listen(self) -> None:
        while True:
            await self._device.changed()
            self.announced += 1
            self.on_announced()
            self._underlay_at = float("-inf")
            self.wake.set()

    async def once(self) -> Outcome:
        """One pass. A failure is an outcome with `error`; what could be applied was."""
        before, begun = self.outcome, time.monotonic()
        try:
            async with self._one_at_a_time:
                self.outcome = await self._pass()
        except MeshError as error:
            if error.what != before.error:
                interface_name = self._desire(self._mtu).me.interface
                self._events.emit(StepFailed(interface=interface_name, step="pass", why=error.what))
            self.outcome = replace(before, at=time.monotonic(), steps=(), error=error.what)
        if before.news != self.outcome.news:
            self._moved()
        self._took.append(time.monotonic() - begun)
        self.passed.set()
        self.passed.clear()
        return self.outcome

    async def switch_key(self, key: PrivateKey, first: Callable[[], None]) -> float:
        """Set our private key between two passes, right after `first` -> the moment, unix seconds. Raises MeshError.

        `first` must see to it that the next pass wants this key too.
        """
        async with self._one_at_a_time:
            first()
            at = time.time()
            step = SetPrivateKey(key)
            await self._device.apply_all((step,))
        self._events.emit(StepApplied.of(step, self._desire(self._mtu).me.interface))
        return at

    @property
    def mtu(self) -> int:
        """Bytes of the largest packet inside the tunnel; 0 before the first pass."""
        return self._mtu

    @property
    def routes(self) -> frozenset[Route]:
        """What the kernel held after the last pass."""
        return self._held.routes if self._held else frozenset()

    def holds(self, peer: PublicKey, psk: PresharedKey | None) -> bool:
        """Whether the device had this peer with this pre-shared key after the last pass."""
        held = self._held.peers.get(peer) if self._held else None
        return held is not None and held.preshared_key == psk

    @property
    def pass_s(self) -> float:
        """Seconds a pass takes here, the median: what a slow or busy machine is known by, and not one long moment."""
        return sorted(self._took)[len(self._took) // 2]

    def is_started(self, key: PublicKey) -> bool:
        """Whether packets may be sent to this peer: it has a session, or its turn to start one has come."""
        attempts = self._attempts.get(key)
        return key in self.outcome.alive or (attempts is not None and attempts.made > 0)

    async def plan(self) -> tuple[Step, ...]:
        """What a pass would do now. Changes nothing."""
        await self._underlay()
        observed = await self._device.observe()
        want, _, alive, due = self._picture(observed)
        return diff(observed.interface, want, alive=alive, due=due)

    async def _underlay(self) -> None:
        now = time.monotonic()
        if now - self._underlay_at >= limits.REREAD_EVERY_S:
            self._underlay_at = now
            self._mtu = max(await self._device.underlay_mtu() - limits.WIREGUARD_OVERHEAD_BYTES, limits.MIN_MTU_BYTES)
            self._surroundings.addresses = await self._device.local_networks()

    def _picture(self, observed: Observation) -> tuple[Interface, int, frozenset[PublicKey], dict[PublicKey, Endpoint]]:
        """(what is wanted, the revision that says so, peers alive, handshakes due) at this moment."""
        wall = time.time()
        alive = liveness.alive(observed.sessions, now=wall)
        desire = self._desire(self._mtu)
        key = desire.roster, desire.me, desire.node, desire.psks, self._surroundings.addresses
        if self._wanted is None or any(a is not b and a != b for a, b in zip(self._key, key, strict=True)):
            networks = [net for _, net in self._surroundings.addresses]
            self._key = key
            self._wanted = topology.desired(desire.mesh, desire.roster, desire.me, desire.node, desire.psks)
            self._peers = {
                node.statement.wireguard: (
                    liveness.leads(desire.node, node),
                    liveness.order(node.candidates, networks),
                )
                for node in desire.roster.nodes.values()
                if node.id != desire.me.id
            }
        want = self._wanted
        if desire.roster.revision == 0 and observed.interface:  # law: no data is not a deletion
            want = replace(want, peers=observed.interface.peers)
        self._attempts, due = liveness.step(self._attempts, self._peers, alive, now=time.monotonic())
        return want, desire.roster.revision, alive, due

    def _stolen(self, want: Interface, have: Interface) -> dict[PublicKey, Endpoint]:
        """Peers somebody took away, and where each was. Its other end believes the session alive: only we can start."""
        gone = want.peers.keys() - have.peers.keys()
        last = {key: self.outcome.sessions[key].endpoint for key in gone if key in self.outcome.sessions}
        return {key: endpoint for key, endpoint in last.items() if endpoint is not None}

    def _inherited(self, want: Interface, observed: Observation) -> dict[PublicKey, Endpoint]:
        """Peers whose key was replaced: the new one begins where the old one's session is, and at once."""
        have = observed.interface.peers if observed.interface else {}
        fresh, gone = want.peers.keys() - have.keys(), have.keys() - want.peers.keys()
        by_ips = {have[key].allowed_ips: key for key in gone} if fresh else {}
        before = {key: by_ips[want.peers[key].allowed_ips] for key in fresh if want.peers[key].allowed_ips in by_ips}
        last = {key: observed.sessions[old].endpoint for key, old in before.items() if old in observed.sessions}
        return {key: endpoint for key, endpoint in last.items() if endpoint is not None}

    async def _apply(self, steps: tuple[Step, ...], *, heirs: bool) -> None:
        """All of them; where keys were replaced, what the old session has in hand gets out before it is removed."""
        last = tuple(step for step in steps if heirs and isinstance(step, RemovePeer))
        await self._device.apply_all([step for step in steps if step not in last])
        if last:
            await asyncio.sleep(max(DRAIN_S, self.pass_s))
            await self._device.apply_all(last)

    async def _pass(self) -> Outcome:
        await self._underlay()
        observed = await self._device.observe()
        want, revision, alive, due = self._picture(observed)
        # Equal looks are identical objects (see Device): what fitted then fits now, and has the digest it had.
        fits = self._settled is want and observed.interface is self._fitting
        if observed.interface and not fits:
            due |= self._stolen(want, observed.interface)
        heirs = {} if fits else self._inherited(want, observed)
        due |= heirs
        self._attempts |= {key: liveness.heir(at, now=time.monotonic()) for key, at in heirs.items()}
        steps = () if fits and not due else diff(observed.interface, want, alive=alive, due=due)
        is_touched = observed.interface is not self._fitting
        repaired = foreign(steps, self._fitting, want, alive=alive, due=due) if is_touched else ()
        others = frozenset(repaired)
        for step in steps:
            if not isinstance(step, RestartPeer):  # a further try is routine, every few seconds for an absent peer
                self._events.emit(StepApplied.of(step, want.name, foreign=step in others))
        left: tuple[Step, ...] = ()
        if steps:
            await self._apply(steps, heirs=bool(heirs))
            observed = await self._device.observe()
            self._started(frozenset(due))
            left = diff(observed.interface, want, alive=alive)
        if not left:  # else a hand was quicker, or it cannot be done: what was changed remains somebody else's doing
            self._settled, self._fitting = want, observed.interface
        if observed.interface is not self._held:
            self._held = observed.interface
            self._digest = interface.digest(observed.interface.peers.values() if observed.interface else ())
        now = time.monotonic()
        return Outcome(
            at=now,
            read_at=now,
            revision=self.outcome.revision if left else revision,  # a map that came meanwhile is not applied yet
            digest=self._digest,
            steps=steps,
            repaired=repaired or self.outcome.repaired,
            repaired_at=now if repaired else self.outcome.repaired_at,
            error="" if not left else f"did not settle: {left[0]}",
            alive=alive,
            sessions=observed.sessions,
        )
