"""The control plane's cipher, asked from the wire: of the real front, and of servers that are weaker (MESH-ENC-003)."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from coordinator.tls import load_leaf
from meshctl.agent.control import ControlCheck, offer
from meshctl.agent.follow import Link
from meshctl.crypto import pki
from meshctl.mesh import judges
from meshctl.mesh.catalogue import Verdict
from meshctl.mesh.hello import WEAK, Suite, chosen, client_hello
from meshctl.mesh.integrity import Reading
from tests.harness import tls
from tests.harness.front import running

Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]


@asynccontextmanager
async def listening(handle: Handle, context: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)  # type: ignore[arg-type]
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def asked(address: str) -> Reading:
    check = ControlCheck(Link())
    await check.once(address)
    assert check.reading is not None
    return check.reading


async def test_front_takes_aes_256_and_refuses_all_else(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        reading = await asked(f"127.0.0.1:{stack.port}")
        assert (reading.verdict, "0x1302" in reading.evidence) == (Verdict.OK, True), reading.evidence


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_server_that_takes_less_is_found(version: ssl.TLSVersion) -> None:
    """A stock TLS server in the coordinator's place: it takes AES-128, and TLS 1.2 where it is allowed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load_leaf(context, tls.Mesh().credentials())
    context.maximum_version = version
    async with listening(lambda _, writer: writer.close(), context) as address:
        reading = await asked(address)
        assert (reading.verdict, "takes" in reading.evidence) == (Verdict.FAILED, True), reading.evidence


async def test_refusals_without_the_control_prove_nothing() -> None:
    """Somebody who hangs up on everybody refuses the weak offers, too."""
    async with listening(lambda _, writer: writer.close()) as address:
        reading = await asked(address)
        assert (reading.verdict, "prove nothing" in reading.evidence) == (Verdict.UNKNOWN, True)


async def test_nobody_there_is_unknown() -> None:
    async with listening(lambda _, writer: writer.close()) as address:
        pass
    assert await offer(address, Suite.AES_256_GCM) is None
    assert (await asked(address)).verdict is Verdict.UNKNOWN


def test_offer_names_one_suite_and_garbage_is_no_choice() -> None:
    for suite in Suite:
        hello = client_hello(suite, bytes(96))
        assert suite.to_bytes(2, "big") in hello
        assert not any(other.to_bytes(2, "big") in hello for other in Suite if other is not suite)
    assert [chosen(garbage) for garbage in (b"", b"\x15\x03\x03\x00\x02\x02\x28", b"HTTP/1.1 400" * 9)] == [None] * 3
    assert pki.COORDINATOR_NAME.encode() not in client_hello(Suite.AES_256_GCM, bytes(96))


@pytest.mark.parametrize("missing", list(WEAK))
def test_one_offer_without_an_answer_is_unknown(missing: Suite) -> None:
    strong = bytes([22, 3, 3, 0, 90, 2, 0, 0, 86, 3, 3]) + bytes(32) + b"\x00\x13\x02"
    weak: dict[Suite, bytes | None] = dict.fromkeys(WEAK, b"\x15\x03\x03\x00\x02\x02\x28")
    assert judges.cipher("here", strong, weak, now=1.0).verdict is Verdict.OK
    weak[missing] = None
    assert judges.cipher("here", strong, weak, now=1.0).verdict is Verdict.UNKNOWN
