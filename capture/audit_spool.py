"""The audit of a spool at work: segments move while it looks."""

import contextlib
import hashlib
import os
import time
from collections.abc import Container, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from capture.audit import NO_FILES, CameraReport, Finding, SessionFiles
from capture.audit_ledger import Ledger
from capture.journal import LONGEST_LINE, Entry, day_files, parse_entry
from capture.segment import SessionName
from capture.spool import REJECTED, Spool

ROUNDS = 5
PAUSE_SECONDS = 0.1


def audit_spool(spool: Spool, camera: str, *, digests: bool = False) -> CameraReport:
    """Audit one camera of a spool that may be at work; with `digests` read each segment that is here.

    Raises OSError when something cannot be read.

    A segment moves while we look, so nothing is called a fault before it was looked at again: first at
    the directory, then at the journal, whose lines about an outcome are written before the file goes.
    What is new by then is left to the next audit: on a busy spool there would always be something.
    """
    ledger, reading = Ledger(camera), JournalReading(spool.journal.directory / camera)
    _feed(ledger, reading)
    listing: dict[str, SessionFiles] = {str(name): look(spool, name) for name in spool.sessions(camera)}
    _feed(ledger, reading)
    report = ledger.report(listing, reading.unfinished())
    for attempt in range(ROUNDS):
        doubtful = {finding.segment for finding in report.findings if finding.segment}
        if not report.faults and not (doubtful and attempt == 0):
            break
        if attempt:
            time.sleep(PAUSE_SECONDS)
        _look_again(spool, listing, report.findings)
        _feed(ledger, reading, doubtful)
        report = ledger.report(listing, reading.unfinished())
    if not digests:
        return report
    # Last, because it takes long; what has gone by the time its turn comes has no digest, and is not judged.
    read = {name: _with_digests(files, spool.root / name) for name, files in listing.items()}
    return ledger.report(read, reading.unfinished())


def _feed(ledger: Ledger, reading: "JournalReading", segments: Container[str] | None = None) -> None:
    """Feed what was written meanwhile; with `segments`, of all lines about a segment only theirs."""
    for entry in reading.new():
        if segments is None or entry.event is None or entry.fields.get("segment", "") in segments:
            ledger.feed(entry)


def cameras(spool: Spool) -> list[str]:
    """Return every camera that has a journal or a session."""
    return sorted({*spool.journal.cameras(), *(name.camera for name in spool.sessions())})


def look(spool: Spool, session: SessionName) -> SessionFiles:
    """List a session directory; an absent one is empty."""
    # Open ones first: what is closed meanwhile is then seen twice, and never not at all.
    numbers = frozenset(spool.open_segments(session))
    rejected = frozenset(map(str, spool.segments(session, REJECTED)))
    path = spool.session_path(session)
    sizes = {str(name): _size(path / str(name)) for name in spool.segments(session)}
    return SessionFiles({name: size for name, size in sizes.items() if size is not None}, rejected, numbers)


def _size(path: Path) -> int | None:
    try:
        return path.lstat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


def _with_digests(files: SessionFiles, path: Path) -> SessionFiles:
    found = {name: digest for name in files.owed if (digest := _digest(path / name))}
    found |= {name: digest for name in files.rejected if (digest := _digest(path / REJECTED / name))}
    return replace(files, digests=found)


def _digest(path: Path) -> str | None:
    """Return the SHA-256 of a segment; None if it is gone, or was emptied while we read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor has no path
        size = os.fstat(descriptor).st_size
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return digest if size and os.fstat(descriptor).st_size == size else None


def _look_again(spool: Spool, listing: dict[str, SessionFiles], findings: Iterable[Finding]) -> None:
    for finding in findings:
        session = SessionName.parse(finding.session or "")
        if session is None:
            continue
        if finding.segment is None:
            listing[str(session)] = look(spool, session)
        else:
            files = listing.get(str(session), NO_FILES)
            listing[str(session)] = _with_segment(files, spool.session_path(session), finding.segment)


def _with_segment(files: SessionFiles, path: Path, name: str) -> SessionFiles:
    owed, rejected = dict(files.owed), files.rejected - {name}
    owed.pop(name, None)
    # Twice the same place: it may come back from rejected/ between the first look and the second.
    for place in (path, path / REJECTED, path):
        size = _size(place / name)
        if size is not None:
            if place == path:
                owed[name] = size
            else:
                rejected |= {name}
            break
    return replace(files, owed=owed, rejected=rejected)


class JournalReading:
    """Reads a camera's journal as far as it goes, and later on from there.

    A last line without its end may be in the making: it is kept back until it has one.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._places: dict[Path, tuple[int, int]] = {}  # offset in bytes, lines so far
        self._rests: dict[Path, Entry] = {}

    def new(self) -> Iterator[Entry]:
        """Yield the lines that were not read yet, in the order of their files."""
        for path in day_files(self._directory):
            with contextlib.suppress(FileNotFoundError):
                yield from self._read(path)

    def unfinished(self) -> list[Entry]:
        """Return an entry for each line that still has no end."""
        return list(self._rests.values())

    def _read(self, path: Path) -> Iterator[Entry]:
        offset, number = self._places.get(path, (0, 0))
        self._rests.pop(path, None)
        with path.open("rb") as file:
            file.seek(offset)
            while line := file.readline(LONGEST_LINE):
                if not line.endswith(b"\n") and len(line) < LONGEST_LINE:
                    self._rests[path] = Entry(None, {}, path, number + 1)
                    return
                offset, number = offset + len(line), number + 1
                self._places[path] = offset, number
                if line.strip():
                    yield parse_entry(line, path, number)
