"""MeshError <-> gRPC status: one table, both directions, so that a refusal reads the same on both sides (OPS-4)."""

from __future__ import annotations

import grpc

from meshctl.errors import (
    ConflictError,
    EnvironmentFault,
    MeshError,
    ProtocolError,
    RefusedError,
    TrustError,
    UnreachableError,
    UsageError,
)

_CODES: tuple[tuple[type[MeshError], grpc.StatusCode], ...] = (
    (RefusedError, grpc.StatusCode.PERMISSION_DENIED),
    (TrustError, grpc.StatusCode.UNAUTHENTICATED),
    (ProtocolError, grpc.StatusCode.INVALID_ARGUMENT),
    (UsageError, grpc.StatusCode.FAILED_PRECONDITION),
    (ConflictError, grpc.StatusCode.ABORTED),
    (EnvironmentFault, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (UnreachableError, grpc.StatusCode.UNAVAILABLE),
)


def code(error: MeshError) -> grpc.StatusCode:
    """The status a service answers with."""
    return next((c for kind, c in _CODES if isinstance(error, kind)), grpc.StatusCode.UNKNOWN)


def details(error: MeshError) -> str:
    """What happened, a line break, what to do next."""
    return f"{error.what}\n{error.hint}"


def error(status: BaseException, whom: str) -> MeshError:
    """A failed call as the error the other side meant. `whom` names it where it could not speak for itself."""
    if isinstance(status, grpc.Call | grpc.aio.AioRpcError):
        return meant(status.code(), status.details() or "", whom)
    return meant(grpc.StatusCode.UNKNOWN, str(status), whom)


def meant(found: grpc.StatusCode, text: str, whom: str) -> MeshError:
    """The error behind a status and its details."""
    if found is grpc.StatusCode.UNAVAILABLE and "CERTIFICATE_VERIFY_FAILED" in text:  # BoringSSL's word for it
        return TrustError(f"{whom} shows a certificate of another CA", "check the address; somebody may be in between")
    if (
        found in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
        and "\n" not in text
    ):
        return UnreachableError(f"{whom} does not answer", "is it running, and is its port open from here?")
    what, _, hint = text.partition("\n")
    kind = next((k for k, c in _CODES if c is found), MeshError)
    return kind(what or f"{whom} failed: {found.name}", hint)
