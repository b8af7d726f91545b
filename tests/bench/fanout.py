"""How a change reaches thousands of agents (OPS-3): `python -m tests.bench.fanout N [--only PART,...]`.

A real coordinator with its etcd as processes of their own; N simulated agents, each with a TLS connection through the
front, in another; and in the same run the same fan-out over bare grpc.aio with its own TLS and over plain sockets, so
that what we add is a ratio. Prints figures, judges nothing.

Parts: connect (always), idle, changes, joins, storm, churn, restart, bare.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from meshctl.crypto.identity import Identity
from meshctl.mesh import pacing
from tests.bench.coordinators import Changer, Coordinator, Process, Seed, busy_s
from tests.bench.crew import Remote, quantile

PARTS = ("idle", "changes", "joins", "storm", "churn", "restart", "bare")
ROUNDS = 5  # CPU per stream is the median of so many
CHANGES = 40  # per round
BARE_CHANGES = 10
MUTE_CHANGES = 8  # per round, agents acknowledge nothing
JOINS = STORM = 200
STORMS = 3
AT_A_TIME = 8
CHURN_PER_S, CHURN_S = 100.0, 10.0
IDLE_S = 20.0
WITHIN_S = 120.0
BARE_PORT = 21449

Change = Callable[[], Awaitable[tuple[int, float]]]


def show(what: str, figure: str) -> None:
    print(f"{what:58} {figure}", flush=True)


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms"


class Cost:
    """CPU of the serving processes between two moments."""

    def __init__(self, *processes: Process) -> None:
        self._processes = processes
        self._begun = self._now()

    def _now(self) -> float:
        return sum(process.cpu_s() for process in self._processes)

    def spent(self) -> float:
        return self._now() - self._begun


async def rounds(
    agents: Remote, servers: list[Process], change: Change, streams: int, count: int
) -> tuple[list[float], list[float], float, float]:
    """ROUNDS times `count` changes -> (lag of the last agent, us of CPU per stream by round, frames, reports)."""
    settle = 0.15 + pacing.report_within_s(streams)
    lags, cpu = [], []
    before = await agents.figures()
    for _ in range(ROUNDS):
        cost = Cost(*servers)
        for _ in range(count):
            revision, at = await change()
            seen = await agents.reached(revision=revision, within=WITHIN_S)
            assert seen["done"], seen
            lags.append(seen["last"] - at)
            await agents.idle(seconds=settle)
        cpu.append(cost.spent() / count / streams * 1e6)
    after, each = await agents.figures(), ROUNDS * count * streams
    reports = after["counts"].get("reports", 0) - before["counts"].get("reports", 0)
    return lags, cpu, (after["frames"] - before["frames"]) / each, reports / each


async def fan_out(what: str, agents: Remote, servers: list[Process], change: Change, streams: int, count: int) -> None:
    """Latency and cost, with acknowledgements and without."""
    lags, cpu, frames, reports = await rounds(agents, servers, change, streams, count)
    latency = f"p50 {ms(quantile(lags, 0.5))}, p99 {ms(quantile(lags, 0.99))}, max {ms(max(lags))}"
    show(f"{what}: commit to the last of {streams}, {len(lags)} changes", latency)
    shown = " ".join(f"{one:.0f}" for one in cpu)
    show(f"{what}: CPU per stream and change, acknowledged", f"{statistics.median(cpu):.0f} us ({shown})")
    await agents.mute(on=True)
    quiet, alone, *_ = await rounds(agents, servers, change, streams, MUTE_CHANGES)
    await agents.mute(on=False)
    shown = " ".join(f"{one:.0f}" for one in alone)
    show(f"{what}: CPU per stream and change, one way", f"{statistics.median(alone):.0f} us ({shown})")
    latency = f"p50 {ms(quantile(quiet, 0.5))}, p99 {ms(quantile(quiet, 0.99))}"
    show(f"{what}: the same without acknowledgements", latency)
    show(f"{what}: frames and reports per stream and change", f"{frames:.2f} down, {reports:.2f} up")


async def join(
    what: str, agents: Remote, servers: list[Process], token: str, streams: int, count: int, parallel: int
) -> int:
    """Agents join a mesh of `streams` -> how many did."""
    await agents.prepare(token=token, count=count, name=f"join-{streams}")
    cost, theirs, frames = Cost(*servers), Cost(agents.process), (await agents.figures())["frames"]
    seen = await agents.join(parallel=parallel, within=WITHIN_S)
    frames = ((await agents.figures())["frames"] - frames) / (streams + seen["joined"])
    show(
        f"{what}: {count} joins, {parallel} at a time, into {streams}",
        f"all have all after {seen['took']:.2f} s, {seen['joined'] / seen['sessions']:.0f} joins/s, "
        f"p50 {ms(seen['p50'])}, p99 {ms(seen['p99'])}, failed {seen['failed'] or 0}, "
        f"{frames:.1f} frames/stream, CPU each {cost.spent() / count * 1e3:.1f} ms, "
        f"of the agents' process {theirs.spent() / count * 1e3:.1f} ms",
    )
    assert seen["all"], seen
    await agents.idle(seconds=2)
    return int(seen["joined"])


class Bench:
    """The parts, one method each."""

    def __init__(
        self, coordinators: list[Coordinator], agents: Remote, seed: Seed, changer: Changer, count: int
    ) -> None:
        self.coordinators, self.agents, self.changer, self.count = coordinators, agents, changer, count
        self.streams = len(seed.members)
        self._nodes = [Identity.from_bytes(keys).id for keys, _ in seed.members[:500]]
        self._next = 0

    @property
    def servers(self) -> list[Process]:
        return [coordinator.process for coordinator in self.coordinators]

    async def change(self) -> tuple[int, float]:
        self._next += 1
        return await self.changer.move(self._nodes[self._next % len(self._nodes)])

    async def alone(self, part: str) -> None:
        """One part; says so when other programs had much of the machine meanwhile."""
        ours = Cost(*self.servers, self.coordinators[0].etcd(), self.agents.process, Process(os.getpid()))
        busy, begun = busy_s(), time.monotonic()
        await getattr(self, part)()
        if part != "restart":  # whose processes are others
            others = (busy_s() - busy - ours.spent()) / (time.monotonic() - begun)
            show(f"({part}: all else on this machine", f"{others * 100:.0f} % of a core)")

    async def connect(self) -> None:
        before, cost = sum(p.resident_kb() for p in self.servers), Cost(*self.servers)
        seen = await self.agents.connect(within=WITHIN_S)
        lost = {why: n for why, n in seen["counts"].items() if why.startswith("lost")}
        show(f"{self.streams} at once", f"{seen['last']:.1f} s, {seen['live']} live, attempts that failed: {lost or 0}")
        show("CPU per connection", f"{cost.spent() / self.streams * 1e3:.2f} ms")
        await self.agents.idle(seconds=12)  # longer than a heartbeat: what follows are sessions that lasted
        grown = sum(p.resident_kb() for p in self.servers) - before
        show("resident per agent", f"{grown / self.streams:.0f} kB, all {(grown + before) / 1024:.0f} MB")
        show("descriptors", ", ".join(str(process.descriptors()) for process in self.servers))

    async def idle(self) -> None:
        etcd = self.coordinators[0].etcd()
        cost, other = Cost(*self.servers), Cost(etcd)
        await self.agents.idle(seconds=IDLE_S)
        show("idle", f"{cost.spent() / IDLE_S * 100:.2f} % of a core (etcd {other.spent() / IDLE_S * 100:.2f} %)")

    async def changes(self) -> None:
        await fan_out("coordinator", self.agents, self.servers, self.change, self.streams, self.count)

    async def _join(self, what: str, count: int, parallel: int) -> None:
        token = (await self.changer.token(count)).text()
        self.streams += await join(what, self.agents, self.servers, token, self.streams, count, parallel)

    async def joins(self) -> None:
        await self._join("joins", JOINS, AT_A_TIME)

    async def storm(self) -> None:
        for _ in range(STORMS):
            await self._join("storm", STORM, STORM)

    async def churn(self) -> None:
        await self._churn_endpoints()
        count = int(CHURN_PER_S * CHURN_S / 2) + 50
        token = await self.changer.token(count)
        await self.agents.prepare(token=token.text(), count=count, name=f"churn-{self.streams}")
        cost = Cost(*self.servers)
        seen = await self.agents.churn(per_s=CHURN_PER_S, seconds=CHURN_S, within=WITHIN_S)
        self.streams += seen["joins"] - seen["leaves"]
        show(
            f"churn, joins and leaves: {seen['joins']} and {seen['leaves']} in {seen['took']:.1f} s",
            f"p50 {ms(seen['p50'])}, p99 {ms(seen['p99'])}, failed {seen['failed'] or 0}, "
            f"{cost.spent() / seen['took'] * 100:.0f} % of a core",
        )
        await self.agents.idle(seconds=12)

    async def _churn_endpoints(self) -> None:
        cost, frames = Cost(*self.servers), (await self.agents.figures())["frames"]
        seen = asyncio.ensure_future(self.agents.track(seconds=CHURN_S + 5))
        begun, made = time.monotonic(), []

        async def one(at: float) -> None:
            await asyncio.sleep(begun + at - time.monotonic())
            made.append(await self.change())

        await asyncio.gather(*(one(n / CHURN_PER_S) for n in range(int(CHURN_PER_S * CHURN_S))))
        took = time.monotonic() - begun
        spent = cost.spent()
        lows = (await seen)["seen"]
        lags = [next((at for at, low in lows if low >= revision), float("inf")) - since for revision, since in made]
        frames = ((await self.agents.figures())["frames"] - frames) / self.streams
        show(
            f"churn, endpoints: {len(made) / took:.0f} changes/s for {took:.0f} s",
            f"p50 {ms(quantile(lags, 0.5))}, p99 {ms(quantile(lags, 0.99))}, {frames:.0f} frames/stream, "
            f"{spent / took * 100:.0f} % of a core",
        )

    async def restart(self) -> None:
        await self.agents.spare()
        before, since = (await self.agents.figures())["counts"], time.monotonic()
        for coordinator in self.coordinators:
            coordinator.stop()
        down = time.monotonic() - since
        for coordinator in self.coordinators:
            coordinator.spawn()
            await coordinator.ready()
        up = time.monotonic() - since
        seen = await self.agents.resumed(since=since, within=WITHIN_S, count=self.streams)
        maps = seen["counts"].get("snapshots", 0) - before.get("snapshots", 0)
        show(
            f"restart of the coordinator under {self.streams}",
            f"{seen['last']:.1f} s until all have resumed (p50 {seen['p50']:.1f}), {seen['live']} live, "
            f"{maps} maps moved; it was gone after {down:.1f} s and served again after {up:.1f} s",
        )
        lost = {why: n - before.get(why, 0) for why, n in seen["counts"].items() if why.startswith("lost")}
        show("losses and failed attempts in between", str(lost))
        revision, at = await self.change()
        told = await self.agents.reached(revision=revision, within=WITHIN_S)
        show("the first change after it", ms(told["last"] - at))


async def bare(kind: str, count: int, directory: Path) -> None:
    """The baseline: the same agents, no coordinator."""
    command = (sys.executable, "-m", "tests.bench.bare", kind, str(BARE_PORT), str(directory))
    pipe = asyncio.subprocess.PIPE
    with (directory / f"{kind}.log").open("wb") as log:
        server = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=log)

    async def ask(words: str) -> list[str]:
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(f"{words}\n".encode())
        return (await server.stdout.readline()).decode().split()

    async def change() -> tuple[int, float]:
        revision, at = await ask("change")
        return int(revision), float(at)

    try:
        await ask(f"members {count}")
        agents = await Remote.start([("127.0.0.1", BARE_PORT)], directory / "bare", kind)
        try:
            seen = await agents.connect(within=WITHIN_S)
            assert seen["live"] == count, seen
            await ask("freeze")
            await agents.idle(seconds=2)
            servers, streams = [Process(server.pid)], count
            await fan_out(f"bare {kind}", agents, servers, change, count, BARE_CHANGES)
            for _ in range(STORMS if kind == "grpc" else 0):
                (token,) = await ask("token")
                streams += await join(f"bare {kind} storm", agents, servers, token, streams, STORM, STORM)
        finally:
            await agents.stop()
    finally:
        assert server.stdin is not None
        server.stdin.close()
        await server.wait()


async def coordinator_parts(count: int, parts: list[str], replicas: int, changes: int, directory: Path) -> None:
    """Everything that is measured on the real one."""
    coordinators = [Coordinator(directory / f"co{number}", number) for number in range(replicas)]
    coordinators[0].found()
    seed = await coordinators[0].seed(count)
    seed.save(directory / "seed")
    try:
        for coordinator in coordinators:
            coordinator.follow(coordinators[0])
            coordinator.spawn()
            await coordinator.ready()
        agents = await Remote.start([coordinator.address for coordinator in coordinators], directory / "seed")
        try:
            async with coordinators[0].registry() as (registry, authority):
                bench = Bench(coordinators, agents, seed, Changer(registry, authority), changes)
                for part in ("connect", *parts):
                    await bench.alone(part)
        finally:
            await agents.stop()
    finally:
        for coordinator in reversed(coordinators):
            coordinator.stop()


async def main() -> None:
    """Run the parts asked for, in their order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("agents", type=int)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--coordinators", type=int, default=1)
    parser.add_argument("--changes", type=int, default=CHANGES, help="per round, of five")
    given = parser.parse_args()
    parts = [part for part in PARTS if part in given.only.split(",")]
    show("agents", f"{given.agents}, coordinators {given.coordinators}")
    with tempfile.TemporaryDirectory() as name:
        real = [part for part in parts if part != "bare"]
        if real or "bare" not in parts:
            await coordinator_parts(given.agents, real, given.coordinators, given.changes, Path(name))
        if "bare" in parts:
            for kind in ("grpc", "plain"):
                await bare(kind, given.agents, Path(name))


if __name__ == "__main__":
    asyncio.run(main())
