"""The clock that chaos steps: it moves what it should and nothing else, or says that it cannot."""

import os
import subprocess
import sys
import time

import imageio_ffmpeg
import pytest

from tests.chaos import clock as clocks
from tests.chaos.clock import HOUR, NoClockError, SteppedClock
from tests.chaos.run import _clock

WATCH = "import sys, time\nfor _ in sys.stdin: print(time.time(), time.monotonic(), flush=True)"


@pytest.fixture
def clock(tmp_path):
    try:
        return SteppedClock(tmp_path / "clock")
    except NoClockError as error:
        pytest.skip(str(error))


@pytest.fixture
def no_library(monkeypatch):
    monkeypatch.setattr(clocks, "PLACES", ("/nowhere",))


def test_a_running_process_sees_every_step_and_its_durations_stay_true(clock):
    argv = [sys.executable, "-c", WATCH]
    with subprocess.Popen(
        argv,
        env={**os.environ, **clock.environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        for offset in (0.0, HOUR, -26 * HOUR, 0.0):
            clock.step(offset)
            print(file=process.stdin, flush=True)
            wall, monotonic = map(float, process.stdout.readline().split())
            assert wall - time.time() == pytest.approx(offset, abs=5)
            assert monotonic == pytest.approx(time.monotonic(), abs=5)
            assert clock.moves(process.pid)


def test_it_is_proven_with_python_and_ffmpeg(clock):
    clock.prove(imageio_ffmpeg.get_ffmpeg_exe(), {"PATH": os.environ["PATH"]})
    assert clock.offset == 0.0


def test_a_process_without_the_library_is_noticed(clock):
    assert not clock.moves(os.getpid())


def test_a_program_that_does_not_move_is_no_proof(clock, monkeypatch):
    monkeypatch.setattr(clock, "step", lambda _offset: None)
    with pytest.raises(NoClockError, match="moves Python by"):
        clock.prove(imageio_ffmpeg.get_ffmpeg_exe(), {"PATH": os.environ["PATH"]})


@pytest.mark.usefixtures("no_library")
def test_without_the_library_the_run_says_so_and_goes_on(tmp_path, capsys):
    assert _clock(tmp_path, "auto") is None
    words = capsys.readouterr().out
    assert "the clock is NOT stepped in this run" in words
    assert "apt-get install faketime" in words


@pytest.mark.usefixtures("no_library")
def test_without_the_library_a_run_that_requires_it_fails(tmp_path):
    with pytest.raises(SystemExit, match="the clock cannot be stepped"):
        _clock(tmp_path, "required")
