"""UDP sockets of this host as the kernel lists them (proc(5), /proc/net/udp): who listens, and what waits to be read.

Read, not tried: a probe that binds a port could take it from its owner.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

# Of the calling thread: others may be in another network namespace.
_TABLES: Final = (Path("/proc/thread-self/net/udp"), Path("/proc/thread-self/net/udp6"))
_LOCAL, _QUEUES, _INODE = 1, 4, 9  # columns: hexadecimal "address:port", bytes to be "sent:read", and the socket


def inodes(port: int) -> list[str]:
    """The sockets of those who listen there; empty when nobody does."""
    return [row[_INODE] for row in _rows(port)]


def unread(port: int) -> int:
    """Bytes that came for whoever listens there, and were not read yet."""
    return sum(int(row[_QUEUES].rpartition(":")[2], 16) for row in _rows(port))


def _rows(port: int) -> Iterator[list[str]]:
    for table in _TABLES:
        with contextlib.suppress(OSError):  # a host without IPv6, or a sandbox without /proc
            rows = map(str.split, table.read_text().splitlines()[1:])
            yield from (row for row in rows if row[_LOCAL].endswith(f":{port:04X}"))
