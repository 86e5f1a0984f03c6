"""A backlog for benchmarks: owed segments of old sessions, put into a spool and taken out of it again."""

import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.cameras import begin
from capture.clock import Clock
from capture.segment import SessionName
from capture.spool import Spool

SESSIONS_PER_CAMERA = 2
AGE = timedelta(hours=12)
APART = timedelta(minutes=30)  # between the beginnings of two sessions of a camera
PACKET = 188
HEADER = b"\x47\x1f\xff\x10"  # a null packet of a transport stream


class PastClock(Clock):
    """Wall time some while ago: sessions and journal lines are as old as they say."""

    def __init__(self, ago: timedelta) -> None:
        self._ago = ago

    def now(self) -> datetime:
        return datetime.now(UTC) - self._ago

    def time(self) -> float:
        return self.now().timestamp()


def video(size: int) -> bytes:
    """Return whole packets of a transport stream, about `size` bytes, that do not compress."""
    return b"".join(HEADER + os.urandom(PACKET - len(HEADER)) for _ in range(max(1, size // PACKET)))


class Backlog:
    """Sessions that ended long ago. `parked` is a directory on the spool's file system, outside of it."""

    def __init__(
        self,
        root: Path,
        parked: Path,
        *,
        cameras: Sequence[str],
        content: bytes,
        seconds: float,
        age: timedelta = AGE,
        sessions_each: int = SESSIONS_PER_CAMERA,
    ) -> None:
        self._root = root
        self._parked = parked
        self._cameras = cameras
        self._content = content
        self._seconds = seconds
        self._age = age
        self._sessions_each = sessions_each
        self.sessions: list[SessionName] = []
        self.made = 0
        parked.mkdir(exist_ok=True)

    def fill(self, count: int) -> None:
        """Owe `count` segments in all, the same number for each camera; call it while it is in the spool."""
        spool = Spool.open(self._root)
        share = count // len(self._cameras)
        missing = {camera: share - self._owed(spool, camera) for camera in self._cameras}
        for left in range(self._sessions_each, 0, -1):
            for camera in self._cameras:
                count = missing[camera] // left
                self._session(camera, count)
                missing[camera] -= count
            self._age = max(timedelta(0), self._age - APART)

    def _owed(self, spool: Spool, camera: str) -> int:
        return sum(spool.count_segments(each) for each in self.sessions if each.camera == camera)

    def _session(self, camera: str, count: int) -> None:
        spool = Spool.open(self._root, clock=PastClock(self._age))
        began = spool.clock.now()
        with begin(spool, camera, self._seconds) as session:
            for sequence in range(1, count + 1):
                path = session.open_path(sequence)
                path.write_bytes(self._content)
                os.utime(path, times=(began.timestamp(), began.timestamp()))
                start = began + timedelta(seconds=self._seconds * sequence)
                session.close_segment(sequence, start, self._seconds)
            session.end()
        self.sessions.append(session.name)
        self.made += count

    def put_in(self) -> None:
        """Move all of it into the spool."""
        self._move(self._parked, self._root)

    def take_out(self) -> None:
        """Move all of it out of the spool, where no worker may be at work."""
        self._move(self._root, self._parked)

    def _move(self, here: Path, there: Path) -> None:
        for session in self.sessions:
            path = here / str(session)
            if path.exists():
                path.rename(there / str(session))

    def owed(self) -> int:
        """Count what is owed of it, in the spool."""
        spool = Spool.open(self._root)
        return sum(spool.count_segments(session) for session in self.sessions)

    def is_gone(self) -> bool:
        """Tell whether nothing is owed of it any more, in the spool."""
        spool = Spool.open(self._root)
        return not any(spool.has_segments(session) for session in self.sessions)
