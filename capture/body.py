"""A segment's content on its way into a request: read, digested, and handed out in pieces."""

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, Self, TypeAlias

from capture.limiter import LARGEST_PIECE, Limit

HELD_PIECE = 32 * 1024  # of a body that may have to make way in the middle
LOOK_SECONDS = 0.05
KEPT_BYTES = 4 * 1024 * 1024  # up to this a segment is read once, and kept in memory while it is sent

# Told how many bytes of a body are left, it says for how many seconds others need the line.
AskHold: TypeAlias = Callable[[int], float]


class DeadlineError(Exception):
    """The attempt's time is up."""


class ShrunkError(Exception):
    """The file became shorter than it was when it was claimed."""


class Content:
    """The content of a segment: exactly `size` bytes, and their digest.

    One of the usual size is read once, so that what is sent is what was digested; a larger one is read again
    while it is sent, and takes no more memory.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size
        self._kept: list[bytes] | None = [] if size <= KEPT_BYTES else None
        self.digest = b""  # SHA-256

    @classmethod
    def read(cls, file: BinaryIO, size: int) -> Self:
        """Read it. Raises ShrunkError when it has become shorter, and OSError."""
        content, found = cls(file, size), hashlib.sha256()
        for chunk in content._read():
            found.update(chunk)
            if content._kept is not None:
                content._kept.append(chunk)
        content.digest = found.digest()
        return content

    def chunks(self) -> Iterator[bytes]:
        """Yield all of it, as often as it is asked for. Raises as `read` does."""
        return self._read() if self._kept is None else iter(self._kept)

    def _read(self) -> Iterator[bytes]:
        offset = 0
        while offset < self._size:
            chunk = os.pread(self._file.fileno(), min(LARGEST_PIECE, self._size - offset), offset)
            if not chunk:
                raise ShrunkError("the segment file shrank while it was sent")
            offset += len(chunk)
            yield chunk


def pieces(
    chunks: Iterable[bytes],
    deadline: float,
    limit: Limit,
    *,
    is_live: bool,
    size: int,
    hold: AskHold | None = None,
) -> Iterator[bytes]:
    """Yield a body in pieces that the limit allows, each when its time has come. Raises DeadlineError.

    `hold` is told how many of its `size` bytes are left, and says for how many more seconds the next piece is
    to leave the line to others. Not the first one: a server that has the headers wants to see something soon.
    """
    left, largest = size, LARGEST_PIECE if hold is None else HELD_PIECE
    for chunk in chunks:
        offset = 0
        while offset < len(chunk):
            length = min(limit.piece(), largest, len(chunk) - offset)
            if hold is not None and left < size:
                _hold(hold, left, deadline)
            if not limit.wait(length, is_live=is_live, until=deadline):
                raise DeadlineError
            yield chunk[offset : offset + length]
            offset += length
            left -= length


def _hold(hold: AskHold, left: int, deadline: float) -> None:
    while (seconds := hold(left)) > 0 and time.monotonic() < deadline:
        time.sleep(min(seconds, LOOK_SECONDS))
