"""Joining by every way a token can come, cut off at any moment, and leaving without a trace (NET-1, ACC-3, OPS-4).

Two nodes and their real agents; the tunnel counts as verified when authenticated echoes went both ways.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from meshctl.agent.loops import NICE
from meshctl.agent.store import Store
from meshctl.mesh.token import JoinToken
from tests.harness.mesh import HUB, PORT, READY_S, Lab, Node, until

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="module")
def pair(lab: Lab) -> tuple[Node, Node]:
    a, b = lab.members("a", "b")
    return a, b


def test_two_nodes_join_and_all_is_well(lab: Lab, pair: tuple[Node, Node]) -> None:
    for node, other in (pair, pair[::-1]):
        until(lambda node=node: node.meshctl("status").returncode == 0, READY_S, "status says all is well")
        until(lambda node=node: "nothing to do" in node.meshctl("plan").stdout, READY_S, "plan has nothing to do")
        pinged = node.meshctl("ping", other.name, "-c", "2")
        assert pinged.returncode == 0, pinged.stdout + pinged.stderr
        assert "2 of 2 echoes proven" in pinged.stdout
        assert node.run("ping", "-c", "1", "-W", "3", other.mesh_address()).returncode == 0
    until(
        lambda: all(state.digest_ok for state in lab.coordinator.nodes().values()),
        READY_S,
        "both kernels hold what the registry says",
    )


def test_agent_and_its_wireguard_do_not_wait_for_the_machines_other_work(pair: tuple[Node, Node]) -> None:
    """Else a busy machine is told as a broken path, and packets are lost for want of somebody who reads them."""
    for node in pair:
        for pid in (node.pid or 0, node.wireguard_go()):
            assert os.getpriority(os.PRIO_PROCESS, pid) == NICE


def test_second_join_on_a_member_is_refused(lab: Lab, pair: tuple[Node, Node]) -> None:
    token = lab.coordinator.token()
    done = pair[0].join(token)
    assert done.returncode == 2, done.stderr
    assert "already in mesh" in done.stderr
    assert "meshctl leave" in done.stderr
    assert lab.machine("thrifty").join(token).returncode == 0, "the token of the refused join is unspent"


@pytest.mark.parametrize("way", ["file", "stdin", "environment"])
def test_token_comes_by(lab: Lab, way: str) -> None:
    node, token = lab.machine(f"by-{way}"), lab.coordinator.token()
    path = lab.directory / f"{node.name}.token"
    path.write_text(f"{token}\n")
    argument, stdin = {"file": (f"@{path}", ""), "stdin": ("-", f"  {token}\n"), "environment": ("env", "")}[way]
    environment = {"MESHCTL_TOKEN": token} if way == "environment" else {}
    done = node.meshctl("join", argument, "--name", node.name, stdin=stdin, **environment)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"joined mesh lab as {node.name}: 10\.77\.\d+\.\d+", done.stdout)
    assert token not in done.stdout + done.stderr
    assert token.encode() not in b"".join(p.read_bytes() for p in node.state.iterdir() if p.is_file())


@pytest.mark.parametrize(
    ("token", "code", "words"),
    [("", 2, "not a join token"), ("mesh2.AAAA", 2, "damaged"), ("@/nonexistent", 2, "cannot read the token")],
    ids=["empty", "cut off", "no such file"],
)
def test_useless_token_is_refused_before_anything_is_made(lab: Lab, token: str, code: int, words: str) -> None:
    node = lab.machine(f"useless-{code}-{len(lab.nodes)}")
    done = node.meshctl("join", token, "--name", node.name)
    assert (done.returncode, words in done.stderr) == (code, True), done.stderr
    assert "hint:" in done.stderr
    assert not node.state.exists()


def cut_off(node: Node, token: str, moment: Callable[[], bool], number: int) -> int:
    """Start a join, send `number` at `moment`, and return how it ended."""
    join = node.begin_join(token)
    deadline = time.monotonic() + READY_S
    while not moment() and join.poll() is None:
        assert time.monotonic() < deadline, "the moment never came"
    if join.poll() is None:
        os.kill(join.pid, number)
    return join.wait(30)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "killed"])
def test_join_cut_off_once_the_keys_are_on_disk_resumes_with_them(lab: Lab, number: int) -> None:
    node, token = lab.machine(f"keys-{number}"), lab.coordinator.token()
    code = cut_off(node, token, (node.state / "identity").exists, number)
    assert code in (130, -number), node.tail()
    identity, secret = Store(node.state).identity().id, (node.state / "identity").read_bytes()

    done = node.join(token)
    assert done.returncode == 0, done.stderr
    assert lab.coordinator.nodes()[node.name].node.id == identity
    assert (node.state / "identity").read_bytes() == secret


class Swallower:
    """A relay to the coordinator that lets a join through and swallows its answer, the only long one."""

    ANSWER_BYTES = 800

    async def __aenter__(self) -> Swallower:
        self._server = await asyncio.start_server(self._serve, HUB, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, requests = await asyncio.open_connection(HUB, PORT)

        async def ask() -> None:
            while data := await reader.read(65536):
                requests.write(data)
            requests.close()

        async def answer() -> None:
            writer.write(await answers.read(65536))  # the handshake's first flight is long too
            while len(data := await answers.read(65536)) < self.ANSWER_BYTES:
                if not data:
                    return writer.close()
                writer.write(data)
            return None

        with contextlib.suppress(OSError):
            await asyncio.gather(ask(), answer())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "killed"])
async def test_join_cut_off_after_the_request_was_sent_resumes_without_spending_again(lab: Lab, number: int) -> None:
    """The registry has the node, the node does not know: its token is spent, and the same keys come in all the same."""
    node, token = lab.machine(f"sent-{number}"), lab.coordinator.token()
    swallower = await lab.hub.run(Swallower().__aenter__())
    detour = replace(JoinToken.parse(token), coordinators=(f"{HUB}:{swallower.port}",)).text()
    code = await asyncio.to_thread(cut_off, node, detour, lambda: node.name in lab.coordinator.nodes(), number)
    await lab.hub.run(swallower.__aexit__())
    assert code in (130, -number), node.tail()
    before = lab.coordinator.nodes()[node.name].node
    assert not (node.state / "membership").exists()

    done = node.join(token)
    assert done.returncode == 0, done.stderr
    assert "resumed mesh lab" in done.stdout
    after = lab.coordinator.nodes()[node.name].node
    assert (after.id, after.address4, after.statement) == (before.id, before.address4, before.statement)
    node.up()
    until(lambda: node.proves("a", "b"), READY_S, f"the resumed node reaches the mesh: {node.tail()}")
    node.stop()


def test_token_for_three_admits_three(lab: Lab) -> None:
    token = lab.coordinator.token(uses=3)
    codes = [lab.machine(f"third-{number}").join(token).returncode for number in range(4)]
    assert codes == [0, 0, 0, 7]


def test_ephemeral_token_makes_ephemeral_nodes(lab: Lab) -> None:
    node = lab.machine("mayfly")
    assert node.join(lab.coordinator.token(ephemeral=True)).returncode == 0
    assert lab.coordinator.nodes()["mayfly"].ephemeral
    assert not lab.coordinator.nodes()["thrifty"].ephemeral


def test_expired_and_revoked_tokens_are_refused_in_words(lab: Lab) -> None:
    short = lab.coordinator.token(life_s=0.2)
    expired = lab.machine("late").join(short)
    assert (expired.returncode, "expired" in expired.stderr, "token create" in expired.stderr) == (7, True, True), (
        expired.stderr
    )
    token = lab.coordinator.token()
    listed = lab.coordinator.command("token", "list").stdout.splitlines()[1].split()[0]
    assert lab.coordinator.command("token", "revoke", listed).returncode == 0
    refused = lab.machine("unwanted").join(token)
    assert (refused.returncode, "revoked" in refused.stderr) == (7, True), refused.stderr


def leftovers(node: Node) -> dict[str, str]:
    """What a member has on its machine and a stranger has not."""
    shown = {
        "links": node.run("ip", "-o", "link", "show", node.interface).stdout,
        "routes": "".join(
            node.run("ip", family, "route", "show", "type", "unreachable").stdout for family in ("-4", "-6")
        ),
        "mesh routes": "".join(line for line in node.run("ip", "route").stdout.splitlines(True) if "10.77." in line),
        "rules": node.run("nft", "list", "tables").stdout,
        "secrets": " ".join(p.name for p in node.state.iterdir() if p.name != "events.jsonl")
        if node.state.exists()
        else "",
        "daemon": str(Path(f"/var/run/wireguard/{node.interface}.sock").exists() or ""),
    }
    return {what: found for what, found in shown.items() if found}


def test_leaving_removes_everything_here_and_there(lab: Lab, pair: tuple[Node, Node]) -> None:
    node = lab.member("leaver")
    until(lambda: node.proves("a", "b"), READY_S, f"the leaver was a member: {node.tail()}")
    assert set(leftovers(node)) >= {"links", "routes", "mesh routes", "rules", "secrets", "daemon"}
    key = node.key()
    busy = node.meshctl("leave")
    assert (busy.returncode, "the agent is running" in busy.stderr) == (2, True), busy.stderr

    node.stop()
    done = node.meshctl("leave")
    assert done.returncode == 0, done.stderr
    until(lambda: not leftovers(node), 10, "nothing is left")
    assert "leaver" not in lab.coordinator.nodes()
    until(lambda: key not in pair[0].peers() and key not in pair[1].peers(), READY_S, "both peers have dropped its key")
    gone = node.meshctl("status")
    assert (gone.returncode, "in no mesh" in gone.stderr) == (4, True), gone.stderr
    again = node.join(lab.coordinator.token())
    assert again.returncode == 0, again.stderr


def test_leaving_without_a_coordinator_needs_force(lab: Lab) -> None:
    node = lab.machine("orphan")
    assert node.join(lab.coordinator.token()).returncode == 0
    node.run("ip", "link", "set", "eth0", "down")
    done = node.meshctl("leave")
    assert (done.returncode, (node.state / "membership").exists()) == (6, True), done.stderr
    forced = node.meshctl("leave", "--force")
    assert forced.returncode == 0, forced.stderr
    assert "an operator must remove this node" in forced.stderr
    assert not leftovers(node)
