"""The worker's side of the spool: take an owed segment, and say what became of it.

A claim is an advisory lock on the segment file itself. Names are hostile: they come out of a broker.
Nothing is opened but a regular file directly inside a session directory directly inside the spool;
it is opened relative to that directory, and no link below the spool is followed.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from capture.durable import sync_directory
from capture.journal import Event
from capture.segment import SegmentName, SessionName, rfc3339
from capture.spool import REJECTED, Spool, is_full, write_json

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# For writing, because a lock over NFS needs that; non-blocking, so that a planted FIFO cannot hold us.
_FILE = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LONGEST_NAME = 255


def _close(file: BinaryIO) -> None:
    file.close()


class HostileNameError(ValueError):
    """A message named something that is no segment of this spool."""


class Claim:
    """An owed segment that nobody else is sending. Use it as a context.

    The file of one that is removed is closed by `close_removed`: that frees its pages, which takes a while.
    """

    def __init__(
        self,
        spool: Spool,
        session: SessionName,
        segment: SegmentName,
        file: BinaryIO,
        path: Path,
        *,
        close_removed: Callable[[BinaryIO], None] = _close,
    ) -> None:
        self.spool = spool
        self.session = session
        self.segment = segment
        self.file = file
        status = os.fstat(file.fileno())
        self.size = status.st_size
        self.written_at = status.st_mtime  # seconds since 1970
        self._path = path
        self._close_removed = close_removed
        self._is_removed = False

    @property
    def idempotency_key(self) -> str:
        """The same on every attempt: ``<session>/<sequence>``."""
        return f"{self.session.id}/{self.segment.sequence}"

    def _names(self) -> dict[str, object]:
        return {"session": str(self.session), "segment": self._path.name, "bytes": self.size}

    def delivered(self, *, sha256: str, status: int, attempts: int) -> None:
        """Journal the delivery on the disk, then delete the file; never the other way round.

        On a full disk there may be no room for the line. What is confirmed may go, so the file is emptied
        first: an empty closed segment means "delivered, not yet journalled". That frees no inode; what is
        kept aside for the journal has one.
        """
        fields = {**self._names(), "sha256": sha256, "status": status, "attempts": attempts}
        try:
            self.spool.journal.append(self.session.camera, Event.DELIVERED, durable=True, **fields)
        except OSError as error:
            if not is_full(error):
                raise
            os.ftruncate(self.file.fileno(), 0)
            self.spool.journal_for_sure(self.session.camera, Event.DELIVERED, fields)
        self._remove()

    def finish_delivered(self) -> bool:
        """Finish a delivery that a full disk interrupted; False if this segment is really owed."""
        if self.size:
            return False
        fields = {**self._names(), "sha256": None, "status": 0, "attempts": 0}
        self.spool.journal_for_sure(self.session.camera, Event.DELIVERED, fields)
        self._remove()
        return True

    def _remove(self) -> None:
        self._path.unlink()
        self._is_removed = True

    def rejected(self, *, status: int, reason: str) -> None:
        """Move the segment to ``rejected/`` with a note of the answer, and journal it."""
        folder = self._path.parent / REJECTED
        folder.mkdir(mode=0o750, exist_ok=True)
        note = {"status": status, "reason": reason, "time": rfc3339(self.spool.clock.now())}
        write_json(folder / f"{self._path.name}.json", note)
        self._path.rename(folder / self._path.name)
        sync_directory(folder)
        sync_directory(folder.parent)
        self.spool.journal.append(
            self.session.camera,
            Event.REJECTED,
            durable=True,
            **self._names(),
            status=status,
            reason=reason,
        )

    def dropped(self, *, reason: str) -> None:
        """Delete the segment by a stated policy; the journal says which, first."""
        if self.finish_delivered():
            return
        fields = {**self._names(), "reason": reason}
        self.spool.journal_for_sure(self.session.camera, Event.DROPPED, fields)
        self._remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._is_removed:
            self._close_removed(self.file)
        else:  # its lock is for the next one
            self.file.close()


def parse_names(session: object, segment: object) -> tuple[SessionName, SegmentName]:
    """Read the two arguments of a message; HostileNameError for anything but two valid names."""
    if not (isinstance(session, str) and isinstance(segment, str)):
        raise HostileNameError("expected two names, found other types")
    if len(session) > _LONGEST_NAME or len(segment) > _LONGEST_NAME:
        raise HostileNameError("expected two names, found one that is too long")
    parsed_session, parsed_segment = SessionName.parse(session), SegmentName.parse(segment)
    if parsed_session is None or parsed_segment is None:
        raise HostileNameError(
            f"expected a session and a segment name, found {ascii(session)[:80]} and {ascii(segment)[:80]}"
        )
    return parsed_session, parsed_segment


def parse_session(session: object) -> SessionName:
    """Read a session argument of a message; HostileNameError for anything else."""
    if not isinstance(session, str):
        raise HostileNameError("expected a session name, found another type")
    parsed = SessionName.parse(session) if len(session) <= _LONGEST_NAME else None
    if parsed is None:
        raise HostileNameError(f"expected a session name, found {ascii(session[:80])[:80]}")
    return parsed


def claim(
    spool: Spool,
    session: SessionName,
    segment: SegmentName,
    *,
    close_removed: Callable[[BinaryIO], None] = _close,
) -> Claim | None:
    """Lock an owed segment; None when it is gone or somebody else has it."""
    folder = spool.session_path(session)
    path = folder / str(segment)
    try:
        descriptor = _open(folder, path.name)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO, errno.EISDIR}:
            raise HostileNameError(f"{segment} is no regular file") from None
        raise
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise HostileNameError(f"{segment} is no regular file")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever held the lock before may have delivered it between our open and our lock.
        if found.st_ino != path.lstat().st_ino:
            os.close(descriptor)
            return None
    except (BlockingIOError, FileNotFoundError):
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    file = os.fdopen(descriptor, "rb", buffering=0)
    return Claim(spool, session, segment, file, path, close_removed=close_removed)


def _open(folder: Path, segment: str) -> int:
    directory = os.open(folder, _DIRECTORY)
    try:
        return os.open(segment, _FILE, dir_fd=directory)
    finally:
        os.close(directory)
