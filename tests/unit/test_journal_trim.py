"""How much of the journal is kept: a table, and real files."""

import os
from datetime import date, timedelta

import pytest

from capture.audit import Kind
from capture.audit_spool import audit_spool
from capture.claim import claim
from capture.journal_trim import surplus, trim_journals
from tests.conftest import add_segment, owed_path, start_session

DAY = 86400.0
TODAY = date(2026, 6, 1)  # of the clock in the tests


def days(*ago):
    return [TODAY - timedelta(days=each) for each in ago]


@pytest.mark.parametrize(
    ("found", "keep", "needed_from", "expected"),
    [
        ([], 2 * DAY, None, []),
        (days(1, 0), 2 * DAY, None, []),
        (days(2, 1, 0), 2 * DAY, None, days(2)),
        (days(2, 1, 0), 2.5 * DAY, None, []),
        (days(3, 2, 1, 0), 2 * DAY, *days(3), []),
        (days(3, 2, 1, 0), 2 * DAY, *days(2), days(3)),
        (days(3, 2, 1, 0), 2 * DAY, *days(0), days(3, 2)),
        # Of a camera that seldom runs as many days with lines are kept, however old they are.
        (days(900, 400, 0), 3 * DAY, None, []),
        # A clock that was set forward for a day makes nobody older.
        (days(1, 0, -3650), 3 * DAY, None, []),
        (days(0, 1, 2), 1, None, days(2, 1)),
    ],
)
def test_the_newest_days_stay_and_all_of_what_is_still_here(found, keep, needed_from, expected):
    assert surplus(found, keep, needed_from) == expected


def write_days(spool, count, camera="door"):
    """Write a line on each of the days up to that of the clock."""
    folder = spool.journal.directory / camera
    folder.mkdir(exist_ok=True)
    for day in days(*range(count)):
        with (folder / f"{day}.jsonl").open("a") as file:
            file.write("{}\n")
    return folder


def kept(folder):
    return sorted(path.name for path in folder.iterdir())


def test_old_days_go_and_everything_else_stays(spool, clock):
    spool.clock = clock
    folder, other = write_days(spool, 5), write_days(spool, 3, camera="gate")
    (folder / "notes.txt").write_text("somebody's")
    (folder / "9999-99-99.jsonl").write_text("")

    assert trim_journals(spool, 3 * DAY) == 2

    assert kept(folder) == [f"{day}.jsonl" for day in days(2, 1, 0)] + ["9999-99-99.jsonl", "notes.txt"]
    assert len(kept(other)) == 3
    assert trim_journals(spool, 3 * DAY) == 0


@pytest.mark.parametrize("state", ["owed", "rejected", "open"])
def test_days_of_what_is_still_in_the_spool_stay(spool, clock, state):
    spool.clock = clock
    folder = write_days(spool, 6)
    clock.step(-3 * DAY)
    with start_session(spool, "door") as session:
        clock.step(3 * DAY)
        if state == "open":
            (session.open_directory / "00000001.ts").write_bytes(b"G" * 188)
            moment = clock.time() - 3 * DAY
            os.utime(session.open_directory, (moment, moment))
        else:
            clock.step(-3 * DAY)
            owed = add_segment(session, 1)
            clock.step(3 * DAY)
            if state == "rejected":
                with claim(spool, session.name, owed.segment) as found:
                    found.rejected(status=422, reason="HTTP 422")

        assert trim_journals(spool, 2 * DAY) == 1
        assert kept(folder)[0] == f"{days(4)[0]}.jsonl"


def test_an_audit_of_a_trimmed_journal_is_without_fault(spool, clock):
    spool.clock = spool.journal._clock = clock
    with start_session(spool, "door") as session:
        for number in range(1, 9):
            owed = add_segment(session, number)
            if number < 8:
                with claim(spool, session.name, owed.segment) as found:
                    found.delivered(sha256="0" * 64, status=204, attempts=1)
            clock.step(DAY)
        assert trim_journals(spool, 4 * DAY) == 4

        report = audit_spool(spool, "door")
        assert (report.delivered, report.owed, report.unaccounted) == (3, 1, 0)
        assert report.counts[Kind.PUT_AWAY] == 1

        owed_path(session, owed.segment).unlink()
        assert audit_spool(spool, "door").counts[Kind.LOST] == 1


def test_one_journal_that_cannot_be_trimmed_does_not_keep_the_others(spool, clock):
    spool.clock = clock
    write_days(spool, 4, camera="door")
    gate = write_days(spool, 4, camera="gate")
    oldest = spool.journal.directory / "door" / f"{days(3)[0]}.jsonl"
    oldest.unlink()
    oldest.mkdir()  # nothing that unlink takes

    assert trim_journals(spool, 3 * DAY) == 1

    assert len(kept(gate)) == 3
