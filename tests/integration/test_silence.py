"""Cameras that fall silent for some seconds, and then close the connection or go on in it.

All of them run side by side, once, because a silence takes its time; each test then looks at one.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import imageio_ffmpeg
import pytest

from capture.segment import SegmentName
from tests.cameras.fixtures import require_rtsp_camera
from tests.cameras.http import HttpCamera
from tests.cameras.recording import Recording, logs
from tests.cameras.rtsp import RtspCamera

SEGMENT_SECONDS = 3.0  # longer than ffmpeg looks at a stream before it begins
LONG_SECONDS = 60.0  # nothing but the end cuts such a segment
# Above the drift that is corrected at once. ffmpeg's report, and all that it is late by, lies in the silence.
SILENCE_SECONDS = 2.6
AFTER_REPORT_SECONDS = 0.3
LATE_SECONDS = 1.8  # what a frame may take through camera, ffmpeg and a loaded machine


@dataclass
class Silence:
    """A camera's silence: when it began, how many segments were closed by then, and what was recorded."""

    struck_at: datetime
    before: int
    recording: Recording

    @property
    def segments(self) -> list[SegmentName]:
        return self.recording.segments()

    def late(self) -> list[float]:
        """Return for each segment by how many seconds it was closed after its end."""
        wall = datetime.now(UTC) - timedelta(seconds=time.monotonic())
        closed = self.recording.closed
        return [
            (wall + timedelta(seconds=each.at) - each.owed.segment.end).total_seconds() for each in closed
        ]


class Rtsp:
    def __init__(self, **options: object) -> None:
        self._camera = RtspCamera(**options)
        self.url = self._camera.url
        self.close = self._camera.close

    def stall(self) -> None:
        self._camera.tell("stall")

    def drop(self) -> None:
        self._camera.tell("drop")

    def resume(self) -> None:
        self._camera.tell("resume")


def http() -> HttpCamera:
    return HttpCamera(imageio_ffmpeg.get_ffmpeg_exe())


def fall_silent(source: Rtsp | HttpCamera, recording: Recording, segments: int) -> Silence:
    """Have it stop sending a moment after a report of ffmpeg, and some frames into a segment."""
    recording.wait_logged("capture_running")
    if segments:
        recording.wait_segments(segments)
    for _ in range(2):  # the first may be older than the segment, or come of a look into the file
        heard = recording.camera.status().last_frame_at
        recording.wait_for(lambda told=heard: recording.camera.status().last_frame_at != told, "a report")
    threading.Event().wait(AFTER_REPORT_SECONDS)
    before = len(recording.closed)
    source.stall()
    struck_at = datetime.now(UTC)
    threading.Event().wait(SILENCE_SECONDS)
    return Silence(struck_at, before, recording)


def closed_by(source: Rtsp | HttpCamera, recording: Recording, segments: int) -> Silence:
    silence = fall_silent(source, recording, segments)
    source.drop()
    recording.wait_logged("capture_interrupted")
    recording.stop()  # it has not begun anew: the gap lasts until now
    return silence


def resumed(source: Rtsp | HttpCamera, recording: Recording, segments: int) -> Silence:
    silence = fall_silent(source, recording, segments)
    source.resume()
    recording.wait_segments(silence.before + 2)
    recording.stop()
    return silence


@dataclass(frozen=True)
class Case:
    """What to make of which camera; `segments` were closed before (none: the silence ends the first)."""

    make: Callable[[], Rtsp | HttpCamera]
    act: Callable[..., Silence]
    segments: int = 1
    options: dict[str, object] = field(default_factory=dict)


CASES = {
    "rtsp": Case(Rtsp, closed_by),
    "http": Case(http, closed_by),
    "rtsp-with-sound": Case(lambda: Rtsp(audio="aac"), closed_by, options={"audio": "copy"}),
    "rtsp-only": Case(Rtsp, closed_by, 0),
    "http-only": Case(http, closed_by, 0),
    "rtsp-resumed": Case(Rtsp, resumed),
    "http-resumed": Case(http, resumed),
}


@pytest.fixture(scope="module")
def silences(tmp_path_factory) -> dict[str, Future[Silence]]:
    require_rtsp_camera()
    folder = tmp_path_factory.mktemp("silence")
    with logs() as entries, ExitStack() as stack, ThreadPoolExecutor(len(CASES)) as pool:

        def run(name: str) -> Silence:
            case = CASES[name]
            source = case.make()
            stack.callback(source.close)
            length = SEGMENT_SECONDS if case.segments else LONG_SECONDS
            with Recording(
                folder / name, source.url, entries, name, length, options=case.options
            ) as recording:
                return case.act(source, recording, case.segments)

        found = {name: pool.submit(run, name) for name in CASES}
        for each in found.values():
            each.exception()
    return found


@pytest.mark.parametrize("name", ["rtsp", "http", "rtsp-with-sound"])
def test_a_last_segment_follows_the_one_before_however_late_it_was_closed(silences, name):
    silence = silences[name].result()
    assert len(silence.segments) > silence.before
    before, last = silence.segments[-2:]
    assert last.start == before.end
    assert silence.late()[-1] > SILENCE_SECONDS - LATE_SECONDS


@pytest.mark.parametrize("name", ["rtsp", "http", "rtsp-only", "http-only"])
def test_the_last_segment_ends_and_the_gap_begins_where_the_silence_did(silences, name):
    silence = silences[name].result()
    (gap,) = silence.recording.gaps()
    end = silence.segments[-1].end
    assert abs((end - silence.struck_at).total_seconds()) < LATE_SECONDS
    assert datetime.fromisoformat(gap["start"]) == end


@pytest.mark.parametrize("name", ["rtsp-resumed", "http-resumed"])
def test_a_silence_within_a_connection_moves_nothing_that_comes_after_it(silences, name):
    silence = silences[name].result()
    assert silence.recording.logged("capture_interrupted") == []
    assert silence.recording.gaps() == []
    first, *_, last = silence.late()[: silence.before + 2]
    assert abs(last - first) < LATE_SECONDS
    names = [str(each) for each in silence.segments]
    assert len(set(names)) == len(names)
