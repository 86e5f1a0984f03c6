"""What is seen of a run of ffmpeg, and when it is looked for; the file is real, the clock is stepped."""

import pytest
import structlog

from capture.ffmpeg import CaptureOptions, Progress
from capture.recorder import Recorder
from capture.source import parse_source
from capture.supervision import TOLERATED_DRIFT
from capture.watch import LOOK_SECONDS, Watch
from tests.conftest import SteppedClock, start_session
from tests.transport import stream

SMALL, LARGE = (320, 180), (1920, 1080)


class Stage:
    """A watch whose ffmpeg is the test."""

    def __init__(self, spool):
        self.clock = SteppedClock()
        self.seen = []
        self.recorder = Recorder(
            "door",
            spool=spool,
            start=lambda: start_session(spool),
            on_owed=lambda *_: None,
            on_session=lambda *_: None,
        )
        session, number = self.recorder.begin()
        self.path = session.open_path(number)
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
