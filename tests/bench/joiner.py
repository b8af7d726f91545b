"""Real joins by simulated agents: Begin, Join with a signed body, then a session (OPS-3)."""

from __future__ import annotations

import functools
import ssl
import time
from collections.abc import Callable

from meshctl.crypto import pki
from meshctl.crypto.identity import JOIN_CONTEXT, Identity
from meshctl.mesh.token import JoinToken
from meshctl.wire import codec
from meshctl.wire.v1 import mesh_pb2 as pb
from tests.bench.light import Wire
from tests.bench.swarm import Agent, Swarm
from tests.harness import tls

BEGIN, JOIN = 1, 3
SERVICE = "/meshctl.wire.v1.Enrolment/"


class Joiner:
    """From a token to an agent that is part of the swarm. `failed` says why it went wrong."""

    def __init__(self, swarm: Swarm, token: JoinToken, name: str, number: int) -> None:
        self.swarm, self.token, self.name, self.number = swarm, token, name, number
        self.identity = Identity.generate()
        self.begun = self.joined_at = 0.0
        self.revision = 0  # that made its record
        self.agent: Agent | None = None
        self.failed = ""
        self._wire: Wire | None = None
        self._source = f"127.0.{1 + number // 250 % 250}.2"

    def start(self) -> None:
        """First contact, verified against the key in the token."""
        self.begun = time.monotonic()
        wire = Wire(_context(self.token))
        self._dial(wire, self._answer, lambda: wire.call(BEGIN, SERVICE + "Begin", _hello(), end=True))

    def _dial(self, wire: Wire, take: Callable[[int, bytes], None], then: Callable[[], None] | None = None) -> None:
        self._wire = wire
        wire.on_open, wire.on_message = then or (lambda: None), take
        wire.on_end, wire.on_lost = lambda _: None, lambda why: self._lost(wire, why)
        wire.dial(self.swarm.addresses[self.number % len(self.swarm.addresses)], self._source)
        self.swarm.loop.add(wire)

    def _close(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            self.swarm.loop.drop(wire)

    def _lost(self, wire: Wire, why: str) -> None:
        if self._wire is wire:
            self.failed = self.failed or why
            self._close()

    def _answer(self, stream: int, raw: bytes) -> None:
        assert self._wire is not None
        if stream == BEGIN:
            challenge = pb.Challenge.FromString(raw)
            claim = self.identity.state(challenge.mesh_id, 1)
            ask = codec.JoinAsk(challenge.nonce, self.token.id, self.token.secret, self.name, (), claim, ())
            body = codec.encode_join(ask)
            signed = codec.signed(body, self.identity.sign(JOIN_CONTEXT + body))
            self._wire.call(JOIN, SERVICE + "Join", signed.SerializeToString(), end=True)
            return
        membership = codec.joined(pb.Joined.FromString(raw))
        self.joined_at, self.revision = time.monotonic(), membership.node.joined
        self._close()
        self.agent = Agent(self.swarm, self.number, self.identity, membership.certificate)
        self.swarm.agents.append(self.agent)
        self.agent.connect()


@functools.lru_cache(maxsize=1)
def _context(token: JoinToken) -> ssl.SSLContext:
    return tls.client_context("h2", ca=pki.anchor(token.mesh, token.ca_key))


def _hello() -> bytes:
    return codec.hello().SerializeToString()
