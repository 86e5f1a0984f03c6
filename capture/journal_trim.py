"""How much of the journal is kept: a camera's newest days, and all days of what is still in the spool.

Days are counted, not dated: a clock that is set forward makes old what is not, and must not cost the journal.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta

import structlog

from capture.journal import day_files, day_of
from capture.segment import SessionName
from capture.spool import OPEN, REJECTED, Spool

_DAY_SECONDS = 86400.0
# A line is written when something happened, not when the video was: around midnight that is another day.
_MARGIN = timedelta(days=1)

log = structlog.get_logger()


def surplus(days: Sequence[date], keep_seconds: float, needed_from: date | None) -> list[date]:
    """Return the days that may go: all but the newest ones, and none from `needed_from` on. Pure."""
    keep = max(1, math.ceil(keep_seconds / _DAY_SECONDS))
    return [day for day in sorted(days)[:-keep] if needed_from is None or day < needed_from]


def trim_journals(spool: Spool, keep_seconds: float) -> int:
    """Remove the surplus days of every camera's journal; return how many. Several may do so at once."""
    spool.check_mounted()
    return sum(_trim(spool, camera, keep_seconds) for camera in spool.journal.cameras())


def _trim(spool: Spool, camera: str, keep_seconds: float) -> int:
    removed = 0
    try:
        paths = day_files(spool.journal.directory / camera)
        files = {day: path for path in paths if (day := day_of(path))}
        if not surplus([*files], keep_seconds, None):  # then what is in the spool need not be looked at
            return 0
        for day in surplus([*files], keep_seconds, _needed_from(spool, camera)):
            files[day].unlink(missing_ok=True)
            removed += 1
    except OSError as error:
        log.warning("journal_not_trimmed", camera=camera, reason=error.strerror)
    return removed


def _needed_from(spool: Spool, camera: str) -> date | None:
    """Return the first day that may tell of anything that is still here; None if nothing is."""
    first = min((moment for name in spool.sessions(camera) for moment in _moments(spool, name)), default=None)
    return None if first is None else first.astimezone(UTC).date() - _MARGIN


def _moments(spool: Spool, name: SessionName) -> Iterator[datetime]:
    """Yield when the closed video of a session that is here begins, and when an open one was begun."""
    for folder in ("", REJECTED):
        for segment in spool.first_segments(name, 1, folder=folder):
            yield segment.start
    if spool.open_segments(name):
        with contextlib.suppress(FileNotFoundError):  # swept meanwhile
            yield datetime.fromtimestamp((spool.session_path(name) / OPEN).lstat().st_mtime, UTC)
