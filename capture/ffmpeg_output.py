"""What ffmpeg says: the segment list and progress on its standard output, and its last words."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from capture.segment import parse_open_name

# A report of ffmpeg has short lines; a longer one is none, and is thrown away as it arrives.
_MAX_LINE_BYTES = 1024
_PROGRESS_KEYS = frozenset({"frame", "out_time_us"})
_KEY_VALUE = re.compile(r"([a-z0-9_]{1,40})=\s*(\S.*|)")
# A whole report, read at once: fifty cameras say six hundred lines a second, of which two in twelve matter.
_OTHERS = rb"(?:(?!frame=|progress=)[a-z0-9_]{1,40}=[^\n]{0,200}\n){0,40}?"
_REPORT = re.compile(
    rb"frame= *([0-9]{1,18})\n"
    + _OTHERS
    + rb"out_time_us=([^\n]{0,40})\n"
    + _OTHERS
    + rb"progress=(continue|end)\n"
)


@dataclass(frozen=True, slots=True)
class SegmentClosed:
    """ffmpeg has written the last byte of a segment. Times in seconds since the first frame.

    `start` is the key frame's time. The first segment starts at 0, its first picture a few frames
    later where the video has B-frames. With an open GOP `end` is up to a few frames before the next
    `start`; the pictures between are in the next file.
    """

    sequence: int
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Progress:
    """How far ffmpeg is: frames written so far, and seconds in the video."""

    frames: int
    out_time: float | None = None
    final: bool = False


def parse_segment_line(line: str) -> SegmentClosed | None:
    """Read a line of the segment list, ``00000012.ts,24.000000,26.000000``; None for any other."""
    name, _, times = line.partition(",")
    sequence = parse_open_name(name)
    start, end = (_seconds(text) for text in times.partition(",")[::2])
    if sequence is None or start is None or end is None:
        return None
    return SegmentClosed(sequence, start, end)


class StdoutParser:
    """Turns the bytes of ffmpeg's standard output into events, in whatever pieces they arrive."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._is_skipping = False
        self._values: dict[str, str] = {}

    def feed(self, data: bytes) -> list[SegmentClosed | Progress]:
        """Take the next bytes; return the events that they complete."""
        events: list[SegmentClosed | Progress] = []
        if not (self._rest or self._values or self._is_skipping):
            at = 0
            while (report := _REPORT.match(data, at)) is not None:
                frames, out_time, last = report.groups()
                events.append(
                    _progress(frames.decode(), out_time.decode(errors="replace"), final=last == b"end")
                )
                at = report.end()
            data = data[at:]
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._keep(line)
            event = None if self._is_skipping else self._read(self._rest)
            self._rest.clear()
            self._is_skipping = False
            if event is not None:
                events.append(event)
        self._keep(rest)
        return events

    def _keep(self, piece: bytes) -> None:
        if len(self._rest) + len(piece) > _MAX_LINE_BYTES:
            self._is_skipping = True
            self._rest.clear()
        if not self._is_skipping:
            self._rest += piece

    def _read(self, line: bytearray) -> SegmentClosed | Progress | None:
        text = line.decode("utf-8", "replace").strip()
        match = _KEY_VALUE.fullmatch(text)
        if match is None:
            return parse_segment_line(text)
        key, value = match.groups()
        if key in _PROGRESS_KEYS:
            self._values[key] = value
        if key != "progress":
            return None
        values, self._values = self._values, {}
        return _progress(values.get("frame", ""), values.get("out_time_us", ""), final=value == "end")


def _progress(frames: str, out_time: str, *, final: bool) -> Progress:
    microseconds = _seconds(out_time)
    seconds = None if microseconds is None else microseconds / 1_000_000
    return Progress(_count(frames), out_time=seconds, final=final)


def _count(text: str) -> int:
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else 0


def _seconds(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:  # "N/A" before the first frame
        return None
    return value if math.isfinite(value) else None


class FailureKind(StrEnum):
    DISK_FULL = "disk full"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    NO_SESSION = "no session"
    NOT_FOUND = "not found"
    SERVER_ERROR = "server error"
    CONNECTION_REFUSED = "connection refused"
    TIMED_OUT = "timed out"
    HOST_UNKNOWN = "host unknown"
    UNREACHABLE = "unreachable"
    TLS = "tls"
    DISCONNECTED = "disconnected"
    NO_SUCH_FILE = "no such file"
    PERMISSION = "permission denied"
    BUSY = "busy"
    NO_VIDEO = "no video"
    NO_TIMESTAMPS = "no timestamps"
    INVALID_DATA = "invalid data"
    OUTPUT = "output"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why ffmpeg failed: a kind to decide by, and a short cause to read; neither holds a URL."""

    kind: FailureKind
    cause: str


# The first that is found in any line counts, so what is particular stands before what follows from
# it: a host that cannot be resolved also ends in "Input/output error".
_CAUSES: tuple[tuple[FailureKind, str, str], ...] = (
    (FailureKind.DISK_FULL, "no space left on device", "the disk is full"),
    (FailureKind.DISK_FULL, "disk quota exceeded", "the disk quota is used up"),
    (FailureKind.OUTPUT, "failed to open segment", "the segment file could not be opened"),
    (FailureKind.OUTPUT, "read-only file system", "the spool is read-only"),
    # Where nothing was set up, because there is no video, ffmpeg plays all the same.
    (FailureKind.NO_SESSION, "play failed: 454", "the camera has no video, or lost the session (454)"),
    (FailureKind.NO_SESSION, "failed: 453", "the camera has no session free (453)"),
    (FailureKind.NO_SESSION, "not enough bandwidth", "the camera has no session free (453)"),
    (FailureKind.NO_SESSION, "failed: 454", "the camera lost the session (454)"),
    (FailureKind.NO_SESSION, "454 session", "the camera lost the session (454)"),
    (FailureKind.NO_SESSION, "failed: 503", "the camera is overloaded (503)"),
    (FailureKind.NO_SESSION, "http error 503", "the camera is overloaded (503)"),
    (FailureKind.NO_SESSION, "503 service", "the camera is overloaded (503)"),
    (FailureKind.NO_SESSION, "too many clients", "the camera has too many viewers"),
    (FailureKind.NO_SESSION, "too many connections", "the camera has too many viewers"),
    (FailureKind.NO_SESSION, "too many sessions", "the camera has too many viewers"),
    (FailureKind.NO_SESSION, "too many users", "the camera has too many viewers"),
    (FailureKind.UNAUTHORIZED, "401 unauthorized", "the camera refuses user or password (401)"),
    (FailureKind.FORBIDDEN, "403 forbidden", "the camera refuses access (403)"),
    (FailureKind.NOT_FOUND, "404 not found", "the camera has no such stream (404): check the path"),
    (FailureKind.SERVER_ERROR, "returned 5xx", "the camera reports an error of its own (5xx)"),
    (FailureKind.SERVER_ERROR, "server returned 4", "the camera does not understand the request"),
    (FailureKind.CONNECTION_REFUSED, "connection refused", "nothing listens at host and port"),
    (FailureKind.HOST_UNKNOWN, "failed to resolve hostname", "the host name is unknown"),
    (FailureKind.UNREACHABLE, "no route to host", "the host cannot be reached"),
    (FailureKind.UNREACHABLE, "network is unreachable", "the network cannot be reached"),
    (FailureKind.UNREACHABLE, "host is down", "the host cannot be reached"),
    (FailureKind.TLS, "certificate", "the camera's certificate is not trusted"),
    (FailureKind.TLS, "[tls @", "no encrypted connection could be made"),
    (FailureKind.TIMED_OUT, "timed out", "the camera stopped answering"),
    (FailureKind.DISCONNECTED, "connection reset", "the camera closed the connection"),
    (FailureKind.DISCONNECTED, "broken pipe", "the camera closed the connection"),
    (FailureKind.DISCONNECTED, "stream ends prematurely", "the camera closed the connection"),
    (FailureKind.NO_SUCH_FILE, "no such file or directory", "there is no such file or device"),
    (FailureKind.NO_SUCH_FILE, "no such device", "there is no such device"),
    (FailureKind.NO_SUCH_FILE, "is a directory", "it is a directory, and no file"),
    (FailureKind.PERMISSION, "permission denied", "it may not be read or written (permission)"),
    (
        FailureKind.PERMISSION,
        "operation not permitted",
        "it may not be read or written (permission)",
    ),
    (FailureKind.BUSY, "device or resource busy", "another program uses the device"),
    (FailureKind.NO_VIDEO, "matches no streams", "there is no video in it"),
    (
        FailureKind.NO_TIMESTAMPS,
        "first pts and dts value must be set",
        "its frames have no times and cannot be copied: set --fps to transcode",
    ),
    (FailureKind.INVALID_DATA, "invalid data found", "it is no video, or a damaged one"),
    (FailureKind.DISCONNECTED, "input/output error", "reading failed (input/output error)"),
)


# Seconds that a retry waits at least, by what the camera said. A session of ours that was cut off uncleanly
# keeps its place until the camera's timeout (60 s mostly), and knocking once a second keeps some of them from
# it; a password that is refused too often in a row locks the account.
_PATIENCE: Mapping[FailureKind, float] = {
    FailureKind.NO_SESSION: 10.0,
    FailureKind.UNAUTHORIZED: 10.0,
    FailureKind.FORBIDDEN: 10.0,
}


def least_wait(kind: FailureKind) -> float:
    """Return for how many seconds to leave a source alone at least after such a failure."""
    return _PATIENCE.get(kind, 0.0)


def explain(stderr_tail: Sequence[str]) -> Failure:
    """Name the cause of a failure from the last lines of ffmpeg's standard error."""
    lines = [_without_names(line).lower() for line in stderr_tail]
    for kind, text, cause in _CAUSES:
        if any(text in line for line in lines):
            return Failure(kind, cause)
    return Failure(FailureKind.UNKNOWN, "ffmpeg failed for a reason it did not name plainly")


def _without_names(line: str) -> str:
    """Drop quoted names and URLs: a file may be called "permission denied.mp4"."""
    return re.sub(r"'.*'|\S+://\S+", "", line)


def kind_of(cause: str) -> FailureKind | None:
    """Return the kind of a failure from its cause; None for a cause that `explain` never gives."""
    return next((kind for kind, _, known in _CAUSES if known == cause), None)
