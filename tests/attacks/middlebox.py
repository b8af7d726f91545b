"""A middlebox on a cable: copies every frame between two interfaces, and does to them what its orders say (NET-7).

    python -m tests.attacks.middlebox LEFT RIGHT ORDERS

ORDERS is a file of JSON that may change at any time: {"copies": 2, "delay_s": 0.3}; what was sent is counted in
ORDERS.count. It knows nothing of what it carries. Offloaded checksums travel along as the kernel hands them out.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import select
import socket
import sys
import time
from pathlib import Path

PACKET_VNET_HDR, SOL_PACKET, OUTGOING = 15, 263, 4  # linux/if_packet.h
LARGEST = 10 + 14 + 65535


def opened(interface: str) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    sock.bind((interface, 3))  # ETH_P_ALL
    return sock


def main(left: str, right: str, orders: Path) -> None:
    """For ever."""
    ends = opened(left), opened(right)
    other = {ends[0]: ends[1], ends[1]: ends[0]}
    waiting: list[tuple[float, int, socket.socket, bytes]] = []
    number, stamp, order = 0, 0, {"copies": 1, "delay_s": 0.0}
    while True:
        if (seen := orders.stat().st_mtime_ns) != stamp:
            stamp, order = seen, json.loads(orders.read_text())
        rest = max(waiting[0][0] - time.monotonic(), 0) if waiting else 0.2
        for sock in select.select(ends, (), (), min(rest, 0.2))[0]:
            frame, (*_, kind, _, _) = sock.recvfrom(LARGEST)
            if kind != OUTGOING:
                for _ in range(order["copies"]):
                    number += 1
                    heapq.heappush(waiting, (time.monotonic() + order["delay_s"], number, other[sock], frame))
        sent = number - len(waiting)
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, there, frame = heapq.heappop(waiting)
            with contextlib.suppress(OSError):  # the far end is down
                there.send(frame)
        if number - len(waiting) != sent:
            Path(f"{orders}.count").write_text(str(number - len(waiting)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
