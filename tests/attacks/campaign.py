"""Runs the faults, side by side where they do not meet, and tells what was found, when, and what else (NET-7).

A fault is injected on a mesh that says nothing of it, repaired as soon as it was found, and over when the finding has
closed. Each finding is also looked for in what `meshctl health --mesh --json` prints.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import msgspec

from meshctl.mesh.catalogue import Severity
from tests.attacks.faults import CHAINS, FAULTS, Fault
from tests.attacks.scene import Scene
from tests.attacks.watch import Seen, Watch
from tests.harness.mesh import PATIENCE

CLOSES_S = 100.0 * PATIENCE  # what was repaired or forged is told for a minute


@dataclass
class Outcome:
    """Of one fault: seconds until it was found and, after the repair, until the finding closed; None: never."""

    fault: Fault
    begun: float = 0.0
    ended: float = float("inf")
    detected_s: float | None = None
    closed_s: float | None = None
    printed: bool = False  # by the command
    error: str = ""


@dataclass
class Campaign:
    """`outcomes` by what was done; `stray`: critical findings that no fault explains."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    stray: list[Seen] = field(default_factory=list)


def run(wanted: Collection[str] = ()) -> Campaign:
    """All faults, or those that are named."""
    chains = [[f for f in chain if not wanted or f.what in wanted] for chain in CHAINS]
    campaign = Campaign()
    with Scene() as scene, Watch(list(scene.nodes.values())) as watch:
        with ThreadPoolExecutor(len(chains)) as pool:
            for outcomes in pool.map(lambda chain: [_one(scene, watch, fault) for fault in chain], chains):
                campaign.outcomes.update((one.fault.what, one) for one in outcomes)
        campaign.stray = list(_stray(watch.seen, campaign.outcomes.values()))
    return campaign


def _one(scene: Scene, watch: Watch, fault: Fault) -> Outcome:
    one, key = Outcome(fault), (fault.node, fault.code, fault.subject)
    try:
        watch.closed(key, CLOSES_S)
        one.begun = time.monotonic()
        begun = fault.inject(scene) or one.begun
        if fault.code:
            at = watch.opened(key, one.begun, 2 * fault.promised_s + 10, failed=fault.must_fail)
            one.detected_s = None if at is None else max(at - begun, 0.0)
            one.printed = at is not None and _is_printed(scene, fault)
        repaired = time.monotonic()
        repaired = fault.repair(scene) or repaired
        if fault.code and one.detected_s is not None:
            at = watch.closed(key, CLOSES_S)
            one.closed_s = None if at is None else max(at - repaired, 0.0)
    except Exception:  # the other faults go on; the test of this one shows it
        one.error = traceback.format_exc() + scene[fault.node].tail()
    one.ended = time.monotonic()
    return one


def _is_printed(scene: Scene, fault: Fault) -> bool:
    told = msgspec.json.decode(scene[fault.node].meshctl("health", "--mesh", "--json").stdout)
    return any((f["code"], f["subject_name"]) == (fault.code, fault.subject) for f in told["findings"])


def _stray(seen: Iterable[Seen], outcomes: Iterable[Outcome]) -> Iterable[Seen]:
    """What opened at critical with another code, or elsewhere, or at another time than a fault explains."""
    known = list(outcomes)
    for one in seen:
        who, code, subject = one.key
        explained = any(
            o.fault.code == code and (o.fault.node == who or o.fault.subject == subject != "")
            and o.begun <= one.opened <= o.ended for o in known
        )  # fmt: skip
        if one.severity == Severity.CRITICAL and not explained:
            yield one


def table(campaign: Campaign) -> str:
    """Markdown."""
    rows = ["| code | fault | promised | detected after | closed after |", "|---|---|---|---|---|"]
    for fault in sorted(FAULTS, key=lambda fault: (not fault.code, fault.code, fault.what)):
        if one := campaign.outcomes.get(fault.what):
            rows.append(f"| {fault.code or '-'} | {fault.what} | {promise(fault)} | {_found(one)} | {_closed(one)} |")
    return "\n".join(rows)


def promise(fault: Fault) -> str:
    """In words."""
    return f"{fault.promised_s:.0f} s" if fault.code else "nothing critical"


def _found(one: Outcome) -> str:
    if one.error:
        return f"**error**: {one.error.strip().splitlines()[-1]}"
    if not one.fault.code:
        return "-"
    if one.detected_s is None:
        return "**missed**"
    late = one.detected_s > one.fault.promised_s
    return f"**{one.detected_s:.1f} s**" if late else f"{one.detected_s:.1f} s"


def _closed(one: Outcome) -> str:
    return "-" if one.closed_s is None else f"{one.closed_s:.1f} s"
