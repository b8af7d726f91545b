"""Any sequence of joins, leaves, rotations and faults: every pair works, or somebody says that it does not (NET-7).

The world is a model: who runs, which direction carries packets, which key each end believes the other has. What looks
at it is the product's own: the schedule, the tallies of echoes, the judges, `evaluate` and `track`. Rounds of two
seconds, no clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from meshctl.mesh import integrity, judges, limits
from meshctl.mesh.catalogue import CATALOGUE, CIPHER, DRIFT, HANDSHAKE, PATH, ROTATION, Severity, Verdict
from meshctl.mesh.integrity import Finding, Key, Reading, Row
from meshctl.mesh.model import NodeId
from meshctl.mesh.probe import Echo
from meshctl.mesh.schedule import schedule

ROUND_S = limits.WATCH_EVERY_S
SLACK_S = ROUND_S + 2 * limits.ECHO_LOST_AFTER_S
MOST = 5
TELLING = {PATH, HANDSHAKE, ROTATION}  # what a pair that does not work may be called
CALM_ROUNDS = 40  # a loss is told until 15 of the last 16 echoes came back, an undone drift for a minute
LOUD_S = 2 * 5.0 + SLACK_S + 20.0  # two coverage periods, and the longest grace


@dataclass
class Member:
    """One node, and what it holds of the others."""

    runs: bool = True
    probes: bool = True  # an agent whose prober stands still, but not its other loops
    key: int = 1
    trouble: str = ""  # what the last pass could not do
    believes: dict[NodeId, int] = field(default_factory=dict)
    tallies: dict[NodeId, Echo] = field(default_factory=dict)
    shaken: dict[NodeId, float] = field(default_factory=dict)
    moved: dict[NodeId, float] = field(default_factory=dict)  # when a key of the pair changed, as far as it knows
    agreed: dict[NodeId, float] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    findings: tuple[Finding, ...] = ()


class Mesh(RuleBasedStateMachine):
    """`works_since` and `broken_since` hold each pair in one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.turn, self.count = 1000.0, 0, 0
        self.nodes: dict[NodeId, Member] = {}
        self.cut: set[tuple[NodeId, NodeId]] = set()  # directions
        self.deaf: set[NodeId] = set()  # cut off from the registry: hears of no rotation
        self.works_since: dict[frozenset[NodeId], float] = {}
        self.broken_since: dict[frozenset[NodeId], float] = {}
        self.touched_at: dict[NodeId, float] = {}

    # ---- what happens ------------------------------------------------------------------------------------------------

    @initialize()
    def two_nodes(self) -> None:
        self.join()
        self.join()

    @precondition(lambda self: len(self.nodes) < MOST)
    @rule()
    def join(self) -> None:
        self.count += 1
        me = NodeId(f"node{self.count:020d}")
        for member in self.nodes.values():
            member.believes[me] = 1
            member.tallies[me] = Echo()
        believes = {other: member.key for other, member in self.nodes.items()}
        self.nodes[me] = Member(believes=believes, tallies={other: Echo() for other in self.nodes})

    @precondition(lambda self: len(self.nodes) > 2)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        gone = self._one(data)
        del self.nodes[gone]
        self.deaf.discard(gone)
        self.cut = {way for way in self.cut if gone not in way}
        for member in self.nodes.values():
            for held in (member.believes, member.tallies, member.shaken, member.moved, member.agreed):
                held.pop(gone, None)

    @rule(data=st.data())
    def rotate(self, data: st.DataObject) -> None:
        """Its sessions end; who is deaf does not follow."""
        me = self._one(data)
        member = self.nodes[me]
        member.key += 1
        for other, peer in self.nodes.items():
            if other != me:
                member.moved[other] = self.now
                if other not in self.deaf:
                    self._hear(other, peer, me)

    @rule(data=st.data())
    def turn_deaf_or_not(self, data: st.DataObject) -> None:
        me = self._one(data)
        if me not in self.deaf:
            self.deaf.add(me)
            return
        self.deaf.discard(me)
        for other, peer in self.nodes.items():
            if other != me and self.nodes[me].believes[other] != peer.key:
                self._hear(me, self.nodes[me], other)

    @rule(data=st.data())
    def cut_or_mend_a_direction(self, data: st.DataObject) -> None:
        self.cut ^= {(self._one(data), self._one(data))}

    @rule(data=st.data(), what=st.sampled_from(["runs", "probes"]))
    def stop_or_start(self, data: st.DataObject, what: str) -> None:
        me = self._one(data)
        setattr(self.nodes[me], what, not getattr(self.nodes[me], what))
        self.touched_at[me] = self.now

    @rule(data=st.data())
    def trouble_or_repair(self, data: st.DataObject) -> None:
        me = self._one(data)
        self.nodes[me].trouble = "" if self.nodes[me].trouble else "a foreign hand"
        self.touched_at[me] = self.now

    @rule(rounds=st.integers(1, 60))
    def time_passes(self, rounds: int) -> None:
        for _ in range(rounds):
            self.now += ROUND_S
            self.turn += 1
            self._note()
            for me, member in self.nodes.items():
                if member.runs and member.probes:
                    for peer in schedule(self.nodes, me).due(self.turn):
                        self._echo(me, peer)
            for me, member in self.nodes.items():
                if member.runs:
                    self._look(me, member)
        self.rows_are_of_those_who_are_there()
        self.a_pair_that_does_not_work_is_told_of()
        self.a_pair_that_works_is_called_so()
        self.what_is_critical_has_a_cause()
        self.what_is_not_tested_is_not_called_well()

    # ---- how the world answers ---------------------------------------------------------------------------------------

    def _one(self, data: st.DataObject) -> NodeId:
        return data.draw(st.sampled_from(sorted(self.nodes)))

    def _hear(self, me: NodeId, member: Member, other: NodeId) -> None:
        member.believes[other] = self.nodes[other].key
        member.moved[other] = self.now

    def _works(self, a: NodeId, b: NodeId) -> bool:
        """Whether an echo of one is answered by the other."""
        one, two = self.nodes[a], self.nodes[b]
        keys = one.believes[b] == two.key and two.believes[a] == one.key
        return keys and one.runs and two.runs and not {(a, b), (b, a)} & self.cut

    def _echo(self, me: NodeId, peer: NodeId) -> None:
        mine, theirs = self.nodes[me], self.nodes[peer]
        if not self._works(me, peer):
            mine.tallies[peer].lost(self.now, now=self.now)
            return
        changed = max(mine.moved.get(peer, 0.0), theirs.moved.get(me, 0.0))
        shaken = mine.shaken.get(peer, 0.0)
        if self.now - shaken >= limits.REKEY_AFTER_S or shaken <= changed:
            mine.shaken[peer] = theirs.shaken[me] = self.now
        mine.tallies[peer].answered(0.001, 0.0, now=self.now)
        theirs.tallies[me].proven(now=self.now)
        mine.agreed[peer] = theirs.agreed[me] = self.now

    def _note(self) -> None:
        pairs = {frozenset((a, b)): self._works(a, b) for a in self.nodes for b in self.nodes if a < b}
        for kept, wanted in ((self.works_since, True), (self.broken_since, False)):
            for pair in [pair for pair in kept if pairs.get(pair) is not wanted]:
                del kept[pair]
            for pair, works in pairs.items():
                if works is wanted:
                    kept.setdefault(pair, self.now)

    def _look(self, me: NodeId, member: Member) -> None:
        """As the agent's examiner does."""
        now, peers = self.now, sorted(self.nodes.keys() - {me})
        readings = [
            judges.drift((), 0.0, member.trouble, now=now), judges.routes((), True, now=now),
            judges.lag(1, 1, 1.0, now=now), judges.keys(60.0, limits.CERTIFICATE_LIFE_S, now=now),
            judges.clock(0.0, (), now=now), Reading(CIPHER, "", Verdict.OK, now, ""),
        ]  # fmt: skip
        for peer in peers:
            echo, shaken = member.tallies[peer], member.shaken.get(peer)
            age = None if shaken is None else now - shaken
            changed, agreed = member.moved.get(peer), member.agreed.get(peer)
            readings += [
                judges.handshake(peer, age, member.probes, now=now), judges.path(peer, echo, now=now),
                judges.identity(peer, echo, now=now),
                judges.rotation(
                    peer, None if changed is None else now - changed, age, None if agreed is None else now - agreed,
                    now=now,
                ),
            ]  # fmt: skip
        held: dict[Key, Reading] = {reading[:2]: reading for reading in readings}
        wanted, coverage = integrity.expected(peers), schedule(self.nodes, me).coverage_s + SLACK_S
        member.rows = integrity.evaluate(held, wanted, coverage_s=coverage, deep_s=1e9, now=now)
        member.findings, _, _ = integrity.track(member.findings, member.rows, now=now)

    # ---- what must hold ----------------------------------------------------------------------------------------------

    def _seeing(self) -> list[tuple[NodeId, Member]]:
        return [(me, member) for me, member in self.nodes.items() if member.runs and member.rows]

    def rows_are_of_those_who_are_there(self) -> None:
        for me, member in self._seeing():
            assert {f.subject for f in member.findings} <= {row.subject for row in member.rows}
            assert me not in {row.subject for row in member.rows}

    def a_pair_that_does_not_work_is_told_of(self) -> None:
        for me, member in self._seeing():
            for pair, since in self.broken_since.items():
                if me in pair and member.probes and self._stood(pair, since, LOUD_S):
                    (peer,) = pair - {me}
                    told = {f.code for f in member.findings if f.subject == peer and f.opened_at is not None}
                    drifts = any(f.code == DRIFT and f.opened_at is not None for f in member.findings)
                    assert told & TELLING or drifts, (pair, [row for row in member.rows if row.subject == peer])
                    assert integrity.overall(member.rows) is not Verdict.OK

    def a_pair_that_works_is_called_so(self) -> None:
        for me, member in self._seeing():
            for pair, since in self.works_since.items():
                (peer,) = pair - {me} if me in pair else (None,)
                both = peer is not None and member.probes and self.nodes[peer].probes
                if both and self._stood(pair, since, CALM_ROUNDS * ROUND_S) and not member.trouble:
                    mine = [row for row in member.rows if row.subject == peer and not CATALOGUE[row.code].deep]
                    assert {row.verdict for row in mine} == {Verdict.OK}, mine
                    assert not [f for f in member.findings if f.subject == peer]

    def what_is_critical_has_a_cause(self) -> None:
        for _, member in self._seeing():
            drifts = any(row.code == DRIFT and row.verdict is Verdict.FAILED for row in member.rows)
            critical = [f for f in member.findings if f.severity is Severity.CRITICAL]
            assert {f.code for f in critical} <= ({DRIFT} if drifts else set())

    def what_is_not_tested_is_not_called_well(self) -> None:
        oldest = self.now - schedule(self.nodes, min(self.nodes)).coverage_s - SLACK_S
        for _, member in self._seeing():
            for row in member.rows:
                if row.code == PATH and row.verdict is Verdict.OK:
                    at = member.tallies[NodeId(row.subject)].tested_at
                    assert at is not None
                    assert at >= oldest - ROUND_S

    def _stood(self, pair: frozenset[NodeId], since: float, span_s: float) -> bool:
        """Nothing else has happened to this pair for so long."""
        a, b = pair
        moved = self.nodes[a].moved.get(b, 0.0), self.nodes[b].moved.get(a, 0.0)
        return self.now - max(since, *moved, *(self.touched_at.get(node, 0.0) for node in pair)) >= span_s


TestMesh = Mesh.TestCase
TestMesh.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
