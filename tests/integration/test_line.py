"""The line of the benchmarks: its rate, its round trip, its fairness, as a process of its own."""

import socket
import threading
import time
from contextlib import ExitStack, closing, contextmanager, suppress

import pytest

from benchmarks.line import line_process

DONE = b"."


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
    began = time.monotonic()
    client.sendall(bytes(size))
    assert client.recv(1) == DONE
    return time.monotonic() - began


@pytest.mark.parametrize("rate", [250_000, 2_500_000, 12_500_000])
def test_the_rate_is_held(rate):
    size = rate  # one second
    with (
        receiver(size) as there,
        line_process(there.port, rate=rate, rtt=0.0) as port,
        connected(port) as client,
    ):
        assert send(client, size) == pytest.approx(1.0, rel=0.05)


def test_a_round_trip_takes_its_time_and_a_new_connection_one_more():
    with receiver(1) as there, line_process(there.port, rate=0, rtt=0.1) as port, connected(port) as client:
        first = send(client, 1)
        later = min(send(client, 1) for _ in range(5))
    assert 0.198 < first < 0.26
    assert 0.099 < later < 0.115


def test_a_long_round_trip_does_not_slow_the_rate_down():
    size = rate = 1_250_000
    with (
        receiver(size) as there,
        line_process(there.port, rate=rate, rtt=0.2) as port,
        connected(port) as client,
    ):
        assert send(client, size) == pytest.approx(1.4, rel=0.05)


def test_two_uploads_share_the_line_and_a_small_one_is_not_behind_a_large_one():
    rate = 1_250_000
    with (
        receiver(rate // 4) as there,
        line_process(there.port, rate=rate, rtt=0.0) as port,
        ExitStack() as stack,
    ):
        large, small = (stack.enter_context(connected(port)) for _ in range(2))
        busy = threading.Thread(target=lambda: [send(large, rate // 4) for _ in range(8)])
        busy.start()
        time.sleep(0.3)
        took = send(small, rate // 4)  # alone a quarter of a second
        busy.join()
    assert took == pytest.approx(0.5, rel=0.15)


def test_all_connections_together_have_the_rate_once():
    rate = 1_250_000
    with (
        receiver(rate // 4) as there,
        line_process(there.port, rate=rate, rtt=0.02) as port,
        ExitStack() as stack,
    ):
        clients = [stack.enter_context(connected(port)) for _ in range(4)]
        threads = [threading.Thread(target=send, args=(client, rate // 4)) for client in clients]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - began == pytest.approx(1.04, rel=0.06)


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
