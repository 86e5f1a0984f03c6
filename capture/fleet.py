"""All cameras of one agent: started a few at a time, exchanged one by one, stopped all at once.

Call it from one thread; `cameras` may be looked at from any. A camera's thread can hang where we cannot help
it, in a dead disk: nothing here waits for a single one.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import structlog

from capture.camera import NOT_RUNNING, SETTINGS_CHANGED, STOP_GRACE_SECONDS, Camera, CameraPlan
from capture.clock import Clock
from capture.limits import allow_open_files
from capture.supervision import State

# A hundred starts at once make each so slow that it looks like a camera that sends nothing.
TURN_SECONDS = 0.2
STARTS_PER_TURN = 3
MOST_STARTING = 16
STARTING_SECONDS = 5.0  # then it no longer holds up the others: a dead camera never gets any further
JOIN_SECONDS = STOP_GRACE_SECONDS + 1.0
LEAVING_SECONDS = STOP_GRACE_SECONDS + 2.0
# The golden section: however many take the next step of it, they lie apart as evenly as they can.
PHASE_STEP = 0.618033988749895

Make = Callable[[CameraPlan, str], Camera]

log = structlog.get_logger()


@dataclass(frozen=True)
class Changes:
    """Which cameras an exchange adds, removes and starts anew; all others go on untouched."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()


def changes(old: Mapping[str, CameraPlan], new: Mapping[str, CameraPlan]) -> Changes:
    """Compare what is captured with what is to be."""
    both = sorted(old.keys() & new.keys())
    return Changes(
        added=tuple(sorted(new.keys() - old.keys())),
        removed=tuple(sorted(old.keys() - new.keys())),
        changed=tuple(each for each in both if old[each] != new[each]),
        unchanged=tuple(each for each in both if old[each] == new[each]),
    )


def phase(slot: int) -> float:
    """Return the share of a segment by which the camera of a slot closes later than that of slot 0."""
    return (slot * PHASE_STEP) % 1.0


@dataclass
class Slots:
    """Who closes its segments when: each camera keeps its slot, a new one takes the first that is free.

    So that an added camera shifts nobody.
    """

    _taken: dict[str, int] = field(default_factory=dict)

    def phased(self, plans: Iterable[CameraPlan]) -> list[CameraPlan]:
        """Return the plans with a phase for each that shares the machine with others and has no end."""
        plans = list(plans)
        endless = [plan for plan in plans if not plan.source.is_finite]
        self._taken = {plan.id: self._taken[plan.id] for plan in endless if plan.id in self._taken}
        for plan in endless:
            if plan.id not in self._taken:
                used = set(self._taken.values())
                self._taken[plan.id] = next(slot for slot in range(len(used) + 1) if slot not in used)
        if len(endless) < 2:  # noqa: PLR2004 - with nobody to make way for
            return plans
        return [self._with_phase(plan) for plan in plans]

    def _with_phase(self, plan: CameraPlan) -> CameraPlan:
        if plan.id not in self._taken:
            return plan
        return replace(plan, options=replace(plan.options, phase=phase(self._taken[plan.id])))


@dataclass(frozen=True)
class _Leaver:
    camera: Camera
    until: float  # monotonic seconds; whoever is there longer hangs


class Fleet:
    """The cameras that are, those that wait for their turn, and those that are on their way out.

    `make` is given a plan and why the camera was away before. A camera that was changed starts only when
    its predecessor has ended, or hangs: most cameras do not serve two.
    """

    def __init__(self, plans: Iterable[CameraPlan], make: Make, *, clock: Clock | None = None) -> None:
        self._make = make
        self._clock = clock or Clock()
        self._slots = Slots()
        self._waiting: list[str] = []
        self._begun: dict[str, float] = {}  # monotonic seconds at which a camera's thread was started
        self._leavers: list[_Leaver] = []
        self._told: set[Camera] = set()
        self._turn_at = 0.0
        self._is_any_finite = False
        self._most = 0  # how many can run beside each other
        self.known: frozenset[str] = frozenset()  # also those that are gone
        self.cameras: Mapping[str, Camera] = {}  # exchanged as a whole, never changed
        self.exchange(plans)

    def exchange(self, plans: Iterable[CameraPlan]) -> Changes:
        """Make these the cameras; only those whose plan is another one are touched. Returns at once."""
        wanted = {plan.id: plan for plan in plans}
        found = changes({each: camera.plan for each, camera in self.cameras.items()}, wanted)
        self._most = allow_open_files(len(wanted))
        for each in (*found.removed, *found.changed):
            self._dismiss(each)
        phased = {plan.id: plan for plan in self._slots.phased(wanted.values())}
        new = {each: self._new(phased[each]) for each in (*found.added, *found.changed)}
        # One assignment: others look at it from their threads.
        self.cameras = {each: new[each] if each in new else self.cameras[each] for each in wanted}
        self._waiting = [each for each in self.cameras if each in new or each in self._waiting]
        self._is_any_finite = any(plan.source.is_finite for plan in wanted.values())
        self._told &= set(self.cameras.values())
        self.known |= wanted.keys()
        return found

    def _new(self, plan: CameraPlan) -> Camera:
        return self._make(plan, SETTINGS_CHANGED if plan.id in self.known else NOT_RUNNING)

    def _dismiss(self, camera_id: str) -> None:
        camera = self.cameras[camera_id]
        if self._begun.pop(camera_id, None) is not None:
            camera.stop()
            self._leavers.append(_Leaver(camera, self._clock.monotonic() + LEAVING_SECONDS))

    def attend(self) -> None:
        """Start those whose turn has come, and tell who is gone.

        Call it several times a second, or twice while all `is_steady`.
        """
        now = self._clock.monotonic()
        self._leavers = [each for each in self._leavers if self._is_leaving(each, now)]
        if self._waiting and now >= self._turn_at:
            self._turn_at = now + TURN_SECONDS
            for camera_id in self._whose_turn(now):
                self._start(camera_id, now)
        self._tell_of_failures()

    def _start(self, camera_id: str, now: float) -> None:
        camera = self.cameras[camera_id]
        try:
            camera.start()
        except RuntimeError as error:  # the system allows no more threads
            if camera not in self._told:
                log.error("camera_not_started", camera=camera_id, reason=str(error), then="tried again")
            self._told.add(camera)
            self._turn_at = now + STARTING_SECONDS
            return
        self._told.discard(camera)
        self._waiting.remove(camera_id)
        self._begun[camera_id] = now

    def _is_leaving(self, leaver: _Leaver, now: float) -> bool:
        if not leaver.camera.is_alive():
            return False
        if now >= leaver.until:
            log.error("camera_stuck", camera=leaver.camera.plan.id, then="its segment is salvaged later")
            return False
        return True

    def _whose_turn(self, now: float) -> list[str]:
        """Return the next ones: a few, fewer while many are starting, and none beside its predecessor."""
        leaving = {leaver.camera.plan.id for leaver in self._leavers}
        free = [each for each in self._waiting if each not in leaving]
        recent = [each for each, begun in self._begun.items() if now - begun < STARTING_SECONDS]
        starting = sum(self.cameras[each].status().state is State.STARTING for each in recent)
        alive = sum(self.cameras[each].is_alive() for each in self._begun) + len(self._leavers)
        return free[: max(0, min(STARTS_PER_TURN, MOST_STARTING - starting, self._most - alive))]

    def _tell_of_failures(self) -> None:
        """Log once that a camera among others is given up; of a single one the command's last word tells."""
        if len(self.cameras) == 1:
            return
        for each in self._begun:
            camera = self.cameras[each]
            if camera in self._told or camera.is_alive():
                continue
            self._told.add(camera)
            if (error := camera.status().error) is not None:
                log.error("camera_given_up", camera=each, reason=str(error), then="the other cameras go on")

    def is_running(self) -> bool:
        """Tell whether anybody captures, is about to, or is on the way out."""
        return bool(
            self._waiting or self._leavers or any(camera.is_alive() for camera in self.cameras.values())
        )

    def is_steady(self) -> bool:
        """Tell whether nobody waits for a turn, is on the way out, or captures what has an end."""
        return not (self._waiting or self._leavers or self._is_any_finite)

    def stop(self) -> None:
        """Let every ffmpeg finish its segment; at most a few seconds for all together."""
        deadline = self._clock.monotonic() + JOIN_SECONDS
        self._waiting = []
        everybody = [leaver.camera for leaver in self._leavers]
        everybody += [self.cameras[camera_id] for camera_id in self._begun]
        for camera in everybody:  # all are asked before one is waited for
            camera.stop()
        for camera in everybody:
            if not camera.join(max(0.0, deadline - self._clock.monotonic())):
                log.error("camera_stuck", camera=camera.plan.id, then="its segment is salvaged later")
        self._leavers = []
        self._tell_of_failures()
