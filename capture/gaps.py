"""The times without video of one camera: each is told once, from first moment to last, with its cause.

Times are those of the wall clock, and that is set back now and then; by hours on a machine without a battery,
which begins at the time that it wrote down last. A loss is none the less for that. How long one lasted in
this run is also measured by the monotonic clock, and that counts where it is longer. One that an earlier run
left, and that ends before it began, is told when the clock has caught up.
"""

from collections.abc import Callable
from datetime import datetime, timedelta

from capture.clock import Clock

SHORTEST_SECONDS = 0.5
STEP_SECONDS = 5.0  # what the two clocks differ by less is no step: a segment's place in time is an estimate

Note = Callable[[datetime, datetime, str], None]


class Gaps:
    """Follows where video begins and ends, and tells `note` of each time between that has a cause.

    Retries in vain belong to the gap that is open; its cause is the first, and the last if that is another.
    """

    def __init__(self, note: Note, clock: Clock) -> None:
        self._note = note
        self._clock = clock
        self._until: datetime | None = None
        self._until_ticks: float | None = None  # the same in monotonic seconds, if it was in this run
        self._ahead: tuple[datetime, str] | None = None  # a loss that began later than it is now
        self._first: str | None = None
        self._latest: str | None = None
        self.count = 0
        self.last_cause: str | None = None

    @property
    def is_open(self) -> bool:
        return self._first is not None

    @property
    def cause(self) -> str | None:
        """Why there is no video now; None while there is some."""
        if self._first is None or self._latest == self._first:
            return self._first
        return f"{self._first}; then: {self._latest}"

    def resume_from(self, moment: datetime) -> None:
        """Say how far an earlier run got. That may be later than now."""
        self._until, self._until_ticks = moment, None

    def lost(self, cause: str, *, since: datetime) -> None:
        """Note that video was lost; `since` counts where there never was any."""
        if self._until is None:
            self.video_until(since)
        self._first = self._first or cause
        self._latest = cause

    def video_from(self, start: datetime) -> None:
        """Note that there is video again; to be told before what becomes of it is written down."""
        self._close(start)

    def video_until(self, end: datetime) -> None:
        """Note that there is video up to `end`."""
        self._until, self._until_ticks = end, self._ticks_at(end)

    def finish(self, now: datetime) -> None:
        """Tell of the gap that is still open: nobody follows it any more."""
        self._close(now)

    def _close(self, end: datetime) -> None:
        self._catch_up(end)
        start, cause = self._until, self.cause
        self._first = self._latest = None
        if start is None or cause is None:
            return
        seconds = (end - start).total_seconds()
        if self._until_ticks is not None:
            passed = self._ticks_at(end) - self._until_ticks
            start = end - timedelta(seconds=passed) if passed - seconds > STEP_SECONDS else start
        elif seconds < -STEP_SECONDS:
            self._ahead = start, cause
            return
        if (end - start).total_seconds() >= SHORTEST_SECONDS:
            self.video_until(end)
            self._tell(start, end, cause)

    def _catch_up(self, now: datetime) -> None:
        """Tell of a loss that began later than it was, once it is that late."""
        if self._ahead is not None and self._ahead[0] <= now:
            (start, cause), self._ahead = self._ahead, None
            self._tell(start, now, cause)

    def _tell(self, start: datetime, end: datetime, cause: str) -> None:
        self.count += 1
        self.last_cause = cause
        self._note(start, end, cause)

    def _ticks_at(self, moment: datetime) -> float:
        """Return when a moment of the present wall time was, or will be, in monotonic seconds."""
        return self._clock.monotonic() - (self._clock.now() - moment).total_seconds()
