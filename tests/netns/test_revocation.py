"""A node is thrown out, or taken off and let in again: what kernels, front and registry make of it (ACC-5).

Revoked: no kernel holds its key, its stream is cut, it cannot renew and it cannot come back, also after a restart.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.harness.mesh import READY_S, Lab, Node, until

pytestmark = pytest.mark.root


@dataclass
class Scene:
    lab: Lab
    a: Node
    b: Node
    thief: Node


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Lab() as lab:
        yield Scene(lab, *lab.members("a", "b", "thief"))


def is_shut_out(thief: Node) -> bool:
    return thief.status().get("link", {}).get("connected") is False


def refusal_of_renewal(thief: Node) -> str:
    """What the coordinator says to a proof of the device key."""
    answer = thief.asking("renew", str(thief.state))
    assert answer["error"] == "RefusedError", answer
    return str(answer["what"])


def test_revoked_node_is_dropped_by_every_kernel_within_seconds(
    scene: Scene, record_property: Callable[[str, object], None]
) -> None:
    lab, thief = scene.lab, scene.thief
    key, before = thief.key(), scene.a.peers()[scene.b.key()]
    begun = time.monotonic()
    lab.coordinator.revoke("thief")
    until(
        lambda: key not in scene.a.peers() and key not in scene.b.peers(), READY_S, "both kernels have dropped the key"
    )
    record_property(
        "figure", f"revocation: the last of two kernels dropped the key after {time.monotonic() - begun:.2f} s"
    )
    until(lambda: is_shut_out(thief), READY_S, "its stream is cut")
    record_property("figure", f"revocation: the node's own stream was cut after {time.monotonic() - begun:.2f} s")
    after = scene.a.peers()[scene.b.key()]
    assert min(after.rx - before.rx, after.tx - before.tx) >= 0, "the others' session goes on"
    assert "revoked" in refusal_of_renewal(thief)
    until(lambda: "revoked" in thief.status()["link"]["error"], READY_S, f"it is told why: {thief.status()['link']}")


def test_revocation_survives_the_coordinator(scene: Scene) -> None:
    lab, thief = scene.lab, scene.thief
    lab.coordinator.stop(signal.SIGKILL)
    lab.coordinator.start()
    assert "thief" not in lab.coordinator.nodes()
    assert "revoked" in refusal_of_renewal(thief)
    until(lambda: all(n.status()["link"]["connected"] for n in (scene.a, scene.b)), READY_S, "the others are back")
    assert is_shut_out(thief)
    assert thief.key() not in scene.a.peers()


def test_revoked_node_cannot_join_again(scene: Scene) -> None:
    lab, thief = scene.lab, scene.thief
    thief.stop()
    thief.drop_interface()
    (thief.state / "membership").unlink()  # as somebody who wants back in would, keeping the keys
    token = lab.coordinator.token()
    done = thief.join(token)
    assert (done.returncode, "revoked" in done.stderr) == (7, True), done.stderr
    assert lab.machine("honest").join(token).returncode == 0, "the token is unspent"


def test_operator_sees_the_revocation_proven(scene: Scene, record_property: Callable[[str, object], None]) -> None:
    scene.lab.coordinator.remove("honest")  # its agent never ran: it would be a straggler
    extra = scene.lab.member("extra")
    until(lambda: extra.proves("a", "b"), READY_S, extra.tail())
    done = scene.lab.coordinator.command("revoke", "extra", "--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"applied by 2 \w+ in \d+\.\d+ s", done.stdout), done.stdout
    record_property("figure", done.stdout.splitlines()[-1])
    assert extra.key() not in {**scene.a.peers(), **scene.b.peers()}


def test_removed_node_comes_back_to_its_address(scene: Scene) -> None:
    """Off the registry, then in again with a new token and the same keys: same id, same address."""
    lab = scene.lab
    guest = lab.member("guest")
    until(lambda: guest.proves("a", "b"), READY_S, guest.tail())
    before, key = guest.status()["node"], guest.key()
    lab.coordinator.remove("guest")
    until(lambda: key not in scene.a.peers(), READY_S, "a has dropped the key")
    guest.stop()
    guest.drop_interface()
    (guest.state / "membership").unlink()
    again = guest.join(lab.coordinator.token())
    assert again.returncode == 0, again.stderr
    guest.up()
    until(lambda: guest.proves("a", "b"), READY_S, guest.tail())
    assert guest.status()["node"] == before
