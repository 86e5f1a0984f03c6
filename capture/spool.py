"""The spool: the directory that is the only record of what is owed.

`Spool` opens it and lists it; `capture.session` writes segments into it, `capture.claim` takes them out,
`capture.upkeep` salvages and sweeps.
"""

import contextlib
import errno
import heapq
import json
import math
import os
import secrets
import stat
import time
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from capture.clock import Clock
from capture.durable import sync_directory
from capture.errors import ConfigError, SpoolFullError
from capture.journal import Event, Journal
from capture.segment import SESSION_PREFIX, SegmentName, SessionName, looks_closed, parse_open_name

FORMAT = 1
MARKER = ".relay-spool"
STATE = ".state"
JOURNAL = "journal"
SESSION_FILE = "session.json"
SESSION_LOCK = ".lock"
OPEN = "open"
REJECTED = "rejected"
REFUSED_FILE = "refused.json"
_FULL = {errno.ENOSPC, errno.EDQUOT}
# What says nothing of a file, and passes. A bad sector does not: that file counts as damaged.
_PASSES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT}
_HARMLESS = {"lost+found"}
BALLAST = "ballast"
BALLAST_BYTES = 256 * 1024
_LARGEST_JSON = 64 * 1024
_LEFTOVER_SECONDS = 3600.0


@dataclass(frozen=True)
class Debt:
    """One owed segment."""

    session: SessionName
    segment: SegmentName

    @property
    def camera(self) -> str:
        return self.session.camera

    @property
    def key(self) -> str:
        """What names it among all others: ``<session directory>/<segment>``."""
        return f"{self.session}/{self.segment}"


class Spool:
    """A spool that was checked: marked as one, and of a format this program knows."""

    def __init__(self, root: Path, spool_id: str, clock: Clock | None = None) -> None:
        self.root = root
        self.id = spool_id
        self.clock = clock or Clock()
        self.journal = Journal(root / JOURNAL, self.clock)
        self.state = root / STATE
        # Asked several times for each upload, and joining paths takes longer than asking the disk.
        self._session_path = lru_cache(maxsize=256)(lambda session: root / str(session))
        self._rejects = lru_cache(maxsize=256)(lambda camera: root / STATE / f"rejects-{camera}.json")

    @classmethod
    def open(cls, root: Path, *, create: bool = False, clock: Clock | None = None) -> "Spool":
        """Open a spool; with `create`, an absent or empty directory becomes one.

        Raises ConfigError when it is no spool or cannot be used, SpoolFullError when it has no room.
        """
        root = root.absolute()
        try:
            marker = _read_marker(root)
            if marker is None:
                marker = _create(root) if create else _not_a_spool(root)
            for folder in (STATE, JOURNAL):
                (root / folder).mkdir(exist_ok=True)
            if create:
                _remove_leftovers(root / STATE)
        except OSError as error:
            _refuse(root, error)
        return cls(root, marker, clock)

    def check_mounted(self) -> None:
        """Raise ConfigError unless the marker is still the one that was opened."""
        try:
            found = _read_marker(self.root)
        except OSError as error:
            _refuse(self.root, error)
        if found != self.id:
            raise ConfigError(
                f"the spool's marker {self.root / MARKER} has vanished or changed: "
                "its file system is probably not mounted; nothing is written there; mount it again"
            )

    def session_path(self, session: SessionName) -> Path:
        return self._session_path(session)

    def segment_path(self, session: SessionName, segment: SegmentName) -> Path:
        """Return where a segment stands while it is owed."""
        return self._session_path(session) / str(segment)

    def has_session(self, session: SessionName) -> bool:
        """Tell whether a session's directory is here; a link to one elsewhere is none."""
        try:
            return stat.S_ISDIR(self.session_path(session).lstat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def sessions(self, camera: str | None = None) -> list[SessionName]:
        """Return the session directories, oldest first within a camera."""
        prefix = f"{SESSION_PREFIX}{camera or ''}"
        found = []
        with os.scandir(self.root) as entries:
            for entry in entries:
                if entry.name.startswith(prefix) and entry.is_dir(follow_symlinks=False):
                    name = SessionName.parse(entry.name)
                    if name and (camera is None or name.camera == camera):
                        found.append(name)
        return sorted(found)

    def segments(self, session: SessionName, folder: str = "") -> list[SegmentName]:
        """Return the closed segments of a session (or those in its `rejected/`), by sequence."""
        names = self._names(session, folder)
        return sorted(segment for name in names if (segment := SegmentName.parse(name)))

    def first_segments(
        self, session: SessionName, count: int, skip: Container[str] = (), folder: str = ""
    ) -> list[SegmentName]:
        """Return the first closed segments by sequence, without those in `skip`; cheap among very many."""
        names = (name for name in self.segment_names(session, folder) if name not in skip)
        first = heapq.nsmallest(count, names, key=_by_sequence)
        return [segment for name in first if (segment := SegmentName.parse(name))]

    def count_segments(self, session: SessionName, folder: str = "") -> int:
        """Count the closed segments of a session, or those in its `rejected/`."""
        return sum(1 for _ in self.segment_names(session, folder))

    def segment_names(self, session: SessionName, folder: str = "") -> Iterator[str]:
        """Yield the names of closed segments as they stand in the directory, unread and unsorted."""
        return filter(looks_closed, self._names(session, folder))

    def _names(self, session: SessionName, folder: str = "") -> Iterator[str]:
        """Yield names one by one: a list of those in a very large directory takes many megabytes."""
        try:
            with os.scandir(self.session_path(session) / folder) as entries:
                for entry in entries:
                    yield entry.name
        except (FileNotFoundError, NotADirectoryError):
            return

    def open_segments(self, session: SessionName) -> list[int]:
        """Return the sequence numbers of the segments being written: of regular files alone."""
        return self._open_numbers(session, lambda entry: entry.is_file(follow_symlinks=False))

    def open_numbers(self, session: SessionName) -> list[int]:
        """Return the sequence numbers that are taken in `open/`, whatever has such a name there."""
        return self._open_numbers(session, lambda _: True)

    def _open_numbers(self, session: SessionName, counts: Callable[["os.DirEntry[str]"], bool]) -> list[int]:
        try:
            with os.scandir(self.session_path(session) / OPEN) as entries:
                found = [parse_open_name(entry.name) for entry in entries if counts(entry)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(number for number in found if number is not None)

    def debts(self, camera: str | None = None) -> Iterator[Debt]:
        """Yield what is owed, oldest session first within a camera."""
        for session in self.sessions(camera):
            for segment in self.segments(session):
                yield Debt(session, segment)

    def owed_count(self, cameras: set[str] | None = None) -> int:
        """Count the closed segments that are still here, of all cameras or of some."""
        return sum(
            self.count_segments(session)
            for session in self.sessions()
            if cameras is None or session.camera in cameras
        )

    def session_info(self, session: SessionName) -> dict[str, Any]:
        """Return session.json, or an empty table where it is missing, damaged or cannot be read."""
        return read_json(self.session_path(session) / SESSION_FILE)

    def session_info_for_sure(self, session: SessionName) -> dict[str, Any]:
        """Return the same for those who write it anew. Raises OSError where it cannot be read just now."""
        return _read_json(self.session_path(session) / SESSION_FILE)

    def has_segments(self, session: SessionName) -> bool:
        """Tell whether a session owes anything; stops at the first."""
        return any(True for _ in self.segment_names(session))

    def keep_ballast(self) -> None:
        """Keep a little room aside, for the journal's last words on a full disk."""
        ballast = self.state / BALLAST
        try:
            if ballast.stat().st_size == BALLAST_BYTES:
                return
        except FileNotFoundError:
            pass
        try:
            ballast.write_bytes(os.urandom(BALLAST_BYTES))
        except OSError:
            ballast.unlink(missing_ok=True)

    def journal_for_sure(self, camera: str, event: Event, *lines: dict[str, object]) -> None:
        """Journal durably what is about to be deleted; on a full disk, in the room kept aside for it."""
        self._for_sure(lambda: self.journal.append_all(camera, event, lines, durable=True))

    def write_for_sure(self, path: Path, data: dict[str, Any]) -> None:
        """Write a small state file; on a full disk, in the room kept aside."""
        self._for_sure(lambda: write_json(path, data))

    def _for_sure(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            if not is_full(error):
                raise
            (self.state / BALLAST).unlink(missing_ok=True)
            write()

    def count_reject(self, camera: str) -> int:
        """Count one more rejected segment of a camera; return how many there were in a row."""
        path = self._rejects(camera)
        in_a_row = _count(read_json(path).get("in_a_row")) + 1
        write_json(path, {"in_a_row": in_a_row})
        return in_a_row

    def clear_rejects(self, camera: str) -> None:
        """Note that a segment of this camera was taken."""
        self._rejects(camera).unlink(missing_ok=True)


def _by_sequence(name: str) -> tuple[int, str]:
    """Order names by sequence number: eight digits, and more only after the hundred-millionth segment."""
    return name.index("_"), name


def read_json(path: Path) -> dict[str, Any]:
    """Return a small JSON object from a file; an empty one if it is missing, damaged or too large."""
    try:
        return _read_json(path)
    except OSError:
        return {}


def _read_json(path: Path) -> dict[str, Any]:
    """Return the same. Raises OSError where another look may find more."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return {}
            data = json.loads(file.read(_LARGEST_JSON))
    except (ValueError, RecursionError):
        return {}
    except OSError as error:
        if error.errno in _PASSES:
            raise
        return {}
    return data if isinstance(data, dict) else {}


def number_in(state: dict[str, Any], key: str) -> float:
    """Return a number of a state file that may be damaged; 0 for anything else."""
    value = state.get(key)
    try:
        number = float(value) if isinstance(value, int | float) else 0.0
    except OverflowError:
        return 0.0
    return number if math.isfinite(number) else 0.0


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a JSON object so that a reader sees the old one or the new one, whole, even after power loss."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            json.dump(data, file)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0


def is_full(error: OSError) -> bool:
    """Tell whether the disk or the quota is used up."""
    return error.errno in _FULL


def _remove_leftovers(state: Path) -> None:
    """Remove what killed writers left; a living one needs its temporary file for a moment only."""
    for path in state.glob(".*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.lstat().st_mtime > _LEFTOVER_SECONDS:
                path.unlink()


def _read_marker(root: Path) -> str | None:
    try:
        text = (root / MARKER).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        marker = json.loads(text)
        version, spool_id = int(marker["format"]), str(marker["id"])
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            f"the spool's marker {root / MARKER} is damaged; expected "
            '{"format": 1, "id": …}; restore it, or move the spool away and start a new one'
        ) from None
    if version > FORMAT:
        raise ConfigError(
            f"the spool {root} has format {version}; this program knows format {FORMAT}; "
            "upgrade relay-capture, or give another --spool"
        )
    return spool_id


def _create(root: Path) -> str:
    root.mkdir(parents=True, exist_ok=True)
    found = sorted(set(os.listdir(root)) - _HARMLESS)
    if found:
        sessions = any(name.startswith(SESSION_PREFIX) for name in found)
        raise ConfigError(
            f"{root} holds {found[0]!r} but no marker {MARKER}; "
            + (
                "it looks like a spool that lost its marker; restore it from a backup of the spool"
                if sessions
                else "expected an empty directory or a spool; give another --spool"
            )
        )
    spool_id = secrets.token_hex(16)
    write_json(root / MARKER, {"format": FORMAT, "id": spool_id})
    return spool_id


def _not_a_spool(root: Path) -> NoReturn:
    raise ConfigError(
        f"{root} is no spool: it has no marker {MARKER}; expected the directory that the capture agent "
        "writes to, mounted; check --spool or RELAY_SPOOL"
    )


def _refuse(root: Path, error: OSError) -> NoReturn:
    if is_full(error):
        raise SpoolFullError(
            f"the spool {root} is full: {error.strerror}; make room on its file system, then start again"
        ) from None
    raise ConfigError(
        f"the spool {root} cannot be used: {error.strerror}; expected a directory that this user "
        "may write; check its owner and mount, or give another --spool"
    ) from None
