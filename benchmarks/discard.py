"""An ingest that takes everything, keeps nothing and answers 204: as little work as a server can do.

What is measured against it is the client. It is a process of its own, with a thread for each connection, and
its own CPU time is told at the end, so that nobody takes the server's limit for the client's.
"""

import multiprocessing
import re
import resource
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

BUFFER = 1024 * 1024
ANSWER = b"HTTP/1.1 204 No Content\r\n\r\n"
REGISTERED = b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)\r\n", re.IGNORECASE)
_HEAD_END = b"\r\n\r\n"


@dataclass
class Discard:
    """The running server, as its parent sees it."""

    port: int
    _pipe: Any = field(repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self) -> tuple[float, int, int, int]:
        """Return its CPU seconds, and requests, connections and bytes of bodies, since it began."""
        self._pipe.send("tell")
        cpu, requests, connections, size = self._pipe.recv()
        return float(cpu), int(requests), int(connections), int(size)


@contextmanager
def discarding(certificate: Path | None = None) -> Iterator[Discard]:
    """Run the server on a free port; with TLS if it is given a PEM file with certificate and key."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, certificate), daemon=True)
    process.start()
    try:
        yield Discard(ours.recv(), ours)
    finally:
        process.kill()
        process.join()


class _Counts:
    requests = 0
    connections = 0
    bytes = 0


def _serve(pipe: Connection, certificate: Path | None) -> None:
    tls = None
    if certificate is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate)
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    counts, guard = _Counts(), threading.Lock()
    threading.Thread(target=_accept, args=(listener, tls, counts, guard), daemon=True).start()
    pipe.send(listener.getsockname()[1])
    with suppress(EOFError):
        while pipe.recv():
            used = resource.getrusage(resource.RUSAGE_SELF)
            with guard:
                pipe.send((used.ru_utime + used.ru_stime, counts.requests, counts.connections, counts.bytes))


def _accept(
    listener: socket.socket, tls: ssl.SSLContext | None, counts: _Counts, guard: threading.Lock
) -> None:
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with guard:
            counts.connections += 1
        threading.Thread(target=_talk, args=(connection, tls, counts, guard), daemon=True).start()


def _talk(plain: socket.socket, tls: ssl.SSLContext | None, counts: _Counts, guard: threading.Lock) -> None:
    buffer = memoryview(bytearray(BUFFER))
    with suppress(OSError), tls.wrap_socket(plain, server_side=True) if tls else plain as connection:
        while answer := _take_one(connection, buffer, counts, guard):
            with guard:
                counts.requests += 1
            connection.sendall(answer)


def _take_one(connection: socket.socket, buffer: memoryview, counts: _Counts, guard: threading.Lock) -> bytes:
    """Read one request and forget it; return the answer to it, nothing at the end of the connection."""
    head = b""
    while _HEAD_END not in head:
        got = connection.recv_into(buffer)
        if not got:
            return b""
        head += bytes(buffer[:got])
    end = head.index(_HEAD_END) + len(_HEAD_END)
    match = _LENGTH.search(head[:end])
    left = (int(match[1]) if match else 0) - (len(head) - end)
    if b"100-continue" in head[:end].lower():
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    while left > 0:
        got = connection.recv_into(buffer, min(left, BUFFER))
        if not got:
            return b""
        left -= got
        with guard:
            counts.bytes += got
    return REGISTERED if head.startswith(b"POST /api/cameras ") else ANSWER
