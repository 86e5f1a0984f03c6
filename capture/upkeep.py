"""Upkeep of the spool by the workers: salvage of dead sessions, what the cloud was told, the sweep.

Each works from what the directories say now. What they remember between rounds is a hint, and may be lost.
"""

import contextlib
import math
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import structlog

from capture.claim import HostileNameError, claim
from capture.errors import RelayError
from capture.journal import Event
from capture.locks import exclusive, one_after_the_other
from capture.segment import SegmentName, SessionName, rfc3339
from capture.session import adopt
from capture.spool import REJECTED, SESSION_FILE, Spool, read_json

REGISTERED_NOTE = ".registered.json"
ENDED_NOTE = ".stream-ended.json"
REJECTED_LOCK = "rejected.lock"
STALE_SEGMENTS = 5
SILENT_SECONDS = 180.0  # an agent whose camera is away shows a sign of life every minute
LONGEST_SEGMENT = 600.0
_TELL_AGAIN_SECONDS = 30.0
_TELL_TROUBLE_SECONDS = 60.0
SHARE_A_SYNC = 64  # lines of the journal
REJECTED_AGAIN_SECONDS = 600.0  # until the cloud is told again what it would not hear

_told: dict[tuple[SessionName, str], float] = {}  # which trouble of which session; monotonic seconds

log = structlog.get_logger()


# --- sessions --------------------------------------------------------------------------------------


def close_dead_sessions(spool: Spool, camera: str | None = None) -> list[tuple[SessionName, int]]:
    """Salvage what dead sessions left open, and mark them as ended.

    Returns those that were closed, with the number of segments salvaged. A session is dead when its lock is
    free: its agent and its ffmpeg are gone. Locks may not reach from host to host, so another host's
    session must also have been left alone for several segment lengths.
    """
    closed = []
    for name in spool.sessions(camera):
        try:
            segments = _close_if_dead(spool, name)
        except OSError as error:  # one bad entry, or no room: nobody else's recovery waits for it
            if _is_news(name, "salvage_postponed"):
                log.warning("salvage_postponed", camera=name.camera, session=str(name), reason=error.strerror)
            continue
        if segments is not None:
            closed.append((name, segments))
    return closed


def each_readable(
    spool: Spool, names: Iterable[SessionName], test: Callable[[SessionName], bool]
) -> Iterator[SessionName]:
    """Yield those that pass a test; one that cannot be looked at is told of, and holds up no other.

    Raises OSError where the whole spool is away.
    """
    for name in names:
        try:
            passes = test(name)
        except OSError as error:
            try:
                spool.check_mounted()
            except RelayError:
                raise error from None
            if _is_news(name, "session_not_read"):
                log.warning("session_not_read", camera=name.camera, session=str(name), reason=error.strerror)
            continue
        if passes:
            yield name


def _is_news(name: SessionName, event: str) -> bool:
    """Tell whether a session's trouble was not told within the last minute: it is met every five seconds."""
    now = time.monotonic()
    if now - _told.get((name, event), -math.inf) < _TELL_TROUBLE_SECONDS:
        return False
    _told[name, event] = now
    return True


def _close_if_dead(spool: Spool, name: SessionName) -> int | None:
    """Salvage and end a session if it is dead; return the number of segments salvaged, None if it is not."""
    info = spool.session_info(name)
    if info.get("ended_at") is not None and not spool.open_segments(name):
        return None
    if not _may_be_dead(spool, name, info):
        return None
    session = adopt(spool, name)
    if session is None:
        return None
    with session:
        segments = session.salvage()
        session.end()
    return len(segments)


def _may_be_dead(spool: Spool, name: SessionName, info: Mapping[str, object]) -> bool:
    if info.get("host") == socket.gethostname():
        return True
    seconds = info.get("segment_seconds")
    length = float(seconds) if isinstance(seconds, float | int) and 0 < seconds <= LONGEST_SEGMENT else 10.0
    # Closing a segment changes the directory itself: the owed ones, which can be very many, need no look.
    path = spool.session_path(name)
    newest = max(path.lstat().st_mtime, _newest_of(path / "open"), _newest_of(path / SESSION_FILE))
    return spool.clock.time() - newest > max(SILENT_SECONDS, STALE_SEGMENTS * length)


def _newest_of(path: Path) -> float:
    """Return when a file, or a directory or anything in it, was last written; 0 if it is not there."""
    try:
        newest = path.lstat().st_mtime
        if path.is_dir():
            with os.scandir(path) as entries:
                newest = max([newest, *(entry.stat(follow_symlinks=False).st_mtime for entry in entries)])
    except OSError:
        return 0.0
    return newest


def is_over(spool: Spool, name: SessionName) -> bool:
    """Tell whether a session has ended and owes nothing."""
    return (
        spool.session_info(name).get("ended_at") is not None
        and not spool.has_segments(name)
        and not spool.open_segments(name)
    )


def superseded(spool: Spool, name: SessionName) -> bool:
    """Tell whether another session of the same camera runs: ending the stream would end that.

    A lock that is held says so; their times may not, where the clock was set back in between. Where locks do
    not reach, on another host, the later one counts as running.
    """
    began = str(spool.session_info(name).get("started_at"))
    return any(
        _is_running(spool, other, since=began) for other in spool.sessions(name.camera) if other != name
    )


def _is_running(spool: Spool, name: SessionName, *, since: str) -> bool:
    info = spool.session_info(name)
    if info.get("started_at") is None or info.get("ended_at") is not None:
        return False
    if info.get("host") != socket.gethostname():
        return str(info.get("started_at")) >= since
    try:
        session = adopt(spool, name)
    except OSError:  # it may run
        return True
    if session is None:
        return True
    session.close()
    return False


def to_register(spool: Spool) -> list[SessionName]:
    """Return the sessions that run or still owe, and whose camera the cloud does not know yet."""

    def is_one(name: SessionName) -> bool:
        return _untold(spool, name, REGISTERED_NOTE) and not is_over(spool, name)

    return list(each_readable(spool, spool.sessions(), is_one))


def to_end(spool: Spool) -> list[SessionName]:
    """Return the sessions that are over without the cloud having been told."""

    def is_one(name: SessionName) -> bool:
        return _untold(spool, name, ENDED_NOTE) and is_over(spool, name)

    return list(each_readable(spool, spool.sessions(), is_one))


def is_told(spool: Spool, name: SessionName, note: str) -> bool:
    """Tell whether the cloud was told, or would not hear of it within the last minutes."""
    path = spool.session_path(name) / note
    if not path.exists():
        return False
    if not read_json(path).get("rejected"):
        return True
    return spool.clock.time() - path.stat().st_mtime < REJECTED_AGAIN_SECONDS


def rejected_registrations(spool: Spool) -> dict[str, dict[str, object]]:
    """Return the cameras whose last registration the cloud would not take, with the note about it."""
    found: dict[str, dict[str, object]] = {}
    for name in spool.sessions():  # in the order of their beginnings
        path = spool.session_path(name) / REGISTERED_NOTE
        if path.exists():
            note = read_json(path)
            found.pop(name.camera, None)
            if note.get("rejected"):
                found[name.camera] = note
    return found


def _untold(spool: Spool, name: SessionName, note: str) -> bool:
    """Tell whether a note is missing, leaving the message that was sent last some time to be worked on."""
    path = spool.session_path(name)
    if not (path / SESSION_FILE).exists() or is_told(spool, name, note):
        return False
    asked = spool.state / f"asked-{name}{note}"
    now = spool.clock.time()
    with contextlib.suppress(FileNotFoundError):
        if 0 <= now - asked.stat().st_mtime < _TELL_AGAIN_SECONDS:
            return False
    return True


def note_asked(spool: Spool, name: SessionName, note: str) -> None:
    """Remember that a message about this session was just sent."""
    (spool.state / f"asked-{name}{note}").touch()


# --- retention ------------------------------------------------------------------------------------


def drop_expired(spool: Spool, retention: float) -> int:
    """Drop what has been owed for longer than `retention` seconds; returns how many."""
    count = 0
    oldest = spool.clock.now() - timedelta(seconds=retention)
    for session in each_readable(spool, spool.sessions(), spool.has_segments):
        for segment in spool.segments(session):
            if segment.end >= oldest:
                break
            with contextlib.suppress(HostileNameError, OSError), contextlib.ExitStack() as stack:
                found = claim(spool, session, segment)
                if found is not None:
                    stack.enter_context(found).dropped(
                        reason=f"older than spool.retention, {retention:.0f} s"
                    )
                    count += 1
    return count


# --- sweep -----------------------------------------------------------------------------------------


def sweep(spool: Spool, *, sweep_after: float, keep_rejected: float) -> list[SessionName]:
    """Remove the session directories that owe nothing and were left alone for `sweep_after` seconds.

    What the cloud rejected can still be sent again by hand, so it is kept for `keep_rejected` seconds.
    Returns what was removed.
    """
    spool.check_mounted()
    removed = []
    for name in spool.sessions():
        try:
            if _sweep_one(spool, name, sweep_after, keep_rejected):
                removed.append(name)
        except OSError as error:
            log.warning("session_not_swept", camera=name.camera, session=str(name), reason=error.strerror)
    return removed


def _sweep_one(spool: Spool, name: SessionName, sweep_after: float, keep_rejected: float) -> bool:
    path = spool.session_path(name)
    if spool.has_segments(name) or spool.open_segments(name):
        return False
    if spool.clock.time() - _newest_mtime(path) < sweep_after:
        return False
    session = adopt(spool, name)
    if session is None:  # alive
        return False
    with session, exclusive(spool.state / REJECTED_LOCK) as mine:
        # Looked at once more, now that nobody requeues: a worker may have moved something meanwhile.
        rejected = spool.segments(name, REJECTED)
        age = spool.clock.time() - _newest_mtime(path)
        if not mine or age < (max(sweep_after, keep_rejected) if rejected else sweep_after):
            return False
        if spool.has_segments(name) or spool.open_segments(name):
            return False
        _drop_rejected(spool, name, rejected, reason=f"rejected, and kept for {keep_rejected:.0f} s")
        shutil.rmtree(path)
        for note in (REGISTERED_NOTE, ENDED_NOTE):
            (spool.state / f"asked-{name}{note}").unlink(missing_ok=True)
    return True


def _drop_rejected(spool: Spool, name: SessionName, segments: Sequence[SegmentName], *, reason: str) -> None:
    """Journal and remove them some at a time, so that a sweep that is cut short has not been in vain."""
    folder = spool.session_path(name) / REJECTED
    for begin in range(0, len(segments), SHARE_A_SYNC):
        some = segments[begin : begin + SHARE_A_SYNC]
        lines: list[dict[str, object]] = [
            {"session": str(name), "segment": str(segment), "reason": reason} for segment in some
        ]
        before = folder.stat()
        spool.journal_for_sure(name.camera, Event.DROPPED, *lines)
        for segment in some:
            (folder / f"{segment}.json").unlink(missing_ok=True)
            (folder / str(segment)).unlink(missing_ok=True)
        # What is removed here makes nobody young: the rest would be kept for as long again.
        with contextlib.suppress(OSError):  # another user's
            os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))


def _newest_mtime(path: Path) -> float:
    """Return when anything in a session directory was last written, in seconds since 1970.

    The lock file does not count: looking whether it is free would make every directory young for ever.
    """
    newest = 0.0
    for directory in (path, path / "open", path / REJECTED):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if directory != path:
                newest = max(newest, directory.lstat().st_mtime)
            with os.scandir(directory) as entries:
                for entry in entries:
                    if entry.name != ".lock":
                        newest = max(newest, entry.stat(follow_symlinks=False).st_mtime)
    return newest or path.lstat().st_mtime


# --- by hand ---------------------------------------------------------------------------------------


def requeue_rejected(spool: Spool, camera: str | None = None) -> int:
    """Make rejected segments owed again; returns how many. Waits for a sweep that is under way."""
    with one_after_the_other(spool.state / REJECTED_LOCK):
        return _requeue_rejected(spool, camera)


def _requeue_rejected(spool: Spool, camera: str | None) -> int:
    count = 0
    for name in spool.sessions(camera):
        folder = spool.session_path(name) / REJECTED
        for segment in spool.segments(name, REJECTED):
            target = spool.segment_path(name, segment)
            if target.exists():
                continue
            (folder / str(segment)).rename(target)
            (folder / f"{segment}.json").unlink(missing_ok=True)
            spool.journal.append(
                name.camera, Event.REQUEUED, durable=True, session=str(name), segment=str(segment)
            )
            count += 1
    return count


def note_gap(spool: Spool, camera: str, *, start: datetime, end: datetime, cause: str) -> None:
    """Journal a time without video. Trouble with the journal costs the line, not the camera."""
    try:
        spool.journal.append(
            camera,
            Event.GAP,
            start=rfc3339(start),
            end=rfc3339(end),
            seconds=round((end - start).total_seconds(), 3),
            cause=cause,
        )
    except OSError as error:
        log.warning("gap_not_noted", camera=camera, reason=error.strerror)
