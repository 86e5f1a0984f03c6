"""The commands against the real ffmpeg: borders, frames in = frames out, cameras, failures."""

import base64
import hashlib
import http.server
import os
import re
import signal
import socket
import subprocess
import threading
import time
from dataclasses import dataclass, field, replace

import pytest

from capture.ffmpeg import (
    CaptureOptions,
    Command,
    FailureKind,
    Progress,
    SegmentClosed,
    StdoutParser,
    capture_command,
    explain,
    find_ffmpeg,
)
from capture.mpegts import time_span, trim
from capture.source import parse_source, redact

PASSWORD = "p@ss: w'o\"r\\d/%?#ü€"
PASSWORD_IN_URL = "p@ss: w'o\"r\\d%2F%25?#ü€"


@pytest.fixture(scope="session")
def ffmpeg():
    return find_ffmpeg().path


@pytest.fixture(scope="session")
def clips(ffmpeg, tmp_path_factory):
    """Small clips, made when first asked for."""
    return Clips(ffmpeg, tmp_path_factory.mktemp("clips"))


X264 = ["-c:v", "libx264", "-preset", "veryfast"]
RECIPES = {
    "b-frames.mp4": [*X264, "-g", "25", "-bf", "3"],
    "open-gop.mp4": [*X264, "-g", "25", "-bf", "3", "-x264-params", "open-gop=1"],
    "h264.ts": [*X264, "-g", "25", "-bf", "2"],
    "h264.mkv": [*X264, "-g", "25"],
    "h264.avi": [*X264, "-g", "25", "-bf", "2"],
    "h264.h264": [*X264, "-g", "25", "-bf", "0", "-crf", "40", "-aud", "1"],
    "raw-b-frames.h264": [*X264, "-g", "25", "-bf", "2"],
    "h265.mp4": [
        "-c:v",
        "libx265",
        "-preset",
        "ultrafast",
        "-x265-params",
        "log-level=0:keyint=25",
    ],
    "rtsp-b-frames.ts": [*X264, "-g", "25", "-bf", "3", "-crf", "40"],
    "refresh.h264": [*X264, "-bf", "0", "-crf", "40", "-x264-params", "intra-refresh=1:keyint=25"],
    "h265.h265": [
        *("-c:v", "libx265", "-preset", "ultrafast", "-crf", "40"),
        *("-x265-params", "log-level=0:keyint=25:bframes=0"),
    ],
    "sound.mp4": [*X264, "-g", "25", "-c:a", "aac"],
    "only-sound.m4a": ["-vn", "-c:a", "aac"],
}
FRAMES = 5 * 25


@dataclass
class Clips:
    ffmpeg: str
    directory: os.PathLike

    def __getitem__(self, name):
        path = self.directory / name
        if not path.exists():
            sound = ["-f", "lavfi", "-i", "sine"] if "sound" in name else []
            video = ["-f", "lavfi", "-i", "testsrc2=size=160x90:rate=25"]
            run(self.ffmpeg, *video, *sound, "-t", "5", *RECIPES[name], path)
        return path


def run(ffmpeg, *arguments):
    return subprocess.run(
        [ffmpeg, "-nostdin", "-v", "warning", *arguments],
        check=True,
        capture_output=True,
        text=True,
    )


def packets(ffmpeg, path, *options):
    """One line per packet: stream, dts, pts, duration, size, checksum; no key frame: ``F=``."""
    done = run(ffmpeg, "-i", path, "-map", "0:v:0", *(options or ["-c", "copy"]), "-f", "framecrc", "-")
    return [line for line in done.stdout.splitlines() if not line.startswith("#")], done.stderr


def decoded(ffmpeg, path):
    lines, complaints = packets(ffmpeg, path, "-fps_mode", "passthrough")
    return len(lines), complaints


@dataclass
class Captured:
    events: list
    stdout: bytes
    stderr: list
    code: int
    files: list = field(default_factory=list)

    @property
    def closed(self):
        return [event for event in self.events if isinstance(event, SegmentClosed)]


def capture(ffmpeg, text, tmp_path, *, seconds=2.0, open_dir=None, change=lambda made: made, **options):
    """Run a capture to its end, unpaced."""
    open_dir = open_dir or tmp_path / "open"
    open_dir.mkdir(exist_ok=True, parents=True)
    made = change(
        capture_command(
            ffmpeg,
            parse_source(text),
            CaptureOptions(segment_seconds=seconds, realtime=False, **options),
            open_dir=open_dir,
            first_sequence=1,
        )
    )
    done = subprocess.run(made.argv, input=made.script, capture_output=True, timeout=60, check=False)
    return Captured(
        StdoutParser().feed(done.stdout),
        done.stdout,
        done.stderr.decode().splitlines(),
        done.returncode,
        sorted(open_dir.iterdir()),
    )


def joined(files, tmp_path):
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(file.read_bytes() for file in files))
    return path


def begins_with_a_key_frame(ffmpeg, path):
    lines, _ = packets(ffmpeg, path)
    return "F=" not in lines[0]


@pytest.mark.parametrize("name", ["b-frames.mp4", "open-gop.mp4", "h264.ts", "h264.avi", "h265.mp4"])
def test_copied_frames_in_are_frames_out_across_borders(ffmpeg, clips, tmp_path, name):
    taken = capture(ffmpeg, str(clips[name]), tmp_path)
    assert (taken.code, taken.stderr) == (0, [])
    assert [event.sequence for event in taken.closed] == [1, 2, 3]
    assert [file.name for file in taken.files] == ["00000001.ts", "00000002.ts", "00000003.ts"]
    assert sum(len(packets(ffmpeg, file)[0]) for file in taken.files) == FRAMES
    # A lost continuity mark would make the decoder complain at each border.
    assert decoded(ffmpeg, joined(taken.files, tmp_path)) == (FRAMES, "")
    assert all(begins_with_a_key_frame(ffmpeg, file) for file in taken.files[1:])
    assert taken.events[-1].final
    assert taken.events[-1].frames == FRAMES


@pytest.mark.parametrize("options", [{}, {"fps": 25}], ids=["copied", "encoded"])
def test_a_phase_brings_every_border_forward_and_costs_no_frame(ffmpeg, clips, tmp_path, options):
    taken = capture(ffmpeg, str(clips["h264.mkv"]), tmp_path, phase=0.5, **options)
    assert (taken.code, taken.stderr) == (0, [])
    assert [event.start for event in taken.closed] == pytest.approx([0, 1, 3], abs=0.1)
    assert [event.end for event in taken.closed] == pytest.approx([1, 3, 5], abs=0.1)
    assert sum(len(packets(ffmpeg, file)[0]) for file in taken.files) == FRAMES
    assert all(begins_with_a_key_frame(ffmpeg, file) for file in taken.files)
    assert decoded(ffmpeg, joined(taken.files, tmp_path)) == (FRAMES, "")


@pytest.mark.parametrize("name", ["b-frames.mp4", "h264.mkv", "h265.mp4"])
def test_a_copied_segment_plays_by_itself(ffmpeg, clips, tmp_path, name):
    taken = capture(ffmpeg, str(clips[name]), tmp_path)
    # x265's open GOP costs the leading pictures of each later segment, when it is played alone.
    lost = 3 if name == "h265.mp4" else 0
    assert decoded(ffmpeg, taken.files[1])[0] >= 50 - lost


def test_times_in_the_file_are_those_of_the_segment_list(ffmpeg, clips, tmp_path):
    taken = capture(ffmpeg, str(clips["b-frames.mp4"]), tmp_path)
    for event, file in zip(taken.closed[1:], taken.files[1:], strict=True):
        with file.open("rb") as stream:
            first, last = time_span(stream)
        assert first == pytest.approx(event.start, abs=0.001)
        assert last == pytest.approx(event.end - 0.04, abs=0.001)


@pytest.mark.parametrize(("fps", "seconds"), [(25, 2), (29.97, 2), (30, 2), (10, 2), (25, 10), (29.97, 10)])
def test_encoded_segments_begin_with_a_key_frame_on_time(ffmpeg, tmp_path, fps, seconds):
    taken = capture(ffmpeg, f"test:160x90@{fps},{seconds * 2.25}s", tmp_path, seconds=seconds)
    assert (taken.code, taken.stderr) == (0, [])
    frame = 1 / fps
    for number, event in enumerate(taken.closed):
        assert 0 <= event.start - number * seconds < frame + 1e-6
    for event in taken.closed[:-1]:
        assert abs(event.end - event.start - seconds) < frame + 1e-6
    assert all(begins_with_a_key_frame(ffmpeg, file) for file in taken.files)
    assert decoded(ffmpeg, taken.files[1])[1] == ""
    total = sum(len(packets(ffmpeg, file)[0]) for file in taken.files)
    assert total == pytest.approx(seconds * 2.25 * fps, abs=1)


def test_transcoding_gives_the_rate_and_size_that_were_asked_for(ffmpeg, clips, tmp_path):
    taken = capture(ffmpeg, str(clips["b-frames.mp4"]), tmp_path, fps=10.0, resolution=(64, 48))
    assert [round(event.start, 3) for event in taken.closed] == [0, 2, 4]
    assert len(packets(ffmpeg, joined(taken.files, tmp_path))[0]) == 50
    lines, _ = packets(ffmpeg, taken.files[1], "-pix_fmt", "gray")
    assert f" {64 * 48}," in lines[0]


@pytest.mark.parametrize("audio", ["copy", "aac"])
def test_sound_comes_along_when_asked_for(ffmpeg, clips, tmp_path, audio):
    taken = capture(ffmpeg, str(clips["sound.mp4"]), tmp_path, audio=audio)
    assert taken.code == 0
    done = run(ffmpeg, "-i", taken.files[1], "-map", "0:a:0", "-c", "copy", "-f", "framecrc", "-")
    assert len(done.stdout.splitlines()) > 50


def test_missing_sound_is_no_error(ffmpeg, clips, tmp_path):
    assert capture(ffmpeg, str(clips["h264.ts"]), tmp_path, audio="aac").code == 0


def test_odd_names_of_files_and_directories_are_taken_as_they_are(ffmpeg, clips, tmp_path):
    odd = tmp_path / 'it\'s 100%d \\ "ü" #?&:'
    odd.mkdir()
    (odd / "a'b%08d.ts").symlink_to(clips["h264.ts"])
    taken = capture(ffmpeg, str(odd / "a'b%08d.ts"), tmp_path, open_dir=odd / "open")
    assert (taken.code, taken.stderr) == (0, [])
    assert [file.name for file in taken.files] == ["00000001.ts", "00000002.ts", "00000003.ts"]


def test_progress_and_segment_list_never_mix_within_a_line(ffmpeg, tmp_path):
    def report_often(made):
        argv = [*made.argv]
        argv[argv.index("-stats_period") + 1] = "0.001"
        return Command(argv, made.script)

    taken = capture(ffmpeg, "test:32x32@25,40s", tmp_path, seconds=0.04, change=report_often)
    line = re.compile(rb"[a-z0-9_]+=.*|[0-9]{8}\.ts,[0-9.]+,[0-9.]+")
    assert all(line.fullmatch(text) for text in taken.stdout.splitlines())
    assert [event.sequence for event in taken.closed] == list(range(1, 1001))
    assert sum(isinstance(event, Progress) for event in taken.events) > 10


class Live:
    """A running capture whose events are waited for one by one."""

    def __init__(self, ffmpeg, text, open_dir, **options):
        open_dir.mkdir()
        made = capture_command(
            ffmpeg,
            parse_source(text),
            CaptureOptions(**options),
            open_dir=open_dir,
            first_sequence=1,
        )
        self.child = subprocess.Popen(
            made.argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.parser = StdoutParser()
        self.waiting = []

    def events(self):
        while data := self.child.stdout.read1(4096):
            yield from self.parser.feed(data)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.kill()
        self.child.stdout.close()
        self.child.wait()


def test_a_terminated_capture_finishes_its_segment_and_reports_it(ffmpeg, tmp_path):
    open_dir = tmp_path / "open"
    with Live(ffmpeg, "test:160x90@25", open_dir, segment_seconds=1) as live:
        events = live.events()
        first = next(event for event in events if isinstance(event, SegmentClosed))
        size_when_reported = (open_dir / "00000001.ts").stat().st_size
        live.child.send_signal(signal.SIGTERM)
        rest = list(events)
        assert live.child.wait() == 255
    closed = [event.sequence for event in rest if isinstance(event, SegmentClosed)]
    assert first.sequence == 1
    assert closed == list(range(2, 2 + len(closed)))
    assert rest[-1].final
    # What is reported is on disk to its last byte.
    assert size_when_reported == (open_dir / "00000001.ts").stat().st_size
    assert len(list(open_dir.iterdir())) == 1 + len(closed)


def test_what_a_killed_capture_wrote_can_be_salvaged(ffmpeg, tmp_path):
    open_dir = tmp_path / "open"
    with Live(ffmpeg, "test:160x90@25", open_dir, segment_seconds=60) as live:
        written = next(
            event.frames for event in live.events() if isinstance(event, Progress) and event.frames > 20
        )
        live.child.kill()
        live.child.wait()
    path = open_dir / "00000001.ts"
    with path.open("ab") as file:
        file.write(b"G half a packet")
    assert trim(path) % 188 == 0
    assert decoded(ffmpeg, path)[0] >= written - 3
    with path.open("rb") as file:
        first, last = time_span(file)
    assert last - first >= (written - 4) / 25


def nal_units(path):
    return [unit.rstrip(b"\0") for unit in path.read_bytes().split(b"\0\0\1")[1:]]


def md5(text):
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


class Camera:
    """An RTSP camera on a real socket: with a login, and video whose headers are in the SDP alone.

    `silent_after` is the number of frames after which it says nothing more and keeps the line.
    """

    def __init__(self, clip, login, *, auth="Basic", silent_after=None, shown_at=None):
        units = nal_units(clip)
        if clip.suffix == ".h265":
            self.codec, kinds = "H265", [unit[0] >> 1 & 0x3F for unit in units]
            headers, pictures = {"sprop-vps": 32, "sprop-sps": 33, "sprop-pps": 34}, range(32)
        else:
            self.codec, kinds = "H264", [unit[0] & 0x1F for unit in units]
            headers, pictures = {"sprop-parameter-sets": 7, "": 8}, range(1, 7)
        self.headers = {key: units[kinds.index(kind)] for key, kind in headers.items()}
        self.frames = [unit for unit, kind in zip(units, kinds, strict=True) if kind in pictures]
        self.sei = b"\x06" if self.codec == "H264" else b"\x4e"
        self.login = login
        self.auth = auth
        self.silent_after = silent_after
        # Ticks of 90 kHz at which each frame is shown; the clock starts anywhere but at 0.
        self.shown_at = shown_at or range(0, 3600 * len(self.frames), 3600)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(5)

    def _serve(self):
        try:
            while True:
                connection, _ = self.listener.accept()
                with connection, connection.makefile("rwb") as stream:
                    self._talk(stream)
        except OSError:
            return

    def _talk(self, stream):
        while request := self._request(stream):
            method, headers = request
            head, body = self._answer(method, headers)
            length = f"Content-Length: {len(body)}\r\n" if body else ""
            stream.write(f"RTSP/1.0 {head}CSeq: {headers['cseq']}\r\n{length}\r\n{body}".encode())
            stream.flush()
            if method == "PLAY":
                self._play(stream)
                return

    def _request(self, stream):
        lines = []
        while (line := stream.readline().decode().strip()) or (not lines and line):
            lines.append(line)
        if not lines:
            return None
        headers = dict(line.lower().split(": ", 1)[:1] + line.split(": ", 1)[1:] for line in lines[1:])
        return lines[0].split()[0], headers

    def _answer(self, method, headers):
        if method == "OPTIONS":
            return "200 OK\r\nPublic: DESCRIBE, SETUP, PLAY\r\n", ""
        if not self._is_known(method, headers.get("authorization", "")):
            challenge = f'{self.auth} realm="cam", nonce="abc"'
            return f"401 Unauthorized\r\nWWW-Authenticate: {challenge}\r\n", ""
        if method == "SETUP":
            return "200 OK\r\nSession: 1\r\nTransport: RTP/AVP/TCP;interleaved=0-1\r\n", ""
        if method == "DESCRIBE":
            sets = ";".join(f"{k}={base64.b64encode(v).decode()}" for k, v in self.headers.items())
            sets = sets.replace(";=", ",")
            return "200 OK\r\nContent-Type: application/sdp\r\n", (
                "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=cam\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n"
                f"a=rtpmap:96 {self.codec}/90000\r\na=control:1\r\n"
                f"a=fmtp:96 {sets}\r\n"
            )
        return "200 OK\r\nSession: 1\r\n", ""

    def _is_known(self, method, answer):
        if self.auth == "Basic":
            return answer == f"Basic {base64.b64encode(self.login.encode()).decode()}"
        user, _, password = self.login.partition(":")
        url = next(iter(re.findall(r'uri="(.*?)"', answer)), "")
        secret = md5(f"{user}:cam:{password}")
        return f'response="{md5(f"{secret}:abc:" + md5(f"{method}:{url}"))}"' in answer

    def _play(self, stream):
        shown = 0
        for number, unit in enumerate(self.frames):
            if shown == self.silent_after:
                break
            is_picture = not unit.startswith(self.sei)
            head = b"\x80\xe0" if is_picture else b"\x80\x60"
            stamp = (90_000 + self.shown_at[shown]).to_bytes(4, "big")
            packet = head + number.to_bytes(2, "big") + stamp + b"\0\0\0\1" + unit
            shown += is_picture
            stream.write(b"$\0" + len(packet).to_bytes(2, "big") + packet)
        stream.flush()
        if self.silent_after is not None:
            stream.read(1)


@pytest.fixture
def camera(clips):
    made = []

    def start(login, *, clip="h264.h264", **options):
        made.append(Camera(clips[clip], login, **options))
        return made[-1]

    yield start
    for each in made:
        each.close()


@pytest.mark.parametrize(
    ("auth", "clip"), [("Basic", "h264.h264"), ("Digest", "h264.h264"), ("Basic", "h265.h265")]
)
def test_a_camera_is_copied_over_rtsp_and_every_segment_plays_by_itself(ffmpeg, tmp_path, camera, auth, clip):
    port = camera(f"admin:{PASSWORD}", auth=auth, clip=clip).port
    taken = capture(ffmpeg, f"rtsp://admin:{PASSWORD_IN_URL}@127.0.0.1:{port}/live", tmp_path)
    assert taken.code == 0, taken.stderr
    assert [decoded(ffmpeg, file) for file in taken.files] == [(50, ""), (50, ""), (25, "")]
    assert [(event.start, event.end) for event in taken.closed] == [(0, 2), (2, 4), (4, 5)]
    # Nothing but the end of the stream: a start without trouble says nothing.
    assert not [line for line in taken.stderr if "End of file" not in line]


def test_a_camera_with_b_frames_loses_no_frame(ffmpeg, clips, tmp_path, camera):
    lines, _ = packets(ffmpeg, clips["rtsp-b-frames.ts"])
    shown_at = [int(line.split(",")[2]) for line in lines]
    raw = clips.directory / "rtsp-b-frames.h264"
    run(ffmpeg, "-i", clips["rtsp-b-frames.ts"], "-c", "copy", "-y", raw)
    port = camera("a:b", clip=raw.name, shown_at=shown_at).port
    taken = capture(ffmpeg, f"rtsp://a:b@127.0.0.1:{port}/live", tmp_path)
    assert taken.code == 0, taken.stderr
    assert sum(decoded(ffmpeg, file)[0] for file in taken.files) == FRAMES


def test_a_camera_without_full_key_frames_has_its_headers_in_every_segment(ffmpeg, tmp_path, camera):
    port = camera("a:b", clip="refresh.h264").port
    taken = capture(ffmpeg, f"rtsp://a:b@127.0.0.1:{port}/live", tmp_path)
    assert len(taken.files) == 3
    for file in taken.files:
        run(ffmpeg, "-i", file, "-c", "copy", "-frames:v", "1", "-y", tmp_path / "first.h264")
        kinds = [unit[0] & 0x1F for unit in nal_units(tmp_path / "first.h264")]
        assert {7, 8} <= set(kinds)


def test_the_longest_password_that_is_accepted_arrives_whole(ffmpeg, tmp_path, camera):
    password = "x" * 121
    port = camera(f"admin:{password}").port
    taken = capture(ffmpeg, f"rtsp://admin:{password}@127.0.0.1:{port}/live", tmp_path)
    assert len(taken.closed) == 3, taken.stderr


def test_a_wrong_password_is_named_and_shown_nowhere(ffmpeg, tmp_path, camera):
    source = parse_source(f"rtsp://admin:{PASSWORD_IN_URL}@127.0.0.1:{camera('a:b').port}/live")
    taken = capture(ffmpeg, source.reveal(), tmp_path)
    assert explain(taken.stderr).kind is FailureKind.UNAUTHORIZED
    shown = redact("\n".join(taken.stderr), source.secrets())
    assert "w'o" not in shown
    assert "***@127.0.0.1" in shown


def hasty(made):
    """The same command with timeouts of 0.3 s."""
    return replace(made, script=made.script.replace(b"10000000", b"300000"))


@pytest.mark.parametrize("frames", [0, 80])
def test_a_camera_that_falls_silent_is_given_up_after_the_timeout(ffmpeg, tmp_path, camera, frames):
    port = camera("a:b", silent_after=frames).port
    taken = capture(ffmpeg, f"rtsp://a:b@127.0.0.1:{port}/live", tmp_path, change=hasty)
    assert explain(taken.stderr).kind is FailureKind.TIMED_OUT, taken.stderr
    # What came before is kept, and the exit code does not tell a stall from an end.
    assert sum(len(packets(ffmpeg, file)[0]) for file in taken.files) == frames


class Web(http.server.BaseHTTPRequestHandler):
    clip = b""
    done = threading.Event()

    def do_GET(self):
        status = int(self.path.strip("/")) if self.path.strip("/").isdigit() else 200
        self.send_response(status)
        if self.path == "/whole":
            self.send_header("Content-Length", str(len(self.clip)))
        self.end_headers()
        if self.path == "/whole":
            self.wfile.write(self.clip)
        if self.path == "/stalls":
            self.wfile.write(self.clip[: len(self.clip) // 2])
            self.wfile.flush()
            self.done.wait(20)

    def log_message(self, *_):
        pass


@pytest.fixture
def web(clips):
    Web.clip = clips["h264.ts"].read_bytes()
    Web.done.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    Web.done.set()
    server.shutdown()
    server.server_close()
    thread.join(5)


def test_an_http_stream_is_copied_whole(ffmpeg, tmp_path, web):
    taken = capture(ffmpeg, f"{web}/whole", tmp_path)
    assert (taken.code, taken.stderr) == (0, [])
    assert decoded(ffmpeg, joined(taken.files, tmp_path)) == (FRAMES, "")


def test_a_stalled_http_stream_ends_with_its_video_kept_and_its_cause_told(ffmpeg, tmp_path, web):
    started = time.monotonic()
    taken = capture(ffmpeg, f"{web}/stalls", tmp_path, change=hasty)
    assert time.monotonic() - started < 10
    assert explain(taken.stderr).kind is FailureKind.TIMED_OUT
    assert taken.closed
    # The exit code does not tell a stall from an end.
    assert taken.code == 0


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, FailureKind.UNAUTHORIZED),
        (403, FailureKind.FORBIDDEN),
        (404, FailureKind.NOT_FOUND),
        (500, FailureKind.SERVER_ERROR),
        (503, FailureKind.NO_SESSION),
    ],
)
def test_an_answer_of_a_web_camera_is_named(ffmpeg, tmp_path, web, status, kind):
    assert explain(capture(ffmpeg, f"{web}/{status}", tmp_path).stderr).kind is kind


@pytest.mark.parametrize("scheme", ["rtsp", "rtsps", "http", "https"])
def test_a_closed_port_is_a_refused_connection(ffmpeg, tmp_path, scheme):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    taken = capture(ffmpeg, f"{scheme}://a:b@127.0.0.1:{port}/x", tmp_path)
    assert explain(taken.stderr).kind is FailureKind.CONNECTION_REFUSED
    assert taken.code != 0


def test_a_file_that_cannot_be_captured_is_named(ffmpeg, clips, tmp_path):
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    for path, kind in [
        (tmp_path / "missing.mp4", FailureKind.NO_SUCH_FILE),
        (tmp_path, FailureKind.NO_SUCH_FILE),
        (text, FailureKind.INVALID_DATA),
        (clips["only-sound.m4a"], FailureKind.NO_VIDEO),
        (clips["raw-b-frames.h264"], FailureKind.NO_TIMESTAMPS),
    ]:
        taken = capture(ffmpeg, str(path), tmp_path)
        assert explain(taken.stderr).kind is kind, taken.stderr
        assert taken.code != 0


def test_a_spool_that_vanished_is_named(ffmpeg, tmp_path):
    def elsewhere(made):
        return Command([*made.argv[:-1], "/nonexistent/open/%08d.ts"], made.script)

    taken = capture(ffmpeg, "test:32x32,1s", tmp_path, change=elsewhere)
    assert explain(taken.stderr).kind is FailureKind.OUTPUT


def test_the_usable_ffmpeg_is_found_and_can_be_set(ffmpeg):
    found = find_ffmpeg()
    assert found.path == ffmpeg
    assert find_ffmpeg(ffmpeg) == replace(found, origin="setting")
