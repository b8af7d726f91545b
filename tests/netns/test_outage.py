"""Coordinator and etcd die, flap and forget: the data plane does not notice (NET-4, NET-2, OPS-2).

Loss is compared with a control flow over the bare wire between the same machines at the same time: what a loaded
test machine loses there is not the mesh's.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from tests.harness.mesh import READY_S, Lab, Node, until
from tests.harness.udp_flow import lost_during

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        lab.members("a", "b")
        yield lab


def connected(*nodes: Node) -> bool:
    return all(node.status().get("link", {}).get("connected") for node in nodes)


def joins_and_reaches_all(lab: Lab, name: str) -> None:
    """A machine that joins now proves everybody, and everybody proves it."""
    old = [node for node in lab.nodes if node.pid]
    node = lab.member(name)
    until(lambda: node.proves(*(o.name for o in old)), READY_S, f"{name} proves all: {node.tail()}")
    until(lambda: all(o.proves(name) for o in old), READY_S, f"all prove {name}")


async def test_coordinator_is_killed_under_traffic(lab: Lab, record_property: Callable[[str, object], None]) -> None:
    a, b = lab.nodes[:2]

    def weather() -> None:
        lab.coordinator.stop(signal.SIGKILL)
        until(lambda: not connected(a) and not connected(b), READY_S, "both notice")
        time.sleep(1)  # how long it stays dead is the weather, not a wait
        lab.coordinator.start()
        until(lambda: connected(a, b), 60, f"both come back: {a.tail()}")

    mesh, wire, sent = await lost_during(lab, weather)
    record_property(
        "figure", f"coordinator killed under traffic: {mesh} of {sent} lost, {wire} on the bare wire"
    )
    assert sent > 100
    assert mesh <= wire
    await asyncio.to_thread(joins_and_reaches_all, lab, "after-kill")


async def test_etcd_is_killed_under_traffic(lab: Lab, record_property: Callable[[str, object], None]) -> None:
    def weather() -> None:
        dead = lab.coordinator.etcd_pid()
        assert dead
        os.kill(dead, signal.SIGKILL)
        until(lambda: lab.coordinator.etcd_pid() not in (None, dead), READY_S, "the coordinator restarts etcd")
        until(lambda: "etcd 3." in lab.coordinator.command("status").stdout, READY_S, "etcd is healthy again")

    mesh, wire, sent = await lost_during(lab, weather)
    record_property("figure", f"etcd killed under traffic: {mesh} of {sent} lost, {wire} on the bare wire")
    assert mesh <= wire
    assert connected(*lab.nodes[:2])
    await asyncio.to_thread(joins_and_reaches_all, lab, "after-etcd")


def test_stream_flaps_while_a_node_joins(lab: Lab) -> None:
    """The coordinator is restarted five times in a row; the join is repeated until it goes through."""
    node, token = lab.machine("flapped"), lab.coordinator.token()
    for _ in range(5):
        join = node.begin_join(token)
        lab.coordinator.stop(signal.SIGKILL)
        lab.coordinator.start()
        assert join.wait(READY_S) in (0, 2, 6), node.tail()  # joined, joined already, or not reached
    if not (node.state / "membership").exists():
        done = node.join(token)
        assert done.returncode == 0, done.stderr
    node.up()
    others = [n.name for n in lab.nodes if n.pid and n is not node]
    until(lambda: node.proves(*others), 60, f"it proves all: {node.tail()}")
    assert [name for name in lab.coordinator.nodes() if name == "flapped"] == ["flapped"]


def test_etcd_is_compacted_and_defragmented(lab: Lab) -> None:
    """History is gone; whoever follows, resumes or joins after it still has the right map."""
    coordinator = lab.coordinator
    revision = coordinator.etcdctl("endpoint", "status", "--write-out=fields")
    last = next(line.split(":")[1].strip() for line in revision.splitlines() if line.startswith('"Revision"'))
    coordinator.etcdctl("compact", last, "--physical")
    coordinator.etcdctl("defrag")
    joins_and_reaches_all(lab, "after-compaction")
    lagging = lab.nodes[1]
    lagging.stop()
    joins_and_reaches_all(lab, "while-away")
    lagging.up()
    until(lambda: lagging.proves("while-away", "a"), READY_S, f"the node that was away follows: {lagging.tail()}")
    until(
        lambda: all(s.digest_ok for s in coordinator.nodes().values() if s.connected),
        READY_S,
        "all kernels hold the map",
    )


def test_machine_reboots_while_the_coordinator_is_gone(lab: Lab) -> None:
    """No interface, no daemon, no coordinator: the sealed map alone brings the tunnels back, proven by echo."""
    a = lab.nodes[0]
    others = [node.name for node in lab.nodes if node.pid and node is not a]
    lab.coordinator.stop()
    a.stop()
    a.drop_interface()
    assert not a.peers()
    a.up()
    until(lambda: a.proves(*others), 60, f"from the sealed map: {a.tail()}")
    assert not connected(a)
    shown = a.meshctl("status")
    assert "the mesh works on" in shown.stdout
    lab.coordinator.start()
    until(lambda: connected(*(n for n in lab.nodes if n.pid)), 60, "everybody comes back")


def test_map_on_disk_is_damaged_and_the_coordinator_is_there(lab: Lab) -> None:
    """A map that does not open is not a reason to stay down: a fresh snapshot replaces it."""
    b = lab.nodes[1]
    b.stop()
    b.drop_interface()
    path = b.state / "map"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    b.up()
    until(lambda: b.proves("a"), READY_S, f"from a fresh snapshot: {b.tail()}")
