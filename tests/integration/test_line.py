"""The line of the benchmarks: its rate, its round trip, its fairness, as a process of its own."""

import socket
import threading
import time
from contextlib import ExitStack, closing, contextmanager, suppress

import pytest

from benchmarks.line import line_process

DONE = b"."
TRIES = 6


class Receiver:
    """A server that answers every `size` bytes with one, and notes when."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._attend, args=(connection,), daemon=True).start()

    def _attend(self, connection: socket.socket) -> None:
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            left = self.size
            while data := connection.recv(min(65536, left)):
                left -= len(data)
                if not left:
                    connection.sendall(DONE)
                    left = self.size


@contextmanager
def receiver(size: int):
    found = Receiver(size)
    with closing(found.listener):
        yield found


@contextmanager
def connected(port: int):
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield client


def send(client: socket.socket, size: int) -> float:
    """Send, wait for the answer, return the seconds."""
    content = bytes(size)
    began = time.monotonic()
    client.sendall(content)
    assert client.recv(1) == DONE
    return time.monotonic() - began


def send_anew(port: int, size: int) -> float:
    """Do the same on a new connection; its making counts."""
    began = time.monotonic()
    with connected(port) as client:
        send(client, size)
        return time.monotonic() - began


def quickest(measure, expected, tolerance):
    """Measure until it took about what was expected, a few times at most; return the shortest.

    Others at work on the machine make a line slower, never faster: too quick is wrong at the first try.
    """
    best = measure()
    for _ in range(TRIES - 1):
        if best <= expected * (1 + tolerance):
            break
        best = min(best, measure())
    return best


@pytest.mark.parametrize("rate", [250_000, 2_500_000, 12_500_000])
def test_the_rate_is_held(rate):
    size = rate  # one second
    with (
        receiver(size) as there,
        line_process(there.port, rate=rate, rtt=0.0) as port,
        connected(port) as client,
    ):
        assert quickest(lambda: send(client, size), 1.0, 0.05) == pytest.approx(1.0, rel=0.05)


def test_a_round_trip_takes_its_time_and_a_new_connection_one_more():
    with receiver(1) as there, line_process(there.port, rate=0, rtt=0.1) as port:
        first = quickest(lambda: send_anew(port, 1), 0.2, 0.1)
        with connected(port) as client:
            send(client, 1)
            later = quickest(lambda: send(client, 1), 0.1, 0.1)
    assert 0.198 < first < 0.26
    assert 0.099 < later < 0.115


def test_a_long_round_trip_does_not_slow_the_rate_down():
    size = rate = 1_250_000
    with receiver(size) as there, line_process(there.port, rate=rate, rtt=0.2) as port:
        assert quickest(lambda: send_anew(port, size), 1.4, 0.05) == pytest.approx(1.4, rel=0.05)


def test_two_uploads_share_the_line_and_a_small_one_is_not_behind_a_large_one():
    rate = 1_250_000
    size = rate // 4  # alone a quarter of a second
    with (
        receiver(size) as there,
        line_process(there.port, rate=rate, rtt=0.0) as port,
        ExitStack() as stack,
    ):
        large, small = (stack.enter_context(connected(port)) for _ in range(2))
        over = threading.Event()

        def keep_busy():  # without a pause for answers, in which the small one would be alone
            while not over.is_set():
                large.sendall(bytes(size))

        busy = threading.Thread(target=keep_busy)
        busy.start()
        assert large.recv(1) == DONE
        took = quickest(lambda: send(small, size), 0.5, 0.15)
        over.set()
        busy.join()
    assert took == pytest.approx(0.5, rel=0.15)


def test_all_connections_together_have_the_rate_once():
    rate = 1_250_000
    with (
        receiver(rate // 4) as there,
        line_process(there.port, rate=rate, rtt=0.02) as port,
    ):

        def all_together():
            with ExitStack() as stack:
                began = time.monotonic()
                clients = [stack.enter_context(connected(port)) for _ in range(4)]
                threads = [threading.Thread(target=send, args=(client, rate // 4)) for client in clients]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                return time.monotonic() - began

        assert quickest(all_together, 1.04, 0.06) == pytest.approx(1.04, rel=0.06)


def test_bytes_come_through_unchanged_and_the_end_too():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with line_process(port, rate=5_000_000, rtt=0.01) as door, connected(door) as client:
            there, _ = listener.accept()
            with there:
                sent = bytes(range(256)) * 4000
                threading.Thread(target=client.sendall, args=(sent,)).start()
                got = b""
                while len(got) < len(sent):
                    got += there.recv(65536)
                assert got == sent
                client.shutdown(socket.SHUT_WR)
                assert there.recv(1) == b""
                there.sendall(b"bye")
                there.shutdown(socket.SHUT_WR)
                assert client.recv(10) == b"bye"
                assert client.recv(1) == b""


def test_an_ingest_that_refuses_cuts_the_connection():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with line_process(port, rate=0, rtt=0.0) as door, connected(door) as client, suppress(ConnectionError):
        client.sendall(b"x")
        assert client.recv(1) == b""
