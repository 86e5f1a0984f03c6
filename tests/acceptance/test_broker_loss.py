"""`celery -A tasks worker` by itself: its start, its stop, its loss, and the loss of its broker."""

import os
import signal
import time

import psutil
import pytest
import redis

from capture.broker import queue_lengths
from capture.handoff import BACKLOG, LIVE, UPLOAD_SEGMENT, Message
from capture.pulse import STUCK_SECONDS, pulses
from capture.sink import Fault, verify
from tests.acceptance.conftest import DEADLINE
from tests.acceptance.hostile_messages import Hostile

WITHOUT_GUARD = """
import sys, types
guard = types.ModuleType("tasks.kombu_guard")
guard.install = lambda: None
sys.modules["tasks.kombu_guard"] = guard
"""
WITHOUT_REJECT_ON_WORKER_LOST = """
import celeryconfig
celeryconfig.task_reject_on_worker_lost = False
"""
NO_RETRY_CAN_BE_PUBLISHED = """
import tasks.celery
from kombu.exceptions import OperationalError
def away(self, *args, **options):
    raise OperationalError("the broker is away")
tasks.celery.RelayTask.apply_async = away
"""
CELERYS_OWN_RETRY = """
import celery
tasks.celery.RelayTask.retry = celery.Task.retry
"""
NOTHING = {LIVE: 0, BACKLOG: 0, "unacked": 0}


def arrived(sink):
    """Return the sequence numbers that the cloud has, in the order they came."""
    return [receipt.sequence for receipt in sink.receipts()]


def owed(session):
    return [segment.sequence for segment in session.spool.segments(session.name)]


def waiting(broker):
    return queue_lengths(broker.url, [LIVE, BACKLOG])


def in_hand(sink, broker, count):
    """Return a condition: so many uploads hang in the cloud, and their messages in the worker."""
    return lambda: waiting(broker) == {LIVE: 0, BACKLOG: 0, "unacked": count} and sink._lines


def is_gone(process):
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


# --- start and stop --------------------------------------------------------------------------------


def test_a_worker_that_starts_before_its_broker_waits_for_it(worker, broker, sink, send):
    broker.stop()
    process = worker("-c", "1")
    process.wait_for(lambda: "Cannot connect" in process.log, "the first try")
    broker.start()
    process.wait_ready()
    send(1)
    process.wait_for(lambda: arrived(sink) == [1], "the segment")


def test_a_warm_shutdown_finishes_the_upload_in_hand_and_takes_no_other(worker, broker, sink, session, send):
    sink.faults.add(hang := Fault("hang"))
    process = worker("-c", "1")
    process.wait_ready()
    send(1)
    process.wait_for(in_hand(sink, broker, 1), "an upload in hand")
    process.process.send_signal(signal.SIGTERM)
    process.wait_for(lambda: "Warm shutdown" in process.log, "the signal to be heard")
    send(2)
    sink.faults.remove(hang)
    assert process.process.wait(DEADLINE) == 0
    assert arrived(sink) == [1]
    assert owed(session) == [2]
    assert waiting(broker) == {LIVE: 1, BACKLOG: 0, "unacked": 0}


# --- the loss of a worker --------------------------------------------------------------------------


def test_sigkill_of_the_main_process_takes_its_children_along_and_leaves_the_message(
    worker, broker, sink, session, send
):
    sink.faults.add(Fault("hang"))
    process = worker("-c", "2")
    process.wait_ready()
    send(1)
    process.wait_for(in_hand(sink, broker, 1), "an upload in hand")
    children = process.children()
    assert len(children) >= 2
    process.process.kill()
    process.process.wait()
    process.wait_for(lambda: all(map(is_gone, children)), "the children gone")
    assert waiting(broker)["unacked"] == 1
    assert owed(session) == [1]


def test_a_child_killed_in_mid_upload_costs_one_attempt(worker, broker, sink, session, send):
    sink.faults.add(hang := Fault("hang"))
    process = worker("-c", "1")
    process.wait_ready()
    send(1)
    process.wait_for(in_hand(sink, broker, 1), "an upload in hand")
    [child] = process.children()
    child.kill()
    process.wait_for(lambda: is_gone(child), "the child gone")
    sink.faults.remove(hang)
    process.wait_for(lambda: not owed(session), "the segment")
    assert arrived(sink) == [1]
    process.wait_for(lambda: not any(waiting(broker).values()), "nothing left in the broker")


# --- the loss of the broker ------------------------------------------------------------------------


def lose_the_broker_under_a_task(process, broker, sink, send):
    """Kill the broker while one of two children is busy: the worker has room for another message."""
    process.wait_ready()
    send(1)
    process.wait_for(in_hand(sink, broker, 1), "an upload in hand")
    os.kill(broker.pid, signal.SIGKILL)


def test_a_broker_that_dies_under_a_long_task_does_not_end_the_worker(worker, broker, sink, session, send):
    sink.faults.add(hang := Fault("hang"))
    process = worker("-c", "2")
    lose_the_broker_under_a_task(process, broker, sink, send)
    process.wait_for(lambda: "Cannot connect" in process.log, "the loss noticed")
    broker.start()
    process.wait_for(lambda: process.log.count("Connected to") >= 2, "the broker found again")
    sink.faults.remove(hang)
    send(2)
    process.wait_for(lambda: sorted(arrived(sink)) == [1, 2], "both segments")
    process.wait_for(lambda: not owed(session), "nothing owed")
    assert process.process.poll() is None


def test_without_the_guard_it_ends_the_worker_so_the_guard_stays(worker, broker, sink, send):
    """When this fails, kombu has mended it: drop tasks/kombu_guard.py, and this test."""
    sink.faults.add(hang := Fault("hang"))
    process = worker("-c", "2", changed=WITHOUT_GUARD)
    lose_the_broker_under_a_task(process, broker, sink, send)
    process.wait_for(lambda: "AttributeError: 'NoneType' object" in process.log, "the crash")
    broker.start()
    sink.faults.remove(hang)
    process.wait_for(lambda: process.process.poll() is not None, "the end of the worker")
    assert process.process.poll() == 1


def test_a_broker_that_is_away_for_seconds_while_the_worker_waits_is_found_again(worker, broker, sink, send):
    process = worker("-c", "1")
    process.wait_ready()
    send(1)
    process.wait_for(lambda: arrived(sink) == [1], "a first segment")
    broker.stop()
    time.sleep(5.0)  # the absence itself
    broker.start()
    send(2)
    process.wait_for(lambda: arrived(sink) == [1, 2], "a segment after the broker came back")


def test_a_worker_whose_last_child_cannot_acknowledge_its_message_takes_others(worker, broker, sink, send):
    """kombu would count that message as in hand for ever, and never look at its dead connection."""
    sink.faults.add(hang := Fault("hang"))
    process = worker("-c", "1")
    process.wait_ready()
    send(1)
    process.wait_for(in_hand(sink, broker, 1), "the child is busy")
    with redis.Redis(unix_socket_path=str(broker.socket)) as client:
        client.config_set("requirepass", "another")
        client.client_kill_filter(_type="normal", skipme=True)
        sink.faults.remove(hang)
        process.wait_for(lambda: "message_not_acknowledged" in process.log, "the message is left")
        client.config_set("requirepass", "")
    send(2)
    process.wait_for(lambda: arrived(sink) == [1, 2], "another segment", deadline=STUCK_SECONDS / 2)
    assert process.process.poll() is None


def test_a_retry_that_cannot_be_published_costs_no_segment(worker, broker, sink, session, send):
    """A broker out of memory refuses the retry's message; Celery alone would drop the segment's last one."""
    sink.faults.add(Fault("status", status=503, count=1, delay=1.0))
    process = worker("-c", "1")
    process.wait_ready()
    send(1)
    process.wait_for(in_hand(sink, broker, 1), "an upload in hand")
    with redis.Redis(unix_socket_path=str(broker.socket)) as client:
        client.config_set("maxmemory", 1)
        process.wait_for(lambda: sink.counters.requests.get(("POST", 503)), "the 503")
        time.sleep(2.0)  # the outage: longer than a publisher tries
        client.config_set("maxmemory", 0)
    assert owed(session) == [1]
    send.recover()
    process.wait_for(lambda: arrived(sink) == [1], "the segment")
    assert process.process.poll() is None


# --- how messages get lost, and that no segment does -----------------------------------------------


def recovered(process, sink, session, send, *, count=1, deadline=DEADLINE):
    """Recover, as beat does, until nothing is owed; every segment has arrived."""

    def nothing_owed():
        send.recover()
        time.sleep(0.3)
        return not owed(session)

    process.wait_for(nothing_owed, "all is recovered", deadline=deadline)
    assert sorted(arrived(sink)) == list(range(1, count + 1))
    assert verify(sink.directory) == []
    assert process.process.poll() is None


def test_a_message_that_was_taken_and_never_noted_is_lost_and_its_segment_is_not(
    worker, broker, sink, session, send
):
    """A worker that dies between taking a message and noting it as unacknowledged leaves no trace of it."""
    send(1)
    with redis.Redis(unix_socket_path=str(broker.socket)) as client:
        assert client.brpop(LIVE) is not None
    assert waiting(broker) == NOTHING
    process = worker("-c", "1")
    process.wait_ready()
    recovered(process, sink, session, send)


def test_workers_killed_and_connections_cut_under_load_lose_no_segment(worker, broker, sink, session, send):
    count = 120
    sink.faults.add(Fault("slow", rate=6e6))  # 30 ms for each segment, so that the load lasts
    send(*range(1, count + 1))
    for _ in range(3):
        process = worker("-c", "2")
        process.wait_ready()
        send.recover()  # as beat does: what waited for long is left to it
        before = len(arrived(sink))
        process.wait_for(lambda before=before: len(arrived(sink)) > before + 5, "some are delivered")
        with redis.Redis(unix_socket_path=str(broker.socket)) as client:
            client.client_kill_filter(_type="normal", skipme=True)
        process.wait_for(lambda before=before: len(arrived(sink)) > before + 10, "some more are delivered")
        process.process.kill()
        process.process.wait()
    assert owed(session)
    process = worker("-c", "2")
    process.wait_ready()
    recovered(process, sink, session, send, count=count)


def test_a_retry_that_cannot_be_published_leaves_its_message_with_the_broker(worker, sink, session, send):
    """And no recovery is needed: the first message comes again."""
    sink.faults.add(Fault("status", status=503, count=1))
    process = worker("-c", "1", changed=NO_RETRY_CAN_BE_PUBLISHED)
    process.wait_ready()
    send(1)
    process.wait_for(lambda: not owed(session), "the segment, without a recovery")
    assert arrived(sink) == [1]


def test_with_celerys_own_retry_it_would_be_lost_until_recover_finds_the_segment(
    worker, broker, sink, session, send
):
    sink.faults.add(Fault("status", status=503, count=1))
    process = worker("-c", "1", changed=NO_RETRY_CAN_BE_PUBLISHED + CELERYS_OWN_RETRY)
    process.wait_ready()
    send(1)
    process.wait_for(lambda: sink.counters.requests.get(("POST", 503)), "the 503")
    process.wait_for(lambda: waiting(broker) == NOTHING, "the message is gone")
    assert owed(session) == [1]
    recovered(process, sink, session, send)


def test_a_broker_that_restarts_in_the_middle_of_a_retry_costs_no_segment(
    worker, broker, sink, session, send
):
    sink.faults.add(Fault("status", status=503, count=1, delay=1.0))
    process = worker("-c", "1")
    process.wait_ready()
    send(1)
    process.wait_for(in_hand(sink, broker, 1), "an upload in hand")
    broker.stop()
    process.wait_for(lambda: sink.counters.requests.get(("POST", 503)), "the 503")
    time.sleep(2.0)  # the outage: longer than a publisher tries
    broker.start()
    process.wait_for(lambda: process.log.count("Connected to") >= 2, "the broker found again")
    recovered(process, sink, session, send)


def test_without_reject_on_worker_lost_a_killed_child_takes_its_message_along(
    worker, broker, sink, session, send
):
    """When this fails, Celery keeps the message by itself, and the setting may go."""
    sink.faults.add(hang := Fault("hang"))
    process = worker("-c", "1", changed=WITHOUT_REJECT_ON_WORKER_LOST)
    process.wait_ready()
    send(1)
    process.wait_for(in_hand(sink, broker, 1), "an upload in hand")
    [child] = process.children()
    child.kill()
    process.wait_for(lambda: waiting(broker) == NOTHING, "the message is gone")
    sink.faults.remove(hang)
    assert owed(session) == [1]
    recovered(process, sink, session, send)


def test_a_task_that_no_soft_limit_ends_is_ended_by_the_hard_one_and_its_segment_comes_back(
    worker, broker, sink, session, send
):
    """Its message goes, so that a poisoned segment does not take down one child after the other."""
    sink.faults.add(hang := Fault("hang"))
    process = worker("-c", "1")
    process.wait_ready()
    names = (str(session.name), str(send.close(1).segment))
    send.message(Message(UPLOAD_SEGMENT, names, options={"soft_time_limit": 1.0, "time_limit": 2.0}))
    process.wait_for(in_hand(sink, broker, 1), "an upload in hand")
    [child] = process.children()
    child.suspend()
    process.wait_for(lambda: is_gone(child), "the child is ended")
    process.wait_for(lambda: waiting(broker) == NOTHING, "its message goes")
    process.wait_for(lambda: len(process.children()) == 1, "another child")
    sink.faults.remove(hang)
    assert owed(session) == [1]
    recovered(process, sink, session, send)


@pytest.mark.parametrize(
    "stranger",
    [
        {"task": "tasks.upload.upload_segment_of_the_next_version"},
        {"body": b"\xff not JSON"},
        {"content_type": "application/x-python-serialize"},
    ],
    ids=["an unknown task", "an undecodable body", "a pickled body"],
)
def test_a_message_that_the_worker_cannot_read_is_discarded_and_its_segment_is_not(
    worker, broker, sink, session, *, send, stranger
):
    process = worker("-c", "1")
    process.wait_ready()
    names = (str(session.name), str(send.close(1).segment))
    with redis.Redis(unix_socket_path=str(broker.socket)) as client:
        client.lpush(LIVE, Hostile(**{"args": names, **stranger}).envelope())
    process.wait_for(lambda: waiting(broker) == NOTHING, "the message is discarded")
    assert owed(session) == [1]
    recovered(process, sink, session, send)


# --- a worker that lives and does nothing ----------------------------------------------------------

DEAF_SECONDS = 3.0
DEAF = f"""
import os
import tasks.pulse
from kombu.transport.redis import Channel
tasks.pulse.PULSE_SECONDS, tasks.pulse.DEAF_SECONDS = 0.5, {DEAF_SECONDS}
listen = Channel._brpop_start
def listen_unless_deaf(self, *args, **options):
    if not os.path.exists("deaf"):
        listen(self, *args, **options)
Channel._brpop_start = listen_unless_deaf
"""


def test_a_worker_that_is_connected_and_deaf_ends_itself_with_its_children(worker, sink, send, tmp_path):
    process = worker("-c", "2", changed=DEAF)
    process.wait_ready()
    send(1)
    process.wait_for(lambda: arrived(sink) == [1], "a first segment")
    family = process.children()
    (tmp_path / "deaf").touch()
    send(2, 3)  # the first of them is heard: the worker listens already
    assert process.process.wait(DEADLINE) == 70, process.log
    assert "worker_deaf" in process.log
    process.wait_for(lambda: all(map(is_gone, family)), "the children gone")
    assert send.spool.owed_count() >= 1
    (tmp_path / "deaf").unlink()
    worker("-c", "2")
    process.wait_for(lambda: sorted(arrived(sink)) == [1, 2, 3], "all segments, by its successor")


def test_a_worker_that_throws_thousands_of_messages_away_is_not_deaf(worker, broker, sink, send):
    process = worker("-c", "2", changed=DEAF)
    process.wait_ready()
    stranger = Hostile(task="somebody.elses.task").envelope()
    with redis.Redis(unix_socket_path=str(broker.socket)) as client:
        began = time.monotonic()
        while time.monotonic() - began < 2.5 * DEAF_SECONDS:
            if client.llen(LIVE) < 500:
                client.lpush(LIVE, *[stranger] * 1000)
            time.sleep(0.05)
        process.wait_for(lambda: not client.llen(LIVE), "all are thrown away", deadline=60)
    send(1)
    process.wait_for(lambda: arrived(sink) == [1], "a good one after them")
    assert process.process.poll() is None


def test_a_worker_that_waits_for_its_broker_shows_its_pulse_and_comes_back_soon(worker, broker, sink, send):
    broker.stop()
    process = worker("-c", "1")
    process.wait_for(lambda: process.log.count("Cannot connect") >= 4, "some tries")  # each waits longer
    [pulse] = pulses(send.spool.state)
    assert pulse.age < 10.0
    broker.start()
    began = time.monotonic()
    process.wait_ready()
    assert time.monotonic() - began < 8.0
    process.process.send_signal(signal.SIGTERM)
    process.process.wait(DEADLINE)
    assert list(send.spool.state.glob("*.pulse")) == []
