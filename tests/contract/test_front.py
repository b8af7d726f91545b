"""The TLS front under weather and attack, on real sockets, a stock grpc.aio server behind it (ENC-3, ACC-4, ACC-5).

Every test runs on plain asyncio and on uvloop: the front uses only what both promise.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import struct
from collections.abc import AsyncIterator
from ipaddress import ip_address
from pathlib import Path

import grpc
import pytest
import uvloop

from coordinator import front as front_module
from coordinator import peer
from coordinator import tls as tls_module
from coordinator.front import PeerIdentity, Why, peer_identity
from meshctl.errors import EnvironmentFault, ProtocolError, TrustError
from meshctl.mesh import limits
from tests.harness import tls
from tests.harness.front import (
    Stack,
    dial,
    dial_tls,
    ended,
    refused,
    running,
    slow_handshake,
    until,
    who,
)

pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture")


@pytest.fixture(params=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    return uvloop.EventLoopPolicy() if request.param == "uvloop" else asyncio.DefaultEventLoopPolicy()


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    async with running(tmp_path) as started:
        yield started


# ---- suites ----------------------------------------------------------------------------------------------------------


async def test_stock_grpc_client_speaks_aes_256_on_the_wire(stack: Stack) -> None:
    async with tls.recorded(stack.port) as wire, tls.channel(wire.port, stack.mesh.ca, stack.mesh.node()) as channel:
        await who(channel)
        assert tls.server_hello_suite(bytes(wire.down)) == 0x1302
        assert b"\x13\x01" in wire.up[:512], "the client would have taken AES-128"


@pytest.mark.parametrize(
    ("offer", "accepted"),
    [
        (["-tls1_3", "-ciphersuites", "TLS_AES_256_GCM_SHA384"], True),
        (["-tls1_3", "-ciphersuites", "TLS_AES_128_GCM_SHA256"], False),
        (["-tls1_3", "-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256"], False),
        (["-tls1_2"], False),
    ],
    ids=["aes256", "aes128", "chacha20", "tls1.2"],
)
async def test_weaker_offers_are_refused(stack: Stack, offer: list[str], accepted: bool) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("absent: openssl")
    client = await asyncio.create_subprocess_exec(
        "openssl", "s_client", "-connect", f"127.0.0.1:{stack.port}", "-alpn", tls_module.GRPC_PROTOCOL, *offer,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await asyncio.wait_for(client.communicate(), 10)
    assert (b"Cipher is TLS_AES_256_GCM_SHA384" in output) is accepted
    assert (b"alert" in output) is not accepted


def test_an_openssl_that_cannot_be_restricted_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls_module, "_restrict_by_pointer", lambda context: None)
    with pytest.raises(EnvironmentFault, match="cannot be restricted"):
        tls_module.server_context(tls.Mesh().credentials())


def test_credentials_of_two_meshes_do_not_load() -> None:
    mine, other = tls.Mesh().credentials(), tls.Mesh().credentials()
    with pytest.raises(TrustError, match="do not fit"):
        tls_module.server_context(tls_module.Credentials(mine.ca, mine.certificate, other.key))
    assert "key=hidden" in repr(mine)


# ---- the ClientHello -------------------------------------------------------------------------------------------------


def test_client_hello_is_told_from_everything_else() -> None:
    hello = tls.client_hello()
    assert tls_module.client_hello_bytes(hello) == len(hello)
    for cut in range(len(hello)):
        assert tls_module.client_hello_bytes(hello[:cut]) in (None, len(hello))
    too_long = hello[:3] + struct.pack(">HB", 0x4000, 1) + (0x4000 - 4).to_bytes(3, "big")
    two_messages = hello[:6] + (len(hello) - 10).to_bytes(3, "big") + hello[9:]
    for wrong in (b"GET / HTTP/1.1\r\n", b"\x15", b"\x16\x02", b"\x16\x03\x04", too_long, two_messages, hello + b"\0"):
        with pytest.raises(TrustError):
            tls_module.client_hello_bytes(wrong)


async def test_silent_client_is_gone_in_three_seconds(stack: Stack) -> None:
    reader, writer = await dial(stack)
    writer.write(tls.client_hello()[:40])
    begin = asyncio.get_running_loop().time()
    await ended(reader)
    assert 2.5 < asyncio.get_running_loop().time() - begin < 4.5
    assert stack.front.connections.refused == {Why.SILENT: 1}
    writer.close()


async def test_good_client_is_served_behind_300_half_open_ones(stack: Stack) -> None:
    flood = [await dial(stack) for _ in range(300)]
    for index, (_, writer) in enumerate(flood):
        writer.write(tls.client_hello()[: 1 + index])
    await until(lambda: stack.front.connections.live == 300)
    async with stack.channel(stack.mesh.node()) as channel:
        begin = asyncio.get_running_loop().time()
        await who(channel)
        assert asyncio.get_running_loop().time() - begin < 2.0, "the others have three seconds"
    for _, writer in flood:
        writer.close()


async def test_good_client_is_served_behind_hellos_that_never_finish(stack: Stack) -> None:
    flood = [await dial(stack, "127.0.0.2") for _ in range(300)]
    for _, writer in flood:
        writer.write(tls.client_hello())
    await until(lambda: stack.front.connections.waiting > 200)
    assert stack.front.connections.handshakes <= front_module.HANDSHAKES
    begin = asyncio.get_running_loop().time()
    reader, good = await dial_tls(stack, "h2", node=stack.mesh.node())
    good.write(tls.HTTP2_PREFACE)
    assert await asyncio.wait_for(reader.read(9), 5)
    assert asyncio.get_running_loop().time() - begin < 1.0, "it waits for one place, not for 236 others"
    assert stack.front.connections.handshakes < front_module.HANDSHAKES, "no address holds all places"
    await until(lambda: stack.front.connections.refused.get(Why.SLOW, 0) > 100, 2.5)
    for writer in (good, *(writer for _, writer in flood)):
        writer.close()


async def test_mesh_on_a_slow_machine_is_not_taken_for_an_attack(stack: Stack) -> None:
    await slow_handshake(stack, 0.4)  # what succeeds teaches what is usual
    slower = [slow_handshake(stack, 0.8) for _ in range(2 * front_module.HANDSHAKES)]
    await asyncio.gather(*slower)
    assert stack.front.connections.refused == {}


async def test_data_behind_a_waiting_hello_ends_it(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_module, "HANDSHAKES", 0)
    reader, writer = await dial(stack)
    writer.write(tls.client_hello())
    await until(lambda: stack.front.connections.waiting == 1)
    writer.write(b"x")
    await ended(reader)
    assert stack.front.connections.refused == {Why.MALFORMED: 1}
    assert stack.front.connections.waiting == 0
    writer.close()


# ---- who may come in -------------------------------------------------------------------------------------------------


async def test_identity_and_address_arrive_at_the_services(stack: Stack) -> None:
    node = stack.mesh.node()
    async with stack.channel(node) as channel:
        assert await who(channel) == repr(PeerIdentity(ip_address("127.0.0.1"), node.uri))
    async with tls.channel(stack.front.addresses[1][1], stack.mesh.ca, None, "[::1]") as channel:
        assert await who(channel) == repr(PeerIdentity(ip_address("::1"), None))
    assert stack.front.connections.refused == {}


async def test_member_who_calls_alone_waits_for_no_crowd(stack: Stack) -> None:
    async with stack.channel(stack.mesh.node()) as channel:
        await who(channel)
        took = []
        for _ in range(20):
            begin = asyncio.get_running_loop().time()
            await who(channel)
            took.append(asyncio.get_running_loop().time() - begin)
    assert min(took) < front_module.GATHER_S * 0.8, "in a crowd none of them could be"


async def test_what_a_crowd_says_arrives_whole_and_in_order(stack: Stack) -> None:
    async with contextlib.AsyncExitStack() as open_:
        nodes = [stack.mesh.node() for _ in range(3 * front_module.CROWD)]
        channels = [await open_.enter_async_context(stack.channel(node)) for node in nodes]
        for _ in range(30):
            answers = await asyncio.gather(*(who(channel) for channel in channels))
            assert [node.uri in answer for node, answer in zip(nodes, answers, strict=True)] == [True] * len(nodes)


async def test_direct_connection_to_the_backend_has_no_identity(stack: Stack) -> None:
    async with grpc.aio.insecure_channel(f"unix:{stack.backend}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await who(channel)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    "forged",
    [
        "", "unix:", "ipv4:127.0.0.1:7443", "unix-abstract:", "unix-abstract:spiffe://testmesh/node/x",
        "unix-abstract:0123456789ab%20127.0.0.1", "unix-abstract:0123456789ab%20nowhere%20anonymous",
        "unix-abstract:0123456789ab%20:::1%20anonymous", "unix-abstract:0123456789ab%20127.0.0.1%20anonymous%20more",
        "unix-abstract:0123456789AB%20127.0.0.1%20anonymous",
    ],
)  # fmt: skip
def test_any_other_peer_name_is_no_identity(forged: str) -> None:
    with pytest.raises(TrustError):
        peer_identity(forged)


def test_socket_name_carries_the_longest_identity_and_no_longer_one() -> None:
    uri = f"spiffe://{'m' * limits.MESH_ID_CHARS}/node/{'n' * limits.NODE_ID_CHARS}"
    longest = PeerIdentity(ip_address("fd00:1111:2222:3333:4444:5555:6666:7777"), uri)
    assert peer_identity("unix-abstract:" + peer.socket_name(longest)[1:].decode().replace(" ", "%20")) == longest
    with pytest.raises(ProtocolError):
        peer.socket_name(PeerIdentity(longest.address, f"{uri}nnnn"))
    assert peer.client_address("::ffff:192.0.2.1") == ip_address("192.0.2.1")
    assert peer.client_address("fe80::1%eth0") == ip_address("fe80::1")


async def test_certificate_of_an_unknown_ca_is_refused(stack: Stack) -> None:
    await refused(stack, tls.Mesh().node(), Why.UNTRUSTED)


async def test_certificate_that_names_another_mesh_is_refused(stack: Stack) -> None:
    await refused(stack, stack.mesh.node(mesh_id="othermesh"), Why.IDENTITY)


async def test_certificate_with_two_names_is_refused(stack: Stack) -> None:
    names = [stack.mesh.node().uri, stack.mesh.node().uri]
    async with stack.channel(stack.mesh.node_named(names[:1])) as channel:
        assert names[0] in await who(channel)
    await refused(stack, stack.mesh.node_named(names), Why.IDENTITY)


async def test_server_certificate_of_a_coordinator_is_no_client(stack: Stack) -> None:
    own = stack.mesh.credentials()
    await refused(stack, tls.Node("coordinator", own.key, own.certificate), Why.UNTRUSTED)


async def test_expired_certificate_is_refused(stack: Stack) -> None:
    await refused(stack, stack.mesh.node(now=stack.now() - 7200, life_s=3600), Why.EXPIRED)


async def test_certificate_past_our_clock_is_refused(stack: Stack) -> None:
    stack.offset_s = 7200
    await refused(stack, stack.mesh.node(life_s=3600), Why.EXPIRED)


async def test_revoked_node_is_refused(stack: Stack) -> None:
    node = stack.mesh.node()
    stack.revoked.add(node.uri)
    await refused(stack, node, Why.REVOKED)


@pytest.mark.parametrize("protocols", [(), ("http/1.1",)])
async def test_other_protocols_are_closed(stack: Stack, protocols: tuple[str, ...]) -> None:
    reader, writer = await dial_tls(stack, *protocols)
    await ended(reader)
    assert stack.front.connections.refused == {Why.PROTOCOL: 1}
    writer.close()


# ---- live connections ------------------------------------------------------------------------------------------------


async def test_revocation_cuts_the_live_stream_and_no_other(stack: Stack) -> None:
    node, other = stack.mesh.node(), stack.mesh.node()
    async with stack.channel(node) as bad, stack.channel(other) as good:
        streams = [channel.unary_stream("/test/Watch")(b"") for channel in (bad, good)]
        for stream in streams:
            assert await stream.read() == b"hello"
        stack.revoked.add(node.uri)
        begin = asyncio.get_running_loop().time()
        assert stack.front.cut(node.id) == 1
        with pytest.raises(grpc.aio.AioRpcError):
            await streams[0].read()
        assert asyncio.get_running_loop().time() - begin < 2.0
        with pytest.raises(grpc.aio.AioRpcError):
            await who(bad)
        await who(good)
        assert not streams[1].done()
        assert stack.front.connections.cut == {Why.REVOKED: 1}
        assert stack.front.cut(node.uri) == 0


async def test_connection_is_cut_when_its_certificate_ends(stack: Stack) -> None:
    first, second = stack.mesh.node(life_s=3600), stack.mesh.node(life_s=9000)
    async with stack.channel(first) as short, stack.channel(second) as long:
        stream = short.unary_stream("/test/Watch")(b"")
        await stream.read()
        await who(long)
        stack.offset_s = 3601
        with pytest.raises(grpc.aio.AioRpcError):
            await asyncio.wait_for(stream.read(), 2)
        assert stack.front.connections.cut == {Why.EXPIRED: 1}
        await who(long)
        stack.offset_s = 9001
        await until(lambda: stack.front.connections.cut[Why.EXPIRED] == 2)


async def test_strangers_who_come_and_go_do_not_keep_an_ended_certificate_alive(stack: Stack) -> None:
    async def come_and_go() -> None:
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", stack.port)
            writer.write(b"no TLS")
            with contextlib.suppress(OSError):
                await reader.read()
            writer.close()

    async with stack.channel(stack.mesh.node(life_s=3600)) as channel:
        stream = channel.unary_stream("/test/Watch")(b"")
        await stream.read()
        strangers = asyncio.ensure_future(come_and_go())
        try:
            stack.offset_s = 3601
            with pytest.raises(grpc.aio.AioRpcError):
                await asyncio.wait_for(stream.read(), 2)
            assert stack.front.connections.cut == {Why.EXPIRED: 1}
            assert stack.front.connections.refused[Why.MALFORMED] > 1
        finally:
            strangers.cancel()
            await asyncio.gather(strangers, return_exceptions=True)


async def test_one_identity_keeps_its_newest_connections(stack: Stack) -> None:
    node, held = stack.mesh.node(), []
    for index in range(front_module.PER_IDENTITY + 2):
        held.append(await dial_tls(stack, "h2", node=node))
        live = min(index + 1, front_module.PER_IDENTITY)
        await until(lambda live=live: stack.front.connections.live == live)
    assert stack.front.connections.cut == {Why.SURPLUS: 2}
    await ended(held[0][0])
    for _, writer in held:
        writer.close()


async def test_reload_shows_the_new_leaf_and_keeps_live_streams(stack: Stack) -> None:
    async def leaf() -> bytes | None:
        _, writer = await dial_tls(stack, "h2")
        writer.close()
        shown: bytes | None = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return shown

    async with stack.channel(stack.mesh.node()) as channel:
        stream = channel.unary_stream("/test/Watch")(b"")
        await stream.read()
        before, fresh = await leaf(), stack.mesh.credentials()
        stack.front.reload(fresh)
        assert before != await leaf() == fresh.certificate
        assert not stream.done()
        await who(channel)


async def test_half_closed_client_is_answered_and_forgotten(stack: Stack) -> None:
    reader, writer = await dial_tls(stack, "h2", node=stack.mesh.node())
    writer.write(tls.HTTP2_PREFACE)
    assert await reader.read(9)
    with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as raw:
        raw.shutdown(socket.SHUT_WR)
    await ended(reader)
    await until(lambda: stack.front.connections.live == 0)
    assert stack.front.connections.cut == {}
    writer.close()
