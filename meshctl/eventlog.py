"""Where happenings go today: JSON lines on the node or coordinator, and one line for people on stderr (MON-1, OPS-4).

The sink behind meshctl/events.Events. It promises order, sequence numbers without holes (a hole means loss), and that a
confirmed event survives a power cut. It does not ship, sign, or interpret events.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path
from typing import Final, TextIO

import msgspec

from meshctl.errors import EnvironmentFault
from meshctl.events import Event, LogRepaired, Outcome
from meshctl.mesh.model import Endpoint

FILE_BYTES: Final = 16 * 1024 * 1024  # about 60,000 events a file
FILES_KEPT: Final = 8  # rotated files; older events are gone unless they were shipped
TEXT_CHARS: Final = 512  # free text comes from strangers too (names in refused joins): no event outgrows a screen
PENDING_EVENTS: Final = 10_000  # kept in memory while the disk refuses; a drop shows as a hole in the sequence

ADDRESSES: Final = (IPv4Address, IPv6Address, IPv4Interface, IPv6Interface, IPv4Network, IPv6Network, Endpoint)
_FOR_MACHINES: Final = {"device_key", "signature"}  # what people cannot check by eye
_WORD: Final = re.compile(r"[\w.:/@,+=\[\]-]+", re.ASCII)


class HumanLog:
    """One line per event for people: time, level, event, then key=value. Values are quoted where they are not one plain
    word, so nobody's name can draw on the terminal. With `redact`, names and addresses are hidden: they are fields of
    their own, and whoever must not see them loses nothing else. (structlog would cost every agent 2 to 5 MB for this.)
    """

    def __init__(self, stream: TextIO, *, redact: bool = False) -> None:
        self._stream, self._redact = stream, redact

    def say(self, level: str, event: str, told: Mapping[str, object]) -> None:
        """Write one line; empty values and signatures are left out."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        shown = (
            f" {key}={self._shown(key, value)}"
            for key, value in told.items()
            if value not in (None, "", (), False) and key not in _FOR_MACHINES
        )
        print(f"{stamp} {level:<7} {event}{''.join(shown)}", file=self._stream, flush=True)

    def _shown(self, key: str, value: object) -> str:
        values = value if isinstance(value, tuple) else (value,)
        if self._redact and (key == "name" or isinstance(values[0], ADDRESSES)):
            return "(hidden)"
        text = ",".join(str(item) for item in values)
        return text if _WORD.fullmatch(text) else repr(text)


class _Numbered(msgspec.Struct):
    seq: int


def _intact(data: bytes) -> tuple[int, int]:
    """How many bytes of a log are whole lines, and the last sequence number among them."""
    good = data.rfind(b"\n") + 1
    while good:
        start = data.rfind(b"\n", 0, good - 1) + 1
        try:
            return good, msgspec.json.decode(data[start:good], type=_Numbered).seq
        except msgspec.DecodeError:
            good = start
    return 0, 0


class EventLog:
    """JSON lines `{seq, at, event, outcome, ...}` in a file of mode 0600; sequence numbers go on after a restart.

    `emit` writes to the page cache (it survives this process), `confirm` and `commit` reach the disk. Call from one
    thread; only the fsync of `commit` runs in another. Rotated files are `path.1` (newest) to `path.8`.
    """

    def __init__(
        self, path: Path, *, actor: str, human: HumanLog | None = None,
        clock: Callable[[], float] = time.time, file_bytes: int = FILE_BYTES, files_kept: int = FILES_KEPT,
    ) -> None:  # fmt: skip
        """Open, repair when torn, and continue. `actor` is this process: `coordinator:ID`, `agent:ID`.

        Raises EnvironmentFault, also when another process writes the same file.
        """
        self._path, self._clock, self._file_bytes, self._files_kept = path, clock, file_bytes, files_kept
        self._actor = actor
        self._human = human or HumanLog(sys.stderr)
        self._pending: list[bytes] = []
        self._unsynced: list[int] = []  # descriptors of rotated files and of their folder
        self._durable, self._turn = 0, asyncio.Lock()
        self._broken: EnvironmentFault | None = None
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd, self._size = self._open()
            torn = self._recover()
        except OSError as error:
            raise self._fault(error) from error
        if torn:
            self.emit(LogRepaired(torn_bytes=torn, kept_in=self._aside.name))

    @property
    def _aside(self) -> Path:
        return self._path.with_name(self._path.name + ".torn")

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def _fault(self, error: OSError) -> EnvironmentFault:
        if error.errno == errno.EWOULDBLOCK:
            return EnvironmentFault(f"another process writes {self._path}", "stop it first: a log has one writer")
        hint = "make room, or give this process the right to write there"
        return EnvironmentFault(f"cannot write the event log {self._path}: {error.strerror}", hint)

    def _open(self) -> tuple[int, int]:
        fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.fchmod(fd, 0o600)
            self._unsynced.append(os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY))
        except OSError:
            os.close(fd)
            raise
        return fd, os.fstat(fd).st_size

    def _recover(self) -> int:
        """Find the last sequence number; move what a crash tore off the end aside. Returns how many bytes that was."""
        data = self._path.read_bytes()
        good, self._seq = _intact(data)
        if good < len(data):
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
            with os.fdopen(os.open(self._aside, flags, 0o600), "wb") as aside:
                aside.write(data[good:])
                aside.flush()
                os.fsync(aside.fileno())
            os.ftruncate(self._fd, good)
            self._size = good
        if not good and self._numbered(1).exists():
            self._seq = _intact(self._numbered(1).read_bytes())[1]
        self._durable = self._seq
        return len(data) - good

    def emit(self, event: Event) -> int:
        """Append one event; returns its sequence number. A disk that refuses is reported by the next confirm."""
        self._seq += 1
        told = {field.name: getattr(event, field.name) for field in fields(event)}
        told["actor"] = event.actor or self._actor
        told = {key: value[:TEXT_CHARS] if isinstance(value, str) else value for key, value in told.items()}
        record = {"seq": self._seq, "at": self._clock(), "event": event.kind, "outcome": event.outcome, **told}
        self._pending.append(msgspec.json.encode(record, enc_hook=str) + b"\n")
        level = "info" if event.outcome is Outcome.SUCCESS else "warning"
        self._human.say(level, event.kind, {"seq": self._seq, **told})
        try:
            self._write()
        except (OSError, EnvironmentFault) as error:
            del self._pending[:-PENDING_EVENTS]
            self._human.say("error", "events.unwritable", {"why": str(error)})
        return self._seq

    def confirm(self) -> None:
        """Return once everything emitted so far will survive a power cut. Raises EnvironmentFault."""
        self._sync(self._taken())
        self._durable = self._seq

    async def commit(self, event: Event) -> int:
        """Emit and confirm. Those who wait while one fsync runs share the next."""
        seq = self.emit(event)
        async with self._turn:
            if self._durable < seq:
                reached, files = self._seq, self._taken()
                await asyncio.to_thread(self._sync, files)
                self._durable = reached
        return seq

    def close(self) -> None:
        """Confirm what was emitted and release the file. Raises EnvironmentFault."""
        try:
            self.confirm()
        finally:
            os.close(self._fd)

    def _taken(self) -> list[int]:
        """Descriptors to sync, duplicated where they stay in use: whoever syncs them closes them."""
        try:
            self._write()
            taken, self._unsynced = [*self._unsynced, os.dup(self._fd)], []
        except OSError as error:
            raise self._fault(error) from error
        return taken

    def _sync(self, files: list[int]) -> None:
        try:
            for fd in files:
                os.fsync(fd)
        except OSError as error:
            self._broken = self._fault(error)
        finally:
            for fd in files:
                os.close(fd)
        if self._broken:  # for good: after a failed fsync the kernel may have dropped pages, a later one proves nothing
            raise self._broken

    def _write(self) -> None:
        if self._pending and self._size >= self._file_bytes:
            self._rotate()
        data = b"".join(self._pending)
        written = os.write(self._fd, data) if data else 0
        if written < len(data):
            os.ftruncate(self._fd, self._size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._size += written
        self._pending.clear()

    def _rotate(self) -> None:
        stale, self._unsynced = self._unsynced, []
        self._sync(stale)
        if self._path.exists():  # else an earlier try got this far and could not open the new file
            for number in range(self._files_kept - 1, -1, -1):
                older = self._numbered(number) if number else self._path
                if older.exists():
                    older.replace(self._numbered(number + 1))
        fd, size = self._open()
        self._unsynced.append(self._fd)
        self._fd, self._size = fd, size


class Unheard:
    """Events for those who look only (meshctl plan): nothing is kept."""

    def emit(self, _event: Event) -> int:
        """See Events."""
        return 0

    async def commit(self, _event: Event) -> int:
        """See Events."""
        return 0
