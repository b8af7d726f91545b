"""Pre-shared keys between real agents on a real WireGuard: agreed, proven by a handshake, renewed, kept; and every
moment at which a crash could part the two ends (NET-6, MESH-ENC-002).

A handshake is due every two minutes. Where a test cannot wait for it, a peer is removed with `wg set`, which ends the
session; the agent puts it back, and a handshake follows.
"""

from __future__ import annotations

import base64
import gzip
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from meshctl.agent.store import Store
from meshctl.mesh.catalogue import PSK
from meshctl.mesh.probe import raw_id
from tests.harness.mesh import PATIENCE, READY_S, Lab, Node, until

pytestmark = pytest.mark.root
STEPS_S = 75.0 * PATIENCE  # until an end without handshakes has tried all it has, some of it twice
# By the magic of a packet, and by the version that its sender has in force.
DEAF = """
table inet deaf {
  chain in { type filter hook input priority 0; udp dport 51871 @th,64,32 0x4d4b5131 @th,392,32 != %d counter drop; }
}
"""
ANY = 0xFFFFFFFF


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def pair(lab: Lab, period_s: float = 86400.0) -> tuple[Node, Node]:
    """(who leads, who follows), agreed on a first version."""
    for name in "ab":
        node = lab.machine(name)
        node.environment["MESHCTL_PSK_RENEW_S"] = str(period_s)
        assert node.join(lab.coordinator.token()).returncode == 0
        node.up()
    leader, follower = sorted(lab.nodes, key=lambda node: raw_id(Store(node.state).identity().id))
    until(lambda: agreed(leader, follower), READY_S, f"they agree: {leader.tail()}")
    return leader, follower


def held(node: Node, peer: Node) -> str:
    """What WireGuard has for this peer."""
    lines = node.run("wg", "show", node.interface, "preshared-keys").stdout.split("\n")
    return dict(line.split("\t") for line in lines if line).get(peer.key(), "(none)")


def told(node: Node, peer: Node) -> dict[str, Any]:
    return node.peer(peer.name).get("psk") or {"version": 0, "proven": False}


def agreed(a: Node, b: Node, version: int = 1) -> bool:
    """Both kernels have the same key, of this version or a later one."""
    same = held(a, b) == held(b, a) != "(none)"
    return same and told(a, b)["version"] == told(b, a)["version"] >= version


def proven(a: Node, b: Node, version: int = 1) -> bool:
    return agreed(a, b, version) and told(a, b)["proven"] and told(b, a)["proven"]


def row(node: Node, peer: Node) -> dict[str, Any]:
    rows = node.status().get("rows", [])
    return next((row for row in rows if (row["code"], row["name"]) == (PSK, peer.name)), {"verdict": None})


def ripen(a: Node, b: Node) -> None:
    """Both ends set the key long enough ago."""
    until(lambda: a.is_ripe(b) and b.is_ripe(a), 20, "the margin passes")


def end_session(node: Node, peer: Node) -> None:
    """A handshake follows, late enough to count at both ends."""
    ripen(node, peer)
    node.run("wg", "set", node.interface, "peer", peer.key(), "remove")


def prove(a: Node, b: Node, version: int = 1) -> None:
    end_session(a, b)
    until(lambda: proven(a, b, version), READY_S, f"a handshake proves it: {told(a, b)} {told(b, a)}")


def test_a_pair_agrees_after_a_join_a_handshake_proves_it_and_nothing_secret_is_told(lab: Lab) -> None:
    a, b = pair(lab)
    assert row(a, b)["verdict"] == "unknown"
    prove(a, b)
    until(lambda: row(a, b)["verdict"] == row(b, a)["verdict"] == "ok", READY_S, f"{row(a, b)}")
    (bunch,) = Store(a.state).bunches().values()
    assert len(bunch.keys) == 1
    key = held(a, b)
    lab.coordinator.stop()
    for node in (a, b):
        node.stop()
        node.up()
    until(lambda: a.proves("b") or a.proves("a"), READY_S, f"without a coordinator: {a.tail()}")
    assert held(a, b) == held(b, a) == key
    until(lambda: proven(a, b), READY_S, "the version is known from the disk")
    assert a.meshctl("plan").stdout.count("preshared") == 0
    a.run("wg", "set", a.interface, "peer", b.key(), "preshared-key", "/dev/null")
    until(lambda: held(a, b) == key, READY_S, "what was taken away is set again")
    _nothing_secret(a, key)
    a.stop()
    assert a.meshctl("leave", "--force").returncode == 0
    assert not (a.state / "psk").exists()


def _nothing_secret(node: Node, key: str) -> None:
    raw = base64.b64decode(key)
    secrets = key.encode(), raw, raw.hex().encode(), base64.urlsafe_b64encode(raw)
    bundle = node.state.with_suffix(".tar.gz")
    assert node.meshctl("debug", "bundle", "--output", str(bundle)).returncode == 0
    packed = gzip.decompress(bundle.read_bytes())
    assert b"psk" in packed
    told = [
        node.log.read_bytes(), (node.state / "events.jsonl").read_bytes(), repr(node.status()).encode(),
        packed, *(path.read_bytes() for path in node.state.glob("psk/*")),
    ]  # fmt: skip
    assert not [secret for secret in secrets for text in told if secret in text]


def test_keys_are_renewed_and_a_rotation_of_wireguard_keys_keeps_them(lab: Lab) -> None:
    a, b = pair(lab, 12.0)
    until(lambda: agreed(a, b, 3), READY_S, f"renewed: {told(a, b)} {told(b, a)} {a.tail()}")
    for node in (a, b):
        node.environment.clear()
        node.stop()
        node.up()
    until(lambda: a.proves(b.name) and b.proves(a.name) and agreed(a, b, 3), READY_S, f"they are back: {a.tail()}")
    before, wireguard = held(a, b), a.key()
    ripen(a, b)
    done = lab.coordinator.keys("rotate", "--all", "--wait", "--timeout", "60s")
    assert done.returncode == 0, done.stdout
    assert a.key() != wireguard
    assert held(a, b) == held(b, a) == before
    until(lambda: proven(a, b, 3), READY_S, f"the handshake of the rotation proves it: {told(a, b)} {told(b, a)}")


def parted(lab: Lab) -> tuple[Node, Node]:
    """(leader, follower): the follower has set the second version, the leader has it on file, and is dead."""
    leader, follower = pair(lab)
    prove(leader, follower)
    first = held(leader, follower)
    leader.stop()
    leader.ns.command("nft", "-f", "-", stdin=DEAF % 1)
    leader.environment["MESHCTL_PSK_RENEW_S"] = "5"
    leader.up()
    until(lambda: held(follower, leader) != first, READY_S, f"the follower sets another: {told(follower, leader)}")
    leader.stop(signal.SIGKILL)
    assert held(leader, follower) == first
    (bunch,) = Store(leader.state).bunches().values()
    assert bunch.next > bunch.now == bunch.good
    leader.ns.command("nft", "delete", "table", "inet", "deaf")
    leader.environment.clear()
    return leader, follower


def test_leader_killed_between_the_two_sets_and_back_at_once(lab: Lab) -> None:
    leader, follower = parted(lab)
    leader.up()
    until(lambda: agreed(leader, follower, 2), READY_S, f"they agree: {told(leader, follower)}")
    prove(leader, follower, 2)


def test_leader_killed_between_the_two_sets_while_the_session_ends(lab: Lab) -> None:
    """Its WireGuard goes on with the key before; the follower goes back to that."""
    leader, follower = parted(lab)
    first = held(leader, follower)
    assert held(follower, leader) != first
    follower.run("wg", "set", follower.interface, "peer", leader.key(), "remove")
    until(lambda: held(follower, leader) == first, STEPS_S, f"it goes back: {told(follower, leader)}")
    shaken = lambda: follower.peers()[leader.key()].handshake > 0  # noqa: E731
    until(shaken, READY_S, "a handshake with what was proven before")
    leader.up()
    until(lambda: agreed(leader, follower, 2), STEPS_S, f"they agree: {told(leader, follower)}")


def test_a_machine_that_lost_its_keys_in_a_reboot_agrees_by_letter_and_says_so_while_there_is_no_coordinator(
    lab: Lab, record_property: Callable[[str, object], None]
) -> None:
    """None is not tried after a proof; the other end says what it sees (MESH-ENC-002)."""
    leader, follower = pair(lab)
    prove(leader, follower)
    key = held(follower, leader)
    leader.stop()
    lab.coordinator.stop()
    Store(leader.state).forget_bunches()
    public = leader.key()
    leader.drop_interface()
    follower.run("wg", "set", follower.interface, "peer", public, "remove")
    leader.up()
    until(lambda: row(follower, leader)["verdict"] == "degraded", 2 * STEPS_S, f"{row(follower, leader)}")
    assert "none succeeds" in row(follower, leader)["evidence"]
    assert set(follower.run("wg", "show", follower.interface, "preshared-keys").stdout.split()[1::2]) == {key}
    lab.coordinator.start()
    begun = time.monotonic()
    until(lambda: agreed(leader, follower, 2), 2 * STEPS_S, f"they agree: {told(leader, follower)}")
    until(lambda: leader.proves(follower.name) and follower.proves(leader.name), READY_S, "and reach each other")
    record_property("figure", f"keys lost in a reboot: agreed by letter after {time.monotonic() - begun:.1f} s")
    prove(leader, follower, 2)
    leader.stop()
    assert leader.meshctl("leave").returncode == 0
    until(lambda: not list((follower.state / "psk").iterdir()), READY_S, "the keys of who left are forgotten")


def test_a_machine_whose_keys_were_lost_is_told_of_and_agrees_anew_while_the_tunnel_stands(lab: Lab) -> None:
    """MESH-ENC-002: the two ends have different versions, and nothing of what they say about it arrives."""
    leader, follower = pair(lab)
    prove(leader, follower)
    leader.stop()
    Store(leader.state).forget_bunches()
    leader.ns.command("nft", "-f", "-", stdin=DEAF % ANY)
    leader.up()
    until(lambda: row(follower, leader)["verdict"] == "failed", READY_S, f"{row(follower, leader)}")
    assert "the peer none" in row(follower, leader)["evidence"]
    until(lambda: any(f["code"] == PSK for f in follower.status()["findings"]), READY_S, "a finding is open")
    leader.ns.command("nft", "delete", "table", "inet", "deaf")
    until(lambda: agreed(leader, follower, 2), READY_S, f"they agree: {told(leader, follower)}")
    until(lambda: row(follower, leader)["verdict"] == "ok", READY_S, f"{row(follower, leader)}")
    prove(leader, follower, 2)
