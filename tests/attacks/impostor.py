"""An agent that answers for another one: every echo gets an answer in its name, with a tag of somebody else (NET-7).

    python -m tests.attacks.impostor ADDRESS...

It sits on the node's own mesh addresses, behind the node's own WireGuard; only the node's keys it does not have.
"""

from __future__ import annotations

import secrets
import select
import socket
import sys
import time

from meshctl.errors import ProtocolError
from meshctl.mesh import limits, probe
from meshctl.mesh.probe import Kind, Packet


def main(*addresses: str) -> None:
    """For ever."""
    socks = []
    for address in addresses:
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((address, limits.PROBE_PORT))
        socks.append(sock)
    while True:
        for sock in select.select(socks, (), ())[0]:
            datagram, source = sock.recvfrom(2048)
            try:
                ping = probe.parse(datagram)
            except ProtocolError:
                continue  # a deep experiment's
            if ping.kind == Kind.PING:
                pong = Packet(
                    Kind.PONG, ping.receiver, ping.sender, ping.sequence, ping.round, time.time_ns(), ping.clock_ns
                )
                sock.sendto(probe.pack(pong) + secrets.token_bytes(probe.TAG_BYTES), source)


if __name__ == "__main__":
    main(*sys.argv[1:])
