"""Both ends of a pair start in the same instant, over and over: crossing handshakes never leave a pair dead (NET-3).

WireGuard's own two ends, initiating at once, overwrite each other's state and retry in lock-step (in 3 of 12 runs, for
good). Here the reconciler decides who begins. In each round both ends lose the session and learn of it together.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.harness.mesh import READY_S, Lab, Node, until

pytestmark = pytest.mark.root
NAMES = ("a", "b", "c", "d", "e")  # ten pairs
ROUNDS = 5  # of ten pairs each
SESSION_WITHIN_S = 10.0


@pytest.fixture(scope="module")
def mesh() -> Iterator[tuple[Node, ...]]:
    with Lab() as lab:
        yield lab.members(*NAMES)


def together(*acts: Callable[[], object]) -> None:
    """All at once, as far as a machine with few processors can."""
    gate = threading.Barrier(len(acts))
    threads = [threading.Thread(target=lambda act=act: (gate.wait(), act())) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def waiting(mesh: tuple[Node, ...], keys: dict[str, str]) -> dict[tuple[str, str], bool]:
    """Ordered pairs whose first end has no session yet, by what WireGuard itself has received since the peer is new."""
    held = {node.name: node.peers() for node in mesh}
    pairs = ((a, b) for a in keys for b in keys if a != b)
    return {(a, b): True for a, b in pairs if not ((peer := held[a].get(keys[b])) and peer.handshake and peer.rx)}


def settled(node: Node) -> bool:
    """Whether the agent has seen a session with every peer, so that the next loss is a new one to it."""
    peers = node.status().get("peers", [])
    return len(peers) == len(NAMES) - 1 and all(peer["handshake_age_s"] is not None for peer in peers)


def test_all_ends_start_at_once(mesh: tuple[Node, ...], record_property: Callable[[str, object], None]) -> None:
    """The agents sleep, all kernels lose all peers, all wake in the same instant: five times ten pairs."""
    keys = {node.name: node.key() for node in mesh}
    took: list[float] = []
    for number in range(ROUNDS):
        until(lambda: all(map(settled, mesh)), READY_S, "everybody has seen every session")
        pids = [node.pid for node in mesh if node.pid]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            for node in mesh:
                words = [word for name, key in keys.items() if name != node.name for word in ("peer", key, "remove")]
                subprocess.run(["wg", "set", node.interface, *words], check=True)
        finally:
            together(*(lambda pid=pid: os.kill(pid, signal.SIGCONT) for pid in pids))
        begun, left = time.monotonic(), set(waiting(mesh, keys))
        while left:
            assert time.monotonic() - begun < 3 * SESSION_WITHIN_S, f"round {number}: no session for {left}"
            still = set(waiting(mesh, keys))
            done = {frozenset(pair) for pair in left} - {frozenset(pair) for pair in still}
            took += [time.monotonic() - begun] * len(done)
            left = still
    worst, median = max(took), statistics.median(took)
    what = f"both ends of a pair start at once, {len(took)} times, to a session"
    record_property("figure", f"{what}: worst {worst:.2f} s, median {median:.2f} s")
    assert len(took) == ROUNDS * 10
    assert worst < SESSION_WITHIN_S


def test_all_machines_reboot_at_once(mesh: tuple[Node, ...], record_property: Callable[[str, object], None]) -> None:
    """The whole of it: agents, daemons and interfaces."""
    for node in mesh:
        node.stop()
        node.drop_interface()
    begun = time.monotonic()
    together(*(node.up for node in mesh))
    for node in mesh:
        others = set(NAMES) - {node.name}
        until(lambda node=node, others=others: node.proves(*others), READY_S, f"{node.name}: {node.tail()}")
    record_property("figure", f"five machines reboot at once: all pairs proven {time.monotonic() - begun:.2f} s later")
