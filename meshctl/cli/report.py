"""logs and debug bundle: what happened here, fit to be shown to others (OPS-4)."""

from __future__ import annotations

import hashlib
import io
import ipaddress
import platform
import re
import secrets
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import click
import msgspec

from meshctl import __version__
from meshctl.cli import local
from meshctl.cli.options import CONFIG, settings
from meshctl.config import AgentConfig
from meshctl.errors import EnvironmentFault, MeshError
from meshctl.mesh import limits

_WORD = re.compile(r"[A-Za-z0-9+/]{43}=|[0-9a-fA-F:.]{3,}(?:/\d+)?")  # keys first: they may begin like an address
_NODE_ID = re.compile(rf"(?<![\w-])[a-z2-7]{{{limits.NODE_ID_CHARS}}}(?![\w-])")
_NAMED = re.compile(r'"(?:name|id|subject_name)":\s?"([^"]+)"|"coordinator":\s?"([^":]+):')


def _lines(config: AgentConfig, count: int) -> list[str]:
    path = config.state_dir / "events.jsonl"
    try:
        return path.read_text(errors="replace").splitlines()[-count:]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise EnvironmentFault(f"cannot read {path}: {error.strerror}", "sudo meshctl logs") from error


@click.command()
@click.option(
    "-n", "--lines", type=click.IntRange(1, 100_000), default=50, show_default=True, help="How many, from the end."
)
@click.option("--json", "as_json", is_flag=True, help="The lines as they are stored.")
@CONFIG
def logs(lines: int, as_json: bool, **flags: object) -> None:
    """The event log of this node."""
    for line in _lines(settings(flags), lines):
        click.echo(line if as_json else _sentence(line))


def _sentence(line: str) -> str:
    try:
        event: dict[str, object] = msgspec.json.decode(line)
    except msgspec.DecodeError:
        return line
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(str(event.pop("at", 0)))))
    head = f"{stamp}  {event.pop('seq', '?'):>6}  {event.pop('event', '?')}"
    return head + "".join(f"  {key}={value}" for key, value in event.items() if value not in (None, "", [], "success"))


@click.group()
def debug() -> None:
    """For those who help you."""


@debug.command()
@click.option("--anonymize", is_flag=True, help="Replace addresses, keys and names by stable pseudonyms.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("meshctl-debug.tar.gz"),
    show_default=True,
    help="Where to write it.",
)
@CONFIG
def bundle(anonymize: bool, output: Path, **flags: object) -> None:
    """Collect status, events and versions in one file. Keys are never in it."""
    import tarfile  # late: the other verbs, the agent among them, need none

    config = settings(flags)
    try:
        picture = local.status(config)
    except MeshError as error:
        picture = {"error": error.what}
    parts = {
        "status.json": msgspec.json.format(msgspec.json.encode(picture), indent=2).decode(),
        "events.jsonl": "\n".join(_lines(config, 2000)),
        "versions.txt": f"meshctl {__version__}\npython {platform.python_version()}\nkernel {platform.release()}\n",
    }
    hide = _pseudonyms(parts.values()) if anonymize else (lambda text: text)
    try:
        with tarfile.open(output, "w:gz") as archive:
            for name, text in parts.items():
                data = hide(text).encode()
                entry = tarfile.TarInfo(f"meshctl-debug/{name}")
                entry.size, entry.mtime, entry.mode = len(data), int(time.time()), 0o600
                archive.addfile(entry, io.BytesIO(data))
        output.chmod(0o600)
    except OSError as error:
        raise EnvironmentFault(f"cannot write {output}: {error.strerror}", "-o FILE") from error
    click.echo(
        f"wrote {output}{', anonymised' if anonymize else ': it names nodes and addresses; --anonymize hides them'}"
    )


def _pseudonyms(texts: Iterable[str]) -> Callable[[str], str]:
    """A function that replaces what could name somebody; the same thing gets the same pseudonym within one bundle."""
    salt = secrets.token_bytes(16)
    texts = tuple(texts)
    names = {name for text in texts for pair in _NAMED.findall(text) for name in pair if name}
    names |= {node for text in texts for node in _NODE_ID.findall(text)}  # of nodes that are gone, too

    def pseudonym(text: str) -> str:
        return hashlib.sha256(salt + text.encode()).hexdigest()[:8]

    def word(match: re.Match[str]) -> str:
        text = match[0]
        if text.endswith("=") and len(text) == 44:
            return f"key-{pseudonym(text)}"
        core = text.partition("/")[0]
        host, _, port = core.rpartition(":") if core.count(":") == 1 else (core, "", "")
        try:
            ipaddress.ip_address(host.strip("."))
        except ValueError:
            return text
        return f"ip-{pseudonym(host)}" + (f":{port}" if port else "")

    def hide(text: str) -> str:
        for name in sorted(names, key=len, reverse=True):
            text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", f"node-{pseudonym(name)}", text)
        return _WORD.sub(word, text)

    return hide
