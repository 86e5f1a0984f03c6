"""What may go when there is no room, or when it is too old: pure decisions."""

from collections.abc import Mapping
from dataclasses import dataclass

MAX_BYTES = "spool.max_bytes"
MIN_FREE = "spool.min_free"
FREE_INODES = "free inodes"

LARGEST_MIN_FREE = 100_000_000
LARGEST_MIN_FREE_SHARE = 0.05
LARGEST_FREE_INODES = 1000
LARGEST_FREE_INODES_SHARE = 0.01
CAMERA_INODES = 8  # a new session's directory and files, a new day's journal
LARGEST_CAMERAS_INODES_SHARE = 0.1
# Drop a little more than needed, and a little before it is needed: then each look at a large spool pays for
# very many new segments, and what it costs per segment does not depend on how many there are.
SLACK_SHARE = 0.01
NEAR_SHARE = 0.0025

# What the segments being written may grow by before the next look takes effect.
LEAST_ALLOWANCE = 1024 * 1024  # bytes per camera: a fifth of a second of a camera that jumps to 40 Mbit/s
LARGEST_ALLOWANCE_SHARE = 0.05  # unless that much was really seen
LARGEST_FIRST_SHARE = 0.25
SAFETY = 2.0
HALF_LIFE_SECONDS = 30.0

FASTEST_CAMERA = 5_000_000  # bytes per second that a camera may jump to from one moment to the next
SHORTEST_PAUSE = 0.05
LONGEST_PAUSE = 3.0


@dataclass(frozen=True)
class Room:
    """How the disk stands, in bytes. `reserve` is what the segments being written may still grow by."""

    used: int
    free: int
    total: int
    reserve: int


def default_min_free(total: int) -> int:
    """Return how much of a file system of `total` bytes stays free unless a setting says otherwise."""
    return min(LARGEST_MIN_FREE, int(total * LARGEST_MIN_FREE_SHARE))


def headroom(room: Room, *, max_bytes: int | None, min_free: int) -> int:
    """Return how many bytes may still come before a limit is reached; negative when one is passed."""
    left = room.free - min_free - room.reserve
    return left if max_bytes is None else min(left, max_bytes - room.used - room.reserve)


def excess(room: Room, *, max_bytes: int | None, min_free: int, near: float = 0.0) -> tuple[int, str]:
    """Return how many bytes have to go and by which limit; (0, "") when none.

    `near` is the share of `max_bytes` that counts as reached already.
    """
    over_budget = room.used + room.reserve - int(max_bytes * (1 - near)) if max_bytes is not None else 0
    too_little_free = min_free + room.reserve - room.free
    if over_budget <= 0 and too_little_free <= 0:
        return 0, ""
    if over_budget >= too_little_free:
        return over_budget + int((max_bytes or 0) * (SLACK_SHARE - near)), MAX_BYTES
    return too_little_free, MIN_FREE


def missing_inodes(total: int, free: int, *, cameras: int) -> int:
    """Return how many inodes have to be freed: a few stay free, and some for what each camera begins.

    None have to where the file system tells of none (`total` is 0), or of more free ones than it has. Where
    inodes are made as needed (XFS, ZFS), their number follows the free bytes, whose limit comes first.
    """
    if not 0 <= free <= total:
        return 0
    floor = min(LARGEST_FREE_INODES, int(total * LARGEST_FREE_INODES_SHARE))
    floor += min(cameras * CAMERA_INODES, int(total * LARGEST_CAMERAS_INODES_SHARE))
    return max(0, floor - free)


def least_allowance(cameras: int, limit: int) -> int:
    """Return what is allowed for at least, where the limit is `limit` bytes."""
    return min(cameras * LEAST_ALLOWANCE, int(limit * LARGEST_ALLOWANCE_SHARE))


def first_allowance(cameras: int, largest: int, limit: int) -> int:
    """Return what to allow for before any growth was seen: a whole segment, as large as any that is here."""
    return min(cameras * largest, int(limit * LARGEST_FIRST_SHARE))


def next_allowance(allowance: float, *, grown: int, seconds: float) -> float:
    """Return the allowance after `grown` bytes came within `seconds`: the most of late, with some safety."""
    faded: float = allowance * 0.5 ** (seconds / HALF_LIFE_SECONDS)
    return max(grown * SAFETY, faded)


def pause(left: int, *, cameras: int) -> float:
    """Return how long it is safe not to look, with `left` bytes to the nearest limit; in seconds."""
    seconds = left / (FASTEST_CAMERA * max(1, cameras)) / SAFETY
    return min(LONGEST_PAUSE, max(SHORTEST_PAUSE, seconds))


def owes_most(owed: Mapping[str, int]) -> str | None:
    """Return the camera that owes most bytes, the first by name of several; None when nobody owes."""
    return min(owed, key=lambda camera: (-owed[camera], camera), default=None)
