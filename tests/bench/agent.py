"""What does an idle agent cost? `python -m tests.bench.agent [PEERS]`: memory and CPU of one real agent with live
peers.

Every peer is a real agent with a real wireguard-go in a namespace of its own; the one measured is the first. CPU is
what the kernel charged to the process (utime + stime) over a quiet minute. The baseline is a Python process with the
same imports and an idle event loop.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.harness.mesh import Lab, Node, until

QUIET_S = 60.0
IDLE = "import asyncio, grpc.aio, cryptography.x509, pyroute2; asyncio.run(asyncio.sleep(30))"


def resident_mb(pid: int) -> float:
    """VmRSS."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def cpu_s(pid: int) -> float:
    """utime + stime."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


def agent_pid(node: Node) -> int:
    """The agent itself: `ip netns exec` becomes it."""
    assert node.pid
    return node.pid


def add(lab: Lab, number: int) -> None:
    """One more member. A hundred agents share this machine: a join that times out is repeated, as a person would."""
    node = lab.machine(f"n{number:03d}")
    for _ in range(10):
        done = node.join(lab.coordinator.token(), "--health-listen", "")
        if done.returncode == 0:
            return node.up()
    raise SystemExit(done.stderr)


def main() -> None:
    """Print figures, the summary last."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    begun = time.monotonic()
    with Lab() as lab:
        for number in range(count + 1):
            add(lab, number)
            if number % 10 == 0:
                print(f"{number + 1} agents after {time.monotonic() - begun:.0f} s", flush=True)
        first = lab.nodes[0]
        until(lambda: len(first.peers()) == count, 120, "the first agent holds all peers")
        until(lambda: sum(p["state"] == "ok" for p in first.status().get("peers", [])) == count, 300, "all are proven")
        pid = agent_pid(first)
        before, at = cpu_s(pid), time.monotonic()
        until(lambda: time.monotonic() - at >= QUIET_S, QUIET_S + 5, "a quiet minute")
        share = (cpu_s(pid) - before) / (time.monotonic() - at)
        resident = resident_mb(pid)
        print(f"peers {count}: {resident:.1f} MB resident, {share:.2%} of a core")
    bare = subprocess.Popen([sys.executable, "-c", IDLE])
    time.sleep(3)
    plain = resident_mb(bare.pid)
    print(f"baseline, imports and an idle loop: {plain:.1f} MB; ratio {resident / plain:.2f}")
    bare.kill()
    bare.wait()


if __name__ == "__main__":
    main()
