"""The disk budget: keeps the spool below its limits by dropping the oldest of what is owed, loudly.

Runs in the agent, on a thread of its own. What is counted are segments: owed, rejected, and, as a reserve of
one full segment per camera, those being written. Rejected ones go first: the cloud does not take them.
"""

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import structlog

from capture.claim import HostileNameError, claim
from capture.journal import Event
from capture.locks import exclusive
from capture.retention import Held, Room, choose, default_min_free, excess
from capture.segment import SegmentName, SessionName
from capture.settings import SpoolSettings
from capture.spool import REJECTED, Spool
from capture.upkeep import REJECTED_LOCK

TICK_SECONDS = 1.0
LOOK_AGAIN_SECONDS = 30.0

log = structlog.get_logger()


@dataclass
class _Index:
    """Sizes of the segments on the disk, so that a look at a large spool need not ask for each again."""

    sizes: dict[str, int]

    @property
    def used(self) -> int:
        return sum(self.sizes.values())

    @property
    def largest(self) -> int:
        return max(self.sizes.values(), default=0)


class Budget:
    """Enforces `spool.max_bytes` and `spool.min_free`."""

    def __init__(self, spool: Spool, settings: SpoolSettings, *, cameras: int) -> None:
        self._spool = spool
        self._settings = settings
        self._cameras = cameras
        self._index = _Index({})
        self._added = 0
        self._largest = 0
        self._looked_at = float("-inf")
        self._used_then = 0
        self._guard = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="budget", daemon=True)
        self.dropped = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(TICK_SECONDS)

    def add(self, size: int) -> None:
        """Note a segment that was just closed."""
        with self._guard:
            self._added += size
            self._largest = max(self._largest, size)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.enforce()
            except OSError as error:
                log.warning("budget_not_enforced", reason=error.strerror, then="tried again")
            except Exception:
                log.exception("budget_failed")
            self._stopping.wait(TICK_SECONDS)

    def enforce(self) -> int:
        """Drop what has to go; returns how many segments went."""
        room = self._room(used=self._estimate())
        if self._excess(room)[0] == 0 and not self._is_stale():
            return 0
        self._look()
        to_free, limit = self._excess(self._room(used=self._used_then))
        if to_free == 0:
            self._spool.keep_ballast()
            return 0
        dropped = self._drop(to_free, limit)
        self.dropped += dropped
        if dropped:
            log.error("segments_dropped", count=dropped, limit=limit, advice="make room, or mend the uplink")
        return dropped

    def _is_stale(self) -> bool:
        return self._spool.clock.monotonic() - self._looked_at > LOOK_AGAIN_SECONDS

    def _estimate(self) -> int:
        """Return what is used at most: what was there at the last look, and all that was added since."""
        with self._guard:
            return self._used_then + self._added

    def _room(self, *, used: int) -> Room:
        disk = os.statvfs(self._spool.root)
        with self._guard:
            reserve = self._cameras * max(self._largest, self._index.largest)
        return Room(used, disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize, reserve)

    def _excess(self, room: Room) -> tuple[int, str]:
        min_free = self._settings.min_free
        floor = default_min_free(room.total) if min_free is None else int(min_free)
        return excess(room, max_bytes=self._settings.max_bytes, min_free=floor)

    def _look(self) -> None:
        """Read the directories anew; sizes only of what was not known."""
        with self._guard:
            self._added = 0
        known = self._index.sizes
        self._index = _Index({key: known.get(key, size) for key, size in self._sizes(known)})
        self._used_then = self._index.used
        self._looked_at = self._spool.clock.monotonic()

    def _sizes(self, known: dict[str, int]) -> Iterator[tuple[str, int]]:
        for session in self._spool.sessions():
            for folder in ("", f"{REJECTED}/"):
                for segment in self._spool.segment_names(session, folder):
                    key = f"{session}/{folder}{segment}"
                    if key in known:
                        yield key, known[key]
                        continue
                    try:
                        yield key, (self._spool.root / key).lstat().st_size
                    except FileNotFoundError:
                        continue

    def _drop(self, to_free: int, limit: str) -> int:
        rejected = self._by_camera(rejected=True)
        chosen = choose(rejected, to_free)
        to_free -= sum(held.size for _, held in chosen)
        chosen += choose(self._by_camera(rejected=False), to_free)
        return sum(self._drop_one(camera, held, limit) for camera, held in chosen)

    def _by_camera(self, *, rejected: bool) -> dict[str, list[Held]]:
        found: dict[str, list[Held]] = {}
        for key, size in sorted(self._index.sizes.items()):
            session = SessionName.parse(key.partition("/")[0])
            if session is not None and (f"/{REJECTED}/" in key) == rejected:
                found.setdefault(session.camera, []).append(Held(key, size))
        return found

    def _drop_one(self, camera: str, held: Held, limit: str) -> bool:
        """Drop one segment, unless somebody is sending it just now."""
        session_text, _, rest = held.key.partition("/")
        session, segment = SessionName.parse(session_text), SegmentName.parse(rest.rpartition("/")[2])
        if session is None or segment is None:
            return False
        reason = f"no room: {limit}"
        if rest.startswith(REJECTED):
            return self._drop_rejected(camera, session, segment, reason)
        try:
            found = claim(self._spool, session, segment)
            if found is None:
                return False
            with found:
                found.dropped(reason=reason)
        except (HostileNameError, OSError) as error:  # this one cannot be taken: the next ones can
            log.warning("segment_not_dropped", segment=str(segment), reason=str(error))
            return False
        return True

    def _drop_rejected(self, camera: str, session: SessionName, segment: SegmentName, reason: str) -> bool:
        path = self._spool.session_path(session) / REJECTED / str(segment)
        fields: dict[str, object] = {"session": str(session), "segment": str(segment)}
        fields["reason"] = f"rejected; {reason}"
        with exclusive(self._spool.state / REJECTED_LOCK) as mine:
            if not mine or not path.exists():
                return False
            try:
                self._spool.journal_for_sure(camera, Event.DROPPED, fields)
                path.unlink()
                path.with_name(f"{segment}.json").unlink(missing_ok=True)
            except OSError as error:
                log.warning("segment_not_dropped", segment=str(segment), reason=error.strerror)
                return False
        return True
