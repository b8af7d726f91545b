"""Who is on the other end of a call: an identity that travels as the name of a unix socket (ENC-3, ACC-4).

The TLS front binds its end of the connection to grpc's socket to an abstract name, and grpc shows that name as
`context.peer()`. No header can be forged over HTTP and no table is shared. Whoever reaches the backend's socket without
the front has no such name and is refused here. This file must not decide what an identity may do.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final
from urllib.parse import unquote

from meshctl.errors import ProtocolError, TrustError

ANONYMOUS: Final = "anonymous"
SOCKET_NAME_BYTES: Final = 107  # sun_path has 108, the first is the zero that makes the name abstract (unix(7))
_FORM: Final = re.compile(r"unix-abstract:([0-9a-f]{12}) ([0-9a-f.:]+) (anonymous|spiffe://\S+)")


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """Where a call came from and whose verified certificate it showed: None is a client without one."""

    address: IPv4Address | IPv6Address
    uri: str | None


def client_address(host: str) -> IPv4Address | IPv6Address:
    """A socket's peer address, without scope and without the IPv6 clothing of an IPv4 address."""
    address = ip_address(host.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


def socket_name(identity: PeerIdentity) -> bytes:
    """A fresh abstract socket name that carries `identity`; random first, so that nobody can squat it.

    Raises ProtocolError when the SPIFFE URI is too long: meshctl/mesh/limits.py keeps ids short enough.
    """
    name = f"\0{secrets.token_hex(6)} {identity.address} {identity.uri or ANONYMOUS}".encode()
    if len(name) > SOCKET_NAME_BYTES + 1:
        raise ProtocolError("the SPIFFE id is too long to be a socket's name", "give nodes and meshes shorter ids")
    return name


def peer_identity(context_peer: str) -> PeerIdentity:
    """The identity in grpc's `context.peer()`. Raises TrustError for a call that did not come through the TLS front."""
    match = _FORM.fullmatch(unquote(context_peer))
    if match is None:
        raise TrustError("this call did not come through the TLS front", "connect to the coordinator's TLS address")
    _, address, uri = match.groups()
    try:
        return PeerIdentity(ip_address(address), None if uri == ANONYMOUS else uri)
    except ValueError as error:
        raise TrustError("the TLS front gave no readable client address") from error
