"""What the agent's metrics show: from its cameras, its counts and the last look at the spool. Pure."""

import math
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from capture import __version__
from capture.camera import CameraStatus as Live
from capture.metrics_catalogue import (
    AGENT_COUNTERS,
    BROKER_UP,
    BUILD,
    CAMERA_STATE,
    CAMERAS,
    DISK_FREE,
    DISK_SIZE,
    DRAIN,
    FRAMES,
    FULL_IN,
    GAP_CAUSES,
    INGEST_FAILURES,
    INGEST_STATE,
    KEPT_REJECTED,
    LAST_DELIVERY,
    LAST_SEGMENT,
    LOOK_AGE,
    OLDEST_OWED,
    OWED,
    OWED_BYTES,
    QUEUE,
    READABLE,
    RESTARTS,
    SPOOL_BYTES,
    TIME,
)
from capture.metrics_text import CameraNames, Counts, Labels, Metric, Values
from capture.status import CameraStatus, Status
from capture.supervision import State

INGEST_STATES: Final = ("ok", "failing", "down", "refused", "unknown")

Row = tuple[Metric, Values]


@dataclass(frozen=True)
class Facts:
    """One look at the spool: when (monotonic seconds), and the bytes of what lies there, by kind."""

    status: Status
    spool_bytes: Mapping[str, int]
    looked_at: float


@dataclass(frozen=True)
class Moment:
    """What is known when a scrape comes. `facts` is None before the first look has ended.

    `wall` is seconds since 1970, `now` monotonic seconds; `cameras` the numbers of the configuration.
    """

    live: Sequence[Live]
    cameras: Mapping[str, int]
    facts: Facts | None
    is_readable: bool
    wall: float
    now: float
    names: CameraNames = field(default_factory=CameraNames)


def agent_rows(moment: Moment, counts: Counts) -> Iterator[Row]:
    """Yield every metric of the agent with its values."""
    yield BUILD, build_values("agent")
    yield TIME, {(): moment.wall}
    yield CAMERAS, {(setting,): float(number) for setting, number in moment.cameras.items()}
    yield from _counter_rows(moment, counts)
    yield from _live_rows(moment)
    if moment.facts is not None:
        since = max(0.0, moment.now - moment.facts.looked_at)
        yield READABLE, {(): float(moment.is_readable)}
        yield LOOK_AGE, {(): since}
        yield from _debt_rows(moment, moment.facts.status.cameras, since)
        yield from _room_rows(moment.facts)
        yield from _line_rows(moment.facts.status, since)
    elif not moment.is_readable:
        yield READABLE, {(): 0.0}


def build_values(component: str) -> Values:
    """Return the labels of the version that runs."""
    return {(component, platform.python_version(), __version__): 1.0}


def _counter_rows(moment: Moment, counts: Counts) -> Iterator[Row]:
    """Begin each counter of a camera at zero, so that its first event shows as an increase."""
    zero: Values = {(moment.names(camera.id),): 0.0 for camera in moment.live}
    for metric in AGENT_COUNTERS:
        yield metric, counts.of(metric) if metric is GAP_CAUSES else {**zero, **counts.of(metric)}


def _live_rows(moment: Moment) -> Iterator[Row]:
    live = moment.live
    states = ((camera.id, str(state), float(camera.state is state)) for camera in live for state in State)
    yield CAMERA_STATE, _added(((moment.names(camera), state), value) for camera, state, value in states)
    yield FRAMES, _by_camera(moment, ((camera.id, camera.frames) for camera in live))
    yield RESTARTS, _by_camera(moment, ((camera.id, camera.restarts) for camera in live))
    ages = ((camera.id, _segment_age(camera, moment)) for camera in live)
    yield LAST_SEGMENT, _by_camera(moment, ((camera, age) for camera, age in ages if age is not None), min)


def _segment_age(camera: Live, moment: Moment) -> float | None:
    """Return the age of a camera's newest segment, by the clock that nobody steps where that is known."""
    if camera.last_segment_at is not None:
        return max(0.0, moment.now - camera.last_segment_at)
    if moment.facts is None:
        return None
    found = (each for each in moment.facts.status.cameras if each.id == camera.id)
    age = next((each.newest_segment_age for each in found), None)
    return None if age is None else age + moment.now - moment.facts.looked_at


def _debt_rows(moment: Moment, cameras: Iterable[CameraStatus], since: float) -> Iterator[Row]:
    """Show the cameras of the spool, without those that are over and owe nothing."""
    shown = [each for each in cameras if each.configured or each.owed or each.rejected]
    yield OWED, _by_camera(moment, ((each.id, each.owed) for each in shown))
    yield OWED_BYTES, _by_camera(moment, ((each.id, each.owed_bytes) for each in shown))
    oldest = ((each.id, each.oldest_owed_age + since if each.oldest_owed_age else 0.0) for each in shown)
    yield OLDEST_OWED, _by_camera(moment, oldest, max)
    yield KEPT_REJECTED, _by_camera(moment, ((each.id, each.rejected) for each in shown))


def _room_rows(facts: Facts) -> Iterator[Row]:
    status = facts.status
    yield SPOOL_BYTES, {(what,): float(size) for what, size in facts.spool_bytes.items()}
    yield DISK_FREE, {(): float(status.free_bytes)}
    yield DISK_SIZE, {(): float(status.total_bytes)}
    yield (
        FULL_IN,
        {
            ("as_now",): _or_never(status.full_in_seconds),
            ("none",): _or_never(status.full_in_seconds_without_uploads),
        },
    )
    yield DRAIN, {(): _or_never(status.drain_seconds)}


def _line_rows(status: Status, since: float) -> Iterator[Row]:
    ingest, broker = status.ingest, status.broker
    yield INGEST_STATE, {(state,): float(state == ingest.state) for state in INGEST_STATES}
    yield INGEST_FAILURES, {(): float(ingest.failures_in_a_row)}
    last = ingest.last_delivered_age
    yield LAST_DELIVERY, {} if last is None else {(): last + since}
    yield BROKER_UP, {(): float(broker.reachable)}
    yield QUEUE, {(queue,): float(length) for queue, length in broker.queues.items()}


def _or_never(seconds: float | None) -> float:
    return math.inf if seconds is None else seconds


def _by_camera(
    moment: Moment,
    pairs: Iterable[tuple[str, float]],
    combine: Callable[[float, float], float] = lambda one, other: one + other,
) -> Values:
    """Return values by camera label; of those that share the label "other", what `combine` makes of them."""
    return _added((((moment.names(camera),), value) for camera, value in pairs), combine)


def _added(
    pairs: Iterable[tuple[Labels, float]],
    combine: Callable[[float, float], float] = lambda one, other: one + other,
) -> Values:
    found: dict[Labels, float] = {}
    for labels, value in pairs:
        found[labels] = combine(found[labels], value) if labels in found else float(value)
    return found
