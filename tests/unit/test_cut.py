"""A segment is cut where its picture changes: each part plays by itself, and no byte is lost."""

import pytest

from capture import cut
from capture.cut import seconds_before, split
from capture.picture import Picture
from capture.scan import scan_file
from tests.conftest import start_session
from tests.transport import stream

SMALL, LARGE = (320, 180), (1920, 1080)


@pytest.fixture
def mixed(tmp_path):
    path = tmp_path / "00000007.ts"
    path.write_bytes(stream(SMALL, SMALL, LARGE))
    return path


def test_both_parts_have_one_picture_and_together_all_bytes(mixed):
    whole, scan, rest = mixed.read_bytes(), scan_file(mixed), mixed.with_name("00000001.ts")
    split(mixed, scan.changes[0], tables=scan.tables, rest=rest)
    assert mixed.read_bytes() + rest.read_bytes().removeprefix(scan.tables) == whole
    for path, size, frames in ((mixed, SMALL, 20), (rest, LARGE, 10)):
        part = scan_file(path)
        assert (part.first_picture, part.changes, part.frames) == (Picture("h264", *size), [], frames)
        assert part.unplayable() is None
    assert sorted(mixed.parent.iterdir()) == sorted([mixed, rest])


@pytest.mark.parametrize(
    ("call", "error"),
    [("fsync", OSError(28, "No space left on device")), ("truncate", OSError(5, "Input/output error"))],
)
def test_where_the_disk_fails_the_file_stays_whole_and_has_no_second_copy(mixed, monkeypatch, call, error):
    whole, scan = mixed.read_bytes(), scan_file(mixed)

    def fails(*_):
        raise error

    monkeypatch.setattr(cut.os, call, fails)
    with pytest.raises(OSError, match=error.strerror):
        split(mixed, scan.changes[0], tables=scan.tables, rest=mixed.with_name("00000001.ts"))
    assert mixed.read_bytes() == whole
    assert list(mixed.parent.iterdir()) == [mixed]


class TimeLimitError(Exception):
    """What Celery raises in the middle of anything."""


def test_a_time_limit_right_after_the_cut_does_not_cost_the_rest(mixed, monkeypatch):
    whole, scan, rest = mixed.read_bytes(), scan_file(mixed), mixed.with_name("00000001.ts")
    truncate = cut.os.truncate

    def interrupted(path, length):
        truncate(path, length)
        raise TimeLimitError

    monkeypatch.setattr(cut.os, "truncate", interrupted)
    with pytest.raises(TimeLimitError):
        split(mixed, scan.changes[0], tables=scan.tables, rest=rest)
    assert mixed.read_bytes() + rest.read_bytes().removeprefix(scan.tables) == whole


@pytest.mark.parametrize(("duration", "expected"), [(3.0, 2.0), (1.5, 1.5), (0.0, 0.0)])
def test_the_time_before_a_change_is_never_longer_than_the_segment(mixed, duration, expected):
    scan = scan_file(mixed)
    assert seconds_before(scan, scan.changes[0], duration) == pytest.approx(expected)


def test_what_a_dead_agent_left_open_is_cut_too_when_it_is_salvaged(spool):
    with start_session(spool) as session:
        session.open_path(7).write_bytes(stream(SMALL, LARGE, SMALL))
        session.open_path(8).write_bytes(stream(SMALL))
        owed = session.salvage()
    assert [each.segment.sequence for each in owed] == [7, 9, 10, 8]
    assert [each.segment.duration_ms for each in owed[:2]] == [1000, 1000]
    for each in owed:
        assert scan_file(session.path / str(each.segment)).changes == []
    starts = [each.segment.start for each in owed[:3]]
    assert starts == sorted(starts)


def test_a_picture_that_changes_with_every_frame_makes_a_bounded_number_of_pieces(spool):
    with start_session(spool) as session:
        session.open_path(1).write_bytes(stream(*[SMALL, LARGE] * 60, fps=1))
        owed = session.salvage()
    assert len(owed) == cut.MOST_PIECES + 1
    assert sum(scan_file(session.path / str(each.segment)).frames for each in owed) == 120
