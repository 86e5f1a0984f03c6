"""Upkeep of the spool by the workers: salvage of dead sessions, the order of recovery, the sweep.

Each works from what the directories say now. What they remember between rounds is a hint, and may be lost.
"""

import contextlib
import os
import random
import shutil
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import zip_longest
from pathlib import Path
from typing import Self

import structlog

from capture.claim import HostileNameError, claim
from capture.journal import Event
from capture.locks import exclusive, one_after_the_other
from capture.segment import SegmentName, SessionName, rfc3339
from capture.session import adopt
from capture.spool import REJECTED, SESSION_FILE, Debt, Spool, read_json, write_json

REGISTERED_NOTE = ".registered.json"
ENDED_NOTE = ".stream-ended.json"
RECOVERY_FILE = "recover.json"
REJECTED_LOCK = "rejected.lock"
SMALLEST_WINDOW = 4
LARGEST_WINDOW = 256
PROBE_CHOICE = 3  # a probe is one of the oldest few of a camera
MESSAGE_LIFE_SECONDS = 60.0
STALE_SEGMENTS = 5
SILENT_SECONDS = 180.0  # an agent whose camera is away shows a sign of life every minute
LONGEST_SEGMENT = 600.0
_TELL_AGAIN_SECONDS = 30.0
_REJECTED_AGAIN_SECONDS = 600.0

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
            log.warning("salvage_postponed", session=str(name), reason=error.strerror)
            continue
        if segments is not None:
            closed.append((name, segments))
    return closed


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
    """Tell whether a later session of the same camera is running: ending the stream would end that."""
    began = str(spool.session_info(name).get("started_at"))
    others = (spool.session_info(other) for other in spool.sessions(name.camera) if other != name)
    return any(info.get("ended_at") is None and str(info.get("started_at", "")) >= began for info in others)


def to_register(spool: Spool) -> list[SessionName]:
    """Return the sessions that run or still owe, and whose camera the cloud does not know yet."""
    return [
        name
        for name in spool.sessions()
        if _untold(spool, name, REGISTERED_NOTE) and not is_over(spool, name)
    ]


def to_end(spool: Spool) -> list[SessionName]:
    """Return the sessions that are over without the cloud having been told."""
    return [name for name in spool.sessions() if _untold(spool, name, ENDED_NOTE) and is_over(spool, name)]


def is_told(spool: Spool, name: SessionName, note: str) -> bool:
    """Tell whether the cloud was told, or would not hear of it within the last minutes."""
    path = spool.session_path(name) / note
    if not path.exists():
        return False
    if not read_json(path).get("rejected"):
        return True
    return spool.clock.time() - path.stat().st_mtime < _REJECTED_AGAIN_SECONDS


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


# --- recovery --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picked:
    """A debt that gets a message, and its size in bytes."""

    debt: Debt
    size: int


def take_turns(by_camera: Mapping[str, Sequence[Debt]], window: int) -> list[Debt]:
    """Return up to `window` debts: cameras in turn, oldest first within one."""
    rounds = zip_longest(*(debts[:window] for debts in by_camera.values()))
    return [debt for turn in rounds for debt in turn if debt is not None][:window]


def next_window(window: int, *, sent: int, left: int, is_down: bool) -> int:
    """Return the next window: twice as large once the last was delivered, half when it was not."""
    if is_down:
        return SMALLEST_WINDOW
    if sent and left == 0:
        return min(LARGEST_WINDOW, window * 2)
    if left > sent // 2:
        return max(SMALLEST_WINDOW, window // 2)
    return window


@dataclass
class Recovery:
    """One round of recovery, and what it remembers of the last: the window, and who has a message."""

    spool: Spool
    recover_after: float
    window: int = SMALLEST_WINDOW
    sent: dict[str, float] = field(default_factory=dict)  # "<session>/<segment>" -> wall time in seconds

    @classmethod
    def load(cls, spool: Spool, *, recover_after: float) -> Self:
        state = read_json(spool.state / RECOVERY_FILE)
        sent = state.get("sent")
        window = state.get("window")
        return cls(
            spool,
            recover_after,
            min(window, LARGEST_WINDOW) if isinstance(window, int) and window > 0 else SMALLEST_WINDOW,
            {key: at for key, at in sent.items() if isinstance(at, float)} if isinstance(sent, dict) else {},
        )

    def pick(self, *, is_down: bool) -> list[Picked]:
        """Choose who gets a message now. While the cloud is down that is one: the next probe."""
        now = self.spool.clock.time()
        if is_down:  # those messages ended at the gate
            self.sent = {}
        still = {key: at for key, at in self.sent.items() if self._exists(key)}
        self.window = next_window(self.window, sent=len(self.sent), left=len(still), is_down=is_down)
        self.sent = {key: at for key, at in still.items() if 0 <= now - at < MESSAGE_LIFE_SECONDS}
        room = 1 if is_down else self.window
        by_camera = self._oldest(max(room, PROBE_CHOICE) if is_down else room)
        if is_down:  # no camera and no single segment may own every probe
            probes = [debt for debts in by_camera.values() for debt in debts[:PROBE_CHOICE]]
            return self._aged(random.sample(probes, min(1, len(probes))), now)
        return self._aged(take_turns(by_camera, room), now)

    def _oldest(self, room: int) -> dict[str, list[Debt]]:
        """Return each camera's oldest debts without a message, as many as could be chosen."""
        by_camera: dict[str, list[Debt]] = {}
        has_message = {key.partition("/")[2] for key in self.sent}
        for session in self.spool.sessions():
            debts = by_camera.setdefault(session.camera, [])
            if len(debts) < room:
                first = self.spool.first_segments(session, room - len(debts), has_message)
                debts += [Debt(session, segment) for segment in first]
        return by_camera

    def _aged(self, debts: list[Debt], now: float) -> list[Picked]:
        """Keep those that nobody sends and that had their chance on the live queue.

        Their age is the time since they were last written: a name can lie in the future, where a file is
        read faster than real time.
        """
        found = []
        for debt in debts:
            with contextlib.suppress(HostileNameError, OSError), contextlib.ExitStack() as stack:
                free = claim(self.spool, debt.session, debt.segment)
                if (
                    free is not None
                    and not 0 <= now - stack.enter_context(free).written_at < self.recover_after
                ):
                    found.append(Picked(debt, free.size))
        return found

    def save(self, picked: Sequence[Picked]) -> None:
        now = self.spool.clock.time()
        self.sent |= {_key(p.debt): now for p in picked}
        write_json(self.spool.state / RECOVERY_FILE, {"window": self.window, "sent": self.sent})

    def _exists(self, key: str) -> bool:
        session, _, segment = key.partition("/")
        known = SessionName.parse(session), SegmentName.parse(segment)
        return None not in known and (self.spool.root / session / segment).exists()


def _key(debt: Debt) -> str:
    return f"{debt.session}/{debt.segment}"


def drop_expired(spool: Spool, retention: float) -> int:
    """Drop what has been owed for longer than `retention` seconds; returns how many."""
    count = 0
    oldest = spool.clock.now() - timedelta(seconds=retention)
    for session in spool.sessions():
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


def forget_messages(spool: Spool) -> None:
    """Let recover begin anew: the messages that it remembers do not exist, or do not count."""
    (spool.state / RECOVERY_FILE).unlink(missing_ok=True)


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
            log.warning("session_not_swept", session=str(name), reason=error.strerror)
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
        for segment in rejected:
            spool.journal.append(
                name.camera,
                Event.DROPPED,
                durable=True,
                session=str(name),
                segment=str(segment),
                reason=f"rejected, and kept for {keep_rejected:.0f} s",
            )
        shutil.rmtree(path)
        for note in (REGISTERED_NOTE, ENDED_NOTE):
            (spool.state / f"asked-{name}{note}").unlink(missing_ok=True)
    return True


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
            target = spool.session_path(name) / str(segment)
            if target.exists():
                continue
            (folder / str(segment)).rename(target)
            (folder / f"{segment}.json").unlink(missing_ok=True)
            spool.journal.append(
                name.camera, Event.REQUEUED, durable=True, session=str(name), segment=str(segment)
            )
            count += 1
    if count:  # recover must not take them for those it has just sent messages for
        forget_messages(spool)
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
