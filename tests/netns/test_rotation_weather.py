"""Keys rotate while coordinators and etcd die around them: no step is half done, and all goes on by itself (NET-5,
OPS-2, OPS-4). The rows of the README's failure table with a rotation in them.

A node whose agent sleeps holds a turn where a test wants it; a wire without handshakes holds it after the switch.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest

from meshctl.mesh.rotation import Phase
from tests.harness.mesh import MESHCTL, READY_S, until
from tests.harness.replicas import NO_ETCD, Replica, Replicas
from tests.harness.rotating import agree, deafen, undeafen

pytestmark = pytest.mark.root
Figure = Callable[[str, object], None]


class Scene:
    """Three nodes, and a rotation that stands where it is wanted."""

    def __init__(self, lab: Replicas) -> None:
        self.lab = lab
        self.nodes = self.a, self.b, self.c = lab.members("a", "b", "c")

    def rotating(self, at: Replica, *words: str) -> subprocess.Popen[bytes]:
        """`meshctl keys rotate WORDS --wait` at a coordinator, left running."""
        at.words.unlink(missing_ok=True)
        return at.spawn(*MESHCTL, "keys", "rotate", *words, "--wait", "--data-dir", str(at.data), log=at.words)

    def held(self, at: Replica, step: str) -> subprocess.Popen[bytes]:
        """A rotation of `a` that has come to `step` and cannot leave it: prepare, or switched."""
        if step == "prepare":
            self.c.signal(signal.SIGSTOP)
        else:
            deafen(self.nodes)
        running = self.rotating(at, "--node", "a")
        phase = Phase.PREPARE if step == "prepare" else Phase.SWITCHED
        until(lambda: at.rotation().phase == phase and at.rotation().node == "a", READY_S, f"a stands in {step}")
        if step == "prepare":
            until(lambda: set(at.rotation().waiting) == {"c"}, READY_S, "waiting for c alone")
        return running

    def release(self) -> None:
        """Let it go on."""
        self.c.signal(signal.SIGCONT)
        undeafen(self.nodes)

    def settled(self) -> None:
        """Wait until all kernels agree."""
        until(lambda: agree(self.nodes), READY_S, "all kernels agree")


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Replicas() as lab:
        yield Scene(lab)


@pytest.fixture(autouse=True)
def _mended(scene: Scene) -> Iterator[None]:
    yield
    scene.release()
    scene.lab.mend(*scene.nodes)
    until(lambda: not scene.lab.one.rotation().is_open, 90, "the rotation is closed")
    scene.settled()


@pytest.mark.parametrize("step", ["prepare", "switched"])
def test_leader_of_etcd_is_killed_at_a_step(scene: Scene, step: str, record_property: Figure) -> None:
    before = scene.a.key()
    running = scene.held(scene.lab.one, step)
    scene.lab.cluster.leader().kill()
    scene.release()
    assert running.wait(60) == 0, scene.lab.one.said()
    assert "rotated 1 of 1 nodes" in scene.lab.one.said()
    record_property("figure", f"leader of etcd killed in {step}: {scene.lab.one.said().splitlines()[-1]}")
    assert scene.a.key() != before
    scene.settled()


def test_leader_of_etcd_is_killed_again_and_again_while_all_rotate(scene: Scene, record_property: Figure) -> None:
    """At whatever steps that hits: each node has one new key, and nobody is lost."""
    before = {node: node.key() for node in scene.nodes}
    running = scene.rotating(scene.lab.two, "--all")
    for _ in range(3):
        leader = scene.lab.cluster.leader()
        leader.kill()
        scene.lab.cluster.leader()  # another one is elected
        leader.start()
        scene.lab.cluster.healthy()
    assert running.wait(120) == 0, scene.lab.two.said()
    assert "rotated 3 of 3 nodes" in scene.lab.two.said()
    record_property("figure", f"leader killed three times: {scene.lab.two.said().splitlines()[-1]}")
    assert all(node.key() != before[node] for node in scene.nodes)


@pytest.mark.parametrize("step", ["prepare", "switched"])
def test_coordinator_of_the_node_is_killed_at_a_step(scene: Scene, step: str) -> None:
    """The other coordinator hears the node and goes on; the operator there sees the end of it."""
    lab = scene.lab
    lab.send(lab.two, scene.a, scene.b)
    before = scene.a.key()
    running = scene.held(lab.one, step)
    lab.two.stop(signal.SIGKILL)
    scene.release()
    assert running.wait(60) == 0, lab.one.said()
    assert "rotated 1 of 1 nodes" in lab.one.said()
    assert scene.a.key() != before


def test_operators_coordinator_is_killed_and_another_one_is_asked(scene: Scene) -> None:
    lab = scene.lab
    lab.send(lab.one, *scene.nodes)
    running = scene.held(lab.two, "prepare")
    lab.two.stop(signal.SIGKILL)
    assert running.wait(60) == 6, lab.two.said()
    assert "is not running" in lab.two.said() or "does not answer" in lab.two.said()
    second = lab.one.keys("rotate", "--node", "b")
    assert (second.returncode, "is open already" in second.stderr) == (10, True), second.stderr
    scene.release()
    done = lab.one.keys("status", "--wait")
    assert (done.returncode, "rotated 1 of 1 nodes" in done.stdout) == (0, True), done.stdout + done.stderr


@pytest.mark.parametrize("step", ["prepare", "switched"])
def test_majority_is_lost_in_the_middle(scene: Scene, step: str) -> None:
    """Nothing moves and nothing breaks: what is not in the registry is not done. A second order is refused in words."""
    lab, before = scene.lab, scene.a.key()
    running = scene.held(lab.one, step)
    stands = scene.a.key()
    assert (stands != before) == (step == "switched")
    for member in lab.cluster.members[1:]:
        member.kill()
    scene.release()
    refused = lab.two.keys("rotate", "--node", "b")
    assert (refused.returncode, "etcd at" in refused.stderr) == (6, True), refused.stderr
    assert scene.a.key() == stands
    lab.cluster.start()
    code = running.wait(90)
    said = lab.one.said()
    assert (code, "rotated 1 of 1" in said) in ((0, True), (11, False)), said
    assert code == 0 or "rolled back" in said or "postponed" in said or "0 of 1" in said, said


def test_node_at_a_deaf_coordinator_is_not_switched_late(scene: Scene) -> None:
    """Cut off from etcd, its coordinator grants nothing. The node moves and has its turn at the other one; if its turn
    was over by then, the operator is told so, and it has its old key.
    """
    lab = scene.lab
    lab.send(lab.two, *scene.nodes)
    before = scene.a.key()
    running = scene.held(lab.one, "prepare")
    lab.two.cut(NO_ETCD)
    scene.release()
    code = running.wait(120)
    until(lambda: lab.at(scene.a) is lab.one, READY_S, "it has moved")
    if code == 11:
        # Its peers were at the deaf coordinator, too: who moved first is chance.
        said = lab.one.said()
        assert "a: it is not connected" in said or "a: peers with a live tunnel have not acknowledged" in said, said
        assert scene.a.key() == before
        assert lab.one.keys("rotate", "--node", "a", "--wait").returncode == 0
    else:
        assert code == 0, lab.one.said()
    assert scene.a.key() != before
