"""The words in which a userspace WireGuard is told what to do (NET-4, NET-5)."""

from __future__ import annotations

from meshctl.agent.userspace import _uapi
from meshctl.crypto.identity import Identity, public_key
from meshctl.mesh.interface import Peer, network
from meshctl.mesh.model import Endpoint
from meshctl.mesh.plan import AddPeer, RestartPeer


def test_a_peer_works_before_packets_are_routed_to_it() -> None:
    """In one breath the daemon would route to it first, and drop what came before it worked: one packet in 100,000."""
    allowed = (network("10.77.0.2/32"),)
    peer = Peer(public_key(Identity.generate().wireguard), allowed, Endpoint.parse("192.0.2.1:1"))
    name = f"public_key={peer.public_key.raw.hex()}\n"
    for step in (AddPeer(peer), RestartPeer(peer)):
        sections = _uapi(step).split(name)[1:]
        (routed,) = (place for place, section in enumerate(sections) if "allowed_ip=" in section)
        assert any("endpoint=" in section for section in sections[:routed])
