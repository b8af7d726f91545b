"""What every call goes through: who is it, and what does a MeshError become (ACC-4, OPS-4)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, NoReturn, TypeVar

import grpc

from coordinator.peer import PeerIdentity, peer_identity
from meshctl.crypto import pki
from meshctl.errors import MeshError, TrustError
from meshctl.mesh.model import NodeId
from meshctl.wire import codec, status

Method = TypeVar("Method", bound=Callable[..., Awaitable[Any]])


async def refuse(context: grpc.aio.ServicerContext[Any, Any], error: MeshError) -> NoReturn:
    """End the call with what went wrong, in words."""
    await context.abort(status.code(error), status.details(error))
    raise AssertionError("abort returns by raising")


def translated(method: Method) -> Method:
    """A unary method whose MeshErrors become statuses; anything else stays a bug and is logged by grpc."""

    @wraps(method)
    async def call(self: Any, request: Any, context: Any) -> Any:
        try:
            return await method(self, request, context)
        except MeshError as error:
            await refuse(context, error)

    return call  # type: ignore[return-value]


def caller(context: grpc.aio.ServicerContext[Any, Any]) -> PeerIdentity:
    """Who calls. Raises TrustError for a call that did not come through the front."""
    return peer_identity(context.peer())


def calling_node(context: grpc.aio.ServicerContext[Any, Any], mesh_id: str) -> tuple[NodeId, PeerIdentity]:
    """The node whose certificate the front has verified. Raises TrustError for anybody else."""
    who = caller(context)
    if who.uri is None:
        raise TrustError("this call needs a node's certificate", "meshctl join TOKEN")
    return NodeId(pki.node_of(who.uri, mesh_id)), who


class Strict(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Reads requests where a malformed one becomes an answer: grpc itself would print a traceback for any stranger."""

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """See grpc. Streams read their own messages."""
        handler = await continuation(details)
        if handler is None or handler.unary_unary is None or handler.request_deserializer is None:
            return handler

        async def call(raw: bytes, context: Any) -> Any:
            try:
                with codec.strict("request"):
                    request = handler.request_deserializer(raw)
            except MeshError as error:
                await refuse(context, error)
            return await handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(call, None, handler.response_serializer)
