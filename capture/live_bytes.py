"""How many bytes of new video this host has begun to send: a counter that its processes share.

Who sends from the backlog looks at it before each body, and leaves new video the time that it needs. The
counter is a small file; losing it is harmless: the two share the line then.
"""

import os
import struct
from contextlib import suppress
from pathlib import Path

from capture.host import host, remove_old
from capture.locks import held

_COUNT = struct.Struct("<Q")
_MOST = 2**63
WAIT_SECONDS, POLL_SECONDS = 0.004, 0.001  # whoever holds it for longer must not hold up new video


class LiveBytes:
    """The counter in a directory. By host: those that share a spool need not share a line."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / f"live-{host()}.bin"
        remove_old(self._path)

    def add(self, size: int) -> None:
        """Count what begins now; on a full disk, or where somebody else holds the file, that is lost."""
        with suppress(OSError), held(self._path, wait=WAIT_SECONDS, poll=POLL_SECONDS) as descriptor:
            if descriptor is not None:
                os.pwrite(descriptor, _COUNT.pack((_read(descriptor) + size) % _MOST), 0)

    def total(self) -> int:
        """Return the count; 0 where there is none."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return 0
        try:
            return _read(descriptor)
        except OSError:
            return 0
        finally:
            os.close(descriptor)


class NewVideo:
    """Looks at the counter again and again, from now on."""

    def __init__(self, live: LiveBytes) -> None:
        self._live = live
        self._seen = live.total()

    def take(self) -> int:
        """Return how many bytes began since the last look."""
        total, seen = self._live.total(), self._seen
        if total <= seen:  # less: it could not be read, or was lost
            return 0
        self._seen = total
        return total - seen


def _read(descriptor: int) -> int:
    data = os.pread(descriptor, _COUNT.size, 0)
    count: int = _COUNT.unpack(data)[0] if len(data) == _COUNT.size else 0
    return count
