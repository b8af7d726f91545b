"""The unary calls of a node (NET-1, ACC-4): what the generated stubs would do, without the 1.2 MB that importing them
costs every agent. The methods are named after the proto's; nothing is decided here.
"""

from __future__ import annotations

from typing import Any, Final

import grpc
from google.protobuf.message import Message

from meshctl.wire.v1 import mesh_pb2 as pb

TIMEOUT_S: Final = 10.0


async def begin(wire: grpc.aio.Channel, hello: Message) -> Any:
    """Enrolment.Begin: a challenge. This, like all of them, raises grpc.aio.AioRpcError."""
    return await _call(wire, "Enrolment/Begin", hello, pb.Challenge)


async def join(wire: grpc.aio.Channel, signed: Message) -> Any:
    """Enrolment.Join."""
    return await _call(wire, "Enrolment/Join", signed, pb.Joined)


async def renew(wire: grpc.aio.Channel, signed: Message) -> Any:
    """Enrolment.Renew."""
    return await _call(wire, "Enrolment/Renew", signed, pb.Renewed)


async def leave(wire: grpc.aio.Channel, request: Message) -> Any:
    """Mesh.Leave."""
    return await _call(wire, "Mesh/Leave", request, pb.Done)


async def _call(wire: grpc.aio.Channel, method: str, request: Message, answer: type[Message]) -> Any:
    path = f"/{pb.DESCRIPTOR.package}.{method}"
    call: Any = wire.unary_unary(path, lambda message: message.SerializeToString(), answer.FromString)
    return await call(request, timeout=TIMEOUT_S)
