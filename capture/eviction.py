"""Dropping segments to make room: rejected ones first, then the oldest of the camera that owes most."""

import contextlib
from collections import defaultdict, deque
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import structlog

from capture.aside import Aside
from capture.claim import Claim, HostileNameError, claim
from capture.holdings import FOLDERS, Holdings
from capture.journal import Event
from capture.locks import exclusive
from capture.retention import owes_most
from capture.segment import SegmentName, SessionName
from capture.spool import REJECTED, Spool
from capture.upkeep import REJECTED_LOCK, SHARE_A_SYNC

ASIDE_SECONDS = 600.0
ASIDE_MOST = 1024  # of a camera
LISTED_SHARE = 100  # a listing of the oldest hands out one in so many: its cost per segment stays flat

log = structlog.get_logger()


@dataclass(frozen=True)
class Victim:
    """A segment that is to go, and its size in bytes."""

    session: SessionName
    segment: SegmentName
    size: int


@dataclass
class _Round:
    """What was tried in vain since the round began, and is not tried again; what is being tried, too."""

    inodes: bool = False  # make room in inodes, not in bytes
    tried: dict[SessionName, set[str]] = field(default_factory=dict)
    kept: list[tuple[str, Victim]] = field(default_factory=list)  # place and segment: next time
    stuck: set[str] = field(default_factory=set)  # cameras whose journal cannot be written
    count: int = 0
    freed: int = 0

    def gain(self, victim: Victim, place: str) -> int:
        """Return what a segment frees: its bytes, or its inode and that of the answer beside it."""
        if self.inodes:
            return 2 if place == REJECTED else 1
        return victim.size


class Eviction:
    """Drops segments, and remembers whose turn it is, and for some minutes which cannot be removed."""

    def __init__(self, spool: Spool, holdings: Holdings) -> None:
        self._spool = spool
        self._holdings = holdings
        self._next: dict[tuple[str, str], deque[Victim]] = {}
        self._aside = defaultdict[str, Aside](lambda: Aside(seconds=ASIDE_SECONDS, most=ASIDE_MOST))

    def free(self, to_free: int, *, reason: str, seconds: float, inodes: bool = False) -> tuple[int, int]:
        """Drop until so many bytes (or inodes) are free or nothing is left; return how many, and the gain.

        Begins no further batch after `seconds`.
        """
        round_ = _Round(inodes)
        now = self._spool.clock.monotonic()
        until = now + seconds
        for aside in self._aside.values():
            aside.let_back(ASIDE_MOST, now=now)
        for place in FOLDERS:
            while round_.freed < to_free:
                victims = self._choose(place, to_free - round_.freed, round_)
                if not victims:
                    break
                if place != REJECTED:
                    self._drop_owed(victims, reason, round_)
                elif not self._drop_rejected(victims, reason, round_):
                    break
                if self._spool.clock.monotonic() > until:
                    return self._end(round_)
        return self._end(round_)

    def _end(self, round_: _Round) -> tuple[int, int]:
        for place, victim in sorted(round_.kept, key=_age, reverse=True):  # the oldest stay the oldest
            self._queue(victim.session.camera, place).appendleft(victim)
        return round_.count, round_.freed

    def keep_lock(self) -> None:
        """Have the lock on what was rejected made while there is an inode for it."""
        with contextlib.suppress(OSError):
            (self._spool.state / REJECTED_LOCK).touch(0o640, exist_ok=False)

    # --- whose turn it is ---

    def _queue(self, camera: str, place: str) -> deque[Victim]:
        return self._next.setdefault((camera, place), deque())

    def _choose(self, place: str, to_free: int, round_: _Round) -> list[Victim]:
        owed = self._holdings.by_camera(place)
        for stuck in round_.stuck & owed.keys():
            del owed[stuck]
        chosen: list[Victim] = []
        while to_free > 0 and len(chosen) < SHARE_A_SYNC and (camera := owes_most(owed)) is not None:
            victim = self._oldest(camera, place, round_)
            if victim is None:
                del owed[camera]
                continue
            round_.tried.setdefault(victim.session, set()).add(str(victim.segment))
            chosen.append(victim)
            owed[camera] -= victim.size
            to_free -= round_.gain(victim, place)
        return chosen

    def _oldest(self, camera: str, place: str, round_: _Round) -> Victim | None:
        queue = self._queue(camera, place)
        while True:
            if not queue:
                queue.extend(self._list_oldest(camera, place, round_))
            if not queue:
                return None
            victim = queue.popleft()
            if str(victim.segment) not in self._left_out(victim.session, round_):
                return victim

    def _list_oldest(self, camera: str, place: str, round_: _Round) -> list[Victim]:
        for session, sizes in self._holdings.sessions(camera, place):
            count = max(SHARE_A_SYNC, sizes.count // LISTED_SHARE)
            if self._aside[camera].shuts(session):
                continue
            try:
                names = self._spool.first_segments(session, count, self._left_out(session, round_), place)
            except OSError as error:  # this one cannot be read: the next ones can
                log.warning("session_not_read", camera=camera, session=str(session), reason=error.strerror)
                continue
            if found := [victim for name in names if (victim := self._victim(session, name, place))]:
                return found
        return []

    def _left_out(self, session: SessionName, round_: _Round) -> Collection[str]:
        tried, aside = round_.tried.get(session, set()), self._aside[session.camera].names(session)
        return tried.union(aside) if aside else tried

    def _victim(self, session: SessionName, name: SegmentName, place: str) -> Victim | None:
        size = self._holdings.sizes(session, place).get(name.sequence)
        if size is None:
            try:
                size = (self._spool.session_path(session) / place / str(name)).lstat().st_size
            except OSError:
                return None
        return Victim(session, name, size)

    # --- dropping ---

    def _drop_owed(self, victims: Sequence[Victim], reason: str, round_: _Round) -> None:
        """Drop several with one sync of each camera's journal; who is being sent just now stays."""
        with ExitStack() as held:
            claims: dict[str, list[tuple[Victim, Claim]]] = {}
            for victim in victims:
                found = self._claim(victim, round_)
                if found is not None:
                    held.enter_context(found)
                    claims.setdefault(victim.session.camera, []).append((victim, found))
            for mine in claims.values():
                fields = [{**_names(victim), "bytes": found.size, "reason": reason} for victim, found in mine]
                self._finish([victim for victim, _ in mine], "", fields, round_)

    def _claim(self, victim: Victim, round_: _Round) -> Claim | None:
        path = self._spool.segment_path(victim.session, victim.segment)
        try:
            found = claim(self._spool, victim.session, victim.segment)
            if found is None:
                if path.exists():
                    round_.kept.append(("", victim))
                else:
                    self._holdings.sizes(victim.session, "").forget(victim.segment.sequence)
                return None
            if found.size:
                return found
            with found:
                found.finish_delivered()
            round_.freed += int(round_.inodes)
        except (HostileNameError, OSError) as error:  # this one cannot be taken: the next ones can
            self._not_dropped(victim, str(error))
        return None

    def _drop_rejected(self, victims: Sequence[Victim], reason: str, round_: _Round) -> bool:
        """Drop several; False while somebody sweeps or requeues: they are gone in a moment, or are owed."""
        self.keep_lock()
        if not (self._spool.state / REJECTED_LOCK).exists():  # no inode even for that: owed ones need none
            round_.kept += [(REJECTED, victim) for victim in victims]
            return False
        with exclusive(self._spool.state / REJECTED_LOCK) as mine:
            if not mine:
                round_.kept += [(REJECTED, victim) for victim in victims]
                return False
            by_camera: dict[str, list[Victim]] = {}
            for victim in victims:
                path = self._spool.session_path(victim.session) / REJECTED / str(victim.segment)
                if path.exists():
                    by_camera.setdefault(victim.session.camera, []).append(victim)
                else:
                    self._holdings.sizes(victim.session, REJECTED).forget(victim.segment.sequence)
            for found in by_camera.values():
                fields = [{**_names(victim), "reason": f"rejected; {reason}"} for victim in found]
                self._finish(found, REJECTED, fields, round_)
        return True

    def _finish(
        self, victims: Sequence[Victim], place: str, lines: Sequence[dict[str, object]], round_: _Round
    ) -> None:
        """Journal what goes from one camera, then remove it; nothing goes without its line."""
        camera = victims[0].session.camera
        try:
            self._spool.journal_for_sure(camera, Event.DROPPED, *lines)
        except OSError as error:  # others' can be written
            log.warning("segments_not_dropped", camera=camera, reason=error.strerror)
            round_.stuck.add(camera)
            round_.kept += [(place, victim) for victim in victims]
            return
        self._unlink(victims, place, round_)

    def _unlink(self, victims: Sequence[Victim], place: str, round_: _Round) -> None:
        for victim in victims:
            path = self._spool.session_path(victim.session) / place / str(victim.segment)
            try:
                path.unlink()
            except OSError as error:
                self._not_dropped(victim, error.strerror)
                continue
            if place == REJECTED:
                with contextlib.suppress(OSError):
                    path.with_name(f"{path.name}.json").unlink(missing_ok=True)
            self._holdings.sizes(victim.session, place).forget(victim.segment.sequence)
            round_.tried[victim.session].discard(str(victim.segment))
            round_.count += 1
            round_.freed += round_.gain(victim, place)

    def _not_dropped(self, victim: Victim, reason: str | None) -> None:
        """Leave it out for a while: each further try would cost a line, on a disk that is full."""
        session, segment = victim.session, str(victim.segment)
        self._aside[session.camera].put(session, victim.segment, now=self._spool.clock.monotonic())
        log.warning(
            "segment_not_dropped", camera=session.camera, session=str(session), segment=segment, reason=reason
        )


def _names(victim: Victim) -> dict[str, object]:
    return {"session": str(victim.session), "segment": str(victim.segment)}


def _age(kept: tuple[str, Victim]) -> tuple[str, int]:
    return kept[1].session.id, kept[1].segment.sequence
