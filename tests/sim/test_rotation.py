"""Rotations in weather: every pair's keys agree, or a finding says that they do not (NET-5, MESH-ROT-001, OPS-2).

Real registry, coordinators, books and rotors on a clock that tests move (tests/harness/turning.py).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.records import Why
from meshctl.agent.store import SavedRotation
from meshctl.errors import MeshError
from meshctl.mesh import rotation
from meshctl.mesh.catalogue import Verdict
from meshctl.mesh.keys import PublicKey
from meshctl.mesh.rotation import Phase, Stage, Turn
from meshctl.mesh.statement import Statement
from tests.harness.turning import Turner, Turning, turning

SETTLED_S = 400.0  # more than any turn of a small mesh may take, with its second try


def turn(mesh: Turning) -> Turn:
    assert mesh.world.first.feed.turn is not None
    return mesh.world.first.feed.turn


def by_name(mesh: Turning, name: str) -> Turner:
    return next(node for node in mesh.nodes.values() if node.computer.name == name)


def is_settled(mesh: Turning) -> bool:
    """Nobody has a turn, in the registry or on disk, and every end is content with every other."""
    nodes, held = mesh.nodes.values(), mesh.world.first.feed.turn
    content = all(a.verdict(b) is Verdict.OK for a in nodes for b in nodes if a is not b)
    return content and not (held and held.is_open) and not any(node.disk.turn for node in nodes)


async def settle(mesh: Turning) -> None:
    """The weather clears up; then everything must be as it should."""
    mesh.cuts.clear()
    for node in mesh.nodes.values():
        node.online = True
        if not node.up:
            node.boot()
    for _ in range(round(SETTLED_S / 5)):
        await mesh.run(5)
        if is_settled(mesh):
            break
    assert not mesh.disagreeing()
    for node in mesh.nodes.values():
        held = mesh.world.first.feed.members[node.computer.id].record
        assert Statement(held.statement).body == node.rotor.statement.body, "the registry knows what is in force"
        assert (held.next, node.disk.turn) == (b"", None), "nothing of a turn is left"
        assert all(node.verdict(peer) is Verdict.OK for peer in mesh.nodes.values() if peer is not node)
    if mesh.world.first.feed.turn is not None:
        assert not turn(mesh).is_open


def assert_law(mesh: Turning) -> None:
    """Law: the two ends of a pair never rotate at the same time."""
    assert max(Counter(at for at, _ in mesh.switches).values(), default=1) == 1, mesh.switches


async def test_all_keys_rotate_and_every_pair_is_proven() -> None:
    async with turning(4) as mesh:
        before = {node.computer.id: node.kernel.public for node in mesh.nodes.values()}
        await mesh.open()
        await mesh.run(20)
        assert (turn(mesh).is_open, turn(mesh).done, turn(mesh).failed) == (False, 4, ())
        assert (turn(mesh).all_pairs, turn(mesh).all_proven) == (12, 12)
        assert all(node.kernel.public != before[node.computer.id] for node in mesh.nodes.values())
        assert_law(mesh)
        await settle(mesh)


@pytest.mark.parametrize("phase", [Phase.PREPARE, Phase.GRANTED, Phase.SWITCHED])
@pytest.mark.parametrize("what", ["coordinator", "agent", "link", "agent and coordinator"])
async def test_killed_or_cut_off_at_each_step(phase: Phase, what: str) -> None:
    async with turning(3) as mesh:
        await mesh.open("n0")
        node, slow = by_name(mesh, "n0"), frozenset({by_name(mesh, "n0").computer.id, by_name(mesh, "n2").computer.id})
        for _ in range(40):
            if turn(mesh).phase is phase:
                break
            if turn(mesh).phase is Phase.GRANTED:
                mesh.cuts.add(slow)  # else all is proven before the switch is told
            await mesh.run(0.25)
        else:
            pytest.fail(f"never {phase}")
        mesh.cuts.clear()
        if "agent" in what:
            node.up = False
        if what == "link":
            node.online = False
        if "coordinator" in what:
            await mesh.world.restart(0)
            mesh.watch()
        await mesh.run(5)
        if "agent" in what:
            node.boot()
        node.online = True
        await mesh.run(60)
        assert not turn(mesh).is_open
        await settle(mesh)
        assert_law(mesh)


async def test_a_switch_is_told_once_peers_had_time_to_see_it_or_when_all_is_proven() -> None:
    """By the map alone a peer would follow before our own handshake is spent, and its handshake might cross ours."""
    async with turning(3) as mesh:
        await mesh.open("n0")
        node = by_name(mesh, "n0")
        while not mesh.switches:
            await mesh.run(0.25)
        assert node.rotor.report is not None
        assert node.rotor.report.stage == Stage.READY
        mesh.now += rotation.HOLD_S
        await node.rotor._once()
        assert node.rotor.report.stage == Stage.SWITCHED
        await settle(mesh)


async def test_grant_that_arrives_too_late_is_not_used() -> None:
    """Cut off between question and answer, for longer than the coordinators wait: it asks anew or not at all."""
    async with turning(3) as mesh:
        await mesh.open("n0", "n1")
        node = by_name(mesh, "n0")
        while turn(mesh).phase is not Phase.GRANTED:
            await mesh.run(0.25)
        assert node.disk.turn is not None
        assert node.disk.turn.stage == Stage.PREPARED
        stale = mesh.world.first.rotations.order(node.computer.id)
        node.online = False
        await mesh.run(rotation.GRANT_LOST_S + 1)
        assert turn(mesh).node == by_name(mesh, "n1").computer.id
        node.link.connected, node.link.order = True, stale
        await node.rotor._once()
        assert node.disk.turn.stage == Stage.PREPARED, "it did not switch into its neighbour's turn"
        await settle(mesh)
        assert_law(mesh)


async def test_slow_disk_outlives_the_grant() -> None:
    """The new key was sealed so slowly that the grant was over: the old one stays in force, and it asks anew."""
    async with turning(3) as mesh:
        await mesh.open("n0")
        node = by_name(mesh, "n0")
        while turn(mesh).phase is not Phase.GRANTED:
            await mesh.run(0.25)
        before, keep = node.kernel.public, node.disk.save_rotation

        def slowly(saved: SavedRotation) -> None:
            keep(saved)
            mesh.now += rotation.GRANT_S if saved.stage == Stage.SWITCHED else 0.0

        node.disk.save_rotation = slowly  # type: ignore[method-assign]
        await mesh.run(0.5)
        assert node.kernel.public == before
        assert node.disk.turn is not None
        assert node.disk.turn.stage == Stage.PREPARED
        node.disk.save_rotation = keep  # type: ignore[method-assign]
        await settle(mesh)
        assert_law(mesh)


async def test_node_that_goes_unheard_after_the_switch_is_followed_when_it_is_back() -> None:
    async with turning(3) as mesh:
        await mesh.open("n0")
        node = by_name(mesh, "n0")
        for other in ("n1", "n2"):
            mesh.cuts.add(frozenset({node.computer.id, by_name(mesh, other).computer.id}))
        await mesh.run(30)  # peers without a path count as live for a while, then not
        mesh.cuts.clear()
        await settle(mesh)


async def switching(mesh: Turning, name: str) -> tuple[Turner, PublicKey]:
    """Rotate a node until it has switched -> (the node, its key before)."""
    node = by_name(mesh, name)
    before = node.kernel.public
    await mesh.open(name)
    while not mesh.switches:
        await mesh.run(0.25)
    return node, before


async def test_most_pairs_lost_takes_the_switch_back() -> None:
    async with turning(4) as mesh:
        node, before = await switching(mesh, "n0")
        mesh.cuts |= {frozenset({node.computer.id, other}) for other in mesh.nodes if other != node.computer.id}
        await mesh.run(15)
        assert node.kernel.public == before
        assert turn(mesh).failed[0].why.startswith("rolled back: ")
        await settle(mesh)
        assert node.kernel.public == before


async def test_node_that_cannot_read_its_wireguard_takes_nothing_back() -> None:
    async with turning(4) as mesh:
        node, before = await switching(mesh, "n0")
        node.blind = True  # its netlink socket hangs, or the kernel takes that long to answer
        await mesh.run(rotation.BACK_AFTER_S + 5)
        assert turn(mesh).phase is Phase.SWITCHED
        node.blind = False
        await settle(mesh)
        assert node.kernel.public != before
        assert not turn(mesh).failed


async def test_two_operators_at_once_are_serialised() -> None:
    async with turning(3) as mesh:
        assert await mesh.open("n0")
        assert await mesh.open("n1") is None
        await mesh.run(20)
        assert turn(mesh).done == 1
        await settle(mesh)


number, seconds = st.integers(0, 5), st.sampled_from([0.25, 0.5, 1.0, 4.0, 15.0, 40.0])
STEP = st.one_of(
    st.tuples(st.just("run"), number, seconds),
    st.tuples(st.just("run"), number, seconds),
    st.tuples(st.sampled_from(["rotate", "rotate all", "force all", "cancel"]), number, seconds),
    st.tuples(st.sampled_from(["cut", "heal", "offline", "online", "crash", "boot"]), number, seconds),
    st.tuples(st.sampled_from(["join", "leave", "move", "restart"]), number, seconds),
)


async def act(mesh: Turning, what: str, who: int, how_long: float) -> None:
    nodes = list(mesh.nodes.values())
    node = nodes[who % len(nodes)]
    match what:
        case "run":
            await mesh.run(how_long)
        case "rotate":
            await mesh.open(node.computer.name)
        case "rotate all" | "force all":
            await mesh.open(force=what.startswith("force"))
        case "cancel":
            with suppress(MeshError):
                await mesh.world.first.rotations.cancel("operator:0")
        case "cut":
            other = nodes[(who + 1) % len(nodes)]
            if other is not node:
                mesh.cuts.add(frozenset({node.computer.id, other.computer.id}))
        case "heal":
            mesh.cuts.clear()
        case "offline" | "online":
            node.online = what == "online"
        case "crash":
            node.up = False
        case "boot" if not node.up:
            node.boot()
        case "join" if len(nodes) < 5:
            await mesh.add(f"n{len(mesh.world.events.all)}")
        case "leave" if len(nodes) > 2:
            with suppress(MeshError):  # it may be gone already
                await mesh.world.first.members.depart(node.computer.id, Why.LEFT, "", "operator:0")
        case "move":
            node.at += 1
        case "restart":
            await mesh.world.restart(who % 2)
            mesh.watch()


async def weather(steps: list[tuple[str, int, float]]) -> None:
    async with turning(3) as mesh:
        since: dict[tuple[str, str], float] = {}
        for what, who, how_long in steps:
            await act(mesh, what, who, how_long)
            bad = {(a.computer.name, b.computer.name): (a, b) for a, b in mesh.disagreeing() if a.up and b.up}
            since = {pair: since.get(pair, mesh.now) for pair in bad}
            for pair, (a, b) in bad.items():
                known = b.computer.id in a.computer.book.roster.nodes
                if known and mesh.now - since[pair] > 30:
                    assert a.verdict(b) is not Verdict.OK, f"{pair} disagree since {since[pair]} and nobody says so"
        assert_law(mesh)
        await settle(mesh)
        assert_law(mesh)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEP, min_size=4, max_size=25))
def test_in_any_weather_keys_agree_or_a_finding_is_open(steps: list[tuple[str, int, float]]) -> None:
    asyncio.run(weather(steps))
