"""HTTP/1.1 on connections that are kept: sockets and their time-outs here, the protocol by h11.

One request at a time, from one thread. What the peer sends is hostile: h11 reads it and has a limit for the
head of an answer, of its body only the first bytes are read, and all of it has to be here in time.
"""

import select
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self, TypeAlias
from urllib.parse import quote, urlsplit

import h11

from capture.hostname import ascii_host
from capture.line import Connection

ANSWER_BYTES = 512  # of a body: it is quoted in a reason, no more
MOST_KEPT = 2  # of a cloud that redirects: what it says first, and where that leads
KEPT_SECONDS = 60.0
HEAD_BYTES = 100 * 1024  # of an answer, at most
_READ_BYTES = 16 * 1024
_NO_SUCCESS = 300
_PORTS = {"http": 80, "https": 443}
# What a URL may hold beside letters and digits; anything else is encoded.
_IN_URLS = "!#$%&'()*+,/:;=?@[]~"

Option: TypeAlias = tuple[int, int, int]  # level, name, value: as setsockopt takes it
Body: TypeAlias = Callable[[], Iterator[bytes]]  # as often as it is asked for


class ExchangeError(Exception):
    """No answer came of it. Says why, in words without any secret of ours."""

    def __init__(self, words: str, *, timed_out: bool = False) -> None:
        super().__init__(words)
        self.timed_out = timed_out


@dataclass(frozen=True)
class Place:
    """Where a URL leads: the peer, and what to ask it for."""

    is_tls: bool
    host: str  # as the resolver and TLS want it
    port: int
    authority: str  # as the Host header wants it
    target: str  # as the request line wants it

    @classmethod
    def of(cls, url: str) -> Self:
        """Read a URL. Raises ValueError for what is none of http or https."""
        parts = urlsplit(url)
        if parts.scheme not in _PORTS or not parts.hostname:
            raise ValueError("expected http:// or https:// and a host")
        usual = _PORTS[parts.scheme]
        host, port = ascii_host(parts.hostname), parts.port or usual
        authority = f"[{host}]" if ":" in host else host
        if port != usual:
            authority += f":{port}"
        target = quote(parts.path or "/", safe=_IN_URLS)
        if parts.query:
            target += "?" + quote(parts.query, safe=_IN_URLS)
        return cls(parts.scheme == "https", host, port, authority, target)

    @property
    def peer(self) -> tuple[bool, str, int]:
        """What two places have in common that share a connection."""
        return self.is_tls, self.host, self.port


@dataclass(frozen=True)
class Request:
    """A request. `headers` without Host; with a `body` they tell its length. Times are seconds.

    `seconds` is for how long nothing may leave, and for how long the whole answer may be waited for.
    `on_connected` is called before anything is sent on a connection, and may wait.
    """

    method: str
    place: Place
    headers: Mapping[str, str]
    body: Body | None
    connect_seconds: float
    seconds: float
    on_connected: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Reply:
    """An answer: names of headers in lower case, the first of each; the first bytes of the body."""

    status: int
    headers: Mapping[str, str]
    text: bytes


@dataclass(eq=False)
class _Kept:
    """A connection, and what h11 knows of it."""

    socket: socket.socket
    state: h11.Connection = field(
        default_factory=lambda: h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES)
    )
    used_at: float = 0.0

    def is_usable(self) -> bool:
        """Tell whether the peer has left it alone: it closes one by sending its end, and nothing is due."""
        if time.monotonic() - self.used_at > KEPT_SECONDS:
            return False
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return not poll.poll(0)


class Client:
    """Exchanges requests for answers, on connections that are kept in between."""

    def __init__(self, tls: ssl.SSLContext, *, options: Sequence[Option], line: Connection) -> None:
        """`options` are set on each socket; `line` is told of each, and shuts it from another thread."""
        self._tls = tls
        self._options = options
        self._line = line
        self._kept: dict[tuple[bool, str, int], _Kept] = {}

    def close(self) -> None:
        while self._kept:
            _close(self._kept.popitem()[1])

    def exchange(self, request: Request) -> Reply:
        """Send a request and return the answer. Raises ExchangeError, and what its body raises.

        Where a kept connection breaks the peer may just have closed it: once more then, on a new one.
        """
        kept = self._take(request.place)
        if kept is not None:
            try:
                return self._exchange(kept, request)
            except ExchangeError as error:
                if error.timed_out or self._line.is_cut:
                    raise
        return self._exchange(self._connect(request), request)

    def _take(self, place: Place) -> _Kept | None:
        kept = self._kept.pop(place.peer, None)
        if kept is None or kept.is_usable():
            return kept
        _close(kept)
        return None

    def _connect(self, request: Request) -> _Kept:
        if self._line.is_cut:
            raise ExchangeError("no connection: it was cut")
        place, seconds = request.place, request.connect_seconds
        found = _connected(place, seconds)
        try:
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for option in self._options:
                found.setsockopt(*option)
            if place.is_tls:  # in two steps: a handshake can be cut
                found = self._tls.wrap_socket(
                    found, server_hostname=place.host, do_handshake_on_connect=False
                )
            self._line.is_new(found)
            if isinstance(found, ssl.SSLSocket):
                found.do_handshake()
        except BaseException as error:
            found.close()
            if isinstance(error, TimeoutError):
                raise ExchangeError(f"no TLS within {seconds:g} s", timed_out=True) from error
            if isinstance(error, OSError | ValueError):
                words = _words(error)
                raise ExchangeError(f"no TLS: {words}" if place.is_tls else words) from error
            raise
        return _Kept(found)

    def _exchange(self, kept: _Kept, request: Request) -> Reply:
        self._line.is_used(kept.socket)
        try:
            request.on_connected()
            reply = _talk(kept, request)
        except BaseException as error:  # a time limit, too, leaves it half used
            self._line.give_up()
            _close(kept)
            if isinstance(error, h11.ProtocolError):
                raise ExchangeError(f"no HTTP: {error}") from error
            raise
        self._keep(request.place, kept)
        return reply

    def _keep(self, place: Place, kept: _Kept) -> None:
        is_done = {kept.state.our_state, kept.state.their_state} == {h11.DONE}
        if not is_done or kept.state.trailing_data[0]:  # more than was asked for is no answer to the next one
            _close(kept)
            return
        kept.state.start_next_cycle()
        kept.used_at = time.monotonic()
        if len(self._kept) >= MOST_KEPT:
            _close(self._kept.pop(next(iter(self._kept))))
        self._kept[place.peer] = kept


def _connected(place: Place, seconds: float) -> socket.socket:
    try:
        return socket.create_connection((place.host, place.port), timeout=seconds)
    except TimeoutError as error:
        raise ExchangeError(f"no connection within {seconds:g} s", timed_out=True) from error
    except socket.gaierror as error:
        raise ExchangeError(f"the host is not found: {error.strerror}") from error
    except (OSError, UnicodeError) as error:  # the resolver refuses a label of more than 63 characters
        raise ExchangeError(f"no connection: {_words(error)}") from error


def _close(kept: _Kept) -> None:
    with suppress(OSError):
        kept.socket.close()


def _talk(kept: _Kept, request: Request) -> Reply:
    place = request.place
    head = h11.Request(
        method=request.method,
        target=place.target,
        headers=[("Host", place.authority), *request.headers.items()],
    )
    kept.socket.settimeout(request.seconds)
    try:
        _send(kept, kept.state.send(head), request.seconds)  # at once: h11 has a part for each header
        for piece in request.body() if request.body else ():
            for part in kept.state.send_with_data_passthrough(h11.Data(data=piece)) or ():  # without a copy
                _send(kept, part, request.seconds)
        _send(kept, kept.state.send(h11.EndOfMessage()), request.seconds)
    except _BrokenError as error:
        # A server that refuses what is long may say so, and close without reading all of it.
        words = str(error)
        reply = _answer(kept, request.seconds, broken=words)
        if reply.status < _NO_SUCCESS:  # of what it cannot have
            raise ExchangeError(words) from None
        return reply
    return _answer(kept, request.seconds)


class _BrokenError(ExchangeError):
    """The connection broke while a request was sent."""


def _send(kept: _Kept, part: bytes | None, seconds: float) -> None:
    left = memoryview(part or b"")
    while left:
        try:
            left = left[kept.socket.send(left) :]
        except TimeoutError as error:
            words = _words(error) if error.errno else f"nothing could be sent for {seconds:g} s"
            raise ExchangeError(words, timed_out=True) from error
        except OSError as error:
            raise _BrokenError(f"the connection broke while sending: {_words(error)}") from error


def _answer(kept: _Kept, seconds: float, *, broken: str = "") -> Reply:
    """Read an answer to its end, or as much as is wanted of a long one.

    `broken` says why not all of the request was sent, if so: words, as an error would keep the request.
    """
    until = time.monotonic() + seconds
    response: h11.Response | None = None
    text = b""
    while True:
        event = kept.state.next_event()
        if event is h11.NEED_DATA:
            kept.state.receive_data(_received(kept, seconds, until, broken, is_begun=response is not None))
        elif isinstance(event, h11.Response):
            response = event
        elif isinstance(event, h11.Data):
            text += event.data
        if response is not None and (isinstance(event, h11.EndOfMessage) or len(text) >= ANSWER_BYTES):
            headers: dict[str, str] = {}
            for name, value in response.headers:
                headers.setdefault(name.decode("ascii"), value.decode("latin-1"))
            return Reply(response.status_code, headers, text[:ANSWER_BYTES])
        if event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
            raise ExchangeError("no HTTP: the answer is not to this request")


def _received(kept: _Kept, seconds: float, until: float, broken: str, *, is_begun: bool) -> bytes:
    """Return more of an answer, nothing where the peer ends a body that way."""
    left = until - time.monotonic()
    try:
        if left <= 0:
            raise TimeoutError
        kept.socket.settimeout(left)
        data = kept.socket.recv(_READ_BYTES)
    except TimeoutError as error:
        words = _words(error) if error.errno else f"no answer within {seconds:g} s"
        raise ExchangeError(words, timed_out=True) from error
    except OSError as error:
        words = broken or f"the connection broke before the answer: {_words(error)}"
        raise ExchangeError(words) from error
    if not data and not is_begun:
        raise ExchangeError(broken or "the connection was closed without an answer")
    return data


def _words(error: Exception) -> str:
    """Say what went wrong, without the number and the class."""
    if isinstance(error, ssl.SSLCertVerificationError) and hasattr(error, "verify_message"):
        return f"the certificate is refused: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and (reason := getattr(error, "reason", None)):  # not all have one
        return str(reason).replace("_", " ").lower()
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
