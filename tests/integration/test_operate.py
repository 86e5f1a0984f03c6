"""status, audit, requeue and doctor as typed: real spool, real Valkey, the sink as ingest, real ffmpeg."""

import http.server
import json
import os
import subprocess
import sys
import threading
import time
from email.utils import formatdate

import pytest
import redis

from capture.broker import EmbeddedBroker, RuntimeDir
from capture.broker_note import note_broker
from capture.camera import CameraPlan
from capture.claim import claim
from capture.doctor import check_source
from capture.ffmpeg import CaptureOptions, find_ffmpeg
from capture.gate import Gate
from capture.handoff import LIVE, RECOVER
from capture.outcome import Kind, Outcome
from capture.settings import load_settings
from capture.sink import FaultPlan, Sink
from capture.source import parse_source
from capture.spool import MARKER, REFUSED_FILE
from tests.conftest import add_segment, owed_path, start_session

TOKEN = "operate-token-77"
NOWHERE = "redis://127.0.0.1:1/0"


@pytest.fixture
def broker():
    with RuntimeDir() as runtime:
        server = EmbeddedBroker(runtime.path)
        server.start()
        yield server
        server.stop()


@pytest.fixture
def run(tmp_path):
    """Run the command as a person does; return exit code, output, and what went to standard error."""

    def run(*arguments, **environ):
        clean = {key: value for key, value in os.environ.items() if not key.startswith("RELAY_")}
        done = subprocess.run(
            [sys.executable, "-m", "capture", *map(str, arguments)],
            cwd=tmp_path,
            env=clean | {"COLUMNS": "80"} | environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def sink(tmp_path):
    with Sink(tmp_path / "sink", token=TOKEN) as server:
        yield server


def waiting(server):
    with redis.Redis(unix_socket_path=str(server.socket)) as client:
        return [json.loads(text)["headers"]["task"] for text in client.lrange(LIVE, 0, -1)]


def reject(session, number):
    segment = add_segment(session, number).segment
    with claim(session.spool, session.name, segment) as taken:
        taken.rejected(status=422, reason="HTTP 422: no \x1b[31mthanks")
    return segment


# --- misuse, the same for all ----------------------------------------------------------------------


@pytest.mark.parametrize("command", ["status", "audit", "requeue"])
@pytest.mark.parametrize("state", ["missing", "empty", "newer", "damaged", "a file"])
def test_what_is_no_spool_is_named_and_left_alone(run, tmp_path, command, state):
    root = tmp_path / "spool"
    if state == "a file":
        root.write_text("")
    elif state != "missing":
        root.mkdir()
    if state in {"newer", "damaged"}:
        (root / MARKER).write_text('{"format": 2, "id": "x"}' if state == "newer" else "{")
    before = sorted(tmp_path.rglob("*"))

    code, out, err = run(command, "--spool", root)

    assert (code, out) == (78, "")
    assert str(root) in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("command", ["audit", "requeue"])
def test_a_camera_that_is_not_there_is_a_usage_error_that_names_those_that_are(run, spool, command):
    with start_session(spool, "gate"):
        code, _, err = run(command, "--spool", spool.root, "--camera", "door")

    assert code == 2
    assert "gate" in err


# --- audit -----------------------------------------------------------------------------------------


def test_audit_of_a_sound_spool_ends_with_0(run, spool):
    with start_session(spool) as session:
        add_segment(session, 1)
        reject(session, 2)
        code, out, _ = run("audit", "--spool", spool.root)

    assert code == 0
    assert "door: 2 segments in 1 session = 0 delivered + 1 owed + 1 rejected + 0 dropped" in out
    assert "everything is accounted for" in out


def test_audit_of_a_spool_with_a_deleted_debt_ends_with_1(run, spool):
    with start_session(spool) as session:
        owed_path(session, add_segment(session, 1).segment).unlink()
        code, out, _ = run("audit", "--spool", spool.root)
        json_code, as_json, _ = run("audit", "--json", "--camera", "door", RELAY_SPOOL=str(spool.root))

    assert (code, json_code) == (1, 1)
    assert "FAULT lost" in out
    found = json.loads(as_json)
    assert (found["ok"], found["cameras"][0]["faults"]) == (False, {"lost": 1})


def test_audit_of_an_unused_spool_says_so(run, spool):
    assert run("audit", "--spool", spool.root)[:2] == (
        0,
        f"{spool.root}: nothing was ever captured into this spool\n",
    )


# --- requeue ---------------------------------------------------------------------------------------


def test_requeue_rejected_makes_owed_and_asks_for_recovery(run, spool, broker):
    with start_session(spool) as session, start_session(spool, "gate") as other:
        segment, elsewhere = reject(session, 1), reject(other, 1)
        code, out, _ = run(
            *("requeue", "--rejected", "--camera", "door", "--spool", spool.root), RELAY_BROKER=broker.url
        )

    assert code == 0
    assert "made 1 rejected segment owed again" in out
    assert "asked the workers to send at once" in out
    assert waiting(broker) == [RECOVER]
    assert spool.segments(session.name) == [segment]
    assert spool.segments(other.name, "rejected") == [elsewhere]


@pytest.mark.parametrize("known", [True, False])
def test_requeue_lets_a_refused_token_try_again(run, spool, broker, known):
    gate = Gate(spool, load_settings(environ={}).ingest)
    gate.report(Outcome(Kind.FATAL, 401, "HTTP 401"), TOKEN)
    note_broker(spool, broker.url)
    with start_session(spool) as session:
        add_segment(session, 1)
        (session.path / REFUSED_FILE).write_text("{}")
        token = {"RELAY_TOKEN": TOKEN} if known else {}
        code, out, _ = run("requeue", "--spool", spool.root, **token)

    assert code == 0
    assert "let 1 refused token try again; cleared 1 note in sessions" in out
    assert "owed: 1 segment" in out
    assert gate.refusal(TOKEN) is None
    assert not (session.path / REFUSED_FILE).exists()
    assert waiting(broker) == [RECOVER]


def test_requeue_rejected_says_when_the_token_still_stands_in_the_way(run, spool):
    Gate(spool, load_settings(environ={}).ingest).report(Outcome(Kind.FATAL, 401, "HTTP 401"), TOKEN)

    _, out, _ = run("requeue", "--rejected", "--spool", spool.root, RELAY_TOKEN=TOKEN)

    assert "the token is refused" in out


def test_requeue_without_a_broker_says_that_recover_does_it(run, spool):
    code, out, _ = run("requeue", "--spool", spool.root, "--broker", NOWHERE)

    assert code == 0
    assert "the broker cannot be reached" in out
    assert "recover sends them within seconds" in out


# --- status ----------------------------------------------------------------------------------------


def test_status_finds_the_broker_of_up_and_counts_what_waits(run, spool, broker):
    note_broker(spool, broker.url)
    run("requeue", "--spool", spool.root)
    with start_session(spool) as session:
        add_segment(session, 1)
        code, out, _ = run("status", "--json", "--spool", spool.root)
        _, shown, _ = run("status", "--spool", spool.root)

    found = json.loads(out)
    assert code == 0
    assert found["broker"] == {
        "url": broker.url,
        "reachable": True,
        "queues": {"live": 1, "backlog": 0, "unacked": 0},
        "reason": None,
    }
    assert [camera["owed"] for camera in found["cameras"]] == [1]
    assert f"broker  {broker.url} answers; messages: live 1, backlog 0, unacked 0\n" in shown
    assert "recording" in shown


def test_status_without_a_broker_still_tells_the_rest(run, spool):
    code, out, _ = run("status", "--spool", spool.root)

    assert code == 0
    assert "no camera yet" in out
    assert "NOT reachable: no broker is set" in out


def test_status_watch_goes_on_until_interrupted(spool):
    child = subprocess.Popen(
        [sys.executable, "-m", "capture", "status", "--json", "--watch", "0.2", "--spool", str(spool.root)],
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        lines = [child.stdout.readline() for _ in range(2)]
        child.send_signal(2)
        assert child.wait(10) == 0
    assert all(json.loads(text)["format"] == 1 for text in lines)


# --- doctor ----------------------------------------------------------------------------------------


def verdicts(out):
    return {
        found["what"]: (found["verdict"], found["exit_code"]) for found in map(json.loads, out.splitlines())
    }


def test_doctor_finds_nothing_wrong_where_nothing_is(run, sink, tmp_path):
    code, out, _ = run(
        *("doctor", "--source", "test:160x120@25", "--camera-id", "yard", "--cloud", sink.url),
        *("--spool", tmp_path / "new", "--concurrency", "2", "-v"),
        RELAY_TOKEN=TOKEN,
    )

    assert code == 0
    assert "ok    source yard: test:160x120@25" in out
    assert "160x120 25 fps" in out
    assert "ok    broker: embedded: valkey-server found" in out
    assert f"ok    ingest: {sink.url} answers" in out
    assert TOKEN not in out
    assert not (tmp_path / "new").exists()
    assert sink.cameras == {}
    assert sink.receipts() == []


def test_doctor_leaves_a_spool_as_it_was(run, spool, sink, broker):
    with start_session(spool) as session:
        add_segment(session, 1)
        before = sorted(spool.root.rglob("*"))
        _, out, _ = run("doctor", "--json", "--spool", spool.root, "--cloud", sink.url, RELAY_TOKEN=TOKEN)

    assert verdicts(out)["spool"][0] == "ok"
    assert sorted(spool.root.rglob("*")) == before


@pytest.mark.parametrize("status", [401, 403])
def test_doctor_ends_with_77_for_a_refused_token(run, tmp_path, status):
    plan = FaultPlan.parse([f"{status}:path=any,method=any"])
    with Sink(tmp_path / "sink", token=TOKEN, faults=plan) as sink:
        code, out, err = run("doctor", "--cloud", sink.url, "--token", "wrong-token-1")

    assert code == 77
    assert "fail  token: refused: HTTP 40" in out
    assert "wrong-token-1" not in out + err


def test_doctor_names_the_first_failure_by_its_code_and_hides_passwords(run, tmp_path):
    code, out, err = run(
        *("doctor", "--source", "rtsp://user:s3cretpass@127.0.0.1:1/x", "--cloud", "http://127.0.0.1:1"),
        *("--broker", "redis://:br0kerpass@127.0.0.1:1/0", "--token", TOKEN, "--json"),
    )

    found = verdicts(out)
    assert code == 66
    assert found["broker"] == ("fail", 78)
    assert found["ingest"] == ("fail", 78)
    assert next(found[what] for what in found if what.startswith("source")) == ("fail", 66)
    assert not {word for word in ("s3cretpass", "br0kerpass", TOKEN) if word in out + err}


@pytest.mark.parametrize("state", ["newer", "junk", "a file"])
def test_doctor_names_what_is_no_spool(run, tmp_path, sink, state):
    root = tmp_path / "spool"
    if state == "a file":
        root.write_text("")
    else:
        root.mkdir()
        (root / (MARKER if state == "newer" else "holiday.jpg")).write_text('{"format": 2, "id": "x"}')

    code, out, _ = run("doctor", "--spool", root, "--cloud", sink.url, "--json", RELAY_TOKEN=TOKEN)

    assert code == 78
    assert verdicts(out)["spool"] == ("fail", 78)


def test_doctor_on_nothing_at_all_says_what_to_set(run):
    code, out, _ = run("doctor")

    assert code == 78
    assert "warn  source: no camera is set" in out
    assert "fix: give --cloud, or set RELAY_CLOUD" in out


def test_doctor_tells_that_uploads_are_held_back(run, spool):
    Gate(spool, load_settings(environ={}).ingest).report(Outcome(Kind.FATAL, 401, "HTTP 401"), TOKEN)
    with Cloud() as cloud:
        _, out, _ = run("doctor", "--spool", spool.root, "--cloud", cloud.url, RELAY_TOKEN=TOKEN)

    assert "warn  token: was refused at" in out


def test_doctor_warns_of_a_clock_that_is_off_and_of_a_portal(run):
    with Cloud(ahead=-3600, page=True) as cloud:
        code, out, _ = run("doctor", "--cloud", cloud.url, RELAY_TOKEN=TOKEN)

    assert code == 0
    assert "warn  clock: 3600 s ahead of the cloud's" in out or "warn  clock: 3601 s ahead" in out
    assert "answers with a web page" in out


class Cloud:
    """Answers every GET with 200, with a clock that is `ahead` seconds off."""

    def __init__(self, *, ahead=0, page=False):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Type", "text/html" if page else "application/json")
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"[]")

            def date_time_string(self, timestamp=None):
                return formatdate((timestamp or time.time()) + ahead, usegmt=True)

            def log_message(self, *_):
                pass

        self.server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


# --- sources, with the real ffmpeg -----------------------------------------------------------------


@pytest.fixture(scope="module")
def ffmpeg():
    return find_ffmpeg()


@pytest.fixture
def clip(ffmpeg, tmp_path):
    def clip(name, *options, seconds=8):
        path = tmp_path / name
        pattern = f"testsrc2=size=160x120:rate=25:duration={seconds}"
        subprocess.run(
            [ffmpeg.path, "-v", "error", "-f", "lavfi", "-i", pattern, *map(str, options), str(path)],
            check=True,
        )
        return path

    return clip


def checked(path, ffmpeg, **options):
    plan = CameraPlan("yard", "yard", parse_source(str(path)), CaptureOptions(**options))
    return check_source(plan, ffmpeg)


def test_a_good_clip_is_ok(clip, ffmpeg):
    found = checked(clip("good.mp4", "-c:v", "libx264", "-g", "25"), ffmpeg, segment_seconds=2)

    assert (found.verdict, found.fix) == ("ok", None)
    assert "h264 160x120 25 fps" in found.found


@pytest.mark.parametrize("apart", [100, 1000])
def test_key_frames_further_apart_than_a_segment_are_a_warning(clip, ffmpeg, apart):
    path = clip("sparse.mp4", "-c:v", "libx264", "-g", apart, "-sc_threshold", "0")

    found = checked(path, ffmpeg, segment_seconds=2)

    assert found.verdict == "warn"
    assert "key frames are" in found.found


def test_video_that_is_not_h264_is_a_warning_unless_it_is_transcoded(clip, ffmpeg):
    path = clip("old.mpg", "-c:v", "mpeg2video", "-g", "10")

    assert "it is not H.264" in checked(path, ffmpeg, segment_seconds=2).found
    assert checked(path, ffmpeg, segment_seconds=2, fps=10).verdict == "ok"


def test_a_file_without_video_fails(tmp_path, ffmpeg):
    (tmp_path / "notes.mp4").write_text("no video")

    found = checked(tmp_path / "notes.mp4", ffmpeg, segment_seconds=2)

    assert (found.verdict, found.exit_code) == ("fail", 66)
    assert found.fix
