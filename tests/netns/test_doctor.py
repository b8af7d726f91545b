"""doctor on real hosts with real faults: what it finds, and that the command it prints repairs it (NET-7, OPS-4)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.harness.mesh import Lab, Node, until

pytestmark = pytest.mark.root
NFT = """table inet site {
  chain first { type filter hook input priority 0; policy accept; jump hosts; }
  chain hosts { ct state established accept; udp dport 51000-52000 reject; }
}"""
UPLINKS = """ip route add default via 203.0.113.1
ip link add up1 type veth peer name up2; ip address add 198.51.100.2/24 dev up1; ip link set up1 up
ip route add default via 198.51.100.1 metric 200; sysctl -qw net.ipv4.conf.up1.rp_filter=1"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        made.members("a", "b")
        yield made


def doctor(node: Node) -> tuple[int, dict[str, dict[str, Any]]]:
    done = node.meshctl("doctor", "--json")
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, {row["code"]: row for row in json.loads(done.stdout)["checks"]}


def wrong(node: Node) -> dict[str, dict[str, Any]]:
    """Without the clock of the machine that runs the tests, which may have no time daemon."""
    return {code: row for code, row in doctor(node)[1].items() if row["verdict"] != "ok" and code != "HOST-NTP"}


def shell(node: Node, script: str) -> None:
    done = node.run("sh", "-ec", script)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("code", "fault", "undo", "verdict"),
    [
        ("HOST-RPF", UPLINKS, "ip link del up1; ip route del default", "degraded"),
        ("HOST-ROUTE", "ip route add 10.77.5.0/24 dev eth0", "", "failed"),
        ("HOST-FIREWALL", f"nft '{NFT}'", "nft delete table inet site", "failed"),
        ("HOST-MTU", "ip link set eth0 mtu 1300", "ip link set eth0 mtu 1500", "degraded"),
        ("HOST-STATE", "chmod 644 {state}/seal.key", "", "failed"),
    ],
)
def test_fault_is_found_and_its_command_repairs_it(lab: Lab, code: str, fault: str, undo: str, verdict: str) -> None:
    a = lab.nodes[0]
    until(lambda: not wrong(a), 30, f"all is well before: {wrong(a)}")
    shell(a, fault.replace("{state}", str(a.state)))
    try:
        found = wrong(a)
        assert found[code]["verdict"] == verdict
        assert found.keys() <= {code, "HOST-AGENT"}  # the agent may have noticed, too
        shown = a.meshctl("doctor")
        assert shown.returncode == (2 if "failed" in {row["verdict"] for row in found.values()} else 1)
        assert f"! {code}: {found[code]['evidence']} -> {found[code]['command']}" in shown.stdout
        shell(a, found[code]["command"])
        assert code not in wrong(a)
    finally:
        if undo:
            shell(a, undo)


def test_stopped_agent_is_found(lab: Lab) -> None:
    b = lab.nodes[1]
    b.stop()
    found = wrong(b)
    assert found["HOST-AGENT"]["verdict"] == "failed"
    assert found["HOST-AGENT"]["command"]
    assert "HOST-PORT" not in found  # its wireguard-go holds the port, and goes on
    b.up()
    until(lambda: b.proves("a"), 40, "it is back")


def test_port_that_is_taken_is_found_before_joining(lab: Lab) -> None:
    stranger = lab.machine("stranger")
    assert not wrong(stranger)
    holder = stranger.spawn(
        "python3", "-c", "import socket,signal; s=socket.socket(type=2); s.bind(('',51820)); signal.pause()"
    )
    try:
        found = until(lambda: wrong(stranger), 10, "the port is taken")
        assert found.keys() == {"HOST-PORT"}
        assert "python3" in found["HOST-PORT"]["evidence"]
        assert doctor(stranger)[0] == 2
    finally:
        holder.kill()
        holder.wait()
