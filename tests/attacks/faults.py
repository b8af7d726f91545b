"""The faults: what is done to the mesh, which code must say so, where and within which time, and how it is undone.

Promises: what is wrong with the node's own interface shows within 2 s, a node that is gone within 8 s, what is wrong
with a pair within two coverage periods and the check's grace (meshctl/mesh/catalogue.py). Others say what they add.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from meshctl.agent.psk import LOOK_S as LATE_S
from meshctl.agent.store import Store
from meshctl.mesh import catalogue, limits, pacing, schedule
from meshctl.mesh.catalogue import CATALOGUE
from meshctl.mesh.judges import DIFFER_S
from tests.attacks.scene import NAMES, STRANGER, STRANGER_AT, Scene
from tests.harness.mesh import MESHCTL, READY_S, until
from tests.netns.test_clock import moved

INTERFACE_S: Final = 2.0
DEAD_S: Final = 8.0
LOOK_S: Final = limits.WATCH_EVERY_S
CLOCK_S: Final = "+40s"  # beyond CLOCK_SKEW_FAIL_S, and no handshake becomes older than REJECT_AFTER_S by it
Act = Callable[[Scene], float | None]


def pair_s(code: str, more_s: float = 0.0) -> float:
    """The promise for a pair."""
    return 2 * schedule.coverage_s(len(NAMES)) + CATALOGUE[code].grace_s + more_s


@dataclass(frozen=True)
class Fault:
    """`inject` and `repair` may return the (monotonic) moment from which the time counts. `code` empty: nothing
    critical may open until `inject` returns.
    """

    what: str
    code: str
    node: str  # who must say so
    subject: str  # of whom; empty: of itself
    promised_s: float
    inject: Act
    repair: Act = lambda _: None

    @property
    def must_fail(self) -> bool:
        """A pair that is broken is more than degraded; what the node itself repairs is not."""
        return bool(self.subject)


def _killed(s: Scene) -> None:
    os.kill(s["c"].wireguard_go(), signal.SIGKILL)


def _down_under_traffic(s: Scene) -> None:
    s.leave("flow", "ping", "-q", "-i", "0.05", s["g"].mesh_address(), at=s["e"].ns)
    s.do("e", "ip", "link", "set", s["e"].interface, "down")


def _old_key(s: Scene) -> float:
    node = s["c"]
    node.stop()
    store = Store(node.state)
    store.save_membership(replace(store.membership(), key_made_at=time.time() - limits.KEY_AGE_FAIL_S - 86400))
    node.up()
    return time.monotonic()


def _not_renewed(s: Scene) -> float:
    s.cut_off("c")
    node = s["c"]
    node.stop()
    done = s.lab.coordinator.run(
        sys.executable, "-m", "tests.attacks.expired", str(s.lab.coordinator.data), str(node.state)
    )
    assert done.returncode == 0, done.stderr
    node.up()
    return time.monotonic()


def _impostor(s: Scene) -> None:
    node = s["f"]
    own = s["g"].peer("f")
    node.stop(signal.SIGKILL)
    program = sys.executable, "-m", "tests.attacks.impostor"
    s.leave("impostor", *program, own["address4"], own["address6"], at=node.ns)


def _impostor_gone(s: Scene) -> None:
    s.take("impostor")
    s["f"].up()


def _elsewhere(s: Scene) -> None:
    there = f"ip daddr {s['h'].address} udp dport 51820"
    s.filter(s["g"].ns, "ip elsewhere", output=f"{there} ip daddr set {STRANGER_AT}")


def _lie(s: Scene) -> float:
    s.restart("i", sys.executable, "-m", "tests.attacks.liar")
    until(lambda: s["i"].proves("h") and s["i"].status()["link"]["connected"], READY_S, "the liar runs")
    s.drop_on_the_wire("liar", "i", "h")
    return time.monotonic()


def _truth(s: Scene) -> None:
    s.unfilter(s.lab.hub, "bridge liar")
    s["i"].program = MESHCTL  # from its next start


def _reboot_behind_a_firewall(s: Scene) -> float:
    node, peer = s["i"], s["d"].address
    s.filter(node.ns, "ip firewall", input=f"ip saddr {peer} udp dport 51820 drop", output=f"ip daddr {peer} drop")
    node.stop()
    node.drop_interface()
    node.up()
    return time.monotonic()


def _missed_a_rotation(s: Scene) -> float:
    s.cut_off("h")
    s.rotate("g", "--force")
    return time.monotonic()


def _through_middlebox(*, copies: int = 1, delay_s: float = 0.0) -> Act:
    def act(s: Scene) -> None:
        s.order(copies=copies, delay_s=delay_s)
        begun, before = time.monotonic(), s.carried()
        until(lambda: s.carried() > before + 100 and time.monotonic() - begun > DEAD_S, 60, "frames pass")

    return act


def _f4(s: Scene, name: str) -> str:
    return f"{s['g'].peer(name)['address4'] if name != 'g' else s['g'].mesh_address()}/32"


# Chains run side by side, the faults of one after the other: so that each is alone on its nodes.
def _lost_keys(s: Scene) -> float:
    """As a machine without its state directory, and what is said of it does not arrive."""
    node, peer = s["b"], s["a"].key()
    until(lambda: node.peer("a")["psk"] and s["a"].peer("b")["psk"], READY_S, "the two have agreed")
    made = node.peers()[peer].handshake
    s.wg("b", "peer", peer, "remove")  # comes back with a young session: they agree in it, and it ends after 180 s
    until(lambda: (one := node.peers().get(peer)) and one.handshake > made, READY_S, "a young session")
    node.stop()
    Store(node.state).forget_bunches()
    s.filter(node.ns, "inet deaf", input="udp dport 51871 @th,64,32 0x4d4b5131 drop")  # by their magic
    node.up()
    until(lambda: node.proves("a"), READY_S, "it is back")
    return time.monotonic()


def _found_keys(s: Scene) -> None:
    """They agree anew; a handshake, which is due every two minutes, comes at once."""
    node, peer = s["b"], s["a"]
    s.unfilter(node.ns, "inet deaf")
    until(lambda: node.peer("a")["psk"], READY_S, "they agree")
    until(lambda: node.is_ripe(peer) and peer.is_ripe(node), READY_S, "a handshake counts at both ends")
    s.wg("b", "peer", peer.key(), "remove")


CHAINS: Final[tuple[tuple[Fault, ...], ...]] = (
    (
        Fault("peer's key swapped with wg set", catalogue.DRIFT, "a", "", INTERFACE_S,
              lambda s: s.wg("a", "peer", s["g"].key(), "remove", "peer", STRANGER, "allowed-ips", _f4(s, "g"))),
        Fault("coordinator cut off from the node", catalogue.LAG, "a", "",
              pacing.silence_s(len(NAMES)) + CATALOGUE[catalogue.LAG].grace_s + 2 * LOOK_S,
              lambda s: s.cut_off("a"), lambda s: s.unfilter(s["a"].ns, "inet cut")),
    ),
    (
        Fault("allowed IPs widened", catalogue.DRIFT, "b", "", INTERFACE_S,
              lambda s: s.wg("b", "peer", s["g"].key(), "allowed-ips", "10.77.0.0/16,0.0.0.0/1")),
        Fault("clock of the node 40 s ahead", catalogue.CLOCK, "b", "", pair_s(catalogue.CLOCK),
              lambda s: s.restart("b", **moved(0) | {"FAKETIME": CLOCK_S}), lambda s: s.restart("b")),
        Fault("pre-shared keys lost, and nothing heard of it", catalogue.PSK, "a", "b",
              pair_s(catalogue.PSK, DIFFER_S + 2 * LOOK_S + LATE_S), _lost_keys, _found_keys),
    ),
    (
        Fault("wireguard-go killed", catalogue.DRIFT, "c", "", INTERFACE_S, _killed),
        Fault("key 91 days old", catalogue.KEY, "c", "", CATALOGUE[catalogue.KEY].grace_s + 2 * LOOK_S,
              _old_key, lambda s: s.rotate("c")),
        Fault("stale key statement replayed", catalogue.LAG, "g", "", pair_s(catalogue.LAG),
              lambda s: s.tell("c", s.statement["c"]), lambda s: s.tell("c", "")),
        Fault("certificate not renewed for two days", catalogue.KEY, "c", "",
              CATALOGUE[catalogue.KEY].grace_s + 2 * LOOK_S,
              _not_renewed, lambda s: s.unfilter(s["c"].ns, "inet cut")),
    ),
    (
        Fault("interface deleted", catalogue.DRIFT, "d", "", INTERFACE_S,
              lambda s: s.do("d", "ip", "link", "del", s["d"].interface)),
        Fault("middlebox duplicates every packet", "", "d", "", 0.0, _through_middlebox(copies=2),
              lambda s: s.order()),
        Fault("middlebox delays every packet by 0.3 s", "", "d", "", 0.0, _through_middlebox(delay_s=0.3),
              lambda s: s.order()),
    ),
    (
        Fault("interface put down under traffic", catalogue.DRIFT, "e", "", INTERFACE_S, _down_under_traffic,
              lambda s: s.take("flow")),
        Fault("agent stopped, its WireGuard runs", catalogue.PATH, "g", "e", DEAD_S,
              lambda s: s["e"].signal(signal.SIGSTOP), lambda s: s["e"].signal(signal.SIGCONT)),
    ),
    (
        Fault("/32 route that would send in clear", catalogue.ROUTE, "f", "", INTERFACE_S,
              lambda s: s.do("f", "ip", "route", "add", _f4(s, "a"), "dev", "eth0"),
              lambda s: s.do("f", "ip", "route", "del", _f4(s, "a"), "dev", "eth0")),
        Fault("another agent answers for the node", catalogue.IDENTITY, "g", "f", pair_s(catalogue.IDENTITY),
              _impostor, _impostor_gone),
        Fault("node off the wire", catalogue.PATH, "g", "f", DEAD_S,
              lambda s: s.do("f", "ip", "link", "set", "eth0", "down"),
              lambda s: s.do("f", "ip", "link", "set", "eth0", "up")),
    ),
    (
        Fault("middlebox drops one direction", catalogue.PATH, "h", "g", pair_s(catalogue.PATH),
              lambda s: s.drop_on_the_wire("oneway", "g", "h"), lambda s: s.unfilter(s.lab.hub, "bridge oneway")),
        Fault("endpoint is somebody else's WireGuard", catalogue.PATH, "g", "h", pair_s(catalogue.PATH),
              _elsewhere, lambda s: s.unfilter(s["g"].ns, "ip elsewhere")),
        Fault("peer did not hear of a rotation", catalogue.ROTATION, "g", "h", pair_s(catalogue.ROTATION),
              _missed_a_rotation, lambda s: s.unfilter(s["h"].ns, "inet cut")),
    ),
    (
        Fault("one end lies about a dead path", catalogue.ASYMMETRY, "h", "i",
              pair_s(catalogue.ASYMMETRY, limits.HEARTBEAT_S), _lie, _truth),
        Fault("reboot behind a firewall", catalogue.HANDSHAKE, "i", "d", pair_s(catalogue.HANDSHAKE),
              _reboot_behind_a_firewall, lambda s: s.unfilter(s["i"].ns, "ip firewall")),
    ),
)  # fmt: skip
FAULTS: Final = tuple(fault for chain in CHAINS for fault in chain)
