"""An agent dies, sleeps, is cut off or has a full disk: its tunnels stay, and `--wait` tells the truth about it (NET-4,
ACC-5, OPS-2). The rows of the README's failure table that begin with a node.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.harness.mesh import READY_S, Node, until
from tests.harness.replicas import NO_COORDINATORS, Replicas
from tests.harness.udp_flow import lost_during

pytestmark = pytest.mark.root
Figure = Callable[[str, object], None]


class Scene:
    """Three nodes; the disk of the first can be filled."""

    def __init__(self, lab: Replicas) -> None:
        self.lab = lab
        self.a = lab.machine("a")
        self.a.state.mkdir(mode=0o700)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=0700", "mn-lab", self.a.state], check=True)
        joined = self.a.join(lab.one.token())
        assert joined.returncode == 0, joined.stderr
        self.a.up()
        self.b, self.c = lab.members("b", "c")
        self.nodes: tuple[Node, ...] = self.a, self.b, self.c
        until(lambda: lab.all_prove(*self.nodes), READY_S, self.a.tail())

    async def undisturbed(self, weather: Callable[[], object], record: Figure, what: str) -> None:
        """No packet between a and b is lost beyond the control, and every pair is proven afterwards."""
        mesh, wire, sent = await lost_during(self.lab, weather)
        record("figure", f"{what}: {mesh} of {sent} lost, {wire} on the bare wire")
        assert sent > 20
        assert mesh <= wire

    def revoke_without_a(self, name: str, words: str) -> str:
        """All but `a` follow; it is named, and its kernel holds the key still -> the key."""
        key = self.lab.victim(name)
        until(lambda: all(key in node.peers() for node in (self.b, self.c)), READY_S, "peers know it")
        done = self.lab.one.command("revoke", name, "--wait", "--timeout", "2s")
        assert done.returncode == 11, done.stdout + done.stderr
        assert "applied by 2 members" in done.stdout
        assert f"not yet by: {words}" in done.stdout
        assert not [node.name for node in (self.b, self.c) if key in node.peers()]
        return key

    def heals(self, key: str) -> None:
        """Whatever it missed, it has now."""
        done = self.lab.two.command("applied", "--timeout", "40s")
        assert (done.returncode, "applied by 3 members" in done.stdout) == (0, True), done.stdout + done.stderr
        assert key not in self.a.peers()
        until(lambda: self.lab.all_prove(*self.nodes), READY_S, "every pair is proven")


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Replicas() as lab:
        state = lab.directory / "a"
        try:
            yield Scene(lab)
        finally:
            for node in lab.nodes:
                node.stop()
            subprocess.run(["umount", "-l", state], check=False)


@pytest.fixture(autouse=True)
def _mended(scene: Scene) -> Iterator[None]:
    yield
    scene.a.ns.command("nft", "delete", "table", "inet", "cut", check=False)
    if scene.a.pid is None:
        scene.a.up()
    scene.lab.mend(*scene.nodes)


async def test_agent_is_killed(scene: Scene, record_property: Figure) -> None:
    def weather() -> None:
        scene.a.stop(signal.SIGKILL)
        until(lambda: not scene.lab.one.nodes()["a"].connected, READY_S, "its coordinator notices")
        key = scene.revoke_without_a("killed", "a (not connected)")
        scene.a.up()
        until(scene.a.status, READY_S, "it starts")
        scene.heals(key)

    await scene.undisturbed(weather, record_property, "agent killed")


async def test_agent_is_paused(scene: Scene, record_property: Figure) -> None:
    def weather() -> None:
        scene.a.signal(signal.SIGSTOP)
        key = scene.revoke_without_a("paused", "a")
        scene.a.signal(signal.SIGCONT)
        scene.heals(key)

    await scene.undisturbed(weather, record_property, "agent paused")


async def test_node_is_cut_off_from_all_coordinators(scene: Scene, record_property: Figure) -> None:
    """Its tunnels stay; the revoked key stays in its kernel alone, and it is named for that."""

    def weather() -> None:
        scene.a.ns.command("nft", "-f", "-", stdin=NO_COORDINATORS)
        key = scene.revoke_without_a("cut-off", "a")
        until(lambda: not scene.a.status()["link"]["connected"], READY_S, "it notices")
        scene.a.ns.command("nft", "delete", "table", "inet", "cut")
        scene.heals(key)

    await scene.undisturbed(weather, record_property, "node cut off from coordinators")


def test_node_is_off_the_wire(scene: Scene) -> None:
    """Nothing reaches it; all others are proven to each other, and it is back by itself when the wire is."""
    scene.a.ns.command("ip", "link", "set", "eth0", "down")
    key = scene.revoke_without_a("off-wire", "a")
    assert scene.lab.all_prove(scene.b, scene.c)
    scene.a.ns.command("ip", "link", "set", "eth0", "up")
    until(lambda: scene.lab.at(scene.a), 60, f"it is back: {scene.a.tail()}")
    scene.heals(key)


async def test_disk_of_a_node_is_full(scene: Scene, record_property: Figure) -> None:
    """It follows and works; what it cannot keep, it is told again after a restart."""
    filler = scene.a.state / "filler"

    def weather() -> None:
        assert scene.a.run("dd", "if=/dev/zero", f"of={filler}", "bs=64k").returncode, "until nothing fits"
        key = scene.lab.victim("full")
        until(lambda: key in scene.a.peers(), READY_S, "it hears of a new node")
        done = scene.lab.one.command("revoke", "full", "--wait", "--timeout", "20s")
        assert (done.returncode, "applied by 3 members" in done.stdout) == (0, True), done.stdout
        scene.lab.send(scene.lab.two, *scene.nodes)
        scene.lab.send(scene.lab.one, *scene.nodes)
        assert scene.a.status()["link"]["connected"]

    try:
        await scene.undisturbed(weather, record_property, "disk of a node full")
    finally:
        filler.unlink(missing_ok=True)
    until(lambda: scene.lab.all_prove(*scene.nodes), READY_S, "every pair is proven")
