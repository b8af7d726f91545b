"""A coordinator of two dies, sleeps, goes deaf or full; alone, and together with others: what users see (OPS-2, NET-4,
ACC-5). The rows of the README's failure table that begin with a coordinator.

Real processes: an etcd of three, two coordinators, three nodes. Under each weather numbered datagrams cross the mesh
and, as a control, the bare wire.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from meshctl.errors import EnvironmentFault
from tests.harness.mesh import READY_S, Node, until
from tests.harness.replicas import NO_ETCD, NO_NODES, Replica, Replicas
from tests.harness.udp_flow import lost_during
from tests.netns.test_clock import LIBRARY, moved

pytestmark = pytest.mark.root
Figure = Callable[[str, object], None]


@dataclass
class Scene:
    lab: Replicas
    a: Node
    b: Node
    c: Node

    @property
    def nodes(self) -> tuple[Node, ...]:
        return self.a, self.b, self.c

    def all_at(self, where: Replica) -> bool:
        return all(self.lab.at(node) is where for node in self.nodes)

    def revoke(self, at: Replica, name: str, key: str) -> str:
        """`revoke --wait` at a coordinator: all kernels follow, and it says so."""
        done = at.command("revoke", name, "--wait", "--timeout", "40s")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "applied by 3 members" in done.stdout
        assert not [node.name for node in self.nodes if key in node.peers()]
        return done.stdout.splitlines()[-1]

    async def undisturbed(self, weather: Callable[[], object], record: Figure, what: str) -> None:
        """No packet is lost beyond the control, no session is begun anew, and every pair is proven afterwards."""
        keys = {node.key() for node in self.nodes}
        before = {node: {key: peer for key, peer in node.peers().items() if key in keys} for node in self.nodes}
        mesh, wire, sent = await lost_during(self.lab, weather)
        record("figure", f"{what}: {mesh} of {sent} lost, {wire} on the bare wire")
        assert sent > 20
        assert mesh <= wire
        for node, held in before.items():
            after = node.peers()
            assert held.keys() <= after.keys()
            assert all(after[key].rx >= held[key].rx for key in held)
        until(lambda: self.lab.all_prove(*self.nodes), READY_S, "every pair is proven")


def refuses_tokens(at: Replica) -> bool:
    """Whether a token cannot be made there, for want of space."""
    try:
        at.token()
    except EnvironmentFault as error:
        return "No space left" in error.what
    return False


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Replicas() as lab:
        yield Scene(lab, *lab.members("a", "b", "c"))


@pytest.fixture(autouse=True)
def _mended(scene: Scene) -> Iterator[None]:
    yield
    scene.lab.mend(*scene.nodes)


async def test_coordinator_is_killed(scene: Scene, record_property: Figure) -> None:
    """Its nodes move by themselves; a join, and a revocation counted to the last node, work at the other at once."""
    lab = scene.lab
    lab.send(lab.two, *scene.nodes)

    def weather() -> None:
        begun = time.monotonic()
        lab.two.stop(signal.SIGKILL)
        until(lambda: scene.all_at(lab.one), READY_S, "all move")
        record_property("figure", f"coordinator killed: its nodes had moved after {time.monotonic() - begun:.2f} s")
        record_property("figure", scene.revoke(lab.one, "v1", lab.victim("v1")))

    await scene.undisturbed(weather, record_property, "coordinator killed")
    guest = lab.machine("guest")
    joined = guest.join(lab.one.token())
    assert joined.returncode == 0, joined.stderr
    lab.one.remove("guest")


async def test_coordinator_is_paused(scene: Scene, record_property: Figure) -> None:
    """Nodes leave it once it has been silent; until then `--wait` names them, with where they are and for how long."""
    lab = scene.lab
    lab.send(lab.two, *scene.nodes)

    def weather() -> None:
        key = lab.victim("v2")
        lab.send(lab.two, *scene.nodes)  # still: a node that has just lost its stream is at neither of them
        lab.two.signal(signal.SIGSTOP)
        done = lab.one.command("revoke", "v2", "--wait", "--timeout", "1s")
        assert done.returncode == 11, done.stdout + done.stderr
        assert "applied by 0 members" in done.stdout
        assert f"a (at {lab.two.address}" in done.stdout
        until(lambda: scene.all_at(lab.one), 60, "all move")
        done = lab.one.command("applied", "--timeout", "20s")
        assert (done.returncode, "applied by 3 members" in done.stdout) == (0, True), done.stdout
        assert not [node.name for node in scene.nodes if key in node.peers()]
        lab.two.signal(signal.SIGCONT)
        until(lambda: lab.two.command("applied", "--timeout", "10s").returncode == 0, READY_S, "it wakes and knows")

    await scene.undisturbed(weather, record_property, "coordinator paused")


async def test_coordinator_is_cut_off_from_etcd(scene: Scene, record_property: Figure) -> None:
    """It says so, its nodes leave it, verbs there fail in a sentence; what it has not heard is lost for nobody: a node
    revoked meanwhile is dropped by every kernel, though it is connected to the one that is deaf."""
    lab = scene.lab
    thief = lab.member("thief")
    until(lambda: thief.proves("a", "b", "c"), READY_S, thief.tail())
    lab.send(lab.two, *scene.nodes, thief)
    key = thief.key()

    def weather() -> None:
        lab.two.cut(NO_ETCD)
        begun = time.monotonic()
        lab.one.revoke("thief")
        until(lambda: not [n for n in scene.nodes if key in n.peers()], 60, "every kernel drops the key")
        took = time.monotonic() - begun
        record_property("figure", f"revoked while connected to a deaf coordinator: last kernel after {took:.2f} s")
        assert scene.all_at(lab.one)
        done = lab.two.command("revoke", "a")
        assert (done.returncode, "does not answer" in done.stderr) == (6, True), done.stderr
        until(lambda: "! etcd has not answered for" in lab.two.command("status").stdout, READY_S, "and shows it")
        assert lab.one.command("applied").returncode == 0
        lab.two.mend()
        until(lambda: not thief.status()["link"]["connected"], READY_S, "the thief is cut")

    await scene.undisturbed(weather, record_property, "coordinator cut off from etcd")
    thief.stop()


async def test_coordinator_is_cut_off_from_nodes(scene: Scene, record_property: Figure) -> None:
    """Nodes find the stream dead and move; operators may ask either coordinator."""
    lab = scene.lab
    lab.send(lab.two, *scene.nodes)

    def weather() -> None:
        lab.two.cut(NO_NODES)
        until(lambda: scene.all_at(lab.one), 60, "all move")
        scene.revoke(lab.two, "v4", lab.victim("v4"))

    await scene.undisturbed(weather, record_property, "coordinator cut off from nodes")


async def test_disk_of_a_coordinator_is_full(scene: Scene, record_property: Figure) -> None:
    """Nodes stay and follow; privileged acts there end in a sentence, because their event could not be kept."""
    lab = scene.lab
    lab.send(lab.two, *scene.nodes)
    filler = lab.two.data / "filler"

    def weather() -> None:
        assert lab.two.run("dd", "if=/dev/zero", f"of={filler}", "bs=64k").returncode, "until nothing fits"
        until(lambda: refuses_tokens(lab.two), READY_S, "the page that its log has begun is full, too")
        done = lab.two.command("token", "create")
        assert (done.returncode, "hint" in done.stderr) == (5, True), done.stderr
        assert done.stdout == "", "what is not recorded is not shown"
        scene.revoke(lab.one, "v5", lab.victim("v5"))
        assert scene.all_at(lab.two)

    try:
        await scene.undisturbed(weather, record_property, "disk of a coordinator full")
    finally:
        filler.unlink()
    assert lab.two.command("token", "create").returncode == 0


@pytest.mark.skipif(LIBRARY is None, reason="absent: libfaketime (apt-get install --no-install-recommends faketime)")
async def test_clock_of_a_coordinator_is_days_ahead(scene: Scene, record_property: Figure) -> None:
    """Coordinators compare no clocks, so they count each other alive; a node that must move there renews and is in."""
    lab = scene.lab
    lab.send(lab.one, *scene.nodes)
    lab.two.stop()
    lab.two.environment = moved(3)
    lab.two.start()

    def weather() -> None:
        until(lambda: len([c for c in lab.one.overview().coordinators if not c.silent]) == 2, READY_S, "both live")
        assert len(lab.two.overview().coordinators) == 2
        assert lab.two.overview().connected == 3
        scene.revoke(lab.two, "v6", lab.victim("v6"))
        begun = time.monotonic()
        lab.one.stop(signal.SIGKILL)
        until(lambda: scene.all_at(lab.two), 90, f"all move: {scene.a.tail()}")
        record_property("figure", f"clock three days ahead: moved there after {time.monotonic() - begun:.2f} s")
        lab.one.start()

    try:
        await scene.undisturbed(weather, record_property, "clock of a coordinator moved")
    finally:
        lab.two.stop()
        lab.two.environment = {}


async def test_both_coordinators_are_killed(scene: Scene, record_property: Figure) -> None:
    """The mesh works on without; who asks is told; all is as before when one of them is back."""
    lab = scene.lab

    def weather() -> None:
        for coordinator in lab.coordinators:
            coordinator.stop(signal.SIGKILL)
        until(lambda: not any(n.status()["link"]["connected"] for n in scene.nodes), READY_S, "all notice")
        done = lab.one.command("revoke", "a")
        assert (done.returncode, "does not answer" in done.stderr) == (6, True), done.stderr
        assert "the mesh works on" in scene.a.meshctl("status").stdout
        lab.two.start()
        until(lambda: scene.all_at(lab.two), 60, "all come to the one that is back")

    await scene.undisturbed(weather, record_property, "both coordinators killed")


async def test_coordinator_and_leader_of_etcd_are_killed_at_once(scene: Scene, record_property: Figure) -> None:
    lab = scene.lab
    lab.send(lab.two, *scene.nodes)

    def weather() -> None:
        leader = lab.cluster.leader()
        begun = time.monotonic()
        leader.kill()
        lab.two.stop(signal.SIGKILL)
        until(lambda: scene.all_at(lab.one), 60, "all move")
        said = scene.revoke(lab.one, "v8", lab.victim("v8"))
        record_property("figure", f"coordinator and leader killed: {said}, {time.monotonic() - begun:.2f} s after")

    await scene.undisturbed(weather, record_property, "coordinator and leader of etcd killed")


async def test_coordinator_is_killed_while_an_operator_waits(scene: Scene, record_property: Figure) -> None:
    """The revocation stands, the operator is told that its proof is open, and gets it from the other coordinator."""
    lab = scene.lab
    lab.send(lab.two, scene.a, scene.b)
    key = lab.victim("v9")
    scene.c.signal(signal.SIGSTOP)  # so that there is something to wait for

    def weather() -> None:
        running = lab.two.waiting("revoke", "v9", "--wait", "--timeout", "60s")
        until(lambda: key not in scene.a.peers(), READY_S, "it is revoked")
        until(lambda: "is revoked at revision" in lab.two.said(), READY_S, "and said")
        lab.two.stop(signal.SIGKILL)
        assert running.wait(30) == 6, lab.two.said()
        assert "revocation of v9 stands, but who applied it is not known" in lab.two.said()
        hint = lab.two.said().rsplit("mesh-coordinator ", 1)[1].split()
        scene.c.signal(signal.SIGCONT)
        done = lab.one.command(*hint, "--timeout", "40s")
        assert (done.returncode, "applied by 3 members" in done.stdout) == (0, True), done.stdout + done.stderr
        assert key not in scene.c.peers()

    await scene.undisturbed(weather, record_property, "coordinator killed during revoke --wait")


def test_what_nobody_can_ask_for(scene: Scene) -> None:
    """A revision that does not exist yet, a coordinator's file of settings that claims its model's address."""
    done = scene.lab.one.command("applied", "999999", "--timeout", "1s")
    assert (done.returncode, "has not heard of revision 999999 yet" in done.stderr) == (6, True), done.stderr
