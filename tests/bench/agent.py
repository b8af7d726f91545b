"""What does an idle agent cost? `python -m tests.bench.agent [PEERS]`: memory and CPU of one real agent with live
peers.

The agent is `meshctl up` in a namespace of its own, with a real wireguard-go, coordinator and etcd. Its peers share one
process (tests/harness/crowd.py), as a hundred agents do not fit on two cores; the agent cannot tell. CPU is what the
kernel charged to the process (utime + stime) over a quiet minute, whoever else uses the machine: once every peer has
been tried with every experiment, as it is for the rest of an agent's life. What the minute before that costs, and the
memory after /metrics was read, are printed beside it. Baselines: a Python process with the same imports and an idle
event loop, for memory; for CPU one that does nothing but wake up ten times a second in the very same minute, because
what a wake-up costs differs by half from hour to hour on shared machines.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from tests.harness.crowd import READY
from tests.harness.mesh import Lab, Machine, Node, until

SETTLED_S = 10.0  # after the last try, its last reading is still being told
TRIED_S = 3.0  # of one peer, at most; the schedule does it one after the other
QUIET_S = 60.0
WAKES = "import asyncio\nasync def main():\n    while True: await asyncio.sleep(0.1)\nasyncio.run(main())"
IDLE = "import asyncio, grpc.aio, cryptography.x509, pyroute2; asyncio.run(asyncio.sleep(30))"


def resident_mb(pid: int) -> float:
    """VmRSS."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def cpu_s(pid: int) -> Counter[str]:
    """utime, stime, and those of ended children: nft is one, twice a minute."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system, *children = (int(ticks) / os.sysconf("SC_CLK_TCK") for ticks in stat[11:15])
    return Counter({"user": user, "system": system, "children": sum(children)})


def threads_s(pid: int) -> Counter[str]:
    """CPU of the event loop's thread, and of all others together."""
    spent: Counter[str] = Counter()
    for task in Path(f"/proc/{pid}/task").iterdir():
        name = "event loop" if task.name == str(pid) else "other threads"
        spent[name] += int((task / "schedstat").read_text().split()[0]) / 1e9  # type: ignore[assignment]
    return spent


def crowd(lab: Lab, count: int) -> Machine:
    """The peers, joined and waiting."""
    machine = lab.machine("crowd")
    token = lab.directory / "crowd.token"
    token.write_text(lab.coordinator.token(uses=count))
    words = (str(machine.state), str(count), machine.address, str(token))
    machine._process = machine.spawn(sys.executable, "-m", "tests.harness.crowd", *words)
    until(lambda: READY in machine.tail() or not machine.pid, 60 + count, "the peers have joined")
    assert machine.pid, machine.tail()
    return machine


def proven(node: Node) -> int:
    """Peers whose three checks are all well."""
    return sum(peer["state"] == "ok" for peer in node.status().get("peers", []))


def untried(node: Node) -> int:
    """Peers of whom some experiment knows nothing yet."""
    return len({row["subject"] for row in node.status()["rows"] if row["subject"] and row["verdict"] == "unknown"})


def scrape(path: Path) -> None:
    """Read /metrics as a monitoring system does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(str(path))
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: agent\r\n\r\n")
        assert b"meshctl_check" in b"".join(iter(lambda: sock.recv(65536), b""))


def rest(seconds: float) -> float:
    """Leave the machine alone; how long that was."""
    begun = time.monotonic()
    time.sleep(seconds)
    return time.monotonic() - begun


def measure(pid: int) -> tuple[float, float]:
    """Print where a quiet minute went -> (share of a core, MB resident)."""
    with subprocess.Popen([sys.executable, "-c", WAKES]) as waking:
        rest(3.0)
        before, threads, idle = cpu_s(pid), threads_s(pid), threads_s(waking.pid)
        took = rest(QUIET_S)
        spent, by_thread = cpu_s(pid) - before, threads_s(pid) - threads
        waked = (threads_s(waking.pid) - idle).total() / took
        waking.kill()
    for parts in (spent, by_thread):
        print("   ", ", ".join(f"{name} {seconds / took:.2%}" for name, seconds in parts.items()))
    share = (spent["user"] + spent["system"]) / took
    print(f"baseline, ten wake-ups a second: {waked:.3%} of a core; ratio {share / waked:.1f}")
    return share, resident_mb(pid)


def main() -> None:
    """Print figures, the summary last."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    begun = time.monotonic()
    with Lab() as lab:
        peers = crowd(lab, count)
        print(f"{count} peers have joined after {time.monotonic() - begun:.0f} s", flush=True)
        agent = lab.member("measured")
        while proven(agent) < count:
            assert time.monotonic() - begun < 180 + count, f"not all are proven: {agent.tail()} {peers.tail()}"
            rest(1.0)  # each question costs the agent: it is not asked fifty times a second
        assert agent.pid
        print(f"all proven after {time.monotonic() - begun:.0f} s", flush=True)
        began, before = time.monotonic(), cpu_s(agent.pid)
        while untried(agent):
            assert time.monotonic() - began < count * TRIED_S, f"not all were tried: {agent.tail()} {peers.tail()}"
            rest(5.0)
        spent, took = cpu_s(agent.pid) - before, time.monotonic() - began
        share = spent.total() / took
        print(f"all tried with every experiment {took:.0f} s later, at {share:.1%} of a core", flush=True)
        rest(SETTLED_S)
        share, resident = measure(agent.pid)
        assert proven(agent) == count, "a peer was lost meanwhile"
        scrape(agent.config.socket)
        scraped = resident_mb(agent.pid)
    with subprocess.Popen([sys.executable, "-c", IDLE]) as bare:
        rest(3.0)
        plain = resident_mb(bare.pid)
        bare.kill()
    print(f"after /metrics was read for the first time: {scraped:.1f} MB")
    print(f"baseline, imports and an idle loop: {plain:.1f} MB; ratio {resident / plain:.2f}")
    print(f"peers {count}: {resident:.1f} MB resident, {share:.2%} of a core")


if __name__ == "__main__":
    main()
