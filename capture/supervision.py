"""When to restart, when to give up waiting, and where on the clock a segment belongs: pure decisions."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

# (how many restarts, seconds before each); after the last: every SLOWEST_RESTART seconds.
LADDER = ((5, 1.0), (5, 5.0), (10, 10.0))
SLOWEST_RESTART = 60.0
STABLE_SECONDS = 60.0
FIRST_FRAME_SECONDS = 14.0
STALL_SECONDS = 10.0
LARGEST_DRIFT = 2.0


class State(StrEnum):
    """The states of a supervised thing."""

    STARTING = "starting"
    RUNNING = "running"
    BACKOFF = "backoff"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FATAL = "fatal"


def restart_delay(failures: int) -> float:
    """Return the seconds to wait before the restart that follows `failures` failures in a row."""
    for steps, seconds in LADDER:
        if failures <= steps:
            return seconds
        failures -= steps
    return SLOWEST_RESTART


class Ladder:
    """Counts failures in a row; one that came after a stable time counts as the first."""

    def __init__(self) -> None:
        self.failures = 0

    def delay_after(self, up_seconds: float) -> float:
        """Return the wait after a run of `up_seconds` that failed."""
        self.failures = 1 if up_seconds >= STABLE_SECONDS else self.failures + 1
        return restart_delay(self.failures)


class Watchdog:
    """Tells when a source has stalled. Times in seconds of a monotonic clock."""

    def __init__(self, now: float) -> None:
        self._frames = 0
        self._moved_at = now

    @property
    def frames(self) -> int:
        return self._frames

    def see(self, frames: int, now: float) -> None:
        """Note how many frames there are by now."""
        if frames > self._frames:
            self._frames = frames
            self._moved_at = now

    def complaint(self, now: float) -> str | None:
        """Return what is wrong, or None."""
        silent = now - self._moved_at
        if self._frames == 0 and silent > FIRST_FRAME_SECONDS:
            return "no first frame"
        if self._frames and silent > STALL_SECONDS:
            return "no new frame"
        return None


@dataclass
class Timeline:
    """Places stream times on the wall clock, contiguous segments side by side.

    A paced source ends a segment when its last frame arrives, so its time of closing corrects a clock
    that drifts or is stepped; small jitter is ignored. An unpaced one (a file as fast as it goes) just
    counts from its beginning.
    """

    begun_at: datetime
    paced: bool
    _zero: datetime | None = None

    def place(self, start: float, end: float, closed_at: datetime) -> datetime:
        """Return when a segment of stream time `start` … `end` (seconds) began."""
        if not self.paced:
            return self.begun_at + timedelta(seconds=start)
        zero = closed_at - timedelta(seconds=end)
        if self._zero is None or abs((zero - self._zero).total_seconds()) > LARGEST_DRIFT:
            self._zero = zero
        return self._zero + timedelta(seconds=start)
