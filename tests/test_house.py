"""The rules of the house, held by a machine (OPS-1).

Layers, style, types, sizes, generated code, and a README that is true. Each rule names the offender.
"""

from __future__ import annotations

import ast
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
FOLDERS = {"meshctl", "coordinator", "proto", "tests", "deploy"}
LEFTOVERS = re.compile(r"\..*|__pycache__|build|dist|.*\.egg-info")  # what tools make, and git ignores
GENERATED = ROOT / "meshctl" / "wire" / "v1"
PROGRAMS = {"meshctl": "meshctl.cli.main", "mesh-coordinator": "coordinator.cli.main"}
MACHINE_PATHS = re.compile("|".join(rf"(?<![\w.])/{place}" for place in (r"work/", r"home/\w", r"root/", r"tmp/\w")))
CALL = re.compile(r"(?:^|[\s/(])(meshctl|mesh-coordinator)((?: +[^\s|&;()#<>`]+)*) *(?=$|[|&;()#<>`])")
REQUIREMENT = re.compile(r"\b(?:ENC|NET|ACC|MON|OPS)-\d+\b")


def sources(*folders: str) -> list[Path]:
    found = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return sorted(path for path in found if GENERATED not in path.parents and "__pycache__" not in path.parts)


PRODUCT, TESTS = sources("meshctl", "coordinator"), sources("tests")


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_layers_hold() -> None:
    run(BIN / "lint-imports")


def test_ruff_is_content() -> None:
    run(BIN / "ruff", "check", ".")


def test_types_are_strict() -> None:
    run(BIN / "mypy")


def test_generated_protobuf_is_fresh(tmp_path: Path) -> None:
    protos = sorted((ROOT / "proto").rglob("*.proto"))
    assert protos
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    run(sys.executable, "-m", "grpc_tools.protoc", "-I", "proto", *outputs, *(short(p) for p in protos))
    fresh = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*.py*")}
    committed = {path.relative_to(ROOT): path.read_text() for path in GENERATED.glob("*_pb2*.py*")}
    assert fresh.keys() == committed.keys()
    stale = [str(path) for path in fresh if fresh[path] != committed[path]]
    assert not stale, f"generate anew (proto/README.md): {stale}"


@pytest.mark.parametrize("path", PRODUCT + TESTS, ids=short)
def test_module_says_what_it_is_for(path: Path) -> None:
    assert len((ast.get_docstring(ast.parse(path.read_text())) or "").split()) >= 5


def functions(path: Path) -> Iterator[tuple[str, int]]:
    for item in ast.walk(ast.parse(path.read_text())):
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{short(path)}:{item.lineno} {item.name}", (item.end_lineno or item.lineno) - item.lineno + 1


def test_files_and_functions_are_short(record_property: Callable[[str, object], None]) -> None:
    sizes = {short(path): len(path.read_text().splitlines()) for path in PRODUCT + TESTS}
    lengths = dict(entry for path in PRODUCT + TESTS for entry in functions(path))
    assert not {name: size for name, size in sizes.items() if size > 400}
    assert not {name: length for name, length in lengths.items() if length > 60}
    assert sizes.get("meshctl/agent/daemon.py", 0) <= 120
    product = [sizes[short(path)] for path in PRODUCT if path.name != "__init__.py"]
    middle = statistics.median(product)
    total = f"{len(product)} modules, {sum(product)} lines"
    record_property("figure", f"{total}, median {middle:.0f}, longest {max(product)}")
    record_property("figure", f"{len(lengths)} functions, median {statistics.median(lengths.values()):.0f} lines")
    assert middle <= 150


def test_no_other_drawer_is_opened() -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and not LEFTOVERS.fullmatch(path.name)}
    assert folders <= FOLDERS


def texts() -> Iterator[tuple[Path, str]]:
    tops = [path for path in ROOT.iterdir() if path.is_file() or path.name in FOLDERS | {".ci"}]
    for path in sorted(item for top in tops for item in ([top] if top.is_file() else top.rglob("*"))):
        if path.is_file() and "__pycache__" not in path.parts and path != Path(__file__).resolve():
            yield path, path.read_bytes().decode("utf-8", "replace")


def test_nothing_knows_the_machine_it_was_written_on() -> None:
    found = [f"{short(path)}: {match[0]}" for path, text in texts() for match in MACHINE_PATHS.finditer(text)]
    assert not found


def test_shell_scripts_stop_at_the_first_error() -> None:
    scripts = [(path, text) for path, text in texts() if text.startswith("#!") and "sh" in text.split("\n", 1)[0]]
    assert {short(path) for path, _ in scripts} >= {".ci/run", "tests/run.sh", "deploy/setup.sh"}
    assert not [short(path) for path, text in scripts if "set -euo pipefail" not in text]
    assert not [short(path) for path, _ in scripts if not path.stat().st_mode & 0o100]


# ---- the README is true ----------------------------------------------------------------------------------------------


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """(program, arguments) of each call in the fenced blocks; in a block with prompts, of prompted lines alone."""
    for block in re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        lines = re.sub(r"\\\n\s*", " ", block).splitlines()
        prompted = [line[2:] for line in lines if re.match(r"[$#] ", line)]
        for line in prompted or lines:
            for call in CALL.finditer(line):
                yield call[1], [word for word in shlex.split(call[2].replace('"', " ")) if "$" not in word]


def call_is_known(program: str, arguments: list[str]) -> str | None:
    """None when every verb and option exists in the program's help; else what is wrong."""
    root: click.Command = import_module(PROGRAMS[program]).cli
    command, path, options = root, [], set()
    for argument in arguments:
        if argument.startswith("-") and len(argument) > 1:
            options.add(argument.partition("=")[0])
        elif isinstance(command, click.Group):
            context = click.Context(command)
            inner = command.get_command(context, argument)
            if inner is None:
                return f"{program} has no verb {' '.join([*path, argument])!r}"
            command = inner
            path.append(argument)
    shown = CliRunner().invoke(root, [*path, "--help"], prog_name=program)
    if shown.exit_code != 0:
        return f"{program} {' '.join(path)} --help fails: {shown.output}"
    unknown = options - set(re.findall(r"(?<![\w-])--?[a-z0-9][a-z0-9-]*", shown.output))
    return f"{program} {' '.join(path)} has no {', '.join(sorted(unknown))}" if unknown else None


def test_commands_in_readme_exist() -> None:
    built = {name for name, module in PROGRAMS.items() if (ROOT / (module.replace(".", "/") + ".py")).exists()}
    calls = list(commands((ROOT / "README.md").read_text()))
    assert calls
    wrong = {call_is_known(program, arguments) for program, arguments in calls if program in built}
    assert wrong <= {None}


def test_calls_are_found_in_a_transcript() -> None:
    text = "```\n$ sudo meshctl join TOKEN --name a | cat\nmeshctl: done\n"
    text += "# mesh-coordinator serve \\\n  --etcd x  # why\n```\n"
    text += '```console\nmeshctl join "$(mesh-coordinator token create)"\n```\n'
    assert list(commands(text)) == [
        ("meshctl", ["join", "TOKEN", "--name", "a"]),
        ("mesh-coordinator", ["serve", "--etcd", "x"]),
        ("meshctl", ["join"]),
        ("mesh-coordinator", ["token", "create"]),
    ]


def test_pages_made_from_the_catalogue_are_fresh() -> None:
    made = import_module("deploy.pages").pages()
    stale = [short(path) for path, text in made.items() if path.read_text() != text]
    assert not stale, f"run deploy/pages.py: {stale}"


def test_requirements_the_readme_claims_are_cited() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    rows = [line for line in lines if re.match(rf"\| *[`*]*{REQUIREMENT.pattern}", line)]
    claimed = {REQUIREMENT.findall(row)[0] for row in rows if "not yet" not in row.lower()}
    assert claimed
    cited = {found for path in TESTS for found in REQUIREMENT.findall(path.read_text())}
    for path in PRODUCT:
        cited |= set(REQUIREMENT.findall(ast.get_docstring(ast.parse(path.read_text())) or ""))
    assert claimed <= cited


def test_rows_of_the_failure_table_name_tests_that_exist() -> None:
    section = (ROOT / "README.md").read_text().partition("\n## Failures\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", row)
        assert named or "not tested: " in row, row
        for file, test in named:
            assert f"def {test}(" in (ROOT / file).read_text(), row
