"""Where this node may be reached: what the operator set, its own addresses, what peers and the coordinator see
(NET-8).
"""

from __future__ import annotations

from collections import Counter
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
        self._seen: Counter[Endpoint] = Counter()  # by how many: a thousand peers mostly see one and the same

    def seen(self, peer: NodeId, endpoint: Endpoint) -> None:
        """A peer's WireGuard sees us at `endpoint`; the peer proved itself, the claim remains a hint."""
        if before := self._seen_by.get(peer):
            self._seen -= Counter([before])
        self._seen_by[peer] = endpoint
        self._seen[endpoint] += 1

    @property
    def behind_nat(self) -> bool:
        """Somebody sees us at an address that is not ours."""
        own = {str(address) for address, _ in self.addresses}
        seen = {str(endpoint.address) for endpoint in self._seen} | {self.seen_address or "::1"}
        return bool(own) and not seen <= own | {"127.0.0.1", "::1"}

    def candidates(self) -> tuple[Candidate, ...]:
        """All of them, most trusted first, without repetition; what two peers agree on comes before what one says."""
        known = list(local(self._configured, self.addresses, self._port))
        have = {c.endpoint for c in known}
        observed = sorted((e for e in self._seen if e not in have), key=lambda e: (-self._seen[e], str(e)))[:3]
        return tuple([*known, *(Candidate(e, Origin.PEER) for e in observed)][: limits.ENDPOINTS_PER_NODE])
