"""Restarts, stalls, and places on the clock."""

from datetime import UTC, datetime, timedelta

import pytest

from capture.supervision import (
    FIRST_FRAME_SECONDS,
    STABLE_SECONDS,
    STALL_SECONDS,
    Ladder,
    Timeline,
    Watchdog,
    restart_delay,
)

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("failures", "seconds"), [(1, 1), (5, 1), (6, 5), (10, 5), (11, 10), (20, 10), (21, 60), (9999, 60)]
)
def test_restarts_come_quickly_first_and_then_slower(failures, seconds):
    assert restart_delay(failures) == seconds


def test_only_a_run_that_stayed_up_starts_the_ladder_anew():
    ladder = Ladder()
    waits = [ladder.delay_after(1.0) for _ in range(7)]
    assert waits == [1, 1, 1, 1, 1, 5, 5]
    assert ladder.delay_after(STABLE_SECONDS) == 1
    assert ladder.failures == 1


def test_a_source_without_a_first_frame_is_noticed_within_fifteen_seconds():
    watchdog = Watchdog(now=100.0)
    assert watchdog.complaint(100 + FIRST_FRAME_SECONDS) is None
    assert watchdog.complaint(114.9) == "no first frame"


def test_a_source_that_stops_is_noticed_and_one_that_goes_on_is_not():
    watchdog = Watchdog(now=0.0)
    watchdog.see(1, 1.0)
    watchdog.see(1, 9.0)  # the same number: nothing new came
    assert watchdog.complaint(1 + STALL_SECONDS) is None
    assert watchdog.complaint(1.1 + STALL_SECONDS) == "no new frame"
    watchdog.see(2, 12.0)
    assert watchdog.complaint(12.5) is None


def test_segments_of_a_paced_source_lie_side_by_side():
    timeline = Timeline(NOON, paced=True)
    first = timeline.place(0.0, 2.0, NOON + timedelta(seconds=2.1))
    second = timeline.place(2.0, 4.0, NOON + timedelta(seconds=4.4))
    assert first == NOON + timedelta(seconds=0.1)
    assert second - first == timedelta(seconds=2)


def test_a_clock_that_was_stepped_moves_the_segments_after_it():
    timeline = Timeline(NOON, paced=True)
    timeline.place(0.0, 2.0, NOON + timedelta(seconds=2))
    after = timeline.place(2.0, 4.0, NOON + timedelta(hours=1, seconds=4))
    assert after == NOON + timedelta(hours=1, seconds=2)


def test_a_file_read_as_fast_as_it_goes_counts_from_its_beginning():
    timeline = Timeline(NOON, paced=False)
    assert timeline.place(60.0, 70.0, NOON + timedelta(seconds=1)) == NOON + timedelta(seconds=60)
