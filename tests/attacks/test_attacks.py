"""Every check is seen failing: a real fault, the code that must say so in time, and its end after the repair (NET-7).

All faults run once, side by side (campaign.py); each is one test here, and `-k` runs only what it selects.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from meshctl.mesh.catalogue import CATALOGUE
from tests.attacks import campaign
from tests.attacks.campaign import Campaign
from tests.attacks.faults import FAULTS, Fault

pytestmark = pytest.mark.root
BY_NAME = {fault.what: fault for fault in FAULTS}


@pytest.fixture(scope="module")
def done(request: pytest.FixtureRequest) -> Campaign:
    mine = [item for item in request.session.items if item.path == request.path]
    wanted = {call.params["what"] for item in mine if (call := getattr(item, "callspec", None))}
    return campaign.run(wanted)


def test_every_row_of_the_catalogue_that_is_tried_with_every_sweep_has_a_fault() -> None:
    assert len(BY_NAME) == len(FAULTS)
    assert {fault.code for fault in FAULTS} >= {code for code, check in CATALOGUE.items() if not check.deep}


def test_readme_tells_every_fault_and_its_promise() -> None:
    told = (Path(__file__).parents[2] / "README.md").read_text()
    missing = [f.what for f in FAULTS if f"| {f.code or '-'} | {f.what} | {campaign.promise(f)} | " not in told]
    assert not missing


@pytest.mark.parametrize("what", BY_NAME)
def test_fault_is_found_in_time_and_its_end_too(
    done: Campaign, what: str, record_property: Callable[[str, object], None]
) -> None:
    fault: Fault = BY_NAME[what]
    one = done.outcomes[what]
    assert not one.error, one.error
    if not fault.code:
        return  # test_nothing_else_opens_at_critical
    assert one.detected_s is not None, f"{fault.code} did not open"
    closed = "never" if one.closed_s is None else f"{one.closed_s:.1f} s"
    record_property("figure", f"{fault.code} {what}: found after {one.detected_s:.1f} s, closed after {closed}")
    assert one.detected_s <= fault.promised_s
    assert one.printed, "meshctl health --mesh --json does not say so"
    assert one.closed_s is not None, f"{fault.code} stays open after the repair"


def test_nothing_else_opens_at_critical(done: Campaign) -> None:
    assert not [(seen.key, seen.evidence) for seen in done.stray]
