"""The journal: what happened to each segment, one JSON line each, a file per camera and day.

Several processes append to one file, on one host or many. Each line is written under a lock; a line torn
by a crash is closed off by the next writer, so that it never swallows its neighbour, and the reader
reports it instead of guessing.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

from capture.clock import Clock
from capture.durable import sync_directory
from capture.segment import SegmentName, SessionName, is_camera_id, rfc3339

LONGEST_LINE = 16 * 1024
_TELLING_DAYS = 3
_SPARE_DAYS = 2


class Event(StrEnum):
    """What a journal line tells."""

    CLOSED = "closed"
    RECOVERED = "recovered"  # closed by somebody else, after its writer died
    DELIVERED = "delivered"
    REJECTED = "rejected"
    REQUEUED = "requeued"  # owed again, after it was rejected
    DROPPED = "dropped"
    GAP = "gap"


@dataclass(frozen=True)
class Entry:
    """One line that was read: its event, its fields, and where it stands; event None for a torn line."""

    event: Event | None
    fields: dict[str, Any]
    path: Path
    line: int


class Journal:
    """Appends to and reads ``<spool>/journal``."""

    def __init__(self, directory: Path, clock: Clock | None = None) -> None:
        self.directory = directory
        self._clock = clock or Clock()
        self._path = lru_cache(maxsize=256)(lambda camera, day: directory / camera / f"{day}.jsonl")
        # Told of what this process has written; for those who count. It must neither wait nor raise.
        self.observer: Callable[[str, Event, Sequence[Mapping[str, object]]], None] | None = None

    def append(self, camera: str, event: Event, *, durable: bool = False, **fields: object) -> None:
        """Write one line; with `durable`, return only when it is on the disk. Raises OSError."""
        self.append_all(camera, event, [fields], durable=durable)

    def append_all(
        self, camera: str, event: Event, rows: Sequence[Mapping[str, object]], *, durable: bool = False
    ) -> None:
        """Write a line for each row, all or none; with `durable`, one sync for all. Raises OSError."""
        now = self._clock.now()
        lines = [json.dumps({"t": rfc3339(now), "event": event, **row}, ensure_ascii=True) for row in rows]
        path = self._path(camera, now.date().isoformat())
        try:
            descriptor = _open_append(path)
        except FileNotFoundError:
            # Without its parents: where the spool is not mounted, nothing must be made.
            path.parent.mkdir(exist_ok=True)
            sync_directory(self.directory)
            descriptor = _open_append(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            is_first = os.fstat(descriptor).st_size == 0
            _write_whole(descriptor, "".join(f"{line}\n" for line in lines).encode())
            if durable:
                os.fdatasync(descriptor)
            if is_first:  # of the day: later lines that are synced are in vain without their file's name
                sync_directory(path.parent)
        finally:
            os.close(descriptor)
        if self.observer is not None:
            self.observer(camera, event, rows)

    def cameras(self) -> list[str]:
        """Return the cameras that have a journal."""
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return []
        return sorted(name for name in names if is_camera_id(name))

    def read(self, camera: str) -> Iterator[Entry]:
        """Yield the lines of one camera in the order of their files; torn or foreign ones as such."""
        for path in day_files(self.directory / camera):
            yield from self._read_file(path)

    def _read_file(self, path: Path) -> Iterator[Entry]:
        for number, line in self._lines(path):
            if line.strip():
                yield parse_entry(line, path, number)

    def _lines(self, path: Path) -> Iterator[tuple[int, bytes]]:
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:  # its day may go meanwhile
            yield from enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), start=1)

    def highest_number(self, session: SessionName) -> int:
        """Return the highest sequence number that the lines about a session name; 0 where there are none.

        Not all of a year's journal is read: numbers rise with time, so the newest days with such lines tell,
        and none before the session began. Both with days to spare, for a clock that was set back.
        """
        highest, days = 0, 0
        about = str(session).encode()
        first = date.fromordinal(max(1, session.began.toordinal() - _SPARE_DAYS)).isoformat()
        for path in reversed(day_files(self.directory / session.camera)):
            if path.stem < first:
                break
            lines = (parse_entry(line, path, 0) for _, line in self._lines(path) if about in line)
            its = (entry for entry in lines if entry.fields.get("session") == str(session))
            names = (SegmentName.parse(str(entry.fields.get("segment"))) for entry in its)
            of_day = max((name.sequence for name in names if name), default=0)
            highest, days = max(highest, of_day), days + (of_day > 0)
            if days == _TELLING_DAYS:
                break
        return highest

    def last_segment(self, camera: str) -> SegmentName | None:
        """Return the segment that was closed last, as far as the two newest files tell."""
        for path in day_files(self.directory / camera)[:-3:-1]:
            found = None
            for entry in self._read_file(path):
                if entry.event in {Event.CLOSED, Event.RECOVERED}:
                    found = SegmentName.parse(str(entry.fields.get("segment"))) or found
            if found:
                return found
        return None

    def last_told(self, camera: str) -> datetime | None:
        """Return up to when the camera's video and gaps are known, as far as the two newest files tell."""
        for path in day_files(self.directory / camera)[:-3:-1]:
            found = [moment for entry in self._read_file(path) if (moment := _end_of(entry)) is not None]
            if found:
                return found[-1]
        return None


def day_files(directory: Path) -> list[Path]:
    """Return the files of a camera's journal, a day each, the oldest first; none where there is none."""
    return sorted(directory.glob("????-??-??.jsonl"))


def day_of(path: Path) -> date | None:
    """Return the day that a file of a journal is of; None for one that is named otherwise."""
    try:
        return date.fromisoformat(path.stem)
    except ValueError:
        return None


def _end_of(entry: Entry) -> datetime | None:
    """Return when what a line tells of ended, if it is a segment's closing or a gap."""
    if entry.event in {Event.CLOSED, Event.RECOVERED}:
        segment = SegmentName.parse(str(entry.fields.get("segment")))
        return segment.end if segment else None
    if entry.event is Event.GAP:
        try:
            return datetime.fromisoformat(str(entry.fields.get("end"))).astimezone(UTC)
        except ValueError:
            return None
    return None


def _open_append(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)


def _write_whole(descriptor: int, lines: bytes) -> None:
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        lines = b"\n" + lines
    written = os.write(descriptor, lines)
    if written != len(lines):  # the disk filled up in mid-line: take the piece back
        os.ftruncate(descriptor, size)
        raise OSError(28, os.strerror(28))


def parse_entry(line: bytes, path: Path, number: int) -> Entry:
    """Return what a line says; an entry without an event for one that is torn or not ours."""
    try:
        fields = json.loads(line)
        return Entry(Event(fields["event"]), fields, path, number)
    except (ValueError, KeyError, TypeError, RecursionError):
        return Entry(None, {}, path, number)
