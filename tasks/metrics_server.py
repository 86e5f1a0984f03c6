"""A worker's metrics over HTTP: one path, GET and HEAD, from threads of the main process, everything bounded.

The main process forks children now and then, also while a scrape is answered. So nothing here looks up a
name, and next to nothing logs or takes a lock that a child could miss; a child closes the socket that it
inherits.
"""

import contextlib
import ipaddress
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Final

import structlog

from capture.metrics_text import CONTENT_TYPE

MOST_CONNECTIONS: Final = 8
ANSWER_SECONDS: Final = 10.0  # for a whole connection
TICK_SECONDS: Final = 0.1  # between two looks at who takes too long, and the most that a stop waits
PATH: Final = "/metrics"

log = structlog.get_logger()


class _Handler(BaseHTTPRequestHandler):
    """One request, one answer, HTTP/1.0."""

    timeout = 5.0  # for each read or write
    server: "MetricsServer"

    def do_GET(self) -> None:
        if not _is_own_name(self.headers.get("Host", ""), self.server.host):
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
        elif self.path.partition("?")[0] != PATH:
            self.send_error(HTTPStatus.NOT_FOUND)
        else:
            self._answer(HTTPStatus.OK, CONTENT_TYPE, self.server.read())

    do_HEAD = do_GET  # noqa: N815 - the library's name

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer in a word, and repeat nothing of what was asked."""
        del message, explain
        self._answer(code, "text/plain; charset=utf-8", f"{HTTPStatus(code).phrase}\n".encode())

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if getattr(self, "command", None) != "HEAD":
            self.wfile.write(body)

    def version_string(self) -> str:
        return "relay-capture"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401 - the library's signature
        """Log nothing: who asks often shall fill no log."""


def _is_own_name(host: str, bound: str) -> bool:
    """Tell whether a Host header may name us: on loopback only loopback's names, elsewhere any.

    A page of somebody else whose name was pointed at this machine could otherwise read the metrics.
    """
    if not host or not _is_loopback(bound):
        return True
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    return _is_loopback(name)


def _is_loopback(host: str) -> bool:
    name = host.strip("[]").lower()
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class MetricsServer(ThreadingMixIn, TCPServer):
    """Serves `read()` at HOST:PORT. Raises OSError when the address cannot be had."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = MOST_CONNECTIONS

    def __init__(self, listen: str, read: Callable[[], bytes]) -> None:
        self.host, _, port = listen.rpartition(":")
        self.read = read
        self._has_failed = False
        self._lines: dict[socket.socket, float] = {}  # connections, and until when each may take
        found = socket.getaddrinfo(self.host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        self.address_family = found[0]
        super().__init__(found[4][:2], _Handler)  # type: ignore[arg-type] # of IPv6 the first two do
        self._thread = threading.Thread(
            target=self.serve_forever, args=(TICK_SECONDS,), name="metrics", daemon=True
        )
        os.register_at_fork(after_in_child=self.socket.close)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Take no more, and let go of the address."""
        self.shutdown()
        self.server_close()

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ANN401 - the library's
        """Take a connection if there are not too many."""
        del client_address
        if len(self._lines) >= MOST_CONNECTIONS:
            return False
        self._lines[request] = time.monotonic() + ANSWER_SECONDS
        return True

    def service_actions(self) -> None:
        """End what takes too long; called at each tick."""
        now = time.monotonic()
        for line, until in list(self._lines.items()):
            if now > until:
                with contextlib.suppress(OSError):
                    line.shutdown(socket.SHUT_RDWR)

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401 - the library's
        self._lines.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - the library's
        """Say nothing of who hung up, and of a fault of ours once: the next scrape would meet it again."""
        del request, client_address
        error = sys.exception()
        if not isinstance(error, OSError) and not self._has_failed:
            self._has_failed = True
            log.error("metrics_request_failed", exc_info=error)
