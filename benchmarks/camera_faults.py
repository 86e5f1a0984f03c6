"""How soon each fault of a camera is noticed, and how soon there is video again: over and over, side by side.

Each fault has a camera of its own (a real RTSP server, or an endless HTTP stream) and one capture at a time.
Noticed: from the fault to the log event that says so. Video again: from the camera's return to the first
frame, and to the first segment after it. A camera that was never away "returns" at the fault (marked *).
"""

import argparse
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.figures import environment_lines, spread
from capture.ffmpeg import find_ffmpeg
from tests.cameras.http import HttpCamera
from tests.cameras.recording import Logged, Recording, logs
from tests.cameras.rtsp import RtspCamera, missing

NOTICED = ("capture_interrupted", "stream_changed")  # the log events that say so
SEGMENT_SECONDS = 2.0
NOTICED_WITHIN = 30.0  # seconds: then it counts as unnoticed
BACK_WITHIN = 90.0
START_WITHIN = 60.0
LIMIT = 15.0  # the contract
AWAY_SECONDS = 3.0  # how long a camera stays away after that was noticed
NEVER = math.inf

Cam = RtspCamera | HttpCamera


@dataclass(frozen=True)
class Fault:
    """What is done to a camera or its ffmpeg, and how it comes back; without `back` it was never away."""

    name: str
    begin: Callable[[Cam, Recording], None]
    back: Callable[[Cam], None] | None = None
    is_http: bool = False
    is_switch: bool = False  # ffmpeg may go on: what counts is the first segment of a new session


@dataclass(frozen=True)
class Trial:
    """Seconds; infinity for what did not come."""

    noticed: float
    frame: float
    segment: float


def _signal_ffmpeg(number: signal.Signals) -> Callable[[Cam, Recording], None]:
    def send(_: Cam, recording: Recording) -> None:
        for child in recording.children():
            os.kill(child.pid, number)

    return send


def _tell(*commands: str) -> Callable[..., None]:
    return lambda camera, *_: [camera.tell(command) for command in commands]


def _resize(camera: Cam, _: Recording) -> None:
    camera.resize("480x270" if camera.options.get("size", "320x180") == "320x180" else "320x180")


FAULTS = (
    Fault("camera killed", lambda camera, _: camera.kill(), lambda camera: camera.restart()),
    Fault("camera SIGSTOP", lambda camera, _: camera.freeze(), lambda camera: camera.thaw()),
    Fault("camera stalls", _tell("stall"), _tell("resume")),
    Fault("connection dropped", _tell("drop")),
    Fault("sessions refused", _tell("refuse", "drop"), _tell("accept")),
    Fault("resolution switch", _resize, is_switch=True),
    Fault("ffmpeg SIGSTOP", _signal_ffmpeg(signal.SIGSTOP)),
    Fault("ffmpeg killed", _signal_ffmpeg(signal.SIGKILL)),
    Fault("HTTP stalls", lambda camera, _: camera.stall(), lambda camera: camera.resume(), is_http=True),
    Fault("HTTP closed", lambda camera, _: camera.drop(), is_http=True),
)


def main() -> int:
    """Measure all faults, print the table; return 1 when one was noticed too late, or not at all."""
    options = _options()
    if lack := missing():
        sys.exit(f"no RTSP camera can run here: {lack}")
    faults = [fault for fault in FAULTS if options.only in fault.name]
    print(environment_lines(), flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="faults-") as folder,
        logs() as entries,
        ThreadPoolExecutor(options.at_once or len(faults)) as pool,
    ):
        runs = [
            pool.submit(_measure, fault, options.repeat, Path(folder, str(number)), entries)
            for number, fault in enumerate(faults)
        ]
        found = [run.result() for run in runs]
    return _report(faults, found)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.camera_faults", description=__doc__)
    parser.add_argument("--repeat", type=int, default=10, help="times for each fault  [default: 10]")
    parser.add_argument("--only", default="", help="faults with this in their name  [default: all]")
    parser.add_argument("--at-once", type=int, default=0, help="faults side by side  [default: all]")
    return parser.parse_args()


def _measure(fault: Fault, repeat: int, folder: Path, entries: list[Logged]) -> list[Trial]:
    camera = HttpCamera(find_ffmpeg().path) if fault.is_http else RtspCamera()
    folder.mkdir()
    try:
        trials = []
        for number in range(1, repeat + 1):
            # A capture of its own: its ladder of waits begins anew.
            name = f"{fault.name.replace(' ', '-')}-{number}"
            with Recording(folder / name, camera.url, entries, name, SEGMENT_SECONDS) as recording:
                trials.append(_try(fault, camera, recording))
            print(f"{fault.name:20} {number:3}  {_line(trials[-1])}", flush=True)
        return trials
    finally:
        camera.close()


def _try(fault: Fault, camera: Cam, recording: Recording) -> Trial:
    running = recording.wait_logged("capture_running", deadline=START_WITHIN)["at"]
    recording.wait_segments(1, since=running)
    struck = time.monotonic()
    fault.begin(camera, recording)
    seen = _first(lambda: [at for name in NOTICED for at in _when(recording, name, struck)], NOTICED_WITHIN)
    back = struck
    if fault.back:
        time.sleep(AWAY_SECONDS)
        fault.back(camera)
        back = time.monotonic()  # a camera that was restarted listens from now on
    if seen == NEVER:
        _mend(recording)
        return Trial(NEVER, NEVER, NEVER)
    if fault.is_switch:
        segment = _first(lambda: _in_new_session(recording), BACK_WITHIN)
        return Trial(seen - struck, seen - back, segment - back)
    frame = _first(lambda: _when(recording, "capture_running", back), BACK_WITHIN)
    segment = _first(lambda: [each.at for each in recording.closed if each.at > frame], BACK_WITHIN)
    return Trial(seen - struck, frame - back, segment - back)


def _in_new_session(recording: Recording) -> list[float]:
    first = recording.closed[0].session
    return [each.at for each in recording.closed if each.session != first]


def _mend(recording: Recording) -> None:
    """Let a frozen ffmpeg go on, that nobody noticed: it would not stop otherwise."""
    for child in recording.children():
        if child.status() == psutil.STATUS_STOPPED:
            os.kill(child.pid, signal.SIGCONT)


def _when(recording: Recording, event: str, since: float) -> list[float]:
    return [entry["at"] for entry in recording.logged(event, since=since)]


def _first(found: Callable[[], Sequence[float]], deadline: float) -> float:
    """Wait for a moment, and return the earliest; infinity when there is none in time."""
    end = time.monotonic() + deadline
    while not (moments := found()):
        if time.monotonic() > end:
            return NEVER
        time.sleep(0.01)
    return min(moments)


def _line(trial: Trial) -> str:
    return f"noticed {trial.noticed:6.2f} s, frame {trial.frame:6.2f} s, segment {trial.segment:6.2f} s"


def _report(faults: Sequence[Fault], found: Sequence[Sequence[Trial]]) -> int:
    print("\nmedian (least to most), seconds")
    print(f"{'fault':21} {'n':>3}  {'noticed after':24} {'first frame':24} {'first segment':24}")
    for fault, trials in zip(faults, found, strict=True):
        name = fault.name + ("" if fault.back else " *")
        columns = [[getattr(trial, key) for trial in trials] for key in ("noticed", "frame", "segment")]
        print(f"{name:21} {len(trials):3}  " + " ".join(f"{spread(column):24}" for column in columns))
    late = sum(trial.noticed > LIMIT for trials in found for trial in trials)
    print(f"later than {LIMIT:g} s, or never noticed: {late} of {sum(map(len, found))}")
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
