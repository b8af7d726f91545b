"""Keys rotate in a real mesh: under traffic, in bad weather, with a node asleep, and back again (NET-5, MESH-ROT-001).

Real agents, wireguard-go, etcd and coordinator; kernels are asked by `wg`, what the operator sees is what it prints.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from meshctl.agent.store import SavedRotation, Store
from meshctl.crypto.identity import Identity
from meshctl.mesh import limits, rotation
from meshctl.mesh.rotation import Phase, Stage
from tests.harness.mesh import MESHCTL, READY_S, Lab, Node, until
from tests.harness.rotating import agree, deafen, is_lost, lose_first, undeafen

pytestmark = pytest.mark.root

@dataclass
class Scene:
    lab: Lab
    a: Node
    b: Node
    c: Node

    @property
    def nodes(self) -> tuple[Node, ...]:
        return self.a, self.b, self.c

    def settled(self) -> None:
        """Wait until all kernels agree."""
        until(lambda: agree(self.nodes), READY_S, f"all kernels agree: {[n.tail() for n in self.nodes]}")

    def rotating(self, *words: str) -> subprocess.Popen[bytes]:
        """`meshctl keys rotate WORDS --wait`, left running."""
        coordinator, log = self.lab.coordinator, self.lab.directory / "rotate.log"
        log.unlink(missing_ok=True)
        where = "--wait", "--data-dir", str(coordinator.data)
        return coordinator.spawn(*MESHCTL, "keys", "rotate", *words, *where, log=log)

    def said(self) -> str:
        """What it printed."""
        return (self.lab.directory / "rotate.log").read_text()

    def waits_for(self, name: str, *peers: str) -> bool:
        """Whether it is the turn of `name`, and it names these peers as those it waits for."""
        state = self.lab.coordinator.rotation()
        return state.node == name and set(state.waiting) == set(peers) and state.phase == Phase.PREPARE


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Lab() as lab:
        yield Scene(lab, *lab.members("a", "b", "c"))


@pytest.fixture(autouse=True)
def _settled(scene: Scene) -> Iterator[None]:
    yield
    for node in scene.nodes:
        if node.pid:
            node.signal(signal.SIGCONT)
    undeafen(scene.nodes)
    until(lambda: not scene.lab.coordinator.rotation().is_open, 90, "the rotation is closed")


def test_one_node_has_a_new_key_and_every_pair_is_proven(
    scene: Scene, record_property: Callable[[str, object], None]
) -> None:
    before = {node: node.key() for node in scene.nodes}
    done = scene.lab.coordinator.keys("rotate", "--node", "a", "--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    record_property("figure", done.stdout.splitlines()[-1])
    assert "rotated 1 of 1 nodes" in done.stdout
    assert "2 of 2 proofs" in done.stdout
    assert [node.key() != before[node] for node in scene.nodes] == [True, False, False]
    assert before[scene.a] not in {**scene.b.peers(), **scene.c.peers()}
    scene.settled()
    (serial,) = {s.node.statement.serial for n, s in scene.lab.coordinator.nodes().items() if n == "a"}
    assert serial == 2
    assert scene.a.events("key.switched")[-1]["serial"] == 2
    assert not any(node.status()["findings"] for node in scene.nodes)
    until(lambda: all(s.digest_ok for s in scene.lab.coordinator.nodes().values()), READY_S, "the digests agree")


def test_all_nodes_one_after_the_other_while_one_joins(scene: Scene) -> None:
    token = scene.lab.coordinator.token()
    running = scene.rotating("--all")
    guest = scene.lab.machine("guest")
    assert guest.join(token).returncode == 0
    guest.up()
    assert running.wait(60) == 0, scene.said()
    assert "rotated 3 of 3 nodes" in scene.said()
    until(lambda: guest.proves("a", "b", "c"), READY_S, guest.tail())
    keys = {node.key() for node in scene.nodes}
    assert keys == set(guest.peers())
    scene.lab.coordinator.remove("guest")
    guest.stop()
    scene.settled()


@pytest.mark.parametrize("name", ["a", "c"], ids=["peers-lead", "peers-follow"])
def test_first_initiation_is_lost_and_the_pair_does_not_wait_for_wireguards_next(
    scene: Scene, name: str, record_property: Callable[[str, object], None]
) -> None:
    """WireGuard repeats it after 5 s; whose turn it would be in a new pair does not matter."""
    (node,) = (n for n in scene.nodes if n.name == name)
    peers = [n for n in scene.nodes if n is not node]
    lose_first(node, peers)
    done = scene.lab.coordinator.keys("rotate", "--node", name, "--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    assert is_lost(node, peers)
    gap = scene.lab.coordinator.rotation().gap
    record_property("figure", f"the first initiation of each peer of {name} lost: gap {gap.worst:.2f} s")
    assert gap.worst < limits.FOLLOWER_OFFSET_S
    scene.settled()


def test_handshake_under_the_new_key_is_not_seen_and_peers_follow_what_the_node_said(scene: Scene) -> None:
    """Its initiations are lost, all of them: "go" through the tunnel has to do."""
    deafen((scene.b, scene.c))
    done = scene.lab.coordinator.keys("rotate", "--node", "a", "--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    gap = scene.lab.coordinator.rotation().gap
    assert rotation.HOLD_S / 2 < gap.p50 < limits.HEIR_AGAIN_S, "after a while that was said, and not by another way"
    undeafen((scene.b, scene.c))
    scene.settled()


def test_node_asleep_with_a_live_tunnel_postpones_and_is_named(scene: Scene) -> None:
    """Its agent stands still, its WireGuard does not: a switch would cut a tunnel that works."""
    before = scene.a.key()
    scene.c.signal(signal.SIGSTOP)
    running = scene.rotating("--node", "a")
    until(lambda: scene.waits_for("a", "c"), READY_S, "the turn waits for c")
    assert scene.a.key() == before
    scene.c.signal(signal.SIGCONT)
    assert running.wait(60) == 0, scene.said()
    assert scene.a.key() != before
    scene.settled()


def test_force_goes_on_without_the_sleeper_which_heals_when_it_wakes(scene: Scene) -> None:
    scene.c.signal(signal.SIGSTOP)
    done = scene.lab.coordinator.keys("rotate", "--node", "a", "--force", "--wait", "--timeout", "60s")
    assert done.returncode == 11, done.stdout + done.stderr
    assert "not proven: c" in done.stdout
    assert scene.a.key() in scene.b.peers()
    scene.c.signal(signal.SIGCONT)
    scene.settled()


def test_second_operator_is_told_that_one_is_at_it(scene: Scene) -> None:
    scene.c.signal(signal.SIGSTOP)
    running = scene.rotating("--node", "a")
    until(lambda: scene.waits_for("a", "c"), READY_S, "the first one waits")
    second = scene.lab.coordinator.keys("rotate", "--node", "b")
    assert second.returncode == 10
    assert "a rotation of 1 nodes is open already, by operator:0" in second.stderr
    assert scene.lab.coordinator.keys("cancel").returncode == 0
    assert running.wait(30) == 11
    assert "cancelled" in scene.said()
    before = scene.a.key()
    scene.c.signal(signal.SIGCONT)
    scene.settled()
    assert scene.a.key() == before
    assert scene.lab.coordinator.keys("rotate", "--node", "b", "--wait").returncode == 0


def test_coordinator_killed_while_a_turn_is_being_prepared(scene: Scene) -> None:
    before = scene.a.key()
    scene.c.signal(signal.SIGSTOP)
    running = scene.rotating("--node", "a")
    until(lambda: scene.waits_for("a", "c"), READY_S, "the turn waits for c")
    scene.lab.coordinator.stop(signal.SIGKILL)
    scene.c.signal(signal.SIGCONT)
    scene.lab.coordinator.start()
    assert running.wait(60) == 0, scene.said()
    assert scene.a.key() != before
    scene.settled()


def test_coordinator_killed_while_pairs_are_being_proven(scene: Scene) -> None:
    """The switch happened, nobody can shake hands yet, the coordinator dies: its successor closes the rotation."""
    deafen(scene.nodes)
    running = scene.rotating("--node", "a")
    until(lambda: scene.lab.coordinator.rotation().phase == Phase.SWITCHED, READY_S, "a has switched")
    scene.lab.coordinator.stop(signal.SIGKILL)
    undeafen(scene.nodes)
    scene.lab.coordinator.start()
    assert running.wait(60) == 0, scene.said()
    scene.settled()


def test_agent_killed_with_its_next_key_prepared_goes_on_with_it(scene: Scene) -> None:
    scene.c.signal(signal.SIGSTOP)
    running = scene.rotating("--node", "a")
    until(lambda: scene.waits_for("a", "c"), READY_S, "the turn waits for c")
    scene.a.stop(signal.SIGKILL)
    scene.a.up()
    scene.c.signal(signal.SIGCONT)
    assert running.wait(60) == 0, scene.said()
    assert "rotated 1 of 1" in scene.said()
    scene.settled()


def test_agent_killed_between_sealing_and_switching_does_not_switch_when_it_starts(scene: Scene) -> None:
    """Its grant is over: another node may be in the middle of its turn by then. The old key is stated anew."""
    assert scene.lab.coordinator.keys("rotate", "--node", "b", "--wait").returncode == 0
    before, serial = scene.a.key(), scene.lab.coordinator.nodes()["a"].node.statement.serial
    scene.a.stop(signal.SIGKILL)
    store, next_key = Store(scene.a.state), Identity.generate().wireguard
    previous = store.identity().wireguard
    store.save_rotation(SavedRotation("r0", Stage.SWITCHED, serial + 1, next_key.raw, previous.raw, time.time()))
    scene.a.up()
    until(lambda: scene.lab.coordinator.nodes()["a"].node.statement.serial == serial + 2, READY_S, scene.a.tail())
    assert scene.a.key() == before
    assert not [e for e in scene.a.events("key.switched") if e["serial"] > serial]
    scene.settled()
    until(lambda: store.rotation() is None, READY_S, "the turn is forgotten")


def test_switch_that_most_pairs_do_not_survive_is_taken_back(
    scene: Scene, record_property: Callable[[str, object], None]
) -> None:
    before = scene.a.key()
    deafen(scene.nodes)
    running = scene.rotating("--node", "a")
    until(lambda: scene.lab.coordinator.rotation().phase == Phase.SWITCHED, READY_S, "a has switched")
    assert scene.a.key() != before
    assert running.wait(60) == 11
    assert "a: rolled back: 0 of 2 pairs were proven" in scene.said()
    undeafen(scene.nodes)
    scene.settled()
    assert scene.a.key() == before
    assert scene.a.events("key.switched")[-1]["returned"] is True
    record_property("figure", scene.said().splitlines()[-1])


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("rotate",), 2, "whose keys?"),
        (("rotate", "--node", "nobody"), 7, "this mesh has no node 'nobody'"),
        (("rotate", "--node", "expelled"), 7, "node expelled was revoked already"),
        (("rotate", "--node", "sleeper"), 7, "node 'sleeper' is not connected: nobody but itself can make"),
        (("rotate", "--tag", "unheard"), 7, "no node is meant"),
        (("cancel",), 7, "no rotation is open"),
    ],
)
def test_what_cannot_be_rotated_is_refused_in_a_sentence(
    scene: Scene, words: tuple[str, ...], code: int, sentence: str
) -> None:
    known = scene.lab.coordinator.nodes()
    for name in {"expelled", "sleeper"} & set(words) - set(known):
        assert scene.lab.machine(name).join(scene.lab.coordinator.token()).returncode == 0
        if name == "expelled":
            scene.lab.coordinator.revoke(name)
    done = scene.lab.coordinator.keys(*words)
    assert (done.returncode, sentence in done.stderr) == (code, True), done.stderr
    assert not scene.lab.coordinator.rotation().is_open


def test_keys_are_listed_with_their_age(scene: Scene) -> None:
    shown = scene.lab.coordinator.keys("list").stdout
    assert all(node.key() in shown for node in scene.nodes)
    assert scene.a.key() not in scene.lab.coordinator.keys("list", "--older-than", "30d").stdout
