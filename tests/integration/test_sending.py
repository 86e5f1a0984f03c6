"""Uploads of a batch over a long line: their waits overlap, and nothing of them outlives the batch."""

import contextlib
import itertools
import signal
import threading
import time

import pytest
from celery.exceptions import SoftTimeLimitExceeded

import tasks.batch
from benchmarks.line import line_process
from capture.body import HELD_PIECE
from capture.errors import ConfigError
from capture.handoff import BACKLOG, LIVE, RECOVER
from capture.http1 import Client, ExchangeError
from capture.ingest import Ingest
from capture.limiter import Limiter
from capture.live_bytes import LiveBytes
from capture.settings import IngestSettings
from capture.sink import Fault, Sink
from capture.spool import Debt
from capture.timetable import parse_timetable
from tasks.batch import PATIENCE_SECONDS, SHORT_BODY_SECONDS, Batch
from tasks.celery import RefusedByCloudError
from tasks.memory import SMALLEST_BATCH
from tasks.pace import MOST, ROUND, Learnt
from tasks.sending import MOST_COMING, _Exchange
from tasks.upload import upload_batch, upload_segment
from tasks.worker import this_worker
from tests.integration.conftest import PACKETS, TOKEN, events, is_free, messages, pairs, past_session

pytestmark = pytest.mark.usefixtures("in_worker")

RTT = 0.5
HANDOVER_SECONDS = 0.25
WIDE = MOST


class FarSink:
    """A real sink behind a real line."""

    def __init__(self, sink, port):
        self.url = f"http://127.0.0.1:{port}"
        self.faults = sink.faults
        self.receipts = sink.receipts

    def arrived(self):
        return sorted(receipt.sequence for receipt in self.receipts())


@pytest.fixture
def sink(tmp_path):
    with Sink(tmp_path / "sink", token=TOKEN) as near, line_process(near.port, rate=0, rtt=RTT) as port:
        yield FarSink(near, port)


@pytest.fixture
def wide(spool):
    """A worker that knows its line: so many at once fill it."""
    worker = this_worker()
    pace = worker.sender._pace
    for number in range(2 * ROUND):
        now = time.monotonic() - 100 + number
        pace.answered(pace.begin(now, 564), took=RTT, waited=RTT)
    pace._rate, pace._is_new = 1e9, False
    return worker


def keys(spool, name):
    return {Debt(name, segment).key for segment in spool.segments(name)}


def uploading():
    return [thread for thread in threading.enumerate() if thread.name == "upload"]


@contextlib.contextmanager
def time_limit(seconds):
    """Raise what Celery raises in the main thread, by a signal as Celery does."""

    def fire(*_):
        raise SoftTimeLimitExceeded

    before = signal.signal(signal.SIGUSR1, fire)
    main = threading.main_thread().ident
    timer = threading.Timer(seconds, signal.pthread_kill, (main, signal.SIGUSR1))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        signal.signal(signal.SIGUSR1, before)


def test_uploads_overlap_where_answers_are_waited_for(spool, sink):
    name = past_session(spool, owes=5)
    assert upload_batch(pairs(spool, name)) == "sent 5 of 5"
    assert this_worker().sender.overlaps
    assert sink.arrived() == list(range(1, 6))
    assert spool.segments(name) == []
    assert events(spool).count("delivered") == 5
    assert uploading() == []


def test_uploads_that_overlap_take_less_than_a_round_trip_each(spool, sink, wide):
    name = past_session(spool, owes=4 * WIDE)
    began = time.monotonic()
    upload_batch(pairs(spool, name))
    assert time.monotonic() - began < 4 * WIDE * RTT / 1.5
    assert len(sink.arrived()) == 4 * WIDE


@contextlib.contextmanager
def slow_to_connect(monkeypatch, parties):
    """The first clients connect only when so many do; yields the barrier."""
    together = threading.Barrier(parties, timeout=10.0)
    first = iter(range(parties))
    real = Client._connect

    def connect(self, request):
        if next(first, None) is not None:
            together.wait()
        return real(self, request)

    monkeypatch.setattr(Client, "_connect", connect)
    yield together


def bodies(monkeypatch):
    """Returns when each body began and had left, as they come."""
    found = []
    real = Ingest.send_segment

    def send(self, claim, token, *, on_begin, on_sent, **options):
        at = []

        def begin():
            at.append(time.monotonic())
            on_begin()

        def sent():
            at.append(time.monotonic())
            found.append(tuple(at))
            on_sent()

        return real(self, claim, token, on_begin=begin, on_sent=sent, **options)

    monkeypatch.setattr(Ingest, "send_segment", send)
    return found


def test_one_that_connects_holds_up_no_other(spool, sink, wide, monkeypatch):
    """Over a long line that takes two round trips or three: the body of another could leave meanwhile."""
    with slow_to_connect(monkeypatch, MOST_COMING) as together:
        name = past_session(spool, owes=5)
        assert upload_batch(pairs(spool, name)) == "sent 5 of 5"
        assert not together.broken


def test_the_bodies_of_those_that_connected_together_leave_one_after_the_other(
    spool, sink, wide, monkeypatch
):
    monkeypatch.setattr("tasks.sending.HANDOVER_SECONDS", HANDOVER_SECONDS)
    slow = IngestSettings(url=sink.url, max_rate="400kbit")
    wide.sender._pace._rate = 50_000.0
    limit = Limiter(spool.state, parse_timetable(slow.max_rate))
    monkeypatch.setattr(wide.sender, "_make", lambda _: Ingest(slow, limit=limit))
    times, last = bodies(monkeypatch), []
    monkeypatch.setattr(Batch, "leave_lane", lambda _: last.append(time.monotonic()))
    with slow_to_connect(monkeypatch, MOST_COMING):
        name = past_session(spool, owes=6, content=PACKETS * 26)
        assert upload_batch(pairs(spool, name)) == "sent 6 of 6"
    times.sort()
    assert len(times) == 6
    assert all(sent <= begin for (_, sent), (begin, _) in itertools.pairwise(times))
    # The lane is free for another batch shortly before that: it takes a moment to begin.
    assert times[-1][0] < last[0] < times[-1][1]


def test_few_knock_in_vain_where_the_cloud_takes_no_connection(spool, sink, wide, monkeypatch):
    connecting, most = [], []

    def hang(_, request):
        connecting.append(request)
        most.append(len(connecting))
        time.sleep(0.5)
        connecting.pop()
        raise ExchangeError("no connection within 0.5 s", timed_out=True)

    monkeypatch.setattr(Client, "_connect", hang)
    name = past_session(spool, owes=12)
    assert upload_batch(pairs(spool, name)) == "sent 0 of 12"
    assert max(most) <= MOST_COMING


def test_a_batch_takes_over_what_others_learnt_and_leaves_what_it_learnt(spool, sink):
    worker = this_worker()
    name = past_session(spool, owes=SMALLEST_BATCH)
    learnt = Learnt(3e5, is_new=False, size=564, took=RTT)
    worker.memory.conclude(done=[], failed=[], window=None, line=learnt)
    upload_batch(pairs(spool, name))
    assert spool.segments(name) == []
    remembered = worker.memory.load()
    assert remembered.line is not None
    assert not remembered.line.is_new  # what this process would begin with
    assert remembered.size == 2 * SMALLEST_BATCH


def test_a_batch_that_sent_nothing_changes_no_size_and_tells_of_no_line(spool, sink, wide):
    wide.memory.conclude(done=[], failed=[], window=None, size=200)
    sink.faults.add(Fault("status", status=503))
    name = past_session(spool, owes=1)
    upload_batch(pairs(spool, name))
    remembered = wide.memory.load()
    assert (remembered.size, remembered.line) == (200, None)


def test_on_a_short_line_one_goes_after_the_other(spool, sink, tmp_path, monkeypatch):
    with Sink(tmp_path / "near", token=TOKEN) as near:
        worker = this_worker()
        monkeypatch.setattr(worker.sender, "_make", lambda _: Ingest(IngestSettings(url=near.url)))
        name = past_session(spool, owes=40)
        assert upload_batch(pairs(spool, name)) == "sent 40 of 40"
        arrived = [receipt.sequence for receipt in near.receipts()]
    assert sorted(arrived) == list(range(1, 41))
    # Those with which the line was learnt may have passed each other.
    assert arrived[2 * ROUND :] == list(range(2 * ROUND + 1, 41))
    assert not worker.sender.overlaps


def test_for_a_new_segment_a_batch_begins_no_more_and_notes_what_it_sent(spool, sink, wide, broker):
    wide.memory.announce("a@test", 3, [LIVE, BACKLOG])
    wide.sender._pace._rate = 564 / (2 * SHORT_BODY_SECONDS)
    name = past_session(spool, owes=5)
    wide.memory.note_sent(keys(spool, name), turn="gate")
    broker.lpush(LIVE, "a message")
    assert upload_batch(pairs(spool, name)) == "sent 1 of 5"
    assert sink.arrived() == [1]
    remembered = wide.memory.load()
    assert (remembered.sent, remembered.failed) == ({}, {})


def test_where_bodies_are_short_a_new_segment_waits_a_moment_for_another_process(
    spool, sink, wide, broker, monkeypatch
):
    wide.memory.announce("a@test", 3, [LIVE, BACKLOG])
    wide.sender._pace._rate = 564 / 0.04
    asked = []

    def live_waits():
        asked.append(time.monotonic())
        return len(asked) != 2

    monkeypatch.setattr(wide.memory, "live_waits", live_waits)
    name = past_session(spool, owes=20)
    upload_batch(pairs(spool, name))
    assert len(asked) == 4  # one waited, and was taken; the next one is still there
    assert asked[3] - asked[2] >= PATIENCE_SECONDS
    assert 2 <= len(sink.arrived()) < 20


def test_with_two_processes_a_batch_makes_way_at_once(spool, sink, wide, broker):
    wide.memory.announce("a@test", 2, [LIVE, BACKLOG])
    broker.lpush(LIVE, "a message")
    assert upload_batch(pairs(spool, past_session(spool, owes=5))) == "sent 1 of 5"


def test_the_lane_of_a_body_that_makes_way_stays_taken(spool, sink, wide, monkeypatch):
    monkeypatch.setattr("tasks.sending.HANDOVER_SECONDS", 100.0)  # any body is as good as gone
    wide.sender._pace._rate = 4_000_000.0
    times, last, counter = bodies(monkeypatch), [], LiveBytes(spool.state)
    monkeypatch.setattr(Batch, "leave_lane", lambda _: last.append(time.monotonic()))
    monkeypatch.setattr(_Exchange, "_note_begin", counted(counter, _Exchange._note_begin))
    name = past_session(spool, owes=2)
    for segment in spool.segments(name):
        (spool.session_path(name) / str(segment)).write_bytes(bytes(300_000))
    assert upload_batch(pairs(spool, name)) == "sent 2 of 2"
    began, left = max(times)
    assert last[0] - began >= 0.05
    assert last[0] < left


def counted(counter, begin):
    """Have new video begin beside each body that begins, for which that makes way for a tenth of a second."""

    def note(exchange):
        begin(exchange)
        counter.add(400_000)

    return note


@pytest.mark.parametrize(("overlaps", "sent"), [(True, 3), (False, 1)])
def test_a_batch_lasts_longer_where_uploads_overlap(spool, wide, monkeypatch, overlaps, sent):
    monkeypatch.setattr(tasks.batch, "BATCH_SECONDS", 0.0)
    wide.sender._pace.overlaps = overlaps
    name = past_session(spool, owes=3)
    assert upload_batch(pairs(spool, name)) == f"sent {sent} of 3"


def test_the_lane_is_free_while_the_last_answers_travel(spool, sink, wide, broker):
    sink.faults.add(Fault("hang", sequence=3))
    name = past_session(spool, owes=3)
    batch = pairs(spool, name)
    seen = []

    def look():
        until = time.monotonic() + 20
        while (RECOVER, [True, False]) not in messages(broker, LIVE) and time.monotonic() < until:
            time.sleep(0.01)
        with wide.lanes.take(1) as is_mine:
            seen.append((is_mine, len(uploading())))

    watcher = threading.Thread(target=look)
    watcher.start()
    with time_limit(6.0):
        upload_batch(batch)
    watcher.join()
    assert seen in ([(True, 1)], [(True, 0)])
    assert wide.memory.load().failed.keys() <= keys(spool, name)


def test_a_time_limit_cuts_what_is_under_way_and_all_of_it_stays_owed(spool, sink, wide):
    sink.faults.add(Fault("hang"))
    name = past_session(spool, owes=WIDE + 1)
    with time_limit(3.0):
        assert upload_batch(pairs(spool, name)) == f"sent 0 of {WIDE + 1}"
    assert uploading() == []
    failed = wide.memory.load().failed
    assert 1 <= len(failed) <= WIDE
    assert all(is_free(spool, name, segment) for segment in spool.segments(name))
    assert len(spool.segments(name)) == WIDE + 1
    assert wide.gate.is_open()


def test_a_body_that_makes_way_is_cut_too(spool, sink, wide):
    """New video that never ends holds it for seconds; the end of the batch does not wait for that."""
    wide.sender._pace._rate = 100_000.0
    name = past_session(spool, owes=2)
    for segment in spool.segments(name):
        path = spool.session_path(name) / str(segment)
        path.write_bytes(bytes(10 * HELD_PIECE))
    batch, counter, is_over = pairs(spool, name), LiveBytes(spool.state), threading.Event()

    def record():
        while not is_over.wait(0.05):
            counter.add(1_000_000)

    camera = threading.Thread(target=record)
    camera.start()
    began = time.monotonic()
    try:
        with time_limit(1.0):
            upload_batch(batch)
    finally:
        is_over.set()
        camera.join()
    assert time.monotonic() - began < 3.0
    assert uploading() == []


def test_an_answer_that_never_ends_is_cut_too(spool, sink, wide):
    """A server that sends a byte now and then never runs into a timeout of the socket."""
    sink.faults.add(Fault("trickle", delay=0.2))
    name = past_session(spool, owes=2)
    began = time.monotonic()
    with time_limit(4.0):
        assert upload_batch(pairs(spool, name)) == "sent 0 of 2"
    assert time.monotonic() - began < 20
    assert uploading() == []
    assert all(is_free(spool, name, segment) for segment in spool.segments(name))


def test_what_was_cut_on_a_kept_connection_is_not_sent_again(spool, sink, wide, monkeypatch):
    first = past_session(spool, "gate", owes=WIDE)
    assert upload_batch(pairs(spool, first)) == f"sent {WIDE} of {WIDE}"
    sink.faults.add(Fault("hang", count=1))  # a second request would be answered
    second = past_session(spool, "hall", owes=1)
    wide.sender._others[:] = wide.sender._others[-1:]
    made, original = [], wide.sender._make
    monkeypatch.setattr(wide.sender, "_make", lambda beside: made.append(beside) or original(beside))
    with time_limit(3.0):
        upload_batch(pairs(spool, second))
    assert made == []  # it had a kept connection
    assert len(sink.arrived()) == WIDE
    assert not wide.narrow.too_large()  # the cloud hung: that says nothing of the line
    assert uploading() == []
    assert len(spool.segments(second)) == 1


def test_what_fails_beside_others_stays_owed_and_they_do_not_suffer(spool, sink, wide):
    sink.faults.add(Fault("status", status=500, sequence=3, count=1))
    name = past_session(spool, owes=6)
    assert upload_batch(pairs(spool, name)) == "sent 5 of 6"
    assert sink.arrived() == [1, 2, 4, 5, 6]
    assert wide.memory.load().failed.keys() == keys(spool, name)
    assert len(spool.segments(name)) == 1


def test_a_token_that_is_refused_fails_the_task(spool, sink, wide):
    sink.faults.add(Fault("status", status=401, sequence=2))
    name = past_session(spool, owes=3)
    with pytest.raises(RefusedByCloudError):
        upload_batch(pairs(spool, name))
    assert uploading() == []
    assert len(spool.segments(name)) >= 1


def test_a_system_without_threads_sends_one_after_the_other(spool, sink, wide, monkeypatch):
    original = threading.Thread.start

    def start(self):
        if self.name == "upload":
            raise RuntimeError("can't start new thread")
        original(self)

    monkeypatch.setattr(threading.Thread, "start", start)
    name = past_session(spool, owes=3)
    assert upload_batch(pairs(spool, name)) == "sent 3 of 3"
    assert sink.arrived() == [1, 2, 3]


def test_a_file_that_cannot_be_read_is_told_and_others_go_on(spool, sink, wide, monkeypatch):
    name = past_session(spool, owes=3)
    batch = pairs(spool, name)
    (first, *_) = spool.segments(name)

    def send(self, claimed, *args, **kwargs):
        if claimed.segment == first:
            raise OSError(5, "Input/output error")
        return original(self, claimed, *args, **kwargs)

    original = type(wide.ingest).send_segment
    monkeypatch.setattr(type(wide.ingest), "send_segment", send)
    assert upload_batch(batch) == "sent 2 of 3"
    assert is_free(spool, name, first)


def test_a_new_segment_is_counted_before_it_is_sent(spool, sink):
    name = past_session(spool, owes=1)
    (segment,) = spool.segments(name)
    size = (spool.session_path(name) / str(segment)).stat().st_size
    upload_segment.push_request(retries=0, delivery_info={"routing_key": LIVE})
    try:
        upload_segment(*pairs(spool, name)[0])
    finally:
        upload_segment.pop_request()
    assert sink.arrived() == [1]
    assert LiveBytes(spool.state).total() == size


def test_a_batch_leaves_new_video_the_time_that_it_needs(spool, sink, wide):
    """After new video of one second, the next one begins a second later."""
    wide.sender._pace._rate = 5640.0
    name = past_session(spool, owes=2)
    counter = LiveBytes(spool.state)
    begun = []
    original = wide.sender._started

    def started(*exchange):
        begun.append(time.monotonic())
        counter.add(5640)
        return original(*exchange)

    wide.sender._started = started
    assert upload_batch(pairs(spool, name)) == "sent 2 of 2"
    assert 0.9 < begun[1] - begun[0] < 3


def test_a_time_limit_while_a_thread_begins_leaves_nothing_locked(spool, sink, wide, monkeypatch):
    """It can come at any moment: here after the thread was made, and before anybody knows of it."""
    original = threading.Thread.start

    def start(self):
        original(self)
        if self.name == "upload":
            raise SoftTimeLimitExceeded

    sink.faults.add(Fault("trickle", delay=0.2))
    monkeypatch.setattr(threading.Thread, "start", start)
    name = past_session(spool, owes=2)
    assert upload_batch(pairs(spool, name)) == "sent 0 of 2"
    monkeypatch.setattr(threading.Thread, "start", original)
    assert uploading() == []
    assert all(is_free(spool, name, segment) for segment in spool.segments(name))


def test_a_thread_that_begins_too_late_sends_nothing(spool, sink, wide, monkeypatch):
    late = []
    original = threading.Thread.start

    def start(self):
        if self.name == "upload":
            late.append(self)
            raise SoftTimeLimitExceeded
        original(self)

    monkeypatch.setattr(threading.Thread, "start", start)
    name = past_session(spool, owes=2)
    assert upload_batch(pairs(spool, name)) == "sent 0 of 2"
    monkeypatch.setattr(threading.Thread, "start", original)
    for thread in late:
        thread.start()
        thread.join()
    assert sink.arrived() == []
    assert all(is_free(spool, name, segment) for segment in spool.segments(name))


def test_without_a_client_for_more_than_one_they_go_one_by_one(spool, sink, wide, monkeypatch):
    original = wide.sender._make

    def make(is_beside):
        if is_beside:
            raise ConfigError("cannot load the certificates")
        return original(is_beside)

    monkeypatch.setattr(wide.sender, "_make", make)
    name = past_session(spool, owes=2)
    assert upload_batch(pairs(spool, name)) == "sent 2 of 2"


def test_what_others_delivered_is_noted_when_something_goes_wrong(spool, sink, wide, monkeypatch):
    """A bug in the middle of a batch fails the task; what is with the cloud by then is not sent again."""
    name = past_session(spool, owes=3)
    batch, number = pairs(spool, name), 0
    original = type(wide.gate).admit

    def admit(self, token):
        nonlocal number
        number += 1
        if number == 2:
            until = time.monotonic() + 20
            while not sink.arrived() and time.monotonic() < until:
                time.sleep(0.01)
            time.sleep(1.5 * RTT)  # so that its answer is here, too
            raise ZeroDivisionError
        return original(self, token)

    monkeypatch.setattr(type(wide.gate), "admit", admit)
    with pytest.raises(ZeroDivisionError):
        upload_batch(batch)
    assert events(spool).count("delivered") == 1
    assert uploading() == []


def test_one_after_the_other_leaves_nothing_behind_in_memory(spool, sink):
    name = past_session(spool, owes=1)
    upload_batch(pairs(spool, name))
    assert this_worker().sender._wake.qsize() == 0


@pytest.mark.parametrize(
    ("nodes", "window"), [(["a@one"], 1), (["a@one", "b@one"], 1), (["a@one", "a@two"], 2)]
)
def test_where_uploads_overlap_one_lane_for_each_host_is_enough(spool, sink, wide, nodes, window):
    for number, node in enumerate(nodes):
        wide.memory.announce(f"{node}/{number}", 4, [LIVE, BACKLOG])
    for _ in range(2):
        upload_batch(pairs(spool, past_session(spool, owes=1)))
    assert wide.memory.load().window == window
