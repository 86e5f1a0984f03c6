"""What takes long to show: cameras and ffmpegs that freeze, and addresses that are no camera.

All of them run side by side, once, because each waits for a time-out; each test then looks at one.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import pytest

from tests.cameras.addresses import DeadIp, OddPort
from tests.cameras.fixtures import require_rtsp_camera
from tests.cameras.http import HttpCamera
from tests.cameras.recording import Recording, logs
from tests.cameras.rtsp import RtspCamera

NOTICED_WITHIN = 15.0
SLACK = 2.0  # seconds that a loaded machine may add to a time-out
AWAY_SECONDS = 1.0
NONSENSE = {"it is no video, or a damaged one"}
SILENT = {"the camera stopped answering", "no new frame", "no first frame"}


@dataclass
class Case:
    """One fault, and what was seen of it; times in monotonic seconds, `struck_at` in UTC."""

    name: str
    recording: Recording
    begin: Callable[[], Any] | None = None  # None: it is there from the start
    end: Callable[[], Any] | None = None  # None: it stays
    struck: float = 0.0
    struck_at: datetime | None = None
    noticed: dict[str, Any] = field(default_factory=dict)
    recovered: bool = False
    failure: BaseException | None = None
    camera: RtspCamera | None = None

    def run(self) -> None:
        if self.begin:
            running = self.recording.wait_logged("capture_running")["at"]
            self.recording.wait_segments(1, since=running)
        self.struck = time.monotonic() if self.begin else self.recording.began
        self.struck_at = datetime.now(UTC)
        if self.begin:
            self.begin()
        self.noticed = dict(self.recording.wait_logged("capture_interrupted", since=self.struck))
        if self.end:
            threading.Event().wait(AWAY_SECONDS)
            self.end()
            running = self.recording.wait_logged("capture_running", since=self.noticed["at"])["at"]
            self.recording.wait_segments(2, since=running)
            self.recovered = True

    @property
    def seconds(self) -> float:
        """How long it took to notice."""
        return self.noticed["at"] - self.struck


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> dict[str, Case]:
    require_rtsp_camera()
    with logs() as entries, ExitStack() as stack:
        made = Maker(tmp_path_factory.mktemp("faults"), entries, stack)
        found = [make(made) for make in CASES]
        with ThreadPoolExecutor(len(found)) as pool:
            for case, run in [(case, pool.submit(case.run)) for case in found]:
                case.failure = run.exception()
    return {case.name: case for case in found}


def the(cases: dict[str, Case], name: str) -> Case:
    """Return a case that was seen to its end; fail as it failed otherwise."""
    if failure := cases[name].failure:
        raise failure
    return cases[name]


@dataclass
class Maker:
    folder: Path
    entries: list
    stack: ExitStack

    def case(self, name: str, url: str, **options: Any) -> Case:
        recording = Recording(self.folder / name, url, self.entries, camera_id=name)
        self.stack.enter_context(recording)
        return Case(name, recording, **options)

    def camera(self, **options: Any) -> RtspCamera:
        return self.stack.enter_context(RtspCamera(**options))


def frozen(made: Maker) -> Case:
    camera = made.camera()
    return made.case("frozen", camera.url, begin=camera.freeze, end=camera.thaw)


def stalled(made: Maker) -> Case:
    camera = made.camera()
    return made.case(
        "stalled", camera.url, begin=lambda: camera.tell("stall"), end=lambda: camera.tell("resume")
    )


def http_stalled(made: Maker) -> Case:
    camera = made.stack.enter_context(HttpCamera(imageio_ffmpeg.get_ffmpeg_exe()))
    return made.case("http-stalled", camera.url, begin=camera.stall, end=camera.resume)


def ffmpeg_frozen(made: Maker) -> Case:
    case = made.case("ffmpeg-frozen", made.camera().url, end=lambda: None)

    def freeze() -> None:
        for child in case.recording.children():
            os.kill(child.pid, signal.SIGSTOP)

    case.begin = freeze
    return case


def stale(made: Maker) -> Case:
    camera = made.camera(max_sessions=1, stale_seconds=8.0)
    return made.case("stale", camera.url, begin=lambda: camera.tell("drop"), end=lambda: None, camera=camera)


def dead(made: Maker) -> Case:
    host = made.stack.enter_context(DeadIp())

    def revive() -> None:
        host.revive()
        made.camera(address=host.host, port=host.port)

    return made.case("dead", f"rtsp://{host.host}:{host.port}/live", end=revive)


def odd(behaviour: str) -> Callable[[Maker], Case]:
    def make(made: Maker) -> Case:
        port = made.stack.enter_context(OddPort(behaviour))
        return made.case(behaviour, f"rtsp://{port.host}:{port.port}/live")

    return make


def told(name: str, begin: str, end: str) -> Callable[[Maker], Case]:
    def make(made: Maker) -> Case:
        camera = made.camera()
        return made.case(name, camera.url, begin=lambda: camera.tell(begin), end=lambda: camera.tell(end))

    return make


CASES = [
    told("no-key-frames", "keys off", "keys on"),
    told("spoilt", "spoil", "mend"),
    told("times-jump-back", "jump -30", "jump 30"),
]
CASES += [frozen, stalled, http_stalled, ffmpeg_frozen, stale]
CASES += map(odd, ["silent", "garbage", "trickle", "web"])
if sys.platform == "linux":
    CASES.append(dead)


@pytest.mark.parametrize(
    ("name", "causes"),
    [
        ("frozen", SILENT),
        ("stalled", SILENT),
        ("http-stalled", SILENT),
        ("ffmpeg-frozen", SILENT | {"ffmpeg does not run"}),
        pytest.param("dead", SILENT, marks=pytest.mark.skipif(sys.platform != "linux", reason="Linux alone")),
        ("silent", SILENT),
        ("garbage", SILENT | NONSENSE),
        ("trickle", SILENT),
        ("web", NONSENSE | {"the camera closed the connection"}),  # it does both at once
        ("no-key-frames", {"no key frame"}),
        ("spoilt", {"a segment without a key frame at its start", "no key frame"}),
        ("times-jump-back", {"its times fall behind the clock", "no new segment"}),
    ],
)
def test_it_is_noticed_in_time_and_its_cause_is_told(cases, name, causes):
    case = the(cases, name)
    assert case.noticed["reason"] in causes
    assert case.seconds <= NOTICED_WITHIN + SLACK


@pytest.mark.parametrize(
    "name",
    [
        "frozen",
        "stalled",
        "http-stalled",
        "ffmpeg-frozen",
    ],
)
def test_capture_goes_on_and_the_time_without_video_is_one_gap(cases, name):
    case = the(cases, name)
    assert case.recovered
    (gap,) = case.recording.gaps()
    start, end = (datetime.fromisoformat(gap[key]) for key in ("start", "end"))
    assert abs((start - case.struck_at).total_seconds()) < 2.5
    assert end > case.struck_at + timedelta(seconds=case.seconds - 1)
    assert gap["cause"]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone")
def test_a_host_that_was_dead_is_captured_as_soon_as_it_lives(cases):
    case = the(cases, "dead")
    assert case.recovered
    (gap,) = case.recording.gaps()  # from the first try
    assert abs((datetime.fromisoformat(gap["start"]) - case.struck_at).total_seconds()) < 2.5


def test_a_session_that_the_camera_has_not_forgotten_is_waited_out(cases):
    case = the(cases, "stale")
    assert case.recovered
    assert len(case.recording.gaps()) == 1
    # Refused at least once, and not hammered: 8 s hold no more tries than the ladder has steps.
    assert 1 <= len(case.camera.said("refused 453")) <= 8
