"""The cloud over HTTP. Every way it can fail comes out as an Outcome.

A client belongs to one process and one thread. A time limit may fire anywhere in it: the connection that it
was at is not used again.
"""

import base64
import functools
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import quote, urljoin, urlsplit

import certifi

from capture.body import AskHold, Content, DeadlineError, ShrunkError, pieces
from capture.claim import Claim
from capture.errors import ConfigError
from capture.http1 import Body, Client, ExchangeError, Option, Place, Reply, Request
from capture.limiter import Limit, NoLimit
from capture.line import Connection
from capture.outcome import Kind, Outcome, attempt_seconds, classify, describe
from capture.settings import IngestSettings
from capture.source import redact

CONNECT_SECONDS = 10.0
_REDIRECTS = {307, 308}
_MOST_REDIRECTS = 3
# A connection that is kept can have died silently meanwhile, behind a NAT that forgot it: where nothing is
# acknowledged for so long, it is given up long before the deadline of the attempt.
_SILENT_SECONDS = 15.0
# A window that stays shut counts as silence, too, though each probe of it is answered: where a proxy takes
# what it has room for and sends that on over a slow line, it opens again when half of that is gone.
_HELD_BYTES = 256 * 1024
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
        # No proxy, .netrc or certificates of somebody's environment: they must not redirect video or keys.
        self._client = Client(
            tls or tls_context(settings.ca_file),
            options=_socket_options(settings, unsent_bytes),
            line=self._line,
        )

    def close(self) -> None:
        self._client.close()

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
        hold: AskHold | None = None,
        on_connected: Callable[[], None] = lambda: None,
        on_begin: Callable[[], None] = lambda: None,
        on_sent: Callable[[], None] = lambda: None,
    ) -> tuple[Outcome, str]:
        """POST a segment from its file. Returns the outcome and the SHA-256 (hex) of what was sent.

        `answer_seconds` bounds the wait for the answer, for a probe; by default the attempt's deadline.
        `is_live` says whose share of a capped line it takes. `hold` is asked before each piece but the
        first, as `pieces` does. `on_connected` is called before anything is sent, and
        may wait; `on_begin` when the body begins to leave, `on_sent` when it has left. All of them are called
        again where it is sent again: a kept connection turned out to be closed, or the cloud redirects.
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
            on_begin()
            yield from pieces(
                content.chunks(), deadline, self._limit, is_live=is_live, size=claim.size, hold=hold
            )
            on_sent()

        url = f"{self._base}/api/stream/ingest/{quote(claim.session.camera)}"
        seconds = min(seconds, answer_seconds or seconds)
        outcome = self._request(
            "POST", url, token, headers=headers, body=body, seconds=seconds, on_connected=on_connected
        )
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
        headers = {**_HEADERS, "X-API-Key": token}
        request = Request("GET", _place(f"{self._base}/api/cameras"), headers, None, seconds, seconds)
        try:
            reply = self._client.exchange(request)
        except ExchangeError as error:
            return Answer(0, _describe(error, token))
        reason = describe(reply.status, _without(token, reply.text))
        is_page = reply.headers.get("content-type", "").startswith("text/html")
        return Answer(reply.status, reason, _date(reply.headers.get("date", "")), is_page)

    def _request(
        self,
        method: str,
        url: str,
        token: str,
        *,
        headers: dict[str, str],
        body: Body | None = None,
        success: tuple[int, ...] | None = None,
        no_page: bool = False,
        seconds: float | None = None,
        on_connected: Callable[[], None] = lambda: None,
    ) -> Outcome:
        request = Request(
            method,
            _place(url),
            {**_HEADERS, **headers, "X-API-Key": token},
            body,
            CONNECT_SECONDS,
            seconds or self._settings.attempt_seconds,
            on_connected,
        )
        self._line.forget()
        try:
            reply = self._exchange(url, request)
        except DeadlineError:
            return self.deadline_passed()
        except ShrunkError as error:
            return Outcome(Kind.TRANSIENT, 0, str(error))
        except ExchangeError as error:
            if self.is_cut:
                return self.deadline_passed()
            is_slow = error.timed_out and self._line.was_slow
            reason = _describe(error, token)
            return Outcome(Kind.TRANSIENT, 0, reason, timed_out=error.timed_out, is_slow=is_slow)
        allowed = success or tuple(self._settings.success)
        text = _without(token, reply.text)
        return classify(reply.status, reply.headers, text, success=allowed, no_page=no_page)

    def _exchange(self, url: str, request: Request) -> Reply:
        for _ in range(_MOST_REDIRECTS):
            reply = self._client.exchange(request)
            target = _redirect_target(url, reply.status, reply.headers.get("location", ""))
            if target is None:
                return reply
            url, request = target, replace(request, place=Place.of(target))
        raise ExchangeError("the cloud redirects in circles")


def silent_seconds(settings: IngestSettings) -> float:
    """Return for how long nothing may be acknowledged: longer on a line that is known to be slow."""
    return _SILENT_SECONDS + _HELD_BYTES / float(settings.slowest_uplink)


def _socket_options(settings: IngestSettings, unsent_bytes: int | None) -> list[Option]:
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
        context = ssl.create_default_context(cafile=str(ca_file or certifi.where()))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"cannot load the certificates in {ca_file}: {error}; expected a PEM file; check ingest.ca_file"
        ) from None
    context.set_alpn_protocols(["http/1.1"])
    return context


# Our own alone are kept: how long somebody's redirects are is not up to us.
_place = functools.lru_cache(maxsize=1024)(Place.of)


def _redirect_target(url: str, status: int, location: str) -> str | None:
    """Return where to go on: 307/308 to the same host and port, or to https on the same host; else None."""
    if status not in _REDIRECTS or not location:
        return None
    try:
        target = urljoin(url, location)
        old, new = Place.of(url), Place.of(target)
    except ValueError:
        return None
    is_upgrade = old.host == new.host and (old.is_tls, new.is_tls) == (False, True)
    has_login = "@" in urlsplit(target).netloc
    return target if (old.peer == new.peer or is_upgrade) and not has_login else None


def _date(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _describe(error: ExchangeError, token: str) -> str:
    return redact(str(error), [token]).replace("\n", " ")[:200]


def _without(token: str, text: bytes) -> bytes:
    return redact(text.decode("utf-8", "replace"), [token]).encode() if text else b""
