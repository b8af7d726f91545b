"""What a coordinator exports, and the dashboard that draws it: each names what the other has (MON-6, OPS-2)."""

from __future__ import annotations

import json
import re
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from coordinator import reflector
from coordinator.front import Figures, Why
from coordinator.health import CoordinatorHealth
from tests.harness.fellows import connect
from tests.harness.world import World, world

DASHBOARD = Path(__file__).resolve().parents[2] / "deploy" / "grafana" / "coordinator.json"
NAME = re.compile(r"\bmeshctl_\w+")


class _Front:
    """A front that nobody has called."""

    connections = Figures(1, {Why.CROWDED: 1}, {Why.CROWDED: 1}, 1, 0, 0, 0)  # a reason appears once it happened


class _Reflector:
    """One that was asked once, and once not to be answered."""

    figures = reflector.Figures(1, {reflector.Drop.RATE: 1})


def scraped(mesh: World, at: int = 0) -> dict[str, float]:
    """Value of each sample without labels; of a labelled one the last."""
    one = mesh.coordinators[at]
    parts = one.views, one.fellows.convergence, _Front(), _Reflector()
    health = CoordinatorHealth(*parts)  # type: ignore[arg-type]
    registry = CollectorRegistry(auto_describe=False)
    registry.register(health)
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {sample.name: sample.value for family in families for sample in family.samples}


def expressions() -> list[str]:
    board = json.loads(DASHBOARD.read_text())
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]]


async def test_dashboard_asks_only_for_metrics_that_exist_and_for_all_of_ours() -> None:
    async with world(coordinators=2) as mesh:
        await connect(mesh, 0, "a")
        await mesh.first.views.pulse.ask()
        exported = scraped(mesh).keys()
        asked = {name for expression in expressions() for name in NAME.findall(expression)}
        assert asked
        assert asked <= exported
        unseen = {name for name in exported if not re.search(r"_(created|sum|count)$", name)} - asked
        assert not unseen, "what nobody looks at is not worth exporting"


def test_dashboard_is_one_that_grafana_takes() -> None:
    board = json.loads(DASHBOARD.read_text())
    assert board["title"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert all(panel["title"] and panel["description"] and panel["targets"] for panel in board["panels"])
    taken = [(p["gridPos"]["x"], p["gridPos"]["y"], p["gridPos"]["w"]) for p in board["panels"]]
    assert all(x + w <= 24 for x, _, w in taken)
    assert len({(x, y) for x, y, _ in taken}) == len(taken)
    assert all(expression.count("(") == expression.count(")") for expression in expressions())


async def test_figures_are_those_of_the_mesh_and_of_this_coordinator() -> None:
    async with world(coordinators=2) as mesh:
        await connect(mesh, 0, "a", "b")
        await connect(mesh, 1, "c")
        await mesh.heard()
        for one in mesh.coordinators:
            await one.views.pulse.ask()
        here, there = scraped(mesh), scraped(mesh, 1)
        prefix = "meshctl_coordinator_"
        assert (here[prefix + "nodes_connected"], there[prefix + "nodes_connected"]) == (2, 1)
        assert here[prefix + "mesh_connected"] == there[prefix + "mesh_connected"] == 3
        assert here[prefix + "mesh_converged"] == 1, "a and b have not applied the join of c"
        assert here[prefix + "coordinators"] == 2
        assert (here[prefix + "etcd_up"], here[prefix + "following"], here[prefix + "rotation_open"]) == (1, 1, 0)
        mesh.first.line.cut = True
        await mesh.first.views.pulse.look()
        await mesh.first.views.pulse.ask()
        assert (scraped(mesh)[prefix + "etcd_up"], scraped(mesh)[prefix + "following"]) == (0, 0)
