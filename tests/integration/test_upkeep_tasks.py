"""`recover` and `sweep` on real spool directories, with a real broker to publish to."""

import contextlib
import errno
import fcntl
import os
from datetime import timedelta

import pytest
from celery.exceptions import SoftTimeLimitExceeded

import tasks.recover
import tasks.sweep
import tasks.worker
from capture.claim import claim
from capture.handoff import BACKLOG, END_SESSION, LIVE, REGISTER_CAMERA, UPLOAD_BATCH, UPLOAD_SEGMENT
from capture.journal import Event, Journal
from capture.segment import rfc3339
from capture.session import lock_session
from capture.spool import MARKER, REJECTED, SESSION_FILE, SESSION_LOCK, write_json
from capture.upkeep import ENDED_NOTE, REGISTERED_NOTE, drop_expired
from tasks.pace import Learnt
from tasks.recover import recover
from tasks.register import end_session
from tasks.sweep import sweep
from tests.integration.conftest import (
    BEGUN,
    HOUR,
    PACKETS,
    TOKEN,
    events,
    make_older,
    messages,
    new_session,
    past_session,
    spool_time,
    uploads,
    write_open,
)

pytestmark = pytest.mark.usefixtures("in_worker")


# --- sweep -----------------------------------------------------------------------------------------


def test_a_session_that_owes_nothing_and_is_older_than_an_hour_is_swept(spool):
    name = past_session(spool, age=HOUR + 60)
    (spool.state / f"asked-{name}{ENDED_NOTE}").touch()
    assert sweep() == "removed 1 session directories"
    assert spool.sessions() == []
    assert list(spool.state.glob("asked-*")) == []


def test_a_younger_one_is_kept(spool):
    name = past_session(spool, age=HOUR - 60)
    assert sweep() == "removed 0 session directories"
    assert spool.sessions() == [name]


def test_one_young_entry_keeps_an_old_directory(spool):
    name = past_session(spool, age=HOUR + 60)
    write_json(spool.session_path(name) / ENDED_NOTE, {})
    assert sweep() == "removed 0 session directories"


def test_one_that_still_owes_is_kept_however_old(spool):
    name = past_session(spool, owes=1, age=100 * 24 * HOUR)
    sweep()
    assert (spool.sessions(), spool.owed_count()) == ([name], 1)


def test_one_with_an_open_segment_is_kept_for_its_salvage(spool):
    with new_session(spool) as session:
        write_open(session, 1)
    make_older(session.path, 2 * HOUR)
    sweep()
    assert spool.open_segments(session.name) == [1]


@pytest.mark.parametrize(("age", "kept"), [(2 * HOUR, True), (8 * 24 * HOUR, False)])
def test_rejected_segments_are_kept_a_week_and_then_dropped_with_a_journal_line(spool, age, kept):
    name = past_session(spool, owes=1)
    worker = tasks.worker.this_worker()
    with claim(worker.spool, name, spool.segments(name)[0]) as claimed:
        claimed.rejected(status=413, reason="too large")
    make_older(spool.session_path(name), age)
    sweep()
    assert (spool.sessions() == [name]) is kept
    assert (events(spool)[-1] == Event.DROPPED) is not kept


def test_a_sweep_that_is_cut_short_goes_on_where_it_was_and_drops_nothing_twice(spool, monkeypatch):
    name = past_session(spool, owes=200)
    folder = spool.session_path(name) / REJECTED
    folder.mkdir()
    for segment in spool.segments(name):
        spool.segment_path(name, segment).rename(folder / str(segment))
        write_json(folder / f"{segment}.json", {"status": 413})
    make_older(spool.session_path(name), 8 * 24 * HOUR)
    write, written = Journal.append_all, []

    def cut_short(self, camera, event, rows, **options):
        if len(written) == 2:
            written.clear()
            raise SoftTimeLimitExceeded
        written.append(event)
        write(self, camera, event, rows, **options)

    monkeypatch.setattr(Journal, "append_all", cut_short)
    with pytest.raises(SoftTimeLimitExceeded):
        sweep()
    left = len(spool.segments(name, REJECTED))
    assert 0 < left < 200
    assert len(list(folder.iterdir())) == 2 * left

    monkeypatch.setattr(Journal, "append_all", write)
    assert sweep() == "removed 1 session directories"
    lines = [entry for entry in spool.journal.read("gate") if entry.event is Event.DROPPED]
    dropped = [entry.fields["segment"] for entry in lines]
    assert (len(dropped), len(set(dropped))) == (200, 200)


def test_a_live_session_is_kept_however_long_its_camera_was_silent(spool):
    with new_session(spool) as session:
        make_older(session.path, 2 * HOUR)
        assert sweep() == "removed 0 session directories"
        assert spool.sessions() == [session.name]
    assert sweep() == "removed 1 session directories"


def test_looking_at_a_directory_does_not_make_it_young(spool):
    name = past_session(spool, age=HOUR + 60)
    descriptor = lock_session(spool.session_path(name))
    os.utime(spool.session_path(name) / SESSION_LOCK)
    assert sweep() == "removed 0 session directories"
    os.close(descriptor)
    assert sweep() == "removed 1 session directories"


def test_a_year_of_journal_is_kept_and_the_days_before_it_go_once_a_day(spool):
    folder = spool.journal.directory / "door"
    folder.mkdir(parents=True, exist_ok=True)
    today = spool.clock.now().date()

    def write(ago):
        (folder / f"{today - timedelta(days=ago)}.jsonl").write_text("{}\n")

    for ago in range(1, 400):
        write(ago)

    sweep()
    kept = sorted(path.stem for path in folder.iterdir())
    assert (len(kept), kept[0]) == (365, f"{today - timedelta(days=365)}")

    write(399)
    sweep()
    assert len(list(folder.iterdir())) == 366


def test_nothing_is_swept_where_the_mount_is_gone(spool):
    name = past_session(spool, age=2 * HOUR)
    tasks.worker.this_worker()
    (spool.root / MARKER).unlink()
    assert sweep() == recover() == "the spool is not mounted"
    assert spool.sessions() == [name]


def test_a_mount_that_goes_in_the_middle_of_a_round_is_no_error_and_a_disk_that_fails_is_one(
    spool, monkeypatch
):
    worker = tasks.worker.this_worker()

    def fails(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    def goes(*_, **__):
        (spool.root / MARKER).rename(spool.root / "away")
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    for task, module, name in ((sweep, tasks.sweep, "sweep_spool"), (recover, worker.lanes, "busy")):
        monkeypatch.setattr(module, name, fails)
        with pytest.raises(OSError, match="Input/output"):
            task()
        monkeypatch.setattr(module, name, goes)
        assert task() == "the spool is not mounted"
        (spool.root / "away").rename(spool.root / MARKER)


# --- recover: who gets a message -------------------------------------------------------------------


def test_what_is_owed_gets_a_message_on_the_backlog_queue_alone(spool, broker):
    past_session(spool, owes=3)
    assert recover() == "sent messages for 3 segments"
    assert uploads(broker) == [("gate", 1), ("gate", 2), ("gate", 3)]
    assert uploads(broker, LIVE) == []


def test_a_young_segment_is_left_to_its_live_message(spool, broker):
    past_session(spool, owes=2, age=1.0)
    assert recover() == "nothing waits"
    assert uploads(broker) == []


def test_a_segment_that_is_being_sent_gets_no_message(spool, broker):
    name = past_session(spool, owes=2)
    first = spool.session_path(name) / str(spool.segments(name)[0])
    with first.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        recover()
    assert uploads(broker) == [("gate", 2)]


def test_cameras_take_turns_oldest_first(spool, broker):
    past_session(spool, "gate", owes=9, begun=BEGUN + timedelta(hours=1))
    past_session(spool, "gate", owes=1, begun=BEGUN)
    past_session(spool, "yard", owes=9)
    first, second = spool.sessions("gate")
    assert (len(spool.segments(first)), len(spool.segments(second))) == (1, 9)
    recover()
    assert uploads(broker)[:4] == [("gate", 1), ("yard", 1), ("gate", 1), ("yard", 2)]


def test_no_second_batch_is_sent_while_the_last_is_not_taken(spool, broker):
    past_session(spool, owes=9)
    recover()
    before = uploads(broker)
    make_more_owed = past_session(spool, "yard", owes=3)
    assert recover() == "the last batch is not taken yet"
    assert uploads(broker) == before
    assert len(spool.segments(make_more_owed)) == 3


def test_no_second_batch_is_sent_while_the_only_lane_is_taken(spool, broker):
    past_session(spool, owes=9)
    with tasks.worker.this_worker().lanes.take(1):
        assert recover() == "all lanes are taken"
    assert uploads(broker) == []


def test_one_lane_more_makes_one_batch_more_of_other_segments(spool, broker):
    past_session(spool, owes=40)
    worker = tasks.worker.this_worker()
    worker.memory.announce("a@test", 4, ["live", "backlog"])
    worker.memory.conclude(done=[], failed=[], window=2)
    recover()
    sizes = [len(args[0]) for _, args in messages(broker, BACKLOG)]
    assert sizes == [20, 20]
    assert len(set(uploads(broker))) == 40


@pytest.mark.parametrize(("said", "size"), [(96, 60), (7, 48), (10**9, 48), ("x", 48)])
def test_recover_sends_as_many_in_a_batch_as_the_last_one_had_time_for(spool, broker, said, size):
    past_session(spool, owes=60)
    tasks.worker.this_worker().memory.conclude(done=[], failed=[], window=None, size=said)
    recover()
    assert [len(args[0]) for _, args in messages(broker, BACKLOG)] == [size]


def test_what_a_host_learnt_of_its_line_is_there_for_its_next_batch(spool, broker):
    memory = tasks.worker.this_worker().memory
    assert memory.load().line is None
    learnt = Learnt(2.5e6, is_new=True, size=200_000, took=0.3)
    memory.conclude(done=[], failed=[], window=None, line=learnt)
    assert memory.load().line == learnt
    memory.conclude(done=["x/y"], failed=["x/z"], window=2)
    found = memory.load()
    assert found.line == learnt
    assert found.sent == {}


@pytest.mark.parametrize(
    "said",
    [
        "", "x", "null", "{}", "[]", "[1,2,3]", "[NaN,1,true,1,1]", '["now",1,true,1,1]',
        "[NOW,0,true,1,1]", "[NOW,-1,true,1,1]", "[NOW,NaN,true,1,1]", "[NOW,Infinity,true,1,1]",
        "[NOW,1000,true,0,1]", "[NOW,1000,true,1,-1]", "[NOW,1000,true,[],1]", "[NOW,1000,true,1,1e99]",
        "[OLD,1000,true,1,1]", "[LATER,1000,true,1,1]", "[NOW,true,true,1,1]", "[NOW,1000,true,true,1]",
        "[NOW,1e-320,true,1,1]", "[NOW,1,true,1,1]", "[NOW,1e10,false,1e14,1]", "[NOW,1e10,false,1e6,1e-9]",
        "[NOW,1000,true,1,true]", "[NOW,2e10,true,1,1]", "[" * 5000, "[NOW," + "9" * 5000 + ",true,1,1]",
    ],
    ids=lambda said: said[:30],
)  # fmt: skip
def test_what_no_process_can_have_learnt_is_not_believed(spool, broker, said):
    memory = tasks.worker.this_worker().memory
    now = memory.load().now
    for name, at in {"NOW": now, "OLD": now - 61, "LATER": now + 100}.items():
        said = said.replace(name, repr(at))
    broker.hset(memory._own, memory._line, said)
    found = memory.load()
    assert found.line is None
    assert found.sent == {}


def test_a_message_that_vanished_with_its_worker_is_replaced_in_the_next_round(spool, broker):
    past_session(spool, owes=3)
    recover()
    broker.delete(BACKLOG)  # taken, and neither in a lane nor in the queue
    assert recover() == "sent messages for 3 segments"


def test_a_broker_that_was_wiped_forgets_who_had_a_message(spool, broker):
    past_session(spool, owes=3)
    recover()
    broker.flushall()
    with tasks.worker.this_worker().lanes.take(1):
        tasks.worker.this_worker().memory.announce("a@test", 4, ["live", "backlog"])
        tasks.worker.this_worker().memory.conclude(done=[], failed=[], window=3)
        assert recover() == "sent messages for 3 segments"


def test_one_that_failed_in_a_batch_waits_while_others_go(spool, broker):
    name = past_session(spool, owes=3)
    first = f"{name}/{spool.segments(name)[0]}"
    tasks.worker.this_worker().memory.conclude(done=[], failed=[first], window=1)
    recover()
    assert uploads(broker) == [("gate", 2), ("gate", 3)]


def test_after_an_outage_nobody_waits_for_an_earlier_failure(spool, broker):
    name = past_session(spool, owes=3)
    first = f"{name}/{spool.segments(name)[0]}"
    tasks.worker.this_worker().memory.conclude(done=[], failed=[first], window=1)
    recover(True, True)
    assert len(uploads(broker)) == 3


@pytest.mark.parametrize(
    ("arguments", "age", "sent"), [((True, True), 0.0, 1), ((True,), 0.5, 0), ((True,), 3.0, 1)]
)
def test_at_the_end_of_an_outage_nobody_is_too_young(spool, broker, arguments, age, sent):
    past_session(spool, owes=1, age=age)
    recover(*arguments)
    assert len(uploads(broker)) == sent


def test_the_camera_behind_the_last_one_has_the_first_turn(spool, broker):
    for camera in ("gate", "hall", "yard"):
        past_session(spool, camera, owes=2)
    tasks.worker.this_worker().memory.note_sent([], turn="gate")
    recover()
    assert [camera for camera, _ in uploads(broker)][:3] == ["hall", "yard", "gate"]


def test_where_new_segments_keep_all_busy_one_of_the_backlog_goes_among_them(spool, broker, monkeypatch):
    past_session(spool, owes=9)
    recover()
    assert messages(broker, LIVE) == []
    monkeypatch.setattr(tasks.recover, "STARVED_SECONDS", -1.0)
    recover()
    assert [len(args[0]) for task, args in messages(broker, LIVE) if task == UPLOAD_BATCH] == [1]


def test_while_the_cloud_is_down_one_segment_goes_as_a_probe_when_one_is_due(spool, broker):
    past_session(spool, owes=9)
    now = spool_time()
    write_json(spool.state / "breaker.json", {"failures": 3, "probe_at": now + 3})
    assert recover() == "the cloud is down: no probe is due"
    write_json(spool.state / "breaker.json", {"failures": 3, "probe_at": now})
    recover()
    assert [task for task, _ in messages(broker, BACKLOG)] == [UPLOAD_SEGMENT]
    recover()
    assert len(messages(broker, BACKLOG)) == 1


def test_a_probe_may_be_young_because_its_live_message_ended_at_the_gate(spool, broker):
    past_session(spool, owes=1, age=3.0)
    write_json(spool.state / "breaker.json", {"failures": 3, "probe_at": spool_time()})
    recover()
    assert uploads(broker) == [("gate", 1)]


@pytest.mark.parametrize("failures", [0, 3])
def test_segments_that_cannot_be_opened_hold_up_neither_backlog_nor_probe(spool, broker, failures, capsys):
    name = past_session(spool, owes=5)
    for segment in spool.segments(name)[:4]:
        spool.segment_path(name, segment).unlink()
        spool.segment_path(name, segment).mkdir()
    make_older(spool.session_path(name), HOUR)
    write_json(spool.state / "breaker.json", {"failures": failures, "probe_at": spool_time()})
    recover()
    assert uploads(broker) == [("gate", 5)]
    assert capsys.readouterr().out.count("segments_not_readable") == 1


@pytest.fixture
def shut_out(monkeypatch):
    """Makes a directory one that belongs to another user."""

    def shut(directory):
        for name in ("scandir", "open", "stat", "lstat"):
            real = getattr(os, name)

            def refuses(path, *rest, real=real, **options):
                is_listed = real.__name__ == "scandir" and path == directory
                if is_listed or str(path).startswith(f"{directory}/"):
                    raise PermissionError(errno.EACCES, "Permission denied")
                return real(path, *rest, **options)

            monkeypatch.setattr(os, name, refuses)

    return shut


def test_a_session_that_belongs_to_another_user_holds_up_nobody_else(spool, broker, shut_out, capsys):
    theirs = past_session(spool, "attic", owes=3, registered=False)
    mine = past_session(spool, "gate", owes=2)
    over = past_session(spool, "yard", age=2 * HOUR)
    make_older(spool.session_path(mine), HOUR)
    shut_out(spool.session_path(theirs))
    for _ in range(3):
        recover()
    assert uploads(broker) == [("gate", 1), ("gate", 2)]
    assert [task for task, _ in messages(broker, LIVE)].count(END_SESSION) == 1
    assert drop_expired(spool, retention=60.0) == 2
    sweep()
    assert over not in spool.sessions()
    assert capsys.readouterr().out.count("session_not_read") == 1


def test_nothing_is_sent_with_a_token_that_was_refused(spool, broker):
    past_session(spool, owes=3)
    gate = tasks.worker.this_worker().gate
    write_json(spool.state / f"refused-{gate.token_id(TOKEN)}.json", {"status": 401})
    assert recover() == "the token is refused: nothing is sent"
    assert broker.keys() == []


def test_only_one_recovers_at_a_time(spool, broker):
    past_session(spool, owes=3)
    with (spool.state / "recover.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert recover() == "another worker is at it"
    assert uploads(broker) == []
    recover()
    assert len(uploads(broker)) == 3


def test_while_one_salvages_for_long_others_send(spool, broker):
    past_session(spool, owes=3)
    with new_session(spool) as session:
        write_open(session, 1)
    with (spool.state / "salvage.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        recover()
        assert len(uploads(broker)) == 3
        assert spool.open_segments(session.name) == [1]
    recover()
    assert spool.open_segments(session.name) == []


def test_a_salvage_that_takes_too_long_leaves_the_round_to_others(spool, broker, monkeypatch):
    past_session(spool, owes=3)

    def takes_too_long(_):
        recover()  # the next tick, of another process
        raise SoftTimeLimitExceeded

    monkeypatch.setattr(tasks.recover, "close_dead_sessions", takes_too_long)
    with pytest.raises(SoftTimeLimitExceeded):
        recover()
    assert len(uploads(broker)) == 3


@pytest.mark.parametrize(
    "memory",
    [
        {":window": "x", "../x": "1"},
        {":window": "99999999999999999999", ":turn": "\udcff"},
        {":window": "-1", "a/b": "nan", "c": "inf", "d": "-inf", "": ""},
    ],
)
def test_a_damaged_memory_costs_nothing_but_duplicates(spool, broker, memory):
    past_session(spool, owes=3)
    fields = {key: value.encode("utf-8", "surrogateescape") for key, value in memory.items()}
    broker.hset(f"relay-capture.recover.{spool.id}", mapping=fields)
    recover()
    assert len(uploads(broker)) == 3


@pytest.mark.parametrize("said", ["[1, 2.5, []]", "[" * 5000, f"[{10**400}, 2, []]", "[0, true, 1]", "x"])
def test_a_damaged_word_of_a_worker_stops_nobody_and_is_cleared(spool, broker, said):
    past_session(spool, owes=3)
    broker.hset("relay-capture.workers", "strange@test", said)
    assert recover() == "sent messages for 3 segments"
    tasks.worker.this_worker().memory.announce("a@test", 2, ["live", "backlog"])
    assert broker.hkeys("relay-capture.workers") == [b"a@test"]


# --- recover: sessions -----------------------------------------------------------------------------


def test_a_dead_session_is_salvaged_and_ended(spool):
    with new_session(spool) as session:
        write_open(session, 4, PACKETS + b"\x47half a packet")
        write_open(session, 5, b"")
    recover()
    [segment] = spool.segments(session.name)
    assert segment.sequence == 4
    assert (session.path / str(segment)).read_bytes() == PACKETS
    assert spool.open_segments(session.name) == []
    assert spool.session_info(session.name)["ended_at"] is not None
    assert events(spool) == [Event.RECOVERED]


def test_a_living_session_is_left_alone(spool):
    with new_session(spool) as session:
        write_open(session, 1)
        recover()
        assert spool.open_segments(session.name) == [1]
        assert spool.session_info(session.name)["ended_at"] is None


@pytest.mark.parametrize(("age", "salvaged"), [(30, False), (200, True)])
def test_another_hosts_session_is_salvaged_only_after_a_long_silence(spool, age, salvaged):
    with new_session(spool) as session:
        write_open(session, 1)
        info = spool.session_info(session.name)
        write_json(session.path / SESSION_FILE, {**info, "host": "elsewhere.test"})
    make_older(session.path, age)
    recover()
    assert (spool.open_segments(session.name) == []) is salvaged


def test_a_running_session_is_registered_until_the_cloud_was_told(spool, broker):
    with new_session(spool) as session:
        recover()
        assert messages(broker, LIVE) == [(REGISTER_CAMERA, [str(session.name)])]
        recover()
        assert len(messages(broker, LIVE)) == 1
        broker.flushall()
        make_asked_older(spool)
        recover()
        assert len(messages(broker, LIVE)) == 1
        broker.flushall()
        make_asked_older(spool)
        write_json(session.path / REGISTERED_NOTE, {})
        recover()
        assert messages(broker, LIVE) == []


def make_asked_older(spool):
    for note in spool.state.glob("asked-*"):
        os.utime(note, (0, 0))


def test_a_session_that_is_over_is_ended_once_it_owes_nothing(spool, broker):
    owing = past_session(spool, "yard", owes=1)
    over = past_session(spool, "gate")
    recover()
    assert messages(broker, LIVE) == [(END_SESSION, [str(over)])]
    assert end_session(str(owing)) == "not yet: the session runs or still owes"


def test_the_end_of_a_session_is_told_to_the_cloud(spool, sink):
    name = past_session(spool)
    end_session(str(name))
    assert sink.counters.requests == {("DELETE", 404): 1}
    assert (spool.session_path(name) / ENDED_NOTE).exists()


def test_a_camera_that_the_cloud_never_heard_of_is_registered_before_its_end_is_told(spool, sink):
    name = past_session(spool, registered=False)
    end_session(str(name))
    assert sink.counters.requests == {("POST", 201): 1, ("DELETE", 204): 1}


def test_a_registration_that_was_turned_down_is_tried_again_only_after_a_while(spool, broker):
    with new_session(spool) as session:
        write_json(session.path / REGISTERED_NOTE, {"rejected": True})
        recover()
        assert messages(broker, LIVE) == []
        os.utime(session.path / REGISTERED_NOTE, (0, 0))
        recover()
        assert messages(broker, LIVE) == [(REGISTER_CAMERA, [str(session.name)])]


def test_the_end_of_a_session_is_not_told_while_a_later_one_runs(spool, sink):
    name = past_session(spool)
    with new_session(spool, begun=BEGUN + timedelta(hours=1)):
        assert "a later session" in end_session(str(name))
    assert sink.counters.requests == {}


def test_the_end_is_told_although_an_earlier_session_died_without_a_word(spool, sink):
    with new_session(spool):
        pass
    name = past_session(spool, begun=BEGUN + timedelta(hours=1))
    end_session(str(name))
    assert sink.counters.requests == {("DELETE", 404): 1}


def test_a_session_that_began_within_the_same_second_counts_as_later(spool, sink):
    """Their names differ in random characters alone."""
    later = BEGUN + timedelta(milliseconds=500)
    with contextlib.ExitStack() as living:
        for number in range(20):  # one in 2**20 passes by luck
            name = past_session(spool, f"cam{number}")
            session = living.enter_context(new_session(spool, f"cam{number}", begun=later))
            assert spool.session_info(session.name)["started_at"] == rfc3339(later)
            end_session(str(name))
    assert sink.counters.requests == {}
