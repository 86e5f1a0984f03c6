"""What a journal tells of the last minutes and the last day, read once and read on."""

import json
from datetime import timedelta

import pytest

from capture import status_journal
from capture.journal import Entry, Event, Journal
from capture.segment import rfc3339
from capture.status_journal import CameraJournal, Gaps, Journals, read_recent, summarise

HOUR = 3600.0


@pytest.fixture
def journal(tmp_path, clock):
    (tmp_path / "journal").mkdir()
    return Journal(tmp_path / "journal", clock)


def gap(journal, clock, seconds, cause="the camera stopped answering"):
    """Journal a gap that ends now."""
    end = clock.now()
    start = end - timedelta(seconds=seconds)
    fields = {"start": rfc3339(start), "end": rfc3339(end), "seconds": seconds, "cause": cause}
    journal.append("gate", Event.GAP, **fields)


def directory(journal):
    return journal.directory / "gate"


def test_a_camera_without_a_journal_has_no_gaps(journal, clock):
    assert read_recent(directory(journal), clock.now()).gaps == Gaps()


def test_the_gaps_of_a_day_are_counted_over_midnight_and_the_older_ones_not(journal, clock):
    clock.step(-30 * HOUR)
    gap(journal, clock, 100)
    for hours in (10, 15, 5):
        clock.step(hours * HOUR)
        gap(journal, clock, 60)

    found = read_recent(directory(journal), clock.now()).gaps

    assert (found.count, found.seconds) == (3, 180.0)
    assert found.since == rfc3339(clock.now() - timedelta(days=1))
    assert found.last.seconds == 60.0
    assert found.last.cause == "the camera stopped answering"


def test_a_gap_stands_in_the_slots_it_covers(journal, clock):
    gap(journal, clock, 330)  # ends at noon, where a slot begins
    clock.step(150)

    slots = dict(read_recent(directory(journal), clock.now()).gaps.slots)

    assert slots == {0: 0.0, 1: 300.0, 2: 30.0}


def test_a_gap_longer_than_a_day_fills_the_day_and_no_more(journal, clock):
    gap(journal, clock, 100 * HOUR)

    found = read_recent(directory(journal), clock.now()).gaps

    assert found.count == 1
    assert len(found.slots) == 288
    assert found.seconds <= 24 * HOUR
    assert found.last.seconds == 100 * HOUR


def test_what_was_read_is_not_read_again(journal, clock, monkeypatch):
    gap(journal, clock, 10)
    watched = CameraJournal(directory(journal))
    assert watched.recent(clock.now()).gaps.count == 1
    parsed = []
    real = status_journal.parse_entry
    monkeypatch.setattr(status_journal, "parse_entry", lambda *args: parsed.append(args) or real(*args))

    assert watched.recent(clock.now()).gaps.count == 1
    gap(journal, clock, 10)
    assert watched.recent(clock.now()).gaps.count == 2
    assert len(parsed) == 1


def test_it_is_read_on_over_midnight(journal, clock):
    watched = Journals()
    gap(journal, clock, 10)
    assert watched.recent(directory(journal), clock.now()).gaps.count == 1
    clock.step(13 * HOUR)
    gap(journal, clock, 10)

    assert watched.recent(directory(journal), clock.now()).gaps.count == 2


def test_a_line_that_is_being_written_is_read_when_it_is_whole(journal, clock):
    gap(journal, clock, 10)
    watched = CameraJournal(directory(journal))
    path = next(directory(journal).glob("*.jsonl"))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:50])
    assert watched.recent(clock.now()).gaps.count == 1
    path.write_bytes(whole + whole)

    assert watched.recent(clock.now()).gaps.count == 2


def test_a_piece_of_a_line_that_was_taken_back_does_not_matter(journal, clock):
    gap(journal, clock, 10)
    watched = CameraJournal(directory(journal))
    assert watched.recent(clock.now()).gaps.count == 1
    path = next(directory(journal).glob("*.jsonl"))
    path.write_bytes(b"")
    assert watched.recent(clock.now()).gaps.count == 1
    gap(journal, clock, 10)

    assert watched.recent(clock.now()).gaps.count == 2


def test_gaps_are_found_before_the_part_of_which_every_line_is_read(journal, clock, monkeypatch):
    monkeypatch.setattr(status_journal, "TAIL_BYTES", 1000)
    gap(journal, clock, 10)
    for _ in range(50):
        journal.append("gate", Event.DELIVERED, bytes=1000)
    fed = []
    monkeypatch.setattr(status_journal.Tally, "feed", lambda _self, entry: fed.append(entry.event))

    CameraJournal(directory(journal)).recent(clock.now())

    assert fed.count(Event.GAP) == 1
    assert fed.count(Event.DELIVERED) < 15


def test_a_journal_that_is_too_long_says_how_far_back_it_was_read(journal, clock, monkeypatch):
    monkeypatch.setattr(status_journal, "DAY_BYTES", 2000)
    clock.step(-5 * HOUR)
    gap(journal, clock, 10)
    for _ in range(100):
        clock.step(0.03 * HOUR)
        journal.append("gate", Event.DELIVERED, bytes=1000)

    found = read_recent(directory(journal), clock.now()).gaps

    assert found.count == 0
    assert found.since > rfc3339(clock.now() - timedelta(hours=4))


def gap_line(start, end):
    return json.dumps({"event": "gap", "t": "2026-06-01T12:00:00Z", "start": start, "end": end}).encode()


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe",
        b'{"event": "gap"}',
        gap_line(5, []),
        gap_line("9999-12-31T23:59:59Z", "0001-01-01"),
        gap_line("0001-01-01T00:00:00Z", "0001-01-01T00:00:01Z"),
        gap_line("9999-01-01T00:00:00Z", "9999-12-31T00:00:00Z"),
        b'{"event": "closed", "t": "2026-06-01T12:00:00Z", "bytes": -5}',
        b'{"event": "closed", "t": "2026-06-01T12:00:00Z", "bytes": 1' + b"0" * 4000 + b"}",
        b'{"event": "closed", "t": "2026-06-01T12:00:00", "bytes": 7}',
        b"x" * 100_000,
    ],
)
def test_lines_from_anywhere_do_no_harm(journal, clock, line):
    gap(journal, clock, 10)
    path = next(directory(journal).glob("*.jsonl"))
    path.write_bytes(path.read_bytes() + line + b"\n" + path.read_bytes())

    found = read_recent(directory(journal), clock.now())

    assert (found.gaps.count, found.gaps.seconds) == (2, 20.0)
    assert found.closed_bytes_per_second == 0.0
    json.dumps(found.gaps.slots)


def test_what_is_kept_does_not_grow_with_the_number_of_gaps(clock):
    start, end = rfc3339(clock.now() - timedelta(seconds=1)), rfc3339(clock.now())
    fields = {"t": end, "start": start, "end": end, "cause": "c" * 10_000}

    found = summarise((Entry(Event.GAP, fields, None, 1) for _ in range(10_000)), clock.now()).gaps

    assert found.count == 10_000
    assert len(found.slots) == 2
    assert len(found.last.cause) == 200
