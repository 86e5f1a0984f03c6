"""The order in which what is owed gets its messages: cameras in turn, oldest first within one.

A spool can owe very much, and most of a long outage nothing in it changes. So a large one is not listed at
each round: a shortlist of its oldest segments serves for some seconds, or until it is used up. What is on
the shortlist is looked at again before it is chosen; it is a hint like everything but the directories.
What cannot be opened is left out for a while, or it would take all the room that the list has.
"""

import os
import random
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import structlog

from capture.aside import Aside
from capture.claim import HostileNameError, claim
from capture.spool import Debt, Spool
from capture.upkeep import each_readable

SHORTLIST = 1024  # segments, of all cameras together
SHORTLIST_SECONDS = 10.0
PROBE_CHOICE = 3  # a probe is one of the oldest few of a camera
ASIDE_SECONDS = 60.0
ASIDE_SHARE = 16  # so many times a camera's room on the list may be left out
AGAIN_SHARE = 4  # one in so many of the list may have been left out before
QUIET_SECONDS = 600.0  # what was so within these is not said again

log = structlog.get_logger()


@dataclass(frozen=True)
class Picked:
    """A debt that gets a message, and its size in bytes."""

    debt: Debt
    size: int


def _every(_camera: str) -> bool:
    return True


def take_turns(by_camera: Mapping[str, Sequence[Debt]], after: str = "") -> Iterator[Debt]:
    """Yield all debts: cameras in turn, the first one behind `after`, oldest first within one."""
    names = sorted(by_camera)
    first = bisect_right(names, after)
    turns = zip_longest(*(by_camera[name] for name in names[first:] + names[:first]))
    return (debt for turn in turns for debt in turn if debt is not None)


class Shortlist:
    """The oldest debts of every camera. One for each process that recovers."""

    def __init__(self, spool: Spool, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._spool = spool
        self._monotonic = monotonic
        self._by_camera: dict[str, list[Debt]] = {}
        self._cut: set[str] = set()  # cameras that owe more than is listed here
        self._aside = defaultdict[str, Aside](self._new_aside)  # by camera: cannot be opened
        self._vain_at: dict[str, float] = {}  # by camera: when one last could not be opened
        self._room = SHORTLIST  # of each camera
        self._listed_at = float("-inf")
        self.listings = 0

    def pick(
        self,
        count: int,
        *,
        older_than: float,
        skip: Collection[str] = (),
        after: str = "",
        only: Callable[[str], bool] = _every,
    ) -> list[Picked]:
        """Choose up to `count` that nobody sends, written `older_than` seconds ago, and not in `skip`.

        `skip` holds keys, as `Debt.key` has them; `after` names the camera that had the last turn.
        `only` tells which cameras count.
        """
        self._refresh(skip)
        found: list[Picked] = []
        passed_over = {camera for camera in self._by_camera if not only(camera)}
        for debt in take_turns(self._by_camera, after):
            if len(found) == count:
                break
            if debt.camera in passed_over or debt.key in skip or self._is_aside(debt):
                continue
            picked, is_young = self._look(debt, older_than)
            if is_young:  # and what comes behind it is younger still
                passed_over.add(debt.camera)
            if picked is not None:
                found.append(picked)
        return found

    def pick_probe(self, *, older_than: float, only: Callable[[str], bool] = _every) -> list[Picked]:
        """Choose one at random among the oldest few of each camera: nobody may own every probe.

        Where none of them is to be had, the next few are asked, down to the end of the list.
        """
        self._refresh(())
        wanted = [debts for camera, debts in self._by_camera.items() if only(camera)]
        for first in range(0, max(map(len, wanted), default=0), PROBE_CHOICE):
            choice = [debt for debts in wanted for debt in debts[first : first + PROBE_CHOICE]]
            random.shuffle(choice)
            for debt in choice:
                picked, _ = (None, False) if self._is_aside(debt) else self._look(debt, older_than)
                if picked is not None:
                    return [picked]
        return []

    def _look(self, debt: Debt, older_than: float) -> tuple[Picked | None, bool]:
        """Return a debt with its size, None if it is not to be had; and whether it is too young.

        Its age is the time since it was written, not since it began: a name can lie in the future, where a
        file is read faster than real time. A negative age is a clock that was set back. A young one is not
        locked: a worker that comes with its message would take it for one that somebody sends.
        """
        try:
            written_at = self._spool.segment_path(debt.session, debt.segment).lstat().st_mtime
            if 0 <= self._spool.clock.time() - written_at < older_than:
                return None, True
            free = claim(self._spool, debt.session, debt.segment)
            if free is None:
                return None, False
            with free:
                picked = Picked(debt, free.size)
        except (FileNotFoundError, NotADirectoryError):
            return None, False
        except (HostileNameError, OSError) as error:
            self._leave_out(debt, error)
            return None, False
        self._aside[debt.camera].had(debt.session, debt.segment)
        return picked, False

    # --- what cannot be opened ---

    def _new_aside(self) -> Aside:
        return Aside(seconds=ASIDE_SECONDS, most=self._room * ASIDE_SHARE)

    def _is_aside(self, debt: Debt) -> bool:
        names = self._aside[debt.camera].names(debt.session)
        return bool(names) and str(debt.segment) in names

    def _leave_out(self, debt: Debt, error: Exception) -> None:
        now = self._monotonic()
        self._aside[debt.camera].put(debt.session, debt.segment, now=now)
        if now - self._vain_at.get(debt.camera, float("-inf")) >= QUIET_SECONDS:
            log.warning(
                "segments_not_readable",
                camera=debt.camera,
                session=str(debt.session),
                segment=str(debt.segment),
                reason=(error.strerror if isinstance(error, OSError) else None) or str(error),
                then="others go; it is tried again in a minute",
                advice="give the segments to the user that the workers run as, or move away what is none",
            )
        self._vain_at[debt.camera] = now

    # --- the list ---

    def _refresh(self, skip: Collection[str]) -> None:
        """List anew, unless the list of a large spool is young and every camera still has something on it."""
        is_young = 0 <= self._monotonic() - self._listed_at < SHORTLIST_SECONDS
        if self._cut and is_young:
            self._by_camera = {camera: self._still(debts) for camera, debts in self._by_camera.items()}
            if all(self._has_any(camera, skip) for camera in self._cut):
                return
        self._list(skip)

    def _has_any(self, camera: str, skip: Collection[str]) -> bool:
        return any(debt.key not in skip and not self._is_aside(debt) for debt in self._by_camera[camera])

    def _still(self, debts: Sequence[Debt]) -> list[Debt]:
        """Leave out what is gone from the head of a list: what goes, goes from there."""
        for position, debt in enumerate(debts):
            if os.path.lexists(self._spool.segment_path(debt.session, debt.segment)):
                return list(debts[position:])
        return []

    def _list(self, skip: Collection[str]) -> None:
        sessions = self._spool.sessions()
        cameras = {session.camera for session in sessions}
        self._room = max(PROBE_CHOICE, SHORTLIST // max(1, len(cameras)))
        shut = {session for session in sessions if self._aside[session.camera].shuts(session)}
        self._let_back(cameras)
        room = len(skip) + self._room
        self._by_camera = {camera: [] for camera in cameras}
        for session in each_readable(self._spool, sessions, self._spool.has_segments):
            debts = self._by_camera[session.camera]
            if len(debts) < room and session not in shut:
                left_out = self._aside[session.camera].names(session)
                first = self._spool.first_segments(session, room - len(debts), left_out)
                debts += [Debt(session, segment) for segment in first]
        self._cut = {camera for camera, debts in self._by_camera.items() if len(debts) >= room}
        self._listed_at = self._monotonic()
        self.listings += 1

    def _let_back(self, cameras: Collection[str]) -> None:
        for camera in self._aside.keys() - cameras:
            del self._aside[camera]
        for aside in self._aside.values():
            aside.let_back(max(1, self._room // AGAIN_SHARE), now=self._monotonic())
