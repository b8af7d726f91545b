"""How long from pressing return on `meshctl join` to the first verified tunnel? `python -m tests.bench.join [JOINS]`

Real tokens, TLS, etcd and wireguard-go, a new namespace and a new process each time, into a mesh of three. The
baseline in the same run is a Python process that imports what the agent needs (grpc, cryptography) and ends.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from tests.harness.mesh import MESHCTL, Lab, until

PROVEN = b"first tunnel verified"


def once(lab: Lab, number: int) -> float:
    """Seconds from starting the process to the line that says so."""
    node = lab.machine(f"new-{number}")
    token = lab.directory / f"token-{number}"
    token.write_text(lab.coordinator.token())
    own = ("--state-dir", str(node.state), "--interface", node.interface, "--name", node.name)
    begun = time.perf_counter()
    node._process = node.spawn(*MESHCTL, "join", f"@{token}", *own, "--up")
    until(lambda: node.log.exists() and PROVEN in node.log.read_bytes(), 30, f"{node.name} is proven: {node.tail()}")
    took = time.perf_counter() - begun
    node.stop()
    lab.coordinator.revoke(node.name)
    return took


def baseline() -> float:
    """Seconds for a process that only imports."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import grpc.aio, cryptography.x509, pyroute2"], check=True)
    return time.perf_counter() - begun


def main() -> None:
    """Print each figure, the summary last."""
    joins = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with Lab() as lab:
        lab.members("a", "b", "c")
        took = [once(lab, number) for number in range(joins)]
        bare = statistics.median(baseline() for _ in range(5))
    print("joins, seconds:", " ".join(f"{seconds:.2f}" for seconds in took))
    p50 = statistics.median(took)
    print(f"return to first verified tunnel, {joins} joins: p50 {p50:.2f} s, worst {max(took):.2f} s")
    print(f"imports alone {bare:.2f} s; a join is {p50 / bare:.1f} times that")


if __name__ == "__main__":
    main()
