"""From a source to the ingest with the installed command, whatever the ingest does on the way."""

import base64
import itertools
import json
import re
import signal
import socket
import threading
import time
from collections import Counter
from contextlib import contextmanager

import pytest
import redis

from capture.sink import Fault, Sink, verify

TOKEN = "made-up-token"
NEW_TOKEN = "made-up-token-of-tomorrow"
SEGMENTS = range(1, 13)  # of the clip, one second each
ENDLESS = "test:320x180@25"


def stored(sink):
    return sorted(receipt.sequence for receipt in sink.receipts())


def names(lines):
    """The segments that journal lines are about, with how often each is named."""
    return Counter((line["session"], line["segment"]) for line in lines)


def assert_conserved(spool, sink):
    """Every segment that was ever closed has reached the sink, byte for byte and once, and is gone here."""
    assert spool.owed() == spool.open() == spool.rejected() == []
    delivered = spool.journal("delivered")
    closed = names(spool.journal("closed") + spool.journal("recovered"))
    assert names(delivered) == closed
    assert set(closed.values()) == {1}
    assert Counter(line["sha256"] for line in delivered) == Counter(
        receipt.sha256 for receipt in sink.receipts()
    )
    assert verify(sink.directory) == []


@contextmanager
def rotated(sink):
    """The same ingest at the same address, with another token from now on."""
    sink.stop()
    with Sink(sink.directory, token=NEW_TOKEN, port=sink.port) as after:
        yield after


# --- the ingest is well --------------------------------------------------------------------------


def test_python_files_where_the_operator_stands_are_not_ours(up, sink, spool, clip, tmp_path):
    for name in ("celeryconfig", "tasks", "capture", "celery", "json"):
        (tmp_path / f"{name}.py").write_text("from pathlib import Path\nPath(__file__ + '.ran').touch()\n")
    relay = up(clip.path, "--no-realtime")
    assert relay.exit_code() == 0, relay.tail()
    assert stored(sink) == list(SEGMENTS)
    assert_conserved(spool, sink)
    assert list(tmp_path.glob("*.ran")) == []


def test_every_frame_of_a_file_arrives_in_order_and_nothing_stays_owed(
    up, sink, spool, clip, *, events, arrived
):
    relay = up(clip.path, "--no-realtime")

    assert relay.exit_code() == 0, relay.tail()
    video = arrived()
    assert video.frames == clip.frames
    assert video.complaints == ""
    assert stored(sink) == list(SEGMENTS)
    assert_conserved(spool, sink)
    assert sink.cameras == {
        "gate": {
            "id": "gate",
            "name": "gate",
            "source_url": "",
            "metadata": {
                "managed_by": "relay-capture",
                "ingest_transport": "http_mpegts",
                "source_type": "file",
            },
        }
    }
    assert sink.ended == ["gate"]
    assert events[-1].method == "DELETE"
    assert "Traceback" not in relay.log


# --- the ingest is down or breaks off ------------------------------------------------------------


def test_a_cloud_that_is_down_at_the_start_does_not_delay_capture(up, sink, spool, clip, arrived):
    sink.stop()
    relay = up(clip.path, "--no-realtime")

    relay.wait_for(lambda: len(spool.owed()) == len(SEGMENTS), "all is captured while the cloud is down")
    relay.wait_for((spool.path / ".state" / "breaker.json").exists, "the workers find the cloud down")
    sink.start()

    assert relay.exit_code() == 0, relay.tail()
    assert arrived().frames == clip.frames
    assert "gate" in sink.cameras
    assert_conserved(spool, sink)


def test_an_outage_costs_no_frame_and_capture_goes_on_through_it(up, sink, spool, arrived):
    relay = up("test:320x180@25,5s", "--segment-duration", "0.5")
    relay.wait_for(sink.receipts, "the first segment is there")
    outage = Fault("status", status=503, method="any", path="any")
    sink.faults.add(outage)
    relay.wait_for(lambda: len(spool.owed()) >= 3, "segments are closed while the cloud is down")
    relay.wait_for(lambda: sink.counters.faults.get("503", 0) >= 3, "the cloud is seen to be down")
    sink.faults.remove(outage)

    assert relay.exit_code() == 0, relay.tail()
    assert len(arrived().frames) == 125
    assert spool.journal("gap") == []
    assert_conserved(spool, sink)


def test_a_server_that_never_answers_costs_the_deadline_and_no_more(up, sink, spool, clip, arrived):
    sink.faults.add(Fault("hang", count=2))
    quick = {"RELAY_INGEST__ATTEMPT_SECONDS": "1", "RELAY_INGEST__SLOWEST_UPLINK": "10MB"}
    relay = up(clip.path, "--no-realtime", env=quick)

    assert relay.exit_code() == 0, relay.tail()
    assert sink.counters.outcome("aborted") == 2
    assert arrived().frames == clip.frames
    assert_conserved(spool, sink)
    assert "service_ended" not in relay.log


def test_broken_connections_and_lost_answers_cost_no_frame_and_make_none_double(
    up, sink, spool, clip, arrived
):
    for sequence, kind in {2: "reset", 5: "lost", 8: "reset", 11: "lost"}.items():
        sink.faults.add(Fault(kind, sequence=sequence, count=1))
    relay = up(clip.path, "--no-realtime")

    assert relay.exit_code() == 0, relay.tail()
    assert sink.counters.faults == {"reset": 2, "lost": 2}
    assert sink.counters.duplicates == 2
    assert sorted(line["status"] for line in spool.journal("delivered")) == [204] * 10 + [409] * 2
    assert arrived().frames == clip.frames
    assert_conserved(spool, sink)


def test_nobody_knocks_before_the_time_that_retry_after_names(up, sink, spool, clip, *, events, arrived):
    sink.faults.add(Fault("status", status=429, headers=(("Retry-After", "2"),), count=1))
    relay = up(clip.path, "--no-realtime", "--concurrency", "1")

    assert relay.exit_code() == 0, relay.tail()
    asked_at = next(number for number, event in enumerate(events) if event.status == 429)
    assert events[asked_at + 1].at - events[asked_at].at >= 2.0
    assert arrived().frames == clip.frames
    assert_conserved(spool, sink)


# --- the ingest does not want it -----------------------------------------------------------------


def test_a_portal_page_a_login_redirect_and_a_413_are_no_deliveries(up, sink, spool, clip):
    sink.faults.add(Fault.parse("200:sequence=4"))
    sink.faults.add(Fault.parse(f"302:sequence=5,Location={sink.url}/healthz"))
    sink.faults.add(Fault.parse("413:sequence=6"))
    relay = up(clip.path, "--no-realtime", "--concurrency", "1")

    assert relay.exit_code() == 0, relay.tail()
    assert stored(sink) == [1, 2, 3, 7, 8, 9, 10, 11, 12]
    assert spool.owed() == []
    kept = spool.rejected()
    notes = [json.loads(path.with_name(f"{path.name}.json").read_text()) for path in kept]
    assert [note["status"] for note in notes] == [200, 302, 413]
    assert [note["status"] for note in spool.journal("rejected")] == [200, 302, 413]
    assert names(spool.journal("closed")) == names(spool.journal("delivered") + spool.journal("rejected"))
    assert not {path.name for path in kept} & {line["segment"] for line in spool.journal("delivered")}
    assert "camera_rejected_repeatedly" in relay.log
    assert "requeue --rejected" in relay.log
    assert sink.ended == ["gate"]


def test_a_redirect_is_followed_on_the_same_host_alone(up, sink, spool, clip):
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        stranger.setblocking(False)
        elsewhere = f"http://localhost:{stranger.getsockname()[1]}/api/stream/ingest/gate"
        here = f"{sink.url}/api/stream/ingest/gate"
        sink.faults.add(Fault.parse(f"307#1:sequence=2,Location={here}"))
        sink.faults.add(Fault.parse("308#1:sequence=4,Location=/api/stream/ingest/gate"))
        sink.faults.add(Fault.parse(f"307:sequence=6,Location={elsewhere}"))
        relay = up(clip.path, "--no-realtime")

        assert relay.exit_code() == 0, relay.tail()
        with pytest.raises(BlockingIOError):
            stranger.accept()
    assert [path.name[:8] for path in spool.rejected()] == ["00000006"]
    assert stored(sink) == [number for number in SEGMENTS if number != 6]
    assert {line["attempts"] for line in spool.journal("delivered")} == {1}


# --- the ingest refuses the token ----------------------------------------------------------------


def test_a_401_stops_capture_within_seconds_and_the_right_token_sends_everything(up, sink, spool):
    relay = up(ENDLESS, "--segment-duration", "0.5")
    relay.wait_for(lambda: len(sink.receipts()) >= 2, "uploads work")
    with rotated(sink) as strict:
        since = time.monotonic()
        assert relay.exit_code() == 77, relay.tail()
        assert time.monotonic() - since < 10

        last = relay.log.strip().splitlines()[-1]
        assert re.match(r"relay-capture: .*401.*RELAY_TOKEN.*--token-file", last)
        assert TOKEN not in relay.log
        assert "Traceback" not in relay.log
        assert strict.counters.rejected_tokens <= 3  # one for each worker process; the others are held back
        [refused] = [json.loads(path.read_text()) for path in spool.refused()]
        assert refused["status"] == 401
        assert "RELAY_TOKEN" in refused["advice"]
        assert spool.owed()
        gone = names(spool.journal("closed")) - names(spool.journal("delivered"))
        assert sorted(segment for _, segment in gone) == [path.name for path in spool.owed()]

        again = up("test:320x180@25,1s", "--no-realtime", env={"RELAY_TOKEN": NEW_TOKEN})
        assert again.exit_code() == 0, again.tail()
        assert_conserved(spool, strict)
        assert len(spool.sessions()) == 2


def test_on_hold_capture_goes_on_and_uploads_resume_once_the_token_file_is_right(up, sink, spool, tmp_path):
    token_file = tmp_path / "token"
    token_file.write_text(f"{TOKEN}\n")
    arguments = ["--segment-duration", "0.5", "--token-file", token_file, "--on-refused", "hold"]
    quick = {"RELAY_INGEST__HOLD_PROBE_EVERY": "1", "RELAY_SPOOL__RECOVER_AFTER": "1"}
    relay = up(ENDLESS, *arguments, env=quick)
    relay.wait_for(lambda: len(sink.receipts()) >= 2, "uploads work")
    with rotated(sink) as strict:
        relay.wait_for(spool.refused, "the token is refused")
        before = len(spool.journal("closed"))
        # Six seconds of video: more than one round of recovery, which must not spoil the start after it.
        relay.wait_for(lambda: len(spool.journal("closed")) >= before + 12, "capture goes on")
        assert len(spool.owed()) >= 12

        replacement = tmp_path / "token.new"
        replacement.write_text(f"{NEW_TOKEN}\n")
        replacement.replace(token_file)
        held = {path.name for path in spool.owed()}
        relay.wait_for(lambda: not held & {path.name for path in spool.owed()}, "what was held back is sent")
        relay.signal(signal.SIGTERM)

        assert relay.exit_code() == 0, relay.tail()
        assert_conserved(spool, strict)


# --- nobody can read what is secret --------------------------------------------------------------

LOGIN = "user:s3cr%40t-Pässw0rd"
# Whatever is escaped or encoded on the way: one of these pieces stays.
PASSWORD_PIECES = [b"s3cr", b"ssw0rd", base64.b64encode("user:s3cr@t-Pässw0rd".encode())]


class Camera:
    """An RTSP camera that asks for the password, and then says nothing until it hangs up."""

    def __init__(self):
        self.login = threading.Event()
        self.hang_up = threading.Event()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.hang_up.set()
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join()

    def _serve(self):
        while True:
            try:
                line, _ = self._server.accept()
            except OSError:
                return
            with line, line.makefile("rwb") as stream:
                self._talk(stream)

    def _talk(self, stream):
        while request := list(itertools.takewhile(bytes.strip, stream)):
            fields = dict(line.split(b": ", 1) for line in request[1:])
            number = fields[b"CSeq"].strip()
            if PASSWORD_PIECES[-1] in fields.get(b"Authorization", b""):
                self.login.set()
                self.hang_up.wait(30)
                return
            is_options = request[0].startswith(b"OPTIONS")
            ask = b'401 Unauthorized\r\nWWW-Authenticate: Basic realm="camera"'
            answer = b"200 OK" if is_options else ask
            stream.write(b"RTSP/1.0 " + answer + b"\r\nCSeq: " + number + b"\r\n\r\n")
            stream.flush()


@pytest.fixture
def camera():
    with Camera() as camera:
        yield camera


def what_is_held(client, word):
    """Everything that a broker holds, as text, once this word is in it."""
    readers = {
        b"string": client.get,
        b"list": lambda key: client.lrange(key, 0, -1),
        b"set": client.smembers,
        b"zset": lambda key: client.zrange(key, 0, -1, withscores=True),
        b"hash": client.hgetall,
    }
    held = repr([(key, readers[client.type(key)](key)) for key in client.scan_iter()]).encode()
    return held if word in held else None


@pytest.mark.parametrize("given", ["by flags", "by environment"])
def test_password_and_token_are_nowhere_to_be_read(start, sink, spool, camera, given):
    source = f"rtsp://{LOGIN}@127.0.0.1:{camera.port}/x"
    settings = {"RELAY_CLOUD": sink.url, "RELAY_SPOOL": str(spool.path)}
    registration = Fault("hang", path="cameras")  # so that its message stays with the broker
    sink.faults.add(registration)
    if given == "by flags":
        relay = start("up", "-v", "--source", source, "--token", TOKEN, env=settings)
    else:
        relay = start("up", "-v", env=settings | {"RELAY_SOURCE": source, "RELAY_TOKEN": TOKEN})

    relay.wait_for(camera.login.is_set, "the camera is given the password")
    [broker] = relay.runtime.glob("*/broker.sock")
    with redis.Redis(unix_socket_path=str(broker)) as client:
        held = relay.wait_for(
            lambda: what_is_held(client, b"register_camera"), "a message is with the broker"
        )
        assert_holds_no_secret("the broker", held)
    lines = {process: " ".join(process.cmdline()) for process in relay.processes()}
    for part in ("ffmpeg", "valkey-server", "celery", "relay-capture up"):
        assert any(part in line for line in lines.values()), f"{part} is not among {lines.values()}"
    for process, line in lines.items():
        assert_holds_no_secret(f"the process list: {line}", line.encode())
        if process.pid != relay.pid:
            environ = repr(process.environ()).encode()
            assert_holds_no_secret(f"the environment of {line}", environ, token="celery" not in line)

    camera.hang_up.set()
    relay.wait_for(lambda: "ffmpeg_said" in relay.log, "ffmpeg's words are in the log")
    sink.faults.remove(registration)
    relay.signal(signal.SIGTERM)
    relay.exit_code()
    assert_holds_no_secret("the log", relay.log.encode())
    for path in spool.path.rglob("*"):
        assert_holds_no_secret(f"the name {path}", bytes(path))
        if path.is_file():
            assert_holds_no_secret(str(path), path.read_bytes())


def assert_holds_no_secret(place, content, *, token=True):
    for piece in [*PASSWORD_PIECES, *([TOKEN.encode()] if token else [])]:
        assert piece not in content, f"{piece!r} can be read in {place}"
