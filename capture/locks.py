"""Locks that several processes share: advisory ones on small files, which go with their holder."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

POLL_SECONDS = 0.01


@contextlib.contextmanager
def exclusive(path: Path, *, wait: float = 0.0) -> Iterator[bool]:
    """Try to be the only one who holds a lock file, which is made if need be; yields whether this one is.

    Tries again for `wait` seconds.
    """
    with held(path, wait=wait) as descriptor:
        yield descriptor is not None


@contextlib.contextmanager
def held(path: Path, *, wait: float = 0.0, poll: float = POLL_SECONDS) -> Iterator[int | None]:
    """Do the same for a file that holds something; yields its descriptor, or None where another has it."""
    until = time.monotonic() + wait
    with _opened(path) as descriptor:
        while not (is_mine := _try(descriptor)) and time.monotonic() < until:
            time.sleep(poll)
        yield descriptor if is_mine else None


@contextlib.contextmanager
def one_after_the_other(path: Path) -> Iterator[int]:
    """Wait until nobody else holds a lock file, and hold it; yields its descriptor."""
    with _opened(path) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
