"""The storm tells a process that has no stepped clock from one that is only starting."""

import os
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest

from capture.sink import FaultPlan
from tests.chaos.clock import NoClockError, SteppedClock
from tests.chaos.storm import LOADED_SECONDS, Storm

SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def clock(tmp_path):
    try:
        return SteppedClock(tmp_path / "clock")
    except NoClockError as error:
        pytest.skip(str(error))


@pytest.fixture
def complaints(clock):
    """Doubts a process that was just started, and returns what the storm says of it a second later."""

    def run(environment):
        storm = Storm(SimpleNamespace(ensure=lambda: None), SimpleNamespace(faults=FaultPlan()), clock)
        with subprocess.Popen(SLEEPER, env={**os.environ, **environment}) as process:
            storm._doubt(clock, {"beat": [psutil.Process(process.pid)]})
            with pytest.raises(subprocess.TimeoutExpired):  # it lives on
                process.wait(LOADED_SECONDS)
            found = storm.problems()
            process.kill()
        return found

    return run


def test_a_process_that_only_just_started_is_no_complaint(complaints, clock):
    assert complaints(clock.environment) == []


def test_a_process_that_has_not_loaded_the_clock_later_either_is_one(complaints):
    assert complaints({}) == ["the clock of beat was not stepped"]
