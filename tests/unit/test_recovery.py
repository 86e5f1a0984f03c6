"""Who gets a message, in which order, and how many uploads of the backlog run at once."""

import errno
import os

import pytest

from capture import recovery
from capture.aside import Aside
from capture.claim import claim
from capture.lanes import Lanes
from capture.recovery import ASIDE_SECONDS, SHORTLIST, SHORTLIST_SECONDS, Shortlist, take_turns
from capture.segment import SegmentName, SessionName
from capture.spool import Debt, Spool
from tasks.batch import next_size, next_window
from tasks.memory import count_lanes
from tests.conftest import PACKET, owing, start_session


def debt(camera, sequence):
    session = SessionName.parse(f"relay-segments-{camera}-20260601T120000Z-aaaaaaaa")
    return Debt(session, SegmentName.parse(f"{sequence:08d}_20260601T120000.000Z_2000.ts"))


def names(picked):
    return [(each.debt.camera, each.debt.segment.sequence) for each in picked]


@pytest.fixture
def stepped(tmp_path, clock):
    return Spool.open(tmp_path / "stepped", create=True, clock=clock)


# --- the order -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owed", "after", "order"),
    [
        ({}, "", []),
        ({"a": 2}, "", ["a1", "a2"]),
        ({"a": 2, "b": 1, "c": 3}, "", ["a1", "b1", "c1", "a2", "c2", "c3"]),
        ({"a": 2, "b": 1, "c": 3}, "a", ["b1", "c1", "a1", "c2", "a2", "c3"]),
        ({"a": 1, "b": 1}, "b", ["a1", "b1"]),
        ({"a": 1, "c": 1}, "b", ["c1", "a1"]),
    ],
)
def test_cameras_take_turns_behind_the_one_that_had_the_last(owed, after, order):
    by_camera = {camera: [debt(camera, n + 1) for n in range(count)] for camera, count in owed.items()}
    turns = [f"{each.camera}{each.segment.sequence}" for each in take_turns(by_camera, after)]
    assert turns == order


def test_windows_smaller_than_the_number_of_cameras_still_serve_all_of_them(spool):
    for number in range(9):
        owing(spool, f"cam{number}", 3)
    shortlist, turn, served, skip = Shortlist(spool), "", [], set()
    for _ in range(9):
        picked = shortlist.pick(2, older_than=0.0, skip=skip, after=turn)
        served += [each.debt.camera for each in picked]
        skip |= {each.debt.key for each in picked}
        turn = served[-1]
    assert {served.count(f"cam{number}") for number in range(9)} == {2}


def test_one_that_somebody_sends_and_one_with_a_message_are_passed_over(spool):
    session = owing(spool, "door", 4)
    first, second, *_ = spool.segments(session.name)
    with claim(spool, session.name, first):
        picked = Shortlist(spool).pick(9, older_than=0.0, skip={Debt(session.name, second).key})
    assert names(picked) == [("door", 3), ("door", 4)]


def test_a_young_segment_and_those_behind_it_wait(spool):
    session = owing(spool, "door", 3)
    old, *_ = spool.segments(session.name)
    os.utime(session.path / str(old), (0, 0))
    assert names(Shortlist(spool).pick(9, older_than=60.0)) == [("door", 1)]


def test_a_young_segment_is_not_even_locked_because_its_own_message_comes_now(spool, monkeypatch):
    owing(spool, "door", 1)
    monkeypatch.setattr(recovery, "claim", lambda *_: pytest.fail("a worker would take it for one in hand"))
    assert Shortlist(spool).pick(9, older_than=60.0) == []


def test_a_segment_from_the_future_is_a_clock_that_was_set_back_and_does_not_wait(spool):
    session = owing(spool, "door", 1)
    (segment,) = spool.segments(session.name)
    os.utime(session.path / str(segment), (2**32, 2**32))
    assert names(Shortlist(spool).pick(9, older_than=60.0)) == [("door", 1)]


def test_a_camera_that_the_cloud_cannot_take_does_not_hold_up_the_others(stepped):
    owing(stepped, "bad", 20)
    owing(stepped, "good", 20)
    shortlist, failed, delivered = Shortlist(stepped), set(), []
    for _ in range(40):
        for each in shortlist.pick(4, older_than=0.0, skip=failed):
            if each.debt.camera == "bad":
                failed.add(each.debt.key)
                continue
            with claim(stepped, each.debt.session, each.debt.segment) as claimed:
                claimed.delivered(sha256="", status=204, attempts=1)
            delivered.append(each.debt.segment.sequence)
    assert delivered == list(range(1, 21))


def test_while_the_cloud_is_down_every_camera_gets_its_probe(stepped):
    for camera in "abc":
        owing(stepped, camera, 5)
    shortlist = Shortlist(stepped)
    probes = [shortlist.pick_probe(older_than=0.0) for _ in range(100)]
    assert {len(picked) for picked in probes} == {1}
    assert {picked[0].debt.camera for picked in probes} == set("abc")
    assert len({picked[0].debt.segment for picked in probes}) > 1


# --- the shortlist ---------------------------------------------------------------------------------


class Watch:
    """A monotonic clock that is moved by hand."""

    now = 100.0

    def __call__(self):
        return self.now


def flood(spool, camera, count):
    """Owe very many segments that nobody will look into."""
    with start_session(spool, camera) as session:
        session.end()
    for number in range(1, count + 1):
        path = session.path / f"{number:08d}_20260601T120000.000Z_2000.ts"
        path.write_bytes(PACKET)
    return session


def test_a_small_spool_is_listed_at_each_round_so_that_nothing_new_is_missed(spool):
    session = flood(spool, "door", 3)
    shortlist = Shortlist(spool, monotonic=Watch())
    assert len(shortlist.pick(9, older_than=0.0)) == 3
    (session.path / "00000004_20260601T120000.000Z_2000.ts").write_bytes(PACKET)
    assert len(shortlist.pick(9, older_than=0.0)) == 4


def test_a_large_one_is_not_listed_again_until_the_list_is_used_up_or_old(spool):
    session = flood(spool, "door", SHORTLIST + 100)
    watch = Watch()
    shortlist = Shortlist(spool, monotonic=watch)
    for _ in range(4):
        shortlist.pick(32, older_than=0.0)
    assert shortlist.listings == 1
    for segment in spool.segments(session.name)[:SHORTLIST]:
        (session.path / str(segment)).unlink()
    assert names(shortlist.pick(1, older_than=0.0)) == [("door", SHORTLIST + 1)]
    assert shortlist.listings == 2


def test_the_list_of_a_large_spool_is_made_anew_after_some_seconds(spool):
    flood(spool, "door", SHORTLIST + 1)
    watch = Watch()
    shortlist = Shortlist(spool, monotonic=watch)
    shortlist.pick(1, older_than=0.0)
    watch.now += SHORTLIST_SECONDS
    shortlist.pick(1, older_than=0.0)
    assert shortlist.listings == 2


def test_what_all_have_a_message_of_is_no_reason_to_stop_at_the_list(spool):
    session = flood(spool, "door", SHORTLIST + 5)
    shortlist = Shortlist(spool, monotonic=Watch())
    skip = {Debt(session.name, segment).key for segment in spool.segments(session.name)[:SHORTLIST]}
    assert len(shortlist.pick(9, older_than=0.0, skip=skip)) == 5


# --- what cannot be opened -------------------------------------------------------------------------


def owe_badly(spool, camera, bad, good):
    """Owe so many that nobody can open, and good ones behind them."""
    session = flood(spool, camera, bad + good)
    for segment in spool.segments(session.name)[:bad]:
        path = session.path / str(segment)
        path.unlink()
        path.mkdir()
    return session


def picked_in(shortlist, rounds, count=9):
    return [names(shortlist.pick(count, older_than=0.0)) for _ in range(rounds)]


def test_segments_that_cannot_be_opened_do_not_keep_those_behind_them_from_going(spool):
    owe_badly(spool, "door", SHORTLIST, 100)
    shortlist = Shortlist(spool, monotonic=Watch())
    assert picked_in(shortlist, 2)[1] == [("door", SHORTLIST + n) for n in range(1, 10)]
    assert shortlist.listings == 2


def test_nor_where_each_of_many_cameras_has_little_room_on_the_list(spool):
    for number in range(50):
        owe_badly(spool, f"cam{number}", 21, 1)
    shortlist = Shortlist(spool, monotonic=Watch())
    last = picked_in(shortlist, 2, count=99)[1]
    assert sorted(last) == sorted((f"cam{number}", 22) for number in range(50))


def test_more_than_can_be_remembered_hold_up_their_session_alone(stepped, clock, monkeypatch):
    monkeypatch.setattr(recovery, "SHORTLIST", 8)
    owe_badly(stepped, "door", 400, 1)
    clock.step(60.0)
    good = owing(stepped, "door", 5)
    watch = Watch()
    shortlist = Shortlist(stepped, monotonic=watch)
    found = []
    for _ in range(100):
        watch.now += 5.0
        found += [each.debt.session for each in shortlist.pick(9, older_than=0.0)]
    assert set(found) == {good.name}
    assert len(found) > 100


def test_what_cannot_be_opened_is_said_once_for_each_camera_and_not_for_each_segment(spool, capsys):
    owe_badly(spool, "door", 30, 1)
    owe_badly(spool, "yard", 30, 1)
    watch = Watch()
    shortlist = Shortlist(spool, monotonic=watch)
    for _ in range(100):
        shortlist.pick(9, older_than=0.0)
        shortlist.pick_probe(older_than=0.0)
        watch.now += 10.0
    said = capsys.readouterr().out
    assert said.count("segments_not_readable") == 2
    assert "is no regular file" in said


def test_one_that_is_mended_goes_within_a_minute_and_what_failed_with_it_at_once(spool, immutable):
    session = flood(spool, "door", 600)
    for segment in spool.segments(session.name):
        immutable(session.path / str(segment))
    watch = Watch()
    shortlist = Shortlist(spool, monotonic=watch)
    assert picked_in(shortlist, 2) == [[], []]
    immutable.undo()
    assert picked_in(shortlist, 1) == [[]]
    watch.now += ASIDE_SECONDS
    assert picked_in(shortlist, 1) == [[("door", number) for number in range(1, 10)]]
    assert len(shortlist.pick(1000, older_than=0.0)) == 600


@pytest.mark.parametrize("calls", [["stat", "lstat"], ["open"]], ids=["look", "open"])
def test_one_that_the_disk_cannot_read_is_passed_over(spool, monkeypatch, calls):
    session = flood(spool, "door", SHORTLIST + 1)
    bad = str(spool.segments(session.name)[0])

    def failing(real):
        def call(path, *args, **kwargs):
            if str(path).endswith(bad):
                raise OSError(errno.EIO, "Input/output error")
            return real(path, *args, **kwargs)

        return call

    for name in calls:
        monkeypatch.setattr(os, name, failing(getattr(os, name)))
    shortlist = Shortlist(spool, monotonic=Watch())
    assert picked_in(shortlist, 3, count=1) == [[("door", 2)]] * 3
    assert shortlist.listings == 1


def test_one_that_is_gone_or_in_hand_does_not_count_as_one_that_cannot_be_opened(spool, capsys):
    session = flood(spool, "door", 3)
    shortlist = Shortlist(spool, monotonic=Watch())
    first, second, _ = spool.segments(session.name)
    shortlist.pick(1, older_than=0.0)
    (session.path / str(first)).unlink()
    with claim(spool, session.name, second):
        assert picked_in(shortlist, 1) == [[("door", 3)]]
    assert picked_in(shortlist, 1) == [[("door", 2), ("door", 3)]]
    assert "segments_not_readable" not in capsys.readouterr().out


def test_a_probe_is_looked_for_down_the_list(spool):
    owe_badly(spool, "door", 30, 1)
    owe_badly(spool, "yard", 3, 0)
    probe = Shortlist(spool, monotonic=Watch()).pick_probe(older_than=0.0)
    assert names(probe) == [("door", 31)]


def test_a_probe_is_found_behind_a_list_of_such(spool):
    owe_badly(spool, "door", SHORTLIST, 1)
    shortlist = Shortlist(spool, monotonic=Watch())
    assert shortlist.pick_probe(older_than=0.0) == []
    assert names(shortlist.pick_probe(older_than=0.0)) == [("door", SHORTLIST + 1)]


def test_what_is_left_out_is_bounded_and_comes_back_in_its_order():
    first, second, third, fourth = (debt("a", number).segment for number in range(1, 5))
    session, aside = debt("a", 1).session, Aside(seconds=60.0, most=3)
    for now, segment in enumerate((first, second, third, fourth)):
        aside.put(session, segment, now=now)
    assert set(aside.names(session)) == {str(first), str(second), str(third)}
    assert aside.shuts(session)
    aside.let_back(2, now=60.5)
    assert set(aside.names(session)) == {str(second), str(third)}
    assert not aside.shuts(session)
    aside.had(session, third)  # it never was away
    assert len(aside.names(session)) == 2
    aside.had(session, first)
    assert not aside.names(session)


# --- lanes and window ------------------------------------------------------------------------------

BOTH, LIVE_ALONE = ("live", "backlog"), ("live",)


@pytest.mark.parametrize(
    ("workers", "lanes"),
    [
        ([], 1),
        ([(1, BOTH)], 1),
        ([(2, BOTH)], 1),
        ([(4, BOTH)], 3),
        ([(8, BOTH), (8, BOTH)], 12),
        ([(2, BOTH), (1, LIVE_ALONE)], 2),
        ([(2, LIVE_ALONE)], 1),
        ([(1, ("backlog",)), (1, LIVE_ALONE)], 1),
    ],
)
def test_some_processes_are_left_free_for_new_segments(workers, lanes):
    assert count_lanes(workers) == lanes


@pytest.mark.parametrize(
    ("window", "lanes", "delivered", "failed", "expected"),
    [
        (1, 4, 9, 0, 2),
        (4, 4, 9, 0, 4),
        (4, 4, 9, 1, 2),
        (1, 4, 0, 1, 1),
        (3, 4, 0, 0, 3),
        (9, 4, 0, 0, 4),
        (9, 0, 0, 0, 1),
    ],
)
def test_the_window_grows_by_one_and_halves(window, lanes, delivered, failed, expected):
    assert next_window(window, lanes=lanes, delivered=delivered, failed=failed) == expected


@pytest.mark.parametrize(
    ("size", "held", "delivered", "expected"),
    [
        (48, 48, 48, 96),
        (192, 192, 192, 256),
        (256, 256, 256, 256),
        (96, 10, 10, 96),  # the end of a backlog, or of what one lane of several had
        (96, 96, 50, 96),  # its time was up, or a new segment waited
        (256, 256, 40, 80),
        (96, 96, 3, 48),
        (48, 48, 0, 48),
    ],
)
def test_a_batch_holds_about_what_can_be_sent_in_its_time(size, held, delivered, expected):
    assert next_size(size, held=held, delivered=delivered) == expected


def test_a_lane_is_held_by_one_and_free_again_after(spool):
    lanes, others = Lanes(spool.state), Lanes(spool.state)
    with lanes.take(2) as first, others.take(2) as second, others.take(2) as third:
        assert (first, second, third) == (True, True, False)
        assert lanes.busy() == 2
    assert others.busy() == 0
    with others.take(1) as again:
        assert again
