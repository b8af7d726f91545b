"""What operators and monitoring see of the mesh, put together from this coordinator and what others say (OPS-2, MON-6).

Reads; decides and changes nothing. Of a node that is connected elsewhere it tells what that coordinator last said: its
verdict, and the revision it applied as of the last beat.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from coordinator.asymmetry import Asymmetry
from coordinator.feed import Feed
from coordinator.findings import Findings
from coordinator.fleet import Beat, Fleet, Other
from coordinator.gather import Gather
from coordinator.herald import Herald
from coordinator.matrix import Matrix
from coordinator.presence import PresenceTable
from coordinator.pulse import Pulse
from meshctl.mesh import rotation
from meshctl.mesh.model import MeshInfo, NodeId
from meshctl.mesh.rotation import Ended
from meshctl.wire.operator import NodeState
from meshctl.wire.overview import CoordinatorState, EtcdEndpoint, Overview
from meshctl.wire.turns import RotationState, TurnEnded


@dataclass(frozen=True, slots=True)
class Views:
    """Computed when somebody asks."""

    mesh: MeshInfo
    feed: Feed
    presence: PresenceTable
    asymmetry: Asymmetry
    matrix: Matrix
    gather: Gather
    fleet: Fleet
    herald: Herald
    pulse: Pulse
    findings: Findings

    # ---- the mesh ----------------------------------------------------------------------------------------------------

    def overview(self) -> Overview:
        """All of it."""
        own, others = self.herald.beat(), self.fleet.others()
        beats = [own, *(other.beat for other in others)]
        releases: Counter[str] = Counter()
        for beat in beats:
            releases.update(beat.releases)
        connected = len(self.fleet.connected() & self.feed.members.keys())
        return Overview(
            mesh=self.feed.mesh or self.mesh,
            revision=self.feed.revision,
            nodes=len(self.feed.members),
            connected=connected,
            converged=max(0, connected - sum(beat.behind for beat in beats)),
            oldest=min((beat.oldest for beat in beats if beat.oldest), default=0),
            newest=max(beat.newest for beat in beats),
            started=own.started,
            release=own.release,
            etcd=self.pulse.health.words,
            registry_age=self.pulse.age_s,
            coordinators=(self._of(self.fleet.me, own, 0.0, here=True), *map(self._other, self.fleet.known())),
            endpoints=tuple(
                EtcdEndpoint(e.address, e.ok, e.leader, e.version, e.size, e.words) for e in self.pulse.endpoints
            ),
            releases=tuple(releases.most_common()),
            rotation=self.rotation(),
        )

    def _other(self, other: Other) -> CoordinatorState:
        return self._of(other.id, other.beat, self.fleet.age_s(other), silent=other.silent)

    def _of(self, name: str, beat: Beat, age: float, *, silent: bool = False, here: bool = False) -> CoordinatorState:
        return CoordinatorState(
            name, beat.name, beat.addresses, beat.release, beat.started, age, silent, here,
            beat.revision, beat.connected, beat.behind, beat.p50, beat.p99, beat.samples,
        )  # fmt: skip

    # ---- nodes -------------------------------------------------------------------------------------------------------

    def node(self, node: NodeId) -> NodeState:
        """One member: as connected here, else as connected elsewhere, else as it was last here."""
        held = self.presence.get(node)
        if (held is None or not held.connected) and (found := self.fleet.where(node)):
            return self._elsewhere(node, *found)
        member = self.feed.members[node]
        made_at, ephemeral = member.record.rotated_at, member.record.ephemeral
        if held is None:
            return NodeState(member.node, False, 0.0, 0, False, "unknown", ephemeral, (), "", made_at)
        expected = self.feed.expected_digest(node, held.applied)
        return NodeState(
            node=member.node,
            connected=held.connected,
            since=held.since,
            applied=held.applied,
            digest_ok=expected == held.digest,
            verdict=held.verdict if held.connected else "unknown",
            ephemeral=ephemeral,
            findings=(*held.findings, *self.asymmetry.of(node)),
            seen_address=held.address,
            key_made_at=made_at,
            release=held.release,
        )

    def _elsewhere(self, node: NodeId, other: Other, since: int, verdict: str) -> NodeState:
        member, beat = self.feed.members[node], other.beat
        return NodeState(
            node=member.node,
            connected=True,
            since=since,
            applied=beat.laggards.get(node, beat.revision),
            digest_ok=node not in beat.differ and node not in beat.laggards,
            verdict=verdict,
            ephemeral=member.record.ephemeral,
            findings=(),
            seen_address="",
            key_made_at=member.record.rotated_at,
            via=beat.name,
        )

    def straggler(self, node: NodeId) -> str:
        """A member that has not applied something, in words: its name, and where it is or that it is nowhere."""
        if self.presence.is_connected(node):
            return self.name(node)
        found = self.fleet.where(node)
        if found is None:
            return f"{self.name(node)} (not connected)"
        other, age = found[0], self.fleet.age_s(found[0])
        silent = f", silent for {age:.0f} s" if age > 2 else ""
        return f"{self.name(node)} (at {other.beat.name}{silent})"

    def name(self, node: NodeId) -> str:
        """Of a member; of a stranger the id."""
        member = self.feed.members.get(node)
        return member.node.name if member else node

    # ---- the rotation ------------------------------------------------------------------------------------------------

    def rotation(self) -> RotationState:
        """The open one, or the last."""
        plan, turn = self.feed.plan, self.feed.turn
        if plan is None or turn is None or plan.id != turn.rotation:
            return RotationState()
        return RotationState(
            id=plan.id,
            actor=plan.actor,
            opened_at=plan.opened_at,
            targets=len(plan.targets),
            force=plan.force,
            node=self.name(turn.node),
            phase=turn.phase,
            waiting=tuple(map(self.name, turn.waiting)),
            pairs=turn.pairs,
            proven=turn.proven,
            done=turn.done,
            left=rotation.left(plan, turn),
            failed=tuple(map(self._ended, turn.failed)),
            ended=tuple(map(self._ended, turn.ended)),
            gap=turn.gap,
            cancelled=turn.cancelled,
            closed_at=turn.closed_at,
            turns_ended=turn.turns_ended,
            all_pairs=turn.all_pairs,
            all_proven=turn.all_proven,
        )

    def _ended(self, how: Ended) -> TurnEnded:
        waiting = tuple(map(self.name, how.waiting))
        return TurnEnded(self.name(how.node), how.why, how.pairs, how.proven, waiting, how.out, how.into)
