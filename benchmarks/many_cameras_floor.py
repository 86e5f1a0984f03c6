"""What no agent can save: the CPU of reading a segment once, of its digest, and of its fsync."""

import hashlib
import os
import statistics
import time
from pathlib import Path

from capture.scan import CHUNK

TIMES = 15


def floor(folder: Path, segment_seconds: float, *, kbps: int) -> float:
    """Return the CPU milliseconds for one segment of so many seconds, on the file system of `folder`.

    The kernel's time for the fsync counts as well. The median of some, one after the other.
    """
    size = int(segment_seconds * kbps * 1000 / 8)
    return 1000 * statistics.median(_once(folder / "floor.ts", size) for _ in range(TIMES))


def _once(path: Path, size: int) -> float:
    path.write_bytes(os.urandom(size))
    with path.open("rb", buffering=0) as file:
        began, digest = time.thread_time(), hashlib.sha256()
        while piece := file.read(CHUNK):
            digest.update(piece)
        os.fsync(file.fileno())
        digest.hexdigest()
        took = time.thread_time() - began
    path.unlink()
    return took
