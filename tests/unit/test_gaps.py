"""Each time without video is told once."""

from datetime import UTC, datetime, timedelta

import pytest

from capture.gaps import Gaps

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


def at(seconds):
    return NOON + timedelta(seconds=seconds)


def video(gaps, start, end):
    gaps.video_from(start)
    gaps.video_until(end)


@pytest.fixture
def told():
    return []


@pytest.fixture
def gaps(told, clock):
    def note(start, end, cause):
        told.append(((start - NOON).total_seconds(), (end - NOON).total_seconds(), cause))

    return Gaps(note, clock)


def test_many_retries_are_one_gap_with_the_first_cause_and_the_last(gaps, told):
    video(gaps, at(0), at(10))
    for cause in ("no new frame", "nothing listens", "nothing listens", "no session free"):
        gaps.lost(cause, since=at(0))
    assert gaps.is_open
    video(gaps, at(70), at(80))
    assert told == [(10, 70, "no new frame; then: no session free")]
    assert (gaps.count, gaps.last_cause, gaps.cause) == (1, told[0][2], None)


def test_one_cause_stands_once(gaps, told):
    video(gaps, at(0), at(10))
    gaps.lost("no new frame", since=at(0))
    gaps.lost("no new frame", since=at(0))
    video(gaps, at(20), at(30))
    assert told == [(10, 20, "no new frame")]


def test_video_that_goes_on_is_no_gap(gaps, told):
    video(gaps, at(0), at(10))
    video(gaps, at(12), at(20))  # a clock that was stepped
    gaps.lost("ffmpeg exited with 1", since=at(0))
    video(gaps, at(20.4), at(30))  # it joins
    assert told == []
    assert not gaps.is_open


def test_a_gap_that_is_open_at_the_end_is_told_then_and_only_once(gaps, told):
    video(gaps, at(0), at(10))
    gaps.lost("no new frame", since=at(0))
    gaps.finish(at(60))
    gaps.finish(at(90))
    assert told == [(10, 60, "no new frame")]


def test_a_camera_that_never_came_up_is_missed_from_the_beginning(gaps, told):
    gaps.lost("nothing listens", since=at(3))
    gaps.lost("nothing listens", since=at(9))
    gaps.finish(at(60))
    assert told == [(3, 60, "nothing listens")]


def test_what_an_earlier_run_told_is_not_told_again(gaps, told):
    gaps.resume_from(at(50))
    gaps.lost("the agent was not running", since=at(50))
    video(gaps, at(60), at(70))
    assert told == [(50, 60, "the agent was not running")]


def test_a_piece_between_two_losses_parts_them(gaps, told):
    video(gaps, at(0), at(10))
    gaps.lost("a", since=at(0))
    video(gaps, at(20), at(21))
    gaps.lost("b", since=at(0))
    video(gaps, at(30), at(40))
    assert told == [(10, 20, "a"), (21, 30, "b")]


# --- a clock that is set ---


def wait(clock, seconds, *, step=0.0):
    """Let seconds pass, and set the wall clock by some more or less."""
    clock.step(seconds)
    clock.moment += timedelta(seconds=step)


def test_a_machine_that_begins_in_the_past_tells_of_its_absence_when_its_clock_is_right(gaps, told, clock):
    """It was off for four hours, and has no battery: it begins ten minutes before it was cut off."""
    gaps.resume_from(at(600))
    gaps.lost("the agent was not running", since=at(600))
    wait(clock, 10)
    video(gaps, at(0), at(10))
    wait(clock, 10)
    video(gaps, at(10), at(20))
    assert told == []
    wait(clock, 10, step=4 * 3600)  # it hears of the true time
    video(gaps, at(4 * 3600 + 20), at(4 * 3600 + 30))
    assert told == [(600, 4 * 3600 + 20, "the agent was not running")]
    assert gaps.count == 1


def test_what_is_lost_meanwhile_is_told_by_itself(gaps, told, clock):
    gaps.resume_from(at(600))
    gaps.lost("the agent was not running", since=at(600))
    wait(clock, 10)
    video(gaps, at(0), at(10))
    gaps.lost("no new frame", since=at(0))
    wait(clock, 30)
    video(gaps, at(30), at(40))
    assert told == [(10, 30, "no new frame")]
    wait(clock, 600)
    gaps.finish(at(640))
    assert told[1:] == [(600, 640, "the agent was not running")]


def test_a_quick_restart_whose_first_segment_begins_a_little_early_is_no_gap(gaps, told, clock):
    gaps.resume_from(at(10.3))
    gaps.lost("the agent was not running", since=at(10.3))
    wait(clock, 20)
    video(gaps, at(10), at(20))
    wait(clock, 10)
    video(gaps, at(20), at(30))
    assert told == []


def test_a_clock_that_is_set_back_during_a_loss_takes_nothing_of_it(gaps, told, clock):
    wait(clock, 10)
    video(gaps, at(0), at(10))
    gaps.lost("no new frame", since=at(0))
    wait(clock, 610, step=-3600)
    video(gaps, at(600 - 3600), at(610 - 3600 + 10))
    assert told == [(10 - 3600, 600 - 3600, "no new frame")]


def test_a_machine_that_slept_during_a_loss_counts_that_too(gaps, told, clock):
    wait(clock, 10)
    video(gaps, at(0), at(10))
    gaps.lost("no new frame", since=at(0))
    wait(clock, 20, step=3600)  # monotonic seconds stand still meanwhile
    video(gaps, at(3620), at(3630))
    assert told == [(10, 3620, "no new frame")]
