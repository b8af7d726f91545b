"""What does a rotation cost the traffic? `python -m tests.bench.rotation [--runs 10] [--rate 500] [--nodes 4]`

    --enough N    no further runs once N have lost nothing

So many nodes, every pair carries RATE packets/s each way through the tunnel and the same again over the bare wire,
which is the control; then all keys are rotated, one node after the other. Losses are those beyond the control.
The stream is one of TCP per pair at full rate; its longest silence stands beside that of a run without a rotation.
Flows are sent and counted by programs that know nothing of the product, in processes of their own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path

from tests.harness.mesh import MESHCTL, Lab, Node, until

PORT, STREAM_PORT = 40100, 40200
REPOSITORY = Path(__file__).resolve().parents[2]
FLOW, STREAM = REPOSITORY / "deploy/demo/flow.py", REPOSITORY / "tests/harness/tcp_flow.py"
WARM_S, BEFORE_S, AFTER_S, STREAM_WARM_S = 1.0, 0.5, 1.5, 3.0


class Program:
    """One of the two flow programs, in a node's namespace; ready once made."""

    def __init__(self, lab: Lab, node: Node, what: Path, *words: str) -> None:
        self._log = lab.directory / f"{what.stem}-{node.name}-{time.monotonic_ns()}.log"
        self._process = node.spawn(sys.executable, "-I", "-S", str(what), *words, log=self._log)
        until(lambda: "ready\n" in self._log.read_text(), 20, f"{what.stem} of {node.name} is ready")

    def begin(self) -> None:
        """Start sending."""
        self._process.send_signal(10)

    def end(self) -> None:
        """Ask for the report; it comes a second later."""
        self._process.terminate()

    def report(self) -> dict[str, dict[str, list[int]]]:
        """What it counted."""
        self._process.wait(20)
        found: dict[str, dict[str, list[int]]] = json.loads(self._log.read_text().splitlines()[-1])
        return found


@contextmanager
def flows(lab: Lab, rate: int) -> Iterator[tuple[list[Program], dict[str, str]]]:
    """UDP on every pair, through the tunnel and beside it."""
    mesh = {node.name: node.mesh_address() for node in lab.nodes}
    made = []
    for node in lab.nodes:
        others = [other for other in lab.nodes if other is not node]
        inner, outer = ",".join(mesh[o.name] for o in others), ",".join(o.address for o in others)
        words = str(rate), str(PORT), f"{mesh[node.name]}={inner}", f"{node.address}={outer}"
        made.append(Program(lab, node, FLOW, *words))
    for program in made:
        program.begin()
    try:
        yield made, mesh
    finally:
        for program in made:
            program.end()


def rotate(lab: Lab) -> tuple[float, dict[str, object]]:
    """Rotate all -> seconds it took, the state after it."""
    begun = time.monotonic()
    where = ("--data-dir", str(lab.coordinator.data))
    done = lab.coordinator.run(*MESHCTL, "keys", "rotate", "--all", "--wait", "--timeout", "80s", *where)
    took = time.monotonic() - begun
    if done.returncode:
        print(done.stdout, done.stderr)
    state = json.loads(lab.coordinator.run(*MESHCTL, "keys", "status", "--json", *where).stdout)
    return took, state


def pause(seconds: float) -> None:
    """Let traffic flow."""
    until_at = time.monotonic() + seconds
    until(lambda: time.monotonic() >= until_at, seconds + 5, "time passes")


def lost(reports: list[dict[str, dict[str, list[int]]]], mesh: dict[str, str]) -> tuple[int, int, int, int]:
    """(lost through the tunnel, sent; lost on the bare wire, longest silence in the tunnel in ms)."""
    received = {name: seen for report in reports for name, seen in report["received"].items()}
    counts, silence = [0, 0, 0], 0
    for name, count in ((n, c) for report in reports for n, c in report["sent"].items()):
        arrived, _, gap = received.get(name, [0, 0, 0])
        inner = name.partition(">")[0] in mesh.values()
        counts[0 if inner else 2] += int(count) - arrived  # type: ignore[call-overload]
        counts[1] += int(count) if inner else 0  # type: ignore[call-overload]
        silence = max(silence, gap if inner else 0)
    return counts[0], counts[1], counts[2], silence


def once(lab: Lab, rate: int) -> tuple[int, float, float]:
    """One run: packets lost beyond the control, gap p50 and worst in ms."""
    with flows(lab, rate) as (programs, mesh):  # warm-up: neighbours, sessions, the programs themselves
        pause(WARM_S)
    for program in programs:
        program.report()
    with flows(lab, rate) as (programs, mesh):
        pause(BEFORE_S)
        took, state = rotate(lab)
        pause(AFTER_S)
    dropped, sent, control, silence = lost([program.report() for program in programs], mesh)
    gap: dict[str, float] = state["gap"]  # type: ignore[assignment]
    print(
        f"  {state['done']} keys in {took:.1f} s: lost {dropped} of {sent} (control {control}), longest silence "
        f"{silence} ms; gap p50 {gap['p50'] * 1e3:.0f} ms, worst {gap['worst'] * 1e3:.0f} ms",
        flush=True,
    )
    return max(dropped - control, 0), gap["p50"] * 1e3, gap["worst"] * 1e3


def stream(lab: Lab, pair: tuple[Node, Node], *, rotating: bool) -> tuple[int, int, float]:
    """TCP at full rate on one pair while all keys are rotated -> longest silence in ms, broken or not, Mbit/s."""
    mesh = {node.name: node.mesh_address() for node in pair}
    made = []
    for node in sorted(pair, key=lambda n: mesh[n.name], reverse=True):  # who only listens comes first
        other = mesh[pair[node is pair[0]].name]
        made.append(Program(lab, node, STREAM, mesh[node.name], str(STREAM_PORT), other))
    begun = time.monotonic()
    pause(STREAM_WARM_S)
    if rotating:
        rotate(lab)
    else:
        pause(1.5)
    pause(1.0)
    for program in made:
        program.end()
    took = time.monotonic() - begun
    (held,) = (held for program in made for held in program.report().values())
    size, silence, broken = map(int, held)  # type: ignore[call-overload]
    return silence, broken, size * 8e-6 / took


def summary(found: list[tuple[int, float, float]], rate: int, nodes: int) -> None:
    """Of all runs."""
    clean, p50 = sum(lost == 0 for lost, *_ in found), sorted(run[1] for run in found)[len(found) // 2]
    print(f"UDP, {rate}/s on {nodes * (nodes - 1)} directions: nothing lost beyond the control in {clean} of "
          f"{len(found)} runs; gap p50 {p50:.0f} ms, worst {max(run[2] for run in found):.0f} ms", flush=True)


def main() -> None:
    """Print each run and the summaries."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("runs", 10), ("rate", 500), ("nodes", 4)):
        flags.add_argument(f"--{name}", type=int, default=value)
    flags.add_argument("--enough", type=int, help="stop once so many runs have lost nothing")
    flags.add_argument("--udp-only", action="store_true", help="no TCP streams")
    given = flags.parse_args()
    with Lab() as lab:
        lab.members(*"abcdefgh"[: given.nodes])
        found: list[tuple[int, float, float]] = []
        while len(found) < given.runs and sum(not lost for lost, *_ in found) != given.enough:
            found.append(once(lab, given.rate))
        summary(found, given.rate, given.nodes)
        if given.udp_only:
            return
        pairs = list(combinations(lab.nodes, 2))
        still = [stream(lab, pair, rotating=False) for pair in pairs]
        moving = [stream(lab, pair, rotating=True) for pair in pairs]
    for words, rows in (("without", still), ("with", moving)):
        print(f"TCP, one stream per pair at full rate, {words} a rotation: longest silence per pair "
              f"{', '.join(str(row[0]) for row in rows)} ms; {sum(row[1] for row in rows)} broken; "
              f"{sum(row[2] for row in rows) / len(rows):.0f} Mbit/s")


if __name__ == "__main__":
    try:
        main()
    except subprocess.SubprocessError as error:
        raise SystemExit(str(error)) from error
