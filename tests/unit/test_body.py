"""A body in pieces: each when its time has come."""

import time

import pytest

from capture.body import HELD_PIECE, DeadlineError, pieces
from capture.limiter import NoLimit

BODY = [b"a" * 100_000, b"b" * 50_000]
SIZE = 150_000


def body(until, **options):
    return pieces(BODY, until, NoLimit(), size=SIZE, **options)


def test_a_body_that_may_have_to_make_way_goes_in_small_pieces():
    found = list(body(time.monotonic() + 60, is_live=False, hold=lambda _: 0.0))
    assert b"".join(found) == b"".join(BODY)
    assert max(map(len, found)) == HELD_PIECE


def test_who_is_asked_is_told_what_is_left():
    told = []

    def hold(left):
        told.append(left)
        return 0.0

    sent = 0
    for piece in body(time.monotonic() + 60, is_live=False, hold=hold):
        assert told == [] if sent == 0 else told[-1] == SIZE - sent
        sent += len(piece)
    assert len(told) == 5


def test_others_go_in_as_few_as_they_were_read_in():
    assert list(body(time.monotonic() + 60, is_live=True)) == BODY


def test_each_piece_but_the_first_waits_for_as_long_as_others_need_the_line():
    until = time.monotonic() + 0.3
    left = body(until + 60, is_live=False, hold=lambda _: until - time.monotonic())
    next(left)
    assert time.monotonic() < until
    next(left)
    assert time.monotonic() >= until


def test_the_deadline_ends_that():
    began = time.monotonic()
    left = body(began + 0.2, is_live=False, hold=lambda _: 60.0)
    next(left)
    with pytest.raises(DeadlineError):
        next(left)
    assert time.monotonic() - began < 30
