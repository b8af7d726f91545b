"""Reads what nodes say of their health, several times a second, and remembers which findings were open when (NET-7).

It asks each agent for the picture that `meshctl health --mesh --json` prints, and nothing else. Times are monotonic.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.harness.mesh import Node

EVERY_S = 0.15
Key = tuple[str, str, str]  # who says it, code, name of the peer or nothing


@dataclass
class Seen:
    """A finding, from when until when it was open, and the worst it was."""

    key: Key
    opened: float
    severity: str
    evidence: str
    closed: float | None = None
    failed: float | None = None  # since when more than degraded


class Watch:
    """Use as a context manager; `seen` is everything so far."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.seen: list[Seen] = []
        self.answers = 0
        self._open: dict[Key, Seen] = {}
        self._stop, self._news = threading.Event(), threading.Condition()
        # A thread for each, because one that is asleep does not answer.
        self._threads = [threading.Thread(target=self._run, args=(node,), daemon=True) for node in nodes]

    def __enter__(self) -> Watch:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def is_open(self, key: Key) -> bool:
        """Now."""
        return key in self._open

    def opened(self, key: Key, since: float, within_s: float, *, failed: bool) -> float | None:
        """When it opened, or was first `failed`, at or after `since`; None when it does not in time."""

        def first() -> float | None:
            mine = (seen for seen in self.seen if seen.key == key and seen.opened >= since)
            return next((at for seen in mine if (at := seen.failed if failed else seen.opened) is not None), None)

        return self._wait(first, within_s)

    def first(self, within_s: float) -> float | None:
        """When anything at all opened; None when nothing does in time."""
        return self._wait(lambda: self.seen[0].opened if self.seen else None, within_s)

    def closed(self, key: Key, within_s: float) -> float | None:
        """When it was seen no more; at once when it is not open."""
        return self._wait(lambda: None if self.is_open(key) else time.monotonic(), within_s)

    def _wait(self, found: Any, within_s: float) -> float | None:
        deadline = time.monotonic() + within_s
        with self._news:
            while (at := found()) is None and (left := deadline - time.monotonic()) > 0:
                self._news.wait(left)
            return at

    def _run(self, node: Node) -> None:
        while not self._stop.wait(EVERY_S):
            if picture := node.status():
                self._take(node.name, picture, time.monotonic())

    def _take(self, who: str, picture: dict[str, Any], now: float) -> None:
        told = {(who, f["code"], f["subject_name"]): f for f in (*picture["findings"], *picture["mesh_findings"])}
        with self._news:
            self.answers += 1
            for key, finding in told.items():
                seen = self._open.get(key)
                if seen is None:
                    seen = self._open[key] = Seen(key, now, "", "")
                    self.seen.append(seen)
                if finding["verdict"] == "failed" and seen.failed is None:
                    seen.failed = now
                if finding.get("severity", "warning") == "critical" or not seen.severity:
                    seen.severity, seen.evidence = finding.get("severity", "warning"), finding["evidence"]
            for key in [key for key in self._open if key[0] == who and key not in told]:
                self._open.pop(key).closed = now
            self._news.notify_all()
