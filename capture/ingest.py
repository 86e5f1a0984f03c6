"""The cloud over HTTP: the one door to httpx. Every way it can fail comes out as an Outcome.

A client belongs to one process and one thread. After a soft time limit fired inside it, drop it without
closing it: the signal may have left a connection half used, and closing can block on that very lock.
"""

import base64
import functools
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import httpx

from capture.body import Content, DeadlineError, ShrunkError, pieces
from capture.claim import Claim
from capture.errors import ConfigError
from capture.limiter import Limit, NoLimit
from capture.line import Connection
from capture.outcome import Kind, Outcome, attempt_seconds, classify, describe
from capture.settings import IngestSettings
from capture.source import redact

CONNECT_SECONDS = 10.0
_ANSWER_BYTES = 512
_REDIRECTS = {307, 308}
_MOST_REDIRECTS = 3
# A connection that is kept can have died silently meanwhile, behind a NAT that forgot it: where nothing is
# acknowledged for so long, it is given up long before the deadline of the attempt.
_SILENT_SECONDS = 15.0
# A window that stays shut counts as silence, too, though each probe of it is answered: where a proxy takes
# what it has room for and sends that on over a slow line, it opens again when half of that is gone.
_HELD_BYTES = 256 * 1024
# What the first use of a connection that the server closed in that very moment ends with.
_CLOSED_MEANWHILE = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
_HEADERS = {
    "User-Agent": "relay-capture",
    "Accept": "*/*",
    "Accept-Encoding": "identity",
    "Connection": "keep-alive",
}


@dataclass(frozen=True)
class Answer:
    """What the cloud answered to a knock. `status` is 0 without an answer; `date` is its clock."""

    status: int
    reason: str
    date: datetime | None = None
    is_page: bool = False


class _Used:
    """The connection of a request, as httpcore tells it: whether it is new, and how it was at a failure."""

    def __init__(self, line: Connection) -> None:
        self.is_new = False
        self._line = line

    def see(self, event: str, info: Mapping[str, Any]) -> None:
        if event == "connection.connect_tcp.started":
            self.is_new = True
        elif event in {"connection.connect_tcp.complete", "connection.start_tls.complete"}:
            self._line.is_now(info["return_value"].get_extra_info("socket"))
        elif event.endswith(("request_body.failed", "response_headers.failed")):
            self._line.give_up()  # it is closed in a moment


class Ingest:
    """One keep-alive client of the cloud.

    With `unsent_bytes`, so much of a body waits in the kernel at most, where the system can do that.
    """

    def __init__(
        self,
        settings: IngestSettings,
        *,
        tls: ssl.SSLContext | None = None,
        limit: Limit | None = None,
        unsent_bytes: int | None = None,
    ) -> None:
        if settings.url is None:
            raise ConfigError("no cloud is set; expected its base URL; set RELAY_CLOUD")
        self._settings = settings
        self._limit = limit or NoLimit()
        self._base = settings.url
        self._line = Connection()
        # The transport alone: a client around it would store cookies, follow logins, and take a tenth of the
        # time of a small upload. trust_env off: a proxy or .netrc in somebody's environment must not redirect
        # video or keys, and looking for them costs 20 ms.
        self._transport = httpx.HTTPTransport(
            verify=tls or tls_context(settings.ca_file),
            trust_env=False,
            limits=httpx.Limits(max_connections=4, max_keepalive_connections=2, keepalive_expiry=60),
            socket_options=_socket_options(settings, unsent_bytes),
        )

    def close(self) -> None:
        self._transport.close()

    @property
    def is_cut(self) -> bool:
        return self._line.is_cut

    def cut(self) -> None:
        """End what this client is at with an error, for good. The one method that another thread may call."""
        self._line.cut()

    def send_segment(
        self,
        claim: Claim,
        token: str,
        *,
        answer_seconds: float | None = None,
        is_live: bool = True,
        hold: Callable[[], float] | None = None,
        on_sent: Callable[[], None] = lambda: None,
    ) -> tuple[Outcome, str]:
        """POST a segment from its file. Returns the outcome and the SHA-256 (hex) of what was sent.

        `answer_seconds` bounds the wait for the answer, for a probe; by default the attempt's deadline.
        `is_live` says whose share of a capped line it takes. `hold` is asked before each piece for how many
        seconds others need the line. `on_sent` is called when the body has left.
        """
        seconds = attempt_seconds(self._settings, claim.size)
        deadline = time.monotonic() + seconds
        try:
            content = Content.read(claim.file, claim.size)
        except ShrunkError as error:
            return Outcome(Kind.TRANSIENT, 0, str(error)), ""
        segment = claim.segment
        headers = {
            "Content-Type": "video/mp2t",
            "Content-Length": str(claim.size),
            "Content-Digest": f"sha-256=:{base64.b64encode(content.digest).decode()}:",
            "Idempotency-Key": claim.idempotency_key,
            "X-Segment-Sequence": str(segment.sequence),
            "X-Segment-Start": segment.start_rfc3339,
            "X-Segment-Duration": f"{segment.duration:.3f}",
        }

        def body() -> Iterator[bytes]:
            yield from pieces(content.chunks(), deadline, self._limit, is_live=is_live, hold=hold)
            on_sent()

        url = f"{self._base}/api/stream/ingest/{quote(claim.session.camera)}"
        timeout = httpx.Timeout(min(seconds, answer_seconds or seconds), connect=CONNECT_SECONDS)
        outcome = self._request("POST", url, token, headers=headers, body=body, timeout=timeout)
        return outcome, content.digest.hex()

    def deadline_passed(self) -> Outcome:
        """Return the outcome of the last attempt when its time was up."""
        return Outcome(
            Kind.TRANSIENT,
            0,
            "the deadline of the attempt passed",
            timed_out=True,
            is_slow=self._line.was_slow,
        )

    def register(self, payload: bytes, token: str) -> Outcome:
        """POST a camera's registration; 200 and 201 are OK, unless with a web page."""
        headers = {"Content-Type": "application/json", "Content-Length": str(len(payload))}
        return self._request(
            "POST",
            f"{self._base}/api/cameras",
            token,
            headers=headers,
            body=lambda: iter([payload]),
            success=(200, 201),
            no_page=True,
        )

    def end_stream(self, camera: str, token: str) -> Outcome:
        """DELETE a camera's stream; that there is none is as good, a web page is not."""
        url = f"{self._base}/api/stream/ingest/{quote(camera)}"
        return self._request("DELETE", url, token, headers={}, success=(204, 200, 202, 404), no_page=True)

    def knock(self, token: str, *, seconds: float) -> Answer:
        """GET the cameras: tells whether the cloud answers and knows the token, and changes nothing."""
        place = _parsed(f"{self._base}/api/cameras")
        request = _request_of("GET", place, headers={"X-API-Key": token}, timeout=httpx.Timeout(seconds))
        try:
            status, answer, text = self._exchange(request)
        except httpx.TransportError as error:
            return Answer(0, _describe(error, token))
        reason = describe(status, redact(text.decode("utf-8", "replace"), [token]).encode())
        is_page = answer.get("content-type", "").startswith("text/html")
        return Answer(status, reason, _date(answer.get("date", "")), is_page)

    def _request(
        self,
        method: str,
        url: str,
        token: str,
        *,
        headers: dict[str, str],
        body: Callable[[], Iterator[bytes]] | None = None,
        success: tuple[int, ...] | None = None,
        no_page: bool = False,
        timeout: httpx.Timeout | None = None,
    ) -> Outcome:
        timeout = timeout or httpx.Timeout(self._settings.attempt_seconds, connect=CONNECT_SECONDS)
        allowed = success or tuple(self._settings.success)
        used = _Used(self._line)
        self._line.forget()
        try:
            place = _parsed(url)
            for _ in range(_MOST_REDIRECTS):

                def request(place: httpx.URL = place) -> httpx.Request:
                    return _request_of(
                        method,
                        place,
                        headers={**headers, "X-API-Key": token},
                        timeout=timeout,
                        content=body() if body else None,
                        trace=used.see,
                    )

                status, answer, text = self._exchange_for_sure(request, used)
                target = _redirect_target(url, status, answer.get("location", ""))
                if target is None:
                    if text:
                        text = redact(text.decode("utf-8", "replace"), [token]).encode()
                    return classify(status, answer, text, success=allowed, no_page=no_page)
                url, place = target, httpx.URL(target)
        except DeadlineError:
            return self.deadline_passed()
        except ShrunkError as error:
            return Outcome(Kind.TRANSIENT, 0, str(error))
        except httpx.TransportError as error:
            timed_out = isinstance(error, httpx.TimeoutException)
            is_slow = timed_out and self._line.was_slow
            failed = Outcome(Kind.TRANSIENT, 0, _describe(error, token), timed_out=timed_out, is_slow=is_slow)
            return self.deadline_passed() if self.is_cut else failed
        except httpx.InvalidURL:
            return Outcome(Kind.REJECTED, 0, "the cloud redirects to something that is no URL")
        return Outcome(Kind.TRANSIENT, 0, "the cloud redirects in circles")

    def _exchange_for_sure(
        self, request: Callable[[], httpx.Request], used: "_Used"
    ) -> tuple[int, httpx.Headers, bytes]:
        """Exchange once; again on a new connection where a kept one turns out to be closed by the server."""
        try:
            return self._exchange(request())
        except _CLOSED_MEANWHILE:
            if used.is_new or self.is_cut:
                raise
        return self._exchange(request())

    def _exchange(self, request: httpx.Request) -> tuple[int, httpx.Headers, bytes]:
        response = self._transport.handle_request(request)
        try:
            text = b""
            # To its end, also where there is no body: only then is the connection used again. As it comes in:
            # the response would count it, and cut it into pieces.
            assert isinstance(response.stream, httpx.SyncByteStream)  # noqa: S101 - this transport's are
            for piece in response.stream:
                text += piece
                if len(text) >= _ANSWER_BYTES:
                    break
            return response.status_code, response.headers, text[:_ANSWER_BYTES]
        finally:
            response.close()


def silent_seconds(settings: IngestSettings) -> float:
    """Return for how long nothing may be acknowledged: longer on a line that is known to be slow."""
    return _SILENT_SECONDS + _HELD_BYTES / float(settings.slowest_uplink)


def _socket_options(settings: IngestSettings, unsent_bytes: int | None) -> list[tuple[int, int, int]]:
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    if sys.platform == "linux":
        silent_ms = round(silent_seconds(settings) * 1000)
        options.append((socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, silent_ms))
        if unsent_bytes is not None:
            options.append((socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, unsent_bytes))
    return options


def tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """Return the TLS settings: the public authorities, or those of one file."""
    try:
        if ca_file is not None:
            return ssl.create_default_context(cafile=str(ca_file))
        return httpx.create_ssl_context(trust_env=False)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"cannot load the certificates in {ca_file}: {error}; expected a PEM file; check ingest.ca_file"
        ) from None


class _Stream(httpx.SyncByteStream):
    """A body, or none."""

    def __init__(self, content: Iterator[bytes] | None) -> None:
        self._content = content

    def __iter__(self) -> Iterator[bytes]:
        return self._content or iter(())


# Parsing one takes as long as sending a small segment to the kernel. Our own alone are kept: how long
# somebody's redirects are is not up to us.
_parsed = functools.lru_cache(maxsize=1024)(httpx.URL)


def _request_of(
    method: str,
    url: httpx.URL,
    *,
    headers: dict[str, str],
    timeout: httpx.Timeout,
    content: Iterator[bytes] | None = None,
    trace: Callable[[str, Mapping[str, Any]], None] | None = None,
) -> httpx.Request:
    """Return a request.

    With a stream instead of content: httpx adds no headers then, and does not make those that there are anew.
    """
    extensions = {"timeout": timeout.as_dict(), **({"trace": trace} if trace else {})}
    headers = {"Host": url.netloc.decode("ascii"), **_HEADERS, **headers}
    return httpx.Request(method, url, headers=headers, stream=_Stream(content), extensions=extensions)


def _redirect_target(url: str, status: int, location: str) -> str | None:
    """Return where to go on: 307/308 to the same host and port, or to https on the same host; else None."""
    if status not in _REDIRECTS or not location:
        return None
    target = urljoin(url, location)
    try:
        old, new = urlsplit(url), urlsplit(target)
        same_host = old.hostname == new.hostname and "@" not in new.netloc
        same_place = (old.scheme, _port(old.scheme, old.port)) == (
            new.scheme,
            _port(new.scheme, new.port),
        )
    except ValueError:
        return None
    upgrade = (old.scheme, new.scheme) == ("http", "https")
    return target if same_host and (same_place or upgrade) else None


def _port(scheme: str, port: int | None) -> int:
    return port or {"http": 80, "https": 443}.get(scheme, 0)


def _date(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _describe(error: httpx.TransportError, token: str) -> str:
    words = redact(str(error), [token]).replace("\n", " ")[:200]
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
