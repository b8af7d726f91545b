"""Watches every cable of the underlay with a packet socket. Knows nothing of the product: plain Python, plain sockets.

    wire.py MESH_PREFIX4 CONTROL_PORT FLOW_PORT

On SIGTERM it prints JSON: frames seen, missed (dropped by the kernel before we read them), clear (packets whose own
source or destination is a mesh address), wireguard (transport messages), flow (packets of the flow program in clear,
which shows that this watcher would have seen a leak), hellos (cipher suite in the ServerHello, per client address).
"""

from __future__ import annotations

import ipaddress
import json
import select
import signal
import socket
import struct
import sys

ETH_P_ALL, OUTGOING = 3, 4
SOL_PACKET, PACKET_STATISTICS, SO_RCVBUFFORCE = 263, 6, 33  # not all of them are in Python's socket module
IPV4, TCP, UDP = 0x0800, 6, 17
HANDSHAKE, SERVER_HELLO, TRANSPORT = 22, 2, b"\4\0\0\0"
running = True


def stop(*_: object) -> None:
    global running  # noqa: PLW0603 - a signal handler has no other way to be heard
    running = False


class Watch:
    """What went by."""

    def __init__(self, mesh: str, control_port: int, flow_port: int) -> None:
        self.mesh = ipaddress.ip_network(mesh)
        self.control_port, self.flow_port = control_port, flow_port
        self.frames = self.clear = self.wireguard = self.flow = 0
        self.hellos: dict[str, str] = {}

    def frame(self, data: bytes) -> None:
        self.frames += 1
        if len(data) < 42 or int.from_bytes(data[12:14], "big") != IPV4:
            return
        packet = data[14:]
        start = (packet[0] & 15) * 4
        source, target = ipaddress.ip_address(packet[12:16]), ipaddress.ip_address(packet[16:20])
        self.clear += source in self.mesh or target in self.mesh
        source_port, target_port = struct.unpack("!HH", packet[start : start + 4])
        if packet[9] == UDP:
            self.wireguard += packet[start + 8 : start + 12] == TRANSPORT
            self.flow += self.flow_port == source_port == target_port
        elif packet[9] == TCP and source_port == self.control_port:
            self.server_said(str(target), packet[start + (packet[start + 12] >> 4) * 4 : int.from_bytes(packet[2:4], "big")])

    def server_said(self, client: str, record: bytes) -> None:
        """record: type 1, version 2, length 2; message: type 1, length 3, version 2, random 32, session id 1 + n, suite 2."""
        if len(record) > 46 and record[0] == HANDSHAKE and record[5] == SERVER_HELLO:
            at = 44 + record[43]
            self.hellos[client] = f"0x{record[at : at + 2].hex()}"


def main() -> None:
    watch = Watch(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    tap.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
    tap.setblocking(False)
    signal.signal(signal.SIGTERM, stop)
    print("ready", flush=True)
    while running:
        select.select([tap], [], [], 0.1)
        try:
            while True:
                data, (interface, _, kind, *_) = tap.recvfrom(2048)
                # A frame passes a port, a bridge and another port: counted where it comes in.
                if kind != OUTGOING and not interface.startswith("br-"):
                    watch.frame(data)
        except BlockingIOError:
            continue
    missed = struct.unpack("II", tap.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]
    seen = {key: getattr(watch, key) for key in ("frames", "clear", "wireguard", "flow", "hellos")}
    print(json.dumps({"missed": missed, **seen}))


main()
