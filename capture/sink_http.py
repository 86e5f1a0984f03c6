"""The HTTP/1.1 that the sink speaks: one connection, the heads it reads, the answers it sends."""

import io
import re
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

PIECE: Final = 256 * 1024  # bytes of a body held in memory
HEAD_LIMIT: Final = 32 * 1024  # bytes of request line and headers
DRAIN_LIMIT: Final = 1024 * 1024  # an unused body up to this many bytes is read to keep the line
LINGER: Final = 2.0  # seconds an unused body is read off before the line is closed
TICK: Final = 0.05  # seconds between two looks at whatever a held connection waits for
PACED: Final = 0.1  # seconds of body per piece when the reading is slowed down

_REQUEST: Final = re.compile(r"([A-Z]{1,16}) (/[\x21-\x7e]*|\*) HTTP/1\.([01])")
_FIELD: Final = re.compile(r"([A-Za-z0-9!#$%&'*+.^_`|~-]+):(.*)")
_GONE: Final = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)
_REASONS: Final[Mapping[int, str]] = {status.value: status.phrase for status in HTTPStatus}
_BODILESS: Final = (204, 304)


class PeerGoneError(Exception):
    """The peer closed, broke off or fell silent, or the sink is stopping."""


class BadHeadError(Exception):
    """The bytes are no request; the connection cannot go on."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class Head:
    """Request line and headers. `length` is None when there was no Content-Length."""

    method: str
    _: KW_ONLY
    path: str
    headers: Mapping[str, str]
    length: int | None
    chunked: bool
    keep_alive: bool

    @property
    def expects_continue(self) -> bool:
        return self.headers.get("expect", "").lower() == "100-continue"


@dataclass(frozen=True)
class Answer:
    status: int
    _: KW_ONLY
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()

    @classmethod
    def text(cls, status: int, reason: str) -> "Answer":
        """Answer with a sentence for the person who reads the client's log."""
        content_type = ("Content-Type", "text/plain; charset=utf-8")
        return cls(status, body=f"{reason}\n".encode(), headers=(content_type,))

    def render(self, *, keep: bool, bare: bool = False) -> bytes:
        """Lay it out for the wire; `bare` leaves the body out, as HEAD wants it."""
        lines = [f"HTTP/1.1 {self.status} {_REASONS.get(self.status, 'Unnamed')}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        if not any(name.lower() == "date" for name, _ in self.headers):
            lines.append(f"Date: {formatdate(usegmt=True)}")
        if self.status not in _BODILESS:
            lines.append(f"Content-Length: {len(self.body)}")
        if not keep:
            lines.append("Connection: close")
        silent = bare or self.status in _BODILESS
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + (b"" if silent else self.body)


def parse_head(raw: bytes) -> Head:
    """Read a head, its lines still with their line ends and without the empty line."""
    request, *lines = raw.decode("latin-1").replace("\r\n", "\n").rstrip("\n").split("\n")
    match = _REQUEST.fullmatch(request)
    if match is None:
        raise BadHeadError(400, "found no HTTP/1.1 request line")
    method, target, minor = match.groups()
    headers = _fields(lines)
    connection = headers.get("connection", "").lower()
    return Head(
        method,
        path=target.partition("?")[0],
        headers=headers,
        length=_length(headers.get("content-length")),
        chunked="transfer-encoding" in headers,
        keep_alive="close" not in connection and (minor == "1" or "keep-alive" in connection),
    )


def _fields(lines: list[str]) -> dict[str, str]:
    """Collect headers under lower-case names; one that comes twice is joined with a comma."""
    headers: dict[str, str] = {}
    for line in lines:
        match = _FIELD.fullmatch(line)
        if match is None or "\0" in line or "\r" in line:
            raise BadHeadError(400, "found a malformed header")
        name, value = match[1].lower(), match[2].strip(" \t")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _length(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdigit():
        raise BadHeadError(400, "found a Content-Length that is no number of bytes")
    # Python refuses to convert thousands of digits; whatever is this long is above any limit.
    return int(text) if len(text) <= 18 else 10**18  # noqa: PLR2004


class Connection:
    """One accepted socket. All waiting on it ends at once when the sink stops."""

    def __init__(self, sock: socket.socket, *, stopping: threading.Event) -> None:
        self._sock = sock
        self._stopping = stopping
        self._reader = io.BufferedReader(sock.makefile("rb", buffering=0), 64 * 1024)
        self._buffer: memoryview | None = None
        self._owes_continue = False
        self.left = 0  # bytes of the current body not read yet

    def read_head(self) -> Head | None:
        """Read the next head, or None when the peer is done."""
        raw = self._head_bytes()
        if not raw:
            return None
        head = parse_head(raw)
        self.left = head.length or 0
        self._owes_continue = head.expects_continue
        return head

    def _head_bytes(self) -> bytes:
        lines: list[bytes] = []
        size = 0
        while True:
            line = self._readline(HEAD_LIMIT - size + 1)
            size += len(line)
            if size > HEAD_LIMIT:
                raise BadHeadError(431, f"found a head above {HEAD_LIMIT} bytes")
            if line in (b"\r\n", b"\n"):
                if lines:
                    return b"".join(lines)
            elif line.endswith(b"\n"):
                lines.append(line)
            elif lines or line:
                raise PeerGoneError
            else:
                return b""

    def _readline(self, most: int) -> bytes:
        try:
            return self._reader.readline(most)
        except (OSError, ValueError) as error:
            raise PeerGoneError from error

    def pieces(self, *, rate: Callable[[], float | None] = lambda: None) -> Iterator[memoryview]:
        """Read the body; each piece is good until the next one. `rate` is bytes/s or None."""
        self._invite()
        if self._buffer is None:
            self._buffer = memoryview(bytearray(PIECE))
        while self.left:
            pace = rate()
            most = PIECE if pace is None else max(1, int(pace * PACED))
            piece = self._fill(self._buffer[: min(most, PIECE, self.left)])
            if pace is not None:
                self.pause(len(piece) / pace)
            yield piece

    def _invite(self) -> None:
        """Send the 100 that a client with `Expect` waits for, and only when the body is wanted."""
        if self._owes_continue:
            self._owes_continue = False
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _fill(self, view: memoryview) -> memoryview:
        try:
            count = self._reader.readinto(view)
        except (OSError, ValueError) as error:
            raise PeerGoneError from error
        if count < len(view):
            raise PeerGoneError
        self.left -= count
        return view

    def skip(self, count: int) -> None:
        """Read up to so many bytes of the body and forget them."""
        self._invite()
        while count > 0 and self.left:
            view = memoryview(bytearray(min(count, self.left, PIECE)))
            count -= len(self._fill(view))

    def hold(self, over: Callable[[], bool]) -> None:
        """Do nothing until `over()`; a peer that leaves meanwhile is gone."""
        poller = select.poll()
        poller.register(self._sock, _GONE)
        while not over():
            if self._stopping.is_set() or poller.poll(TICK * 1000):
                raise PeerGoneError

    def pause(self, seconds: float) -> None:
        """Do nothing for so long."""
        end = time.monotonic() + seconds
        self.hold(lambda: time.monotonic() >= end)

    def send(self, data: bytes) -> None:
        try:
            self._sock.sendall(data)
        except (OSError, ValueError) as error:
            raise PeerGoneError from error

    def can_stay(self, head: Head) -> bool:
        """Say whether the connection is fit for another request after this one's answer."""
        drainable = self.left == 0 or (self.left <= DRAIN_LIMIT and not self._owes_continue)
        return head.keep_alive and drainable and not head.chunked and not self._stopping.is_set()

    def reset(self) -> None:
        """Close so that the peer sees a reset."""
        with suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def linger(self) -> None:
        """Read off what the peer still sends, for a while, so that the close is no reset.

        Closing with unread bytes makes the kernel reset the connection, and the reset can overtake
        the answer. The plain socket methods are used because on TLS the bytes do not matter.
        """
        end = time.monotonic() + LINGER
        junk = bytearray(64 * 1024)
        with suppress(OSError):
            socket.socket.shutdown(self._sock, socket.SHUT_WR)
            self._sock.settimeout(TICK)
        while time.monotonic() < end and not self._stopping.is_set():
            try:
                if not socket.socket.recv_into(self._sock, junk):
                    return
            except TimeoutError:
                continue
            except OSError:
                return

    def close(self) -> None:
        with suppress(OSError, ValueError):
            self._reader.close()
        with suppress(OSError):
            self._sock.close()
