"""Members of an etcd of three die, sleep, lose the wire, lose their majority and fill up (OPS-2, NET-4, ACC-5, OPS-4).

The rows of the README's failure table that begin with etcd. Real processes; what a coordinator cannot decide then is
refused in a sentence, and nothing is half done.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator

import pytest

from tests.harness.mesh import READY_S, Node, until
from tests.harness.replicas import Replicas
from tests.harness.udp_flow import lost_during

pytestmark = pytest.mark.root
Figure = Callable[[str, object], None]


class Scene:
    """Three nodes."""

    def __init__(self, lab: Replicas) -> None:
        self.lab = lab
        self.nodes: tuple[Node, ...] = lab.members("a", "b", "c")

    async def undisturbed(self, weather: Callable[[], object], record: Figure, what: str) -> None:
        """No packet is lost beyond the control, and every pair is proven afterwards."""
        mesh, wire, sent = await lost_during(self.lab, weather)
        record("figure", f"{what}: {mesh} of {sent} lost, {wire} on the bare wire")
        assert sent > 20
        assert mesh <= wire
        until(lambda: self.lab.all_prove(*self.nodes), READY_S, "every pair is proven")

    def revoke(self, name: str, key: str, within: str = "40s") -> str:
        """To the last kernel, and said."""
        done = self.lab.one.command("revoke", name, "--wait", "--timeout", within)
        told = self.lab.one.tail(), self.lab.two.tail()
        assert done.returncode == 0, (done.stdout, done.stderr, *told, [self.lab.at(n) for n in self.nodes])
        assert "applied by 3 members" in done.stdout
        assert not [node.name for node in self.nodes if key in node.peers()]
        return done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Replicas() as lab:
        yield Scene(lab)


@pytest.fixture(autouse=True)
def _mended(scene: Scene) -> Iterator[None]:
    yield
    scene.lab.mend(*scene.nodes)


def test_health_is_told_member_by_member(scene: Scene) -> None:
    lab = scene.lab
    down, leader = lab.cluster.followers()[0], lab.cluster.leader()
    down.kill()
    shown = lab.one.command("status").stdout
    assert f"etcd {leader.endpoint}   leader   3.4" in shown
    assert f"! etcd {down.endpoint}: does not answer" in shown
    lab.cluster.mend()
    assert "! etcd" not in lab.one.command("status").stdout


@pytest.mark.parametrize("what", ["follower killed", "leader killed", "leader paused", "leader off the wire"])
async def test_one_member_of_three_is_gone(scene: Scene, what: str, record_property: Figure) -> None:
    """After an election all goes on, revocation included; no node leaves its coordinator."""
    lab, cluster = scene.lab, scene.lab.cluster
    key = lab.victim(what.replace(" ", "-"))
    at = {node: lab.at(node) for node in scene.nodes}

    def weather() -> None:
        member = cluster.followers()[0] if what == "follower killed" else cluster.leader()
        begun = time.monotonic()
        if what.endswith("killed"):
            member.kill()
        elif what.endswith("paused"):
            member.signal(signal.SIGSTOP)
        else:
            member.unplug()
        said = scene.revoke(what.replace(" ", "-"), key)
        record_property("figure", f"etcd, {what}: {said}; {time.monotonic() - begun:.2f} s in all")
        assert {node: lab.at(node) for node in scene.nodes} == at

    await scene.undisturbed(weather, record_property, f"etcd, {what}")


async def test_majority_is_lost(scene: Scene, record_property: Figure) -> None:
    """Verbs and joins end in a sentence and change nothing; nodes stay; the same words work when it is back."""
    lab, cluster = scene.lab, scene.lab.cluster
    key, token = lab.victim("v-majority"), lab.one.token()
    guest = lab.machine("guest")

    def weather() -> None:
        for member in cluster.members[:2]:
            member.kill()
        joining = guest.begin_join(token)
        done = lab.one.command("revoke", "v-majority", "--wait")
        assert (done.returncode, "etcd at" in done.stderr) == (6, True), (done.stderr, lab.one.tail())
        assert "Traceback" not in done.stderr
        assert joining.wait(60) == 6, guest.tail()
        assert "etcd at" in guest.tail()
        until(lambda: "! etcd has not answered for" in lab.one.command("status").stdout, READY_S, "status says so")
        assert {state.node.name for state in lab.one.nodes().values()} >= {"a", "b", "c", "v-majority"}
        assert all(key in node.peers() for node in scene.nodes), "no data is not a deletion"
        cluster.start()
        until(lambda: "! etcd" not in lab.one.command("status").stdout, READY_S, "it is back")
        scene.revoke("v-majority", key)

    await scene.undisturbed(weather, record_property, "etcd has no majority")
    join = guest.join(token)
    assert join.returncode == 0, join.stderr
    lab.one.remove("guest")


async def test_etcd_is_full(scene: Scene, record_property: Figure) -> None:
    """What needs a write is refused, with what an administrator has to do; reading and following go on."""
    lab, cluster = scene.lab, scene.lab.cluster
    key = lab.victim("v-full")

    def weather() -> None:
        cluster.fill()
        for words in (("revoke", "v-full", "--wait"), ("token", "create")):
            done = lab.one.command(*words)
            assert (done.returncode, "is full and takes no writes" in done.stderr) == (5, True), done.stderr
            assert "etcdctl alarm disarm" in done.stderr
        until(lambda: "NOSPACE" in lab.one.command("status").stdout, READY_S, "status names the alarm")
        assert all(lab.at(node) for node in scene.nodes)
        assert all(key in node.peers() for node in scene.nodes)
        cluster.drain()
        until(lambda: "NOSPACE" not in lab.one.command("status").stdout, READY_S, "it is over")
        scene.revoke("v-full", key)

    await scene.undisturbed(weather, record_property, "etcd full")
