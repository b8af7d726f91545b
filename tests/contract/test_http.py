"""The tiny HTTP server under clients that mean well and those that do not, and what health says through it (MON-6)."""

from __future__ import annotations

import asyncio
import json
import stat
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from meshctl.agent.health import Health
from meshctl.agent.prober import Prober
from meshctl.agent.responder import Drop
from meshctl.crypto.identity import Identity
from meshctl.errors import EnvironmentFault
from meshctl.mesh import integrity
from meshctl.mesh.catalogue import HANDSHAKE, LAG, PATH, Verdict
from meshctl.mesh.integrity import Reading
from meshctl.mesh.model import NodeId
from meshctl.mesh.probe import Echo
from meshctl.wire import http
from meshctl.wire.http import Request, Response, Server


def hello(request: Request) -> Response:
    return Response.json(200, dict(request.query)) if request.wants_json else Response.text(200, "hello")


def broken(_: Request) -> Response:
    raise KeyError("private detail")


@pytest_asyncio.fixture
async def port() -> AsyncIterator[int]:
    server = Server({"/hello": hello, "/broken": broken, "/big": lambda _: Response(200, bytes(32 * 1024 * 1024))})
    yield await server.listen("127.0.0.1", 0)
    await server.close()


async def exchange(where: int | Path, request: bytes) -> tuple[int, dict[str, str], bytes]:
    if isinstance(where, int):
        reader, writer = await asyncio.open_connection("127.0.0.1", where)
    else:
        reader, writer = await asyncio.open_unix_connection(where)
    try:
        writer.write(request)
        answer = await asyncio.wait_for(reader.read(), 5)
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]) if first else 0, dict(line.lower().split(": ", 1) for line in lines), body


async def test_long_answers_end_without_a_word(tmp_path: Path) -> None:
    """What is left of one when the socket is full decides how asyncio ends: so several sizes."""
    troubles: list[object] = []
    loop, size = asyncio.get_running_loop(), 0
    loop.set_exception_handler(lambda _, context: troubles.append(context))
    server = Server({"/status": lambda _: Response(200, bytes(size))})
    await server.listen_unix(tmp_path / "http.sock")
    for size in range(50_000, 900_000, 15_000):
        code, _, body = await exchange(tmp_path / "http.sock", b"GET /status HTTP/1.1\r\n\r\n")
        assert (code, len(body)) == (200, size)
    await server.close()
    async with asyncio.timeout(5):
        while asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.sleep(0)
    await asyncio.sleep(0)  # what a task ended with is told after its end
    assert not troubles


async def get(
    where: int | Path, target: str, headers: str = "", method: str = "GET"
) -> tuple[int, dict[str, str], bytes]:
    return await exchange(where, f"{method} {target} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())


# ---- the server ------------------------------------------------------------------------------------------------------


async def test_get_head_query_and_json(port: int) -> None:
    status, headers, body = await get(port, "/hello")
    assert (status, body) == (200, b"hello\n")
    assert (headers["content-length"], headers["connection"], headers["cache-control"]) == ("6", "close", "no-store")
    status, headers, body = await get(port, "/hello", method="HEAD")
    assert (status, headers["content-length"], body) == (200, "6", b"")
    assert json.loads((await get(port, "/hello?json&a=1%202"))[2]) == {"json": "", "a": "1 2"}
    assert (await get(port, "/hello", "Accept: application/json\r\n"))[1]["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /nowhere HTTP/1.1\r\n\r\n", 404),
        (b"GET /../etc/passwd HTTP/1.1\r\n\r\n", 404),
        (b"POST /hello HTTP/1.1\r\n\r\n", 405),
        (b"GET /hello HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", 400),
        (b"GET /hello HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET hello HTTP/1.1\r\n\r\n", 400),
        (b"GET /hello SPDY/3\r\n\r\n", 400),
        (b"GET  /hello HTTP/1.1\r\n\r\n", 400),
        (b"GET /hello HTTP/1.1\r\n folded: x\r\n\r\n", 400),
        (b"GET //[ HTTP/1.1\r\n\r\n", 400),
        (b"GET /hello?" + b"a&" * 50 + b" HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"GET /broken HTTP/1.1\r\n\r\n", 500),
        (b"GET /hello HTTP/1.1\r\nX: " + b"a" * 9000 + b"\r\n\r\n", 431),
    ],
)
async def test_bad_request_gets_a_plain_answer(port: int, request_bytes: bytes, status: int) -> None:
    found, _, body = await exchange(port, request_bytes)
    assert found == status
    assert b"private detail" not in body
    assert (await get(port, "/hello"))[0] == 200


async def test_slow_sender_is_cut(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_REQUEST_S", 0.1)
    assert await exchange(port, b"GET /hello HTTP/1.1\r\nX: ") == (0, {}, b"")


async def test_slow_reader_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_ANSWER_S", 0.2)
    size = 32 * 1024 * 1024
    server = Server({"/big": lambda _: Response(200, bytes(size))})
    reader, writer = await asyncio.open_connection("127.0.0.1", await server.listen("127.0.0.1", 0), limit=1024)
    writer.write(b"GET /big HTTP/1.1\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    deadline = time.monotonic() + 5
    while server._open:
        assert time.monotonic() < deadline, "the server still waits for its reader"
        await asyncio.sleep(0.01)
    received = 0
    with suppress(ConnectionError):
        while chunk := await reader.read(65536):
            received += len(chunk)
    assert received < size
    writer.close()
    await server.close()


async def test_too_many_connections_are_turned_away_and_the_server_recovers(port: int) -> None:
    idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(64)]
    with pytest.raises(ConnectionError):
        await get(port, "/hello")
    for _, writer in idle:
        writer.close()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            assert (await get(port, "/hello"))[0] == 200
            return
        except ConnectionError:
            continue
    pytest.fail("the server did not recover")


async def test_taken_port_is_a_clear_error(port: int) -> None:
    with pytest.raises(EnvironmentFault, match=f"cannot listen on 127.0.0.1 port {port}"):
        await Server({}).listen("127.0.0.1", port)


async def test_status_socket_is_for_its_user_alone(tmp_path: Path) -> None:
    path, server = tmp_path / "agent.sock", Server({"/hello": hello})
    await server.listen_unix(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (await get(path, "/hello"))[2] == b"hello\n"
    with pytest.raises(EnvironmentFault, match="served already"):
        await Server({}).listen_unix(path)
    await server.close()
    assert not path.exists()


async def test_socket_left_by_a_crash_is_taken_over_and_a_file_is_not(tmp_path: Path) -> None:
    path, crashed = tmp_path / "agent.sock", Server({})
    await crashed.listen_unix(path)
    crashed._paths.clear()
    await crashed.close()
    assert path.exists()
    server = Server({"/hello": hello})
    await server.listen_unix(path)
    assert (await get(path, "/hello"))[0] == 200
    await server.close()
    path.write_text("precious")
    with pytest.raises(EnvironmentFault, match="cannot make the socket"):
        await Server({}).listen_unix(path)
    assert path.read_text() == "precious"


# ---- health through it -----------------------------------------------------------------------------------------------


class Node:
    """A Health on injected time, served."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.prober = Prober(Identity.generate(), lambda _: None, lambda *_: None)
        self.health = Health(self.prober, monotonic=lambda: self.now, wall=lambda: 1e9 + self.now)
        self.peers = {NodeId(f"id{number}"): f"gpu-{number}" for number in range(3)}
        self.health.expect(self.peers)
        self.port = 0

    def record(self, *news: Reading) -> None:
        latest = {key: Reading(*key, Verdict.OK, self.now, "seen") for key in integrity.expected(self.peers)}
        self.health.record((*latest.values(), *news))

    async def samples(self) -> dict[tuple[str, ...], float]:
        status, headers, body = await get(self.port, "/metrics")
        assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
        families = text_string_to_metric_families(body.decode())
        return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


@pytest_asyncio.fixture
async def node() -> AsyncIterator[Node]:
    made = Node()
    server = Server(made.health.handlers())
    made.port = await server.listen("127.0.0.1", 0)
    yield made
    await server.close()


async def test_healthz_says_whether_the_loops_turn(node: Node) -> None:
    assert (await get(node.port, "/healthz"))[::2] == (503, b"not ok: no loop has turned yet\n")
    node.health.beat("reconcile")
    node.health.beat("prober")
    assert (await get(node.port, "/healthz"))[::2] == (200, b"ok: 2 loops turn\n")
    node.now += 10
    node.health.beat("prober")
    assert (await get(node.port, "/healthz"))[::2] == (503, b"not ok: reconcile last turned 10 s ago\n")
    answer = json.loads((await get(node.port, "/healthz?json"))[2])
    assert answer == {"ok": False, "why": "reconcile last turned 10 s ago", "loops": {"prober": 0.0, "reconcile": 10.0}}


async def test_readyz_wants_a_proven_peer(node: Node) -> None:
    node.health.judge()
    assert (await get(node.port, "/readyz"))[::2] == (503, b"not ok: 0 of 3 peers proven; interface unknown\n")
    node.record()
    node.health.judge()
    assert (await get(node.port, "/readyz"))[::2] == (200, b"ok: 3 of 3 peers proven; interface ok\n")
    node.now += 60
    node.health.judge()
    assert (await get(node.port, "/readyz"))[0] == 503, "what was proven a minute ago is unknown now"


async def test_finding_opens_is_told_and_closes(node: Node) -> None:
    peer = next(iter(node.peers))

    def lost(code: str) -> Reading:
        return Reading(code, peer, Verdict.FAILED, node.now, "3 echoes lost")

    node.record(lost(HANDSHAKE))
    assert node.health.judge() == ((), ())
    node.now += 16
    node.record(lost(HANDSHAKE))
    opened, _ = node.health.judge()
    assert [(f.code, f.subject) for f in opened] == [(HANDSHAKE, peer)]
    status = node.health.status()
    assert (status["verdict"], status["exit_code"]) == (Verdict.DEGRADED, 1)
    (finding,) = status["findings"]
    assert (finding["name"], finding["severity"], finding["since"]) == ("gpu-0", "warning", 1e9 + 1000)
    assert json.loads(Response.json(200, status).body) == status
    node.record()
    _, closed = node.health.judge()
    assert [(f.code, f.evidence) for f in closed] == [(HANDSHAKE, "seen")]
    assert node.health.status()["findings"] == []


async def test_metrics_are_computed_when_scraped(node: Node) -> None:
    peer = next(iter(node.peers))
    for _ in range(2):
        behind = Reading(LAG, "", Verdict.FAILED, node.now, "behind")
        node.record(behind, Reading(HANDSHAKE, peer, Verdict.FAILED, node.now, "stale"))
        node.health.judge()
        node.now += 20
    node.health.revision = 4182
    node.prober.drops[Drop.FORGED] = 5
    samples = await node.samples()
    assert samples["meshctl_check", LAG, "failed"] == 1
    assert samples["meshctl_check", PATH, "ok"] == 3
    assert samples["meshctl_finding_open", LAG, "warning"] == 1
    assert [samples["meshctl_peers", state] for state in ("ok", "degraded", "failed", "unknown")] == [3, 0, 0, 0]
    assert samples["meshctl_revision_applied",] == 4182
    assert samples["meshctl_prober_drops_total", "forged"] == 5
    assert samples["meshctl_prober_sent_total",] == 0


async def test_series_of_peers_are_bounded_and_show_the_worst(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    echoes = {NodeId(f"id{n:03}"): Echo(sent=16, received=16 - n % 2, rtt_s=n / 1000) for n in range(1000)}
    monkeypatch.setattr(node.prober, "echoes", lambda: echoes)
    samples = await node.samples()
    loss = {labels[1]: value for labels, value in samples.items() if labels[0] == "meshctl_peer_loss_ratio"}
    assert len(loss) == 200
    assert set(loss.values()) == {1 / 16}
    assert max(samples["meshctl_peer_rtt_seconds", peer] for peer in loss) == 0.999


async def test_removed_peer_leaves_no_reading_behind(node: Node) -> None:
    node.record()
    node.health.expect({})
    node.health.judge()
    assert all(row.subject == "" for row in node.health.rows)
    assert integrity.ready(node.health.rows)
