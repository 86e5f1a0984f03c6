"""What an answer of the cloud means: the table of outcomes, pure."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum

from capture.settings import IngestSettings
from capture.timetable import parse_timetable

HIGHEST_RETRY_AFTER = 3600.0
LEAST_SHARE = 0.1  # of a capped line: what is left to the backlog beside new video, or to one of ten uploads
_TRANSIENT = {408, 425, 429}
_FATAL = {401, 403}
_CONFLICT = 409
_REDIRECTION = 300
_SERVER_ERROR = 500
_LONGEST_REASON = 200


class Kind(StrEnum):
    """The four outcomes of an attempt."""

    OK = "ok"
    TRANSIENT = "transient"
    FATAL = "fatal"
    REJECTED = "rejected"


@dataclass(frozen=True)
class Outcome:
    """What became of one attempt. `status` is 0 without an answer; `retry_after` in seconds.

    `timed_out` marks an attempt that used up its time: each of those is dear. `is_slow` marks one whose bytes
    were still on their way to somebody who is there: the line is slow, or the cloud reads slowly.
    """

    kind: Kind
    status: int
    reason: str
    retry_after: float | None = None
    timed_out: bool = False
    is_slow: bool = False


def classify(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    success: Collection[int],
    no_page: bool = False,
    now: datetime | None = None,
) -> Outcome:
    """Return the outcome of an answer. `body` is its first few hundred bytes, quoted in the reason.

    With `no_page` a web page is no success with a 2xx: it is a portal's, or a wrong address.
    """
    is_page = no_page and status < _REDIRECTION and _is_html(headers)
    if status in success and not is_page:
        return Outcome(Kind.OK, status, f"HTTP {status}")
    reason = describe(status, body)
    if status == _CONFLICT:
        return Outcome(Kind.OK, status, reason)
    if status in _FATAL:
        return Outcome(Kind.FATAL, status, reason)
    if status in _TRANSIENT or status >= _SERVER_ERROR:
        return Outcome(Kind.TRANSIENT, status, reason, retry_after(headers.get("retry-after", ""), now=now))
    return Outcome(Kind.REJECTED, status, reason)


def _is_html(headers: Mapping[str, str]) -> bool:
    return headers.get("content-type", "").lower().startswith("text/html")


def describe(status: int, body: bytes) -> str:
    """Return the status and the server's words: one line, printable, short."""
    words = re.sub(r"\s+", " ", body.decode("utf-8", "replace"))
    words = "".join(char for char in words if char.isprintable()).strip()
    return f"HTTP {status}: {words[:_LONGEST_REASON]}" if words else f"HTTP {status}"


def retry_after(text: str, *, now: datetime | None = None) -> float | None:
    """Read a Retry-After header, seconds or a date, as seconds from now; None if there is none."""
    text = text.strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return min(float(text), HIGHEST_RETRY_AFTER)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    seconds = (moment - (now or datetime.now(UTC))).total_seconds()
    return min(max(0.0, seconds), HIGHEST_RETRY_AFTER)


def attempt_seconds(ingest: IngestSettings, size: int) -> float:
    """Return the deadline of one attempt: a base, plus what the slowest bearable uplink needs.

    A capped line is shared by several uploads: a tenth of the lowest cap may be all that one gets.
    """
    slowest = float(ingest.slowest_uplink)
    if ingest.max_rate is not None:
        slowest = min(slowest, parse_timetable(ingest.max_rate).slowest * LEAST_SHARE)
    return ingest.attempt_seconds + size / slowest
