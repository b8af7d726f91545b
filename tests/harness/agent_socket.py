"""An agent's status socket that says what a test wants: for the verbs that only ask (MON-6).

The real agent answers the same paths with agent/picture.py's shape; here the answers are a dict from path to value.
"""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any


@contextmanager
def agent_socket(state_dir: Path, answers: Mapping[str, Any]) -> Iterator[list[str]]:
    """Serve `answers` on STATE_DIR/agent.sock -> the targets that were asked for, as they come."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            value = answers.get(self.path.partition("?")[0], {"error": "not found"})
            body = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)

        def log_message(self, *_: object) -> None:
            """Silence."""

        def address_string(self) -> str:
            return "unix"

    with socketserver.ThreadingUnixStreamServer(str(state_dir / "agent.sock"), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield asked
        finally:
            server.shutdown()
            thread.join()
            (state_dir / "agent.sock").unlink()
