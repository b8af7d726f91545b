"""What a device reads again, and what it need not (NET-3): a look at rules is a process, one at routes four dumps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import IPv4Interface

import pytest

from meshctl.agent.firewall import Firewall
from meshctl.agent.routes import Host
from meshctl.mesh.plan import AddAddress, AddPeer, SetPrivateKey
from tests.harness.ground import OWN, RealGround, desired, drained, peer, real_ground, settle

root = pytest.mark.root


@pytest.fixture(params=[pytest.param("userspace", marks=root), pytest.param("kernel", marks=root)])
def real(request: pytest.FixtureRequest) -> Iterator[RealGround]:
    yield from real_ground(request.param)


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was read, in order."""
    found: list[str] = []

    def spied(name: str, look: Callable[..., object]) -> Callable[..., object]:
        return lambda *given: (found.append(name), look(*given))[1]

    monkeypatch.setattr(Firewall, "guarded", spied("rules", Firewall.guarded))
    monkeypatch.setattr(Host, "look", spied("routes", Host.look))
    return found


async def test_keys_and_peers_are_set_without_reading_rules_and_routes_again(
    real: RealGround, looked: list[str]
) -> None:
    device = await real.open()
    await settle(device, desired(real.name))
    await drained(device)
    await device.observe()
    looked.clear()
    await device.apply_all([SetPrivateKey(OWN), AddPeer(peer(1))])
    seen = (await device.observe()).interface
    assert seen
    assert peer(1).public_key in seen.peers
    assert not looked
    await device.apply_all([AddAddress(IPv4Interface("10.77.0.9/32"))])
    await device.observe()
    assert looked == ["rules", "routes"]
    await device.destroy()
