"""Restarts, stalls, and places on the clock."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.ffmpeg import REPORT_SECONDS
from capture.supervision import (
    LONGEST_KEY_WAIT,
    STABLE_SECONDS,
    STALL_SECONDS,
    TOLERATED_RUNAWAY,
    Arrivals,
    Drift,
    Expectations,
    Ladder,
    Timeline,
    Watchdog,
    first_frame_patience,
    key_frame_patience,
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


def first_complaint(watchdog, until, act=lambda _: None, *, begin=0.0):
    """Ask every half second; return when it first complained, and of what."""
    now = begin
    while now < until:
        now += 0.5
        act(now)
        if (complaint := watchdog.complaint(now)) is not None:
            return now, complaint
    return None


LIVE = Expectations(segment_seconds=10.0, is_live=True, has_clock=True)


def healthy(watchdog, now, *, fps=10, key_seconds=2.0, segment_seconds=10.0, speed=1.0):
    """Tell what a good camera's ffmpeg tells at this moment."""
    watchdog.hear(now)
    watchdog.see(int(now * fps), now, now * speed)
    if now % key_seconds == 0:
        watchdog.see_key(now, key_seconds if now > key_seconds else None)
    if now % segment_seconds == 0:
        watchdog.see_segment(now)


def test_a_good_camera_is_left_alone_for_an_hour():
    watchdog = Watchdog(0.0, LIVE)
    # A quartz that is off by 300 parts per million adds up to a second in an hour.
    assert first_complaint(watchdog, 3600, lambda now: healthy(watchdog, now, speed=1.0003)) is None


def test_a_source_without_a_first_frame_is_noticed_within_fifteen_seconds():
    watchdog = Watchdog(100.0)
    assert first_complaint(watchdog, 120, begin=100.0) == (114.5, "no first frame")


FAULTS = {
    "no new frame": lambda dog, now: (dog.hear(now), dog.see(200, now, 20.0)),
    "ffmpeg does not run": lambda _dog, _now: None,
    "no key frame": lambda dog, now: (dog.hear(now), dog.see(int(now * 10), now, now)),
    "its times run ahead of the clock": lambda dog, now: healthy(dog, now, speed=20.0),
    "its times fall behind the clock": lambda dog, now: (
        dog.hear(now),
        dog.see(int(now * 10), now, 20.0),
        dog.see_key(now, 2.0),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_noticed_within_fifteen_seconds_and_called_by_its_name(fault):
    watchdog = Watchdog(0.0, LIVE)

    def act(now):
        if now <= 20:
            healthy(watchdog, now)
        else:
            FAULTS[fault](watchdog, now)

    noticed, complaint = first_complaint(watchdog, 60, act)
    assert complaint == fault
    assert 20 < noticed <= 20 + 12.5  # ffmpeg has 3 s to end before that is logged


@pytest.mark.parametrize("ago", [0.0, 0.5, 1.0])
def test_a_camera_that_stops_is_noticed_in_time_however_long_ago_ffmpeg_told_of_it(ago):
    watchdog = Watchdog(0.0, Expectations(segment_seconds=10.0, is_live=True))
    stop = 12.0 - ago

    def act(now):
        if now % REPORT_SECONDS == 0:
            watchdog.hear(now)
            watchdog.see(int(min(now, stop) * 10), now, min(now, stop))
            watchdog.see_key(min(now, stop), 2.0)

    noticed, complaint = first_complaint(watchdog, 60, act)
    assert complaint == "no new frame"
    assert stop + STALL_SECONDS < noticed <= stop + 12.0  # ffmpeg has 3 s to end before that is logged


def test_key_frames_without_a_new_segment_are_a_fault_after_twice_its_length():
    watchdog = Watchdog(0.0, Expectations(segment_seconds=10.0, is_live=True))

    def act(now):
        watchdog.hear(now)
        watchdog.see(int(now * 10), now, 5.0)
        watchdog.see_key(now, 0.5)

    noticed, complaint = first_complaint(watchdog, 60, act)
    assert (noticed, complaint) == (21.0, "no new segment")  # half a second to the first frame


@pytest.mark.parametrize("key_seconds", [2.0, 10.0, 30.0, 50.0])
def test_a_camera_whose_key_frames_are_far_apart_is_left_alone(key_seconds):
    watchdog = Watchdog(0.0, LIVE)

    def act(now):
        healthy(watchdog, now, key_seconds=key_seconds, segment_seconds=max(10.0, key_seconds))

    assert first_complaint(watchdog, 600, act) is None


def test_no_key_frame_at_all_is_a_fault_for_any_camera():
    watchdog = Watchdog(0.0, LIVE)
    noticed, complaint = first_complaint(
        watchdog, 600, lambda now: healthy(watchdog, now, key_seconds=1e9, segment_seconds=1e9)
    )
    assert complaint == "no key frame"
    assert LONGEST_KEY_WAIT <= noticed <= LONGEST_KEY_WAIT + 2


@pytest.mark.parametrize(
    ("interval", "seconds"),
    [(None, 120), (0.0, 12), (1, 12), (5, 12), (8, 18), (30, 62), (90, 120), (1e9, 120)],
)
def test_patience_with_key_frames_follows_the_camera(interval, seconds):
    assert key_frame_patience(interval) == seconds


@pytest.mark.parametrize(
    ("tries", "interval", "seconds"),
    [(0, 0, 14), (1, 0, 14), (2, 0, 35), (4, 0, 125), (5, 0, 14), (0, 30, 35), (0, 1e9, 120), (4, 30, 125)],
)
def test_after_tries_in_vain_a_first_frame_is_waited_for_longer(tries, interval, seconds):
    assert first_frame_patience(tries, interval) == seconds


def test_a_file_or_a_picture_of_our_own_has_neither_rhythm_nor_clock():
    watchdog = Watchdog(0.0, Expectations(segment_seconds=1.0))

    def act(now):
        watchdog.hear(now)
        watchdog.see(int(now * 10), now, now * 50)

    assert first_complaint(watchdog, 300, act) is None


def test_what_a_camera_kept_and_sends_at_the_start_is_no_runaway():
    drift = Drift()
    drift.see(0.0, 0.0)
    drift.see(8.0, 1.0)
    drift.see(12.0, 5.0)
    drift.see(13.0, 6.0)
    assert abs(drift.seconds) < 1


def test_a_stall_that_is_made_good_leaves_no_drift():
    drift = Drift()
    for now in range(20):
        drift.see(float(now), now)
    drift.see(20.0, 28)
    drift.see(29.0, 29)
    assert abs(drift.seconds) < 0.5


def test_a_machine_too_slow_to_encode_is_not_helped_by_a_restart():
    watchdog = Watchdog(0.0, Expectations(segment_seconds=10.0, is_live=True, has_clock=True, may_lag=True))
    assert first_complaint(watchdog, 300, lambda now: healthy(watchdog, now, speed=0.5)) is None


def test_time_in_which_we_were_stopped_ourselves_does_not_count():
    watchdog = Watchdog(0.0, LIVE)
    assert first_complaint(watchdog, 20, lambda now: healthy(watchdog, now)) is None
    assert watchdog.complaint(3600.0) is None
    assert first_complaint(watchdog, 3620, begin=3600.0)[0] > 3608


@given(
    st.lists(
        st.tuples(st.floats(0, 1e6), st.integers(0, 2**40), st.floats(allow_nan=False, allow_infinity=False)),
        max_size=20,
    )
)
def test_no_report_of_ffmpeg_makes_it_raise(reports):
    watchdog, arrivals = Watchdog(0.0, LIVE), Arrivals()
    for now, frames, out_time in reports:
        watchdog.hear(now)
        watchdog.see(frames, now, out_time)
        watchdog.complaint(now)
        arrivals.see(frames, now, out_time)
        assert 0 <= arrivals.ago(out_time, now + 1) <= 1e6 + 1


def test_a_jitter_spreads_the_waits_by_its_share():
    low, high = (Ladder(jitter=0.1, chance=lambda share=share: share) for share in (0.0, 1.0))
    assert low.delay_after(1.0) == pytest.approx(0.9)
    assert high.delay_after(1.0) == pytest.approx(1.1)


def test_a_camera_that_asks_for_time_is_given_it():
    ladder = Ladder()
    assert [ladder.delay_after(1.0, at_least=10.0) for _ in range(12)] == [10.0] * 12
    for _ in range(9):
        assert ladder.delay_after(1.0, at_least=10.0) in {10.0, 60.0}
    assert ladder.delay_after(1.0, at_least=10.0) == 60.0


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


def test_a_last_segment_that_is_closed_long_after_its_last_frame_stays_where_it_was():
    timeline = Timeline(NOON, paced=True)
    timeline.place(0.0, 2.0, NOON + timedelta(seconds=2))
    last = timeline.place(2.0, 3.0, NOON + timedelta(seconds=13), ended_ago=10.0)
    assert last == NOON + timedelta(seconds=2)


@pytest.mark.parametrize("error", [-1.0, -0.4, 0.0, 0.4, 1.0, 2.5])
@pytest.mark.parametrize("silence", [2.0, 2.5, 3.0, 4.0, 9.0])
@pytest.mark.parametrize("late", [0.0, 0.5, 1.9])
def test_a_silence_moves_nothing_though_its_length_is_not_known_well(silence, error, late):
    timeline = Timeline(NOON, paced=True)
    first = timeline.place(0.0, 2.0, NOON + timedelta(seconds=2 + late))
    closed = NOON + timedelta(seconds=3 + silence)
    last = timeline.place(2.0, 3.0, closed, ended_ago=silence + error)
    assert last - first == timedelta(seconds=2)


@pytest.mark.parametrize(
    ("ago", "seconds"), [(0.0, 0.0), (0.9, 0.0), (1.0, 1.0), (1.6, 1.6), (2.5, 2.5), (4.0, 4.0)]
)
def test_an_only_segment_is_moved_by_a_silence_and_not_by_jitter(ago, seconds):
    start = Timeline(NOON, paced=True).place(0.0, 3.0, NOON + timedelta(seconds=3), ended_ago=ago)
    assert start == NOON - timedelta(seconds=seconds)


def test_a_file_read_as_fast_as_it_goes_knows_no_silence():
    timeline = Timeline(NOON, paced=False)
    assert timeline.place(60.0, 70.0, NOON, ended_ago=9.0) == NOON + timedelta(seconds=60)


def test_an_only_segment_that_is_closed_long_after_its_last_frame_ends_with_that():
    timeline = Timeline(NOON, paced=True)
    start = timeline.place(0.0, 3.0, NOON + timedelta(seconds=13), ended_ago=10.0)
    assert start == NOON


def test_a_clock_that_is_stepped_during_a_silence_is_followed():
    timeline = Timeline(NOON, paced=True)
    timeline.place(0.0, 2.0, NOON + timedelta(seconds=2))
    after = timeline.place(2.0, 3.0, NOON + timedelta(hours=1, seconds=11), ended_ago=8.0)
    assert after == NOON + timedelta(hours=1, seconds=2)


@pytest.mark.parametrize("turns", [0, 3])
def test_what_was_left_open_is_placed_by_its_stream_time_and_not_by_its_last_byte(turns):
    timeline, turn = Timeline(NOON, paced=True), timedelta(seconds=(1 << 33) / 90_000)
    timeline.place(0.0, 2.0, NOON + timedelta(seconds=2))
    begun = NOON + timedelta(seconds=4) + turns * turn
    assert abs(timeline.place_salvaged(4.0, begun + timedelta(seconds=10)) - begun) < timedelta(seconds=0.001)


def test_a_stream_time_that_leads_nowhere_near_the_file_is_not_believed():
    timeline = Timeline(NOON, paced=True)
    guess = NOON + timedelta(hours=2)
    assert timeline.place_salvaged(4.0, guess) == guess
    timeline.place(0.0, 2.0, NOON + timedelta(seconds=2))
    assert timeline.place_salvaged(4.0, guess) == guess


def test_a_camera_whose_times_stay_wrong_is_followed_after_a_few_restarts():
    expected = replace(LIVE, tolerated_drift=TOLERATED_RUNAWAY)
    for speed, complaint in [
        (0.4, None),
        (1.2, None),
        (3.0, None),
        (20.0, "its times run ahead of the clock"),
    ]:
        watchdog = Watchdog(0.0, expected)
        found = first_complaint(watchdog, 300, lambda now, dog=watchdog, s=speed: healthy(dog, now, speed=s))
        assert (found and found[1]) == complaint
