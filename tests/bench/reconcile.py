"""What a pass costs when nothing has changed, and what a whole roster costs when it is new.

    python tests/bench/reconcile.py [userspace|kernel] [PEERS ...]

One line per size, in milliseconds (best of the rounds, as machines are shared). `raw` is the baseline of the same run:
asking WireGuard and throwing the answer away. A pass is observe + diff + digest. Needs root; makes its own namespace.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from meshctl.agent.device import HostDevice, open_device
from meshctl.agent.userspace import transact
from meshctl.mesh.interface import digest
from meshctl.mesh.plan import diff
from tests.harness.ground import desired, peer
from tests.harness.netns import Namespace, unique

ROUNDS = 15


async def _best(work: Callable[[], Awaitable[object]]) -> float:
    took = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        await work()
        took.append(time.perf_counter() - start)
    return min(took) * 1000


async def measure(kind: str, peers: int) -> str:
    """One line of figures."""
    device = await open_device(unique(), kind)  # type: ignore[arg-type]
    assert isinstance(device, HostDevice)
    try:
        want = desired(device.name, *map(peer, range(peers)))
        start = time.perf_counter()
        await device.apply_all(diff(None, want))
        new = (time.perf_counter() - start) * 1000
        await device.observe()

        async def observe() -> None:
            await device.observe()

        async def one_pass() -> None:
            seen = (await device.observe()).interface
            assert seen is not None
            assert diff(seen, want) == ()
            digest(seen.peers.values())

        async def raw() -> None:
            await (transact(device.name, "get=1\n\n") if kind == "userspace" else _dump(device))

        baseline, observing, whole = await _best(raw), await _best(observe), await _best(one_pass)
        return (
            f"{kind} {peers} peers: new roster {new:.0f} ms; no change: raw {baseline:.1f}, observe {observing:.1f}, "
            f"pass {whole:.1f} ms ({whole / baseline:.1f} x raw)"
        )
    finally:
        with contextlib.suppress(Exception):
            await device.destroy()


async def _dump(device: HostDevice) -> None:
    from meshctl.agent.kernel import KernelWireGuard

    assert isinstance(device.wireguard, KernelWireGuard)
    await device.wireguard.dump()


def main() -> None:
    """Print the figures."""
    kind, *sizes = sys.argv[1:] or ["userspace"]
    for size in map(int, sizes or ["100", "1000"]):
        with Namespace() as ns, ns.entered():
            print(asyncio.run(measure(kind, size)), flush=True)


if __name__ == "__main__":
    main()
