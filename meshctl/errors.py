"""Every failure a person may meet: what happened, whose fault it is, what to do next.

The bottom layer: imported by all, imports nothing. Nothing here exits or prints (OPS-4); the command lines turn a
MeshError into one sentence, one hint and the exit code of its class.
"""

from __future__ import annotations


class MeshError(Exception):
    """`what` happened; `hint` says what to do next. `exit_code` is documented in the README."""

    exit_code = 1

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what}\n  hint: {self.hint}" if self.hint else self.what


class UsageError(MeshError):
    """The caller asked for something that makes no sense; nothing was tried."""

    exit_code = 2


class NotJoinedError(MeshError):
    """This machine holds no membership."""

    exit_code = 4


class EnvironmentFault(MeshError):
    """This machine lacks something: root, TUN, a free port, a binary, disk space."""

    exit_code = 5


class UnreachableError(MeshError):
    """The coordinator, etcd or the agent did not answer. Nothing was changed."""

    exit_code = 6


class RefusedError(MeshError):
    """The other side understood and said no (token used, name taken, node revoked)."""

    exit_code = 7


class TrustError(MeshError):
    """Something is not what it must be: wrong CA, broken signature, sealed value that does not open."""

    exit_code = 8


class ProtocolError(MeshError):
    """A message broke the contract: too large, malformed, or of a version we do not speak."""

    exit_code = 9


class ConflictError(MeshError):
    """Somebody else changed the same record first; read again and decide again."""

    exit_code = 10
