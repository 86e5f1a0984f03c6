"""Counts of several processes: each writes a file of its own, the main process adds them up.

prometheus_client has a multi-process mode of its own, which does not fit here: it is chosen by an environment
variable before the library is first imported, and the celery command imports it by way of Flower before
anything of ours; its files are mapped into memory, so that a full disk kills the process that counts; and
they are kept for ever, where our children are renewed after some thousand tasks.

A file is a row of records of `RECORD` bytes: a double, then the metric and its labels as JSON. Its writer
holds a lock on it while it lives. What a dead one leaves is added to the sum in memory, and removed.
"""

import contextlib
import fcntl
import functools
import json
import os
import struct
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from capture.metrics_text import CameraNames, Counts, Labels, Metric

RECORD: Final = 256
MOST_RECORDS: Final = 16 * 1024  # 4 MB, far above what the capped labels can make
SUFFIX: Final = ".counts"
LEFT_SECONDS: Final = 60.0
_VALUE: Final = struct.Struct("=d")
_KEY_BYTES: Final = RECORD - _VALUE.size

Key = tuple[str, Labels]


class FileCounts(Counts):
    """Counts that the main process can read in a file.

    What is in memory is right; the file follows. Where it cannot be written, because the disk is full, the
    next write of the same value makes up for it, and nobody who counts is held up or hurt.
    """

    def __init__(self, directory: Path) -> None:
        """Make the file under another name and lock it first: without its lock it would count as left."""
        super().__init__()
        self._places: dict[Key, int] = {}
        self._descriptor, made = tempfile.mkstemp(prefix=f"{os.getpid()}-", suffix=".new", dir=directory)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            Path(made).rename(Path(made).with_suffix(SUFFIX))
        except OSError:
            os.close(self._descriptor)
            raise

    def close(self) -> None:
        """Let go of the file; it counts as left from now on."""
        os.close(self._descriptor)

    def _changed(self, key: Key, value: float) -> None:
        place = self._places.get(key)
        try:
            if place is not None:
                os.pwrite(self._descriptor, _VALUE.pack(value), place * RECORD)
            elif len(self._places) < MOST_RECORDS:
                place = len(self._places)
                if os.pwrite(self._descriptor, _record(key, value), place * RECORD) == RECORD:
                    self._places[key] = place
        except OSError:
            return


def _record(key: Key, value: float) -> bytes:
    text = json.dumps([key[0], *key[1]], separators=(",", ":")).encode()
    if len(text) > _KEY_BYTES:
        raise ValueError(f"a metric's name and labels take {len(text)} bytes, at most {_KEY_BYTES} fit")
    return _VALUE.pack(value) + text.ljust(_KEY_BYTES)


@functools.lru_cache(maxsize=MOST_RECORDS)
def _parsed(text: bytes) -> Key | None:
    """Return the metric and labels of a record; None for one that is not whole. The same ones come again."""
    try:
        name, *labels = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return None
    return str(name), tuple(map(str, labels))


def read_counts(data: bytes) -> Iterator[tuple[Key, float]]:
    """Yield what a file holds, as far as its records are whole."""
    for start in range(0, len(data) - RECORD + 1, RECORD):
        key = _parsed(data[start + _VALUE.size : start + RECORD])
        if key is not None:
            yield key, float(_VALUE.unpack_from(data, start)[0])


class Store:
    """The files of a worker's processes, and what those that have ended left."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._gone: dict[Key, float] = {}
        self._guard = threading.Lock()
        self._names = CameraNames()

    def tidy(self) -> None:
        """Add up and remove the files of processes that have ended."""
        with self._guard:
            for path in self._files():
                self._take(path)
            for path in self.directory.glob("*.new"):
                _remove_if_left(path)

    def totals(self, metrics: Iterable[Metric]) -> dict[Metric, dict[Labels, float]]:
        """Return the sums over all processes there ever were, with cameras above the cap as one."""
        known = {metric.name: metric for metric in metrics}
        sums: dict[Metric, dict[Labels, float]] = {metric: {} for metric in known.values()}
        with self._guard:
            alive = [counts for path in self._files() for counts in self._take(path)]
            for (name, labels), value in [*self._gone.items(), *alive]:
                if (metric := known.get(name)) is not None:
                    shown = self._capped(metric, labels)
                    sums[metric][shown] = sums[metric].get(shown, 0.0) + value
        return sums

    def _capped(self, metric: Metric, labels: Labels) -> Labels:
        if labels and metric.labels[:1] == ("camera",):
            return (self._names(labels[0]), *labels[1:])
        return labels

    def _files(self) -> list[Path]:
        return sorted(self.directory.glob(f"*{SUFFIX}"))

    def _take(self, path: Path) -> list[tuple[Key, float]]:
        """Return what a living process counted; of one that has ended keep it, and remove the file."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return []
        try:
            has_ended = _is_free(descriptor)
            size = min(os.fstat(descriptor).st_size, MOST_RECORDS * RECORD)
            counts = list(read_counts(os.pread(descriptor, size, 0)))
        finally:
            os.close(descriptor)
        if not has_ended:
            return counts
        path.unlink(missing_ok=True)
        for key, value in counts:
            self._gone[key] = self._gone.get(key, 0.0) + value
        return []


def _remove_if_left(path: Path) -> None:
    """Remove what a process left that was killed while it began; one that begins just now has its time."""
    with contextlib.suppress(OSError):
        if time.time() - path.lstat().st_mtime > LEFT_SECONDS:
            path.unlink()


def _is_free(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
