"""The wall clock is set forward and back under a running relay: that may cost duplicates, never time.

A machine without a battery for its clock does so at every start, when it first hears of the true time.
"""

import os
import signal
import subprocess
import sys
import time

import imageio_ffmpeg
import pytest

from capture.broker import queue_lengths
from capture.handoff import LIVE
from tests.acceptance.conftest import DEADLINE
from tests.chaos.clock import HOUR, NoClockError, SteppedClock

TICKS_WITHIN = 25.0  # seconds for two; a tick is due every five


@pytest.fixture
def stepped(tmp_path):
    try:
        clock = SteppedClock(tmp_path / "clock")
        clock.prove(imageio_ffmpeg.get_ffmpeg_exe(), {"PATH": os.environ["PATH"]})
    except NoClockError as error:
        pytest.skip(str(error))
    return clock


@pytest.fixture
def beat(stepped, broker, tmp_path):
    """A beat as an operator starts it; nobody takes its ticks."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("RELAY_")}
    settings = {"RELAY_BROKER": broker.url, "RELAY_CLOUD": "http://127.0.0.1:9", "RELAY_TOKEN": "made-up"}
    with (tmp_path / "beat.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "celery", "-A", "tasks", "beat"],
            env={**clean, **stepped.environment, **settings, "RELAY_SPOOL": str(tmp_path / "spool")},
            cwd=tmp_path,
            stdout=log,
            stderr=log,
        )
    yield process
    process.send_signal(signal.SIGTERM)
    process.wait(10)


def wait_for_ticks(broker, more, *, deadline):
    """Wait until so many more ticks are in the queue; return the seconds it took."""
    began, before = time.monotonic(), queue_lengths(broker.url, [LIVE])[LIVE]
    while queue_lengths(broker.url, [LIVE])[LIVE] < before + more:
        assert time.monotonic() - began < deadline, f"not {more} more ticks within {deadline} s"
        time.sleep(0.05)
    return time.monotonic() - began


@pytest.mark.parametrize("step", [HOUR, -HOUR])
def test_beat_ticks_on_when_the_clock_is_stepped(beat, stepped, broker, step):
    wait_for_ticks(broker, 1, deadline=DEADLINE)
    stepped.step(step)
    wait_for_ticks(broker, 2, deadline=TICKS_WITHIN)
