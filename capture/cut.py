"""Cuts a segment in two where its picture changes, so that each part plays by itself and no byte is lost."""

import os
import shutil
from pathlib import Path

from capture.durable import sync_directory
from capture.mpegts import CLOCK_HZ, WRAP
from capture.scan import Change, Scan

# Of one segment; a picture that changes faster than a camera's can is noise, and is left as it is.
MOST_PIECES = 16


def split(path: Path, change: Change, *, tables: bytes, rest: Path) -> None:
    """Leave what comes before the change in `path`; write the rest, with `tables` before it, to `rest`.

    The rest is on the disk before anything is taken from the file: a crash between the two leaves both, and
    no frame is lost. Raises OSError, and then leaves the file as it was; what else is raised, at any moment,
    leaves either that or both parts.
    """
    draft = rest.with_name(f".{rest.name}.cut")
    try:
        with path.open("rb") as source, draft.open("wb") as target:
            source.seek(change.offset)
            target.write(tables)
            shutil.copyfileobj(source, target, 1024 * 1024)
            target.flush()
            os.fsync(target.fileno())
        draft.rename(rest)
        sync_directory(rest.parent)
        os.truncate(path, change.offset)
    except BaseException:
        draft.unlink(missing_ok=True)
        if path.stat().st_size > change.offset:  # else it was cut, and nobody else has the rest
            rest.unlink(missing_ok=True)
        raise


def seconds_before(scan: Scan, change: Change, duration: float) -> float:
    """Return how much of a segment of `duration` seconds comes before the change."""
    first = change.pts if scan.first_pts is None else scan.first_pts
    seconds = ((change.pts - first) % WRAP) / CLOCK_HZ
    return min(seconds, duration)
