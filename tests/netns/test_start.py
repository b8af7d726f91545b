"""Both ends of a pair start in the same instant, over and over: crossing handshakes never leave a pair dead (NET-3).

WireGuard's own two ends, initiating at once, overwrite each other's state and retry in lock-step (in 3 of 12 runs, for good). Here
the reconciler's order decides who begins. Each round both ends lose the pair's session and learn of it at the same moment.
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
ROUNDS = 50
SESSION_WITHIN_S = 10.0


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Node, Node]]:
    with Lab() as lab:
        a, b = lab.members("a", "b")
        yield a, b


def together(*acts: Callable[[], object]) -> None:
    """All at once, as far as a machine with few processors can."""
    gate = threading.Barrier(len(acts))
    threads = [threading.Thread(target=lambda act=act: (gate.wait(), act())) for act in acts]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def session(node: Node, key: str) -> bool:
    """Whether WireGuard itself has received something in a session of this pair since the peer was put in anew."""
    peer = node.peers().get(key)
    return peer is not None and peer.handshake > 0 and peer.rx > 0


def test_both_ends_start_at_once(pair: tuple[Node, Node], record_property: Callable[[str, object], None]) -> None:
    """Both agents sleep, both kernels lose the peer, both wake in the same instant: 50 times."""
    keys = {node: node.key() for node in pair}
    a, b = pair
    took = []
    for number in range(ROUNDS):
        for node in pair:
            assert node.pid
            os.kill(node.pid, signal.SIGSTOP)
        try:
            for node, other in (pair, pair[::-1]):
                subprocess.run(["wg", "set", node.interface, "peer", keys[other], "remove"], check=True)
        finally:
            together(*(lambda node=node: os.kill(node.pid, signal.SIGCONT) for node in pair))  # type: ignore[misc]
        begun = time.monotonic()
        until(
            lambda: session(a, keys[b]) and session(b, keys[a]), SESSION_WITHIN_S + 5,
            f"round {number}: a session; {a.peers()} {b.peers()}",
        )  # fmt: skip
        took.append(time.monotonic() - begun)
    worst, median = max(took), statistics.median(took)
    record_property("figure", f"both ends start at once, {ROUNDS} times: worst {worst:.2f} s, median {median:.2f} s to a session")
    assert worst < SESSION_WITHIN_S


def test_both_machines_reboot_at_once(pair: tuple[Node, Node], record_property: Callable[[str, object], None]) -> None:
    """The whole of it, agents, daemons and interfaces: fewer times, because it takes longer."""
    took = []
    for _ in range(3):
        for node in pair:
            node.stop()
            node.drop_interface()
        begun = time.monotonic()
        together(*(node.up for node in pair))
        until(lambda: pair[0].proves("b") and pair[1].proves("a"), READY_S, f"proven again: {pair[0].tail()}")
        took.append(time.monotonic() - begun)
    record_property("figure", f"both machines reboot at once, 3 times: worst {max(took):.2f} s to an echo, agent start included")
