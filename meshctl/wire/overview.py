"""The state of a whole mesh as operators see it, as values: coordinators, nodes, etcd, the rotation (OPS-2, MON-6).

Beside codec.py, for the Operator service's Status; decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshctl.mesh.model import MeshInfo
from meshctl.wire import codec, turns
from meshctl.wire.codec import plain, strict
from meshctl.wire.turns import RotationState
from meshctl.wire.v1 import mesh_pb2 as pb


@dataclass(frozen=True, slots=True)
class CoordinatorState:
    """One coordinator as the one that answers knows it. Times in seconds; `started` in unix seconds, by its clock."""

    id: str
    name: str
    addresses: tuple[str, ...]
    release: str
    started: float
    age: float  # of its last word
    silent: bool  # for too long to be alive
    here: bool
    revision: int
    connected: int
    behind: int
    p50: float  # convergence: from hearing of a change to a node's acknowledgement
    p99: float
    samples: int


@dataclass(frozen=True, slots=True)
class EtcdEndpoint:
    """One member of etcd; `words` say what is wrong with it, `size` is in bytes."""

    address: str
    ok: bool
    leader: bool
    version: str
    size: int
    words: str


@dataclass(frozen=True, slots=True)
class Overview:
    """The mesh. `connected` counts nodes with a stream anywhere, `converged` those at their coordinator's revision."""

    mesh: MeshInfo
    revision: int
    nodes: int
    connected: int
    converged: int
    oldest: int  # least and greatest revision applied by those connected; 0 while there is none
    newest: int
    started: float
    release: str
    etcd: str
    registry_age: float  # seconds since the registry last answered a read
    coordinators: tuple[CoordinatorState, ...]
    endpoints: tuple[EtcdEndpoint, ...]
    releases: tuple[tuple[str, int], ...]  # of nodes
    rotation: RotationState

    @property
    def p50(self) -> float:
        """Convergence, seconds: the slowest living coordinator's."""
        return max((c.p50 for c in self.coordinators if not c.silent), default=0.0)

    @property
    def p99(self) -> float:
        """Convergence, seconds: the slowest living coordinator's."""
        return max((c.p99 for c in self.coordinators if not c.silent), default=0.0)


def status_message(state: Overview) -> pb.CoordinatorStatus:
    """For Status."""
    told = plain(
        state,
        mesh=codec.mesh_message(state.mesh),
        coordinators=[pb.CoordinatorState(**plain(one)) for one in state.coordinators],
        endpoints=[pb.EtcdEndpoint(**plain(one)) for one in state.endpoints],
        releases=[pb.ReleaseCount(release=release, nodes=nodes) for release, nodes in state.releases],
        rotation=turns.state_message(state.rotation),
    )
    return pb.CoordinatorStatus(**told)


def status(m: pb.CoordinatorStatus) -> Overview:
    """Inverse of `status_message`."""
    with strict("status"):
        return Overview(
            mesh=codec.mesh_info(m.mesh),
            revision=m.revision,
            nodes=m.nodes,
            connected=m.connected,
            converged=m.converged,
            oldest=m.oldest,
            newest=m.newest,
            started=m.started,
            release=m.release,
            etcd=m.etcd,
            registry_age=m.registry_age,
            coordinators=tuple(
                CoordinatorState(
                    c.id, c.name, tuple(c.addresses), c.release, c.started, c.age, c.silent, c.here, c.revision,
                    c.connected, c.behind, c.p50, c.p99, c.samples,
                ) for c in m.coordinators
            ),
            endpoints=tuple(EtcdEndpoint(e.address, e.ok, e.leader, e.version, e.size, e.words) for e in m.endpoints),
            releases=tuple((r.release, r.nodes) for r in m.releases),
            rotation=turns.state(m.rotation),
        )  # fmt: skip
