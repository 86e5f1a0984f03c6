"""The bandwidth cap: all uploads of a host share one rate, and new video goes before the backlog.

What they share is a small file that each locks for a moment before each piece of a body: when the line is
free again, and when new video last took some of it. Losing the file costs nothing but a short burst.
"""

import math
import os
import struct
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Protocol

import structlog

from capture.host import host, remove_old
from capture.locks import one_after_the_other
from capture.timetable import Timetable

log = structlog.get_logger()

# Pieces small enough that a low rate is even, and no smaller than a packet or three.
PIECE_SECONDS = 0.05
SMALLEST_PIECE = 4 * 1024
LARGEST_PIECE = 256 * 1024
# New video that took a piece within this time is still at it: the backlog waits for a pause in it.
LIVE_SECONDS = 0.25
# ... but not for ever: a tenth of the rate is the backlog's, whatever happens.
BACKLOG_SHARE = 0.1
LONGEST_SLEEP = 0.05
LONGEST_PIECE_SECONDS = 1.0
# A line that is booked for longer than any piece takes was booked before the machine started anew.
_LONGEST_BOOKING = 10.0
_STATE = struct.Struct("<ddd")  # free at, new video's last piece, the backlog's next sure piece; monotonic


class Limit(Protocol):
    """What a body's generator asks."""

    def piece(self) -> int:
        """Return the largest piece to send at once, in bytes."""

    def wait(self, size: int, *, is_live: bool, until: float) -> bool:
        """Wait until a piece may go; False when that is later than `until` (monotonic seconds)."""


class NoLimit:
    """Nothing is limited."""

    def piece(self) -> int:
        return LARGEST_PIECE

    def wait(self, size: int, *, is_live: bool, until: float) -> bool:
        del size, is_live
        return time.monotonic() <= until


class Limiter:
    """A rate that all processes of this host share through a file."""

    def __init__(
        self,
        directory: Path,
        timetable: Timetable,
        *,
        local_time: Callable[[], datetime] = datetime.now,
    ) -> None:
        # By host: those that share a spool need not share a line.
        self._path = directory / f"rate-{host()}.bin"
        self._is_shared = True
        remove_old(self._path)
        self._timetable = timetable
        self._local_time = local_time

    def _rate(self) -> float | None:
        return self._timetable.rate(self._local_time().time())

    def piece(self) -> int:
        rate = self._rate()
        if rate is None:
            return LARGEST_PIECE
        return max(SMALLEST_PIECE, min(LARGEST_PIECE, int(rate * PIECE_SECONDS)))

    def wait(self, size: int, *, is_live: bool, until: float) -> bool:
        while (now := time.monotonic()) <= until:
            rate = self._rate()
            if rate is None:
                return True
            pause = self._book_for_sure(size / rate, now, is_live=is_live)
            if pause <= 0:
                return True
            time.sleep(min(pause, LONGEST_SLEEP, max(0.0, until - now)))
        return False

    def _book_for_sure(self, seconds: float, now: float, *, is_live: bool) -> float:
        """Book; where the file cannot be used, keep the rate alone: a full disk must not stop uploads."""
        try:
            pause = self._book(seconds, now, is_live=is_live)
        except OSError as error:
            if self._is_shared:
                log.warning("rate_not_shared", reason=error.strerror, then="each keeps the rate alone")
            self._is_shared = False
            time.sleep(min(seconds, LONGEST_PIECE_SECONDS))
            return 0.0
        self._is_shared = True
        return pause

    def _book(self, seconds: float, now: float, *, is_live: bool) -> float:
        """Take the line for so many seconds if it is free; else return when to ask again, in seconds."""
        with one_after_the_other(self._path) as descriptor:
            state, pause = book(_read(descriptor), seconds, now, is_live=is_live)
            os.pwrite(descriptor, _STATE.pack(*state), 0)
        return pause


State = tuple[float, float, float]


def book(state: State, seconds: float, now: float, *, is_live: bool) -> tuple[State, float]:
    """Return the next state, and how long to wait before asking again; 0 when the piece may go now. Pure.

    `state`: when the line is free, when new video last asked, when the backlog's next sure piece is due.
    """
    free_at, live_at, sure_at = (_sane(each, now) for each in state)
    is_sure = False
    if is_live:
        live_at = now
    elif now - live_at < LIVE_SECONDS:
        if now < sure_at:
            return (free_at, live_at, sure_at), min(sure_at, live_at + LIVE_SECONDS) - now
        is_sure = True  # without a race for the moment at which the line is free
    if free_at > now and not is_sure:
        return (free_at, live_at, sure_at), free_at - now
    # A little of what was missed is made up for: who slept too long does not lower the rate.
    free_at = max(free_at, now - PIECE_SECONDS) + seconds
    if not is_live:
        sure_at = now + seconds / BACKLOG_SHARE
    return (free_at, live_at, sure_at), 0.0


def _sane(moment: float, now: float) -> float:
    """Return a moment of the state; long ago for one of another life of this machine."""
    return moment if math.isfinite(moment) and moment - now < _LONGEST_BOOKING else -math.inf


def _read(descriptor: int) -> State:
    data = os.pread(descriptor, _STATE.size, 0)
    if len(data) != _STATE.size:
        return (-math.inf, -math.inf, -math.inf)
    free_at, live_at, sure_at = _STATE.unpack(data)
    return (free_at, live_at, sure_at)
