"""Enough open files for a hundred cameras, where the system grants them; an error where it does not."""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, resource, sys
from structlog.testing import capture_logs
from capture.limits import allow_open_files
soft, hard, cameras = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
with capture_logs() as logs:
    most = allow_open_files(cameras)
print(json.dumps([resource.getrlimit(resource.RLIMIT_NOFILE), most, logs]))
"""


def after(soft, hard, cameras):
    """Return the limits, how many cameras can run, and what was logged.

    In a process of its own: a hard limit cannot be raised again.
    """
    command = [sys.executable, "-c", PROGRAM, str(soft), str(hard), str(cameras)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    limits, most, logs = json.loads(done.stdout)
    return tuple(limits), most, logs


@pytest.mark.parametrize("soft", [256, 1024])
def test_the_limit_is_raised_as_far_as_the_system_lets_us(soft):
    assert after(soft, 1024, 100) == ((1024, 1024), 120, [])


def test_a_hard_limit_that_is_too_low_for_the_cameras_is_told():
    limits, most, (told,) = after(256, 512, 100)
    assert (limits, most) == ((512, 512), 56)
    assert (told["event"], told["allowed"], told["needed"]) == ("too_few_open_files", 512, 864)
    assert "LimitNOFILE" in told["advice"]
    assert told["then"] == "56 of 100 cameras run, the others wait for one to end"


def test_a_limit_that_cannot_be_raised_stays():
    assert after(600, 600, 10) == ((600, 600), 67, [])
