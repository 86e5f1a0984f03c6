"""What may go when there is no room, or when it is too old: pure decisions."""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LARGEST_MIN_FREE = 100_000_000
LARGEST_MIN_FREE_SHARE = 0.05
# Drop a little more than needed: each look at a large spool then pays for many drops.
SLACK_SHARE = 0.01


@dataclass(frozen=True)
class Held:
    """A segment on the disk that could go, and its size in bytes."""

    key: str
    size: int


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


def excess(room: Room, *, max_bytes: int | None, min_free: int) -> tuple[int, str]:
    """Return how many bytes have to go and by which limit; (0, "") when none."""
    over_budget = room.used + room.reserve - max_bytes if max_bytes is not None else 0
    too_little_free = min_free + room.reserve - room.free
    if over_budget <= 0 and too_little_free <= 0:
        return 0, ""
    if over_budget >= too_little_free:
        return over_budget + int((max_bytes or 0) * SLACK_SHARE), "spool.max_bytes"
    return too_little_free + int(min_free * SLACK_SHARE), "spool.min_free"


def choose(by_camera: Mapping[str, Sequence[Held]], bytes_to_free: int) -> list[tuple[str, Held]]:
    """Return what goes: the oldest of the camera that owes most, again and again. Oldest come first."""
    owing = [(-sum(held.size for held in owed), camera) for camera, owed in by_camera.items() if owed]
    heapq.heapify(owing)
    position = dict.fromkeys(by_camera, 0)
    chosen: list[tuple[str, Held]] = []
    while bytes_to_free > 0 and owing:
        owed_negative, camera = heapq.heappop(owing)
        held = by_camera[camera][position[camera]]
        position[camera] += 1
        chosen.append((camera, held))
        bytes_to_free -= held.size
        if position[camera] < len(by_camera[camera]):
            heapq.heappush(owing, (owed_negative + held.size, camera))
    return chosen
