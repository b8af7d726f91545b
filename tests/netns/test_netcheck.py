"""netcheck on a real wire, before joining and after: a good way, a NAT, a rule that drops UDP, a narrow one, a stranger
in the coordinator's place (NET-1, OPS-4)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from meshctl.crypto import pki
from meshctl.mesh.token import JoinToken
from tests.harness import tls
from tests.harness.mesh import HUB, PORT, READY_S, Lab, Node, until

pytestmark = pytest.mark.root
AWAY = f"203.0.113.200:{PORT}"  # nobody's


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        made.machine("new")
        yield made


def check(node: Node, token: str, *words: str) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    done = node.meshctl("netcheck", *(("-",) if token else ()), "--json", *words, stdin=token)
    assert "Traceback" not in done.stderr, done.stderr
    found: dict[str, list[dict[str, Any]]] = {}
    for sentence in json.loads(done.stdout)["sentences"]:
        found.setdefault(sentence["about"], []).append(sentence)
    return done.returncode, found


def test_good_way_before_joining_and_after(lab: Lab) -> None:
    node, token = lab.nodes[0], lab.coordinator.token(uses=2)
    code, found = check(node, token)
    assert (code, found["reach"][0]["verdict"]) == (0, "ok"), found
    assert f"sees this machine as {node.address}, its own address: no NAT" in found["address"][0]["words"]
    assert f"UDP to {HUB}:{PORT} over IPv4 is answered in " in found["udp"][0]["words"]
    assert f"the world sees {node.address}:51820" in found["nat"][0]["words"]
    assert "1500 bytes, as measured" in found["mtu"][0]["words"]
    shown = node.meshctl("netcheck", "-", stdin=token)
    assert (shown.returncode, "agrees with that of" in shown.stdout) == (0, True)
    assert node.meshctl("netcheck").returncode == 4
    assert lab.coordinator.tokens()[0].uses == 2  # looking costs none
    member = lab.machine("member")
    assert member.join(token).returncode == 0
    assert check(member, "")[0] == 0
    member.up()
    until(lambda: member.peers() is not None and member.status(), READY_S, member.tail())
    code, found = check(member, "")
    assert (code, "as 51820 is in use" in found["port"][0]["words"]) == (0, True), found


NAT = """ip address add 203.0.113.99/24 dev eth0; nft add table ip way
nft 'add chain ip way out { type nat hook postrouting priority 100; }'
nft add rule ip way out ip protocol tcp snat to 203.0.113.99"""
NO_UDP = """nft add table ip way; nft 'add chain ip way out { type filter hook output priority 0; }'
nft add rule ip way out ip protocol udp drop"""
NARROW = "nft add table ip way; ip link set eth0 mtu 1300"
REPAIR = "nft delete table ip way; ip link set eth0 mtu 1500; ip address del 203.0.113.99/24 dev eth0"


@pytest.mark.parametrize(
    ("fault", "about", "verdict", "words"),
    [
        (NAT, "address", "ok", "as 203.0.113.99, not as {address}: there is a NAT in between"),
        (NO_UDP, "udp", "failed", "does not leave this machine"),
        (NARROW, "mtu", "degraded", "carries 1300 bytes"),
    ],
)
def test_faults_on_the_way_are_named(lab: Lab, fault: str, about: str, verdict: str, words: str) -> None:
    node = lab.nodes[0]
    done = node.run("sh", "-ec", fault)
    assert done.returncode == 0, done.stderr
    try:
        code, found = check(node, lab.coordinator.token())
        assert code == ["ok", "degraded", "failed"].index(verdict)
        sentence = found[about][0]
        assert sentence["verdict"] == verdict
        assert words.format(address=node.address) in sentence["words"]
    finally:
        node.run("sh", "-c", REPAIR)


def test_coordinator_that_is_away_and_one_that_is_somebody_else(lab: Lab) -> None:
    node, token = lab.nodes[0], JoinToken.parse(lab.coordinator.token())
    here = token.coordinators
    code, found = check(node, replace(token, coordinators=(*here, AWAY)).text())
    assert (code, [sentence["verdict"] for sentence in found["reach"]]) == (1, ["ok", "degraded"])
    code, found = check(node, replace(token, coordinators=(AWAY,)).text())
    assert (code, found["reach"][0]["verdict"], "address" in found) == (2, "failed", False)
    code, found = check(node, replace(token, ca_key=pki.ca_key(tls.Mesh().ca)).text())
    assert (code, "certificate of another CA" in found["reach"][0]["words"]) == (2, True)
    code, found = check(node, replace(token, coordinators=("no.such.name.invalid:7443",)).text())
    assert (code, "its name is not found" in found["reach"][0]["words"]) == (2, True)
