"""The times without video of one camera: each is told once, from first moment to last, with its cause."""

from collections.abc import Callable
from datetime import datetime

SHORTEST_SECONDS = 0.5

Note = Callable[[datetime, datetime, str], None]


class Gaps:
    """Follows where video begins and ends, and tells `note` of each time between that has a cause.

    Retries in vain belong to the gap that is open; its cause is the first, and the last if that is another.
    """

    def __init__(self, note: Note) -> None:
        self._note = note
        self._until: datetime | None = None
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
        """Say how far an earlier run got."""
        self._until = moment

    def lost(self, cause: str, *, since: datetime) -> None:
        """Note that video was lost; `since` counts where there never was any."""
        if self._until is None:
            self._until = since
        self._first = self._first or cause
        self._latest = cause

    def video_from(self, start: datetime) -> None:
        """Note that there is video again; to be told before what becomes of it is written down."""
        self._close(start)

    def video_until(self, end: datetime) -> None:
        """Note that there is video up to `end`."""
        self._until = end

    def finish(self, now: datetime) -> None:
        """Tell of the gap that is still open: nobody follows it any more."""
        self._close(now)

    def _close(self, end: datetime) -> None:
        start, cause = self._until, self.cause
        self._first = self._latest = None
        if start is None or cause is None or (end - start).total_seconds() < SHORTEST_SECONDS:
            return
        self.count += 1
        self.last_cause = cause
        self._until = end
        self._note(start, end, cause)
