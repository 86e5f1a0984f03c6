"""A body in pieces: each when its time has come."""

import time

import pytest

from capture.body import HELD_PIECE, DeadlineError, pieces
from capture.limiter import NoLimit

BODY = [b"a" * 100_000, b"b" * 50_000]


def test_a_body_that_may_have_to_make_way_goes_in_small_pieces():
    found = list(pieces(BODY, time.monotonic() + 60, NoLimit(), is_live=False, hold=lambda: 0.0))
    assert b"".join(found) == b"".join(BODY)
    assert max(map(len, found)) == HELD_PIECE


def test_others_go_in_as_few_as_they_were_read_in():
    assert list(pieces(BODY, time.monotonic() + 60, NoLimit(), is_live=True)) == BODY


def test_each_piece_but_the_first_waits_for_as_long_as_others_need_the_line():
    until = time.monotonic() + 0.3
    left = pieces(BODY, until + 60, NoLimit(), is_live=False, hold=lambda: until - time.monotonic())
    next(left)
    assert time.monotonic() < until
    next(left)
    assert time.monotonic() >= until


def test_the_deadline_ends_that():
    began = time.monotonic()
    left = pieces(BODY, began + 0.2, NoLimit(), is_live=False, hold=lambda: 60.0)
    next(left)
    with pytest.raises(DeadlineError):
        next(left)
    assert time.monotonic() - began < 30
