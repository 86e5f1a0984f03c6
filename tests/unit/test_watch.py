"""What is seen of a run of ffmpeg, and when it is looked for; the file is real, the clock is stepped."""

import math
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import pairwise

import pytest
import structlog

from capture.ffmpeg import CaptureOptions, Progress, SegmentClosed
from capture.recorder import Recorder
from capture.source import parse_source
from capture.supervision import LARGEST_DRIFT, TOLERATED_DRIFT
from capture.watch import LOOK_SECONDS, Watch
from tests.conftest import SteppedClock, start_session
from tests.transport import stream

SMALL, LARGE = (320, 180), (1920, 1080)


class Stage:
    """A watch whose ffmpeg is the test."""

    def __init__(self, spool):
        self.clock = SteppedClock()
        self.seen = []
        self.owed = []
        self.wall_begun = self.clock.now()
        self.recorder = Recorder(
            "door",
            spool=spool,
            start=lambda: start_session(spool),
            on_owed=lambda _, owed: self.owed.append(owed.segment),
            on_session=lambda *_: None,
        )
        self.session, number = self.recorder.begin()
        self.path = self.session.open_path(number)
        self.watch = Watch(
            parse_source("rtsp://cam.example/live"),
            CaptureOptions(segment_seconds=10.0),
            recorder=self.recorder,
            tries=0,
            tolerated_drift=TOLERATED_DRIFT,
            clock=self.clock,
            log=structlog.get_logger(),
            on_frame=lambda: self.seen.append(self.clock.monotonic()),
        )

    def pass_time(self, seconds):
        """Let so many seconds pass, and have ffmpeg say that it went well in them."""
        self.clock.step(seconds)
        at = self.clock.monotonic() - self.watch.begun
        self.watch.hear()
        self.watch.take(Progress(frames=100 + int(at * 10), out_time=at))

    def ask_after(self, *moments):
        """Ask at these seconds since the beginning; return what was wrong at each."""
        found = []
        for moment in moments:
            self.pass_time(moment - (self.clock.monotonic() - self.watch.begun))
            found.append(self.watch.tick())
        return found


@pytest.fixture
def stage(spool):
    return Stage(spool)


def test_a_first_frame_is_seen_in_the_file_before_ffmpeg_reports_it(stage):
    assert (stage.watch.tick(), stage.seen, stage.watch.frames) == (None, [], 0)
    stage.path.write_bytes(stream(SMALL))
    stage.clock.step(0.5)
    assert stage.watch.tick() is None
    assert (stage.seen, stage.watch.frames) == ([stage.clock.monotonic()], 1)
    stage.watch.take(Progress(frames=30))
    assert stage.watch.frames == 30


def test_the_file_is_looked_into_every_few_seconds_and_not_at_each_report(stage):
    stage.path.write_bytes(stream(SMALL))
    stage.watch.tick()
    stage.path.write_bytes(stream(SMALL, LARGE))
    *before, then = stage.ask_after(1.0, LOOK_SECONDS - 0.5, LOOK_SECONDS)
    assert before == [None, None]
    assert then == "the picture changed from h264 320x180 to h264 1920x1080"


def test_a_key_frame_that_came_since_the_last_look_is_found_before_anything_is_called_wrong(stage):
    stage.path.write_bytes(stream(SMALL, SMALL))
    stage.watch.tick()
    stage.path.write_bytes(stream(*[SMALL] * 3))
    # The third stands 0.9 s before the end of what is there at 4 s: the next is waited for until 15.1 s.
    assert stage.ask_after(4.0, 8.0, 12.0, 15.0) == [None] * 4
    stage.path.write_bytes(stream(*[SMALL] * 4))
    assert stage.ask_after(15.5) == [None]
    assert stage.ask_after(19.5, 23.5, 26.5, 27.0) == [None, None, None, "no key frame"]


FRAME = 0.1  # seconds of each in what follows, unless it says otherwise


@dataclass(frozen=True)
class Played:
    """A frame: when it came (seconds since the run began), and its time in the stream."""

    came: float
    time: float
    seconds: float = FRAME


def steadily(first, last, *, time=None, speed=1.0, each=FRAME):
    """Return the frames that come one by one from `first` until before `last`, with times from `time` on."""
    time = first if time is None else time
    count = round((last - first) / each)
    return [Played(first + place * each, time + place * each * speed, each * speed) for place in range(count)]


def play(stage, frames, *, borders=(), ended, phase=0.0, step_at=None, out_time=lambda time: time):
    """Have the watch hear of these frames and of segments cut at `borders`; return these as they were named.

    ffmpeg reports every second, `phase` after the full ones. It closes a segment with the frame that begins
    the next, and the last one `ended`. `step_at`: when the wall clock is set, and by how many seconds.
    `out_time` is what a report makes of how far the pictures are.
    """
    heard = [(each, "report") for each in (k + phase for k in range(math.ceil(ended))) if each < ended]
    closings, start = [], frames[0].time
    for border in (*borders, math.inf):
        inside = [each for each in frames if start <= each.time < border]
        after = [each for each in frames if each.time >= border]
        closings.append((after[0].came if after else ended, start, inside[-1].time + inside[-1].seconds))
        start = after[0].time if after else math.inf
    heard += [(at, (start, end)) for at, start, end in closings]
    heard += [(step_at[0], "step")] if step_at else []
    for at, what in sorted(heard, key=lambda each: each[0]):
        stage.clock.step(stage.watch.begun + at - stage.clock.monotonic())
        so_far = [each for each in frames if each.came <= at]
        if what == "step":
            stage.clock.moment += timedelta(seconds=step_at[1])
        elif what == "report":
            far = out_time(so_far[-1].time + so_far[-1].seconds) if so_far else None
            stage.watch.take(Progress(frames=len(so_far), out_time=far))
        else:
            number = len(stage.owed) + 1
            stage.session.open_path(number).write_bytes(stream(SMALL))
            stage.watch.take(SegmentClosed(number, *what))
    assert len(stage.owed) == len(closings)
    return stage.owed


def seconds(stage, moment):
    """Return a moment of the wall clock as seconds since the run began."""
    return (moment - stage.wall_begun).total_seconds()


PHASES = [0.05, 0.35, 0.65, 0.95]


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("silence", [0.3, 1.1, 1.9, 2.1, 2.5, 3.0, 4.0, 9.0])
def test_a_silence_before_the_end_of_a_connection_moves_no_segment(stage, silence, phase):
    frames = steadily(0.0, 6.7)
    *_, before, last = play(stage, frames, borders=(3.0, 6.0), ended=6.6 + silence, phase=phase)
    assert last.start == before.end
    assert seconds(stage, last.end) == pytest.approx(6.7, abs=2 * FRAME)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("silence", [1.5, 2.1, 2.5, 3.0, 4.0, 9.0])
def test_an_only_segment_ends_before_the_silence(stage, silence, phase):
    (only,) = play(stage, steadily(0.0, 4.7), ended=4.6 + silence, phase=phase)
    assert seconds(stage, only.end) == pytest.approx(4.7, abs=2 * FRAME)


def test_an_ffmpeg_that_stands_still_before_its_first_report_moves_no_segment(stage):
    stage.path.write_bytes(stream(SMALL))
    stage.clock.step(0.3)
    stage.watch.tick()
    stage.clock.step(0.7)
    stage.watch.take(SegmentClosed(1, 0.0, 1.0))
    stage.clock.step(10.0)
    stage.session.open_path(2).write_bytes(stream(SMALL))
    stage.watch.take(SegmentClosed(2, 1.0, 1.2))
    before, last = stage.owed
    assert seconds(stage, before.start) == pytest.approx(0.0)
    assert last.start == before.end


@pytest.mark.parametrize("segments", [1, 2])
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(
    ("out_time", "off"),
    [
        (lambda time: time - 0.3, 0.5),  # frames are decoded before they are shown
        (lambda time: min(time, 2.0), 1.0),  # its sound ended then
        (lambda _: None, 1.0),
    ],
    ids=["b-frames", "sound-that-ended", "no-times"],
)
def test_a_silence_is_found_where_the_reports_know_less(stage, out_time, off, phase, segments):
    borders = (3.0,)[: segments - 1]
    *_, last = play(
        stage, steadily(0.0, 4.7), borders=borders, ended=4.6 + 3.0, phase=phase, out_time=out_time
    )
    assert seconds(stage, last.end) == pytest.approx(4.7, abs=2 * FRAME if segments == 2 else off)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("gone", [True, False], ids=["times-go-on", "times-stand"])
def test_a_silence_in_the_middle_moves_nothing_that_came_after_it(stage, gone, phase):
    again = 4.6 + 3.0
    frames = steadily(0.0, 4.6) + steadily(again, 16.6, time=again if gone else 4.6)
    borders = (3.0, 9.0, 12.0) if gone else (3.0, 6.0, 9.0)
    found = play(stage, frames, borders=borders, ended=16.6, phase=phase)
    assert all(after.start >= before.end for before, after in pairwise(found))
    came = [0.0, 3.0, 9.0, 12.0]
    # What the silence is in is placed by its start or its end, which of them is a matter of when it was cut.
    for segment, at in [(found[0], came[0]), *zip(found[2:], came[2:], strict=True)]:
        assert seconds(stage, segment.start) == pytest.approx(at, abs=2 * FRAME)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("each", [0.04, 0.5, 1.2, 2.5], ids=lambda each: f"{1 / each:g}-a-second")
def test_segments_of_a_camera_that_was_never_silent_end_when_they_are_closed(stage, each, phase):
    frames = steadily(0.0, 30.0, each=each)
    found = play(stage, frames, borders=(10.0, 20.0), ended=30.0, phase=phase)
    closed = [next(frame.came for frame in frames if frame.time >= border) for border in (10.0, 20.0)]
    assert [seconds(stage, segment.end) for segment in found[:2]] == pytest.approx(closed, abs=0.002)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("speed", [0.4, 0.9, 1.1])
def test_segments_of_a_camera_whose_times_are_wrong_stay_near_their_arrival(stage, speed, phase):
    frames = steadily(0.0, 30.0, speed=speed)
    borders = [3.0 * number * speed - 0.001 for number in range(1, 10)]
    found = play(stage, frames, borders=borders, ended=30.0, phase=phase)
    for number, segment in enumerate(found, start=1):
        assert seconds(stage, segment.end) == pytest.approx(3.0 * number, abs=LARGEST_DRIFT + 2.0)


@pytest.mark.parametrize("step", [-3600.0, 60.0])
def test_a_clock_that_is_set_while_the_camera_is_silent_is_followed(stage, step):
    frames = steadily(0.0, 6.7)
    *_, last = play(stage, frames, borders=(3.0,), ended=6.6 + 3.0, phase=0.5, step_at=(8.0, step))
    assert seconds(stage, last.end) == pytest.approx(6.7 + step, abs=2 * FRAME)


@pytest.mark.parametrize("phase", PHASES)
def test_a_burst_of_what_a_line_held_back_is_no_silence(stage, phase):
    held = [replace(frame, came=max(frame.came, 8.0)) for frame in steadily(4.0, 8.0)]
    frames = steadily(0.0, 4.0) + held + steadily(8.0, 14.0)
    found = play(stage, frames, borders=(3.0, 6.0, 9.0, 12.0), ended=14.0, phase=phase)
    assert [seconds(stage, each.start) for each in found] == pytest.approx([0, 3, 6, 9, 12], abs=2 * FRAME)
