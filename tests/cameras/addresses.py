"""Addresses of cameras that are none: dead, silent, talking nonsense, or very slowly.

All on the loopback interface. Each is a context manager; `host` and `port` say where it is.
"""

import itertools
import os
import socket
import threading
import time
from contextlib import suppress
from typing import Self

FULL_AFTER = 0.3  # seconds without an answer to a SYN
RTSP_OK = b"RTSP/1.0 200 OK\r\nCSeq: 1\r\nPublic: OPTIONS, DESCRIBE, SETUP, PLAY\r\nX-Slow: "


class DeadIp:
    """A host that answers no SYN, as one that is switched off: a listener on Linux whose backlog is full.

    Refused and unreachable are other things: here a client waits for its own timeout.
    """

    def __init__(self, host: str = "127.0.0.66") -> None:
        self._listener = socket.create_server((host, 0), backlog=0)
        self.host, self.port = self._listener.getsockname()
        self._guests: list[socket.socket] = []
        while self._takes_one():
            if len(self._guests) > 16:
                raise OSError(f"this system takes connections beyond a full backlog at {host}:{self.port}")

    def _takes_one(self) -> bool:
        guest = socket.socket()
        guest.settimeout(FULL_AFTER)
        self._guests.append(guest)
        try:
            guest.connect((self.host, self.port))
        except TimeoutError:
            return False
        return True

    def revive(self) -> None:
        """Let go of the port, so that something else can listen there."""
        self.close()

    def close(self) -> None:
        for each in (*self._guests, self._listener):
            each.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class OddPort:
    """A port that takes connections and then behaves oddly. `calls` is when each one came.

    ``silent``: reads, and never says anything. ``garbage``: says noise for ever. ``trickle``: begins a proper
    RTSP answer and sends a byte of it every 0.2 s, for ever. ``closes``: closes at once. ``web``: answers as
    a web server does.
    """

    def __init__(self, behaviour: str, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._behave = {
            "silent": self._silent,
            "garbage": self._garbage,
            "trickle": self._trickle,
            "closes": lambda _: None,
            "web": self._web,
        }[behaviour]
        self._listener = socket.create_server((host, port))
        self.host, self.port = self._listener.getsockname()
        self.calls: list[float] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)

    def _serve(self) -> None:
        while not self._ended.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.calls.append(time.monotonic())
            threading.Thread(target=self._attend, args=(connection,), daemon=True).start()

    def _attend(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(1.0)
            self._behave(connection)

    def _silent(self, connection: socket.socket) -> None:
        while not self._ended.is_set():
            with suppress(TimeoutError):
                if not connection.recv(65536):
                    return

    def _garbage(self, connection: socket.socket) -> None:
        while not self._ended.wait(0.02):
            connection.sendall(os.urandom(1024))

    def _trickle(self, connection: socket.socket) -> None:
        answer = itertools.chain(RTSP_OK, itertools.repeat(ord("x")))
        while not self._ended.wait(0.2):
            connection.sendall(bytes([next(answer)]))

    def _web(self, connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\nhello\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
