"""What both command lines share: one way to fail, one way to print a table, an age, a byte of JSON (OPS-4).

Every MeshError becomes a sentence, a hint and its exit code; Ctrl-C becomes 130; nothing becomes a traceback unless
MESHCTL_DEBUG is set. Decides nothing.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Any, NoReturn

import click
import msgspec

from meshctl.errors import MeshError, UsageError

INTERRUPTED = 130
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Group(click.Group):
    """A click group whose commands fail the way this project fails.

    `later` names commands whose module is imported when they are asked for: a process pays for its own verb alone.
    """

    later: Mapping[str, str] = MappingProxyType({})  # command -> module; the command stands there under its own name

    def list_commands(self, ctx: click.Context) -> list[str]:
        """See click."""
        return sorted({*super().list_commands(ctx), *self.later})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """See click."""
        if cmd_name in self.later:
            found: click.Command = getattr(import_module(self.later[cmd_name]), cmd_name)
            return found
        return super().get_command(ctx, cmd_name)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """See click; `standalone_mode=False` lets exceptions through, for tests."""
        if kwargs.get("standalone_mode") is False:
            return super().main(*args, **kwargs)
        try:
            code = super().main(*args, **{**kwargs, "standalone_mode": False})
            sys.exit(code if isinstance(code, int) else 0)
        except click.exceptions.Exit as error:
            sys.exit(error.exit_code)
        except click.Abort:
            click.echo("interrupted; run the same command again to go on", err=True)
            sys.exit(INTERRUPTED)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except MeshError as error:
            fail(error)
        except BaseExceptionGroup as group:  # a loop of a long-running verb failed
            matched, rest = group.split(MeshError)
            if matched is None or rest is not None:
                _bug(group)
            fail(_first(matched))
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        except Exception as error:
            _bug(error)


def _first(group: BaseExceptionGroup[MeshError]) -> MeshError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, MeshError)
    return error


def _bug(error: BaseException) -> NoReturn:
    if os.environ.get("MESHCTL_DEBUG"):
        raise error
    click.echo(f"error: unexpected {type(error).__name__}: {error}", err=True)
    click.echo("  hint: a fault of this program; run again with MESHCTL_DEBUG=1 and report what it prints", err=True)
    sys.exit(1)


def fail(error: MeshError) -> NoReturn:
    """Say what happened and what to do, and leave with the error's code."""
    click.echo(f"error: {error.what}", err=True)
    if error.hint:
        click.echo(f"  hint: {error.hint}", err=True)
    sys.exit(error.exit_code)


class Duration(click.ParamType):  # type: ignore[type-arg]
    """30s, 15m, 12h, 7d -> seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """See click."""
        if isinstance(value, int | float):
            return float(value)
        try:
            return seconds(value)
        except UsageError as error:
            self.fail(error.what, param, ctx)


def seconds(text: str) -> float:
    """Of 30s, 15m, 12h, 7d. Raises UsageError."""
    match = re.fullmatch(r"(\d+)([smhd])", text)
    if not match:
        raise UsageError(f"{text!r} is not a duration; write 30s, 15m, 12h or 7d")
    return float(match[1]) * _UNITS[match[2]]


def age(seconds: float) -> str:
    """8s, 4m, 3h, 6d: one unit is enough to judge by."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"


def when(at: float, *, now: float) -> str:
    """Absolute and remaining: both are asked for."""
    left = at - now
    stamp = time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
    return f"{stamp} (in {age(left)})" if left >= 0 else f"{stamp} ({age(-left)} ago)"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns that line up, whatever stdout is: made for eyes and for awk."""
    lines = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(header), *lines]) for i in range(len(header))]
    for line in [list(header), *lines]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def echo_json(value: object) -> None:
    """Stable JSON on stdout."""
    click.echo(msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2).decode())


def secret_argument(text: str, what: str) -> str:
    """TOKEN, @FILE or - for standard input: the command line of a process is readable by everybody on the machine."""
    try:
        if text == "-":
            return sys.stdin.read(64 * 1024).strip()
        if text.startswith("@"):
            with open(text[1:], encoding="utf-8") as file:  # noqa: PTH123 - one line, one purpose
                return file.read(64 * 1024).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the {what} from {text}: {error}", f"pass @FILE with the {what} in it") from error
    return text
