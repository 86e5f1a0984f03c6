"""The HTTP client against peers that do what a real one may, and what no real one should."""

import gc
import socket
import ssl
import threading
import time
import weakref
from contextlib import suppress

import pytest

import capture.http1
from capture.http1 import ANSWER_BYTES, Client, ExchangeError, Place, Reply, Request
from capture.line import Connection
from tests.integration.peers import head_of, peer

NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"
LARGE = b"x" * 16 * 1024 * 1024  # more than a loopback connection takes before it is read


def says(*answers):
    """A script that reads a request without a body before each of these."""

    def script(connection, reader):
        for answer in answers:
            head_of(reader)
            connection.sendall(answer)

    return script


@pytest.fixture
def client():
    made = Client(ssl.create_default_context(), options=(), line=Connection())
    yield made
    made.close()


def get(url, *, seconds=5.0):
    return Request("GET", Place.of(url), {}, None, 5.0, seconds)


def post(url, body, *, seconds=5.0):
    headers = {"Content-Length": str(len(body))}
    return Request("POST", Place.of(url), headers, lambda: iter([body]), 5.0, seconds)


@pytest.mark.parametrize(
    ("answer", "status", "text"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", 200, b"abc"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n", 200, b"abc"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + NO_CONTENT, 204, b""),
        (b"HTTP/1.1 503 \r\nContent-Length: 0\r\n\r\n", 503, b""),
    ],
)
def test_an_answer_is_read_to_its_end_and_the_connection_used_again(client, answer, status, text):
    with peer(says(answer, NO_CONTENT)) as (url, accepted):
        found = client.exchange(get(url))
        assert (found.status, found.text) == (status, text)
        assert client.exchange(get(url)).status == 204
        assert len(accepted) == 1


class Watched(socket.socket):
    """A socket that keeps what each call sent."""

    def __init__(self, *, fileno):
        super().__init__(fileno=fileno)
        self.sent = []

    def send(self, data):
        count = super().send(data)
        self.sent.append(bytes(data[:count]))
        return count


def test_the_head_of_a_request_leaves_in_one_piece_and_the_body_as_it_comes(client, monkeypatch):
    connected, watched = capture.http1._connected, []

    def watching(place, seconds):
        with connected(place, seconds) as found:
            watched.append(Watched(fileno=found.detach()))
        watched[0].settimeout(seconds)
        return watched[0]

    def script(connection, reader):
        head_of(reader)
        assert reader.read(7) == b"onetwo3"
        connection.sendall(NO_CONTENT)

    monkeypatch.setattr(capture.http1, "_connected", watching)
    with peer(script) as (url, _):
        headers = {"Content-Length": "7", "X-One": "1", "X-Two": "2"}
        body = lambda: iter([b"one", b"two", b"3"])  # noqa: E731
        assert client.exchange(Request("POST", Place.of(url), headers, body, 5.0, 5.0)).status == 204

    head, *rest = watched[0].sent
    assert head.startswith(b"POST /x HTTP/1.1\r\n")
    assert head.endswith(b"\r\n\r\n")
    assert rest == [b"one", b"two", b"3"]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.0 200 OK\r\n\r\nabc",  # it ends with the connection
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 500 no question was asked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nabc" + b"x" * 99_997,
    ],
    ids=["to its end", "told to close", "more than was asked for", "long"],
)
def test_a_connection_is_not_used_again_where_that_is_not_safe(client, answer):
    with peer(says(answer), says(NO_CONTENT)) as (url, accepted):
        found = client.exchange(get(url))
        assert (found.status, found.text[:3]) == (200, b"abc")
        assert len(found.text) <= ANSWER_BYTES
        assert client.exchange(get(url)).status == 204
        assert len(accepted) == 2


def test_an_answer_that_nobody_asked_for_is_not_taken_for_the_next_one(client):
    unasked, said = threading.Event(), threading.Event()

    def script(connection, reader):
        says(NO_CONTENT)(connection, reader)
        unasked.wait(10)
        connection.sendall(NO_CONTENT)
        said.set()
        reader.read()

    with peer(script, says(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")) as (url, accepted):
        client.exchange(get(url))
        unasked.set()
        assert said.wait(10)
        assert client.exchange(get(url)).status == 503
        assert len(accepted) == 2


def test_a_long_head_is_read_as_long_as_it_is_bounded(client):
    answer = b"HTTP/1.1 204 No\r\n" + b"X: " + b"y" * 40_000 + b"\r\n\r\n"
    with peer(says(answer)) as (url, _):
        assert client.exchange(get(url)).status == 204


def test_of_headers_that_are_there_twice_the_first_counts(client):
    answer = b"HTTP/1.1 204 No\r\nRETRY-after: 7\r\nRetry-After: 9\r\nX: \xe9\r\n\r\n"
    with peer(says(answer)) as (url, _):
        assert client.exchange(get(url)) == Reply(204, {"retry-after": "7", "x": "é"}, b"")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 204",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 204 No\r\nBad header\r\n\r\n",
        b"HTTP/1.1 204 No\r\nX: " + b"y" * 200_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
    ],
    ids=lambda answer: answer[:40].decode("latin-1"),
)
def test_what_is_no_answer_is_an_error_with_one_line_of_words(client, answer):
    def script(connection, reader):
        says(answer)(connection, reader)
        connection.shutdown(socket.SHUT_WR)
        reader.read()

    with peer(script) as (url, _):
        with pytest.raises(ExchangeError) as found:
            client.exchange(get(url))
        assert "\n" not in str(found.value)
        assert not found.value.timed_out
        assert client._kept == {}


def test_an_answer_that_trickles_in_has_no_more_time_than_one_that_does_not_come(client):
    def script(connection, reader):
        head_of(reader)
        with suppress(OSError):
            for byte in b"HTTP/1.1 204 No Content\r\nX: " + b"y" * 1000:
                connection.sendall(bytes([byte]))
                time.sleep(0.05)

    with peer(script) as (url, _):
        began = time.monotonic()
        with pytest.raises(ExchangeError, match=r"no answer within 0.5 s") as found:
            client.exchange(get(url, seconds=0.5))
        assert found.value.timed_out
        assert time.monotonic() - began < 5


def test_informational_answers_without_an_end_have_no_more_time_either(client):
    def script(connection, reader):
        head_of(reader)
        while True:
            connection.sendall(b"HTTP/1.1 102 Processing\r\n\r\n" * 100)

    with peer(script) as (url, _), pytest.raises(ExchangeError, match="no answer within"):
        client.exchange(get(url, seconds=0.3))


def test_a_peer_that_reads_nothing_holds_up_nobody_for_long(client):
    def script(_connection, reader):
        head_of(reader)
        done.wait(10)

    done = threading.Event()
    with peer(script) as (url, _):
        with pytest.raises(ExchangeError, match=r"nothing could be sent for 0.3 s") as found:
            client.exchange(post(url, LARGE, seconds=0.3))
        assert found.value.timed_out
        done.set()


def test_a_refusal_before_the_end_of_the_body_is_heard_though_the_connection_breaks(client):
    def script(connection, reader):
        head_of(reader)
        connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\nConnection: close\r\n\r\nlong")
        connection.shutdown(socket.SHUT_WR)
        time.sleep(0.1)  # it is on its way before the reset that the unread bytes cause

    with peer(script) as (url, _):
        assert client.exchange(post(url, LARGE)) == Reply(
            413, {"content-length": "4", "connection": "close"}, b"long"
        )
        assert client._kept == {}


def test_a_success_for_what_was_not_all_sent_is_none(client):
    def script(connection, reader):
        head_of(reader)
        connection.sendall(NO_CONTENT)
        connection.shutdown(socket.SHUT_WR)
        time.sleep(0.1)

    with (
        peer(script) as (url, _),
        pytest.raises(ExchangeError, match="the connection broke while sending"),
    ):
        client.exchange(post(url, LARGE))


def test_a_broken_upload_leaves_nothing_of_its_body_behind(client):
    class Body:
        def __iter__(self):
            yield LARGE

    body = Body()
    gone = weakref.ref(body)

    def script(connection, reader):
        head_of(reader)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    headers = {"Content-Length": str(len(LARGE))}
    with peer(script) as (url, _):
        request = Request("POST", Place.of(url), headers, lambda body=body: iter(body), 5.0, 5.0)
        gc.disable()
        try:
            with suppress(ExchangeError):
                client.exchange(request)
            del request, body
            assert gone() is None
        finally:
            gc.enable()


def test_a_connection_that_breaks_while_the_body_leaves_says_so(client):
    def script(connection, reader):
        head_of(reader)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    with (
        peer(script) as (url, _),
        pytest.raises(ExchangeError, match=r"while sending: .*(reset|pipe)") as found,
    ):
        client.exchange(post(url, LARGE))
    assert not found.value.timed_out


class _BodyError(Exception):
    pass


@pytest.mark.parametrize("error", [_BodyError("x"), OSError(5, "Input/output error"), TimeoutError()])
def test_what_the_body_raises_comes_out_as_it_is(client, error):
    def body():
        yield b"x"
        raise error

    ended = threading.Event()

    def script(_, reader):
        with suppress(OSError):  # its end is a reset
            reader.read()
        ended.set()

    with peer(script) as (url, _):
        request = Request("POST", Place.of(url), {"Content-Length": "9"}, body, 5.0, 5.0)
        with pytest.raises(type(error)) as found:
            client.exchange(request)
        assert found.value is error
        assert ended.wait(5), "the connection is still open"


def test_a_kept_connection_that_is_old_is_not_used(client, monkeypatch):
    with peer(says(NO_CONTENT, NO_CONTENT), says(NO_CONTENT)) as (url, accepted):
        client.exchange(get(url))
        monkeypatch.setattr(capture.http1, "KEPT_SECONDS", 0.0)
        client.exchange(get(url))
        assert len(accepted) == 2


def test_few_connections_are_kept(client):
    with peer(says(NO_CONTENT)) as (a, _), peer(says(NO_CONTENT)) as (b, _), peer(says(NO_CONTENT)) as (c, _):
        for url in (a, b, c):
            client.exchange(get(url))
        assert list(client._kept) == [Place.of(url).peer for url in (b, c)]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://nowhere.invalid/", "the host is not found: "),
        ("http://" + "x" * 64 + ".test/", "no connection: |the host is not found: "),
        ("http://127.0.0.1:9/", "no connection: Connection refused"),
    ],
)
def test_where_nobody_is_words_say_so(client, url, words):
    with pytest.raises(ExchangeError, match=f"^{words}"):
        client.exchange(get(url))


def test_a_handshake_can_be_cut():
    line, done = Connection(), threading.Event()
    client = Client(ssl.create_default_context(), options=(), line=line)
    with peer(lambda *_: done.wait(10)) as (url, _):
        threading.Timer(0.3, line.cut).start()
        began = time.monotonic()
        with pytest.raises(ExchangeError, match="no TLS"):
            client.exchange(get(url.replace("http:", "https:")))
        assert time.monotonic() - began < 4
        with pytest.raises(ExchangeError, match="it was cut"):
            client.exchange(get(url))
        done.set()


def test_of_two_kept_connections_the_one_in_use_is_given_up(client):
    done = threading.Event()

    def script(connection, reader):
        says(NO_CONTENT)(connection, reader)
        head_of(reader)
        done.wait(10)

    with peer(script) as (a, _), peer(says(NO_CONTENT)) as (b, _):
        for url in (a, b):
            client.exchange(get(url))
        other = client._kept[Place.of(b).peer].socket
        with pytest.raises(ExchangeError, match="nothing could be sent"):
            client.exchange(post(a, LARGE, seconds=0.3))
        assert client._line.was_slow
        assert other.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER) == 0
        done.set()


def test_a_peer_that_speaks_no_tls_is_told_and_one_that_says_nothing_has_its_time(client):
    with peer(lambda connection, _: connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")) as (url, _):
        with pytest.raises(ExchangeError, match=r"^no TLS: ") as found:
            client.exchange(get(url.replace("http:", "https:")))
        assert "_ssl.c" not in str(found.value)
    done = threading.Event()
    with peer(lambda *_: done.wait(10)) as (url, _):
        request = Request("GET", Place.of(url.replace("http:", "https:")), {}, None, 0.3, 5.0)
        with pytest.raises(ExchangeError, match=r"no TLS within 0.3 s") as found:
            client.exchange(request)
        assert found.value.timed_out
        done.set()
