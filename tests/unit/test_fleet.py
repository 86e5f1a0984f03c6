"""Many cameras together: whose turn it is, who closes when, and who is touched by an exchange."""

from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from capture.camera import NOT_RUNNING, SETTINGS_CHANGED, CameraPlan, CameraStatus
from capture.errors import SourceError
from capture.ffmpeg import CaptureOptions, capture_command
from capture.fleet import (
    JOIN_SECONDS,
    LEAVING_SECONDS,
    MOST_STARTING,
    STARTING_SECONDS,
    STARTS_PER_TURN,
    TURN_SECONDS,
    Changes,
    Fleet,
    Slots,
    changes,
    phase,
)
from capture.source import parse_source
from capture.supervision import State

SEGMENT = 2.0


def plan(camera, source="test:", **options):
    return CameraPlan(camera, camera, parse_source(source), CaptureOptions(SEGMENT, **options))


def plans(*cameras, **options):
    return {camera: plan(camera, **options) for camera in cameras}


class Stub:
    """A camera that starts and ends when it is told to."""

    def __init__(self, plan, away, clock):
        self.plan = plan
        self.away = away
        self.state = State.STARTING
        self.alive = False
        self.asked = False
        self.started_at = None
        self.error = None
        self._clock = clock

    def start(self):
        self.alive, self.started_at = True, self._clock.monotonic()

    def stop(self):
        self.asked = True

    def join(self, timeout):
        if self.alive:
            self._clock.step(timeout)
        return not self.alive

    def is_alive(self):
        return self.alive

    def end(self, error=None):
        self.alive, self.error = False, error
        self.state = State.FATAL if error else State.STOPPED

    def status(self):
        others = dict.fromkeys(each.name for each in fields(CameraStatus))
        return CameraStatus(**{**others, "id": self.plan.id, "state": self.state, "error": self.error})


@pytest.fixture
def made():
    """Every camera that was made, in order."""
    return []


@pytest.fixture
def fleet(clock, made):
    def make(plan, away):
        made.append(Stub(plan, away, clock))
        return made[-1]

    return lambda found: Fleet(found.values(), make, clock=clock)


def go(fleet, clock, seconds):
    for _ in range(round(seconds / TURN_SECONDS)):
        fleet.attend()
        clock.step(TURN_SECONDS)


# --- who closes when -------------------------------------------------------------------------------


@given(st.integers(2, 100), st.floats(0, 1))
def test_however_many_cameras_there_are_no_tenth_of_a_segment_sees_many_more_than_its_share(count, begin):
    within = sum((phase(slot) - begin) % 1.0 < 0.1 for slot in range(count))
    assert within <= 0.1 * count + 2.5


@given(st.integers(2, 100))
def test_no_two_of_a_few_cameras_close_together(count):
    moments = sorted(phase(slot) for slot in range(count))
    apart = [late - early for early, late in pairwise([*moments, moments[0] + 1])]
    assert min(apart) > 0.3 / count


def test_a_camera_alone_has_its_borders_after_its_first_frame():
    assert [each.options.phase for each in Slots().phased([plan("a")])] == [None]


def test_a_source_that_ends_is_not_staggered_and_makes_nobody_wait():
    both = [plan("a"), plan("b", "test:64x36@5,3s"), plan("c", "clip.mp4")]
    assert [each.options.phase for each in Slots().phased(both)] == [None] * 3


def test_who_is_added_shifts_nobody_and_who_is_removed_leaves_room():
    slots = Slots()
    before = {each.id: each.options.phase for each in slots.phased(plans("a", "b", "c").values())}
    after = {each.id: each.options.phase for each in slots.phased(plans("new", "c", "a", "b").values())}
    assert {camera: after[camera] for camera in before} == before
    assert after["new"] == phase(3)
    last = {each.id: each.options.phase for each in slots.phased(plans("c", "next", "a").values())}
    assert (last["a"], last["c"], last["next"]) == (before["a"], before["c"], before["b"])


@given(st.floats(0, 1e6), st.floats(0, 0.999), st.floats(0.5, 600))
def test_borders_keep_their_place_on_the_clock_whenever_capture_begins(now, share, seconds):
    options = CaptureOptions(seconds, phase=share)
    ahead = options.ahead(now)
    assert 0 <= ahead <= seconds + 0.001
    behind = (now - ahead - share * seconds) % seconds
    assert min(behind, seconds - behind) < 0.002


@pytest.mark.parametrize(
    ("source", "delta", "frames"),
    [
        ("rtsp://cam/x", "2", None),
        (
            "test:",
            "1.501",
            "expr:if(isnan(prev_forced_t),1,gt(floor((t+1.501)/10),floor((prev_forced_t+1.501)/10)))",
        ),
    ],
)
def test_what_comes_sooner_is_taken_from_every_border_of_the_muxer_and_of_the_encoder(source, delta, frames):
    options = CaptureOptions(10, phase=0.25)
    made = capture_command(
        "ffmpeg", parse_source(source), options, open_dir=Path("/open"), first_sequence=1, now=1234.0
    )
    assert made.argv[made.argv.index("-segment_time_delta") + 1] == delta
    assert ("-force_key_frames" in made.argv) is (frames is not None)
    assert frames in (None, made.argv[made.argv.index("-force_key_frames") + 1] if frames else None)


# --- starts ----------------------------------------------------------------------------------------


def test_the_first_cameras_start_at_once_and_the_others_follow_a_few_at_a_time(fleet, clock, made):
    found = fleet(plans(*(f"c{number:03}" for number in range(100))))
    fleet_began = clock.monotonic()
    while found._waiting:
        found.attend()
        for camera in made:
            if camera.alive and clock.monotonic() - camera.started_at >= 1.0:
                camera.state = State.RUNNING
        clock.step(TURN_SECONDS)
    starts = [camera.started_at - fleet_began for camera in made]
    assert starts == sorted(starts)
    assert starts[STARTS_PER_TURN - 1] == 0.0
    assert max(starts.count(moment) for moment in starts) == STARTS_PER_TURN
    assert starts[-1] < 10


def test_dead_cameras_hold_up_the_others_for_a_while_and_not_for_ever(fleet, clock, made):
    found = fleet(plans(*(f"c{number:03}" for number in range(40))))
    go(found, clock, STARTING_SECONDS - 1)
    assert sum(camera.alive for camera in made) == MOST_STARTING
    go(found, clock, 2 * STARTING_SECONDS + 2)
    assert all(camera.alive for camera in made)


def test_a_thread_that_the_system_refuses_is_tried_again_and_told_once(fleet, clock, made):
    found = fleet(plans("a", "b"))
    allowed = made[0].start

    def refuse():
        raise RuntimeError("can't start new thread")

    made[0].start = refuse
    with capture_logs() as said:
        go(found, clock, 12)
    assert [entry["event"] for entry in said] == ["camera_not_started"]
    assert made[1].alive
    made[0].start = allowed
    go(found, clock, 6)
    assert made[0].alive


def test_with_too_few_descriptors_only_as_many_run_as_can_and_the_next_when_one_ends(fleet, clock, made):
    found = fleet(plans("a", "b", "c"))
    found._most = 2
    go(found, clock, 3 * STARTING_SECONDS)
    assert [camera.alive for camera in made] == [True, True, False]
    made[0].end()
    go(found, clock, 1)
    assert [camera.alive for camera in made] == [False, True, True]


# --- exchange --------------------------------------------------------------------------------------


def test_only_what_is_asked_for_makes_a_difference():
    before = plans("same", "phase", "source", "name", "gone")
    after = {
        **plans("same", "new"),
        "phase": plan("phase", phase=0.5),
        "source": plan("source", "test:64x36@5"),
        "name": replace(plan("name"), name="North gate"),
    }
    found = changes(before, after)
    assert found == Changes(("new",), ("gone",), ("name", "source"), ("phase", "same"))


def test_an_exchange_touches_nobody_whose_plan_is_the_same(fleet, clock, made):
    found = fleet(plans("a", "b", "c"))
    go(found, clock, 1)
    a, b, c = made
    found.exchange({"a": plan("a"), "b": plan("b", fps=5), "d": plan("d")}.values())
    go(found, clock, 1)
    assert found.cameras["a"] is a
    assert (a.asked, b.asked, c.asked) == (False, True, True)
    assert found.cameras["d"].alive
    assert not found.cameras["b"].alive, "its predecessor is still there"
    b.end()
    go(found, clock, 1)
    assert found.cameras["b"].alive
    assert found.cameras["b"].plan.options.fps == 5
    away = {camera: each.away for camera, each in found.cameras.items()}
    assert away == {"a": NOT_RUNNING, "b": SETTINGS_CHANGED, "d": NOT_RUNNING}


def test_exchanges_in_a_hurry_leave_the_last_one(fleet, clock, made):
    found = fleet(plans("a", "b"))
    go(found, clock, 1)
    old = found.cameras["b"]
    for fps in (1, 2, 3):
        found.exchange({"a": plan("a"), "b": plan("b", fps=fps)}.values())
        found.attend()
    old.end()
    go(found, clock, 1)
    assert [camera.plan.options.fps for camera in made if camera.plan.id == "b" and camera.alive] == [3]


def test_a_camera_that_hangs_is_replaced_after_a_while_and_told_of(fleet, clock, made):
    found = fleet(plans("a", "b"))
    go(found, clock, 1)
    with capture_logs() as said:
        found.exchange({"a": plan("a"), "b": plan("b", fps=5)}.values())
        go(found, clock, LEAVING_SECONDS + 1)
    assert made[1].alive
    assert found.cameras["b"].alive
    assert [(entry["event"], entry["camera"]) for entry in said] == [("camera_stuck", "b")]


def test_a_camera_that_was_removed_is_waited_for(fleet, clock, made):
    found = fleet(plans("a", "b"))
    go(found, clock, 1)
    found.exchange(plans("a").values())
    made[0].end()
    assert found.is_running()
    made[1].end()
    found.attend()
    assert not found.is_running()


def test_a_camera_that_hangs_while_it_leaves_does_not_keep_the_run_from_ending(fleet, clock, made):
    found = fleet(plans("a", "b"))
    go(found, clock, 1)
    found.exchange(plans("a").values())
    made[0].end()
    with capture_logs() as said:
        go(found, clock, LEAVING_SECONDS + 1)
    assert made[1].alive
    assert not found.is_running()
    assert [entry["event"] for entry in said] == ["camera_stuck"]


# --- the end ---------------------------------------------------------------------------------------


def test_a_stop_asks_all_before_it_waits_and_is_bounded_as_a_whole(fleet, clock, made):
    found = fleet(plans(*(f"c{number:03}" for number in range(30))))
    go(found, clock, 2)
    begun = sum(camera.alive for camera in made)
    asked_first = []
    made[0].join = lambda _timeout: asked_first.extend(camera.asked for camera in made) or False
    now = clock.monotonic()
    with capture_logs() as said:
        found.stop()
    assert sum(asked_first) == begun
    assert clock.monotonic() - now == pytest.approx(JOIN_SECONDS)
    assert [entry["event"] for entry in said] == ["camera_stuck"] * begun
    found.attend()
    assert sum(camera.alive for camera in made) == begun, "nobody is started after the stop"


def test_a_camera_that_is_given_up_among_others_is_told_once_and_ends_nothing(fleet, clock, made):
    found = fleet(plans("a", "b"))
    go(found, clock, 1)
    made[0].end(SourceError("no such file"))
    with capture_logs() as said:
        go(found, clock, 1)
    assert [(entry["event"], entry["camera"], entry["reason"]) for entry in said] == [
        ("camera_given_up", "a", "no such file")
    ]
    assert found.is_running()


def test_a_fleet_is_steady_once_all_that_have_no_end_run(fleet, clock, made):
    found = fleet(plans("a", "b", "c", "d"))
    assert not found.is_steady()
    go(found, clock, 1)
    assert found.is_steady()
    found.exchange(plans("a", "b").values())
    assert not found.is_steady()  # two are on the way out
    for camera in made[2:]:
        camera.end()
    go(found, clock, 1)
    assert found.is_steady()


def test_a_fleet_with_a_camera_that_has_an_end_is_never_steady(fleet, clock):
    found = fleet(plans("a") | {"b": plan("b", "test:320x240@25,30s")})
    go(found, clock, 1)
    assert not found.is_steady()
