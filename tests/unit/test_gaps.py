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
def gaps(told):
    return Gaps(lambda start, end, cause: told.append(((start - NOON).seconds, (end - NOON).seconds, cause)))


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
