"""What the last minutes and the last day of a camera's journal tell: rates, last segments, gaps.

Read once it is a bounded look at the two newest files; read again it costs only the lines that came since.
What is kept of a camera is a few hundred numbers, however long its journal is and however often it fails.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO

from capture.journal import LONGEST_LINE, Entry, Event, day_files, parse_entry
from capture.segment import SegmentName, rfc3339

WINDOW_SECONDS = 300.0
BUCKET_SECONDS = 5.0
DAY_SECONDS = 86400.0
SLOT_SECONDS = 300.0
TAIL_BYTES = 256 * 1024  # of a file, every line of which is read: about a thousand
DAY_BYTES = 32 * 1024 * 1024  # of a file, in which gaps are looked for: a day of two-second segments
SHORTEST_SPAN = 10.0
LONGEST_CAUSE = 200  # characters
_CHUNK = 256 * 1024
_LARGEST = 1 << 50  # bytes; a journal line may come from anywhere
_PER_DAY = int(DAY_SECONDS // SLOT_SECONDS)
_GAP = b'"gap"'


@dataclass(frozen=True)
class Gap:
    """A time without video, as the journal has it."""

    start: str
    end: str
    seconds: float
    cause: str


@dataclass(frozen=True)
class Gaps:
    """The gaps of the last 24 hours, or since the journal goes back so far.

    `slots` are (slots of five minutes ago, seconds without video in it), the oldest first; 0 is the present
    one.
    """

    since: str | None = None
    count: int = 0
    seconds: float = 0.0
    last: Gap | None = None
    slots: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Recent:
    """What the end of a camera's journal tells. Rates in bytes per second."""

    last_closed: SegmentName | None
    last_delivered: datetime | None
    closed_bytes_per_second: float
    delivered_bytes_per_second: float
    gaps: Gaps = Gaps()


class Tally:
    """Adds journal lines up in bounded memory. Pure: times come from the lines and from `recent`."""

    def __init__(self) -> None:
        self._last_closed: SegmentName | None = None
        self._last_delivered: datetime | None = None
        self._last_gap: Gap | None = None
        self._first: datetime | None = None
        self._buckets: dict[int, list[int]] = {}  # closed and delivered bytes
        self._slots: dict[int, list[float]] = {}  # seconds without video, and how many gaps ended there

    def feed(self, entry: Entry) -> None:
        """Take the next line; a torn one, or one without a time, tells nothing."""
        moment = _moment(entry.fields.get("t"))
        if entry.event is None or moment is None:
            return
        self._first = min(self._first or moment, moment)
        if entry.event in {Event.CLOSED, Event.RECOVERED}:
            self._last_closed = SegmentName.parse(str(entry.fields.get("segment"))) or self._last_closed
            self._add(moment, 0, entry.fields.get("bytes"))
        elif entry.event is Event.DELIVERED:
            self._last_delivered = moment
            self._add(moment, 1, entry.fields.get("bytes"))
        elif entry.event is Event.GAP:
            self._add_gap(entry)

    def recent(self, now: datetime) -> Recent:
        """Return rates over `WINDOW_SECONDS`, or over what the lines span, and the gaps of a day."""
        self._forget(now)
        age = (now - self._first).total_seconds() if self._first else 0.0
        span = max(min(age, WINDOW_SECONDS), SHORTEST_SPAN)
        closed, delivered = (sum(bucket[which] for bucket in self._buckets.values()) for which in (0, 1))
        return Recent(
            self._last_closed,
            self._last_delivered,
            round(closed / span, 1),
            round(delivered / span, 1),
            self._gaps(now),
        )

    def _add(self, moment: datetime, which: int, size: object) -> None:
        if isinstance(size, int) and 0 < size < _LARGEST:
            self._buckets.setdefault(int(moment.timestamp() // BUCKET_SECONDS), [0, 0])[which] += size

    def _add_gap(self, entry: Entry) -> None:
        start, end = (_moment(entry.fields.get(key)) for key in ("start", "end"))
        if start is None or end is None or end <= start:
            return
        cause = str(entry.fields.get("cause"))[:LONGEST_CAUSE]
        seconds = round((end - start).total_seconds(), 3)
        self._last_gap = Gap(rfc3339(start), rfc3339(end), seconds, cause)
        begin, until = max(start.timestamp(), end.timestamp() - DAY_SECONDS), end.timestamp()
        for number in range(int(begin // SLOT_SECONDS), int(until // SLOT_SECONDS) + 1):
            edge = number * SLOT_SECONDS
            slot = self._slots.setdefault(number, [0.0, 0])
            slot[0] += max(0.0, min(until, edge + SLOT_SECONDS) - max(begin, edge))
        self._slots[int(until // SLOT_SECONDS)][1] += 1

    def _forget(self, now: datetime) -> None:
        """Drop what is too old, and what a clock that was wrong for a while put into the future."""
        oldest = (now.timestamp() - WINDOW_SECONDS) // BUCKET_SECONDS
        newest = now.timestamp() // BUCKET_SECONDS
        self._buckets = {key: value for key, value in self._buckets.items() if oldest < key <= newest}
        present = int(now.timestamp() // SLOT_SECONDS)
        self._slots = {
            key: value for key, value in self._slots.items() if present - _PER_DAY < key <= present
        }

    def _gaps(self, now: datetime) -> Gaps:
        present = int(now.timestamp() // SLOT_SECONDS)
        since = max(self._first, now - timedelta(seconds=DAY_SECONDS)) if self._first else None
        return Gaps(
            since=rfc3339(since) if since else None,
            count=int(sum(count for _, count in self._slots.values())),
            seconds=round(sum(seconds for seconds, _ in self._slots.values()), 3),
            last=self._last_gap,
            slots=tuple((present - key, round(self._slots[key][0], 1)) for key in sorted(self._slots)),
        )


class CameraJournal:
    """Reads one camera's journal: at first its end, then what was added."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._read_to: dict[Path, int] = {}
        self._tally = Tally()

    def recent(self, now: datetime) -> Recent:
        """Look once more. Raises OSError when a file cannot be read."""
        paths = day_files(self._directory)[-2:]
        known, self._read_to = self._read_to, {}
        for path in paths:
            try:
                with path.open("rb") as file:
                    # Of a day that is over the last lines matter only while those of today are few.
                    newer = sum(each.stat().st_size for each in paths if each > path)
                    self._read_to[path] = self._read(file, path, known.get(path), tail=TAIL_BYTES - newer)
            except FileNotFoundError:
                continue
        return self._tally.recent(now)

    def _read(self, file: BinaryIO, path: Path, position: int | None, *, tail: int) -> int:
        """Feed the whole lines from a position on; return where the next ones begin.

        Before the last `tail` bytes only gaps are looked for, and the first line, which tells how far back
        the journal is known.
        """
        size = os.fstat(file.fileno()).st_size
        if position is None:
            start = max(0, size - DAY_BYTES)
            file.seek(start)
            if start:
                file.readline(LONGEST_LINE)  # begun in the middle
            if not (first := file.readline(LONGEST_LINE)).endswith(b"\n"):
                return file.tell() - len(first)
            self._feed([first], path)
        else:
            file.seek(min(position, size))
        self._feed(_gap_lines(file, size - max(0, tail)), path)
        while (line := file.readline(LONGEST_LINE)).endswith(b"\n") or len(line) == LONGEST_LINE:
            self._feed([line], path)
        return file.tell() - len(line)

    def _feed(self, lines: Iterable[bytes], path: Path) -> None:
        for line in lines:
            self._tally.feed(parse_entry(line, path, 0))


class Journals:
    """The journals of all cameras of a spool, each read as far as it was read already."""

    def __init__(self) -> None:
        self._cameras: dict[Path, CameraJournal] = {}

    def recent(self, directory: Path, now: datetime) -> Recent:
        return self._cameras.setdefault(directory, CameraJournal(directory)).recent(now)


def read_recent(directory: Path, now: datetime) -> Recent:
    """Look once at a camera's two newest journal files: never at more than twice `DAY_BYTES`."""
    return CameraJournal(directory).recent(now)


def summarise(entries: Iterable[Entry], now: datetime) -> Recent:
    """Return what these lines tell. Pure."""
    tally = Tally()
    for entry in entries:
        tally.feed(entry)
    return tally.recent(now)


def _gap_lines(file: BinaryIO, until: int) -> Iterator[bytes]:
    """Yield the lines that may tell of a gap; leave the file at the first line that is not before `until`.

    In pieces, because looking at each line of a day takes twenty times as long.
    """
    at = file.tell()
    while at < until:
        piece = file.read(min(_CHUNK, until - at))
        if not piece:
            break
        piece += file.readline(LONGEST_LINE)
        found = piece.find(_GAP)
        while found >= 0:
            begin, end = piece.rfind(b"\n", 0, found) + 1, piece.find(b"\n", found) + 1 or len(piece)
            yield piece[begin:end]
            found = piece.find(_GAP, end)
        at = file.tell()


def _moment(text: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return moment if moment.tzinfo else None
