"""One TCP stream to each peer at full rate, and how long each incoming one stood still. Knows nothing of the product.

    tcp_flow.py LOCAL PORT PEER,PEER    LOCAL connects to those peers that are greater than itself: one stream per pair

Prints `ready`, streams until SIGTERM, then prints JSON: {"peer": [bytes received, longest silence in ms, broken]} of
the streams that came in. Silence is counted from two seconds after the first byte, when TCP has found its rate.
"""

import json
import selectors
import signal
import socket
import sys
import time
from ipaddress import ip_address

WARM_S = 2.0
CHUNK = bytes(65536)


def connected(local: str, peer: str, port: int) -> socket.socket:
    """A stream to `peer`, which may be up a moment later."""
    deadline = time.monotonic() + 20
    while True:
        end = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        end.bind((local, 0))
        end.settimeout(5)
        try:
            end.connect((peer, port))
        except OSError:
            end.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
            continue
        end.setblocking(False)
        return end


def main() -> None:
    """Until SIGTERM."""
    local, port, peers = sys.argv[1], int(sys.argv[2]), sys.argv[3].split(",")
    server = socket.create_server((local, port))
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    print("ready", flush=True)
    ways = selectors.DefaultSelector()
    for peer in peers:
        if ip_address(peer) > ip_address(local):
            ways.register(connected(local, peer, port), selectors.EVENT_WRITE, peer)
    server.setblocking(False)
    ways.register(server, selectors.EVENT_READ)
    seen: dict[str, list[float]] = {}  # bytes, longest silence, broken, last, first
    while not stopped:
        for key, _ in ways.select(0.05):
            end = key.fileobj
            assert isinstance(end, socket.socket)
            if end is server:
                fresh, (peer, _) = server.accept()
                fresh.setblocking(False)
                ways.register(fresh, selectors.EVENT_READ, peer)
                continue
            peer, now = key.data, time.monotonic()
            try:
                if key.events == selectors.EVENT_WRITE:
                    end.send(CHUNK)
                    continue
                count = len(end.recv(1 << 20))
            except BlockingIOError:
                continue
            except OSError:
                if key.events == selectors.EVENT_WRITE:  # the other end tells of it
                    ways.unregister(end)
                    continue
                count = 0
            held = seen.setdefault(peer, [0, 0.0, 0, now, now])
            if not count:
                ways.unregister(end)
                held[2] = 1
            if now - held[4] > WARM_S:
                held[1] = max(held[1], now - held[3])
            held[0], held[3] = held[0] + count, now
    print(json.dumps({peer: [held[0], round(held[1] * 1e3), int(held[2])] for peer, held in seen.items()}))


main()
