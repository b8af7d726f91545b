"""A coordinator's UDP under clients that mean well, floods, forgers and noise, on real sockets (NET-8, OPS-4)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import socket
import time
from collections.abc import AsyncIterator, Callable
from ipaddress import ip_address

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from coordinator.reflector import (
    PER_NETWORK_BURST,
    PER_NETWORK_PER_S,
    READS_BURST,
    READS_PER_S,
    TOTAL_BURST,
    TOTAL_PER_S,
    Drop,
    Judge,
    Reflector,
)
from meshctl.mesh import stun
from meshctl.mesh.model import Endpoint

HERE, SECOND = Endpoint(ip_address("203.0.113.1"), 7443), Endpoint(ip_address("203.0.113.1"), 7444)
FLOOD = 100_000


def transaction() -> bytes:
    return os.urandom(12)


def at(text: str) -> Endpoint:
    return Endpoint.parse(text)


@pytest_asyncio.fixture
async def reflector() -> AsyncIterator[Reflector]:
    made = Reflector(os.urandom(16), time.monotonic)
    for _ in range(20):  # the next port may be somebody's
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", 0))
            number = free.getsockname()[1]
        if not await made.start([("127.0.0.1", number), ("::1", number)], None):
            break
        made.stop()
    assert len(made.addresses) == 4
    yield made
    made.stop()


class Client:
    """A UDP socket that asks."""

    def __init__(self, host: str) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_DGRAM)
        self.sock.bind((host, 0))
        self.sock.setblocking(False)

    @property
    def address(self) -> tuple[str, int]:
        return self.sock.getsockname()[:2]

    async def ask(self, datagram: bytes, to: tuple[str, int], within_s: float = 5.0) -> tuple[bytes, tuple[str, int]]:
        self.sock.sendto(datagram, to)
        return await self.hear(within_s)

    async def hear(self, within_s: float = 5.0) -> tuple[bytes, tuple[str, int]]:
        async with asyncio.timeout(within_s):
            data, source = await asyncio.get_running_loop().sock_recvfrom(self.sock, 2048)
        return data, source[:2]


@pytest.fixture
def clients() -> AsyncIterator[Callable[[str], Client]]:  # type: ignore[misc]
    made: list[Client] = []

    def make(host: str) -> Client:
        made.append(Client(host))
        return made[-1]

    yield make  # type: ignore[misc]
    for client in made:
        client.sock.close()


# ---- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_stranger_hears_where_it_is_seen_and_of_the_second_port(
    reflector: Reflector, clients: Callable[[str], Client], host: str
) -> None:
    first, second = (address for address in reflector.addresses if address[0] == host)
    client, asked = clients(host), transaction()
    told, source = await client.ask(stun.request(asked), first)
    read = stun.parse(told)
    assert (read.kind, read.transaction, source) == (stun.Kind.ANSWER, asked, first)
    assert read.mapped == Endpoint(ip_address(host), client.address[1])
    assert read.other == Endpoint(ip_address(host), second[1])
    told, source = await client.ask(stun.request(transaction(), change_port=True), first)
    assert (source[0], stun.parse(told).mapped) == (host, read.mapped)
    assert source not in {first, second}, "from one that nobody writes to"
    told, source = await client.ask(stun.request(transaction()), second)
    assert (source, stun.parse(told).other) == (second, Endpoint(ip_address(host), first[1]))
    assert reflector.figures.answered == 3


async def test_answer_leaves_from_the_address_that_was_asked(clients: Callable[[str], Client]) -> None:
    """A coordinator with several addresses listens on all of them at once: another source would not pass a NAT."""
    made = Reflector(os.urandom(16), time.monotonic)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("", 0))
        number = free.getsockname()[1]
    try:
        await made.start([("0.0.0.0", number)], 0xFFFF if number != 0xFFFF else 0xFFFE)
        client = clients("127.0.0.1")
        for host in ("127.0.0.1", "127.0.0.9", "127.1.2.3"):
            _, source = await client.ask(stun.request(transaction()), (host, number))
            assert source == (host, number)
    finally:
        made.stop()


async def test_port_that_is_taken_is_said_and_the_other_one_serves(clients: Callable[[str], Client]) -> None:
    made, client = Reflector(os.urandom(16), time.monotonic), clients("127.0.0.1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken, socket.socket(type=socket.SOCK_DGRAM) as free:
        taken.bind(("127.0.0.1", 0))
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
        free.close()
        try:
            (trouble,) = await made.start([("127.0.0.1", number)], taken.getsockname()[1])
            assert "Address already in use" in trouble
            told, _ = await client.ask(stun.request(transaction()), ("127.0.0.1", number))
            assert stun.parse(told).other is None
            _, source = await client.ask(stun.request(transaction(), change_port=True), ("127.0.0.1", number))
            assert source != ("127.0.0.1", number)
        finally:
            made.stop()


async def test_stopped_responder_leaves_its_ports_and_no_timer(clients: Callable[[str], Client]) -> None:
    for _ in range(2):
        made = Reflector(os.urandom(16), time.monotonic)
        assert await made.start([("127.0.0.1", 20743)], None) == []
        made.stop()
        assert made.addresses == []


# ---- floods ----------------------------------------------------------------------------------------------------------


async def test_flood_of_100000_is_bounded_and_the_loop_turns_on(
    reflector: Reflector, clients: Callable[[str], Client], record_property: Callable[[str, object], None]
) -> None:
    target, flooder, honest = reflector.addresses[0], clients("127.0.0.1"), clients("127.0.0.1")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rng, kinds = random.Random(7443), [stun.request(transaction()), bytes(40), b"", b"\x00\x01" + bytes(18)]

    def flood() -> int:
        for _ in range(FLOOD):
            try:
                flooder.sock.sendto(rng.choice(kinds), target)
            except BlockingIOError:
                continue
        return FLOOD

    begun, work, worst, turns = time.monotonic(), asyncio.create_task(asyncio.to_thread(flood)), 0.0, 0
    while not work.done():
        last = time.monotonic()
        await asyncio.sleep(0.001)
        worst, turns = max(worst, time.monotonic() - last), turns + 1
    took = time.monotonic() - begun
    figures = reflector.figures
    heard = 0
    while True:
        try:
            data, _ = flooder.sock.recvfrom(2048)
        except BlockingIOError:
            break
        heard += len(data) > 0
    read = figures.answered + sum(figures.dropped.values())
    allowed = PER_NETWORK_BURST + (took + 0.2) * PER_NETWORK_PER_S
    assert heard <= figures.answered <= allowed
    assert read <= READS_BURST + (took + 0.2) * READS_PER_S, "the rest was left to the kernel"
    assert figures.dropped[Drop.MALFORMED]
    assert worst < 1.0, "beside a thread that holds the interpreter"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4096, "kB"
    record_property(
        "figure", f"{FLOOD} in {took:.1f} s: {read} read, {figures.answered} answered, turn <= {worst:.3f} s"
    )

    for _ in range(50):
        with contextlib.suppress(TimeoutError):
            await honest.ask(stun.request(transaction()), target, 0.2)
            return
    raise AssertionError("nobody is answered any more")


def test_one_network_cannot_use_up_what_is_for_all() -> None:
    judge = Judge(os.urandom(16))
    asked, answers = stun.request(transaction()), 0
    for number in range(2_000):
        told = judge.answer(
            asked, Endpoint(ip_address(f"198.51.100.{number % 250}"), 999), HERE, SECOND, 40001, now=5.0
        )
        answers += not isinstance(told, Drop)
    assert answers == PER_NETWORK_BURST
    assert judge.answer(asked, at("198.51.100.7:1"), HERE, SECOND, 40001, now=5.0) is Drop.RATE
    others = (
        judge.answer(asked, Endpoint(ip_address(f"192.0.{i}.1"), 9), HERE, SECOND, 40001, now=5.0) for i in range(20)
    )
    assert sum(isinstance(told, Drop) for told in others) <= 1, "but for one that shares its place in the table"
    later = [judge.answer(asked, at("198.51.100.7:1"), HERE, SECOND, 40001, now=6.0) for _ in range(100)]
    assert sum(not isinstance(told, Drop) for told in later) == PER_NETWORK_PER_S


def test_forged_sources_from_everywhere_get_no_more_than_the_total() -> None:
    judge, rng, told = Judge(os.urandom(16)), random.Random(1), []
    asked = stun.request(transaction())
    for number in range(FLOOD):
        source = Endpoint(ip_address(rng.getrandbits(32) if number % 2 else rng.getrandbits(128)), 53)
        told.append(judge.answer(asked, source, HERE, SECOND, 40001, now=number / FLOOD))
    answers = sum(not isinstance(one, Drop) for one in told)
    assert TOTAL_BURST <= answers <= TOTAL_BURST + TOTAL_PER_S
    assert {one for one in told if isinstance(one, Drop)} <= {Drop.BUSY, Drop.RATE}


def elsewhere(attribute: bytes) -> bytes:
    """A question with one attribute of eight bytes more."""
    plain = stun.request(bytes(12), 120)
    return plain[:2] + (108).to_bytes(2, "big") + plain[4:20] + attribute + plain[20:]


# ---- what is not answered --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("datagram", "why"),
    [
        (b"", Drop.MALFORMED),
        (b"meshctl netcheck", Drop.MALFORMED),
        (stun.request(bytes(12)) + bytes(1400), Drop.MALFORMED),
        (bytes(9000), Drop.MALFORMED),
        (stun.answer(bytes(12), 200, SECOND, HERE, None), Drop.MALFORMED),  # two responders would talk for ever
        (b"\x00\x01\x00\x00\x21\x12\xa4\x42" + bytes(12), Drop.SHORT),
        (stun.request(bytes(12), 28), Drop.SHORT),
        (elsewhere(b"\x00\x03\x00\x04\x00\x00\x00\x04"), Drop.UNSUPPORTED),
        (elsewhere(b"\x00\x27\x00\x04\x00\x35\x00\x00"), Drop.UNSUPPORTED),
    ],
    ids=["empty", "noise", "surplus", "jumbo", "answer", "bare", "short", "to another address", "to another port"],
)  # fmt: skip
async def test_stranger_is_counted_and_not_answered(
    reflector: Reflector, clients: Callable[[str], Client], datagram: bytes, why: Drop
) -> None:
    client, first = clients("127.0.0.1"), reflector.addresses[0]
    client.sock.sendto(datagram, first)
    asked = transaction()
    told, _ = await client.ask(stun.request(asked), first)  # it comes after it on the same socket
    assert stun.parse(told).transaction == asked
    assert reflector.figures.dropped == {why: 1}


@given(st.binary(max_size=1500), st.booleans(), st.booleans())
def test_nothing_is_answered_larger_than_asked_or_raises(body: bytes, genuine: bool, six: bool) -> None:
    judge = Judge(b"salt")
    head = b"\x00\x01" + len(body).to_bytes(2, "big") + b"\x21\x12\xa4\x42" + bytes(12) if genuine else b""
    source, here = (at("[2001:db8::1]:1"), at("[2001:db8::2]:7443")) if six else (at("192.0.2.1:1"), HERE)
    for other in (None, Endpoint(here.address, 7444)):
        told = judge.answer(head + body, source, here, other, 40001, now=1.0)
        assert isinstance(told, Drop) or len(told[0]) <= len(head + body)


@given(st.integers(7, 370), st.booleans(), st.booleans())
def test_amplification_is_at_most_one_for_every_size(words: int, change: bool, six: bool) -> None:
    if change and words < 8:
        return
    asked = stun.request(bytes(12), words * 4, change_port=change)
    source, here = (at("[2001:db8::1]:1"), at("[2001:db8::2]:7443")) if six else (at("192.0.2.1:1"), HERE)
    told = Judge(b"salt").answer(asked, source, here, Endpoint(here.address, 7444), 40001, now=1.0)
    assert told is Drop.SHORT if isinstance(told, Drop) else len(told[0]) <= len(asked)


def test_source_port_zero_is_not_answered() -> None:
    source = Endpoint(ip_address("192.0.2.1"), 0)
    assert Judge(b"").answer(stun.request(bytes(12)), source, HERE, SECOND, 40001, now=1.0) is Drop.MALFORMED
