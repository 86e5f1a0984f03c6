"""Who goes when there is no room: pure decisions, and the budget on real files."""

import errno
import os
import time

import pytest

from capture.budget import Budget
from capture.claim import claim
from capture.eviction import ASIDE_SECONDS
from capture.holdings import Sizes
from capture.journal import Event, Journal
from capture.locks import exclusive
from capture.retention import (
    Room,
    default_min_free,
    excess,
    first_allowance,
    least_allowance,
    missing_inodes,
    next_allowance,
    owes_most,
    pause,
)
from capture.settings import SpoolSettings
from capture.spool import BALLAST, BALLAST_BYTES, Spool
from capture.upkeep import REJECTED_LOCK, drop_expired
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
        (room(free=50), None, 100, 50, "spool.min_free"),
        (room(used=1001, free=50), 1000, 100, 50, "spool.min_free"),
        (room(used=2000, free=50), 1000, 100, 1010, "spool.max_bytes"),
    ],
)
def test_the_tighter_limit_says_how_much_has_to_go(state, max_bytes, min_free, bytes_over, limit):
    assert excess(state, max_bytes=max_bytes, min_free=min_free) == (bytes_over, limit)


@pytest.mark.parametrize(
    ("total", "free", "cameras", "missing"),
    [
        (80, 8, 1, 0),
        (80, 7, 1, 1),
        (80, 0, 50, 8),  # a tenth at most, whatever the cameras need
        (4096, 40, 2, 16),
        (100_000_000, 999, 4, 33),
        (100_000_000, 5_000, 4, 0),
        (0, 0, 4, 0),  # btrfs and others tell of none
        (1000, 1_000_000, 4, 0),  # some tell of more than they have
        (1000, -1, 4, 0),
        (1, 0, 4, 0),
    ],
)
def test_a_few_inodes_stay_free_where_the_file_system_tells_of_any(total, free, cameras, missing):
    assert missing_inodes(total, free, cameras=cameras) == missing


def test_without_a_setting_a_small_share_of_the_disk_stays_free():
    assert default_min_free(10**12) == 100_000_000
    assert default_min_free(10**6) == 50_000


@pytest.mark.parametrize(
    ("owed", "expected"),
    [({}, None), ({"a": 5}, "a"), ({"a": 5, "b": 6}, "b"), ({"b": 5, "a": 5}, "a"), ({"a": 0}, "a")],
)
def test_the_camera_that_owes_most_is_next(owed, expected):
    assert owes_most(owed) == expected


def test_near_the_limit_counts_as_over_it_so_that_a_look_pays_for_many_segments():
    near = room(used=9_980)
    assert excess(near, max_bytes=10_000, min_free=0) == (0, "")
    assert excess(near, max_bytes=10_000, min_free=0, near=0.0025) == (80, "spool.max_bytes")


def test_what_is_being_written_is_allowed_to_grow_as_much_as_it_did_of_late_and_half_as_much_later():
    allowance = next_allowance(0.0, grown=1000, seconds=0.1)
    assert allowance == 2000
    assert next_allowance(allowance, grown=10, seconds=30.0) == 1000
    assert next_allowance(allowance, grown=9000, seconds=0.1) == 18_000


def test_before_anything_was_seen_a_whole_segment_of_each_camera_is_allowed_for():
    assert first_allowance(4, 1_000_000, 100_000_000) == 4_000_000
    assert first_allowance(4, 1_000_000, 8_000_000) == 2_000_000
    assert least_allowance(2, 10**12) == 2 * 1024 * 1024
    assert least_allowance(2, 2_000_000) == 100_000


@pytest.mark.parametrize(("left", "seconds"), [(-1, 0.05), (0, 0.05), (5_000_000, 0.5), (10**9, 3.0)])
def test_the_nearer_a_limit_the_more_often_it_looks(left, seconds):
    assert pause(left, cameras=1) == seconds


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
    real = Journal.append_all

    def append(self, *args, **kwargs):
        if ballast.exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Journal, "append_all", append)
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


# --- what counts ---


def budget_of(spool, max_bytes, *, cameras=1):
    return Budget(spool, SpoolSettings(max_bytes=max_bytes, min_free=0), cameras=cameras)


def write_open(session, number, packets):
    (session.open_directory / f"{number:08d}.ts").write_bytes(PACKET * packets)


def test_what_is_being_written_counts_at_its_real_size(spool):
    session, segments = fill(spool, "door", 6)
    budget = budget_of(spool, 2_000_000)
    assert budget.enforce() == 0
    write_open(session, 7, 3000)  # a camera whose bitrate jumped
    assert budget.enforce() >= 3
    assert spool.segments(session.name)[-1] == segments[-1]


def test_the_open_segments_of_a_killed_agent_count_before_they_are_salvaged(spool):
    session, _ = fill(spool, "door", 6)
    write_open(session, 7, 5000)
    session.close()
    assert budget_of(spool, 2_000_000).enforce() > 0
    assert spool.owed_count() * SIZE + 5000 * len(PACKET) <= 2_000_000


def test_the_segments_of_another_agent_count_when_they_close(spool):
    budget = budget_of(spool, 2_000_000)
    other, _ = fill(spool, "yard", 1)
    assert budget.enforce() == 0
    for number in range(2, 12):  # nobody tells the budget
        write_open(other, number, 1000)
        budget.enforce()
        add_segment(other, number, PACKET * 1000)
    assert budget.enforce() + budget.dropped
    assert len(spool.segments(other.name)) * SIZE <= 2_000_000


def test_a_start_is_below_the_limit_before_it_returns(spool):
    fill(spool, "door", 20)
    budget = budget_of(spool, 1_000_000)
    budget.start()
    try:
        assert spool.owed_count() * SIZE <= 1_000_000
    finally:
        budget.stop()


def test_without_a_limit_in_bytes_a_start_does_not_read_what_is_owed(spool, monkeypatch):
    session, _ = fill(spool, "door", 3)
    read = []
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (read.append(str(path)), real(path))[1])
    budget = Budget(spool, SpoolSettings(min_free=0), cameras=1)
    assert budget.enforce() == 0
    assert f"{session.path}/open" in read
    assert str(session.path) not in read
    assert (spool.state / BALLAST).exists()


def test_a_start_with_very_much_to_drop_does_not_hold_up_the_capture(spool, monkeypatch):
    session = start_session(spool)
    for number in range(1, 1001):
        (session.path / f"{number:08d}_20260601T120000.000Z_2000.ts").write_bytes(PACKET * 50)
    monkeypatch.setattr("capture.budget.START_SECONDS", 0.0)
    monkeypatch.setattr("capture.budget.ROUND_SECONDS", 0.0)
    budget = budget_of(spool, 1_000_000)
    budget.start()
    first = budget.dropped
    assert first < 800
    end = time.monotonic() + 30
    while len(spool.segments(session.name)) * 50 * len(PACKET) > 1_000_000 and time.monotonic() < end:
        time.sleep(0.01)
    budget.stop()
    assert len(spool.segments(session.name)) * 50 * len(PACKET) <= 1_000_000
    assert budget.dropped == len(set(dropped(spool, "door")))


def test_when_even_what_is_being_written_does_not_fit_it_says_so_once(spool, capsys):
    session, _ = fill(spool, "door", 2)
    write_open(session, 3, 9000)
    budget = budget_of(spool, 1_000_000)
    assert budget.enforce() == 2
    budget.enforce()
    assert capsys.readouterr().out.count("budget_too_small") == 1


def test_what_was_delivered_meanwhile_makes_room(spool):
    session, segments = fill(spool, "door", 6)
    budget = budget_of(spool, 1_504_000)
    assert budget.enforce() == 0
    for segment in segments[:3]:
        (session.path / str(segment)).unlink()
    for number in (7, 8, 9):
        budget.add(add_segment(session, number, PACKET * 1000).size)
    assert budget.enforce() == 0


def test_after_a_segment_that_was_being_sent_the_oldest_is_still_the_next_to_go(spool):
    session, segments = fill(spool, "door", 6)
    budget = budget_of(spool, 1_000_000)
    with claim(spool, session.name, segments[0]):
        budget.enforce()
    for number in (7, 8, 9):
        budget.add(add_segment(session, number, PACKET * 1000).size)
    budget.enforce()
    assert dropped(spool, "door").index(str(segments[0])) == len(dropped(spool, "door")) - 3
    assert len(set(dropped(spool, "door"))) == len(dropped(spool, "door"))


def test_when_the_journal_can_be_written_again_the_oldest_is_still_the_next_to_go(spool, monkeypatch):
    _, segments = fill(spool, "door", 8)
    budget = budget_of(spool, 1_000_000)
    with monkeypatch.context() as patch:
        patch.setattr(Spool, "journal_for_sure", lambda *_args: (spool.root / "absent").stat())
        assert budget.enforce() == 0
    assert budget.enforce() > 0
    assert dropped(spool, "door")[0] == str(segments[0])


def test_a_camera_whose_journal_cannot_be_written_does_not_keep_others_from_going(spool):
    _, door_segments = fill(spool, "door", 8)
    yard, _ = fill(spool, "yard", 3)
    for path in (spool.journal.directory / "door").iterdir():
        path.unlink()
        path.mkdir()
    assert budget_of(spool, 1_700_000).enforce() == 3
    assert spool.segments(yard.name) == []
    assert len(door_segments) == 8


def test_a_session_that_cannot_be_read_does_not_keep_others_from_going(spool, monkeypatch):
    bad, _ = fill(spool, "door", 3)
    fill(spool, "yard", 8)
    real = os.scandir

    def scandir(path):
        if str(path).startswith(str(bad.path)):
            raise OSError(errno.EIO, "Input/output error")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert budget_of(spool, 1_000_000).enforce() >= 3
    assert dropped(spool, "door") == []


def test_segments_that_cannot_be_removed_have_one_line_and_others_go(tmp_path, clock, monkeypatch, capsys):
    spool = Spool.open(tmp_path / "stepped", create=True, clock=clock)
    session, segments = fill(spool, "door", 12)
    stuck = {str(segment) for segment in segments[:4]}
    real = os.unlink

    def unlink(path, *args, **kwargs):
        if os.path.basename(path) in stuck:  # noqa: PTH119 - any path that unlink takes
            raise OSError(errno.EPERM, "Operation not permitted")
        real(path, *args, **kwargs)

    monkeypatch.setattr(os, "unlink", unlink)
    budget = budget_of(spool, 1_000_000)
    for number in range(13, 33):
        budget.add(add_segment(session, number, PACKET * 1000).size)
        budget.enforce()
        clock.step(1.0)
    names = dropped(spool, "door")
    assert spool.segments(session.name)[:4] == segments[:4]
    assert len(spool.segments(session.name)) * SIZE <= 1_000_000
    assert len(names) == len(set(names))
    assert stuck <= set(names)
    assert capsys.readouterr().out.count("segment_not_dropped") == 4
    stuck.clear()
    clock.step(ASIDE_SECONDS)
    for number in range(33, 45):
        budget.add(add_segment(session, number, PACKET * 1000).size)
        budget.enforce()
    assert segments[0] not in spool.segments(session.name)


def test_segments_that_cannot_be_taken_are_said_once_and_others_go(spool, immutable, capsys):
    session, segments = fill(spool, "door", 12)
    for segment in segments[:4]:
        immutable(session.path / str(segment))
    budget = budget_of(spool, 1_000_000)
    for number in range(13, 18):
        budget.add(add_segment(session, number, PACKET * 1000).size)
        budget.enforce()
    assert spool.segments(session.name)[:4] == segments[:4]
    assert len(spool.segments(session.name)) * SIZE <= 1_000_000
    assert capsys.readouterr().out.count("segment_not_dropped") == 4


def test_while_rejected_ones_are_swept_owed_ones_go_and_nothing_goes_twice(spool):
    session, segments = fill(spool, "door", 8)
    for segment in segments[4:]:
        with claim(spool, session.name, segment) as claimed:
            claimed.rejected(status=413, reason="x")
    with exclusive(spool.state / REJECTED_LOCK) as mine:
        assert mine
        assert budget_of(spool, 1_200_000).enforce() == 3
    assert dropped(spool, "door") == [str(segment) for segment in segments[:3]]


def test_a_budget_without_its_mount_writes_nothing_and_goes_on_by_itself(spool, tmp_path, capsys):
    fill(spool, "door", 8)
    budget = budget_of(spool, 1_000_000)
    away = tmp_path / "away"
    spool.root.rename(away)
    spool.root.mkdir()
    for _ in range(3):
        budget._enforce_safely()
    assert os.listdir(spool.root) == []
    assert capsys.readouterr().out.count("budget_not_enforced") == 1
    spool.root.rmdir()
    away.rename(spool.root)
    budget._enforce_safely()
    assert budget.dropped > 0
    assert "budget_enforced_again" in capsys.readouterr().out


def test_room_that_a_file_system_shows_late_does_not_cost_more_segments(spool, monkeypatch):
    session, _ = fill(spool, "door", 8)
    real = os.statvfs(spool.root)
    free = real.f_blocks * real.f_frsize // 2  # whatever is removed

    class Late:
        f_bavail, f_frsize, f_blocks = free // real.f_frsize, real.f_frsize, real.f_blocks
        f_files = f_favail = 0

    monkeypatch.setattr(os, "statvfs", lambda _path: Late)
    budget = Budget(spool, SpoolSettings(min_free=free + 100_000), cameras=1)
    first = budget.enforce()
    assert 0 < first < 8
    assert budget.enforce() == 0
    assert len(spool.segments(session.name)) == 8 - first


def test_what_is_written_while_room_is_made_is_not_taken_for_room_that_shows_late(spool, monkeypatch):
    """A fast camera fills what was freed before anybody looks: it has to go on, or the disk is full."""
    session, _ = fill(spool, "door", 20)
    total = 24 * SIZE
    written = session.open_directory / "00000021.ts"
    written.write_bytes(PACKET * 1000)
    real = Spool.journal_for_sure

    class Disk:
        f_frsize, f_blocks = 1, total
        f_files = f_favail = 0

        @property
        def f_bavail(self):
            return total - sum(path.stat().st_size for path in session.path.rglob("*.ts"))

    def slow(self, camera, event, *lines):
        with written.open("ab") as file:
            file.write(PACKET * 600 * len(lines))
        real(self, camera, event, *lines)

    monkeypatch.setattr(os, "statvfs", lambda _path: Disk())
    monkeypatch.setattr(Spool, "journal_for_sure", slow)
    budget = Budget(spool, SpoolSettings(min_free=2 * SIZE), cameras=1)
    assert budget.enforce() == 1
    for _ in range(10):
        with written.open("ab") as file:
            file.write(PACKET * 300)
        budget.enforce()
        assert Disk().f_bavail > SIZE


class Inodes:
    """A file system with room, and so many inodes."""

    f_frsize, f_blocks, f_bavail = 4096, 10**9, 10**9

    def __init__(self, total, free):
        self.f_files, self.f_favail = total, free


def test_a_number_of_free_inodes_that_does_not_move_with_our_files_costs_nothing(spool, monkeypatch):
    session, segments = fill(spool, "door", 4)
    monkeypatch.setattr(os, "statvfs", lambda _path: Inodes(100_000, 0))
    assert Budget(spool, SpoolSettings(), cameras=1).enforce() == 0
    assert spool.segments(session.name) == segments


def test_inodes_that_a_file_system_shows_late_do_not_cost_more_segments(spool, monkeypatch):
    session, _ = fill(spool, "door", 8)

    def told(_path):
        probing = any(spool.state.glob(".*.tmp"))
        return Inodes(1000, 15 - probing)  # 18 are to stay free; what is removed does not show

    monkeypatch.setattr(os, "statvfs", told)
    budget = Budget(spool, SpoolSettings(), cameras=1)
    assert budget.enforce() == 3
    assert budget.enforce() == 0
    assert len(spool.segments(session.name)) == 5
    assert not list(spool.state.glob(".*.tmp"))


def test_sizes_take_a_few_bytes_each_and_odd_numbers_do_no_harm():
    sizes = Sizes()
    for number in range(100_000):
        sizes.put(number, 188)
    sizes.put(999_999_999_999, 1)
    assert (sizes.total, sizes.count, sizes.get(999_999_999_999)) == (18_800_001, 100_001, 1)
    assert sizes.forget(7) == 188
    assert sizes.forget(7) == 0
    assert sizes.get(7) is None
    assert sizes.total == 18_799_813
    sizes.put(8, 12)  # a second name with this number
    assert (sizes.get(8), sizes.total) == (188, 18_799_825)
