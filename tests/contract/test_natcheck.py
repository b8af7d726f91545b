"""netcheck's UDP side under losses, strangers and lies, against sockets that do as the test says (NET-8)."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from ipaddress import ip_address

import pytest_asyncio

from coordinator.reflector import Reflector
from meshctl.agent import natcheck
from meshctl.mesh import nat, stun
from meshctl.mesh.model import Endpoint

LIE = Endpoint(ip_address("198.51.100.66"), 6666)
AT_MOST_S = 10.0  # eight, on a machine with other work


class Counterpart:
    """Two UDP sockets: one is asked, and `behave` says what comes back, from either."""

    def __init__(self) -> None:
        self.behave: Callable[[bytes, tuple[str, int], int], None] = lambda *_: None
        self.asked, self.stranger = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        self.asked.bind(("127.0.0.1", 0))
        self.stranger.bind(("127.0.0.2", 0))
        self.asked.setblocking(False)
        self.count = 0
        asyncio.get_running_loop().add_reader(self.asked, self._read)

    def _read(self) -> None:
        datagram, source = self.asked.recvfrom(2048)
        self.count += 1
        self.behave(datagram, source, self.count)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.asked)
        self.asked.close()
        self.stranger.close()


@pytest_asyncio.fixture
async def there() -> AsyncIterator[Counterpart]:
    made = Counterpart()
    yield made
    made.close()


def truth(datagram: bytes, source: tuple[str, int]) -> bytes:
    told = Endpoint(ip_address(source[0]), source[1])
    answer = stun.answer(stun.parse(datagram).transaction, 200, told, told, None)
    assert answer
    return answer


def lie(datagram: bytes) -> bytes:
    answer = stun.answer(stun.parse(datagram).transaction, 200, LIE, LIE, None)
    assert answer
    return answer


async def look(port: int, wanted: int = 0) -> nat.Look:
    begun = time.monotonic()
    found = await natcheck.measure({"it": [(socket.AF_INET, ("127.0.0.1", port))]}, wanted)
    assert time.monotonic() - begun < AT_MOST_S
    (one,) = found["it"]
    return one


async def test_first_two_packets_lost(there: Counterpart) -> None:
    there.behave = lambda data, to, n: there.asked.sendto(truth(data, to), to) if n > 2 else None  # type: ignore[assignment,return-value]
    seen = await look(there.asked.getsockname()[1])
    assert (seen.answer, seen.seen) == (nat.ANSWERED, seen.source)
    assert seen.rtt_s is not None
    assert seen.rtt_s < 0.25, "of the try that was answered, not of the first"
    assert (seen.unasked, seen.seen_second) == (False, ""), "it has no other port"


async def test_stranger_who_knows_the_transaction_is_not_believed(there: Counterpart) -> None:
    there.behave = lambda data, to, _: there.stranger.sendto(lie(data), to)  # type: ignore[assignment,return-value]
    seen = await look(there.asked.getsockname()[1])
    assert (seen.answer, seen.seen) == (nat.SILENT, "")


async def test_answers_to_nothing_asked_garbage_and_repeats_change_nothing(there: Counterpart) -> None:
    def behave(data: bytes, to: tuple[str, int], _: int) -> None:
        good = truth(data, to)
        noise = [b"", os.urandom(100), good[:-4], data, good[:8] + os.urandom(12) + good[20:], bytes(2000)]
        bare = stun.answer(os.urandom(12), 200, LIE, LIE, LIE)
        assert bare
        for one in (*noise, bare, good, lie(data), good):
            there.asked.sendto(one, to)

    there.behave = behave
    seen = await look(there.asked.getsockname()[1])
    assert (seen.answer, seen.seen, seen.unasked) == (nat.ANSWERED, seen.source, False)


async def test_flood_of_noise_instead_of_an_answer_ends_in_time(there: Counterpart) -> None:
    def behave(_: bytes, to: tuple[str, int], __: int) -> None:
        for _ in range(500):
            there.asked.sendto(b"\x01\x01" + bytes(60), to)

    there.behave = behave
    assert (await look(there.asked.getsockname()[1])).answer == nat.SILENT


async def test_nobody_listens(there: Counterpart) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    begun = time.monotonic()
    assert (await look(port)).answer == nat.REFUSED
    assert time.monotonic() - begun < 2.0, "a refusal is not waited out"


async def test_refusal_of_one_does_not_spoil_the_answer_of_another(there: Counterpart) -> None:
    there.behave = lambda data, to, _: there.asked.sendto(truth(data, to), to)  # type: ignore[assignment,return-value]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        closed = free.getsockname()
    targets = {"closed": [(socket.AF_INET, closed)], "open": [(socket.AF_INET, there.asked.getsockname())]}
    found = await natcheck.measure(targets, 0)
    assert {name: looks[0].answer for name, looks in found.items()} == {"closed": nat.REFUSED, "open": nat.ANSWERED}


async def test_ways_that_this_machine_does_not_have(there: Counterpart) -> None:
    nowhere = {"it": [(socket.AF_INET, ("255.255.255.255", 7443))]}  # broadcasting is not allowed to this socket
    (seen,) = (await natcheck.measure(nowhere, 0))["it"]
    assert (seen.answer, seen.source) == ("Permission denied", "")
    there.behave = lambda data, to, _: there.asked.sendto(truth(data, to), to)  # type: ignore[assignment,return-value]
    both = {"it": [*nowhere["it"], (socket.AF_INET, there.asked.getsockname())]}
    assert [one.answer for one in (await natcheck.measure(both, 0))["it"]] == [nat.ANSWERED]


async def test_wireguards_port_is_used_where_it_is_free_and_left_where_it_is_not() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own, socket.socket(type=socket.SOCK_DGRAM) as there:
        own.bind(("", 0))
        wanted = own.getsockname()[1]
        reflector = Reflector(b"salt", time.monotonic)
        there.bind(("127.0.0.1", 0))
        port = there.getsockname()[1]
        there.close()
        try:
            assert await reflector.start([("127.0.0.1", port)], None) == []
            seen = await look(port, wanted)
            assert seen.source != f"127.0.0.1:{wanted}"
            own.close()
            seen = await look(port, wanted)
            assert {seen.source, seen.seen, seen.seen_second} == {f"127.0.0.1:{wanted}"}
            assert (seen.unasked, seen.passes, seen.lost) == (True, 1500, None)
        finally:
            reflector.stop()
