"""Is the control plane's cipher what is promised? Asked of the coordinator in use, from the wire (MESH-ENC-003, ENC-3).

A bare TCP connection per offer, ended at the first answer: no TLS library is in between that could hide what was
chosen. The strong offer comes last: where it is not answered, refusals before it prove nothing (judges.py).
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Final

from meshctl.agent.channel import split
from meshctl.agent.follow import Link
from meshctl.mesh import judges
from meshctl.mesh.catalogue import CATALOGUE, CIPHER
from meshctl.mesh.hello import ANSWER_BYTES, RANDOM_BYTES, WEAK, Suite, client_hello
from meshctl.mesh.integrity import Reading

LOOK_EVERY_S: Final = 10.0  # for another coordinator
AGAIN_S: Final = 60.0  # after a try that said nothing
ANSWER_WITHIN_S: Final = 5.0


class ControlCheck:
    """`run` it; `reading` is the latest, of `coordinator`."""

    def __init__(self, link: Link) -> None:
        self.reading: Reading | None = None
        self._link, self._coordinator, self._next_at = link, "", 0.0

    async def run(self) -> None:
        """For ever: when the node has come to another coordinator, and now and then."""
        while True:
            now = time.monotonic()
            if self._link.connected and (self._link.coordinator != self._coordinator or now >= self._next_at):
                await self.once(self._link.coordinator)
                self._next_at = now + (CATALOGUE[CIPHER].every_s if self._is_told else AGAIN_S)
            await asyncio.sleep(LOOK_EVERY_S)

    @property
    def _is_told(self) -> bool:
        return self.reading is not None and self.reading.verdict != "unknown"

    async def once(self, coordinator: str) -> None:
        """All offers, one after the other."""
        self._coordinator = coordinator
        weak = {suite: await offer(coordinator, suite) for suite in WEAK}
        strong = await offer(coordinator, Suite.AES_256_GCM)
        self.reading = judges.cipher(coordinator, strong, weak, now=time.monotonic())


async def offer(coordinator: str, suite: Suite) -> bytes | None:
    """The first bytes of the answer to a ClientHello with `suite`; empty: closed without a word, None: no answer."""
    host, port = split(coordinator)
    answer = b""
    try:
        async with asyncio.timeout(ANSWER_WITHIN_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(client_hello(suite, os.urandom(RANDOM_BYTES)))
                while len(answer) < ANSWER_BYTES and (part := await reader.read(ANSWER_BYTES - len(answer))):
                    answer += part
            except ConnectionError:
                return answer
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return answer or None
    return answer
