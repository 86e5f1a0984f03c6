"""Which cameras run: starting them one after the other, and changing some while the others go on."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import structlog

from capture.camera import STOP_GRACE_SECONDS, Camera, CameraPlan

# A hundred at once would all come up late; like this the first ones capture at once.
STARTS_AT_ONCE = 4
_JOIN_SECONDS = STOP_GRACE_SECONDS + 1.0

log = structlog.get_logger()


@dataclass(frozen=True)
class Changes:
    """Which cameras a new set of plans adds, removes and starts anew; all others go on untouched."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    unchanged: tuple[str, ...]


def changes(old: Mapping[str, CameraPlan], new: Mapping[str, CameraPlan]) -> Changes:
    """Compare two sets of plans."""
    both = sorted(old.keys() & new.keys())
    return Changes(
        added=tuple(sorted(new.keys() - old.keys())),
        removed=tuple(sorted(old.keys() - new.keys())),
        changed=tuple(each for each in both if old[each] != new[each]),
        unchanged=tuple(each for each in both if old[each] == new[each]),
    )


class Roster:
    """The cameras of an agent. `attend` it several times a second, from the thread that made it.

    A camera that was changed starts only when its predecessor has ended: most cameras do not serve two.
    """

    def __init__(self, make: Callable[[CameraPlan], Camera], plans: Sequence[CameraPlan]) -> None:
        self._make = make
        self.cameras: Mapping[str, Camera] = {plan.id: make(plan) for plan in plans}
        self._waiting = list(self.cameras)
        self._started: set[str] = set()  # and not seen to have ended
        self._leaving: dict[str, list[Camera]] = {}
        self.former: set[str] = set()  # ids that were here once

    def attend(self) -> None:
        """Start some of those that wait for their turn or their predecessor; tell of those that gave up."""
        self._leaving = {
            each: alive
            for each, cameras in self._leaving.items()
            if (alive := [camera for camera in cameras if camera.is_alive()])
        }
        ready = [each for each in self._waiting if each not in self._leaving][:STARTS_AT_ONCE]
        for each in ready:
            self._waiting.remove(each)
            self.cameras[each].start()
            self._started.add(each)
        self._tell_of_ended()

    def _tell_of_ended(self) -> None:
        """Log why a camera among others was given up: the exit code says it only when all have ended."""
        ended = {each for each in self._started if not self.cameras[each].is_alive()}
        self._started -= ended
        for each in sorted(ended):
            error = self.cameras[each].status().error
            if error is not None and len(self.cameras) > 1:
                log.error("camera_given_up", camera=each, reason=str(error), then="the other cameras go on")

    def change(self, plans: Sequence[CameraPlan]) -> Changes:
        """Have these run from now on; returns at once."""
        old = {each: camera.plan for each, camera in self.cameras.items()}
        new = {plan.id: plan for plan in plans}
        found = changes(old, new)
        for each in (*found.removed, *found.changed):
            self._dismiss(each)
        fresh = {each: self._make(new[each]) for each in (*found.added, *found.changed)}
        # One assignment: others look at it from their threads.
        self.cameras = {each: fresh.get(each) or self.cameras[each] for each in new}
        self._waiting += fresh
        self.former |= set(found.removed)
        self.former -= set(new)
        return found

    def _dismiss(self, each: str) -> None:
        camera = self.cameras[each]
        self._started.discard(each)
        if each in self._waiting:
            self._waiting.remove(each)
            return
        camera.stop()
        self._leaving.setdefault(each, []).append(camera)

    def is_running(self) -> bool:
        return bool(self._waiting) or any(camera.is_alive() for camera in self._all())

    def _all(self) -> Iterator[Camera]:
        yield from self.cameras.values()
        for cameras in self._leaving.values():
            yield from cameras

    def stop(self) -> None:
        """Let every ffmpeg finish its segment; at most a few seconds."""
        self._waiting = []
        deadline = time.monotonic() + _JOIN_SECONDS
        cameras = [camera for camera in self._all() if camera.is_alive()]
        for camera in cameras:
            camera.stop()
        for camera in cameras:
            if not camera.join(max(0.0, deadline - time.monotonic())):
                log.error("camera_stuck", camera=camera.plan.id, then="its segment is salvaged later")
        self._tell_of_ended()
