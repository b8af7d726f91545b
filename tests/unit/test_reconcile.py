"""One pass after the other, on a kernel in memory that others touch as well (NET-3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from meshctl.agent.candidates import Surroundings
from meshctl.agent.reconcile import Desire, Reconciler
from meshctl.crypto.identity import Identity
from meshctl.eventlog import Unheard
from meshctl.events import Event, StepApplied
from meshctl.mesh import plan, topology
from meshctl.mesh.keys import PublicKey
from meshctl.mesh.model import MeshInfo, Node, Roster
from tests.harness.fake_kernel import FakeDevice, FakeKernel

MESH = MeshInfo("mesh00000001", "lab", IPv4Network("10.77.0.0/16"), IPv6Network("fd00::/64"), (), b"")
IDS = Identity.generate(), Identity.generate()


class Heard(Unheard):
    def __init__(self) -> None:
        self.steps: list[StepApplied] = []

    def emit(self, event: Event) -> None:
        if isinstance(event, StepApplied):
            self.steps.append(event)


class Interrupted(FakeDevice):
    """`meanwhile` happens between the steps of a pass and the look after them, once."""

    meanwhile: Callable[[], None] | None = None

    async def apply_all(self, steps: Sequence[plan.Step]) -> None:
        await super().apply_all(steps)
        if act := self.meanwhile:
            self.meanwhile = None
            act()


async def test_hand_in_the_middle_of_a_pass_is_not_taken_for_our_own() -> None:
    nodes = [
        Node(one.id, f"n{n}", IPv4Address(f"10.77.0.{n}"), IPv6Address(f"fd00::{n}"), one.state(MESH.id, 1))
        for n, one in enumerate(IDS, 1)
    ]
    roster = Roster("i", 1, {node.id: node for node in nodes})
    kernel, heard = FakeKernel(), Heard()
    device = Interrupted(kernel)
    desire = Desire(MESH, topology.Me(IDS[0].id, IDS[0].wireguard, "mesh0", 51820, 1420), nodes[0], roster)
    around = Surroundings((), 51820)
    reconciler = Reconciler(device, around, lambda _: desire, heard, started=lambda _: None, moved=lambda: None)
    assert not (await reconciler.once()).error
    assert not any(step.foreign for step in heard.steps)
    own, stranger = nodes[1].statement.wireguard, PublicKey(b"s" * 32)
    address = topology.peer(nodes[1]).allowed_ips[:1]
    heard.steps.clear()
    kernel.forget(own)
    device.meanwhile = lambda: kernel.allow(stranger, address)
    assert (await reconciler.once()).error.startswith("did not settle")
    assert not (await reconciler.once()).error
    assert {step.step for step in heard.steps} == {"add-peer", "update-peer", "remove-peer"}
    assert all(step.foreign for step in heard.steps)
    assert kernel.link
    assert kernel.link.peers.keys() == {own}
