"""Network namespaces for tests: make, enter, run in, remove. Traffic of a test stays in what it made.

A namespace has a thread with an event loop of its own, because the kernel binds namespaces to threads: `ns.run(coro)`
runs a coroutine there, with every socket and child process it opens. `ns.entered()` moves the calling thread instead.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import secrets
import subprocess
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _setns(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def unique(prefix: str = "mc") -> str:
    """A name nobody else has; interfaces need one too, as all namespaces share wireguard-go's socket directory."""
    return f"{prefix}{secrets.token_hex(4)}"


class Namespace:
    """One network namespace, loopback up. Use as a context manager."""

    def __init__(self, name: str = "") -> None:
        self.name = name or unique()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Namespace:
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        self.command("ip", "link", "set", "lo", "up")
        return self

    def __exit__(self, *_: object) -> None:
        if self._loop and self._thread:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
        for link in json.loads(self.command("ip", "-j", "link", "show", check=False) or "[]"):
            if Path(f"/var/run/wireguard/{link['ifname']}.sock").exists():
                # A wireguard-go keeps its namespace alive; it ends when its interface does.
                self.command("ip", "link", "del", link["ifname"], check=False)
        subprocess.run(["ip", "netns", "del", self.name], check=False)

    def command(self, *arguments: str, stdin: str = "", check: bool = True) -> str:
        """Run a command inside and return what it printed."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.name, *arguments], input=stdin, text=True, capture_output=True, timeout=60
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread is inside. Children and sockets made meanwhile stay inside."""
        with Path("/proc/thread-self/ns/net").open() as before, Path("/run/netns", self.name).open() as inside:
            _setns(inside.fileno())
            try:
                yield
            finally:
                _setns(before.fileno())

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the namespace's own thread and event loop; wait for its result here."""
        if self._loop is None:
            ready = threading.Event()
            self._thread = threading.Thread(target=self._serve, args=(ready,), name=self.name, daemon=True)
            self._thread.start()
            ready.wait(10)
        assert self._loop is not None
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def _serve(self, ready: threading.Event) -> None:
        with self.entered():
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
            self._loop.call_soon(ready.set)
            self._loop.run_forever()
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()


def veth(a: Namespace, a_addresses: list[str], b: Namespace, b_addresses: list[str], name: str = "under0") -> None:
    """A cable between two namespaces: a device called `name` at both ends, with these ADDRESS/LENGTH, up."""
    a.command("ip", "link", "add", name, "type", "veth", "peer", "name", name, "netns", b.name)
    for end, addresses in ((a, a_addresses), (b, b_addresses)):
        for address in addresses:
            end.command("ip", "address", "add", address, "dev", name, *(["nodad"] if ":" in address else []))
        end.command("ip", "link", "set", name, "up")
