"""The client against a real server: every way an attempt can end comes out as an outcome."""

import base64
import hashlib
import os
import signal
import socket
import ssl
import subprocess
import threading
import time

import pytest

import capture.body
from capture.body import Content
from capture.claim import claim
from capture.errors import ConfigError
from capture.http1 import ExchangeError
from capture.ingest import Ingest, _redirect_target, tls_context
from capture.outcome import Kind, Outcome
from capture.settings import IngestSettings
from capture.sink import Fault, Sink
from capture.spool import Spool
from tests.conftest import PACKET, add_segment, start_session
from tests.integration.peers import head_of, peer

TLS = tls_context(None)


@pytest.fixture
def sink(tmp_path):
    with Sink(tmp_path / "sink", token="T") as server:
        yield server


@pytest.fixture
def claimed(spool: Spool):
    with start_session(spool) as session:
        owed = add_segment(session, 1, PACKET * 3000)
        with claim(spool, session.name, owed.segment) as found:
            yield found


_clients: list[Ingest] = []


@pytest.fixture(autouse=True)
def _close_clients():
    yield
    while _clients:
        _clients.pop().close()


def client(url, **settings) -> Ingest:
    settings = IngestSettings(url=url, attempt_seconds=2.0, slowest_uplink=10**9, **settings)
    _clients.append(Ingest(settings, tls=TLS))
    return _clients[-1]


def test_a_segment_arrives_byte_for_byte_with_all_its_headers(sink, claimed):
    outcome, digest = client(sink.url).send_segment(claimed, "T")
    assert outcome.kind is Kind.OK
    (receipt,) = sink.receipts()
    content = PACKET * 3000
    assert receipt.bytes == len(content)
    assert receipt.sha256 == digest == hashlib.sha256(content).hexdigest()
    assert (receipt.camera, receipt.session, receipt.sequence) == ("door", claimed.session.id, 1)
    assert receipt.start == claimed.segment.start_rfc3339
    assert receipt.duration == claimed.segment.duration


def test_on_the_wire_stands_each_header_once_and_nothing_of_a_library(claimed):
    heads = []

    def listen(server: socket.socket) -> None:
        with server, server.accept()[0] as peer:
            for _ in range(2):
                data = b""
                while b"\r\n\r\n" not in data:
                    data += peer.recv(65536)
                head, _, body = data.partition(b"\r\n\r\n")
                heads.append(head.decode().split("\r\n"))
                left = (claimed.size if head.startswith(b"POST") else 0) - len(body)
                while left > 0:
                    left -= len(peer.recv(65536))
                peer.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    thread = threading.Thread(target=listen, args=(server,), daemon=True)
    thread.start()
    ingest = client(f"http://127.0.0.1:{port}")
    _, sha256 = ingest.send_segment(claimed, "T")
    assert ingest.end_stream("door", "T").kind is Kind.OK
    thread.join(5)
    digest = base64.b64encode(bytes.fromhex(sha256)).decode()
    common = [
        f"Host: 127.0.0.1:{port}",
        "User-Agent: relay-capture",
        "Accept: */*",
        "Accept-Encoding: identity",
        "Connection: keep-alive",
    ]
    assert heads == [
        [
            "POST /api/stream/ingest/door HTTP/1.1",
            *common,
            "Content-Type: video/mp2t",
            f"Content-Length: {claimed.size}",
            f"Content-Digest: sha-256=:{digest}:",
            f"Idempotency-Key: {claimed.idempotency_key}",
            "X-Segment-Sequence: 1",
            f"X-Segment-Start: {claimed.segment.start_rfc3339}",
            f"X-Segment-Duration: {claimed.segment.duration:.3f}",
            "X-API-Key: T",
        ],
        ["DELETE /api/stream/ingest/door HTTP/1.1", *common, "X-API-Key: T"],
    ]


def test_the_same_segment_again_is_a_delivery_and_stored_once(sink, claimed):
    ingest = client(sink.url)
    assert [ingest.send_segment(claimed, "T")[0].status for _ in range(2)] == [204, 409]
    assert len(sink.receipts()) == 1


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault("status", status=503), Kind.TRANSIENT),
        (Fault("status", status=401), Kind.FATAL),
        (Fault("status", status=413), Kind.REJECTED),
        (Fault("status", status=200, body=b"<html>"), Kind.REJECTED),
        (Fault("status", status=302, headers=(("Location", "/login"),)), Kind.REJECTED),
        (Fault("hang"), Kind.TRANSIENT),
        (Fault("reset"), Kind.TRANSIENT),
        (Fault("lost"), Kind.TRANSIENT),
        (Fault("half"), Kind.TRANSIENT),
        (Fault("refuse"), Kind.TRANSIENT),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_every_fault_is_an_outcome_in_bounded_time_and_the_next_attempt_works(sink, claimed, fault, kind):
    ingest = client(sink.url)
    sink.faults.add(fault)
    began = time.monotonic()
    assert ingest.send_segment(claimed, "T")[0].kind is kind
    assert time.monotonic() - began < 10
    sink.faults.clear()
    deadline = time.monotonic() + 5
    while (outcome := ingest.send_segment(claimed, "T")[0]).kind is Kind.TRANSIENT:
        assert time.monotonic() < deadline, outcome
    assert outcome.kind is Kind.OK


def test_retry_after_is_passed_on(sink, claimed):
    sink.faults.add(Fault("status", status=429, headers=(("Retry-After", "17"),)))
    assert client(sink.url).send_segment(claimed, "T")[0].retry_after == 17.0


def test_the_key_is_never_in_a_reason(sink, claimed):
    sink.faults.add(Fault("status", status=400, body=b"your key s3cret is bad"))
    assert "s3cret" not in client(sink.url).send_segment(claimed, "s3cret")[0].reason


@pytest.mark.parametrize("answer", [(204, 409), (503,)])
def test_one_connection_serves_many_segments(sink, claimed, answer):
    if answer == (503,):
        sink.faults.add(Fault("status", status=503, body=b"busy"))
    ingest, used = client(sink.url), []
    for _ in range(5):
        assert ingest.send_segment(claimed, "T")[0].status in answer
        used += ingest._client._kept.values()
    assert len(used) == 5
    assert all(each is used[0] for each in used)


def does(*steps):
    """A script for a connection: "answer" a request, or "close" in its middle."""

    def script(connection, reader):
        for step in steps:
            head = [line.lower().partition(b":") for line in head_of(reader)]
            size = next((int(value) for name, _, value in head if name == b"content-length"), 0)
            if step == "close":
                return
            reader.read(size)
            connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    return script


def test_a_kept_connection_that_the_server_just_closed_costs_no_attempt(claimed):
    with peer(does("answer", "close"), does("answer")) as (url, accepted):
        ingest = client(url)
        assert [ingest.send_segment(claimed, "T")[0].status for _ in range(2)] == [204, 204]
        assert len(accepted) == 2
        ingest.close()


def test_a_new_connection_that_the_server_closes_is_a_failed_attempt(claimed):
    with peer(does("close"), does("answer")) as (url, accepted):
        assert client(url).send_segment(claimed, "T")[0].kind is Kind.TRANSIENT
        assert len(accepted) == 1


@pytest.mark.parametrize(
    ("url", "location", "target"),
    [
        ("http://a/x", "/y", "http://a/y"),
        ("http://a/x", "http://a:80/y", "http://a:80/y"),
        ("http://a/x", "https://a/y", "https://a/y"),
        ("http://a:8080/x", "https://a/y", "https://a/y"),
        ("http://a/x", "http://b/y", None),
        ("http://a/x", "http://a:81/y", None),
        ("https://a/x", "http://a/y", None),
        ("https://a/x", "https://a:444/y", None),
        ("http://a/x", "http://user@a/y", None),
        ("http://a/x", "http://a:port/y", None),
        ("http://a/x", "//b/y", None),
        ("http://a/x", "", None),
        ("http://a/x", "http://[::1", None),
    ],
)
def test_the_key_follows_a_redirect_only_to_the_same_host_or_up_to_https(url, location, target):
    assert _redirect_target(url, 307, location) == target
    assert _redirect_target(url, 302, location) is None


def test_a_307_to_the_same_host_is_followed_with_the_whole_body(sink, claimed):
    where = f"{sink.url}/api/stream/ingest/door"
    sink.faults.add(Fault("status", status=307, headers=(("Location", where),), count=1))
    assert client(sink.url).send_segment(claimed, "T")[0].kind is Kind.OK
    assert sink.receipts()[0].bytes == claimed.size


def test_a_cloud_that_redirects_in_circles_is_left(sink, claimed):
    where = f"{sink.url}/api/stream/ingest/door"
    sink.faults.add(Fault("status", status=308, headers=(("Location", where),)))
    assert client(sink.url).send_segment(claimed, "T")[0].kind is Kind.TRANSIENT


def test_what_an_exchange_fails_with_is_an_outcome_without_the_key(claimed, monkeypatch):
    ingest = client("http://127.0.0.1:9")

    def fail(_request):
        raise ExchangeError("words with s3cret\nand more", timed_out=True)

    monkeypatch.setattr(ingest._client, "exchange", fail)
    outcome, _ = ingest.send_segment(claimed, "s3cret")
    assert (outcome.kind, outcome.timed_out) == (Kind.TRANSIENT, True)
    assert "s3cret" not in outcome.reason
    assert "\n" not in outcome.reason


def cut_when_digested(monkeypatch, claimed):
    """Have the file cut to one packet between its digest and its sending."""
    real = Content.read

    def read_then_cut(file, size):
        found = real(file, size)
        os.truncate(claimed.file.fileno(), len(PACKET))
        return found

    monkeypatch.setattr(Content, "read", read_then_cut)


def test_what_was_digested_is_sent_also_when_the_file_shrinks_meanwhile(sink, claimed, monkeypatch):
    cut_when_digested(monkeypatch, claimed)
    outcome, sha256 = client(sink.url).send_segment(claimed, "T")
    assert outcome.kind is Kind.OK
    assert sha256 == hashlib.sha256(PACKET * 3000).hexdigest()
    assert [receipt.path.read_bytes() for receipt in sink.receipts()] == [PACKET * 3000]


def test_a_large_segment_is_not_kept_and_no_delivery_when_it_shrinks_in_mid_send(sink, claimed, monkeypatch):
    monkeypatch.setattr(capture.body, "KEPT_BYTES", len(PACKET))
    cut_when_digested(monkeypatch, claimed)
    assert client(sink.url).send_segment(claimed, "T")[0].kind is Kind.TRANSIENT
    assert sink.receipts() == []


def test_a_large_segment_arrives_whole(sink, claimed, monkeypatch):
    monkeypatch.setattr(capture.body, "KEPT_BYTES", len(PACKET))
    outcome, sha256 = client(sink.url).send_segment(claimed, "T")
    assert outcome.kind is Kind.OK
    assert sha256 == hashlib.sha256(PACKET * 3000).hexdigest()
    assert [receipt.path.read_bytes() for receipt in sink.receipts()] == [PACKET * 3000]


def test_a_segment_file_that_shrank_before_it_was_read_is_no_delivery(sink, claimed):
    os.truncate(claimed.file.fileno(), len(PACKET))
    assert client(sink.url).send_segment(claimed, "T") == (
        Outcome(Kind.TRANSIENT, 0, "the segment file shrank while it was sent"),
        "",
    )
    assert sink.receipts() == []


@pytest.mark.parametrize(
    ("status", "media", "kind"),
    [
        (200, "text/html", Kind.REJECTED),  # a portal's: the stream is not ended
        (200, "application/json", Kind.OK),
        (404, "text/html; charset=utf-8", Kind.OK),  # there is none, in the words of a web server
    ],
)
def test_a_page_does_not_end_a_stream(sink, status, media, kind):
    sink.faults.add(
        Fault("status", method="DELETE", path="ingest", status=status, headers=(("Content-Type", media),))
    )
    assert client(sink.url).end_stream("door", "T").kind is kind


def test_a_cookie_of_the_cloud_is_not_sent_back(sink, claimed):
    sink.faults.add(Fault("status", status=503, headers=(("Set-Cookie", "track=1; Path=/"),)))
    ingest = client(sink.url)
    ingest.send_segment(claimed, "T")
    sink.faults.clear()
    seen = []
    real = ingest._client.exchange
    ingest._client.exchange = lambda request: seen.append(request.headers) or real(request)
    assert ingest.send_segment(claimed, "T")[0].kind is Kind.OK
    assert "cookie" not in {name.lower() for name in seen[0]}


class _LimitError(Exception):
    pass


def test_after_a_time_limit_fired_in_it_the_client_goes_on_with_another_connection(sink, claimed):
    def fire(*_):
        raise _LimitError

    before = signal.signal(signal.SIGUSR1, fire)
    try:
        sink.faults.add(Fault("hang"))
        timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGUSR1])
        timer.start()
        ingest = client(sink.url)
        with pytest.raises(_LimitError):
            ingest.send_segment(claimed, "T")
        assert ingest._line._used.fileno() < 0
    finally:
        signal.signal(signal.SIGUSR1, before)
    sink.faults.clear()
    assert ingest.send_segment(claimed, "T")[0].kind is Kind.OK


def test_a_certificate_nobody_vouches_for_is_refused_unless_its_authority_is_given(tmp_path, claimed):
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-days", "2", "-subj", "/CN=camera", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(cert)),
        ],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("no openssl command")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(cert, key)
    with Sink(tmp_path / "sink", token="T", tls=tls) as server:
        refused, _ = client(server.url).send_segment(claimed, "T")
        assert refused.kind is Kind.TRANSIENT
        settings = IngestSettings(url=server.url, ca_file=cert)
        _clients.append(Ingest(settings))
        assert _clients[-1].send_segment(claimed, "T")[0].kind is Kind.OK
        elsewhere = IngestSettings(url=server.url.replace("127.0.0.1", "localhost"), ca_file=cert)
        _clients.append(Ingest(elsewhere))
        refused, _ = _clients[-1].send_segment(claimed, "T")
        assert refused.kind is Kind.TRANSIENT
        assert "the certificate is refused: Hostname mismatch" in refused.reason


def test_a_file_that_holds_no_certificates_is_one_message(tmp_path):
    path = tmp_path / "ca.pem"
    path.write_text("x")
    with pytest.raises(ConfigError, match="PEM"):
        tls_context(path)
