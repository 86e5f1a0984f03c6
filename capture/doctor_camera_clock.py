"""The clock of a camera, as its RTSP server tells it with each answer.

Told and not judged: the times of a segment are this machine's, the camera's stand at most in the picture.
"""

import socket
import time
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from capture.doctor_check import HungError, within
from capture.source import Source
from capture.words import seconds_text

ASK_SECONDS = 3.0
_MOST_BYTES = 8192
_SAME_SECONDS = 1.5  # the header has whole seconds


def clock_words(source: Source) -> str:
    """Return words about the clock of an RTSP camera, to be added to a sentence; "" for other sources."""
    if source.scheme != "rtsp":
        return ""
    with suppress(HungError, OSError, ValueError):
        offset = within(ASK_SECONDS + 1.0, lambda: clock_offset(source))
        if offset is not None:
            return f", {_offset_words(offset)}"
    return ", the camera does not tell its clock"


def _offset_words(offset: float) -> str:
    if abs(offset) <= _SAME_SECONDS:
        return "the camera's clock agrees"
    return f"the camera's clock is {seconds_text(abs(offset))} {'ahead' if offset > 0 else 'behind'}"


def clock_offset(source: Source) -> float | None:
    """Return how many seconds the camera's clock is ahead of ours; None when it does not tell.

    Asks for nothing that needs a login, and sends none. Raises OSError where nobody answers.
    """
    host, port = source.address
    request = f"OPTIONS rtsp://{host}:{port}/ RTSP/1.0\r\nCSeq: 1\r\nUser-Agent: relay-capture\r\n\r\n"
    deadline = time.monotonic() + ASK_SECONDS
    with socket.create_connection((host.strip("[]"), port), timeout=ASK_SECONDS) as connection:
        connection.sendall(request.encode("ascii"))
        answer = _head(connection, deadline)
    return read_offset(answer, datetime.now(UTC))


def _head(connection: socket.socket, deadline: float) -> bytes:
    """Return what came up to the first empty line, the end, or the deadline: an answer may trickle."""
    answer = b""
    while b"\r\n\r\n" not in answer and len(answer) < _MOST_BYTES:
        left = deadline - time.monotonic()
        if left <= 0:
            break
        connection.settimeout(left)
        try:
            data = connection.recv(2048)
        except TimeoutError:
            break
        if not data:
            break
        answer += data
    return answer


def read_offset(answer: bytes, now: datetime) -> float | None:
    """Read the ``Date`` of an RTSP answer as seconds ahead of `now`; None when there is none."""
    lines = answer.decode("latin-1").split("\r\n")
    if not lines[0].startswith("RTSP/1."):
        return None
    date = next((line.partition(":")[2] for line in lines[1:] if line.lower().startswith("date:")), "")
    try:
        moment = parsedate_to_datetime(date.strip())
    except (ValueError, OverflowError):
        return None
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - now).total_seconds()
