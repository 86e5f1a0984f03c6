"""A disk that is really full: a small tmpfs."""

import os

import pytest

from capture.budget import Budget
from capture.claim import claim
from capture.errors import SpoolFullError
from capture.journal import Event
from capture.settings import SpoolSettings
from capture.spool import Spool
from tests.conftest import PACKET, add_segment, start_session
from tests.small_disk import fill_up, small_disk

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


def audit_problems(spool):
    """Return the segments that were closed and are neither here nor accounted for."""
    closed, settled = set(), set()
    for entry in spool.journal.read("door"):
        (closed if entry.event is Event.CLOSED else settled).add(entry.fields.get("segment"))
    here = {str(segment) for name in spool.sessions() for segment in spool.segments(name)}
    return closed - settled - here
