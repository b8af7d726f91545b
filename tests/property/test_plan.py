"""Any disjoint world is reached in one pass, and never at the cost of a live peer (NET-3)."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace
from ipaddress import IPv4Interface, IPv4Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshctl.errors import ProtocolError
from meshctl.mesh.interface import Interface, Peer, Route, digest, network
from meshctl.mesh.keys import PresharedKey, PrivateKey, PublicKey
from meshctl.mesh.model import Endpoint
from meshctl.mesh.plan import AddPeer, CreateInterface, RemovePeer, RestartPeer, SetPrivateKey, diff
from tests.harness.fake_kernel import FakeDevice, FakeKernel, clamped, public

OWN = clamped(PrivateKey(secrets.token_bytes(32)))
KEYS = [PublicKey(bytes([n]) * 32) for n in range(1, 13)]
CLAIMS = [network(f"10.77.{n}.0/28") for n in range(12)] + [network(f"fd77:{n:x}::/64") for n in range(12)]
MESHES = [network("10.77.0.0/16"), network("fd77::/16"), network("10.78.0.0/16")]


@st.composite
def worlds(draw: st.DrawFn) -> Interface:
    """Interfaces over few keys and claims, so that two of them share many and claims change hands."""
    keys = draw(st.lists(st.sampled_from(KEYS), unique=True))
    owners = draw(st.lists(st.sampled_from(keys), min_size=len(CLAIMS), max_size=len(CLAIMS))) if keys else []
    peers = {}
    for key in keys:
        ips = tuple(ip for ip, owner in zip(CLAIMS, owners, strict=True) if owner == key)
        psk = draw(st.sampled_from([None, PresharedKey(b"p" * 32), PresharedKey(b"q" * 32)]))
        at = draw(st.sampled_from([None, Endpoint.parse("192.0.2.1:51820"), Endpoint.parse("[2001:db8::1]:51820")]))
        peers[key] = Peer(key, ips, at, draw(st.sampled_from([0, 25])), psk)
    meshes = draw(st.sets(st.sampled_from(MESHES)))
    narrow = draw(st.dictionaries(st.sampled_from(CLAIMS), st.sampled_from([1280, 1300]), max_size=4))
    return Interface(
        name="mesh0",
        private_key=OWN,
        listen_port=draw(st.sampled_from([51820, 51821])),
        mtu=draw(st.sampled_from([1280, 1420])),
        addresses=frozenset(
            draw(st.sets(st.sampled_from([IPv4Interface("10.77.0.1/32"), IPv4Interface("10.77.0.2/32")])))
        ),
        routes=frozenset(r for m in meshes for r in (Route(m), Route(m, unreachable=True, metric=9)))
        | {Route(claim, mtu=mtu) for claim, mtu in narrow.items()},
        guarded=frozenset(meshes),
        peers=peers,
    )


async def _reach(kernel: FakeKernel, want: Interface, alive: frozenset[PublicKey] = frozenset()) -> None:
    device = FakeDevice(kernel)
    await device.apply_all(diff((await device.observe()).interface, want, alive=alive))


@given(worlds(), worlds(), st.sets(st.sampled_from(KEYS)), st.booleans())
@settings(max_examples=150, deadline=None)
def test_one_pass_is_enough_and_live_peers_are_not_touched(
    old: Interface, new: Interface, answering: set[PublicKey], fell: bool
) -> None:
    async def scenario() -> None:
        kernel = FakeKernel()
        await _reach(kernel, old)
        assert kernel.link
        alive = frozenset(answering & kernel.link.peers.keys())
        for key in alive:
            kernel.answer(key, 1.0)
        if fell:
            kernel.down()
        kernel.steps.clear()
        await _reach(kernel, new, alive)
        for step in kernel.steps:
            assert not isinstance(step, CreateInterface | SetPrivateKey)
            match step:
                case AddPeer(peer) | RestartPeer(peer):
                    assert peer.public_key not in alive
                case RemovePeer(key):
                    assert key not in new.peers
        seen = (await FakeDevice(kernel).observe()).interface
        assert seen is not None
        assert diff(seen, new, alive=alive) == ()
        assert digest(seen.peers.values()) == digest(new.peers.values())
        assert {k for k in alive if k in new.peers} <= {
            k for k, s in kernel.link.sessions.items() if s.last_handshake == 1.0
        }

    asyncio.run(scenario())


@given(worlds(), st.sampled_from(CLAIMS), st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_overlapping_worlds_are_refused(world: Interface, claim: IPv4Network, wider: int) -> None:
    intruder = Peer(PublicKey(b"\xff" * 32), (claim.supernet(wider),))
    claimed = any(claim in peer.allowed_ips for peer in world.peers.values())
    if claimed:
        with pytest.raises(ProtocolError, match="two peers claim"):
            replace(world, peers={**world.peers, intruder.public_key: intruder})


@given(worlds(), st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from([*CLAIMS, *MESHES])), max_size=6))
@settings(max_examples=150, deadline=None)
def test_a_person_with_wg_is_repaired_in_one_pass_even_when_claims_overlap(
    world: Interface, doings: list[tuple[PublicKey, IPv4Network]]
) -> None:
    async def scenario() -> None:
        kernel = FakeKernel()
        await _reach(kernel, world)
        for key, claim in doings:
            kernel.allow(key, [claim])
        await _reach(kernel, world)
        assert diff((await FakeDevice(kernel).observe()).interface, world) == ()

    asyncio.run(scenario())


def test_own_key_in_the_roster_is_ignored_as_wireguard_does() -> None:
    async def scenario() -> None:
        kernel = FakeKernel()
        await _reach(kernel, Interface("mesh0", OWN, 51820, 1420))
        kernel.put_peer(Peer(public(OWN), (CLAIMS[0],)))
        assert (await FakeDevice(kernel).observe()).interface == Interface("mesh0", OWN, 51820, 1420)

    asyncio.run(scenario())
