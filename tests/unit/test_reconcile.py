"""One pass after the other, on a kernel in memory that others touch as well (NET-3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from meshctl.agent.candidates import Surroundings
from meshctl.agent.reconcile import Desire, Outcome, Reconciler
from meshctl.crypto.identity import Identity
from meshctl.errors import EnvironmentFault, MeshError
from meshctl.eventlog import Unheard
from meshctl.events import Event, StepApplied
from meshctl.mesh import plan, topology
from meshctl.mesh.keys import PresharedKey, PublicKey
from meshctl.mesh.model import MeshInfo, Node, Roster
from tests.harness.fake_kernel import FakeDevice, FakeKernel, clamped

MESH = MeshInfo("mesh00000001", "lab", IPv4Network("10.77.0.0/16"), IPv6Network("fd00::/64"), (), b"")
IDS = Identity.generate(), Identity.generate(), Identity.generate()
STRANGER = PublicKey(b"s" * 32)


class Heard(Unheard):
    def __init__(self) -> None:
        self.steps: list[StepApplied] = []

    def emit(self, event: Event) -> None:
        if isinstance(event, StepApplied):
            self.steps.append(event)


class Interrupted(FakeDevice):
    """Once: `fault` in place of the steps of a pass, `meanwhile` between them and the look after them."""

    meanwhile: Callable[[], None] | None = None
    fault: MeshError | None = None

    async def apply_all(self, steps: Sequence[plan.Step]) -> None:
        if fault := self.fault:
            self.fault = None
            raise fault
        await super().apply_all(steps)
        if act := self.meanwhile:
            self.meanwhile = None
            act()


class Scene:
    """A node, what it wants, and what was heard of the last pass."""

    def __init__(self) -> None:
        nodes = [
            Node(one.id, f"n{n}", IPv4Address(f"10.77.0.{n}"), IPv6Address(f"fd00::{n}"), one.state(MESH.id, 1))
            for n, one in enumerate(IDS, 1)
        ]
        self.peer, self.more = nodes[1:]
        self.kernel, self.heard = FakeKernel(), Heard()
        self.device = Interrupted(self.kernel)
        me = topology.Me(IDS[0].id, IDS[0].wireguard, "mesh0", 51820, 1420)
        self.desire = Desire(MESH, me, nodes[0], Roster("i", 1, {node.id: node for node in nodes[:2]}))
        self.reconciler = Reconciler(
            self.device, Surroundings((), 51820), lambda _: self.desire, self.heard,
            started=lambda _: None, moved=lambda: None,
        )  # fmt: skip

    async def once(self) -> Outcome:
        self.heard.steps.clear()
        return await self.reconciler.once()

    def swap_key(self) -> None:
        """A person: the peer's key for another one."""
        self.kernel.forget(self.peer.statement.wireguard)
        self.kernel.allow(STRANGER, topology.peer(self.peer).allowed_ips[:1])

    def want_psk(self) -> None:
        self.desire = replace(self.desire, psks={self.peer.id: PresharedKey(b"p" * 32)})

    def want_another_peer(self) -> None:
        nodes = self.desire.roster.nodes | {self.more.id: self.more}
        self.desire = replace(self.desire, roster=Roster("i", 2, nodes))

    def want_nobody(self) -> None:
        nodes = {self.desire.node.id: self.desire.node}
        self.desire = replace(self.desire, roster=Roster("i", 2, nodes))


@pytest.fixture
async def scene() -> Scene:
    made = Scene()
    assert not (await made.once()).error
    assert not any(step.foreign for step in made.heard.steps)
    return made


async def test_hand_in_the_middle_of_a_pass_is_not_taken_for_our_own(scene: Scene) -> None:
    own = scene.peer.statement.wireguard
    scene.kernel.forget(own)
    scene.device.meanwhile = lambda: scene.kernel.allow(STRANGER, topology.peer(scene.peer).allowed_ips[:1])
    assert (await scene.once()).error.startswith("did not settle")
    said = list(scene.heard.steps)
    assert not (await scene.once()).error
    said += scene.heard.steps
    assert {step.step for step in said} == {"add-peer", "update-peer", "remove-peer"}
    assert all(step.foreign for step in said)
    assert scene.kernel.link
    assert scene.kernel.link.peers.keys() == {own}


@pytest.mark.parametrize("want", [Scene.want_psk, Scene.want_another_peer])
async def test_hand_is_not_hidden_by_something_new_that_is_wanted(scene: Scene, want: Callable[[Scene], None]) -> None:
    scene.swap_key()
    want(scene)
    outcome = await scene.once()
    peer, more = scene.peer.statement.wireguard, scene.more.statement.wireguard
    foreign = {(step.step, step.peer) for step in scene.heard.steps if step.foreign}
    assert foreign == {("add-peer", peer), ("remove-peer", STRANGER)}
    assert len(outcome.repaired) == len(foreign)
    assert [step.peer for step in scene.heard.steps if not step.foreign] == [more] * (want is Scene.want_another_peer)


@pytest.mark.parametrize("want", [Scene.want_psk, Scene.want_another_peer, Scene.want_nobody])
async def test_what_we_do_is_nobody_elses_though_it_fails_first(scene: Scene, want: Callable[[Scene], None]) -> None:
    want(scene)
    scene.device.fault = EnvironmentFault("the kernel is out of memory", "try again")
    assert (await scene.once()).error
    outcome = await scene.once()
    assert outcome.steps
    assert not outcome.repaired
    assert not any(step.foreign for step in scene.heard.steps)


async def test_hand_that_did_what_was_to_be_done_is_no_finding(scene: Scene) -> None:
    scene.kernel.forget(scene.peer.statement.wireguard)
    scene.want_nobody()
    outcome = await scene.once()
    assert not outcome.steps
    assert not outcome.repaired


async def test_own_key_that_is_switched_between_two_passes_is_no_finding(scene: Scene) -> None:
    key = IDS[2].wireguard

    def first() -> None:
        scene.desire = replace(scene.desire, me=replace(scene.desire.me, private_key=key))

    await scene.reconciler.switch_key(key, first)
    outcome = await scene.once()
    assert not outcome.steps
    assert not outcome.repaired
    assert scene.kernel.link
    assert scene.kernel.link.private_key == clamped(key)
