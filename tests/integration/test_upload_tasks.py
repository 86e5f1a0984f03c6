"""Uploads as a worker runs them: lanes for the backlog, way for new segments, probes of a dead cloud."""

import contextlib
import errno
from pathlib import Path

import pytest

import tasks.batch
import tasks.upload
from capture.gate import PATIENT_PROBE_EVERY
from capture.handoff import BACKLOG, END_SESSION, LIVE, RECOVER
from capture.narrow import Narrow
from capture.outcome import Kind, Outcome
from capture.sink import Fault
from capture.spool import Debt, write_json
from tasks.celery import TransientError
from tasks.memory import LARGEST_BATCH
from tasks.upload import upload_batch, upload_segment
from tasks.worker import this_worker
from tests.integration.conftest import is_free, messages, pairs, past_session, spool_time

pytestmark = pytest.mark.usefixtures("in_worker")


def arrived(sink):
    return [receipt.sequence for receipt in sink.receipts()]


@contextlib.contextmanager
def taken_from(queue, retries=0):
    """Run the task as if its message had come from this queue."""
    upload_segment.push_request(retries=retries, delivery_info={"routing_key": queue})
    try:
        yield
    finally:
        upload_segment.pop_request()


def test_the_file_of_what_was_sent_is_closed_beside_the_next_upload_and_no_other(spool, sink, monkeypatch):
    closed = []
    monkeypatch.setattr(this_worker().closer, "close", lambda file: closed.append(file) or file.close())
    name = past_session(spool, owes=2)
    upload_segment(*pairs(spool, name)[0])
    assert len(closed) == 1
    sink.faults.add(Fault("status", status=503))
    with pytest.raises(TransientError):
        upload_segment(*pairs(spool, name)[0])
    assert len(closed) == 1  # the lock of what is owed is free at once
    assert is_free(spool, name, spool.segments(name)[0])


def test_one_that_cannot_be_removed_is_free_for_the_next_at_once(spool, sink, monkeypatch):
    closed = []
    monkeypatch.setattr(this_worker().closer, "close", closed.append)
    name = past_session(spool, owes=1)

    def refuse(_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as broken:
        broken.setattr(Path, "unlink", refuse)
        assert upload_segment(*pairs(spool, name)[0]).startswith("owed")
    assert closed == []
    assert is_free(spool, name, spool.segments(name)[0])


@pytest.mark.parametrize(("count", "is_taken"), [(LARGEST_BATCH, True), (LARGEST_BATCH + 1, False)])
def test_a_batch_is_as_large_as_recover_sends_it_and_no_larger(spool, sink, count, is_taken):
    name = past_session(spool, owes=1)
    (pair,) = pairs(spool, name)
    said = upload_batch([pair] * count)
    assert said.startswith("sent 1 of" if is_taken else "refused")


# --- a slow line -----------------------------------------------------------------------------------


def test_on_a_slow_line_a_batch_leaves_it_to_whoever_has_it_and_asks_for_the_next_when_it_has(
    spool, sink, broker
):
    name, slow = past_session(spool, owes=2), Outcome(Kind.TRANSIENT, 0, "", timed_out=True, is_slow=True)
    this_worker().narrow.note(slow, size=10**6, seconds=45.0)
    with Narrow(spool, this_worker().settings.ingest).turn(is_live=False):
        assert upload_batch(pairs(spool, name)) == "sent 0 of 2"
    assert (arrived(sink), this_worker().memory.load().failed) == ([], {})
    assert upload_batch(pairs(spool, name)) == "sent 2 of 2"
    assert (RECOVER, [True, False]) in messages(broker, LIVE)


def test_who_has_no_turn_on_a_slow_line_leaves_a_patient_probe_to_the_one_that_has_it(spool, sink):
    name, slow = past_session(spool, owes=1), Outcome(Kind.TRANSIENT, 0, "", timed_out=True, is_slow=True)
    this_worker().narrow.note(slow, size=10**6, seconds=45.0)
    put_down(spool, probes=PATIENT_PROBE_EVERY - 1)
    before = this_worker().gate.outage()
    with Narrow(spool, this_worker().settings.ingest).turn(is_live=False):
        assert upload_batch(pairs(spool, name)) == "sent 0 of 1"
    assert this_worker().gate.outage() == before


# --- batches ---------------------------------------------------------------------------------------


def test_a_batch_sends_all_of_it_grows_the_window_and_asks_for_the_next(spool, sink, broker):
    name = past_session(spool, owes=5)
    this_worker().memory.announce("a@test", 8, [LIVE, BACKLOG])
    assert upload_batch(pairs(spool, name)) == "sent 5 of 5"
    assert sorted(arrived(sink)) == [1, 2, 3, 4, 5]
    assert this_worker().memory.load().window == 2
    assert (RECOVER, [True, False]) in messages(broker, LIVE)


@pytest.mark.parametrize("status", [204, 413])
def test_a_batch_with_the_last_of_an_ended_session_has_its_stream_ended_once(spool, sink, broker, status):
    name, other = past_session(spool, owes=3), past_session(spool, "hall", owes=2)
    if status != 204:
        sink.faults.add(Fault("status", status=status))
    upload_batch(pairs(spool, name) + pairs(spool, other)[:1])
    ends = [message for message in messages(broker, LIVE) if message[0] == END_SESSION]
    assert ends == [(END_SESSION, [str(name)])]


def test_a_batch_that_tried_nothing_ends_no_stream(spool, sink, broker):
    name = past_session(spool, owes=1)
    batch = pairs(spool, name)
    assert upload_batch(batch) == "sent 1 of 1"
    assert upload_batch(batch) == "sent 0 of 1"
    assert [task for task, _ in messages(broker, LIVE)].count(END_SESSION) == 1


def test_a_message_comes_through_a_broker_that_knows_no_queues(spool, sink, broker):
    name = past_session(spool, owes=1)
    upload_batch(pairs(spool, name))
    assert broker.keys("_kombu.binding.*") == []
    assert (END_SESSION, [str(name)]) in messages(broker, LIVE)


def test_a_batch_makes_way_for_a_new_segment_after_one_of_its_own(spool, sink, broker):
    name = past_session(spool, owes=5)
    broker.lpush(LIVE, "a message")
    assert upload_batch(pairs(spool, name)) == "sent 1 of 5"
    remembered = this_worker().memory.load()
    assert (remembered.sent, remembered.failed) == ({}, {})


def test_a_batch_that_made_way_leaves_the_next_turn_to_the_next_camera(spool, sink, broker):
    names = [past_session(spool, camera, owes=2) for camera in ("gate", "hall", "yard")]
    firsts = [pairs(spool, name)[0] for name in names]
    this_worker().memory.note_sent([], turn="yard")
    broker.lpush(LIVE, "a message")
    assert upload_batch(firsts) == "sent 1 of 3"
    assert this_worker().memory.load().turn == "gate"


def test_a_batch_ends_when_its_time_is_up(spool, sink, monkeypatch):
    name = past_session(spool, owes=5)
    monkeypatch.setattr(tasks.batch, "BATCH_SECONDS", 0.0)
    assert upload_batch(pairs(spool, name)) == "sent 1 of 5"


def test_without_a_free_lane_a_batch_is_left_and_forgotten(spool, sink):
    name = past_session(spool, owes=2)
    keys = [Debt(name, segment).key for segment in spool.segments(name)]
    this_worker().memory.note_sent(keys, turn="gate")
    with this_worker().lanes.take(1):
        assert upload_batch(pairs(spool, name)).startswith("not now")
    assert arrived(sink) == []
    assert this_worker().memory.load().sent == {}


def test_what_fails_in_a_batch_waits_a_while_and_halves_the_window(spool, sink):
    name = past_session(spool, owes=3)
    worker = this_worker()
    worker.memory.announce("a@test", 8, [LIVE, BACKLOG])
    worker.memory.conclude(done=[], failed=[], window=4)
    sink.faults.add(Fault("status", status=500, count=1))
    assert upload_batch(pairs(spool, name)) == "sent 2 of 3"
    assert arrived(sink) == [2, 3]
    remembered = worker.memory.load()
    assert list(remembered.failed) == [Debt(name, spool.segments(name)[0]).key]
    assert remembered.window == 2


def test_a_batch_whose_broker_is_gone_still_sends(spool, sink, server):
    name = past_session(spool, owes=3)
    this_worker()
    server.stop()
    try:
        assert upload_batch(pairs(spool, name)) == "sent 3 of 3"
    finally:
        server.start()
    assert arrived(sink) == [1, 2, 3]


# --- new video first -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "sent"),
    [
        ((LIVE, 0, 60.0, 3), False),
        ((LIVE, 0, 60.0, 0), True),  # nobody waits behind it
        ((LIVE, 0, 1.0, 3), True),  # new itself
        ((LIVE, 1, 60.0, 3), True),  # a retry had its turn
        ((BACKLOG, 0, 60.0, 3), True),
    ],
)
def test_what_waited_long_on_live_is_left_to_recover_where_newer_waits(spool, sink, broker, case, sent):
    queue, retries, age, others = case
    name = past_session(spool, owes=1, age=age)
    for _ in range(others):
        broker.lpush(LIVE, "a message")
    with taken_from(queue, retries):
        upload_segment.run(*pairs(spool, name)[0])
    assert arrived(sink) == ([1] if sent else [])
    assert spool.owed_count() == (0 if sent else 1)


# --- probes ----------------------------------------------------------------------------------------


def put_down(spool, *, probes=0):
    state = {"failures": 5, "probes": probes, "probe_at": spool_time() - 1}
    write_json(spool.state / "breaker.json", state)


def test_a_probe_that_fails_has_recover_send_the_next_when_it_is_due(spool, sink, broker):
    name = past_session(spool, owes=2)
    put_down(spool)
    sink.faults.add(Fault("status", status=503))
    assert upload_segment.run(*pairs(spool, name)[0]).startswith("owed: the cloud is down")
    [(task, _)] = messages(broker, LIVE)
    assert task == RECOVER
    assert upload_segment.run(*pairs(spool, name)[1]) == "owed: the cloud is down"
    assert 0 < this_worker().gate.next_probe_in() <= 4.0


def test_a_probe_that_passes_opens_the_way_and_starts_recovery_afresh(spool, sink, broker):
    name = past_session(spool, owes=2)
    put_down(spool)
    assert upload_segment.run(*pairs(spool, name)[0]).startswith("delivered")
    assert not this_worker().gate.is_open()
    assert (RECOVER, [True, True]) in messages(broker, LIVE)


def test_short_probes_go_on_beside_a_patient_one(spool, sink):
    name = past_session(spool, owes=2)
    put_down(spool, probes=PATIENT_PROBE_EVERY - 1)
    gate = this_worker().gate
    with gate.admit("T") as patient:
        assert (patient.may_try, patient.answer_seconds) == (True, None)
        put_down(spool, probes=PATIENT_PROBE_EVERY)
        with gate.admit("T") as short:
            assert (short.may_try, short.answer_seconds) == (True, 4.0)
            with gate.admit("T") as third:
                assert not third.may_try
    assert len(pairs(spool, name)) == 2


def test_a_patient_probe_lets_the_next_turn_come(spool):
    put_down(spool, probes=PATIENT_PROBE_EVERY - 1)
    gate = this_worker().gate
    with gate.admit("T"):
        assert gate.outage()["probes"] == PATIENT_PROBE_EVERY
        assert 0 < gate.next_probe_in() <= 4.0


def test_a_delivery_that_cannot_be_journalled_is_owed_and_the_cloud_counts_as_up(spool, monkeypatch):
    name = past_session(spool, owes=1)
    put_down(spool)

    def broken(*_args, **_fields):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(this_worker().spool.journal, "append", broken)
    assert upload_segment.run(*pairs(spool, name)[0]) == "owed: this machine: Input/output error"
    assert spool.owed_count() == 1
    assert not this_worker().gate.is_open()


def test_a_transient_answer_while_the_way_is_open_is_retried_by_celery(spool, sink):
    name = past_session(spool, owes=1)
    sink.faults.add(Fault("status", status=503))
    with pytest.raises(TransientError):
        upload_segment.run(*pairs(spool, name)[0])
