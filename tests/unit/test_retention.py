"""Who goes when there is no room: pure decisions, and the budget on real files."""

import errno

import pytest

from capture.budget import Budget
from capture.claim import claim
from capture.journal import Event, Journal
from capture.retention import Held, Room, choose, default_min_free, excess
from capture.settings import SpoolSettings
from capture.spool import BALLAST, BALLAST_BYTES
from capture.upkeep import drop_expired
from tests.conftest import PACKET, add_segment, start_session


def room(used=0, free=10**12, total=10**12, reserve=0):
    return Room(used, free, total, reserve)


@pytest.mark.parametrize(
    ("state", "max_bytes", "min_free", "bytes_over", "limit"),
    [
        (room(used=500), None, 0, 0, ""),
        (room(used=500), 1000, 0, 0, ""),
        (room(used=1000), 1000, 0, 0, ""),
        (room(used=900, reserve=200), 1000, 0, 110, "spool.max_bytes"),
        (room(used=1500), 1000, 0, 510, "spool.max_bytes"),
        (room(free=100), None, 100, 0, ""),
        (room(free=50), None, 100, 51, "spool.min_free"),
        (room(used=1001, free=50), 1000, 100, 51, "spool.min_free"),
        (room(used=2000, free=50), 1000, 100, 1010, "spool.max_bytes"),
    ],
)
def test_the_tighter_limit_says_how_much_has_to_go(state, max_bytes, min_free, bytes_over, limit):
    assert excess(state, max_bytes=max_bytes, min_free=min_free) == (bytes_over, limit)


def test_without_a_setting_a_small_share_of_the_disk_stays_free():
    assert default_min_free(10**12) == 100_000_000
    assert default_min_free(10**6) == 50_000


def held(*sizes):
    return [Held(f"{number}", size) for number, size in enumerate(sizes, 1)]


@pytest.mark.parametrize(
    ("by_camera", "to_free", "expected"),
    [
        ({}, 10, []),
        ({"a": held(10, 10)}, 0, []),
        ({"a": held(10, 10)}, 1, [("a", "1")]),
        ({"a": held(10, 10)}, 999, [("a", "1"), ("a", "2")]),
        ({"a": held(10, 10, 10), "b": held(10)}, 20, [("a", "1"), ("a", "2")]),
        ({"a": held(10, 10), "b": held(30)}, 31, [("b", "1"), ("a", "1")]),
        ({"a": held(5, 30), "b": held(20)}, 26, [("a", "1"), ("a", "2")]),
    ],
)
def test_the_oldest_of_the_camera_that_owes_most_goes_first(by_camera, to_free, expected):
    assert [(camera, each.key) for camera, each in choose(by_camera, to_free)] == expected


SIZE = 188 * 1000


def fill(spool, camera, count):
    session = start_session(spool, camera)
    return session, [add_segment(session, n, PACKET * 1000).segment for n in range(1, count + 1)]


def dropped(spool, camera):
    return [e.fields["segment"] for e in spool.journal.read(camera) if e.event is Event.DROPPED]


def test_the_budget_is_kept_with_a_reserve_and_each_drop_is_in_the_journal(spool):
    door, door_segments = fill(spool, "door", 8)
    yard, _ = fill(spool, "yard", 2)
    budget = Budget(spool, SpoolSettings(max_bytes=1_504_000, min_free=0), cameras=2)
    assert budget.enforce() == 5  # 10 x 188,000 + 2 in reserve, down to 1,504,000 less one per cent
    assert dropped(spool, "door") == [str(segment) for segment in door_segments[:5]]
    assert spool.segments(door.name) == door_segments[5:]
    assert len(spool.segments(yard.name)) == 2
    assert budget.enforce() == 0


def test_what_was_added_since_the_last_look_counts_at_once(spool):
    session, _ = fill(spool, "door", 6)
    budget = Budget(spool, SpoolSettings(max_bytes=1_504_000, min_free=0), cameras=1)
    assert budget.enforce() == 0
    for number in (7, 8, 9):
        budget.add(add_segment(session, number, PACKET * 1000).size)
    assert budget.enforce() == 3


def test_what_the_cloud_rejected_goes_before_what_is_owed(spool):
    session, segments = fill(spool, "door", 4)
    with claim(spool, session.name, segments[3]) as claimed:
        claimed.rejected(status=413, reason="x")
    budget = Budget(spool, SpoolSettings(max_bytes=1_000_000, min_free=0), cameras=2)
    assert budget.enforce() == 1
    assert dropped(spool, "door") == [str(segments[3])]
    assert spool.segments(session.name) == segments[:3]
    assert list((session.path / "rejected").iterdir()) == []


def test_a_segment_that_is_being_sent_is_not_dropped(spool):
    session, segments = fill(spool, "door", 6)
    budget = Budget(spool, SpoolSettings(max_bytes=1_000_000, min_free=0), cameras=1)
    with claim(spool, session.name, segments[0]):
        budget.enforce()
        assert segments[0] in spool.segments(session.name)


def test_on_a_full_disk_a_drop_is_journalled_in_the_room_kept_aside(spool, monkeypatch):
    session, segments = fill(spool, "door", 1)
    spool.keep_ballast()
    ballast = spool.state / BALLAST
    assert ballast.stat().st_size == BALLAST_BYTES
    real = Journal.append

    def append(self, *args, **kwargs):
        if ballast.exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Journal, "append", append)
    with claim(spool, session.name, segments[0]) as claimed:
        claimed.dropped(reason="no room")
    assert dropped(spool, "door") == [str(segments[0])]
    assert not ballast.exists()


def test_retention_drops_only_what_is_older(spool):
    session, segments = fill(spool, "door", 3)
    assert drop_expired(spool, retention=3600.0) == 0
    old = session.path / "00000009_20200101T000000.000Z_2000.ts"
    old.write_bytes(PACKET)
    # sequence numbers order a session; an older time behind newer ones is a clock that was set
    assert drop_expired(spool, retention=3600.0) == 0
    old.rename(session.path / "00000000_20200101T000000.000Z_2000.ts")
    assert drop_expired(spool, retention=3600.0) == 1
    assert spool.segments(session.name) == segments
