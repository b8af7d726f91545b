"""Sends numbered UDP packets and counts those that arrive. Knows nothing of the product: plain Python, plain sockets.

    flow.py RATE PORT LOCAL=PEER,PEER [LOCAL=PEER,PEER]

After SIGUSR1, RATE packets a second go from each LOCAL address to every PEER of it. After SIGTERM it listens a moment
longer for what is under way and prints JSON: sent {"local>peer": count}, received {"peer>local": [count, duplicates,
longest gap in ms]}.
"""

import json
import select
import signal
import socket
import struct
import sys
import time

BODY = bytes(192)
LINGER_S = 1.0
TOGETHER_S = 0.005  # at high rates, what has come in so long is read at once
SO_RCVBUFFORCE = 33  # not in Python's socket module


def opened(local, port):
    end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    end.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 4 << 20)
    end.bind((local, port))
    end.setblocking(False)
    return end


def send(ends, sent, port):
    for end, (local, peers) in ends.items():
        for peer in peers:
            name = f"{local}>{peer}"
            sent[name] = sent.get(name, 0) + 1
            try:
                end.sendto(struct.pack("!Q", sent[name]) + BODY, (peer, port))
            except OSError:  # no route, or a firewall: it counts as sent and will count as lost
                pass


def receive(end, local, received):
    while True:
        try:
            data, (source, _) = end.recvfrom(2048)
        except BlockingIOError:
            return
        except OSError:  # an ICMP error of an earlier packet
            continue
        now, number = time.monotonic(), struct.unpack("!Q", data[:8])[0]
        seen, duplicates, gap, last = received.get(name := f"{source}>{local}", (set(), 0, 0.0, now))
        received[name] = seen, duplicates + (number in seen), max(gap, now - last), now
        seen.add(number)


def main():
    rate, port = float(sys.argv[1]), int(sys.argv[2])
    words = (word.split("=") for word in sys.argv[3:])
    ends = {opened(local, port): (local, peers.split(",")) for local, peers in words}
    sent, received = {}, {}
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM})
    print("ready", flush=True)
    signal.sigwait({signal.SIGUSR1, signal.SIGTERM})
    due, ending = time.monotonic(), float("inf")
    while (now := time.monotonic()) < ending:
        if ending == float("inf") and signal.SIGTERM in signal.sigpending():
            due = ending = now + LINGER_S  # nothing more is sent
        if now >= due:
            send(ends, sent, port)
            due += 1 / rate
        rest, ready = max(due - time.monotonic(), 0), ends
        if 1 / rate > TOGETHER_S:
            ready = select.select(list(ends), [], [], rest)[0]
        else:
            time.sleep(min(rest, TOGETHER_S))
        for end in ready:
            receive(end, ends[end][0], received)
    counted = {name: [len(seen), double, round(gap * 1e3)] for name, (seen, double, gap, _) in received.items()}
    print(json.dumps({"sent": sent, "received": counted}))


main()
