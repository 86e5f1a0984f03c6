"""The worker's small HTTP server, against whoever may connect to it."""

import socket
import threading
import time

import pytest
from structlog.testing import capture_logs

from tasks import metrics_server
from tasks.metrics_server import MOST_CONNECTIONS, MetricsServer

DEADLINE = 30.0
BODY = b"relay_capture_build_info 1.0\n"


@pytest.fixture
def serve():
    servers = []

    def run(listen="127.0.0.1:0", read=lambda: BODY):
        server = MetricsServer(listen, read)
        server.start()
        servers.append(server)
        return server

    yield run
    for server in servers:
        server.close()


def connect(server):
    return socket.create_connection(server.server_address[:2], timeout=DEADLINE)


def ask(server, head):
    """Send this, and return the status and the body."""
    with connect(server) as line:
        line.sendall(head)
        answer = b"".join(iter(lambda: line.recv(65536), b""))
    first, _, rest = answer.partition(b"\r\n")
    return int(first.split()[1]), rest.partition(b"\r\n\r\n")[2], answer


def request(target="/metrics", method="GET", host="127.0.0.1:9108"):
    return f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


def wait_for(condition, what):
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def test_one_path_is_answered(serve):
    server = serve()
    assert ask(server, request())[:2] == (200, BODY)
    assert ask(server, request("/metrics?x=y"))[0] == 200
    for target in ("/", "/metrics/", "/../metrics", "http://evil/metrics"):
        assert ask(server, request(target))[0] == 404, target


def test_head_has_the_length_and_no_body(serve):
    status, body, answer = ask(serve(), request(method="HEAD"))
    assert (status, body) == (200, b"")
    assert f"Content-Length: {len(BODY)}".encode() in answer


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "BREW"])
def test_other_methods_are_refused(serve, method):
    assert ask(serve(), request(method=method))[0] == 501


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:9108", 200),
        ("127.9.9.9:1", 200),
        ("[::1]:9108", 200),
        ("[::1]", 200),
        ("", 200),  # an old client, and no browser
        ("evil.example.com", 421),
        ("evil.example.com:9108", 421),
        ("127.0.0.1.evil.example.com", 421),
        ("192.0.2.7", 421),
        ("[", 421),
        ("]:", 421),
    ],
)
def test_on_loopback_only_its_names_are_ours(serve, host, status):
    assert ask(serve(), request(host=host))[0] == status


def test_elsewhere_any_name_is_ours(serve):
    assert ask(serve("0.0.0.0:0"), request(host="worker-2:9108"))[0] == 200


@pytest.mark.parametrize(
    "head",
    [
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /<script> HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n\n",
        b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
    ],
)
def test_nonsense_is_refused_and_not_repeated(serve, head, capfd):
    server = serve()
    with connect(server) as line:
        line.sendall(head)
        line.shutdown(socket.SHUT_WR)
        try:
            answer = b"".join(iter(lambda: line.recv(65536), b""))
        except ConnectionResetError:
            answer = b""
    assert b"script" not in answer
    assert b"aaaa" not in answer
    assert b"200 OK" not in answer
    assert ask(server, request())[0] == 200
    assert capfd.readouterr() == ("", "")


def test_who_trickles_or_is_silent_makes_way(serve, monkeypatch):
    monkeypatch.setattr(metrics_server, "ANSWER_SECONDS", 0.5)
    server = serve()
    ended = threading.Event()

    def trickle():
        with connect(server) as line:
            try:
                while not ended.is_set():
                    line.sendall(b"G")
                    time.sleep(0.02)
            except OSError:
                ended.set()

    slow = threading.Thread(target=trickle)
    slow.start()
    silent = [connect(server) for _ in range(3)]
    try:
        wait_for(ended.is_set, "the one that trickles is cut off")
        assert [line.recv(1) for line in silent] == [b""] * 3
    finally:
        ended.set()
        slow.join()
        for line in silent:
            line.close()


def test_there_are_never_more_connections_than_a_few(serve):
    server = serve()
    lines = [connect(server) for _ in range(3 * MOST_CONNECTIONS)]
    try:
        wait_for(lambda: not lines[-1].recv(1), "one too many is closed at once")
        assert threading.active_count() <= MOST_CONNECTIONS + 10
    finally:
        for line in lines:
            line.close()

    def answers():
        try:
            return ask(server, request())[0] == 200
        except (OSError, IndexError):
            return False

    wait_for(answers, "there is room again")


def test_a_fault_of_ours_ends_its_connection_alone_and_is_told_once(serve):
    def read():
        asked.append(1)
        if len(asked) < 3:
            raise KeyError("a bug")
        return BODY

    asked = []
    server = serve(read=read)
    with capture_logs() as told:
        for _ in range(2):
            with pytest.raises(IndexError):
                ask(server, request())
        assert ask(server, request())[0] == 200
    assert [line["event"] for line in told] == ["metrics_request_failed"]
    assert told[0]["exc_info"]


def test_an_address_in_use_is_an_os_error(serve):
    server = serve()
    with pytest.raises(OSError, match="in use"):
        MetricsServer(f"127.0.0.1:{server.port}", lambda: BODY)


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_it_listens_on_ipv6_as_well(serve):
    try:
        server = serve("[::1]:0")
    except OSError as error:
        pytest.skip(f"this machine has no IPv6 loopback: {error.strerror}")
    assert ask(server, request(host=f"[::1]:{server.port}"))[0] == 200
