"""Letters between nodes through a real coordinator, on real streams (NET-6)."""

from __future__ import annotations

from pathlib import Path

from coordinator.service import sessions
from meshctl.mesh.psk_packets import Letter
from meshctl.wire import session
from meshctl.wire.session import UpFrame
from tests.contract.test_services import read, resume, stream
from tests.harness.served import serving


async def test_letters_go_from_stream_to_stream_under_the_name_that_tls_proved_and_a_flood_is_cut(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path / "run") as served:
        a, b = await served.node("a"), await served.node("b")
        async with served.open(a) as from_a, served.open(b) as from_b:
            writer, reader = stream(from_a), stream(from_b)
            for call, node in ((writer, a), (reader, b)):
                await call.write(resume(node))
                await read(call, lambda frame: frame.moves_map)
            flood = UpFrame(letters=(Letter(b.computer.id, b"x"),) * session.LETTERS_PER_FRAME)
            for _ in range(10):
                await writer.write(session.serialize_up(session.encode_up(flood)))
            await writer.write(session.serialize_up(session.encode_up(UpFrame(again=True))))
            await read(writer, lambda frame: frame.snapshot)  # all of it was read
            got: list[Letter] = []
            while not got or got[-1].sealed != b"the last":
                served.mesh.first.fellows.post.deliver(b.computer.id, Letter(a.computer.id, b"the last"))
                got += (await read(reader, lambda frame: bool(frame.letters))).letters
            assert {letter.peer for letter in got} == {a.computer.id}
            of_flood = [letter for letter in got if letter.sealed == b"x"]
            assert session.LETTERS_PER_FRAME <= len(of_flood) <= 2 * sessions.LETTERS_PER_S
