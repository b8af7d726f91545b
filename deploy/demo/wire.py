"""Watches every cable of the underlay with a packet socket. Knows nothing of the product: plain Python, plain sockets.

    wire.py MESH_PREFIX4 CONTROL_PORT FLOW_PORT

After SIGTERM it prints JSON: clear (packets whose own source or destination is a mesh address), flow (packets of
flow.py in clear: they show that a leak would have been seen), missed (frames the kernel dropped before they were read),
hellos (cipher suite of the last ServerHello per client address).
"""

import ipaddress
import json
import select
import signal
import socket
import struct
import sys

ETH_P_ALL, OUTGOING, IPV4, TCP, UDP = 3, 4, 0x0800, 6, 17
SOL_PACKET, PACKET_STATISTICS, SO_RCVBUFFORCE = 263, 6, 33  # not in Python's socket module
HANDSHAKE, SERVER_HELLO = 22, 2


def count(frame, mesh, control_port, flow_port, seen):
    if len(frame) < 42 or int.from_bytes(frame[12:14], "big") != IPV4:
        return
    packet = frame[14:]
    source, target = ipaddress.ip_address(packet[12:16]), ipaddress.ip_address(packet[16:20])
    seen["clear"] += source in mesh or target in mesh
    start = (packet[0] & 15) * 4
    source_port, target_port = struct.unpack("!HH", packet[start : start + 4])
    if packet[9] == UDP:
        seen["flow"] += source_port == target_port == flow_port
    elif packet[9] == TCP and source_port == control_port:
        # Record: type 1, version 2, length 2; message: type 1, length 3, version 2, random 32, id 1 + n, suite 2.
        record = packet[start + (packet[start + 12] >> 4) * 4 :]
        if len(record) > 46 and record[0] == HANDSHAKE and record[5] == SERVER_HELLO:
            seen["hellos"][str(target)] = f"0x{record[44 + record[43] :][:2].hex()}"


def main():
    mesh, ports = ipaddress.ip_network(sys.argv[1]), [int(word) for word in sys.argv[2:4]]
    seen = {"clear": 0, "flow": 0, "hellos": {}}
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    tap.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    print("ready", flush=True)
    while signal.SIGTERM not in signal.sigpending():
        if select.select([tap], [], [], 0.05)[0]:
            frame, (interface, _, kind, *_) = tap.recvfrom(2048)
            # A frame passes a port, a bridge and another port: it is counted where it comes in.
            if kind != OUTGOING and not interface.startswith("br-"):
                count(frame, mesh, *ports, seen)
    seen["missed"] = struct.unpack("II", tap.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]
    print(json.dumps(seen))


main()
