"""Writes what is made from the catalogue: the README's table and the alert rules. `.venv/bin/python deploy/pages.py`

A test fails when they are not what this would write; it changes nothing else.
"""

from __future__ import annotations

import re
from pathlib import Path

from meshctl.mesh import catalogue_pages

ROOT = Path(__file__).resolve().parents[1]
TABLE = re.compile(r"\| code \| severity \|.*\n\|[-|]+\n(?:\| <a id=.*\n)+")


def pages() -> dict[Path, str]:
    """What each file should hold."""
    readme = ROOT / "README.md"
    text, found = TABLE.subn(lambda _: catalogue_pages.markdown(), readme.read_text())
    if found != 1:
        raise SystemExit("README.md has no table of the catalogue, or several")
    return {readme: text, ROOT / "deploy" / "prometheus" / "meshctl.rules.yml": catalogue_pages.alert_rules()}


if __name__ == "__main__":
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
