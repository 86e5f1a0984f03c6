"""The agent's side of the spool: one session directory, and segments made durable in it."""

import fcntl
import hashlib
import os
import socket
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from capture import mpegts
from capture.cut import MOST_PIECES, seconds_before, split
from capture.durable import sync_directory
from capture.journal import Event
from capture.scan import Digest, scan_file
from capture.segment import SegmentName, SessionName, open_name, rfc3339
from capture.source import Source
from capture.spool import (
    FORMAT,
    OPEN,
    SESSION_FILE,
    SESSION_LOCK,
    Spool,
    write_json,
)


def lock_session(directory: Path) -> int | None:
    """Take the lock that says "this session's agent or its ffmpeg lives".

    Returns its file descriptor, to be closed; None while somebody else holds it. ffmpeg inherits the
    descriptor, so a session is dead only when its last writer is.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(directory / SESSION_LOCK, flags, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


log = structlog.get_logger()


@dataclass(frozen=True)
class Owed:
    """A segment that just became owed, and its size in bytes."""

    segment: SegmentName
    size: int


@dataclass(frozen=True)
class Measured:
    """An unfinished segment: when it began by its file, its seconds, and its first stream time (seconds)."""

    start: datetime
    duration: float
    first: float


class Session:
    """A session that this process writes. Not for use by several threads at once."""

    def __init__(self, spool: Spool, name: SessionName, lock: int, info: dict[str, object]) -> None:
        self.spool = spool
        self.name = name
        self.path = spool.session_path(name)
        self.open_directory = self.path / OPEN
        self.lock = lock
        self._info = info

    @classmethod
    def start(
        cls, spool: Spool, camera: str, *, display_name: str, source: Source, segment_seconds: float
    ) -> Self:
        """Make a new session directory. Raises ConfigError without its mount, OSError on a full disk."""
        spool.check_mounted()
        now = spool.clock.now()
        name = SessionName.new(camera, now)
        path = spool.session_path(name)
        path.mkdir(mode=0o750)
        lock: int | None = None
        info: dict[str, object] = {
            "format": FORMAT,
            "camera": camera,
            "name": display_name,
            "source_kind": str(source.kind),
            "source_type": source.wire_type,
            "container": "mpegts",
            "segment_seconds": segment_seconds,
            "host": socket.gethostname(),
            "started_at": rfc3339(now),
            "ended_at": None,
        }
        try:
            lock = lock_session(path)
            (path / OPEN).mkdir(mode=0o750)
            write_json(path / SESSION_FILE, info)
            sync_directory(spool.root)
        except BaseException:
            _unmake(path)
            if lock is not None:
                os.close(lock)
            raise
        if lock is None:
            raise BlockingIOError(11, "somebody holds the lock of a session that was just made", str(path))
        return cls(spool, name, lock, info)

    def close_segment(
        self,
        sequence: int,
        start: datetime,
        duration: float,
        *,
        event: Event = Event.CLOSED,
        digest: Digest | None = None,
    ) -> Owed | None:
        """Make a finished segment durable and owed: fsync, rename, fsync directory, journal.

        `duration` in seconds. A `digest` that was taken while it was written saves reading it once more, if
        its size is that of the file. Returns None for an empty one: on a full disk ffmpeg also reports what
        it could not write. Raises OSError; whatever fails, the file is still there, open or owed.
        """
        path = self.open_path(sequence)
        size = path.stat().st_size
        if size == 0 or (size != mpegts.whole_packets(size) and mpegts.trim(path) == 0):
            path.unlink()
            return None
        return self._publish(path, SegmentName.of(sequence, start, duration), event, digest)

    def open_path(self, sequence: int) -> Path:
        """Return where a segment is while it is written."""
        return self.open_directory / open_name(sequence)

    def measure(self, sequence: int) -> "Measured | None":
        """Cut what a dead ffmpeg left open to whole packets, and say what is in it.

        One that holds no packet is removed: None.
        """
        path = self.open_path(sequence)
        written_at = path.stat().st_mtime
        if mpegts.trim(path) == 0:
            path.unlink()
            return None
        with path.open("rb") as file:
            span = mpegts.time_span(file)
        duration = max(0.0, min(span[1] - span[0], 86400.0)) if span else 0.0
        start = datetime.fromtimestamp(written_at - duration, self.spool.clock.now().tzinfo)
        return Measured(start, duration, span[0] if span else 0.0)

    def salvage(self) -> list[Owed]:
        """Close what a dead ffmpeg left open, cut to whole packets, and in two where its picture changes.

        One that cannot be salvaged does not keep the others. Raises OSError at the end then.
        """
        found: list[Owed] = []
        trouble: OSError | None = None
        for number in self.spool.open_segments(self.name):
            try:
                measured = self.measure(number)
                if measured is not None:
                    found += self._salvage_pieces(number, measured.start, measured.duration)
            except OSError as error:
                trouble = trouble or error
        if trouble is not None:
            raise trouble
        return found

    def _highest_number(self) -> int:
        """Return the highest number that this session gave: open, closed, or long delivered.

        A session never gives one to two segments: the cloud would take the second for the first again.
        """
        closed = [segment.sequence for segment in self.spool.segments(self.name)]
        journalled = self.spool.journal.highest_number(self.name)
        return max([*self.spool.open_numbers(self.name), *closed, journalled])

    def _salvage_pieces(self, sequence: int, start: datetime, duration: float) -> list[Owed]:
        found: list[Owed | None] = []
        rest = 0
        for _ in range(MOST_PIECES):
            path = self.open_path(sequence)
            scan = scan_file(path)
            if not scan.changes:
                break
            # Looked up once: the journal can be long, and nobody else gives numbers here.
            rest = (rest or self._highest_number()) + 1
            split(path, scan.changes[0], tables=scan.tables, rest=self.open_path(rest))
            before = seconds_before(scan, scan.changes[0], duration)
            found.append(self.close_segment(sequence, start, before, event=Event.RECOVERED))
            sequence, start, duration = rest, start + timedelta(seconds=before), duration - before
        found.append(self.close_segment(sequence, start, duration, event=Event.RECOVERED))
        return [owed for owed in found if owed is not None]

    def _publish(self, path: Path, name: SegmentName, event: Event, digest: Digest | None) -> Owed:
        with path.open("rb", buffering=0) as file:
            os.fsync(file.fileno())
            size = os.fstat(file.fileno()).st_size
            if digest is None or digest.size != size:
                # Read back while it is in memory, so that audit can tell what became of it later.
                digest = Digest(size, hashlib.file_digest(file, "sha256").hexdigest())
        target = self.path / str(name)
        if target.exists():
            raise FileExistsError(17, "a segment of this name is there already", str(target))
        path.rename(target)
        sync_directory(self.path)
        try:
            self.spool.journal.append(
                self.name.camera,
                event,
                session=str(self.name),
                segment=str(name),
                bytes=size,
                sha256=digest.sha256,
            )
        except OSError as error:  # it is owed all the same: the directory says so, and audit knows the case
            log.warning(
                "segment_not_journalled",
                camera=self.name.camera,
                session=str(self.name),
                segment=str(name),
                reason=error.strerror,
            )
        return Owed(name, size)

    def touch(self) -> bool:
        """Show other hosts that this session lives; False if its directory is gone."""
        try:
            os.utime(self.path / SESSION_FILE)
        except FileNotFoundError:
            return False
        except OSError as error:
            log.debug(
                "session_not_touched", camera=self.name.camera, session=str(self.name), reason=error.strerror
            )
        return True

    def end(self) -> None:
        """Write down that this session is over."""
        if self._info.get("ended_at") is None:
            self._info["ended_at"] = rfc3339(self.spool.clock.now())
            write_json(self.path / SESSION_FILE, self._info)

    def close(self) -> None:
        """Let go of the lock."""
        os.close(self.lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def adopt(spool: Spool, name: SessionName) -> Session | None:
    """Take over a session whose writer is dead; None while it lives, or when it is gone."""
    try:
        lock = lock_session(spool.session_path(name))
    except (FileNotFoundError, NotADirectoryError):
        return None
    if lock is None:
        return None
    try:
        return Session(spool, name, lock, spool.session_info_for_sure(name))
    except BaseException:
        os.close(lock)
        raise


def _unmake(path: Path) -> None:
    for child in (path / SESSION_FILE, path / SESSION_LOCK):
        child.unlink(missing_ok=True)
    for directory in (path / OPEN, path):
        if directory.exists():
            directory.rmdir()
