"""The Enrolment service: the only one a caller without certificate may reach (ACC-3, ACC-4)."""

from __future__ import annotations

import time
from typing import Any

import grpc

from coordinator.enrol import Enrolment
from coordinator.service import calls
from meshctl.errors import ProtocolError
from meshctl.mesh import limits
from meshctl.wire import codec
from meshctl.wire.v1 import mesh_pb2_grpc as rpc

Context = grpc.aio.ServicerContext[Any, Any]


class EnrolmentService(rpc.EnrolmentServicer):  # type: ignore[misc]
    """Begin, Join, Renew."""

    def __init__(self, enrolment: Enrolment) -> None:
        self._enrolment = enrolment

    @calls.translated
    async def Begin(self, request: Any, context: Context) -> Any:
        """A nonce to sign, our clock, the mesh's id, and where the caller comes from."""
        seen = str(calls.caller(context).address)
        _small(request)
        protocol = codec.agree(request)
        mesh = self._enrolment.authority.mesh
        return codec.challenge(self._enrolment.nonce(), mesh.id, protocol, seen, now=time.time())

    @calls.translated
    async def Join(self, request: Any, context: Context) -> Any:
        """Token and device key for a certificate and an address."""
        who = calls.caller(context)
        _small(request)
        ask = codec.decode_join(request.body)
        return codec.joined_message(await self._enrolment.join(ask, request.body, request.signature, who.address))

    @calls.translated
    async def Renew(self, request: Any, context: Context) -> Any:
        """A member's device key for a fresh certificate."""
        who = calls.caller(context)
        _small(request)
        nonce, statement, last = codec.decode_renew(request.body)
        certificate = await self._enrolment.renew(nonce, statement, last, request.body, request.signature, who.address)
        return codec.renewed_message(certificate, self._enrolment.mesh)


def _small(request: Any) -> None:
    if (size := request.ByteSize()) > limits.PRE_AUTH_MESSAGE_BYTES:
        raise ProtocolError(f"a request of {size} bytes before authentication", "name fewer endpoints and tags")
