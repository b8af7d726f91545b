"""The grpc.aio server behind the front: what it is told, and who watches its sockets (OPS-3).

grpc's event engine asks the kernel to hear of every socket that can be written again, and a unix socket can whenever
its other end has read: each frame that the front takes wakes one thread, which wakes the next. That was a fifth of what
a change costs (measured, grpcio 1.85). The older poller, which the same library still carries, reads where it waits.
"""

from __future__ import annotations

import os
from typing import Final

PENDING_REQUESTS: Final = 20_000  # grpc cancels streams of a connect storm by default
POLLER: Final = "-event_engine_listener"  # a release of grpc that does not know the word passes over it


def choose_poller() -> None:
    """For servers of this process; before grpc is imported. Whoever has set GRPC_EXPERIMENTS knows better."""
    os.environ.setdefault("GRPC_EXPERIMENTS", POLLER)


def grpc_server_options() -> list[tuple[str, int]]:
    """Options for the grpc.aio server behind the front; message sizes are the services' business."""
    return [
        ("grpc.server.max_pending_requests", PENDING_REQUESTS),
        ("grpc.server.max_pending_requests_hard_limit", PENDING_REQUESTS),
        ("grpc.server_max_unrequested_time_in_server", 300),  # seconds; 30 by default, too short in a storm
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),  # or a client's keepalive earns it a GOAWAY
        ("grpc.max_concurrent_streams", 64),  # an agent needs three
        ("grpc.http2.bdp_probe", 0),  # pings to measure bandwidth, one per report: reports are small
    ]
