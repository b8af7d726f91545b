"""What do renewed pre-shared keys cost the traffic? `python -m tests.bench.psk [--seconds 150] [--rate 200]`

So many nodes, every pair carries RATE packets/s each way through the tunnel and the same again over the bare wire,
which is the control; all pairs renew their keys every PERIOD seconds meanwhile. A session is renewed after 120 s, so a
run of 150 s has a handshake with a renewed key on every pair. Losses are those beyond the control.
"""

from __future__ import annotations

import argparse
import subprocess
import time
from itertools import combinations

from meshctl.agent.store import Store
from tests.bench.rotation import WARM_S, flows, lost, pause
from tests.harness.mesh import READY_S, Lab, Node, until


def versions(lab: Lab) -> dict[tuple[str, str], int]:
    """What each node says of each other."""
    return {
        (node.name, peer["name"]): peer["psk"]["version"] if peer["psk"] else 0
        for node in lab.nodes
        for peer in node.status().get("peers", [])
    }


def handshakes(lab: Lab, since: float) -> int:
    """Directions whose last handshake is younger than `since` (unix seconds)."""
    return sum(peer.handshake > since for node in lab.nodes for peer in node.peers().values())


def proofs(lab: Lab) -> int:
    """The sum of all versions that a handshake has proven, as they stand on the disks."""
    return sum(bunch.good for node in lab.nodes for bunch in Store(node.state).bunches().values())


def members(lab: Lab, names: str, period_s: float) -> None:
    """Agents that renew so often, agreed pair by pair."""
    for name in names:
        node = lab.machine(name)
        node.environment["MESHCTL_PSK_RENEW_S"] = str(period_s)
        done = node.join(lab.coordinator.token())
        assert done.returncode == 0, done.stderr
        node.up()
    pairs = len(names) * (len(names) - 1)
    until(lambda: len(found := versions(lab)) == pairs and all(found.values()), 2 * READY_S, "all pairs agree")


def same(one: Node, other: Node) -> bool:
    """Whether two kernels have the same key for each other."""

    def held(node: Node, peer: Node) -> str:
        lines = node.run("wg", "show", node.interface, "preshared-keys").stdout.split("\n")
        return dict(line.split("\t") for line in lines if line).get(peer.key(), "(none)")

    return held(one, other) == held(other, one) != "(none)"


def main() -> None:
    """Print the figures."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("seconds", 150), ("rate", 200), ("nodes", 4), ("period", 10)):
        flags.add_argument(f"--{name}", type=int, default=value)
    given = flags.parse_args()
    with Lab() as lab:
        members(lab, "abcdefgh"[: given.nodes], given.period)
        with flows(lab, given.rate) as (programs, mesh):  # warm-up
            pause(WARM_S)
        for program in programs:
            program.report()
        begun, before, proven = time.time(), versions(lab), proofs(lab)
        with flows(lab, given.rate) as (programs, mesh):
            pause(given.seconds)
        after = versions(lab)
        dropped, sent, control, silence = lost([program.report() for program in programs], mesh)
        renewed = [after[pair] - before[pair] for pair in before]
        agree = sum(same(one, other) for one, other in combinations(lab.nodes, 2))
        print(
            f"{given.nodes} nodes, {given.seconds} s, {given.rate} packets/s on {len(renewed)} directions: lost "
            f"{dropped} of {sent} (control {control}), longest silence {silence} ms; renewed {min(renewed)} to "
            f"{max(renewed)} times per pair; handshakes since the start on {handshakes(lab, begun)} of {len(renewed)} "
            f"ends, proven versions up by {proofs(lab) - proven}; {agree} of {len(renewed) // 2} pairs hold the same"
        )


if __name__ == "__main__":
    try:
        main()
    except subprocess.SubprocessError as error:
        raise SystemExit(str(error)) from error
