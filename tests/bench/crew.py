"""The process of the simulated agents: one command per line on standard input, one JSON answer each (OPS-3).

python -m tests.bench.crew ADDRESS,... SEED-FILE tls|plain    then e.g.  {"do": "connect", "within": 60}
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

from meshctl.crypto.identity import Identity
from meshctl.mesh.token import JoinToken
from tests.bench.coordinators import Process, Seed
from tests.bench.joiner import Joiner
from tests.bench.swarm import Agent, PlainAgent, Swarm

SAMPLE = 50


def quantile(values: list[float], part: float) -> float:
    """The value below which `part` of them lie."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))] if values else float("nan")


class Lows:
    """When the slowest of some agents reached which revision."""

    def __init__(self, agents: list[Agent]) -> None:
        self._agents = random.sample(agents, min(SAMPLE, len(agents)))
        self.seen: list[tuple[float, int]] = []

    def look(self) -> None:
        low = min(agent.map.revision for agent in self._agents)
        if not self.seen or low > self.seen[-1][1]:
            self.seen.append((time.monotonic(), low))

    def lag(self, revision: int, since: float) -> float:
        """Seconds from `since` until all of them had `revision`."""
        return max(0.0, next((at for at, low in self.seen if low >= revision), float("inf")) - since)


class Crew:
    """One method per command; what it returns is printed."""

    def __init__(self, addresses: list[tuple[str, int]], seed: Seed, kind: type[Agent]) -> None:
        self.swarm = Swarm(seed.ca, seed.incarnation, addresses)
        for number, (keys, leaf) in enumerate(seed.members):
            self.swarm.agents.append(kind(self.swarm, number, Identity.from_bytes(keys), leaf))
        self.swarm.size = len(seed.members)
        self._joiners: list[Joiner] = []

    @property
    def _streams(self) -> list[Agent]:
        return [agent for agent in self.swarm.agents if not agent.left]

    def connect(self, within: float, count: int | None = None) -> dict[str, Any]:
        """The first agent fetches the map, which the others hold from then on; then all of them at once."""
        first, *others = self.swarm.agents[:count]
        if not first.welcomed:
            first.connect()
            self.swarm.loop.until(lambda: first.map.revision > 0 or isinstance(first, PlainAgent), within)
        for agent in others:
            agent.map = first.map
            agent.prepare()
        gc.collect()
        gc.freeze()
        begun = time.monotonic()
        for number, agent in enumerate(others):
            agent.connect()
            if number % 50 == 49:
                self.swarm.loop.turn(0)
        return self._wait(begun, within, len(others) + 1)

    def _wait(self, begun: float, within: float, count: int) -> dict[str, Any]:
        done = self.swarm.loop.until(lambda: self.swarm.live() >= count, within)
        after = [agent.resumed_at - begun for agent in self._streams if agent.welcomed]
        return {
            "done": done, "live": len(after), "p50": quantile(after, 0.5), "p99": quantile(after, 0.99),
            "last": max(after, default=0), "counts": dict(self.swarm.counts),
        }  # fmt: skip

    def spare(self) -> dict[str, Any]:
        """Every agent makes the TLS object of its next connection: on 5,000 machines that is nobody's waiting time."""
        for agent in self._streams:
            agent.prepare()
        return {}

    def resumed(self, since: float, within: float, count: int) -> dict[str, Any]:
        """All agents have a session that began after `since` (monotonic)."""
        agents = self._streams
        self.swarm.loop.until(lambda: all(a.welcomed and a.resumed_at > since for a in agents), within)
        return self._wait(since, 0.1, count)

    def reached(self, revision: int, within: float) -> dict[str, Any]:
        """Every agent's map is at `revision` or later -> moments on the machine's clock."""
        agents = self._streams
        at: list[float] = []

        def done() -> bool:
            at[:] = self.swarm.at.get(revision, ())
            return len(at) >= len(agents) or (self.swarm.map.revision > revision and self._all_at(revision))

        ok = self.swarm.loop.until(done, within)
        return {"done": ok, "count": len(at), "last": max(at, default=0)}

    def _all_at(self, revision: int) -> bool:
        return all(agent.map.revision >= revision for agent in self._streams)

    def prepare(self, token: str, count: int, name: str) -> dict[str, Any]:
        """Joiners with keys of their own, not started."""
        parsed, number = JoinToken.parse(token), len(self.swarm.agents)
        self._joiners = [Joiner(self.swarm, parsed, f"{name}-{n}", number + n) for n in range(count)]
        return {}

    def join(self, parallel: int, within: float) -> dict[str, Any]:
        """Run the prepared joiners, so many at a time, until everybody has everybody's entry."""
        waiting, running, joiners = list(reversed(self._joiners)), set[Joiner](), self._joiners
        before, begun = len(self.swarm.map.nodes), time.monotonic()

        def done() -> bool:
            running.difference_update([j for j in running if j.failed or (j.agent and j.agent.map.revision)])
            while waiting and len(running) < parallel:
                joiner = waiting.pop()
                running.add(joiner)
                joiner.start()
            return not waiting and not running

        self.swarm.loop.until(done, within)
        sessions = time.monotonic() - begun
        joined = [j.joined_at - j.begun for j in joiners if j.joined_at]
        goal = before + len(joined)
        self.swarm.loop.until(lambda: all(len(a.map.nodes) >= goal for a in self._streams), within)
        return {
            "took": time.monotonic() - begun, "sessions": sessions, "joined": len(joined),
            "p50": quantile(joined, 0.5), "p99": quantile(joined, 0.99),
            "failed": [j.failed for j in joiners if j.failed][:3],
            "all": all(len(a.map.nodes) >= goal for a in self._streams),
        }  # fmt: skip

    def churn(self, per_s: float, seconds: float, within: float) -> dict[str, Any]:
        """Prepared joiners join at half this rate, and as many of them leave again; then everybody agrees."""
        joiners, begun = list(reversed(self._joiners)), time.monotonic()
        started: list[Joiner] = []
        leaving: list[Agent] = []
        lows = Lows(self._streams)

        def act() -> bool:
            due = (time.monotonic() - begun) * per_s / 2
            while joiners and len(started) < due:
                started.append(joiners.pop())
                started[-1].start()
            settled = [j.agent for j in started if j.agent and j.agent.welcomed and j.agent.map.revision]
            if len(leaving) < due - per_s / 2 and len(leaving) < len(settled):  # one second behind
                leaving.append(settled[len(leaving)])
                leaving[-1].leave()
            lows.look()
            return time.monotonic() - begun > seconds

        self.swarm.loop.until(act, seconds + 5)
        acted = time.monotonic()
        self.swarm.loop.until(lambda: self._settled(acted, lows), within)
        lags = [lows.lag(j.revision, j.joined_at) for j in started if j.joined_at]
        return {
            "joins": sum(bool(j.joined_at) for j in started), "leaves": sum(a.left for a in leaving),
            "failed": [j.failed for j in started if j.failed][:3], "took": acted - begun,
            "p50": quantile(lags, 0.5), "p99": quantile(lags, 0.99), "settled": max(lags, default=0),
        }  # fmt: skip

    def _settled(self, since: float, lows: Lows) -> bool:
        lows.look()
        return time.monotonic() - since > 2.0 and self._all_at(self.swarm.map.revision)

    def track(self, seconds: float) -> dict[str, Any]:
        """Serve, and note when the slowest of some agents reached which revision."""
        lows, deadline = Lows(self._streams), time.monotonic() + seconds

        def look() -> bool:
            lows.look()
            return time.monotonic() > deadline

        self.swarm.loop.until(look, seconds + 1)
        return {"seen": lows.seen}

    def idle(self, seconds: float) -> dict[str, Any]:
        """Only serve what comes."""
        deadline = time.monotonic() + seconds
        self.swarm.loop.until(lambda: time.monotonic() > deadline, seconds + 1)
        return {"live": self.swarm.live()}

    def drop(self) -> dict[str, Any]:
        """All connections end; agents come back by their rule."""
        for agent in self._streams:
            agent.lost("dropped")
        return {}

    def mute(self, on: bool) -> dict[str, Any]:
        """Whether agents acknowledge."""
        self.swarm.mute = on
        return {}

    def figures(self) -> dict[str, Any]:
        """Counters so far."""
        frames = sum(agent.frames for agent in self.swarm.agents)
        return {
            "frames": frames, "counts": dict(self.swarm.counts), "nodes": len(self.swarm.map.nodes),
            "revision": self.swarm.map.revision, "cpu": Process(os.getpid()).cpu_s(), "now": time.monotonic(),
        }  # fmt: skip


def main(addresses: str, seed: Path, kind: str) -> None:
    """Commands until the end of standard input; agents are served in between."""
    where = [(host, int(port)) for host, _, port in (a.rpartition(":") for a in addresses.split(","))]
    crew = Crew(where, Seed.load(seed), PlainAgent if kind == "plain" else Agent)
    os.set_blocking(0, False)
    pending = b""
    while True:
        try:
            data = os.read(0, 65536)
            if not data:
                return
            pending += data
        except BlockingIOError:
            crew.swarm.loop.turn(0.002)
            continue
        while b"\n" in pending:
            line, _, pending = pending.partition(b"\n")
            words = json.loads(line)
            print(json.dumps(getattr(crew, words.pop("do"))(**words)), flush=True)


class Remote:
    """The same methods, asked from another process: `await remote.connect(within=60)`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.process = Process(process.pid)

    @classmethod
    async def start(cls, addresses: list[tuple[str, int]], seed: Path, kind: str = "tls") -> Remote:
        where = ",".join(f"{host}:{port}" for host, port in addresses)
        command = (sys.executable, "-m", "tests.bench.crew", where, str(seed), kind)
        pipe = asyncio.subprocess.PIPE
        return cls(await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, limit=1 << 24))

    def __getattr__(self, command: str) -> Any:
        async def ask(**words: Any) -> Any:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps({"do": command, **words}).encode() + b"\n")
            line = await self._process.stdout.readline()
            if not line:
                raise AssertionError(f"the agents' process ended during {command}")
            return json.loads(line)

        return ask

    async def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
