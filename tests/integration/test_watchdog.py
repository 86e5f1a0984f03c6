"""A camera whose ffmpeg is a script of the test: what it does is known to the byte, and nothing takes long.

Faults that are noticed by a time-out only stand in `test_camera_faults`, with a real ffmpeg and real cameras.
"""

import json
import os
import stat
import sys
import time
from itertools import pairwise

import psutil
import pytest

from capture.camera import Camera, CameraPlan
from capture.errors import SourceError
from capture.ffmpeg import CaptureOptions, find_ffmpeg
from capture.journal import Event
from capture.probe import require_video
from capture.scan import scan_file
from capture.source import parse_source
from capture.spool import Spool
from capture.supervision import State
from tests.cameras.recording import logs
from tests.transport import stream

DEADLINE = 30.0  # for what takes a moment
SMALL, LARGE = (320, 180), (1920, 1080)
CAMERA = "rtsp://cam.example/live"

# Plays ffmpeg: the runs stand in plan.json, each a list of steps; the last run is repeated.
PLAYER = """
import json, os, signal, sys, time
here = os.path.dirname(os.path.abspath(__file__))
runs = json.load(open(os.path.join(here, "plan.json")))
count = os.path.join(here, "runs")
number = os.path.getsize(count) if os.path.exists(count) else 0
open(count, "a").write(".")
target, first = sys.argv[-1], int(sys.argv[sys.argv.index("-segment_start_number") + 1])
steps, made, frames = runs[min(number, len(runs) - 1)], 0, 0

def say(text, end="\\n"):
    os.write(1, (text + end).encode())

def report(more):
    global frames
    frames += more
    say(f"frame={frames}\\nout_time_us={frames * 100000}\\nprogress=continue")

def stop(*_):
    report(0)
    os._exit(255)

signal.signal(signal.SIGTERM, stop)
for step, value in steps:
    if step == "write":
        with open(target % (first + made), "wb") as file:
            file.write(open(os.path.join(here, value), "rb").read())
        report(10)
    elif step == "close":
        say(f"{first + made:08d}.ts,{made * 1.0:.6f},{made * 1.0 + value:.6f}")
        made += 1
    elif step == "error":
        os.write(2, (value + "\\n").encode())
    elif step == "noise":
        for _ in range(value):
            os.write(1, os.urandom(65536)); os.write(2, os.urandom(65536))
        say("")
    elif step == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif step == "exit":
        os._exit(value)
    elif step == "go on":
        while True:
            time.sleep(0.2)
            report(1)
"""


class Stage:
    """A camera with its scripted ffmpeg, and what came of it."""

    def __init__(self, folder, entries):
        self.folder, self.entries = folder, entries
        self.spool = Spool.open(folder / "spool", create=True)
        self.owed, self.told = [], []
        self.player = folder / "ffmpeg"
        self.player.write_text(f"#!{sys.executable} -IS\n{PLAYER}")
        self.player.chmod(self.player.stat().st_mode | stat.S_IXUSR)
        for name, sizes in {"small": [SMALL], "large": [LARGE], "mixed": [SMALL, LARGE]}.items():
            (folder / name).write_bytes(stream(*sizes))
        (folder / "unplayable").write_bytes(stream(SMALL)[376:])
        self.camera = None

    def start(self, *runs, source=CAMERA, on_owed=None):
        (self.folder / "plan.json").write_text(json.dumps(runs))
        self.camera = Camera(
            CameraPlan("door", "door", parse_source(source), CaptureOptions(1.0)),
            spool=self.spool,
            ffmpeg=str(self.player),
            on_owed=on_owed or self.take,
            on_session=lambda session, what: self.told.append((session, what)),
        )
        self.camera.start()

    def take(self, session, owed):
        self.owed.append((session, owed.segment))

    def wait(self, condition, what):
        end = time.monotonic() + DEADLINE
        while not (result := condition()):
            assert time.monotonic() < end, f"not {what}: {self.entries}"
            time.sleep(0.01)
        return result

    def logged(self, event):
        return [entry for entry in self.entries if entry["event"] == event]

    def runs(self):
        path = self.folder / "runs"
        return path.stat().st_size if path.exists() else 0

    def gaps(self):
        return [entry.fields for entry in self.spool.journal.read("door") if entry.event is Event.GAP]

    def stop(self):
        self.camera.stop()
        assert self.camera.join(DEADLINE), self.entries

    def widths(self):
        """Return what is in the segments, session by session."""
        found = {}
        for session, segment in self.owed:
            scan = scan_file(self.spool.session_path(session) / str(segment))
            assert scan.changes == []
            found.setdefault(session, []).append(scan.first_picture.width)
        return list(found.values())


@pytest.fixture
def stage(tmp_path):
    with logs() as entries:
        made = Stage(tmp_path, entries)
        yield made
        if made.camera and made.camera.is_alive():
            made.stop()


GOOD = [["write", "small"], ["close", 0.1]]
ON = [*GOOD, ["go on", 0]]


def test_many_restarts_are_one_gap_line_and_the_status_says_what_is_wrong(stage):
    lost = [["error", "[tcp @ 0x5] [error] Connection refused"], ["exit", 8]]
    stage.start([*GOOD, ["exit", 1]], lost, lost, lost, ON)
    stage.wait(lambda: stage.runs() == 4, "tried again")
    assert (
        stage.wait(lambda: stage.camera.status().trouble, "in trouble") == "nothing listens at host and port"
    )
    stage.wait(lambda: len(stage.owed) == 2, "captured again")
    status = stage.wait(lambda: (s := stage.camera.status()).trouble is None and s, "well again")
    stage.stop()
    (gap,) = stage.gaps()
    assert gap["cause"] == "ffmpeg exited with 1; then: nothing listens at host and port"
    assert (status.state, status.restarts, status.gaps, status.segments) == (State.RUNNING, 4, 1, 2)
    assert (status.codec, status.width, status.height) == ("h264", *SMALL)
    assert status.bytes == 2 * (stage.folder / "small").stat().st_size
    assert status.last_frame_at >= status.last_segment_at - 1
    assert stage.widths() == [[320, 320]]
    moments = [entry["at"] for entry in stage.logged("capture_interrupted")]
    assert all(later - earlier >= 0.85 for earlier, later in pairwise(moments))


def test_a_gap_that_is_open_when_the_agent_stops_is_written_and_the_next_start_goes_on_from_there(stage):
    stage.start([*GOOD, ["exit", 1]], [["exit", 1]])
    stage.wait(lambda: len(stage.logged("capture_interrupted")) == 2, "lost")
    stage.stop()
    (first,) = stage.gaps()
    (stage.folder / "runs").unlink()
    stage.start([["exit", 1]], ON)
    stage.wait(lambda: len(stage.gaps()) == 2, "back")
    stage.stop()
    second = stage.gaps()[1]
    assert second["start"] == first["end"]
    assert second["cause"] == "the agent was not running; then: ffmpeg exited with 1"


@pytest.mark.parametrize(
    "words", ["method SETUP failed: 453 (Not Enough Bandwidth)", "HTTP error 503 Service Unavailable"]
)
def test_a_camera_without_a_free_session_is_given_time(stage, words):
    stage.start([["error", f"[rtsp @ 0x5] [error] {words}"], ["exit", 8]])
    entry = stage.wait(lambda: stage.logged("capture_interrupted"), "interrupted")[0]
    assert 9.0 <= entry["again_in"] <= 11.0
    begun = time.monotonic()
    stage.stop()
    assert time.monotonic() - begun < 5


def test_a_new_picture_begins_a_new_session_without_waiting_and_no_segment_holds_both(stage):
    stage.start(
        [*GOOD, ["write", "mixed"], ["close", 2.0], ["go on", 0]],
        [["write", "large"], ["close", 1.0], ["go on", 0]],
    )
    stage.wait(lambda: len(stage.owed) == 4, "four segments")
    stage.stop()
    assert stage.widths() == [[320, 320], [1920, 1920]]
    (entry,) = stage.logged("capture_interrupted")
    assert entry["reason"] == "the picture changed from h264 320x180 to h264 1920x1080"
    assert entry["again_in"] == 0
    assert [what for _, what in stage.told] == ["started", "started", "ended", "ended"]


def test_an_ffmpeg_that_is_killed_in_the_midst_of_a_change_leaves_no_mixed_segment(stage):
    stage.start(
        [*GOOD, ["write", "mixed"], ["exit", 137]], [["write", "large"], ["close", 1.0], ["go on", 0]]
    )
    stage.wait(lambda: len(stage.owed) == 4, "four segments")
    stage.stop()
    assert stage.widths() == [[320, 320], [1920, 1920]]


def test_a_segment_that_cannot_be_played_ends_its_ffmpeg_and_is_kept(stage):
    stage.start([*GOOD, ["write", "unplayable"], ["close", 1.0], ["go on", 0]], ON)
    stage.wait(lambda: stage.runs() == 2, "restarted")
    stage.wait(lambda: len(stage.owed) == 3, "captured again")
    assert stage.logged("segment_not_playable")
    assert stage.logged("capture_interrupted")[0]["reason"] == "video that MPEG-TS cannot carry"


def test_an_ffmpeg_that_is_deaf_is_killed_with_what_it_wrote_kept(stage):
    stage.start([["deaf", 0], *GOOD, ["write", "small"], ["go on", 0]])
    stage.wait(lambda: len(stage.owed) == 1, "captured")
    (child,) = [each for each in psutil.Process().children() if str(stage.folder) in " ".join(each.cmdline())]
    begun = time.monotonic()
    stage.stop()
    assert 2.5 < time.monotonic() - begun < 10
    assert not child.is_running()
    assert stage.widths() == [[320, 320]]


def test_noise_on_both_outputs_costs_nothing_but_time(stage):
    stage.start([["noise", 40], *GOOD, ["noise", 40], ["go on", 0]])
    stage.wait(lambda: len(stage.owed) == 1, "captured")
    stage.wait(lambda: stage.camera.status().state is State.RUNNING, "running")
    assert stage.logged("capture_interrupted") == []


def test_a_bug_costs_a_restart_and_not_the_camera(stage):
    def fail_once(session, owed):
        stage.take(session, owed)
        if len(stage.owed) == 1:
            raise ZeroDivisionError("made for the test")

    stage.start(ON, on_owed=fail_once)
    failed = stage.wait(lambda: stage.logged("camera_failed"), "failed")[0]
    assert failed["exc_info"]
    assert "ZeroDivisionError" in stage.wait(lambda: stage.camera.status().trouble, "in trouble")
    stage.wait(lambda: len(stage.owed) == 2, "captured again")
    status = stage.camera.status()
    stage.stop()
    assert status.error is None
    assert stage.camera.status().state is State.STOPPED
    assert len(list(stage.spool.debts())) == 2  # nothing is lost, and nothing is there twice


def test_a_bug_that_comes_again_and_again_is_not_hammered(stage):
    def fail(*_):
        raise ZeroDivisionError("made for the test")

    stage.start(ON, on_owed=fail)
    stage.wait(lambda: len(stage.logged("camera_failed")) == 3, "failed three times")
    moments = [entry["at"] for entry in stage.logged("camera_failed")]
    assert all(later - earlier >= 0.85 for earlier, later in pairwise(moments))


def test_a_file_is_not_captured_twice_after_a_bug(stage, tmp_path):
    def fail(*_):
        raise ZeroDivisionError("made for the test")

    clip = tmp_path / "clip.ts"
    clip.write_bytes(stream(SMALL))
    stage.start(ON, source=str(clip), on_owed=fail)
    assert stage.camera.join(DEADLINE)
    assert stage.camera.status().state is State.FATAL
    assert "only the beginning" in str(stage.camera.status().error)
    assert stage.runs() == 1


def test_a_file_whose_picture_changes_is_cut_and_read_on(stage, tmp_path):
    clip = tmp_path / "clip.ts"
    clip.write_bytes(stream(SMALL))
    large = [["write", "large"], ["close", 1.0]]
    stage.start([*GOOD, ["write", "mixed"], ["close", 2.0], *large, *large, ["exit", 0]], source=str(clip))
    assert stage.camera.join(DEADLINE)
    assert stage.widths() == [[320, 320], [1920, 1920, 1920]]
    assert [segment.sequence for _, segment in stage.owed] == [1, 2, 1, 2, 3]
    assert stage.runs() == 1


@pytest.mark.parametrize("steps", [[["go on", 0]], [["deaf", 0], ["noise", 1], ["go on", 0]]])
def test_a_probe_that_never_returns_is_ended(stage, tmp_path, steps):
    clip = tmp_path / "clip.ts"
    clip.write_bytes(b"x")
    probe = tmp_path / "probe"
    probe.write_text(
        stage.player.read_text().replace('sys.argv[sys.argv.index("-segment_start_number") + 1]', "1")
    )
    probe.chmod(0o755)
    (tmp_path / "plan.json").write_text(json.dumps([steps]))
    begun = time.monotonic()
    with pytest.raises(SourceError, match="no frame could be read within 1 s"):
        require_video(str(probe), parse_source(str(clip)), seconds=1.0)
    assert time.monotonic() - begun < 10
    assert not [each for each in psutil.Process().children() if str(probe) in " ".join(each.cmdline())]


def test_a_named_pipe_that_nobody_writes_to_is_not_waited_for(ffmpeg_path, tmp_path):
    os.mkfifo(tmp_path / "pipe.ts")
    with pytest.raises(SourceError, match="no frame could be read within 1 s"):
        require_video(ffmpeg_path, parse_source(str(tmp_path / "pipe.ts")), seconds=1.0)


@pytest.fixture
def ffmpeg_path():
    return find_ffmpeg().path
