"""When to restart, when to give up waiting, and where on the clock a segment belongs: pure decisions."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

# (how many restarts, seconds before each); after the last: every SLOWEST_RESTART seconds.
LADDER = ((5, 1.0), (5, 5.0), (10, 10.0))
SLOWEST_RESTART = 60.0
STABLE_SECONDS = 60.0
FIRST_FRAME_SECONDS = 14.0
# Seconds to wait for a first frame, by the number of tries that had none; then from the first again.
FIRST_FRAME_TRIES = (FIRST_FRAME_SECONDS, FIRST_FRAME_SECONDS, 35.0, 65.0, 125.0)
FIRST_FRAME_MARGIN = 5.0
STALL_SECONDS = 10.0
SILENT_SECONDS = 10.0  # ten reports of ffmpeg
LONGEST_TICK = 5.0  # a watchdog that was not asked for longer was asleep
SHORTEST_KEY_WAIT = 12.0
LONGEST_KEY_WAIT = 120.0  # seconds without a key frame that are a fault for any camera
RUNAWAY_SECONDS = 10.0
SETTLE_SECONDS = 5.0
LARGEST_HEAD_START = 30.0
TOLERATED_DRIFT = 0.01  # seconds per second; a bad quartz is off by 0.0001
# For a camera whose times were wrong this often in a row a restart is no cure: they may be off by this much.
MOST_RUNAWAYS = 3
TOLERATED_RUNAWAY = 3.0
LARGEST_DRIFT = 2.0
SHORTEST_SILENCE = 1.0  # what is shorter may be a late report or a line that jitters
NO_FIRST_FRAME = "no first frame"
NO_KEY_FRAME = "no key frame"
TIMES_AHEAD = "its times run ahead of the clock"
TIMES_BEHIND = "its times fall behind the clock"
LARGEST_SALVAGE_DOUBT = 60.0
STREAM_TURN_SECONDS = (1 << 33) / 90_000
_DRIFT = timedelta(seconds=LARGEST_DRIFT)


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
    """Counts failures in a row; one that came after a stable time counts as the first.

    `jitter` is the share by which each wait is made longer or shorter at random: without it fifty cameras
    behind one switch that was off knock all at once, and again all at once.
    """

    def __init__(self, *, jitter: float = 0.0, chance: Callable[[], float] = random.random) -> None:
        self.failures = 0
        self._jitter = jitter
        self._chance = chance

    def delay_after(self, up_seconds: float, *, at_least: float = 0.0) -> float:
        """Return the wait after a run of `up_seconds` that failed, `at_least` so long before the jitter."""
        self.failures = 1 if up_seconds >= STABLE_SECONDS else self.failures + 1
        wait = max(restart_delay(self.failures), at_least)
        return wait * (1 + self._jitter * (2 * self._chance() - 1))


def first_frame_patience(tries: int, longest_key_interval: float) -> float:
    """Return for how many seconds to wait for a first frame, after so many tries in a row without one.

    Copying begins at a key frame, and some cameras send none when one connects. When the first try was in
    vain (and that was noticed) the next ones wait longer in turn, so that a camera whose key frames are far
    apart is captured all the same.
    """
    return max(
        FIRST_FRAME_TRIES[tries % len(FIRST_FRAME_TRIES)], min(longest_key_interval + 5, LONGEST_KEY_WAIT)
    )


def key_frame_patience(longest_key_interval: float | None) -> float:
    """Return for how many seconds frames may come without a key frame among them.

    `longest_key_interval` is the longest time between two key frames of this camera so far, in seconds; None
    before there were two: then nobody knows how far apart they are.
    """
    if longest_key_interval is None:
        return LONGEST_KEY_WAIT
    return min(max(SHORTEST_KEY_WAIT, 2 * longest_key_interval + 2), LONGEST_KEY_WAIT)


@dataclass(frozen=True)
class Expectations:
    """What the watchdog may expect of a run: seconds, and whether it is a live one.

    `is_live` means that segments and key frames come by themselves, `has_clock` that the times in the stream
    pass as fast as ours, `may_lag` that they may fall behind, because this machine is too slow to encode.
    """

    segment_seconds: float = 10.0
    first_frame: float = FIRST_FRAME_SECONDS
    is_live: bool = False
    has_clock: bool = False
    may_lag: bool = False
    tolerated_drift: float = TOLERATED_DRIFT


class Watchdog:
    """Tells when a run of ffmpeg is in trouble. Times in seconds of a monotonic clock."""

    def __init__(self, now: float, expected: Expectations | None = None) -> None:
        self._expected = expected or Expectations()
        self._frames = 0
        self._moved_at = now
        self._heard_at: float | None = None
        self._segment_at = now
        self._key_at = now
        self._key_interval: float | None = None
        self._drift = Drift(self._expected.tolerated_drift)
        self._asked_at = now

    def hear(self, now: float) -> None:
        """Note that ffmpeg said something: it does so every second, frames or not."""
        self._heard_at = now

    def see(self, frames: int, now: float, out_time: float | None = None) -> None:
        """Note how many frames there are by now, and how far the stream is (seconds)."""
        if frames > self._frames:
            if self._frames == 0:
                self._segment_at = self._key_at = now
            self._frames = frames
            self._moved_at = now
        if out_time is not None and frames:
            self._drift.see(out_time, now)

    def see_key(self, now: float, interval: float | None) -> None:
        """Note a key frame, and the longest time between two of this camera so far."""
        self._key_at = now
        self._key_interval = interval

    def see_segment(self, now: float) -> None:
        """Note that a segment was closed."""
        self._segment_at = self._key_at = now

    def seconds_without_key(self, now: float) -> float:
        """Return how long frames have come without a key frame."""
        return now - self._key_at if self._frames else 0.0

    def complaint(self, now: float) -> str | None:
        """Return what is wrong, or None. To be asked every second or so."""
        self._forgive(now - self._asked_at)
        self._asked_at = now
        if self._heard_at is not None and now - self._heard_at > SILENT_SECONDS:
            return "ffmpeg does not run"
        silent = now - self._moved_at
        if self._frames == 0:
            return NO_FIRST_FRAME if silent > self._expected.first_frame else None
        if silent > STALL_SECONDS:
            return "no new frame"
        return (self._rhythm(now) if self._expected.is_live else None) or self._times()

    def _forgive(self, away: float) -> None:
        """Do not count the time that we were stopped ourselves: ffmpeg was so too, or could not be heard."""
        if away > LONGEST_TICK:
            self._moved_at += away
            self._segment_at += away
            self._key_at += away
            if self._heard_at is not None:
                self._heard_at += away

    def _rhythm(self, now: float) -> str | None:
        if self.seconds_without_key(now) > key_frame_patience(self._key_interval):
            return NO_KEY_FRAME
        length = self._expected.segment_seconds
        # A key frame that came so late in a segment should have begun the next. Without one, none can begin.
        if self._key_at - self._segment_at > max(2 * length, length + STALL_SECONDS):
            return "no new segment"
        return None

    def _times(self) -> str | None:
        seconds = self._drift.seconds if self._expected.has_clock else 0.0
        if seconds > RUNAWAY_SECONDS:
            return TIMES_AHEAD
        if seconds < -RUNAWAY_SECONDS and not self._expected.may_lag:
            return TIMES_BEHIND
        return None


class Drift:
    """How far the times of a stream have run away from ours, in seconds; above 0 is ahead.

    What comes at the start does not count: a camera may send a few seconds that it kept. A clock that is off
    by up to `tolerated` seconds per second never adds up to anything.
    """

    def __init__(self, tolerated: float = TOLERATED_DRIFT) -> None:
        self._tolerated = tolerated
        self.seconds = 0.0
        self._begun_at: float | None = None
        self._last: tuple[float, float] | None = None

    def see(self, out_time: float, now: float) -> None:
        """Note how far the stream is."""
        if self._begun_at is None:
            self._begun_at = now
        if self._last is not None:
            passed = now - self._last[1]
            self.seconds += (out_time - self._last[0]) - passed
            slack = min(abs(self.seconds), self._tolerated * passed)
            self.seconds -= math.copysign(slack, self.seconds)
        self._last = out_time, now
        if now - self._begun_at < SETTLE_SECONDS and abs(self.seconds) < LARGEST_HEAD_START:
            self.seconds = 0.0


@dataclass(frozen=True, slots=True)
class _Report:
    frames: int
    out_time: float
    at: float


class Arrivals:
    """How long ago a stream was at one of its times: seconds of the stream, and of a monotonic clock.

    ffmpeg reports every second: the last report of new frames may come almost a second after the last of
    them, or know of none that came since. With B-frames, or sound that lags, its time is somewhat behind.
    """

    def __init__(self) -> None:
        self._last = _Report(0, 0.0, math.inf)
        self._came_at: float | None = None  # the last frame of a report
        self._out_time = 0.0  # the end of that frame
        self._frame_seconds = 0.0

    def see(self, frames: int, now: float, out_time: float | None) -> None:
        """Note how many frames there are by now, and how far the stream is (None: not known)."""
        if not frames:
            return
        before = self._last
        self._last = _Report(frames, before.out_time if out_time is None else out_time, now)
        if frames <= before.frames:
            return
        passed = self._last.out_time - before.out_time
        if passed > 0:  # they came since the report before, and no faster than they are to be shown
            self._came_at = min(now, before.at + passed)
            self._out_time = self._last.out_time
        else:  # a time that stands while frames come tells nothing of them
            self._came_at, self._out_time = now, math.inf
        self._frame_seconds = max(0.0, passed) / (frames - before.frames)

    def ago(self, end: float, now: float) -> float:
        """Return for how many seconds the stream has been silent since it was at `end`; 0 if it was not."""
        if self._came_at is None:
            return 0.0
        ahead = self._frame_seconds + max(0.0, end - self._out_time)  # what of `end` lies beyond that frame
        return max(0.0, now - self._came_at - ahead)


@dataclass
class Timeline:
    """Places stream times on the wall clock, contiguous segments side by side.

    A paced source ends a segment when its last frame arrives, so its time of closing corrects a clock
    that drifts or is stepped; small jitter is ignored. An unpaced one (a file as fast as it goes) just
    counts from its beginning. The last segment of a source that fell silent is closed long after its last
    frame, which proves nothing about the clock: it stays where those before it have it.
    """

    begun_at: datetime
    paced: bool
    _zero: datetime | None = None

    def place(self, start: float, end: float, closed_at: datetime, *, ended_ago: float = 0.0) -> datetime:
        """Return when a segment of stream time `start` … `end` (seconds) began.

        `ended_ago` are the seconds for which the stream had been silent since `end` when it was closed.
        """
        if not self.paced:
            return self.begun_at + timedelta(seconds=start)
        latest = closed_at - timedelta(seconds=end)
        earliest = latest - timedelta(seconds=ended_ago if ended_ago >= SHORTEST_SILENCE else 0.0)
        # What lies between is believed: how long a silence was is known to about a second.
        if self._zero is None or not earliest - _DRIFT <= self._zero <= latest + _DRIFT:
            self._zero = earliest
        return self._zero + timedelta(seconds=start)

    def place_salvaged(self, start: float, guess: datetime) -> datetime:
        """Return when an unfinished segment of stream time `start` began; `guess` is what its file tells.

        The last bytes of a file may be far younger than its last frame but one. Stream times in a file begin
        anew every 26.5 hours.
        """
        if not self.paced or self._zero is None:
            return guess
        turns = round(((guess - self._zero).total_seconds() - start) / STREAM_TURN_SECONDS)
        begun = self._zero + timedelta(seconds=start + turns * STREAM_TURN_SECONDS)
        return begun if abs((begun - guess).total_seconds()) < LARGEST_SALVAGE_DOUBT else guess
