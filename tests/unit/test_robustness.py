"""One bad thing never stops the others."""

import os

import pytest
from structlog.testing import capture_logs

from capture.claim import claim
from capture.errors import ConfigError
from capture.gate import Gate, Verdict
from capture.journal import Event, Journal
from capture.settings import IngestSettings
from capture.spool import read_json
from capture.upkeep import close_dead_sessions, note_gap, requeue_rejected, sweep
from tests.conftest import PACKET, add_segment, owing, start_session


def test_one_session_that_cannot_be_salvaged_does_not_stop_the_salvage_of_others(spool, unreadable_where):
    for camera in ("bad", "good"):
        with start_session(spool, camera) as session:
            session.open_path(1).write_bytes(PACKET)
    unreadable_where(lambda camera, _: camera == "bad")
    with capture_logs() as said:
        assert [name.camera for name, _ in close_dead_sessions(spool)] == ["good"]
        assert close_dead_sessions(spool) == []
    assert [(line["event"], line["camera"]) for line in said] == [("salvage_postponed", "bad")]


def test_where_the_spool_is_not_mounted_the_journal_makes_nothing(tmp_path):
    (tmp_path / "bare").mkdir()
    with pytest.raises(FileNotFoundError):
        Journal(tmp_path / "bare" / "journal").append("door", Event.GAP)
    assert list((tmp_path / "bare").iterdir()) == []


def failing_append(*_args, **_kwargs):
    raise PermissionError(13, "Permission denied")


def test_a_journal_that_cannot_be_written_costs_lines_and_no_segment(spool, monkeypatch):
    with start_session(spool) as session:
        monkeypatch.setattr(Journal, "append", failing_append)
        owed = add_segment(session, 1)
        note_gap(spool, "door", start=spool.clock.now(), end=spool.clock.now(), cause="x")
    assert spool.segments(session.name) == [owed.segment]


@pytest.mark.parametrize(
    "text",
    [
        '{"failures": 9, "probes": NaN, "probe_at": 0}',
        '{"failures": 9, "probes": Infinity, "probe_at": Infinity}',
        '{"failures": 9, "probe_at": 1e200, "asked": 1e300}',
        '{"failures": 1' + "0" * 400 + "}",
        "[" * 60_000,
    ],
)
def test_no_state_file_shuts_the_gate_for_good(spool, text):
    (spool.state / "breaker.json").write_text(text)
    with Gate(spool, IngestSettings()).admit("T") as admission:
        assert admission.verdict in {Verdict.GO, Verdict.PROBE}


def test_a_deeply_nested_file_reads_as_empty(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("[" * 60_000)
    assert read_json(path) == {}


def test_a_delivered_segment_that_a_full_disk_emptied_is_not_journalled_as_dropped(spool):
    session = owing(spool, "door", 1)
    (segment,) = spool.segments(session.name)
    os.truncate(session.path / str(segment), 0)
    with claim(spool, session.name, segment) as claimed:
        claimed.dropped(reason="no room")
    assert [entry.event for entry in spool.journal.read("door")][-1] is Event.DELIVERED


def test_what_was_requeued_is_not_swept(spool):
    session = owing(spool, "door", 1)
    (segment,) = spool.segments(session.name)
    with claim(spool, session.name, segment) as claimed:
        claimed.rejected(status=413, reason="x")
    requeue_rejected(spool)
    for path in session.path.rglob("*"):
        os.utime(path, (0, 0))
    assert sweep(spool, sweep_after=60, keep_rejected=60) == []
    assert spool.segments(session.name) == [segment]


def test_an_unmounted_spool_is_a_configuration_error_and_not_a_traceback(spool):
    (spool.root / ".relay-spool").unlink()
    with pytest.raises(ConfigError):
        spool.check_mounted()
