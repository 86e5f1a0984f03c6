"""The disk budget: keeps the spool below its limits by dropping the oldest of what is owed, loudly.

Runs in the agent, on a thread of its own. What counts are the bytes of all segments in the spool, whoever
wrote them: owed, rejected, and those being written, at their real size. Closing or salvaging a segment
therefore changes nothing, and a crash cannot make the sum grow. What is being written may grow until the
next look takes effect: an allowance for that stays free, and the nearer a limit, the more often it looks.

A file system can run out of inodes while it has room. A few free ones are a limit of their own, where the
file system tells of any and what it tells moves with a file that is made in the spool: a number that means
something else must not cost video. Where others use them up and nothing of ours is left to go, it waits.
"""

import os
import secrets
import threading
from collections.abc import Callable

import structlog

from capture.errors import RelayError
from capture.eviction import Eviction
from capture.holdings import Holdings
from capture.retention import (
    FREE_INODES,
    LONGEST_PAUSE,
    MAX_BYTES,
    NEAR_SHARE,
    Room,
    default_min_free,
    excess,
    first_allowance,
    headroom,
    least_allowance,
    missing_inodes,
    next_allowance,
    pause,
)
from capture.settings import SpoolSettings
from capture.spool import Spool, is_full

JOIN_SECONDS = 1.0
START_SECONDS = 5.0
ROUND_SECONDS = 1.0  # then what is being written is looked at again
LOOK_AGAIN_SECONDS = 30.0
SAY_AGAIN_SECONDS = 30.0
LATE_SECONDS = 30.0  # how long a file system may take to show what was freed

log = structlog.get_logger()


class Budget:
    """Enforces `spool.max_bytes`, `spool.min_free`, and that a few inodes stay free."""

    def __init__(self, spool: Spool, settings: SpoolSettings, *, cameras: int) -> None:
        self._spool = spool
        self._settings = settings
        self._cameras = cameras
        self._holdings = Holdings(spool)
        self._eviction = Eviction(spool, self._holdings)
        self._added = 0  # at most, since the last look
        self._open = 0
        self._allowance: float | None = None
        self._measured_at = 0.0
        self._looked_at = float("-inf")
        self._fitted_at = float("-inf")
        self._late = _LateRoom(spool, _free)
        self._late_inodes = _LateRoom(spool, _free_inodes)
        self._report = _Report(spool)
        self._guard = threading.Lock()
        self._stopping = threading.Event()
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._run, name="budget", daemon=True)
        self.dropped = 0

    def start(self) -> None:
        """Bring the spool below its limits, then watch it. Call it before anything is captured.

        Where very much has to go, because a limit was lowered, capture does not wait for all of it.
        """
        self._thread.start()
        self._begun.wait(START_SECONDS)

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(JOIN_SECONDS)
        self._report.flush()

    def expect(self, cameras: int) -> None:
        """Note that so many cameras write from now on."""
        self._cameras = cameras

    def add(self, size: int) -> None:
        """Note a segment that was just closed: it may have come and gone between two looks."""
        with self._guard:
            self._added += size

    def _run(self) -> None:
        # Not in the caller's thread: to look at very many segments on a slow disk takes minutes.
        while self._enforce_safely() and not self._stopping.is_set():
            pass
        self._begun.set()
        while not self._stopping.wait(self._pause()):
            self._enforce_safely()

    def _enforce_safely(self) -> bool:
        """Tell whether something was dropped and more has to go."""
        try:
            dropped = self.enforce()
            self._report.works()
            return dropped > 0 and (self._excess()[0] > 0 or self._missing_inodes() > 0)
        except (OSError, RelayError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self._report.fails(reason or str(error))
        except Exception:
            log.exception("budget_failed")
        return False

    def _pause(self) -> float:
        try:
            room = self._room()
        except OSError:
            return LONGEST_PAUSE
        left = headroom(room, max_bytes=self._settings.max_bytes, min_free=self._floor(room))
        return pause(left, cameras=self._cameras)

    def enforce(self) -> int:
        """Drop what has to go; returns how many segments went.

        Raises OSError, and ConfigError without its mount.
        """
        self._spool.check_mounted()
        self._measure()
        to_free, limit = self._excess()
        # How much is free, the file system itself knows; how much is used, only a look can tell.
        if (self._is_stale() and (self._settings.max_bytes is not None or to_free)) or limit == MAX_BYTES:
            self._look()
            to_free, limit = self._excess(near=NEAR_SHARE)
        if to_free:
            return self._drop(to_free, limit)
        if missing := self._missing_inodes():
            return self._drop_for_inodes(missing)
        self._fits()
        return 0

    def _fits(self) -> None:
        """Keep the ballast, now and then."""
        now = self._spool.clock.monotonic()
        if now - self._fitted_at > LOOK_AGAIN_SECONDS:
            self._report.fits()
            self._spool.keep_ballast()
            self._eviction.keep_lock()
            self._fitted_at = now

    def _drop(self, to_free: int, limit: str) -> int:
        before = _free(self._spool)
        count, freed = self._eviction.free(to_free, reason=f"no room: {limit}", seconds=ROUND_SECONDS)
        self._late.expect(freed, before=before, written=self._measure())
        self._note(count, limit, is_enough=freed >= to_free)
        if limit == MAX_BYTES and self._holdings.closed == 0 and self._excess()[0]:
            self._report.does_not_fit(self._open, self._settings.max_bytes)
        return count

    def _drop_for_inodes(self, missing: int) -> int:
        if self._is_stale():
            self._look()
        before = _free_inodes(self._spool)
        count, freed = self._eviction.free(
            missing, reason=f"no room: {FREE_INODES}", seconds=ROUND_SECONDS, inodes=True
        )
        self._late_inodes.expect(freed, before=before, written=0)
        self._note(count, FREE_INODES, is_enough=freed >= missing)
        return count

    def _note(self, count: int, limit: str, *, is_enough: bool) -> None:
        self.dropped += count
        self._fitted_at = float("-inf")
        if count:
            self._report.dropped(count, limit)
        if not is_enough:  # there may be more than we know of
            self._looked_at = float("-inf")

    # --- how things are ---

    def _is_stale(self) -> bool:
        return self._spool.clock.monotonic() - self._looked_at > LOOK_AGAIN_SECONDS

    def _measure(self) -> int:
        """Look at what is being written, cheap however much is owed; return by how much that grew."""
        self._open, grown, gone = self._holdings.measure()
        now = self._spool.clock.monotonic()
        with self._guard:
            self._added += gone
        if self._allowance is not None:
            self._allowance = next_allowance(
                self._allowance, grown=grown, seconds=max(0.0, now - self._measured_at)
            )
        self._measured_at = now
        return grown

    def _look(self) -> None:
        """Read anew what is closed. What is closed meanwhile may count twice, and never not at all."""
        with self._guard:
            self._added = 0
        self._holdings.look()
        self._looked_at = self._spool.clock.monotonic()
        if self._allowance is None:
            self._allowance = first_allowance(self._cameras, self._holdings.largest, self._limit())
        self._measure()

    def _room(self) -> Room:
        disk = os.statvfs(self._spool.root)
        with self._guard:
            used = self._holdings.closed + self._added + self._open
        free = self._late.corrected(disk.f_bavail * disk.f_frsize)
        reserve = max(least_allowance(self._cameras, self._limit()), int(self._allowance or 0))
        return Room(used, free, disk.f_blocks * disk.f_frsize, reserve)

    def _limit(self) -> int:
        if self._settings.max_bytes is not None:
            return int(self._settings.max_bytes)
        disk = os.statvfs(self._spool.root)
        return disk.f_blocks * disk.f_frsize

    def _floor(self, room: Room) -> int:
        min_free = self._settings.min_free
        return default_min_free(room.total) if min_free is None else int(min_free)

    def _excess(self, *, near: float = 0.0) -> tuple[int, str]:
        room = self._room()
        return excess(room, max_bytes=self._settings.max_bytes, min_free=self._floor(room), near=near)

    def _missing_inodes(self) -> int:
        disk = os.statvfs(self._spool.root)
        free = self._late_inodes.corrected(disk.f_favail)
        missing = missing_inodes(disk.f_files, free, cameras=self._cameras)
        return missing if missing and _tells_of_ours(self._spool) else 0


class _LateRoom:
    """What was freed and the file system does not show yet: else the whole spool would go for it.

    Some show it only with their next commit; where somebody else holds a file open, later.
    """

    def __init__(self, spool: Spool, free: Callable[[Spool], int]) -> None:
        self._spool = spool
        self._free = free
        self._pending = 0
        self._until = 0.0
        self._lowest = 0

    def corrected(self, free: int) -> int:
        """Return what is free as it will be."""
        self._lowest = min(self._lowest, free)
        is_shown = free - self._lowest >= self._pending // 2
        if is_shown or self._spool.clock.monotonic() >= self._until:
            self._pending = 0
        return free + self._pending

    def expect(self, freed: int, *, before: int, written: int) -> None:
        """Note what was just freed, how much was free before, and what was written meanwhile."""
        now = self._free(self._spool)
        missing = freed - (now - before + written)
        if missing > freed // 2:
            self._pending += missing
            self._lowest = now
            self._until = self._spool.clock.monotonic() + LATE_SECONDS


def _free(spool: Spool) -> int:
    disk = os.statvfs(spool.root)
    return disk.f_bavail * disk.f_frsize


def _free_inodes(spool: Spool) -> int:
    return os.statvfs(spool.root).f_favail


def _tells_of_ours(spool: Spool) -> bool:
    """Tell whether the free inodes are those of our files: a new one takes one, or cannot be made."""
    before = _free_inodes(spool)
    path = spool.state / f".{secrets.token_hex(4)}.tmp"
    try:
        path.touch(exist_ok=False)
    except OSError as error:
        if is_full(error):
            return True
        raise
    try:
        return _free_inodes(spool) < before
    finally:
        path.unlink(missing_ok=True)


class _Report:
    """Says what happened when it changes, and what goes on now and then: not at every look."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._failing = ""
        self._too_small = False
        self._unsaid = 0
        self._limit = ""
        self._said_at = float("-inf")

    def works(self) -> None:
        if self._failing:
            log.info("budget_enforced_again")
        self._failing = ""
        if self._unsaid and self._spool.clock.monotonic() - self._said_at >= SAY_AGAIN_SECONDS:
            self.flush()

    def fails(self, reason: str) -> None:
        if reason != self._failing:
            log.warning("budget_not_enforced", reason=reason, then="tried again")
        self._failing = reason

    def dropped(self, count: int, limit: str) -> None:
        self._unsaid, self._limit = self._unsaid + count, limit
        if self._spool.clock.monotonic() - self._said_at >= SAY_AGAIN_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self._unsaid:
            log.error(
                "segments_dropped",
                count=self._unsaid,
                limit=self._limit,
                advice="make room, or mend the uplink",
            )
            self._unsaid, self._said_at = 0, self._spool.clock.monotonic()

    def fits(self) -> None:
        self._too_small = False

    def does_not_fit(self, open_bytes: int, max_bytes: int | None) -> None:
        if not self._too_small:
            log.error(
                "budget_too_small",
                being_written=open_bytes,
                max_bytes=max_bytes,
                advice="even what is being written does not fit: raise spool.max_bytes, or cut shorter",
            )
        self._too_small = True
