"""How long a body of the backlog leaves the line to new video."""

import time

import pytest

from capture.live_bytes import LiveBytes
from tasks.pace import MOST_ALONE
from tasks.sending import MOST_HELD_SECONDS, Hold


@pytest.fixture
def live(tmp_path):
    return LiveBytes(tmp_path)


def test_without_new_video_it_goes(live):
    live.add(1_000_000)  # before it began
    assert Hold(live, 1000.0, 10_000).seconds() <= 0


def test_new_video_gets_the_time_that_it_needs(live):
    hold = Hold(live, 1000.0, 10_000)
    live.add(2000)
    assert 1.5 < hold.seconds() <= 2.0
    live.add(1000)
    assert 2.5 < hold.seconds() <= 3.0


@pytest.mark.parametrize(("size", "most"), [(500, MOST_ALONE * 0.5), (1_000_000, MOST_HELD_SECONDS)])
def test_it_goes_on_in_the_end_whatever_comes(live, size, most):
    began = time.monotonic()
    hold = Hold(live, 1000.0, size)
    live.add(10_000_000)
    assert most - 1 < hold.seconds() + time.monotonic() - began <= most + 0.1


def test_while_the_rate_is_not_known_it_goes(live):
    hold = Hold(live, 0.0, 10_000)
    live.add(2000)
    assert hold.seconds() <= 0
