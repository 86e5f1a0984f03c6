"""`celery -A tasks worker` by itself: its start, its stop, its loss, and the loss of its broker."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
import redis

from capture.broker import EmbeddedBroker, RuntimeDir, queue_lengths
from capture.handoff import BACKLOG, LIVE, RECOVER, Message, publish, publisher_app, upload_message
from capture.pulse import pulses
from capture.session import Session
from capture.settings import load_settings
from capture.sink import Fault
from capture.source import parse_source
from capture.spool import Spool

TOKEN = "made-up-token"
DEADLINE = 30.0
PACKETS = (b"\x47" + bytes(187)) * 1000
WITHOUT_GUARD = """
import sys, types
guard = types.ModuleType("tasks.kombu_guard")
guard.install = lambda: None
sys.modules["tasks.kombu_guard"] = guard
from celery.__main__ import main
main()
"""


class Worker:
    """A worker process as an operator starts it."""

    def __init__(self, directory, env, *options, program=None):
        self._log = directory / "worker.log"
        program = ["-c", program] if program else ["-m", "celery"]
        flags = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=INFO"]
        argv = [sys.executable, "-P", *program, "-A", "tasks", "worker", "-Q", "live,backlog", *flags]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*argv, *options], env=env, cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    @property
    def log(self):
        return self._log.read_text("utf-8", "replace")

    def children(self):
        return psutil.Process(self.process.pid).children(recursive=True)

    def wait_for(self, condition, what, *, deadline=DEADLINE):
        end = time.monotonic() + deadline
        while not (result := condition()):
            if time.monotonic() > end:
                pytest.fail(f"not within {deadline:g} s: {what}\n{self.log[-4000:]}")
            time.sleep(0.02)
        return result

    def wait_ready(self, times=1):
        self.wait_for(lambda: len(re.findall(r"\bready\.", self.log)) >= times, "ready")

    def close(self):
        family = [] if self.process.poll() is not None else self.children()
        self.process.kill()
        self.process.wait()
        for process in family:
            if process.is_running():
                process.kill()


@pytest.fixture
def broker():
    with tempfile.TemporaryDirectory(prefix="acc-") as base, RuntimeDir(Path(base)) as runtime:
        embedded = EmbeddedBroker(runtime.path)
        embedded.start()
        yield embedded
        embedded.stop()


@pytest.fixture
def settings(broker, sink, tmp_path):
    environment = {
        "RELAY_CLOUD": sink.url,
        "RELAY_TOKEN": TOKEN,
        "RELAY_SPOOL": str(tmp_path / "spool"),
        "RELAY_BROKER": broker.url,
        "RELAY_SPOOL__RECOVER_AFTER": "1",
    }
    return load_settings(environ=environment)


@pytest.fixture
def worker(settings, session, tmp_path):
    """Starts workers, and ends them with all that they started."""
    workers = []
    clean = {key: value for key, value in os.environ.items() if not key.startswith("RELAY_")}

    def run(*options, program=None):
        env = {**clean, **settings.worker_environment()}
        workers.append(Worker(tmp_path, env, *options, program=program))
        return workers[-1]

    yield run
    for each in workers:
        each.close()


@pytest.fixture
def session(settings):
    spool = Spool.open(settings.spool.path, create=True)
    with Session.start(
        spool, "gate", display_name="gate", source=parse_source("test:"), segment_seconds=10
    ) as session:
        yield session


@pytest.fixture
def send(settings, session):
    """Closes segments and publishes them as the agent does."""
    app = publisher_app(settings)
    begun = datetime(2026, 11, 23, 21, 11, 31, tzinfo=UTC)

    def run(*sequences):
        for sequence in sequences:
            (session.open_directory / f"{sequence:08d}.ts").write_bytes(PACKETS)
            owed = session.close_segment(sequence, begun + timedelta(seconds=10 * sequence), 10.0)
            publish(app, upload_message(settings.ingest, session.name, owed.segment, owed.size))

    run.recover = lambda: publish(app, Message(RECOVER, ()))
    run.spool = session.spool
    yield run
    app.close()


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
    process.wait_for(lambda: all(map(is_gone, children)), "the children gone", deadline=5.0)
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
    process.wait_for(lambda: not owed(session), "the segment", deadline=10.0)
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
    process = worker("-c", "2", program=WITHOUT_GUARD)
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


# --- a worker that lives and does nothing ----------------------------------------------------------

DEAF = """
import os
import tasks.pulse
from kombu.transport.redis import Channel
tasks.pulse.PULSE_SECONDS, tasks.pulse.DEAF_SECONDS = 0.5, 3.0
listen = Channel._brpop_start
def listen_unless_deaf(self, *args, **options):
    if not os.path.exists("deaf"):
        listen(self, *args, **options)
Channel._brpop_start = listen_unless_deaf
from celery.__main__ import main
main()
"""


def test_a_worker_that_is_connected_and_deaf_ends_itself_with_its_children(worker, sink, send, tmp_path):
    process = worker("-c", "2", program=DEAF)
    process.wait_ready()
    send(1)
    process.wait_for(lambda: arrived(sink) == [1], "a first segment")
    family = process.children()
    (tmp_path / "deaf").touch()
    send(2, 3)  # the first of them is heard: the worker listens already
    assert process.process.wait(DEADLINE) == 70, process.log
    assert "worker_deaf" in process.log
    process.wait_for(lambda: all(map(is_gone, family)), "the children gone", deadline=5.0)
    assert send.spool.owed_count() >= 1
    (tmp_path / "deaf").unlink()
    worker("-c", "2")
    process.wait_for(lambda: sorted(arrived(sink)) == [1, 2, 3], "all segments, by its successor")


def test_a_worker_that_waits_for_its_broker_shows_its_pulse_and_comes_back_soon(worker, broker, sink, send):
    broker.stop()
    process = worker("-c", "1")
    process.wait_for(lambda: process.log.count("Cannot connect") >= 4, "some tries")  # each waits longer
    [pulse] = pulses(Path(os.environ.get("RELAY_PULSE_DIR", send.spool.state)))
    assert pulse.age < 6.0
    broker.start()
    began = time.monotonic()
    process.wait_ready()
    assert time.monotonic() - began < 8.0
    process.process.send_signal(signal.SIGTERM)
    process.process.wait(DEADLINE)
    assert list(send.spool.state.glob("*.pulse")) == []
