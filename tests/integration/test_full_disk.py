"""A disk that is really full: a small tmpfs."""

import os

import pytest

from capture.budget import Budget
from capture.claim import claim
from capture.errors import SpoolFullError
from capture.journal import Event
from capture.retention import LONGEST_PAUSE
from capture.settings import SpoolSettings
from capture.spool import Spool
from tests.conftest import PACKET, SteppedClock, add_segment, start_session
from tests.small_disk import fill_up, small_disk, use_up_inodes

SEGMENT = PACKET * 1000


@pytest.fixture
def small(tmp_path):
    with small_disk(tmp_path, 4) as disk:
        yield disk / "spool"


def test_a_spool_on_a_full_disk_is_one_message(small):
    fill_up(small.parent)
    with pytest.raises(SpoolFullError, match="full"):
        Spool.open(small, create=True)
    assert not os.path.lexists(small / ".relay-spool")


def test_a_delivery_goes_through_on_a_full_disk_and_is_journalled(small):
    spool = Spool.open(small, create=True)
    session = start_session(spool)
    owed = add_segment(session, 1, SEGMENT)
    # the journal's block is full to its end, so that one more line needs a new one
    path = next(spool.journal.directory.glob("door/*.jsonl"))
    with path.open("ab") as file:
        file.write(b" " * (4096 - path.stat().st_size - 1) + b"\n")
    fill_up(small.parent)
    with claim(spool, session.name, owed.segment) as claimed:
        claimed.delivered(sha256="ab", status=204, attempts=1)
    assert spool.segments(session.name) == []
    assert not audit_problems(spool)


def test_the_budget_frees_a_full_disk_and_the_journal_says_what_it_cost(small):
    spool = Spool.open(small, create=True)
    spool.keep_ballast()
    session = start_session(spool)
    for number in range(1, 13):
        add_segment(session, number, SEGMENT)
    fill_up(small.parent)
    assert os.statvfs(small).f_bavail == 0
    dropped = Budget(spool, SpoolSettings(min_free=400_000), cameras=1).enforce()
    assert 3 <= dropped <= 6
    assert os.statvfs(small).f_bavail * 4096 >= 400_000
    assert len(spool.segments(session.name)) == 12 - dropped
    assert add_segment(session, 13, SEGMENT)
    assert not audit_problems(spool)


# --- room, but no inode ---


@pytest.fixture
def few_inodes(tmp_path):
    with small_disk(tmp_path, 8, inodes=80) as disk:
        yield disk / "spool"


def fill_with_segments(session, first=1):
    """Close segments until none can be made; return them."""
    closed = []
    for number in range(first, 100):
        try:
            closed.append(add_segment(session, number).segment)
        except OSError:
            break
    return closed


def dropped_lines(spool):
    return [entry.fields for entry in spool.journal.read("door") if entry.event is Event.DROPPED]


def test_without_inodes_the_oldest_goes_and_the_newest_goes_on(few_inodes):
    spool = Spool.open(few_inodes, create=True)
    spool.keep_ballast()
    session = start_session(spool)
    closed = fill_with_segments(session)
    assert os.statvfs(few_inodes).f_favail == 0
    budget = Budget(spool, SpoolSettings(), cameras=1)
    assert budget.enforce() == 8
    assert [line["segment"] for line in dropped_lines(spool)] == [str(segment) for segment in closed[:8]]
    assert {line["reason"] for line in dropped_lines(spool)} == {"no room: free inodes"}
    assert budget.enforce() == 0
    for number in range(len(closed) + 1, len(closed) + 40):
        add_segment(session, number)
        budget.enforce()
    assert len(dropped_lines(spool)) == 8 + 39 + 1  # one for the lock on rejected segments
    assert not audit_problems(spool)


def test_without_inodes_rejected_segments_go_first_and_each_has_two(few_inodes):
    spool = Spool.open(few_inodes, create=True)
    spool.keep_ballast()
    session = start_session(spool)
    for number in range(1, 4):
        add_segment(session, number)
        with claim(spool, session.name, spool.segments(session.name)[-1]) as claimed:
            claimed.rejected(status=413, reason="too large")
    budget = Budget(spool, SpoolSettings(), cameras=1)
    assert budget.enforce() == 0
    fill_with_segments(session, 4)
    assert budget.enforce() == 5
    assert [line["reason"].startswith("rejected") for line in dropped_lines(spool)] == [True] * 3 + [
        False
    ] * 2
    assert os.statvfs(few_inodes).f_favail == 8


def test_without_an_inode_for_the_lock_on_rejected_segments_owed_ones_go(few_inodes):
    spool = Spool.open(few_inodes, create=True)
    session = start_session(spool)
    add_segment(session, 1)
    with claim(spool, session.name, spool.segments(session.name)[0]) as claimed:
        claimed.rejected(status=413, reason="too large")
    closed = fill_with_segments(session, 2)
    assert Budget(spool, SpoolSettings(), cameras=1).enforce() == 8
    assert [line["segment"] for line in dropped_lines(spool)] == [str(segment) for segment in closed[:8]]


def test_inodes_that_others_use_up_cost_what_is_owed_at_most_and_nothing_spins(few_inodes):
    spool = Spool.open(few_inodes, create=True)
    spool.keep_ballast()
    session = start_session(spool)
    for number in (1, 2):
        add_segment(session, number)
    use_up_inodes(few_inodes.parent)
    budget = Budget(spool, SpoolSettings(), cameras=1)
    assert budget._enforce_safely() is True
    assert len(dropped_lines(spool)) == 2
    assert budget._enforce_safely() is False
    assert budget._pause() > LONGEST_PAUSE / 10


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_delivery_on_a_new_day_is_journalled_without_a_free_inode(few_inodes, interrupted):
    clock = SteppedClock()
    spool = Spool.open(few_inodes, create=True, clock=clock)
    spool.keep_ballast()
    session = start_session(spool)
    owed = add_segment(session, 1, SEGMENT)
    clock.step(24 * 3600.0)
    use_up_inodes(few_inodes.parent)
    if interrupted:
        os.truncate(session.path / str(owed.segment), 0)
    with claim(spool, session.name, owed.segment) as claimed:
        if interrupted:
            assert claimed.finish_delivered()
        else:
            claimed.delivered(sha256="ab", status=204, attempts=1)
    assert spool.segments(session.name) == []
    assert not audit_problems(spool)


def audit_problems(spool):
    """Return the segments that were closed and are neither here nor accounted for."""
    closed, settled = set(), set()
    for entry in spool.journal.read("door"):
        (closed if entry.event is Event.CLOSED else settled).add(entry.fields.get("segment"))
    here = {str(segment) for name in spool.sessions() for segment in spool.segments(name)}
    return closed - settled - here
