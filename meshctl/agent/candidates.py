"""Where this node may be reached: what the operator set, its own addresses, what peers and the coordinator see
(NET-8).
"""

from __future__ import annotations

from collections.abc import Sequence

from meshctl.mesh import limits
from meshctl.mesh.model import Address, Candidate, Endpoint, Network, NodeId, Origin

LocalAddress = tuple[Address, Network]


def local(configured: Sequence[str], addresses: Sequence[LocalAddress], listen_port: int) -> tuple[Candidate, ...]:
    """Configured endpoints first, then the underlay addresses of this host at WireGuard's port."""
    told = [Candidate(Endpoint.parse(text), Origin.CONFIGURED) for text in configured]
    own = [Candidate(Endpoint(address, listen_port), Origin.LOCAL) for address, _ in addresses]
    return tuple([*told, *own][: limits.ENDPOINTS_PER_NODE])


class Surroundings:
    """What is known of this node's place on the underlay."""

    def __init__(self, configured: Sequence[str], listen_port: int) -> None:
        self.addresses: tuple[LocalAddress, ...] = ()
        self.seen_address = ""  # where the coordinator sees our connection come from
        self._configured, self._port = tuple(configured), listen_port
        self._seen_by: dict[NodeId, Endpoint] = {}

    def seen(self, peer: NodeId, endpoint: Endpoint) -> None:
        """A peer's WireGuard sees us at `endpoint`; the peer proved itself, the claim remains a hint."""
        self._seen_by[peer] = endpoint

    @property
    def behind_nat(self) -> bool:
        """Somebody sees us at an address that is not ours."""
        own = {address for address, _ in self.addresses}
        seen = {str(e.address) for e in self._seen_by.values()} | ({self.seen_address} if self.seen_address else set())
        return bool(own) and any(address not in {str(a) for a in own} for address in seen - {"127.0.0.1", "::1"})

    def candidates(self) -> tuple[Candidate, ...]:
        """All of them, most trusted first, without repetition; what two peers agree on comes before what one says."""
        known = list(local(self._configured, self.addresses, self._port))
        have = {c.endpoint for c in known}
        counted: dict[Endpoint, int] = {}
        for endpoint in self._seen_by.values():
            counted[endpoint] = counted.get(endpoint, 0) + 1
        observed = sorted((e for e in counted if e not in have), key=lambda e: (-counted[e], str(e)))[:3]
        return tuple([*known, *(Candidate(e, Origin.PEER) for e in observed)][: limits.ENDPOINTS_PER_NODE])
