"""The bandwidth cap: what a timetable says, and who gets how much of a line, in simulated time."""

import heapq
import math
import os
from datetime import time
from time import monotonic

import pytest

from capture.limiter import PIECE_SECONDS, Limiter, book
from capture.timetable import parse_timetable


@pytest.mark.parametrize(
    ("text", "at", "rate"),
    [
        ("2Mbit", "00:00", 250_000),
        ("2 Mbit", "23:59", 250_000),
        ("64kbit", "12:00", 8_000),
        ("1.5Gbit", "12:00", 187_500_000),
        ("08:00-18:00 2Mbit", "08:00", 250_000),
        ("08:00-18:00 2Mbit", "17:59", 250_000),
        ("08:00-18:00 2Mbit", "18:00", None),
        ("22:00-06:00 8Mbit", "23:00", 1_000_000),
        ("22:00-06:00 8Mbit", "05:59", 1_000_000),
        ("22:00-06:00 8Mbit", "06:00", None),
        ("08:00-18:00 2Mbit, 18:00-08:00 10Mbit", "18:00", 1_250_000),
        ("12:00-13:00 8Mbit,08:00-18:00 2Mbit", "12:30", 1_000_000),
    ],
)
def test_a_timetable_tells_the_rate_at_each_time_of_day(text, at, rate):
    assert parse_timetable(text).rate(time.fromisoformat(at)) == rate


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2",
        "2MB",
        "-1Mbit",
        "0Mbit",
        "63kbit",
        "1e3Mbit",
        "8-18 2Mbit",
        "08:00-25:00 2Mbit",
        "2Mbit,4Mbit",
    ],
)
def test_what_is_no_timetable_is_told_with_an_example(text):
    with pytest.raises(ValueError, match="expected a rate like"):
        parse_timetable(text)


def simulate(askers, *, seconds, late=0.0):
    """Have each asker (name, is_live, begin, end) send pieces as fast as it may; return what each got.

    In seconds of the line, by name. `late` is how much longer each sleep lasts than asked.
    """
    state, used = (-math.inf,) * 3, dict.fromkeys((each[0] for each in askers), 0.0)
    events = [(begin, number) for number, (_, _, begin, _) in enumerate(askers)]
    heapq.heapify(events)
    while events:
        now, number = heapq.heappop(events)
        name, is_live, _, end = askers[number]
        if now >= min(end, seconds):
            continue
        state, pause = book(state, PIECE_SECONDS, now, is_live=is_live)
        if pause == 0:
            used[name] += PIECE_SECONDS
            pause = 1e-6
        heapq.heappush(events, (now + pause + (late if pause > 1e-5 else 0), number))
    return used


@pytest.mark.parametrize("late", [0.0, 0.002, 0.02])
@pytest.mark.parametrize("count", [1, 2, 8])
def test_together_they_get_the_rate_and_no_more(count, late):
    used = simulate([(f"b{number}", False, 0.0, 60.0) for number in range(count)], seconds=60.0, late=late)
    assert sum(used.values()) == pytest.approx(60.0, rel=0.02)


def test_new_video_goes_first_and_the_backlog_keeps_a_tenth():
    used = simulate([("live", True, 0.0, 60.0), ("old", False, 0.0, 60.0)], seconds=60.0)
    assert used["old"] == pytest.approx(6.0, rel=0.25)
    assert used["live"] + used["old"] == pytest.approx(60.0, rel=0.02)


def test_the_backlog_has_the_line_while_there_is_no_new_video():
    used = simulate(
        [("live", True, 10.0, 20.0), ("old", False, 0.0, 60.0), ("older", False, 0.0, 60.0)], seconds=60.0
    )
    assert used["live"] == pytest.approx(9.0, rel=0.05)
    assert sum(used.values()) == pytest.approx(60.0, rel=0.02)


@pytest.mark.parametrize("strange", [math.nan, math.inf, 1e18, -math.inf])
def test_a_state_of_another_life_of_the_machine_holds_nobody_up(strange):
    _, pause = book((strange,) * 3, 0.05, 100.0, is_live=False)
    assert pause == 0


def test_a_state_that_cannot_be_written_costs_the_sharing_and_no_upload(tmp_path):
    limiter = Limiter(tmp_path / "missing", parse_timetable("8Mbit"))
    assert limiter.wait(10_000, is_live=True, until=monotonic() + 5)


def test_a_file_of_another_machine_is_removed_after_a_day(tmp_path):
    old, young = tmp_path / "rate-old.bin", tmp_path / "rate-young.bin"
    for path in (old, young):
        path.write_bytes(b"")
    os.utime(old, (0, 0))
    Limiter(tmp_path, parse_timetable("8Mbit"))
    assert [path.name for path in tmp_path.iterdir()] == [young.name]
