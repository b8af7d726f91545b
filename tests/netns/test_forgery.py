"""The coordinator lies about a node's key: its peers refuse it, report it, and keep the tunnel they have (NET-2).

Three nodes; the lies are about `victim`. The coordinator is real, only its feed replaces key statements.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from meshctl.agent.join import Member
from meshctl.agent.store import Store
from meshctl.mesh.statement import Statement
from tests.harness.mesh import READY_S, Lab, Node, until

pytestmark = pytest.mark.root
FORGER = str(Path(__file__).with_name("forger.py"))
WIREGUARD_KEY = slice(4 + 16 + 33, 4 + 16 + 33 + 32)  # where meshctl/mesh/statement.py lays it out


@dataclass
class Scene:
    lab: Lab
    a: Node
    b: Node
    victim: Node
    lies: Path

    @property
    def peers(self) -> tuple[Node, Node]:
        return self.a, self.b

    def tell(self, statement: bytes | None) -> None:
        """Have the coordinator say this of the victim; None: the truth."""
        told = {self.id: statement.hex()} if statement else {}
        self.lies.write_bytes(msgspec.json.encode(told))
        self.lab.coordinator.stop()
        self.lab.coordinator.start()
        nodes = (*self.peers, self.victim)
        until(lambda: all(n.status()["link"]["connected"] for n in nodes), READY_S, "all follow the liar")

    @property
    def id(self) -> str:
        return Store(self.victim.state).identity().id

    def state(self, serial: int, mesh_id: str = "") -> Statement:
        """A statement that the victim really signed."""
        store = Store(self.victim.state)
        return store.identity().state(mesh_id or Member.load(store).mesh.id, serial)


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Lab() as lab:
        lies = lab.directory / "lies.json"
        lies.write_text("{}")
        lab.coordinator.program = (sys.executable, FORGER)
        lab.coordinator.environment = {"FORGER_FILE": str(lies)}
        yield Scene(lab, *lab.members("a", "b", "victim"), lies)


def refusals(node: Node, words: str) -> int:
    return sum(words in event["why"] for event in node.events("statement.refused"))


def evidence(node: Node, verdict: str = "") -> str:
    """Of MESH-CFG-002, if that is its verdict."""
    row = next(r for r in node.status()["rows"] if r["code"] == "MESH-CFG-002")
    return str(row["evidence"]) if verdict in ("", row["verdict"]) else ""


def assert_refused(scene: Scene, lie: bytes, words: str) -> None:
    """Each peer refuses the lie in these words, and nobody's tunnel suffers."""
    key = scene.victim.key()
    told = {peer.name: refusals(peer, words) for peer in scene.peers}
    sessions = {peer.name: peer.peers()[key] for peer in scene.peers}
    scene.tell(lie)
    for peer in scene.peers:
        until(lambda peer=peer: refusals(peer, words) > told[peer.name], READY_S, f"{peer.name} reports: {peer.tail()}")
        until(lambda peer=peer: words in evidence(peer, "failed"), READY_S, f"{peer.name} says so: {evidence(peer)}")
        assert set(peer.peers()) == {n.key() for n in (*scene.peers, scene.victim) if n is not peer}
        until(lambda peer=peer: peer.proves("victim", younger_than_s=1.0), READY_S, f"{peer.name} keeps the tunnel")
        assert peer.peers()[key].rx >= sessions[peer.name].rx, "it is the same session"
    until(lambda: scene.a.proves("b", younger_than_s=1.0), READY_S, "bystanders stay connected")


def altered(statement: Statement) -> bytes:
    raw = bytearray(statement.signed)
    raw[WIREGUARD_KEY] = bytes.fromhex("de" * 32)
    return bytes(raw)


def test_statement_with_another_key_is_refused(scene: Scene) -> None:
    assert_refused(scene, altered(scene.state(2)), "signature does not match")


def test_statement_of_another_mesh_is_refused(scene: Scene) -> None:
    assert_refused(scene, scene.state(2, "othermesh123").signed, "for mesh 'othermesh123'")


def test_truth_closes_the_finding(scene: Scene) -> None:
    scene.tell(None)
    for peer in scene.peers:
        until(lambda peer=peer: evidence(peer, "ok"), READY_S, f"{peer.name} follows again")


def test_stale_statement_is_a_replay(scene: Scene) -> None:
    """A newer statement is taken and pinned; then the old, once true one is offered again."""
    scene.tell(scene.state(7).signed)
    until(
        lambda: all(p.proves("victim", younger_than_s=1.0) for p in scene.peers), READY_S, "the newer one is accepted"
    )
    assert_refused(scene, scene.state(3).signed, "replayed")


def test_lies_outlive_no_restart_of_a_peer(scene: Scene) -> None:
    """An agent that restarts while the lie is in its map on disk keeps the victim, and its key."""
    key = scene.victim.key()
    for lie, words in ((altered(scene.state(9)), "signature does not match"), (scene.state(3).signed, "replayed")):
        assert_refused(scene, lie, words)
        until(
            lambda: (scene.a.state / "map").stat().st_mtime > scene.lies.stat().st_mtime, READY_S, "the map is on disk"
        )
        scene.a.stop()
        scene.a.up()
        until(lambda: scene.a.proves("b", "victim", younger_than_s=2.0), READY_S, f"a is back: {scene.a.tail()}")
        until(lambda words=words: words in evidence(scene.a), READY_S, f"and still refuses: {evidence(scene.a)}")
        assert key in scene.a.peers()
