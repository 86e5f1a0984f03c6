"""What the spool holds, in bytes: closed and rejected segments by session, and those being written.

A look costs one directory listing per session that changed since the last, and one file status per segment
that was not known yet. What is remembered takes eight bytes a segment.
"""

import contextlib
import os
import time
from array import array
from collections.abc import Iterator
from pathlib import Path

import structlog

from capture.segment import SessionName, looks_closed
from capture.spool import OPEN, REJECTED, Spool

_CHUNK = 256
_ABSENT = 0  # sizes are kept one higher
# A directory that changed just now can change again without its time showing it.
_SETTLED_NS = 2_000_000_000
FOLDERS = (REJECTED, "")

log = structlog.get_logger()


class Sizes:
    """Sizes of files by sequence number."""

    def __init__(self) -> None:
        self._chunks: dict[int, array[int]] = {}
        self.total = 0
        self.count = 0
        self.largest = 0

    def get(self, number: int) -> int | None:
        chunk = self._chunks.get(number // _CHUNK)
        found = chunk[number % _CHUNK] if chunk else _ABSENT
        return None if found == _ABSENT else found - 1

    def put(self, number: int, size: int) -> None:
        """Note one file more; of two with one number, only the first can be looked up."""
        chunk = self._chunks.setdefault(number // _CHUNK, array("Q", bytes(8 * _CHUNK)))
        if chunk[number % _CHUNK] == _ABSENT:
            chunk[number % _CHUNK] = size + 1
        self.total += size
        self.count += 1
        self.largest = max(self.largest, size)

    def forget(self, number: int) -> int:
        """Note that a file is gone; return its size."""
        size = self.get(number)
        if size is None:
            return 0
        self._chunks[number // _CHUNK][number % _CHUNK] = _ABSENT
        self.total -= size
        self.count -= 1
        return size


class _Folder:
    """The closed segments in one directory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed: int | None = None
        self.sizes = Sizes()

    def look(self) -> None:
        """List it anew if it changed; where it cannot be read just now, what was known stays."""
        try:
            changed, now = self._path.stat().st_mtime_ns, time.time_ns()
            if changed == self._changed:
                return
            self.sizes = self._listed()
        except (FileNotFoundError, NotADirectoryError):
            self._changed, self.sizes = None, Sizes()
        except OSError as error:
            self._changed = None
            log.debug("folder_not_read", folder=str(self._path), reason=error.strerror)
        else:
            self._changed = changed if now - changed > _SETTLED_NS else None

    def _listed(self) -> Sizes:
        known, sizes = self.sizes, Sizes()
        with os.scandir(self._path) as entries:
            for entry in entries:
                if not looks_closed(entry.name):
                    continue
                number = number_of(entry.name)
                size = known.get(number)
                if size is None:
                    try:
                        size = entry.stat(follow_symlinks=False).st_size
                    except FileNotFoundError:
                        continue
                sizes.put(number, size)
        return sizes


class Holdings:
    """The segments of a spool and their sizes."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._folders: dict[SessionName, dict[str, _Folder]] = {}
        self._open: dict[SessionName, dict[str, int]] = {}  # of the sessions that may be written to
        self._root_changed: int | None = None

    # --- closed and rejected ---

    def look(self) -> None:
        """Read anew what may have changed."""
        self._find_sessions()
        for folders in self._folders.values():
            for folder in folders.values():
                folder.look()
        for name in [name for name, files in self._open.items() if not files]:
            if self._is_over(name):
                del self._open[name]

    @property
    def closed(self) -> int:
        """Bytes of closed and rejected segments at the last look."""
        return sum(folder.sizes.total for folders in self._folders.values() for folder in folders.values())

    @property
    def largest(self) -> int:
        """The largest closed or rejected segment."""
        sizes = (folder.sizes.largest for folders in self._folders.values() for folder in folders.values())
        return max(sizes, default=0)

    def by_camera(self, place: str) -> dict[str, int]:
        """Return the bytes of each camera in one of `FOLDERS`."""
        found: dict[str, int] = {}
        for session, folders in self._folders.items():
            if folders[place].sizes.count:
                found[session.camera] = found.get(session.camera, 0) + folders[place].sizes.total
        return found

    def sessions(self, camera: str, place: str) -> Iterator[tuple[SessionName, Sizes]]:
        """Yield the sessions of a camera that hold anything in one of `FOLDERS`, oldest first."""
        for session in sorted(name for name in self._folders if name.camera == camera):
            sizes = self._folders[session][place].sizes
            if sizes.count:
                yield session, sizes

    def sizes(self, session: SessionName, place: str) -> Sizes:
        folders = self._folders.get(session)
        return folders[place].sizes if folders else Sizes()

    # --- being written ---

    def measure(self) -> tuple[int, int, int]:
        """Look at what is being written: the bytes now, what they grew by, and what was closed meanwhile.

        The last is what the files held that have gone since the last look: they became owed, unless they
        were empty.
        """
        self._find_sessions()
        total = grown = gone = 0
        for name, before in self._open.items():
            now = self._open_files(name)
            total += sum(now.values())
            grown += sum(max(0, size - before.get(file, 0)) for file, size in now.items())
            gone += sum(size for file, size in before.items() if file not in now)
            self._open[name] = now
        return total, grown, gone

    def _open_files(self, name: SessionName) -> dict[str, int]:
        found = {}
        with (
            contextlib.suppress(OSError),  # gone, or not to be read: others can be
            os.scandir(self._spool.session_path(name) / OPEN) as entries,
        ):
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    found[entry.name] = entry.stat(follow_symlinks=False).st_size
        return found

    def _find_sessions(self) -> None:
        """Take note of session directories that came or went; costs next to nothing when none did."""
        changed = self._spool.root.stat().st_mtime_ns
        if changed == self._root_changed:
            return
        self._root_changed = changed if time.time_ns() - changed > _SETTLED_NS else None
        here = set(self._spool.sessions())
        for name in self._folders.keys() - here:
            del self._folders[name]
            self._open.pop(name, None)
        for name in here - self._folders.keys():
            path = self._spool.session_path(name)
            self._folders[name] = {place: _Folder(path / place) for place in FOLDERS}
            if not self._is_over(name) or self._open_files(name):
                self._open[name] = {}

    def _is_over(self, name: SessionName) -> bool:
        return self._spool.session_info(name).get("ended_at") is not None


def number_of(name: str) -> int:
    """Return the sequence number in the name of a closed segment."""
    return int(name[: name.index("_")])
