"""What a machine or mesh may lack: addresses, a free name, a port, TUN, root. A sentence, a code, nothing left (OPS-4).

The codes are those of meshctl/errors.py: 5 this machine, 7 refused.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshctl.mesh.token import JoinToken
from tests.harness.mesh import MESHCTL, Lab, Node, until

pytestmark = pytest.mark.root
NOBODY = 65534
AS_NOBODY = (  # everything is imported first: the interpreter itself may live where nobody can read
    "import os, sys, meshctl.cli.joining, meshctl.cli.main as m, meshctl.agent.join, meshctl.agent.daemon;"
    f" os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY}); m.main()"
)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(prefix4="10.77.0.0/28") as lab:
        yield lab


def assert_untouched(node: Node) -> None:
    """No interface, route, rule, daemon or membership."""
    assert node.run("ip", "link", "show", node.interface).returncode != 0
    assert "unreachable" not in node.run("ip", "route").stdout
    assert node.run("nft", "list", "tables").stdout == ""
    assert not Path(f"/var/run/wireguard/{node.interface}.sock").exists()
    assert not (node.state / "membership").exists()


def uses_left(lab: Lab, token: str) -> int:
    return next(t.uses for t in lab.coordinator.tokens() if t.id == JoinToken.parse(token).id)


def test_name_is_taken(lab: Lab) -> None:
    assert lab.machine("twin").join(lab.coordinator.token()).returncode == 0
    token, other = lab.coordinator.token(), lab.machine("twin-too")
    other.name = "twin"
    done = other.join(token)
    assert (done.returncode, "the name 'twin' is taken" in done.stderr, "--name" in done.stderr) == (7, True, True)
    assert uses_left(lab, token) == 1
    assert_untouched(other)
    other.name = "twin-too"
    assert other.join(token).returncode == 0


def test_port_is_taken(lab: Lab) -> None:
    token, node = lab.coordinator.token(), lab.machine("crowded")
    with node.ns.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as squatter:
        squatter.bind(("0.0.0.0", 51820))
        done = node.join(token)
    assert (done.returncode, "UDP port 51820 is taken" in done.stderr, "--listen-port" in done.stderr) == (
        5,
        True,
        True,
    )
    assert uses_left(lab, token) == 1
    assert_untouched(node)
    assert not node.state.exists()


def test_port_is_taken_between_joining_and_coming_up(lab: Lab) -> None:
    """The agent says so in its status instead of ending, and comes up by itself when the port is free."""
    node = lab.machine("squeezed")
    assert node.join(lab.coordinator.token()).returncode == 0
    with node.ns.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as squatter:
        squatter.bind(("0.0.0.0", 51820))
        node.up()
        until(lambda: drift(node).get("verdict") == "failed", 30, node.tail())
        assert "UDP port 51820" in drift(node)["evidence"], drift(node)
    until(lambda: drift(node)["verdict"] == "ok", 30, f"comes up: {drift(node)}")
    node.stop()


def drift(node: Node) -> dict[str, str]:
    return next((row for row in node.status().get("rows", []) if row["code"] == "MESH-CFG-001"), {})


def test_there_is_no_tun(lab: Lab) -> None:
    token, node = lab.coordinator.token(), lab.machine("hollow")
    masked = ("unshare", "-m", "sh", "-ec", 'mount -t tmpfs none /dev/net && exec "$@"', "sh")
    own = ("--state-dir", str(node.state), "--interface", node.interface)
    done = node.run(*masked, *MESHCTL, "join", token, "--name", node.name, "--device", "userspace", *own)
    assert (done.returncode, "/dev/net/tun" in done.stderr, "hint:" in done.stderr) == (5, True, True), done.stderr
    assert uses_left(lab, token) == 1
    assert_untouched(node)


@pytest.mark.parametrize("verb", ["join", "up", "leave", "plan", "status"])
def test_there_is_no_root(lab: Lab, verb: str) -> None:
    token, node = lab.coordinator.token(), lab.nodes[0]
    words = (verb, token, "--name", "nobody") if verb == "join" else (verb,)
    done = node.run(MESHCTL[0], "-c", AS_NOBODY, *words, "--state-dir", str(node.state), "--interface", node.interface)
    assert (done.returncode, "root" in done.stderr or "sudo" in done.stderr) == (5, True), done.stderr
    assert "Traceback" not in done.stderr
    assert (node.state / "membership").exists(), "what was there is untouched"
    assert uses_left(lab, token) == 1


def test_prefix_is_exhausted(lab: Lab, tmp_path: Path) -> None:
    """A /28 has 14 addresses. The fifteenth node is told so, and its token stays good."""
    token = lab.coordinator.token(uses=14)

    free = 14 - len(lab.coordinator.nodes())
    assert not any("error" in end for end in lab.coordinator.asking("join", str(free), str(tmp_path), stdin=token))
    assert len({state.node.address4 for state in lab.coordinator.nodes().values()}) == 14
    fresh, node = lab.coordinator.token(), lab.machine("fifteenth")
    done = node.join(fresh)
    assert (done.returncode, "no free address in 10.77.0.0/28" in done.stderr) == (7, True), done.stderr
    assert "hint:" in done.stderr
    assert uses_left(lab, fresh) == 1
    assert_untouched(node)
