import base64
import hashlib
import itertools
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest
import structlog

from capture.errors import ConfigError
from capture.sink import Fault, FaultPlan, Sink, SinkEvent, verify

TOKEN = "made-up"
BODY = b"G" + bytes(187)
LARGE = BODY * 20_000  # 3.8 MB: more than the sink reads off to keep a connection
SESSION = "20261123T211131Z-abcdefgh"


def digest_of(body: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


def eventually(check: Callable[[], object], *, seconds: float = 5.0) -> None:
    """Wait for a state of another thread that gives no signal of its own."""
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "the expected state never came"
        time.sleep(0.005)


NO_TLS = ssl.create_default_context()  # made once: loading certificates takes 30 ms


class Client:
    """A camera side: one keep-alive connection and the headers a worker sends."""

    def __init__(self, sink: Sink, *, verify_with: ssl.SSLContext):
        self.http = httpx.Client(
            base_url=sink.url, timeout=5.0, headers={"X-API-Key": TOKEN}, verify=verify_with
        )

    def post(self, sequence=1, *, body=BODY, camera="gate", digest=None, timeout=5.0, **headers):
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.http.post(
            f"/api/stream/ingest/{camera}",
            content=body,
            timeout=timeout,
            headers={
                "Content-Type": "video/mp2t",
                "Idempotency-Key": f"{SESSION}/{sequence}",
                "Content-Digest": digest or digest_of(body),
            }
            | headers,
        )

    def source_port(self) -> int:
        """Tell connections apart: the port this client's one connection comes from."""
        connection = self.http._transport._pool.connections[0]
        return connection._connection._network_stream.get_extra_info("client_addr")[1]


@contextmanager
def client_of(sink: Sink, *, verify_with: ssl.SSLContext = NO_TLS) -> Iterator[Client]:
    client = Client(sink, verify_with=verify_with)
    with client.http:
        yield client


@pytest.fixture
def events() -> list[SinkEvent]:
    return []


@pytest.fixture
def sink(tmp_path, events) -> Iterator[Sink]:
    with Sink(tmp_path / "sink", token=TOKEN, on_event=events.append) as sink:
        yield sink


@pytest.fixture
def client(sink) -> Iterator[Client]:
    with client_of(sink) as client:
        yield client


def stored_files(sink: Sink) -> list[Path]:
    return sorted(path for path in sink.directory.rglob("*") if path.suffix == ".ts")


def incoming(sink: Sink) -> list[Path]:
    return list((sink.directory / ".incoming").iterdir())


def dial(sink: Sink) -> socket.socket:
    return socket.create_connection(("127.0.0.1", sink.port), timeout=5.0)


def head(path="/api/stream/ingest/gate", *, method="POST", **headers) -> bytes:
    fields = {"Host": "sink", "X-API-Key": TOKEN} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def say(sink: Sink, data: bytes) -> bytes:
    """Send raw bytes and return all that comes back until the sink closes."""
    with closing(dial(sink)) as sock:
        sock.sendall(data)
        return b"".join(iter(lambda: sock.recv(65536), b""))


# --- the wire ------------------------------------------------------------------------------------


def test_a_segment_is_stored_byte_for_byte_with_its_receipt(sink, client):
    answer = client.post(
        11, body=LARGE, X_Segment_Start="2026-11-23T21:11:31.120Z", X_Segment_Duration="10.04"
    )
    [receipt] = sink.receipts()
    assert answer.status_code == 204
    assert answer.content == b""
    assert receipt.path == sink.directory / "gate" / SESSION / "00000011.ts"
    assert receipt.path.read_bytes() == LARGE
    assert receipt.sha256 == hashlib.sha256(LARGE).hexdigest()
    assert (receipt.camera, receipt.session, receipt.sequence) == ("gate", SESSION, 11)
    assert (receipt.bytes, receipt.duration) == (len(LARGE), 10.04)
    assert receipt.start == "2026-11-23T21:11:31.120Z"
    assert (receipt.attempts, receipt.duplicates) == (1, 0)
    assert verify(sink.directory) == []
    assert incoming(sink) == []


def test_a_segment_sent_again_is_409_and_kept_once(sink, client):
    codes = [client.post().status_code for _ in range(3)]
    [receipt] = sink.receipts()
    assert codes == [204, 409, 409]
    assert (receipt.attempts, receipt.duplicates) == (3, 2)
    assert sink.counters.duplicates == 2
    assert len(stored_files(sink)) == 1


def test_other_bytes_under_a_known_key_are_422_and_counted_as_a_conflict(sink, client):
    client.post()
    assert client.post(body=b"other").status_code == 422
    assert sink.counters.conflicts == 1
    assert stored_files(sink)[0].read_bytes() == BODY


def test_a_body_that_does_not_match_its_digest_is_400_with_the_reason(sink, client):
    answer = client.post(digest=digest_of(b"other"))
    assert answer.status_code == 400
    assert "Content-Digest" in answer.text
    assert sink.counters.digest_mismatches == 1
    assert stored_files(sink) == incoming(sink) == []
    assert client.post().status_code == 204
    assert sink.receipts()[0].attempts == 2


@pytest.mark.parametrize(
    ("digest", "status"),
    [
        ("md5=:AAAA:", 204),
        (f"md5=:AAAA:, {digest_of(BODY)}", 204),
        ("sha-256=AAAA", 400),
        ("sha-256=:*:", 400),
        ("sha-256=:AAAA:", 400),
    ],
)
def test_only_a_sha_256_is_looked_at(client, digest, status):
    assert client.post(digest=digest).status_code == status


@pytest.mark.parametrize("key", ["", "wrong", TOKEN + "x"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/stream/ingest/gate"),
        ("DELETE", "/api/stream/ingest/gate"),
        ("POST", "/api/cameras"),
        ("GET", "/api/cameras"),
    ],
)
def test_a_wrong_token_is_401_on_every_route(sink, client, key, method, path):
    answer = client.http.request(method, path, content=b"{}", headers={"X-API-Key": key})
    assert answer.status_code == 401
    assert sink.counters.rejected_tokens == 1
    assert sink.counters.requests == {(method, 401): 1}
    assert stored_files(sink) == []


def test_a_sink_without_a_token_takes_any(tmp_path):
    with Sink(tmp_path, token=None) as sink, client_of(sink) as client:
        assert client.post().status_code == 204


def test_a_segment_without_a_key_is_stored_under_a_made_up_name(sink, client):
    for _ in range(2):
        answer = client.http.post("/api/stream/ingest/gate", content=BODY)
        assert answer.status_code == 204
    first, second = sink.receipts()
    assert first.session.startswith("unkeyed-")
    assert first.path != second.path
    assert verify(sink.directory) == []


def test_the_cameras_are_listed_for_who_has_the_key(sink, client):
    assert client.http.get("/api/cameras").json() == []
    client.http.post("/api/cameras", json={"id": "gate", "name": "North gate"})
    assert client.http.get("/api/cameras").json() == [{"id": "gate", "name": "North gate"}]
    assert client.http.get("/api/cameras", headers={"X-API-Key": "wrong"}).status_code == 401


def test_a_camera_is_201_the_first_time_then_200(sink, client):
    payload = {"id": "gate", "name": "Gate", "source_url": "", "metadata": {"source_type": "test"}}
    codes = [client.http.post("/api/cameras", json=payload).status_code for _ in range(2)]
    assert codes == [201, 200]
    assert sink.cameras == {"gate": payload}


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"[" * 5000,
        b"{}",
        b'{"id": 5}',
        b'{"id": "../gate"}',
        b'{"id": "gate", "name": 5}',
        b'{"id": "gate", "metadata": []}',
        json.dumps({"id": "gate", "name": "x" * 70_000}).encode(),
    ],
)
def test_a_malformed_or_oversized_camera_is_400(sink, client, payload):
    assert client.http.post("/api/cameras", content=payload).status_code == 400
    assert sink.cameras == {}
    assert client.http.get("/healthz").status_code == 200


def test_a_camera_is_ended_once_and_only_when_known(sink, client):
    delete = lambda: client.http.delete("/api/stream/ingest/gate").status_code  # noqa: E731
    assert delete() == 404
    client.post()
    assert [delete(), delete()] == [204, 404]
    assert sink.ended == ["gate"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/healthz", 200),
        ("GET", "/healthz?a=b", 200),
        ("HEAD", "/healthz", 200),
        ("GET", "/", 404),
        ("POST", "/healthz", 405),
        ("PUT", "/api/cameras", 405),
        ("PUT", "/api/stream/ingest/gate", 405),
        ("POST", "/api/stream/ingest/", 404),
        ("POST", "/api/stream/ingest/a/b", 404),
        ("OPTIONS", "*", 404),
    ],
)
def test_an_unknown_address_is_404_and_an_unknown_method_of_a_known_one_405(sink, method, path, status):
    answer = say(sink, head(path, method=method, Content_Length=0, Connection="close"))
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())


@pytest.mark.parametrize("camera", [".", "..", "...", "-a", "a%2fb", "a%00", "~", "a" * 65, "a\\b",
                                    "receipts.jsonl", "RECEIPTS.jsonl", ".incoming"])  # fmt: skip
def test_a_hostile_camera_id_is_400_and_touches_nothing(sink, camera):
    request = head(f"/api/stream/ingest/{camera}", Content_Length=3, Connection="close") + b"abc"
    assert say(sink, request).startswith(b"HTTP/1.1 400 ")
    assert stored_files(sink) == []
    assert sorted(path.name for path in sink.directory.iterdir()) == [".incoming", "receipts.jsonl"]


@pytest.mark.parametrize(
    "key",
    [
        "",
        "x",
        "/1",
        "a/",
        "a/b/1",
        "../1",
        "../../x/1",
        ".a/1",
        "a/-1",
        "a/1.5",
        "a/x",
        "a/1 2",
        "a/1, b/2",
        "é/1",
        f"{'a' * 129}/1",
        f"a/{'1' * 13}",
    ],
)
def test_a_hostile_key_is_400_and_touches_nothing(sink, key):
    request = head(Idempotency_Key=key, Content_Length=3, Connection="close") + b"abc"
    assert say(sink, request).startswith(b"HTTP/1.1 400 ")
    assert stored_files(sink) == []


@pytest.fixture
def logged():
    with structlog.testing.capture_logs() as lines:
        yield lines


def test_a_body_above_the_limit_is_413(tmp_path):
    with Sink(tmp_path, token=TOKEN, max_body=100) as sink, client_of(sink) as client:
        assert client.post(body=bytes(101)).status_code == 413
        assert client.post(body=bytes(100)).status_code == 204


@pytest.mark.parametrize(
    "damage",
    [
        lambda directory: (directory / ".incoming").rmdir(),
        lambda directory: (directory / "gate").write_text("a file where a directory has to be"),
    ],
)
def test_what_cannot_be_stored_is_507_and_leaves_nothing(sink, client, logged, damage):
    damage(sink.directory)
    answers = [client.post(body=body) for body in (BODY, LARGE)]
    assert [answer.status_code for answer in answers] == [507, 507]
    assert "sink_store_failed" in [line["event"] for line in logged]
    assert sink.receipts() == stored_files(sink) == []
    assert list(sink.directory.glob(".incoming/*")) == []


def test_an_ipv6_address_is_bracketed_in_the_url(tmp_path):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 loopback here")
    with Sink(tmp_path, token=TOKEN, host="::1") as sink, client_of(sink) as client:
        assert sink.url == f"http://[::1]:{sink.port}"
        assert client.post().status_code == 204


# --- TLS -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> tuple[Path, Path]:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1"
    subject = ["-subj", "/CN=sink", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(cert)]
    subprocess.run([*command.split(), *subject, *files], check=True, capture_output=True)
    return cert, key


@pytest.fixture
def tls_sink(tmp_path, certificate) -> Iterator[Sink]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with Sink(tmp_path, token=TOKEN, tls=context) as sink:
        yield sink


@pytest.fixture
def tls_client(tls_sink, certificate) -> Iterator[Client]:
    trust = ssl.create_default_context(cafile=certificate[0])
    with client_of(tls_sink, verify_with=trust) as client:
        yield client


def test_a_sink_with_a_certificate_speaks_https(tls_sink, tls_client):
    assert tls_sink.url.startswith("https://")
    assert tls_client.post(1, body=LARGE).status_code == 204
    assert tls_client.post(2, body=LARGE, X_API_Key="wrong").status_code == 401
    assert verify(tls_sink.directory) == []


@pytest.mark.parametrize("kind", ["reset", "lost", "refuse"])
def test_a_connection_is_also_reset_under_tls(tls_sink, tls_client, kind):
    tls_sink.faults.add(Fault(kind, count=1))
    with pytest.raises(httpx.TransportError):
        tls_client.post(body=LARGE)
    assert tls_client.post(body=LARGE).status_code in (204, 409)


def test_a_stop_is_prompt_with_a_handshake_that_never_comes(tls_sink):
    with closing(dial(tls_sink)):
        eventually(lambda: tls_sink._lines)
        began = time.monotonic()
        tls_sink.stop()
        assert time.monotonic() - began < 1.0
        assert not tls_sink._lines


def test_a_hung_client_that_leaves_is_noticed_under_tls(tls_sink, tls_client):
    tls_sink.faults.add(Fault("hang"))
    with pytest.raises(httpx.ReadTimeout):
        tls_client.post(timeout=0.2)
    eventually(lambda: tls_sink.counters.outcome("aborted") == 1)


def test_plain_bytes_on_a_tls_port_harm_nobody(tls_sink, tls_client):
    with closing(dial(tls_sink)) as sock:
        sock.sendall(head("/healthz", method="GET"))
        eventually(lambda: not tls_sink._lines)
    assert tls_client.post().status_code == 204


# --- what is no proper request -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"\x16\x03\x01\x02\x00\n\r\n", 400),
        (b"GET\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\n\r\n", 400),
        (b"get / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: b\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA : b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: b\0c\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: " + b"b" * 40_000, 431),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 10_000, 431),
        (head(Content_Length="-1"), 400),
        (head(Content_Length="+5"), 400),
        (head(Content_Length="0x10"), 400),
        (head(Content_Length="5, 5"), 400),
        (head(Content_Length=""), 400),
        (head(Content_Length="²"), 400),
        (head(Content_Length="9" * 18), 413),
        (head(Content_Length="9" * 5000), 413),
        (head(Connection="close"), 411),
        (head(Transfer_Encoding="chunked") + b"3\r\nabc\r\n0\r\n\r\n", 411),
        (head(Transfer_Encoding="chunked", Content_Length=3) + b"abc", 411),
        (head("/api/cameras", Transfer_Encoding="chunked") + b"0\r\n\r\n", 411),
    ],
    ids=itertools.count(),
)
def test_a_malformed_request_is_answered_and_the_line_closed(sink, client, request_, status):
    with closing(dial(sink)) as sock:
        sock.sendall(request_)
        sock.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"Connection: close" in answer
    assert client.post().status_code == 204


def test_an_aborted_body_is_never_visible(sink, events):
    with closing(dial(sink)) as sock:
        sock.sendall(head(Idempotency_Key=f"{SESSION}/1", Content_Length=1000) + b"half")
        eventually(lambda: incoming(sink))
        assert stored_files(sink) == []
    eventually(lambda: events)
    assert events[0].outcome == "aborted"
    assert stored_files(sink) == incoming(sink) == sink.receipts() == []


def test_a_peer_that_falls_silent_is_let_go(tmp_path):
    with Sink(tmp_path, token=TOKEN, peer_timeout=0.1) as sink, closing(dial(sink)) as sock:
        sock.sendall(head(Content_Length=1000) + b"half")
        assert sock.recv(100) == b""
        assert incoming(sink) == []


def test_a_body_is_only_invited_when_it_is_wanted(sink):
    expect = {"Content_Length": 3, "Expect": "100-continue"}
    with closing(dial(sink)) as sock:
        sock.sendall(head(**expect))
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"abc")
        assert sock.recv(100).startswith(b"HTTP/1.1 204 ")
    with closing(dial(sink)) as sock:
        sock.sendall(head(X_API_Key="wrong", **expect))
        assert sock.recv(1000).startswith(b"HTTP/1.1 401 ")


def test_an_http_1_0_peer_is_answered_and_the_line_closed(sink):
    assert say(sink, b"GET /healthz HTTP/1.0\r\n\r\n").endswith(b"\r\n\r\nok\n")


def test_requests_sent_back_to_back_are_answered_in_order(sink):
    request = head(Content_Length=3) + b"abc"
    last = head("/healthz", method="GET", Connection="close")
    answer = say(sink, request * 3 + last)
    assert answer.count(b"HTTP/1.1 204 ") == 3
    assert answer.endswith(b"ok\n")


def test_a_connection_stays_usable_after_an_error_that_left_the_body_unread(client):
    client.post(1)
    port = client.source_port()
    assert client.post(2, X_API_Key="wrong", body=bytes(500_000)).status_code == 401
    assert client.post(2).status_code == 204
    assert client.source_port() == port


def test_a_large_unread_body_costs_the_connection_but_never_the_answer(sink, client):
    for sequence in range(10):
        assert client.post(sequence, X_API_Key="wrong", body=LARGE).status_code == 401
    assert client.post().status_code == 204
    assert sink.counters.requests == {("POST", 401): 10, ("POST", 204): 1}


def test_a_refused_peer_may_finish_its_body_before_the_line_is_closed(sink):
    with closing(dial(sink)) as sock:
        sock.sendall(head(X_API_Key="wrong", Content_Length=len(LARGE)) + LARGE[:1000])
        assert sock.recv(1000).startswith(b"HTTP/1.1 401 ")
        sock.sendall(LARGE[1000:])
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1000) == b""


# --- counts and concurrency ----------------------------------------------------------------------


def test_an_event_is_told_before_its_answer_is_sent(client, events):
    client.post(3)
    [event] = events
    assert (event.outcome, event.method, event.status) == ("stored", "POST", 204)
    assert (event.camera, event.session, event.sequence) == ("gate", SESSION, 3)
    assert (event.bytes, event.fault) == (len(BODY), None)


def test_a_listener_that_fails_costs_no_answer(tmp_path, logged):
    def fail(event: SinkEvent) -> None:
        raise RuntimeError(event.outcome)

    with Sink(tmp_path, token=TOKEN, on_event=fail) as sink, client_of(sink) as client:
        assert client.post().status_code == 204
    assert "sink_listener_failed" in [line["event"] for line in logged]


def test_many_connections_at_once_store_each_segment_once(sink):
    def upload(worker: int) -> list[int]:
        with client_of(sink) as client:
            return [
                client.post(n, body=BODY * (n + 1), camera=f"cam{worker // 2}").status_code for n in range(20)
            ]

    with ThreadPoolExecutor(8) as pool:  # two workers for each camera send the same segments
        codes = list(itertools.chain.from_iterable(pool.map(upload, range(8))))
    assert (codes.count(204), codes.count(409)) == (80, 80)
    assert len(sink.receipts()) == len(stored_files(sink)) == 80
    assert verify(sink.directory) == []
    assert set(sink.counters.peak) == {"cam0", "cam1", "cam2", "cam3"}


def test_the_peak_is_the_most_requests_a_camera_had_at_once(sink):
    sink.faults.add(hang := Fault("hang", camera="gate"))
    with ThreadPoolExecutor(4) as pool:
        for sequence in range(3):
            pool.submit(lambda n=sequence: httpx_post(sink, n, camera="gate"))
        pool.submit(httpx_post, sink, 1, camera="yard").result()
        eventually(lambda: sink.counters.peak.get("gate") == 3)
        sink.faults.remove(hang)
    assert sink.counters.peak == {"gate": 3, "yard": 1}


def httpx_post(sink: Sink, sequence: int, *, camera: str) -> int:
    with client_of(sink) as client:
        return client.post(sequence, camera=camera).status_code


# --- start, stop, restart ------------------------------------------------------------------------


def test_a_restarted_sink_still_knows_its_keys(tmp_path):
    with Sink(tmp_path, token=TOKEN) as sink, client_of(sink) as client:
        assert client.post(1, digest=digest_of(b"other")).status_code == 400
        assert client.post(1).status_code == 204
        before = sink.receipts()
        assert before[0].attempts == 2
    with Sink(tmp_path, token=TOKEN) as sink, client_of(sink) as client:
        assert sink.receipts() == before
        assert client.post(1).status_code == 409
        assert client.post(1, body=b"other").status_code == 422
        assert client.post(2).status_code == 204
        assert client.http.delete("/api/stream/ingest/gate").status_code == 204
    assert verify(tmp_path) == []


def test_a_sink_started_again_keeps_its_port(tmp_path):
    sink = Sink(tmp_path, token=TOKEN)
    with sink, client_of(sink) as client:
        client.post(1)
        port = sink.port
    with sink, client_of(sink) as client:
        assert sink.port == port
        assert client.post(1).status_code == 409


def test_what_a_crash_left_half_done_is_cleared_and_sent_again(tmp_path):
    with Sink(tmp_path, token=TOKEN) as sink, client_of(sink) as client:
        client.post(1)
        client.post(2)
    receipts = tmp_path / "receipts.jsonl"
    receipts.write_bytes(receipts.read_bytes()[:-20])
    (tmp_path / ".incoming" / "9").write_bytes(b"half")
    assert verify(tmp_path) != []
    with Sink(tmp_path, token=TOKEN) as sink, client_of(sink) as client:
        assert incoming(sink) == []
        assert [client.post(n).status_code for n in (1, 2)] == [409, 204]
    assert verify(tmp_path) == []


def test_a_port_in_use_is_a_configuration_error_that_says_so(sink, tmp_path):
    other = Sink(tmp_path / "other", token=TOKEN, port=sink.port)
    with pytest.raises(ConfigError, match=f"found port {sink.port} .* in use, expected it free"):
        other.start()


def test_an_address_of_another_machine_is_a_configuration_error(tmp_path):
    with pytest.raises(ConfigError, match=r"expected an address of this machine"):
        Sink(tmp_path, token=TOKEN, host="192.0.2.1").start()


def test_a_directory_has_one_sink_at_a_time(sink):
    other = Sink(sink.directory, token=TOKEN)
    with pytest.raises(ConfigError, match="another sink"):
        other.start()


def test_a_directory_that_is_a_file_is_a_configuration_error(tmp_path):
    (tmp_path / "sink").write_text("")
    with pytest.raises(ConfigError, match="unusable"):
        Sink(tmp_path / "sink", token=TOKEN).start()


@pytest.mark.parametrize("kind", ["hang", "half", "trickle", "slow"])
def test_a_stop_is_prompt_with_held_connections(tmp_path, kind):
    with Sink(tmp_path, token=TOKEN, faults=FaultPlan([Fault(kind, rate=1.0)])) as sink:
        socks = [dial(sink) for _ in range(5)]
        for sock in socks:
            sock.sendall(head(Content_Length=1000) + bytes(1000))
        eventually(lambda: len(sink._lines) == 5)
        began = time.monotonic()
        sink.stop()
        assert time.monotonic() - began < 1.0
        assert not sink._lines
        for sock in socks:
            sock.close()


def test_a_stop_is_prompt_with_idle_and_half_sent_connections(sink):
    with closing(dial(sink)), closing(dial(sink)) as half:
        half.sendall(head(Content_Length=1000) + b"half")
        eventually(lambda: incoming(sink))
        began = time.monotonic()
        sink.stop()
        sink.stop()
        assert time.monotonic() - began < 1.0
    assert incoming(sink) == stored_files(sink) == []


# --- verify --------------------------------------------------------------------------------------


def break_bytes(path: Path) -> None:
    path.write_bytes(b"X" + path.read_bytes()[1:])


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (break_bytes, "found sha256"),
        (lambda path: path.write_bytes(b"short"), "found 5 bytes, expected 188"),
        (Path.unlink, "No such file"),
        (lambda path: path.with_name("00000009.ts").write_bytes(b""), "no receipt"),
        (lambda path: append(path.parents[2], b"junk\n"), "line 2: no receipt"),
        (lambda path: append(path.parents[2], b'{"camera": "../x"}\n'), "line 2: no receipt"),
        (lambda path: append(path.parents[2]), "receipted twice"),
        (lambda path: (path.parents[2] / "receipts.jsonl").unlink(), "missing"),
    ],
)
def test_verify_names_every_kind_of_damage(sink, client, damage, problem):
    client.post()
    assert verify(sink.directory) == []
    damage(stored_files(sink)[0])
    assert problem in verify(sink.directory)[0]


def append(directory: Path, line: bytes | None = None) -> None:
    path = directory / "receipts.jsonl"
    path.write_bytes(path.read_bytes() + (path.read_bytes() if line is None else line))


# --- faults, as a client sees them ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "status", "header"),
    [
        ("503#1", 503, None),
        ("429#1:Retry-After=2", 429, ("Retry-After", "2")),
        ("401#1", 401, None),
        ("413#1", 413, None),
        ("200#1", 200, ("Content-Type", "text/html")),
        ("302#1:Location=http://elsewhere.test/", 302, ("Location", "http://elsewhere.test/")),
        ("304#1:body=ignored", 304, None),
        ("299#1", 299, None),
    ],
)
def test_a_status_is_answered_and_nothing_stored(sink, client, text, status, header):
    sink.faults.add(Fault.parse(text))
    answer = client.post()
    assert answer.status_code == status
    assert header is None or answer.headers[header[0]] == header[1]
    assert stored_files(sink) == []
    assert sink.counters.faults == {str(status): 1}
    assert client.post().status_code == 204
    assert sink.receipts()[0].attempts == 2


def test_a_captive_portal_answers_with_a_page(sink, client):
    sink.faults.add(Fault.parse("200#1"))
    assert "<title>" in client.post().text


def test_a_status_can_come_late(sink, client):
    sink.faults.add(Fault("status", delay=0.2))
    began = time.monotonic()
    assert client.post().status_code == 503
    assert time.monotonic() - began >= 0.2


def test_a_fault_is_played_only_on_its_camera_and_sequence(sink, client):
    sink.faults.add(Fault("status", camera="gate", sequence=2))
    assert [client.post(n).status_code for n in (1, 2)] == [204, 503]
    assert client.post(2, camera="yard").status_code == 204


def test_a_fault_can_be_for_registrations(sink, client):
    sink.faults.add(Fault("status", path="cameras"))
    assert client.http.post("/api/cameras", json={"id": "gate"}).status_code == 503
    assert client.post().status_code == 204


@pytest.mark.parametrize("kind", ["hang", "half"])
def test_a_held_client_runs_into_its_own_deadline(sink, client, events, kind):
    sink.faults.add(Fault(kind))
    with pytest.raises(httpx.ReadTimeout):
        client.post(timeout=0.1)
    eventually(lambda: events)
    assert events[0].status == 0
    sink.faults.clear()
    assert stored_files(sink) == incoming(sink) == []
    assert client.post().status_code == 204


def test_a_half_read_large_body_stalls_the_sender(sink, client):
    sink.faults.add(Fault("half", after=1000))
    with pytest.raises(httpx.WriteTimeout):
        client.post(body=LARGE * 5, timeout=0.2)


def test_a_hang_ends_with_its_fault_and_the_patient_get_their_answer(sink, client):
    sink.faults.add(Fault("hang", duration=0.2))
    began = time.monotonic()
    assert client.post().status_code == 204
    assert 0.2 <= time.monotonic() - began < 2.0


def test_a_hang_also_holds_a_registration_and_a_refused_token(sink, client):
    sink.faults.add(Fault("hang", path="any"))
    with pytest.raises(httpx.ReadTimeout):
        client.http.post("/api/cameras", json={"id": "gate"}, timeout=0.1)
    with pytest.raises(httpx.ReadTimeout):
        client.post(X_API_Key="wrong", timeout=0.1)


def test_a_refusing_sink_closes_its_port_and_opens_it_again(sink, client):
    assert client.post(1).status_code == 204
    sink.faults.add(refuse := Fault("refuse"))
    with pytest.raises(httpx.TransportError):  # the connection it had is cut as well
        client.post(2)
    eventually(lambda: refused(sink))
    with pytest.raises(httpx.ConnectError):
        client.post(2)
    sink.faults.remove(refuse)
    eventually(lambda: not refused(sink))
    assert client.post(2).status_code == 204


def test_a_refusing_sink_cuts_the_idle_connections_too(sink):
    with closing(dial(sink)) as sock:
        sock.sendall(head(Content_Length=3) + b"abc")
        assert sock.recv(1000).startswith(b"HTTP/1.1 204 ")
        sink.faults.add(Fault("refuse"))
        assert sock.recv(1000) == b""


def refused(sink: Sink) -> bool:
    try:
        dial(sink).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        return False
    return False


def test_a_sink_that_refuses_from_the_start_opens_by_itself(tmp_path):
    plan = FaultPlan.parse(["refuse@0+0.3"])
    with Sink(tmp_path, token=TOKEN, faults=plan) as sink, client_of(sink) as client:
        with pytest.raises(httpx.TransportError):
            client.post()
        eventually(lambda: not plan.active() and not refused(sink))
        assert client.post().status_code == 204


def test_a_counted_refusal_resets_so_many_requests(sink, client):
    sink.faults.add(Fault("refuse", count=2))
    for _ in range(2):
        with pytest.raises(httpx.TransportError):
            client.post()
    assert client.post().status_code == 204


def test_a_stop_while_refusing_frees_the_port(tmp_path):
    with Sink(tmp_path, token=TOKEN, faults=FaultPlan([Fault("refuse")])) as sink:
        eventually(lambda: refused(sink))
    with Sink(tmp_path, token=TOKEN, port=sink.port) as sink, client_of(sink) as client:
        assert client.post().status_code == 204


@pytest.mark.parametrize("after", [None, 0, 100])
def test_a_reset_breaks_the_body_off(sink, events, after):
    sink.faults.add(Fault("reset", after=after))
    with closing(dial(sink)) as sock:
        sock.sendall(head(Content_Length=1000) + bytes(1000))
        with pytest.raises(ConnectionResetError):
            sock.recv(100)
    assert [event.fault for event in events] == ["reset"]
    assert stored_files(sink) == incoming(sink) == []


def test_a_lost_answer_leaves_the_segment_stored(sink, client):
    sink.faults.add(Fault("lost", count=1))
    with pytest.raises(httpx.TransportError):
        client.post()
    assert len(sink.receipts()) == 1
    assert client.post().status_code == 409
    assert verify(sink.directory) == []


def test_a_trickled_answer_outlasts_a_deadline(sink):
    sink.faults.add(Fault("trickle", delay=0.05))
    with closing(dial(sink)) as sock:
        sock.sendall(head(Content_Length=3, Connection="close") + b"abc")
        assert [sock.recv(100) for _ in range(4)] == [b"H", b"T", b"T", b"P"]
        sink.faults.clear()
        rest = b"".join(iter(lambda: sock.recv(65536), b""))
    assert rest.startswith(b"/1.1 204 ") or rest.startswith(b"1.1 204 ", 1)
    assert rest.endswith(b"\r\n\r\n")


def test_a_slow_sink_takes_its_time_for_the_body(sink, client):
    sink.faults.add(Fault("slow", rate=50_000.0))
    began = time.monotonic()
    assert client.post(body=bytes(15_000)).status_code == 204
    assert time.monotonic() - began >= 0.3
    assert sink.receipts()[0].bytes == 15_000


def test_faults_from_text_count_from_the_start_of_the_sink(tmp_path):
    plan = FaultPlan.parse(["503#1", "reset@3600"])
    with Sink(tmp_path, token=TOKEN, faults=plan) as sink, client_of(sink) as client:
        assert plan.active() == ["503"]
        assert [client.post().status_code for _ in range(2)] == [503, 204]
        assert plan.active() == []


def test_faults_can_change_while_many_clients_are_at_work(sink):
    done = threading.Event()

    def churn() -> None:
        while not done.is_set():
            sink.faults.add(Fault("status", count=1))
            sink.faults.active()
            sink.faults.clear()

    with ThreadPoolExecutor(4) as pool:
        churning = pool.submit(churn)
        codes = list(pool.map(lambda n: httpx_post(sink, n, camera="gate"), range(60)))
        done.set()
        churning.result()
    assert set(codes) <= {204, 503}
    assert len(sink.receipts()) == codes.count(204)
