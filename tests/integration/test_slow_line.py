"""Several uploads at once over a line that is too slow for that: real connections, a real line."""

import socket
import threading
import time
from contextlib import contextmanager

import pytest

from benchmarks.line import line_process
from capture.claim import claim
from capture.ingest import Ingest, silent_seconds
from capture.narrow import Narrow
from capture.outcome import Kind
from capture.settings import IngestSettings
from capture.sink import Fault, Sink
from tests.conftest import PACKET, add_segment, start_session

RATE = 200_000  # bytes per second
PACKETS = 3200
SIZE = 188 * PACKETS  # three seconds of it, and more than what all buffers on the way hold for each
WINDOW = 32 * 1024


@pytest.fixture
def sink(tmp_path):
    with Sink(tmp_path / "sink", token="T") as server:
        yield server


@contextmanager
def holding():
    """A server that takes what its window has room for, and nothing more; it is there all the time."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WINDOW)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def attempt(session, segment, settings):
    with claim(session.spool, session.name, segment) as found:
        ingest = Ingest(settings)
        outcome, _ = ingest.send_segment(found, "T")
        ingest.close()
    return outcome


@pytest.mark.parametrize("size", [8 * 188, 60_000 * 188], ids=["taken at once", "that fills every buffer"])
def test_who_takes_nothing_more_is_slow_and_who_took_it_all_hangs(spool, size):
    """A far end that was handed everything owes an answer; only one that still has to take some is slow."""
    with start_session(spool) as session, holding() as url:
        owed = add_segment(session, 1, PACKET * (size // 188))
        settings = IngestSettings(url=url, attempt_seconds=1, slowest_uplink=10**9)
        outcome = attempt(session, owed.segment, settings)
    assert (outcome.kind, outcome.timed_out) == (Kind.TRANSIENT, True)
    assert outcome.is_slow is (size > WINDOW)


def test_a_cloud_that_hangs_is_not_slow(spool, sink):
    sink.faults.add(Fault("hang"))
    with start_session(spool) as session:
        owed = add_segment(session, 1)
        outcome = attempt(session, owed.segment, IngestSettings(url=sink.url, attempt_seconds=1))
    assert (outcome.timed_out, outcome.is_slow) == (True, False)


def test_a_connection_knows_for_how_long_it_may_be_silent(spool, sink):
    settings = IngestSettings(url=sink.url, slowest_uplink=10_000)
    with (
        start_session(spool) as session,
        claim(spool, session.name, add_segment(session, 1).segment) as found,
    ):
        ingest = Ingest(settings)
        assert ingest.send_segment(found, "T")[0].kind is Kind.OK
        kept = ingest._line._used
        assert kept.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == pytest.approx(
            silent_seconds(settings) * 1000, abs=1
        )
        ingest.close()


class Sender(threading.Thread):
    """Sends one segment until it is delivered, as a worker process does: when it is its turn."""

    def __init__(self, session, segment, settings, *, until):
        super().__init__(daemon=True)
        self._session, self._segment, self._settings = session, segment, settings
        self._until = until
        self.attempts, self.is_delivered = 0, False

    def run(self):
        narrow = Narrow(self._session.spool, self._settings)
        while not self.is_delivered and time.monotonic() < self._until:
            with narrow.turn(is_live=False) as is_mine:
                if is_mine:
                    self._try(narrow)
            if not is_mine:
                time.sleep(0.05)

    def _try(self, narrow):
        self.attempts += 1
        began = time.monotonic()
        outcome = attempt(self._session, self._segment, self._settings)
        narrow.note(outcome, size=SIZE, seconds=time.monotonic() - began)
        self.is_delivered = outcome.kind is Kind.OK


def test_four_that_share_a_slow_line_all_arrive_after_one_vain_attempt_each(spool, sink):
    """Side by side each needs twelve seconds, and has six and a bit; one after the other three."""
    until = time.monotonic() + 90
    with line_process(sink.port, rate=RATE, rtt=0.08) as port, start_session(spool) as session:
        settings = IngestSettings(url=f"http://127.0.0.1:{port}", attempt_seconds=3, slowest_uplink=RATE)
        senders = [
            Sender(session, add_segment(session, number, PACKET * PACKETS).segment, settings, until=until)
            for number in range(1, 5)
        ]
        for each in senders:
            each.start()
        for each in senders:
            each.join(100)
    assert [each.is_delivered for each in senders] == [True] * 4
    assert len(sink.receipts()) == 4
    # What the line still holds of the first ones may cost some more.
    assert sum(each.attempts for each in senders) <= 12
