"""The matrix of nodes at two coordinators, asked at either; one of them sleeps, dies, comes back (NET-7, OPS-2).

Real processes: an etcd of three, two coordinators, three nodes, all with the patience that they have in earnest.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from meshctl.agent.store import Store
from meshctl.mesh.matrix import SILENT, Grid
from meshctl.wire import operator, rows
from tests.harness.mesh import MESHCTL, PORT, READY_S, Node, until
from tests.harness.replicas import Replica, Replicas

pytestmark = pytest.mark.root
Figure = Callable[[str, object], None]


@pytest.fixture(scope="module")
def lab() -> Iterator[Replicas]:
    """`a` is connected to the first, `b` and `c` to the second coordinator, and cannot be to the first."""
    with Replicas(patient=True) as made:
        a, b, c = made.members("a", "b", "c")
        for node, other in ((a, made.two), (b, made.one), (c, made.one)):
            away = f"tcp dport {PORT} ip daddr {other.address.rpartition(':')[0]} reject with tcp reset"
            chain = "type filter hook output priority 0"
            node.ns.command("nft", "-f", "-", stdin=f"table inet away {{ chain o {{ {chain}; {away}; }}; }}\n")
        until(lambda: made.one.has("a") and made.two.has("b") and made.two.has("c"), READY_S, "each is at its own")
        yield made


def seen(at: Replica) -> Grid:
    """What an operator sees there."""
    return rows.grid(at.ask("Matrix", operator.nothing()))


def matrix(at: Replica, *words: str) -> str:
    done = at.run(*MESHCTL, "matrix", *words, "--data-dir", str(at.data))
    assert done.returncode == 0, done.stderr
    return done.stdout


def symbols(at: Replica) -> list[str]:
    found: dict[str, Any] = json.loads(matrix(at, "--json"))
    return [node["row"] for node in found["nodes"]]


def all_is_well(lab: Replicas) -> None:
    for one in lab.coordinators:
        until(lambda at=one: symbols(at) == [".oo", "o.o", "oo."], 60, f"all is shown: {symbols(one)}")  # type: ignore[misc]


def questions(lab: Replicas) -> list[str]:
    """That stand in etcd."""
    found = lab.cluster.leader().ctl("get", "--prefix", "--keys-only", "/meshctl/v1/ask/")
    return [line for line in found.splitlines() if line]


def test_rows_of_nodes_at_two_coordinators_are_shown_at_each(lab: Replicas, record_property: Figure) -> None:
    all_is_well(lab)
    assert f"at {lab.two.address}" in matrix(lab.one)
    assert f"at {lab.one.address}" in matrix(lab.two)
    time_to = []
    for _ in range(3):
        until(lambda: not questions(lab), READY_S, f"it is taken down: {questions(lab)}")
        begun = time.monotonic()
        assert all(line.known for line in seen(lab.one).lines)
        time_to.append(time.monotonic() - begun)
    record_property("figure", f"matrix over two coordinators: answered within {max(time_to) * 1e3:.0f} ms")
    assert max(time_to) < 1.5


def test_coordinator_sleeps_and_its_nodes_are_named_in_time(lab: Replicas, record_property: Figure) -> None:
    all_is_well(lab)
    until(lambda: not questions(lab), READY_S, "nothing is asked any more")
    lab.two.signal(signal.SIGSTOP)
    try:
        begun = time.monotonic()
        until(lambda: [line.why for line in seen(lab.one).lines] == ["", SILENT, SILENT], 6, lambda: f"{seen(lab.one)}")
        took = time.monotonic() - begun
        text = matrix(lab.one)
        record_property("figure", f"matrix while the other coordinator sleeps: {took:.2f} s")
        assert f"! {lab.two.address} did not answer in time: 2 nodes are not shown" in text
        assert text.count(f"not shown: connected at {lab.two.address}, which did not answer in time") == 2
        assert took < 4.5, "one outcome of the second before, and the whole time of the question"
    finally:
        lab.two.signal(signal.SIGCONT)
    all_is_well(lab)
    until(lambda: not questions(lab), READY_S, f"all is taken down: {questions(lab)}")


def test_coordinator_is_killed_and_the_matrix_is_shown_without_it(lab: Replicas, record_property: Figure) -> None:
    all_is_well(lab)
    lab.two.stop(signal.SIGKILL)
    try:
        begun = time.monotonic()
        found = seen(lab.one)
        took = time.monotonic() - begun
        record_property("figure", f"matrix while the other coordinator is dead: {took:.2f} s")
        assert took < 3.5
        assert found.lines[0].known
    finally:
        lab.two.start()
    all_is_well(lab)
    until(lambda: not questions(lab), READY_S, f"all is taken down: {questions(lab)}")


def test_keys_lost_in_a_reboot_are_agreed_anew_by_letters_from_one_coordinator_to_the_other(
    lab: Replicas, record_property: Figure
) -> None:
    a, b, _ = lab.nodes
    until(lambda: a.is_ripe(b) and b.is_ripe(a), READY_S, "the two have agreed")
    a.run("wg", "set", a.interface, "peer", b.key(), "remove")
    until(lambda: _proven(a, b) and _proven(b, a), READY_S, "and a handshake has proven it")
    b.stop()
    Store(b.state).forget_bunches()
    b.drop_interface()
    b.up()
    begun = time.monotonic()
    until(lambda: lab.all_prove(*lab.nodes), 2 * READY_S, f"all reach each other: {b.tail()}")
    record_property("figure", f"keys lost, other coordinator: apart for {time.monotonic() - begun:.1f} s")
    assert a.peer("b")["psk"]["version"] > 1
    assert lab.at(a) is lab.one
    assert lab.at(b) is lab.two


def _proven(node: Node, peer: Node) -> bool:
    psk = node.peer(peer.name)["psk"]
    return psk is not None and psk["proven"]
