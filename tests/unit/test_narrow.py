"""A line too slow for several uploads at once: whose turn it is, and when that is over."""

import os

import pytest

from capture.ingest import silent_seconds
from capture.locks import exclusive
from capture.narrow import KNOWN_SECONDS, Narrow
from capture.outcome import Kind, Outcome
from capture.settings import IngestSettings
from capture.spool import Spool

SIZE = 295_000
SLOW = Outcome(Kind.TRANSIENT, 0, "timed out", timed_out=True, is_slow=True)
HANGS = Outcome(Kind.TRANSIENT, 0, "timed out", timed_out=True)
OK = Outcome(Kind.OK, 204, "HTTP 204")
SETTINGS = IngestSettings(attempt_seconds=1.0, slowest_uplink=5000)  # 60 s for SIZE


@pytest.fixture
def spool(tmp_path, clock):
    return Spool.open(tmp_path / "spool", create=True, clock=clock)


@pytest.fixture
def narrow(spool):
    return Narrow(spool, SETTINGS)


@pytest.fixture
def other(spool):
    """Another process's."""
    return Narrow(spool, SETTINGS)


def turns(narrow, other):
    with narrow.turn(is_live=False) as first, other.turn(is_live=False) as second:
        return first, second


def test_on_a_line_that_is_fast_enough_everybody_sends(narrow, other):
    narrow.note(OK, size=SIZE, seconds=59.0)
    narrow.note(HANGS, size=SIZE, seconds=60.0)
    assert turns(narrow, other) == (True, True)


def test_on_a_slow_line_one_sends_at_a_time_and_then_the_next(narrow, other):
    narrow.note(SLOW, size=SIZE, seconds=60.0)
    assert turns(narrow, other) == (True, False)
    assert turns(other, narrow) == (True, False)


def test_no_old_video_begins_while_new_waits_for_its_turn(narrow, other):
    narrow.note(SLOW, size=SIZE, seconds=60.0)
    with exclusive(narrow._next), other.turn(is_live=False) as is_mine:
        assert not is_mine
    assert turns(narrow, other) == (True, False)


@pytest.mark.parametrize(
    ("outcome", "last", "is_over"),
    [
        (OK, (SIZE, 7.0), True),
        (OK, (SIZE, 8.0), False),
        (OK, (SIZE // 4, 1.0), True),
        (OK, (SIZE // 5, 0.1), False),
        (HANGS, (SIZE, 1.0), False),
    ],
)
def test_one_of_that_size_that_is_fast_lets_all_others_go(narrow, other, outcome, last, is_over):
    narrow.note(SLOW, size=SIZE, seconds=60.0)
    size, seconds = last
    narrow.note(outcome, size=size, seconds=seconds)
    assert turns(narrow, other) == (True, is_over)


@pytest.mark.parametrize("step", [KNOWN_SECONDS + 1, -1.0])
def test_it_is_forgotten_after_a_while_and_by_a_clock_that_was_set_back(narrow, other, clock, step):
    narrow.note(SLOW, size=SIZE, seconds=60.0)
    clock.step(step)
    assert turns(narrow, other) == (True, True)


def test_each_slow_success_keeps_it(narrow, other, clock):
    narrow.note(SLOW, size=SIZE, seconds=60.0)
    for _ in range(3):
        clock.step(KNOWN_SECONDS - 1)
        narrow.note(OK, size=SIZE, seconds=30.0)
    assert turns(narrow, other) == (True, False)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"at": "x", "bytes": 1}',
        '{"at": 1e999, "bytes": 1}',
        '{"at": 0, "bytes": -5}',
        '{"at": ' + "9" * 400 + ', "bytes": 1}',
        '{"at": 1}',
    ],
)
def test_a_damaged_note_is_none(narrow, other, text):
    narrow._known.write_text(text)
    assert turns(narrow, other) == (True, True)


def test_what_other_machines_left_long_ago_is_removed(narrow, spool, clock):
    old, young = spool.state / "narrow-a.json", spool.state / "narrow-b.json"
    for path, age in ((old, 90_000), (young, 80_000)):
        path.touch()
        os.utime(path, (clock.time() - age,) * 2)
    narrow.note(SLOW, size=SIZE, seconds=60.0)
    assert (old.exists(), young.exists(), narrow.too_large()) == (False, True, SIZE)


@pytest.mark.parametrize(("slowest", "seconds"), [(64_000, 19.096), (10_000, 41.2144), (256 * 1024, 16.0)])
def test_silence_is_borne_for_longer_on_a_line_that_is_known_to_be_slow(slowest, seconds):
    assert silent_seconds(IngestSettings(slowest_uplink=slowest)) == pytest.approx(seconds)
