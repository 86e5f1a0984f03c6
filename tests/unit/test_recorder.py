"""Closed segments become owed in a session of their picture, and lost time becomes gap lines."""

import hashlib
from datetime import UTC, datetime, timedelta

import pytest

from capture import recorder as recorder_module
from capture.journal import Event
from capture.mpegts import PACKET
from capture.recorder import Recorder
from capture.scan import Digest, scan_file
from capture.session import Session
from capture.upkeep import close_dead_sessions
from tests.conftest import start_session
from tests.transport import stream

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
SMALL, LARGE = (320, 180), (1920, 1080)


class Desk:
    """A recorder on a real spool, whose ffmpeg is the test."""

    def __init__(self, spool):
        self.spool = spool
        self.owed, self.told = [], []
        self.recorder = Recorder(
            "door",
            spool=spool,
            start=lambda: start_session(spool),
            on_owed=lambda session, owed: self.owed.append((session, owed.segment)),
            on_session=lambda session, what: self.told.append((session, what)),
        )
        self.begin()

    def begin(self):
        self.session, self.number = self.recorder.begin()

    def write(self, *sizes, codec="h264"):
        """Write the next open segment."""
        self.session.open_path(self.number).write_bytes(stream(*sizes, codec=codec))
        self.number += 1
        return self.number - 1

    def close(self, *sizes, codec="h264", begin=None):
        number = self.write(*sizes, codec=codec)
        begin = NOON + timedelta(seconds=10 * number) if begin is None else begin
        return self.recorder.take(number, begin, float(len(sizes)))

    def pictures(self):
        """Return session by session what is in each segment."""
        found = {}
        for session, segment in self.owed:
            scan = scan_file(self.spool.session_path(session) / str(segment))
            assert scan.changes == []
            found.setdefault(session, []).append((segment.sequence, scan.first_picture.width))
        return list(found.values())

    def gaps(self):
        return [entry.fields for entry in self.spool.journal.read("door") if entry.event is Event.GAP]


@pytest.fixture
def desk(spool):
    return Desk(spool)


def test_a_session_goes_on_over_restarts_of_ffmpeg(desk):
    desk.close(SMALL)
    desk.recorder.settle()
    desk.begin()
    desk.close(SMALL)
    desk.recorder.end(NOON)
    assert desk.pictures() == [[(1, 320), (2, 320)]]
    assert [what for _, what in desk.told] == ["started", "ended"]


def test_an_open_segment_that_cannot_be_read_does_not_keep_the_others(desk, unreadable_where):
    unreadable_where(lambda _, number: number == 2)
    desk.close(SMALL)
    desk.write(SMALL)
    desk.write(SMALL)
    with pytest.raises(OSError, match="Input/output"):
        desk.recorder.settle()
    assert desk.pictures() == [[(1, 320), (3, 320)]]


def test_a_segment_whose_picture_changes_is_cut_and_a_new_session_begins(desk):
    desk.close(SMALL, SMALL)
    desk.close(SMALL, LARGE, LARGE)
    assert desk.recorder.change() == "the picture changed from h264 320x180 to h264 1920x1080"
    desk.write(LARGE)  # what ffmpeg has open when it is ended for that
    desk.recorder.settle()
    desk.begin()
    desk.close(LARGE)
    assert desk.recorder.change() is None
    desk.recorder.end(NOON)
    assert desk.pictures() == [[(1, 320), (2, 320)], [(1, 1920), (2, 1920), (3, 1920)]]
    assert [what for _, what in desk.told] == ["started", "started", "ended", "ended"]


def test_the_journal_has_the_digest_of_what_is_owed_whether_it_was_looked_at_before_cut_or_torn(desk):
    number = desk.write(SMALL)
    desk.recorder.look()
    path = desk.session.open_path(number)
    path.write_bytes(path.read_bytes() + stream(SMALL)[2 * PACKET :])
    desk.recorder.take(number, NOON, 2.0)
    desk.close(SMALL)
    desk.close(SMALL, LARGE)
    torn = desk.write(LARGE)
    with desk.session.open_path(torn).open("ab") as file:
        file.write(b"G half a packet")
    desk.recorder.take(torn, NOON + timedelta(hours=1), 1.0)
    told = {
        (entry.fields["session"], entry.fields["segment"]): entry.fields["sha256"]
        for entry in desk.spool.journal.read("door")
        if entry.event is Event.CLOSED
    }
    assert len(told) == 5
    for (session, segment), sha256 in told.items():
        content = (desk.spool.root / session / segment).read_bytes()
        assert sha256 == hashlib.sha256(content).hexdigest()


def test_the_parts_of_a_cut_segment_lie_side_by_side_in_time(desk):
    desk.close(SMALL, SMALL, LARGE, begin=NOON)
    (_, first), (_, second) = desk.owed
    assert (first.start, first.end, second.end) == (NOON, second.start, NOON + timedelta(seconds=3))
    assert first.duration == 2.0
    assert desk.gaps() == []


def test_a_codec_that_changed_while_the_camera_was_away_begins_a_new_session_at_once(desk):
    desk.close(SMALL)
    desk.recorder.settle()
    desk.begin()
    desk.close(SMALL, codec="h265")
    desk.close(SMALL, codec="h265")
    assert desk.recorder.change() is None  # this ffmpeg began with it: no need to end it
    desk.recorder.settle()
    desk.begin()
    desk.close(SMALL, codec="h265")
    desk.recorder.end(NOON)
    assert [[number for number, _ in session] for session in desk.pictures()] == [[1], [1, 2, 3]]
    assert [what for _, what in desk.told] == ["started", "started", "ended", "ended"]


def test_pictures_that_go_to_and_fro_make_a_session_each(desk):
    desk.close(SMALL, LARGE, SMALL)
    desk.recorder.end(NOON)
    assert desk.pictures() == [[(1, 320)], [(1, 1920)], [(1, 320)]]
    assert sorted(what for _, what in desk.told) == ["ended"] * 3 + ["started"] * 3


def test_a_picture_that_changes_with_every_frame_costs_a_bounded_number_of_sessions(desk):
    desk.close(*[SMALL, LARGE] * 40)
    assert len(desk.told) <= 3 * recorder_module.MOST_PIECES
    frames = sum(
        scan_file(desk.spool.session_path(session) / str(segment)).frames for session, segment in desk.owed
    )
    assert frames == 800


def test_what_a_killed_ffmpeg_left_is_salvaged_and_cut_as_well(desk):
    desk.close(SMALL)
    desk.write(SMALL, LARGE)
    desk.recorder.settle()
    desk.recorder.end(NOON)
    assert desk.pictures() == [[(1, 320), (2, 320)], [(1, 1920)]]


def test_without_room_for_a_new_session_the_segment_waits_and_nothing_is_lost(desk, monkeypatch):
    desk.close(SMALL)

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(desk.recorder, "_start", full)
        with pytest.raises(OSError, match="No space"):
            desk.close(SMALL, LARGE)
    desk.recorder.settle()
    desk.recorder.end(NOON)
    assert desk.pictures() == [[(1, 320), (2, 320)], [(1, 1920)]]


def test_a_rest_that_could_not_be_written_leaves_the_segment_whole(desk, monkeypatch):
    desk.close(SMALL)
    with monkeypatch.context() as context:
        context.setattr("capture.cut.os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(OSError, match="No space"):
            desk.close(SMALL, LARGE)
    desk.recorder.settle()
    assert desk.pictures() == [[(1, 320), (2, 320)], [(1, 1920)]]


def test_many_tries_in_vain_are_one_gap_line(desk):
    desk.close(SMALL, begin=NOON)
    for cause in ("no new frame", "nothing listens at host and port", "nothing listens at host and port"):
        desk.recorder.gaps.lost(cause, since=NOON)
    desk.close(SMALL, begin=NOON + timedelta(seconds=60))
    (line,) = desk.gaps()
    assert (line["seconds"], line["cause"]) == (59.0, "no new frame; then: nothing listens at host and port")
    assert (line["start"], line["end"]) == ("2026-06-01T12:00:01.000Z", "2026-06-01T12:01:00.000Z")


def test_the_line_of_a_gap_stands_before_that_of_the_segment_after_it(desk):
    desk.close(SMALL, begin=NOON)
    desk.recorder.gaps.lost("no new frame", since=NOON)
    desk.close(SMALL, begin=NOON + timedelta(seconds=60))
    events = [entry.event for entry in desk.spool.journal.read("door")]
    assert events == [Event.CLOSED, Event.GAP, Event.CLOSED]


def test_a_short_piece_that_was_salvaged_parts_two_gaps(desk):
    desk.close(SMALL, begin=NOON)
    desk.recorder.gaps.lost("a", since=NOON)
    desk.write(SMALL)
    desk.recorder.settle()
    desk.recorder.gaps.lost("b", since=NOON)
    desk.recorder.end(desk.owed[-1][1].end + timedelta(seconds=9))
    assert [line["cause"] for line in desk.gaps()] == ["a", "b"]


def test_the_end_of_a_gap_is_where_the_next_run_goes_on(desk):
    desk.close(SMALL, begin=NOON)
    desk.recorder.gaps.lost("no new frame", since=NOON)
    desk.recorder.end(NOON + timedelta(seconds=30))
    assert desk.spool.journal.last_told("door") == NOON + timedelta(seconds=30)


def test_a_session_that_was_taken_away_is_forgotten(desk, spool):
    desk.close(SMALL)
    for path in sorted(desk.session.path.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    desk.session.path.rmdir()
    assert not desk.recorder.session.touch()
    desk.recorder.forget()
    desk.begin()
    assert (desk.session.path.is_dir(), desk.number) == (True, 1)


def test_an_empty_segment_is_none(desk):
    number = desk.write(SMALL)
    desk.session.open_path(number).write_bytes(b"")
    desk.recorder.take(number, NOON, 1.0)
    assert (desk.owed, desk.recorder.segments) == ([], 0)


def test_segments_without_end_and_without_length_are_numbered_all_the_same(desk):
    for _ in range(300):
        desk.close(SMALL, begin=NOON)
    assert len({segment for _, segment in desk.owed}) == desk.recorder.segments == 300


@pytest.mark.parametrize("sizes", [[SMALL], [SMALL, SMALL, SMALL]])
def test_how_far_key_frames_are_apart_is_learnt_from_whole_segments_too(desk, sizes):
    """A segment as short as from one key frame to the next holds one alone."""
    desk.close(*sizes)
    assert desk.recorder.key_interval is None
    desk.recorder.key_frame_came(1.9)
    assert desk.recorder.key_interval == pytest.approx(1.0)


def test_neither_times_that_jump_nor_a_line_that_stalls_put_key_frames_apart(desk):
    desk.session.open_path(1).write_bytes(stream(SMALL))
    desk.recorder.take(1, NOON, 5000.0)
    desk.recorder.key_frame_came(2.0)
    assert desk.recorder.key_interval == 2.0
    desk.recorder.key_frame_came(9.0)
    assert desk.recorder.key_interval == 9.0


def test_the_rest_of_a_cut_segment_is_never_written_over(desk, monkeypatch):
    """The first part cannot be closed: the rest lies in the new session's open/ when the next one comes."""
    desk.close(SMALL)
    real, calls = Session.close_segment, []

    def fails_once(session, *args, **options):
        calls.append(session)
        if len(calls) == 1:
            raise OSError(5, "Input/output error")
        return real(session, *args, **options)

    monkeypatch.setattr(Session, "close_segment", fails_once)
    with pytest.raises(OSError, match="Input/output"):
        desk.close(SMALL, LARGE, LARGE)
    desk.close(LARGE)
    desk.recorder.settle()
    desk.recorder.end(NOON)
    close_dead_sessions(desk.spool, "door")  # as recover does: the new session has ended by now
    widths = [
        scan_file(desk.spool.session_path(debt.session) / str(debt.segment)).first_picture.width
        for debt in desk.spool.debts()
    ]
    assert sorted(widths) == [320, 320, 1920, 1920]


def test_a_digest_of_another_size_is_not_believed(desk):
    number = desk.write(SMALL)
    content = desk.session.open_path(number).read_bytes()
    owed = desk.session.close_segment(number, NOON, 1.0, digest=Digest(len(content) - PACKET, "0" * 64))
    (entry,) = desk.spool.journal.read("door")
    assert owed is not None
    assert entry.fields["sha256"] == hashlib.sha256(content).hexdigest()
