"""A mesh that is well says nothing: six nodes, three real minutes, not one finding of any severity (NET-7).

The same for half an hour: `python -m tests.bench.quiet 1800`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.bench import quiet

pytestmark = pytest.mark.root
MINUTES = 3.0


def test_healthy_mesh_opens_nothing(record_property: Callable[[str, object], None]) -> None:
    answers, seen = quiet.run(MINUTES * 60)
    assert not [(one.key, one.evidence) for one in seen]
    assert answers > MINUTES * 60
    record_property("figure", f"six healthy nodes for {MINUTES:.0f} minutes: no finding in {answers} answers")
