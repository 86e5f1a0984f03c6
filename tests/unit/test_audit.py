"""The audit as a table: journal lines and files in, report out; and on real files, with planted faults."""

import hashlib
import threading
from pathlib import Path

import pytest

from capture.audit import FAULTS, Kind, SessionFiles
from capture.audit_ledger import audit_entries
from capture.audit_spool import JournalReading, audit_spool, look
from capture.claim import claim
from capture.journal import Entry, Event
from capture.segment import SegmentName, SessionName
from capture.spool import Spool
from capture.upkeep import note_gap, requeue_rejected
from tests.conftest import PACKET, add_segment, owed_path, start_session

A = "relay-segments-door-20260601T120000Z-aaaaaaaa"
B = "relay-segments-door-20260601T130000Z-bbbbbbbb"
OLD = "relay-segments-door-20260531T235950Z-cccccccc"  # it began before the first day of the journal
JOURNAL = Path("journal/door/2026-06-01.jsonl")
DIGEST = hashlib.sha256(PACKET * 4).hexdigest()  # of what `add_segment` writes


def name(number, ms=2000):
    return f"{number:08d}_20260601T120000.000Z_{ms}.ts"


def line(event, number=0, session=A, **fields):
    if event is Event.GAP:
        fields = {"start": "2026-06-01T12:00:00.000Z", "end": "2026-06-01T12:00:05.000Z", "seconds": 5.0}
        return Entry(event, {**fields, "cause": "no new frame"}, JOURNAL, 1)
    fields = {"session": session, "segment": name(number), "bytes": 100} | fields
    return Entry(event, fields, JOURNAL, 1)


def closed(*numbers, session=A):
    return [line(Event.CLOSED, number, session) for number in numbers]


def files(*owed, rejected=(), open_=(), size=100):
    return SessionFiles({name(n): size for n in owed}, frozenset(map(name, rejected)), frozenset(open_))


GAP = line(Event.GAP)
TORN = Entry(None, {}, JOURNAL, 7)

CASES = {
    "all delivered": ([*closed(1), line(Event.DELIVERED, 1)], {}, "1 0 0 0 0", {}),
    "all owed": (closed(1, 2), {A: files(1, 2)}, "0 2 0 0 0", {}),
    "one rejected": ([*closed(1), line(Event.REJECTED, 1)], {A: files(rejected=[1])}, "0 0 1 0 0", {}),
    "one dropped": ([*closed(1), line(Event.DROPPED, 1)], {}, "0 0 0 1 0", {}),
    "rejected, then dropped": (
        [*closed(1), line(Event.REJECTED, 1), line(Event.DROPPED, 1)],
        {},
        "0 0 0 1 0",
        {},
    ),
    "rejected, requeued, delivered": (
        [*closed(1), line(Event.REJECTED, 1), line(Event.REQUEUED, 1), line(Event.DELIVERED, 1)],
        {},
        "1 0 0 0 0",
        {},
    ),
    "salvaged": ([line(Event.RECOVERED, 1)], {A: files(1)}, "0 1 0 0 0", {}),
    "delivered twice counts once": (
        [*closed(1), line(Event.DELIVERED, 1), line(Event.DELIVERED, 1)],
        {},
        "1 0 0 0 0",
        {},
    ),
    "delivered before its closing was journalled": (
        [line(Event.DELIVERED, 1), *closed(1)],
        {},
        "1 0 0 0 0",
        {},
    ),
    "delivered, its closing lost": (
        [line(Event.DELIVERED, 1)],
        {},
        "1 0 0 0 0",
        {Kind.UNANNOUNCED: 1},
    ),
    "a delivery far above what was closed": (
        [*closed(1), line(Event.DELIVERED, 50)],
        {A: files(1)},
        "1 1 0 0 0",
        {Kind.UNANNOUNCED: 1, Kind.HOLE: 1},
    ),
    "delivered with the content it was closed with": (
        [line(Event.CLOSED, 1, sha256="a"), line(Event.DELIVERED, 1, sha256="a")],
        {},
        "1 0 0 0 0",
        {},
    ),
    "delivered with other content": (
        [line(Event.CLOSED, 1, sha256="a"), line(Event.DELIVERED, 1, sha256="b")],
        {},
        "1 0 0 0 0",
        {Kind.CONTENT: 1},
    ),
    "delivered where a full disk took the digest": (
        [line(Event.CLOSED, 1, sha256="a"), line(Event.DELIVERED, 1, sha256=None)],
        {},
        "1 0 0 0 0",
        {},
    ),
    "the lines of several closings lost, with the numbers below": (
        closed(1),
        {A: files(1, 4, 5)},
        "0 3 0 0 0",
        {Kind.UNANNOUNCED: 2, Kind.HOLE: 1},
    ),
    "the lines of closings lost after a gap": (
        [*closed(1), GAP],
        {A: files(1, 3, 4)},
        "0 3 0 0 0",
        {Kind.UNANNOUNCED: 2, Kind.RESTART: 1},
    ),
    "a salvage that removed an empty file and died before its line": (
        closed(1),
        {A: files(1, 3)},
        "0 2 0 0 0",
        {Kind.UNANNOUNCED: 1, Kind.RESTART: 1},
    ),
    "owed, its closing lost": ([], {A: files(1)}, "0 1 0 0 0", {Kind.UNANNOUNCED: 1}),
    "rejected, its closing lost": ([], {A: files(rejected=[1])}, "0 0 1 0 0", {Kind.UNANNOUNCED: 1}),
    "delivered and still there": (
        [*closed(1), line(Event.DELIVERED, 1)],
        {A: files(1)},
        "1 0 0 0 0",
        {Kind.STILL_PRESENT: 1},
    ),
    "an empty file is a delivery without its line": (
        closed(1),
        {A: files(1, size=0)},
        "1 0 0 0 0",
        {Kind.UNJOURNALLED: 1},
    ),
    "an empty file that is settled": (
        [*closed(1), line(Event.DELIVERED, 1)],
        {A: files(1, size=0)},
        "1 0 0 0 0",
        {Kind.STILL_PRESENT: 1},
    ),
    "an owed file is gone": (closed(1, 2), {A: files(1)}, "0 1 0 0 1", {Kind.LOST: 1}),
    "a rejected file is gone": ([*closed(1), line(Event.REJECTED, 1)], {}, "0 0 0 0 1", {Kind.LOST: 1}),
    "a torn line": ([*closed(1), TORN], {A: files(1)}, "0 1 0 0 0", {Kind.TORN: 1}),
    "another camera's line": (
        [line(Event.CLOSED, 1, A.replace("door", "gate"))],
        {},
        "0 0 0 0 0",
        {Kind.FOREIGN: 1},
    ),
    "a line without names": ([line(Event.CLOSED, 1, segment=7)], {}, "0 0 0 0 0", {Kind.FOREIGN: 1}),
    "a line with a path": (
        [line(Event.CLOSED, 1, segment="../../etc/passwd")],
        {},
        "0 0 0 0 0",
        {Kind.FOREIGN: 1},
    ),
    "a number used twice": (
        [*closed(1), line(Event.CLOSED, 1, segment=name(1, 999))],
        {A: SessionFiles({name(1): 100, name(1, 999): 100})},
        "0 2 0 0 0",
        {Kind.DUPLICATE: 1},
    ),
    "a settled number used again": (
        [*closed(1), line(Event.DELIVERED, 1), line(Event.CLOSED, 1, segment=name(1, 999))],
        {A: SessionFiles({name(1, 999): 100})},
        "1 1 0 0 0",
        {Kind.DUPLICATE: 1},
    ),
    "a number used twice, by files alone": (
        [],
        {A: SessionFiles({name(1): 100, name(1, 999): 100})},
        "0 2 0 0 0",
        {Kind.UNANNOUNCED: 1, Kind.DUPLICATE: 1},
    ),
    "the same number in two sessions": (
        [*closed(1), *closed(1, session=B)],
        {A: files(1), B: files(1)},
        "0 2 0 0 0",
        {},
    ),
    "a hole": (closed(1, 2, 5), {A: files(1, 2, 5)}, "0 3 0 0 0", {Kind.HOLE: 1}),
    "two holes": (closed(1, 3, 5), {A: files(1, 3, 5)}, "0 3 0 0 0", {Kind.HOLE: 2}),
    "a hole at a restart": (
        [*closed(1), GAP, *closed(3)],
        {A: files(1, 3)},
        "0 2 0 0 0",
        {Kind.RESTART: 1},
    ),
    "a gap elsewhere explains no hole": (
        [*closed(1), GAP, *closed(2, 4)],
        {A: files(1, 2, 4)},
        "0 3 0 0 0",
        {Kind.HOLE: 1},
    ),
    "a hole below what a dead agent left": (
        [*closed(1), line(Event.RECOVERED, 3)],
        {A: files(1, 3)},
        "0 2 0 0 0",
        {Kind.RESTART: 1},
    ),
    "a hole that is still open": (closed(1, 3), {A: files(1, 3, open_=[2, 4])}, "0 2 0 0 0", {}),
    "a hole that a file fills": (
        closed(1, 3),
        {A: files(1, 2, 3)},
        "0 3 0 0 0",
        {Kind.UNANNOUNCED: 1},
    ),
    "a hole that was filled later": (
        [*closed(1, 3), line(Event.RECOVERED, 2)],
        {A: files(1, 2, 3)},
        "0 3 0 0 0",
        {},
    ),
    "first numbers missing from the first session": (
        closed(3),
        {A: files(3)},
        "0 1 0 0 0",
        {Kind.RESTART: 1},
    ),
    "first numbers missing from a later session": (
        [*closed(1), *closed(2, session=B)],
        {A: files(1), B: files(2)},
        "0 2 0 0 0",
        {Kind.HOLE: 1},
    ),
    "first numbers missing from a session that began before the journal": (
        [*closed(1), *closed(7, 8, session=OLD)],
        {A: files(1), OLD: files(7, 8)},
        "0 3 0 0 0",
        {Kind.PUT_AWAY: 1},
    ),
    "so many missing from it that nobody counts them": (
        [*closed(1), *closed(3_000_000, session=OLD)],
        {A: files(1), OLD: files(3_000_000)},
        "0 2 0 0 0",
        {Kind.PUT_AWAY: 1},
    ),
    "what such a session delivered later": (
        [line(Event.DELIVERED, 3, OLD), *closed(5, session=OLD)],
        {OLD: files(5)},
        "1 1 0 0 0",
        {Kind.PUT_AWAY: 2, Kind.UNANNOUNCED: 1},
    ),
    "a hole in such a session after its first line": (
        [*closed(1), *closed(7, 9, session=OLD)],
        {A: files(1), OLD: files(7, 9)},
        "0 3 0 0 0",
        {Kind.PUT_AWAY: 1, Kind.HOLE: 1},
    ),
    "a segment lost from such a session": (
        [*closed(1), *closed(7, 8, session=OLD)],
        {A: files(1), OLD: files(7)},
        "0 2 0 0 1",
        {Kind.PUT_AWAY: 1, Kind.LOST: 1},
    ),
    "a hole as wide as the numbers": (
        [*closed(1), *closed(99_999_999)],
        {A: files(1, 99_999_999)},
        "0 2 0 0 0",
        {Kind.HOLE: 1},
    ),
    "delivered with another size": (
        [*closed(1), line(Event.DELIVERED, 1, bytes=99)],
        {},
        "1 0 0 0 0",
        {Kind.SIZE: 1},
    ),
    "delivered from an emptied file": (
        [*closed(1), line(Event.DELIVERED, 1, bytes=0)],
        {},
        "1 0 0 0 0",
        {},
    ),
    "cut short on disk": (closed(1), {A: files(1, size=60)}, "0 1 0 0 0", {Kind.SIZE: 1}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_report_adds_up_and_names_what_is_wrong(case):
    entries, listing, sums, kinds = CASES[case]

    report = audit_entries("door", entries, listing)

    found = (report.delivered, report.owed, report.rejected, report.dropped, report.unaccounted)
    assert " ".join(map(str, found)) == sums
    assert report.segments == sum(found)
    assert report.counts == kinds
    assert report.faults == sum(count for kind, count in kinds.items() if kind in FAULTS)


def test_gaps_are_listed_with_their_cause():
    report = audit_entries("door", [GAP, GAP], {})

    assert (report.gap_count, report.gap_seconds) == (2, 10.0)
    assert report.gaps[0].cause == "no new frame"


def test_very_many_findings_are_counted_and_not_all_kept():
    report = audit_entries("door", closed(*range(1, 5001)), {})

    assert report.counts == {Kind.LOST: 5000}
    assert len(report.findings) == 200


# --- real files ------------------------------------------------------------------------------------


def filled(spool, count=6):
    session = start_session(spool)
    owed = [add_segment(session, number).segment for number in range(1, count + 1)]
    with claim(spool, session.name, owed[0]) as delivered:
        delivered.delivered(sha256=DIGEST, status=204, attempts=1)
    with claim(spool, session.name, owed[1]) as rejected:
        rejected.rejected(status=422, reason="HTTP 422")
    with claim(spool, session.name, owed[2]) as dropped:
        dropped.dropped(reason="no room")
    return session, owed


def journal_file(spool):
    return next((spool.journal.directory / "door").glob("*.jsonl"))


def test_a_real_spool_adds_up(spool):
    with filled(spool)[0]:
        report = audit_spool(spool, "door")

    assert (report.delivered, report.owed, report.rejected, report.dropped) == (1, 3, 1, 1)
    assert (report.segments, report.faults, dict(report.counts)) == (6, 0, {})


def test_requeued_segments_stay_accounted_for(spool):
    with filled(spool)[0]:
        requeue_rejected(spool)
        report = audit_spool(spool, "door")

    assert (report.owed, report.rejected, report.faults) == (4, 0, 0)


def test_a_deleted_debt_is_found(spool):
    session, owed = filled(spool)
    with session:
        owed_path(session, owed[4]).unlink()
        report = audit_spool(spool, "door")

    assert report.counts == {Kind.LOST: 1}
    assert report.findings[0].segment == str(owed[4])


def test_a_removed_session_directory_is_found(spool):
    session, _ = filled(spool)
    session.close()
    session.path.rename(spool.root.parent / "elsewhere")

    assert audit_spool(spool, "door").counts == {Kind.LOST: 4}


@pytest.mark.parametrize(
    "tail", [b'{"t": "2026', b'{"t": "2026\n', b"\0" * 40 + b"\n", b"[]\n", b"x" * 40_000]
)
def test_a_torn_line_is_found_wherever_it_stands(spool, tail):
    with filled(spool)[0]:
        with journal_file(spool).open("ab") as file:
            file.write(tail)
        report = audit_spool(spool, "door")

    assert set(report.counts) == {Kind.TORN}


def test_a_hole_is_found_when_line_and_file_are_both_gone(spool):
    session, owed = filled(spool)
    with session:
        path = journal_file(spool)
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(text for text in lines if str(owed[4]) not in text))
        owed_path(session, owed[4]).unlink()
        report = audit_spool(spool, "door")

    assert report.counts == {Kind.HOLE: 1}


def test_an_empty_open_file_that_salvage_removed_is_no_fault(spool):
    with start_session(spool) as session:
        first = add_segment(session, 1).segment
        (session.open_directory / "00000002.ts").touch()
        assert session.salvage() == []
        note_gap(spool, "door", start=first.end, end=spool.clock.now(), cause="no first frame")
        add_segment(session, 3)
        report = audit_spool(spool, "door")

    assert (report.counts, report.faults) == ({Kind.RESTART: 1}, 0)


def test_a_line_in_the_making_is_kept_back_until_it_ends(tmp_path):
    path = tmp_path / "2026-06-01.jsonl"
    path.write_bytes(b'{"event": "gap"}\n{"event": "cl')
    reading = JournalReading(tmp_path)

    assert [entry.event for entry in reading.new()] == [Event.GAP]
    assert [entry.line for entry in reading.unfinished()] == [2]
    with path.open("ab") as file:
        file.write(b'osed"}\n')
    assert [(entry.event, entry.line) for entry in reading.new()] == [(Event.CLOSED, 2)]
    assert reading.unfinished() == []


def test_a_segment_that_moves_while_the_audit_looks_is_no_fault(spool, monkeypatch):
    session, owed = filled(spool)

    def look_and_deliver(spool: Spool, name: SessionName) -> SessionFiles:
        found = look(spool, name)
        with claim(spool, name, owed[3]) as taken:
            taken.delivered(sha256=DIGEST, status=204, attempts=1)
        add_segment(session, 7)
        return found

    monkeypatch.setattr("capture.audit_spool.look", look_and_deliver)
    with session:
        report = audit_spool(spool, "door")

    assert (report.faults, dict(report.counts)) == (0, {})
    assert (report.delivered, report.owed, report.segments) == (2, 3, 7)


def test_a_spool_at_work_shows_no_fault(spool):
    worker = threading.Thread(target=work_hard, args=(spool, 150))
    worker.start()
    reports = []
    while worker.is_alive():
        reports.append(audit_spool(spool, "door"))
    worker.join()

    assert [report.findings for report in reports if report.faults] == []
    assert len(reports) > 3
    assert audit_spool(spool, "door").segments == 150


def work_hard(spool, count):
    """Close, deliver, reject and requeue as agent and workers do, without a pause."""
    with start_session(spool) as session:
        waiting: list[SegmentName] = []
        for number in range(1, count + 1):
            waiting.append(add_segment(session, number).segment)
            if len(waiting) > 5:
                with claim(spool, session.name, waiting.pop(0)) as taken:
                    if number % 7:
                        taken.delivered(sha256=DIGEST, status=204, attempts=1)
                    else:
                        taken.rejected(status=422, reason="HTTP 422")
            if number % 30 == 0:
                requeue_rejected(spool)


def test_an_unreadable_journal_is_an_error_and_not_an_empty_one(spool):
    with filled(spool)[0]:
        path = spool.journal.directory / "door" / "2026-06-01.jsonl"
        path.mkdir()
        with pytest.raises(IsADirectoryError):
            audit_spool(spool, "door")
