"""doctor as typed: real cameras over RTSP, real spool, real Valkey, the sink as ingest, real ffmpeg."""

import http.server
import json
import re
import subprocess
import threading
import time
from email.utils import formatdate

import pytest

from capture.camera import CameraPlan
from capture.doctor_source import AT_ONCE, examine_source
from capture.ffmpeg import CaptureOptions, find_ffmpeg
from capture.gate import Gate
from capture.outcome import Kind, Outcome
from capture.settings import load_settings
from capture.sink import FaultPlan, Sink
from capture.source import parse_source
from capture.spool import MARKER, write_json
from capture.upkeep import REGISTERED_NOTE
from tests.conftest import add_segment, start_session

TOKEN = "doctor-token-77"


@pytest.fixture
def command_seconds():
    """It looks at each camera for up to 15 s."""
    return 100


@pytest.fixture
def sink(tmp_path):
    with Sink(tmp_path / "sink", token=TOKEN) as server:
        yield server


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
    assert re.search(r"160x120, 25 fps, no audio, transcoded to H\.264 of [\d.]+ kbit/s\n", out)
    assert "ok    token: accepted" in out
    assert re.search(r"free, .* of it for segments: an outage of .* at the present [\d.]+ kbit/s", out)
    assert re.search(r"ok    uplink: 1 camera sends [\d.]+ kbit/s; what the uplink carries is not known", out)
    assert "ok    broker: embedded: valkey-server found" in out
    assert f"ok    ingest: {sink.url} answers" in out
    assert TOKEN not in out
    assert not (tmp_path / "new").exists()
    assert sink.cameras == {}
    assert sink.receipts() == []


def test_doctor_leaves_a_spool_as_it_was(run, spool, sink):
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
    return examine_source(plan, ffmpeg).checks


def test_a_good_clip_is_ok(clip, ffmpeg):
    [found] = checked(clip("good.mp4", "-c:v", "libx264", "-g", "25"), ffmpeg, segment_seconds=2)

    assert (found.verdict, found.fix) == ("ok", None)
    assert "160x120, 25 fps declared and 25.0 measured, a key frame every 1.0 s" in found.found


@pytest.mark.parametrize("apart", [100, 1000])
def test_key_frames_further_apart_than_a_segment_are_a_warning(clip, ffmpeg, apart):
    path = clip("sparse.mp4", "-c:v", "libx264", "-g", apart, "-sc_threshold", "0")

    _, found = checked(path, ffmpeg, segment_seconds=2)

    assert (found.verdict, found.what) == ("warn", "source yard: key frames")


def test_video_that_is_not_h264_is_a_warning_unless_it_is_transcoded(clip, ffmpeg):
    path = clip("old.mpg", "-c:v", "mpeg2video", "-g", "10")

    assert "mpeg2video, not H.264" in [each.found for each in checked(path, ffmpeg, segment_seconds=2)]
    [found] = checked(path, ffmpeg, segment_seconds=2, fps=10)
    assert found.verdict == "ok"


def test_a_file_without_video_fails(tmp_path, ffmpeg):
    (tmp_path / "notes.mp4").write_text("no video")

    [found] = checked(tmp_path / "notes.mp4", ffmpeg, segment_seconds=2)

    assert (found.verdict, found.exit_code) == ("fail", 66)
    assert found.fix


# --- cameras over RTSP -----------------------------------------------------------------------------


def seen(url, ffmpeg, **options):
    """Return the facts of a camera, and what will hurt, by its subject."""
    plan = CameraPlan("gate", "gate", parse_source(url), CaptureOptions(**{"segment_seconds": 10, **options}))
    checks = examine_source(plan, ffmpeg).checks
    return checks[0], {each.what.partition(": ")[2]: each for each in checks[1:]}


def test_a_camera_is_described_with_its_sound_and_its_clock_and_no_password_shows(rtsp_camera, ffmpeg):
    camera = rtsp_camera(auth="digest", password="p@ss:w/rd", audio="aac", fps=20, kbps=800, loop_seconds=4)

    facts, warned = seen(camera.url, ffmpeg)

    assert warned == {}
    found = re.fullmatch(
        r"rtsp://\*\*\*@\S+: h264 \([\w ]+\) 320x180, 20 fps declared and ([\d.]+) measured, "
        r"a key frame every 1\.0 s, (\d+) kbit/s, audio aac \(not captured\), the camera's clock agrees",
        facts.found,
    )
    assert found, facts.found
    assert 17 <= float(found[1]) <= 23
    assert 500 <= int(found[2]) <= 1200


def test_rare_key_frames_and_another_codec_are_told_together(rtsp_camera, ffmpeg):
    camera = rtsp_camera(codec="h265", key_seconds=60, loop_seconds=60)

    _, warned = seen(camera.url, ffmpeg)

    assert warned.keys() == {"codec", "key frames"}
    assert warned["codec"].found == "H.265, not H.264"
    assert re.match(r"key frames are 1\d\.\d s or more apart", warned["key frames"].found)
    assert "interval" in warned["key frames"].fix


def test_a_camera_whose_key_frame_does_not_come_is_a_failure_that_names_it(rtsp_camera, ffmpeg):
    camera = rtsp_camera(key_seconds=60, loop_seconds=60, fps=5, join="live")
    camera.tell("keys off")

    facts, _ = seen(camera.url, ffmpeg)

    assert (facts.verdict, facts.exit_code) == ("fail", 66)
    assert "no key frame" in facts.found
    assert "key-frame interval" in facts.fix


def test_timestamps_that_run_away_are_told(rtsp_camera, ffmpeg):
    camera = rtsp_camera()
    camera.tell("speed 3")

    assert "timestamps" in seen(camera.url, ffmpeg)[1]


def test_a_wrong_password_is_named(rtsp_camera, ffmpeg):
    camera = rtsp_camera(auth="digest", password="right")

    facts, _ = seen(camera.url_with("admin:wrong@"), ffmpeg)

    assert facts.verdict == "fail"
    assert "user or password" in facts.found
    assert "wrong@" not in facts.found


def test_cameras_that_hang_hold_up_nobody_and_results_come_in_order(run, odd_port, tmp_path):
    """More that hang than are looked at together: each has its deadline, and the last ones are good."""
    names = [f"hung{number}" for number in range(AT_ONCE)]
    ports = [odd_port(behaviour) for behaviour in ("silent", "trickle")]
    lines = [
        f'[cameras.{name}]\nsource = "rtsp://u:s3cretpass@127.0.0.1:{ports[place % 2].port}/x"'
        for place, name in enumerate(names)
    ]
    lines.append('[cameras.good]\nsource = "test:160x120@25"')
    lines.append('[cameras.bad]\nsource = "test:160x120@25"\nfps = -1')
    (tmp_path / "relay.toml").write_text("\n".join(lines))
    began = time.monotonic()

    code, out, err = run("doctor", "-c", "relay.toml", "--json")

    assert time.monotonic() - began < 60
    found = [json.loads(line) for line in out.splitlines()]
    sources = [each for each in found if each["what"].startswith("source")]
    assert [each["what"] for each in sources] == [f"source {name}" for name in ("bad", *names, "good")]
    assert [each["verdict"] for each in sources] == ["fail"] * (1 + AT_ONCE) + ["ok"]
    assert code == 78
    assert "fps" in sources[0]["found"]
    assert "s3cretpass" not in out + err


# --- tokens and registrations ----------------------------------------------------------------------


def test_each_token_is_tried_once_and_told_by_its_camera(run, sink, tmp_path):
    (tmp_path / "own").write_text("another-token-1")
    (tmp_path / "relay.toml").write_text(
        f'ingest.url = "{sink.url}"\ningest.token = "{TOKEN}"\n'
        '[cameras.gate]\nsource = "/nowhere.mp4"\n'
        '[cameras.yard]\nsource = "/nowhere.mp4"\ntoken_file = "own"\n'
    )
    (tmp_path / "relay.toml").chmod(0o644)

    code, out, _ = run("doctor", "-c", "relay.toml", "--json")

    found = verdicts(out)
    assert found["token"][0] == "ok"
    assert found["token of yard"] == ("fail", 77)
    assert found["secrets"][0] == "warn"
    assert code == 66
    assert sink.counters.requests == {("GET", 200): 1, ("GET", 401): 1}
    assert not {secret for secret in (TOKEN, "another-token-1") if secret in out}


def test_a_registration_that_the_cloud_would_not_take_is_told_in_its_words(run, sink, spool):
    with start_session(spool, "gate") as session:
        note = {"time": "2026-11-24T12:00:00Z", "answer": "HTTP 400: quota", "rejected": True}
        write_json(session.path / REGISTERED_NOTE, note)
        _, out, _ = run("doctor", "--spool", spool.root, "--cloud", sink.url, RELAY_TOKEN=TOKEN)

    assert (
        "warn  registration of gate: the cloud would not register this camera at 2026-11-24T12:00:00Z" in out
    )
    assert "HTTP 400: quota" in out


def test_a_spool_that_should_be_a_mount_and_is_not_there_fails(run, sink, tmp_path):
    code, out, _ = run(
        *("doctor", "--json", "--cloud", sink.url, "--spool", tmp_path / "new"),
        RELAY_TOKEN=TOKEN,
        RELAY_SPOOL__CREATE="false",
    )

    assert verdicts(out)["spool"] == ("fail", 78)
    assert code == 78
