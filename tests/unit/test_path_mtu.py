"""Which size is tried next, what routes follow from it, and what a node remembers of it (NET-7, PATH-002)."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshctl.agent.store import Store
from meshctl.crypto.identity import Identity
from meshctl.mesh import topology
from meshctl.mesh.interface import Route
from meshctl.mesh.keys import PrivateKey
from meshctl.mesh.model import MeshInfo, Node, NodeId, Roster
from meshctl.mesh.pathmtu import GRAIN_BYTES, Search
from meshctl.mesh.plan import diff
from meshctl.mesh.sizing import Allowance

MESH = MeshInfo("mesh00000001", "lab", IPv4Network("10.77.0.0/16"), IPv6Network("fd00::/64"), (), b"")


def found(limit: int, full: int, hint: int = 0) -> tuple[int, int]:
    """(what passes, tries) when sizes up to `limit` pass, padded to multiples of 16 as WireGuard does."""
    search, tries = Search(200, full, hint), 0
    while (size := search.next()) is not None:
        tries += 1
        assert 200 < size < full
        search.tell(size, passed=-(-size // GRAIN_BYTES) * GRAIN_BYTES <= limit)
    return search.passes, tries


@given(st.integers(208, 9000), st.integers(1, 9000), st.integers(0, 9100))
def test_search_ends_at_the_largest_size_that_passes(limit: int, above: int, hint: int) -> None:
    full = limit + above
    passes, tries = found(limit, full, hint)
    assert tries <= 14
    # A full size that is no multiple of 16 is padded to no more than itself: the block below it is the largest.
    assert passes in ({limit // GRAIN_BYTES * GRAIN_BYTES} if limit // GRAIN_BYTES * GRAIN_BYTES < full else {200})


@pytest.mark.parametrize(("limit", "full"), [(1340, 1420), (1240, 1420), (1400, 8920), (576, 1420)])
def test_a_known_limit_is_confirmed_in_two_tries(limit: int, full: int) -> None:
    passes, tries = found(limit, full)
    assert passes == limit // GRAIN_BYTES * GRAIN_BYTES
    assert tries <= 10
    assert found(limit, full, hint=passes) == (passes, 2)


def test_nothing_but_the_control_passes() -> None:
    assert found(200, 1420)[0] == 200


# ---- what follows ----------------------------------------------------------------------------------------------------


def node(number: int) -> Node:
    identity = Identity.generate()
    v4, v6 = IPv4Address(f"10.77.0.{number}"), IPv6Address(f"fd00::{number}")
    return Node(identity.id, f"n{number}", v4, v6, identity.state("mesh00000001", 1))


@pytest.mark.parametrize(
    ("passing", "limits"),
    [
        (1328, {"10.77.0.2/32": 1328, "fd00::2/128": 1328}),
        (1232, {"10.77.0.2/32": 1232, "fd00::2/128": 1280}),
        (200, {"10.77.0.2/32": 576, "fd00::2/128": 1280}),
        (1420, {}),
        (8000, {}),
    ],
)
def test_routes_of_a_narrow_peer_keep_to_what_each_family_allows(passing: int, limits: dict[str, int]) -> None:
    assert {str(r.prefix): r.mtu for r in topology.narrow(node(2), passing, 1420)} == limits


def test_what_was_learned_is_part_of_the_plan_and_goes_with_the_peer() -> None:
    me, far = node(1), node(2)
    half = topology.Me(me.id, PrivateKey(b"\x11" * 32), "mesh0", 51820, 1420)
    knows = replace(half, narrow=((far.id, 1328), (NodeId("gone"), 1300)))
    roster = Roster("i", 1, {n.id: n for n in (me, far)})
    plain, narrow = topology.desired(MESH, roster, half, me), topology.desired(MESH, roster, knows, me)
    assert [str(step) for step in diff(plain, narrow)] == [
        "add route 10.77.0.2/32 for packets up to 1328 bytes",
        "add route fd00::2/128 for packets up to 1328 bytes",
    ]
    assert [str(step) for step in diff(narrow, plain)] == ["remove route 10.77.0.2/32", "remove route fd00::2/128"]
    alone = Roster("i", 2, {me.id: me})
    assert all(not route.mtu for route in topology.desired(MESH, alone, knows, me).routes)


def test_a_changed_mtu_is_one_step() -> None:
    prefix = ip_network("10.77.0.2/32")
    me = node(1)
    half = topology.Me(me.id, PrivateKey(b"\x11" * 32), "mesh0", 51820, 1420)
    plain = topology.desired(MESH, Roster("i", 1, {}), half, me)
    was, wanted = (replace(plain, routes=frozenset({Route(prefix, mtu=mtu)})) for mtu in (1300, 1328))
    assert [str(step) for step in diff(was, wanted)] == ["add route 10.77.0.2/32 for packets up to 1328 bytes"]


def test_it_outlives_the_agent_and_a_damaged_file_is_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.narrow() == ()
    store.save_narrow(((NodeId("a"), 1328), (NodeId("b"), 576)))
    assert Store(tmp_path).narrow() == ((NodeId("a"), 1328), (NodeId("b"), 576))
    (tmp_path / "narrow").write_bytes(b"nonsense")
    assert Store(tmp_path).narrow() == ()
    store.forget()
    assert not (tmp_path / "narrow").exists()


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(1, 900)), max_size=40))
def test_allowance_never_gives_more_than_its_burst_and_rate(asks: list[tuple[float, int]]) -> None:
    allowance, now, given_ = Allowance(100.0, 500.0), 0.0, 0
    for pause, size in asks:
        now += pause
        if allowance.take(size, now=now):
            given_ += size
        assert given_ <= 500 + 100 * now + 1e-6
    assert allowance.take(500, now=now + 5.0)
