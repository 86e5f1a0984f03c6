"""The names of segments and sessions, both ways: the only grammar that spool paths are built from."""

import re
import secrets
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Self

SESSION_PREFIX = "relay-segments-"
CAMERA_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
_SESSION_ID = r"[0-9]{8}T[0-9]{6}Z-[a-z2-7]{8}"
_STAMP = "%Y%m%dT%H%M%S"

_CAMERA = re.compile(CAMERA_PATTERN)
_SESSION_DIRECTORY = re.compile(rf"{SESSION_PREFIX}(?P<camera>{CAMERA_PATTERN})-(?P<id>{_SESSION_ID})")
# One way to write each name: a second one would be counted as owed, and never be found under the first.
_SEQUENCE = r"([0-9]{8}|[1-9][0-9]{8,11})"
_CLOSED = re.compile(
    rf"{_SEQUENCE}_([1-9][0-9]{{3}})([0-9]{{2}})([0-9]{{2}})T([0-9]{{2}})([0-9]{{2}})([0-9]{{2}})\.([0-9]{{3}})Z"
    r"_(0|[1-9][0-9]{0,8})\.ts"
)
_OPEN = re.compile(rf"{_SEQUENCE}\.ts")
_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"


def is_camera_id(text: str) -> bool:
    """Tell whether `text` may name a camera: ASCII letters, digits, ``_ . -``, 64 at most."""
    return _CAMERA.fullmatch(text) is not None


@dataclass(frozen=True, order=True)
class SessionName:
    """One agent run of one camera: ``relay-segments-<camera>-<UTC start>-<random>``."""

    camera: str
    id: str

    @classmethod
    def new(cls, camera: str, now: datetime) -> Self:
        """Return a name that no other run has: the start to a second, and 40 random bits."""
        tail = "".join(secrets.choice(_ALPHABET) for _ in range(8))
        return cls(camera, f"{now.astimezone(UTC):{_STAMP}}Z-{tail}")

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read a directory name; None for anything else."""
        match = _SESSION_DIRECTORY.fullmatch(text)
        return cls(match["camera"], match["id"]) if match else None

    @property
    def began(self) -> date:
        """The day on which it began, in UTC, by its host's clock; the first of all for one that is no day."""
        try:
            return date(int(self.id[:4]), int(self.id[4:6]), int(self.id[6:8]))
        except ValueError:
            return date.min

    def __str__(self) -> str:
        return f"{SESSION_PREFIX}{self.camera}-{self.id}"


@dataclass(frozen=True, order=True)
class SegmentName:
    """One closed segment: ``<sequence>_<UTC start>_<duration in ms>.ts``."""

    sequence: int
    start: datetime
    duration_ms: int

    @classmethod
    def of(cls, sequence: int, start: datetime, duration: float) -> Self:
        """Return the name of a segment; `start` and `duration` (seconds) to the millisecond, as written."""
        start = start.astimezone(UTC)
        start = start.replace(microsecond=start.microsecond // 1000 * 1000)
        return cls(sequence, start, max(0, round(duration * 1000)))

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read a file name; None for anything else, also for a date that no calendar has."""
        match = _CLOSED.fullmatch(text)
        if match is None:
            return None
        # By hand, because strptime would make reading a large spool several times slower.
        sequence, year, month, day, hour, minute, second, ms, duration = map(int, match.groups())
        try:
            start = datetime(year, month, day, hour, minute, second, ms * 1000, tzinfo=UTC)
        except ValueError:
            return None
        return cls(sequence, start, duration)

    @property
    def duration(self) -> float:
        """The duration in seconds."""
        return self.duration_ms / 1000

    @property
    def end(self) -> datetime:
        return self.start + timedelta(milliseconds=self.duration_ms)

    @property
    def start_rfc3339(self) -> str:
        return rfc3339(self.start)

    def __str__(self) -> str:
        start = self.start.astimezone(UTC)
        # By hand: asked several times for each upload, and strftime takes five times as long.
        date = f"{start.year:04d}{start.month:02d}{start.day:02d}"
        time = f"{start.hour:02d}{start.minute:02d}{start.second:02d}.{start.microsecond // 1000:03d}"
        return f"{self.sequence:08d}_{date}T{time}Z_{self.duration_ms}.ts"


def looks_closed(text: str) -> bool:
    """Tell cheaply whether a file name has the form of a closed segment's."""
    return _CLOSED.fullmatch(text) is not None


def open_name(sequence: int) -> str:
    """Return the name of a segment that is still being written."""
    return f"{sequence:08d}.ts"


def parse_open_name(text: str) -> int | None:
    """Return the sequence number of a segment that is still being written."""
    match = _OPEN.fullmatch(text)
    return int(match[1]) if match else None


def rfc3339(moment: datetime) -> str:
    """Return a UTC time to the millisecond, as ``2026-11-23T21:11:31.120Z``."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
