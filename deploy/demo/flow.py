"""Sends numbered UDP packets and counts those that arrive. Knows nothing of the product: plain Python, plain sockets.

    flow.py RATE PORT LOCAL=PEER,PEER [LOCAL=PEER,PEER]

For each LOCAL address, RATE packets a second go to every PEER, from and to PORT. On SIGTERM it stops sending, listens a
moment longer for what is under way, and prints JSON: sent and refused (by the kernel) per `local>peer`, received,
duplicate and longest_gap_ms per `peer>local`.
"""

from __future__ import annotations

import json
import select
import signal
import socket
import struct
import sys
import time

BODY = bytes(192)
LINGER_S = 1.0
running = True


def stop(*_: object) -> None:
    global running  # noqa: PLW0603 - a signal handler has no other way to be heard
    running = False


class Line:
    """One direction of one pair, as seen from this end."""

    def __init__(self) -> None:
        self.sent = self.refused = self.duplicate = 0
        self.seen: set[int] = set()
        self.last = self.gap = 0.0

    def arrived(self, number: int, now: float) -> None:
        self.gap = max(self.gap, now - self.last) if self.last else 0.0
        self.last = now
        self.duplicate += number in self.seen
        self.seen.add(number)


def opened(local: str, port: int) -> socket.socket:
    end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    end.bind((local, port))
    end.setblocking(False)
    return end


def main() -> None:
    rate, port = float(sys.argv[1]), int(sys.argv[2])
    ends: dict[socket.socket, tuple[str, list[str]]] = {}
    for word in sys.argv[3:]:
        local, _, peers = word.partition("=")
        ends[opened(local, port)] = local, peers.split(",")
    out = {(local, peer): Line() for local, peers in ends.values() for peer in peers}
    back = {(peer, local): Line() for local, peer in out}
    signal.signal(signal.SIGTERM, stop)
    print("ready", flush=True)
    due, ended = time.monotonic(), 0.0
    while not ended or time.monotonic() < ended:
        if running and time.monotonic() >= due:
            send(ends, out, port)
            due += 1 / rate
        elif not running and not ended:
            ended = time.monotonic() + LINGER_S
        for end in select.select(list(ends), [], [], max(0.0, due - time.monotonic()) if running else 0.01)[0]:
            receive(end, ends[end][0], back)
    print(json.dumps({
        "sent": {f"{a}>{b}": [line.sent, line.refused] for (a, b), line in out.items()},
        "received": {f"{a}>{b}": [len(x.seen), x.duplicate, round(x.gap * 1e3)] for (a, b), x in back.items()},
    }))  # fmt: skip


def send(ends: dict[socket.socket, tuple[str, list[str]]], out: dict[tuple[str, str], Line], port: int) -> None:
    for end, (local, peers) in ends.items():
        for peer in peers:
            line = out[local, peer]
            line.sent += 1
            try:
                end.sendto(struct.pack("!Q", line.sent) + BODY, (peer, port))
            except OSError:
                line.refused += 1


def receive(end: socket.socket, local: str, back: dict[tuple[str, str], Line]) -> None:
    while True:
        try:
            data, (source, _) = end.recvfrom(2048)
        except BlockingIOError:
            return
        except OSError:  # an ICMP error of an earlier packet
            continue
        if line := back.get((source, local)):
            line.arrived(struct.unpack("!Q", data[:8])[0], time.monotonic())


main()
