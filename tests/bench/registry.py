"""What sealing and the adapter cost: python -m tests.bench.registry [RECORDS]. Prints one line per figure (OPS-3).

Raw is the same adapter with unsealed values, on the same etcd, so the ratio is what sealing costs.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

from coordinator.etcd import EtcdRegistry
from coordinator.keyring import FileKek, Keyring, SealedRegistry
from coordinator.registry import NODES, ROOT, Committed, Put, Registry
from meshctl.crypto import sealing
from tests.harness.etcd import RealEtcd

VALUE = os.urandom(300)  # about a record
CLIENTS = 32
ROUNDS = 3  # best of


def crypto() -> None:
    """Microseconds to seal and to open one record."""
    key, turns = sealing.new_key(), 20_000
    sealed = sealing.seal(key, 1, NODES + "x" * 24, 1, VALUE)
    begin = time.perf_counter()
    for _ in range(turns):
        sealing.seal(key, 1, NODES + "x" * 24, 1, VALUE)
    middle = time.perf_counter()
    for _ in range(turns):
        sealing.open_(key, NODES + "x" * 24, sealed, generation=1)
    end = time.perf_counter()
    seal, open_ = (1e6 * spent / turns for spent in (middle - begin, end - middle))
    print(f"seal {seal:.1f} us   open {open_:.1f} us   per {len(VALUE)}-byte record")


async def commits(registry: Registry, prefix: str, count: int) -> float:
    """Commits per second by CLIENTS concurrent clients, two puts and compares in each."""

    async def client(number: int) -> None:
        for n in range(number, count, CLIENTS):
            done = await registry.commit(Put(f"{prefix}a/{n:06}", VALUE, 0), Put(f"{prefix}b/{n:06}", VALUE, 0))
            assert isinstance(done, Committed)

    begin = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    return count / (time.perf_counter() - begin)


async def listing(registry: Registry, prefix: str, count: int) -> float:
    """Milliseconds to list `count` records, best of ROUNDS."""
    best = float("inf")
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        records, _ = await registry.list(f"{prefix}a/")
        best = min(best, 1e3 * (time.perf_counter() - begin))
        assert len(records) == count
    return best


async def main(count: int) -> None:
    """Both registries on one etcd with mutual TLS."""
    crypto()
    with tempfile.TemporaryDirectory() as directory, RealEtcd(Path(directory) / "etcd") as etcd:
        kek = FileKek(Path(directory) / "kek")
        kek.create()
        raw = await EtcdRegistry.connect(etcd.address)
        sealed = SealedRegistry(raw, await Keyring.create(raw, kek))
        rates: dict[str, float] = {}
        times: dict[str, float] = {}
        for name, registry in (("raw", raw), ("sealed", sealed)):
            rates[name] = await commits(registry, f"{ROOT}bench/{name}/", count)
            times[name] = await listing(registry, f"{ROOT}bench/{name}/", count)
            print(f"{name:6} {rates[name]:6.0f} commits/s ({CLIENTS} clients)   list of {count}: {times[name]:.0f} ms")
        ratios = f"commits {rates['sealed'] / rates['raw']:.2f}   list {times['sealed'] / times['raw']:.2f}"
        print(f"sealed to raw: {ratios}")
        await raw.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000))
