"""The page of a real agent, asked by raw sockets: what is right is answered, what is hostile is survived."""

import asyncio
import json
import os
import random
import re
import select
import socket
import struct
import subprocess
import sys
import time
from contextlib import ExitStack

import psutil
import pytest

from capture import snapshot, web_server
from capture.agent import Agent
from capture.errors import ConfigError
from capture.ffmpeg import find_ffmpeg
from capture.settings import load_settings
from capture.snapshot import LARGEST_JPEG, Pictures
from capture.web import Site
from capture.web_health import STILL_SECONDS, Heartbeat
from capture.web_server import ACCEPTED_AT_ONCE, HEAD_LIMIT, MOST_ANSWERED, MOST_WAITING, WebServer
from tests.conftest import start_session

DEADLINE = 60.0  # seconds for what takes one on an idle machine
NOWHERE = "http://127.0.0.1:1"
HOSTILE = "<img src=x onerror=alert(1)>"
SECRET = "hunter22"


class RealAgent:
    """`run` with its page on a free port, in a directory of its own."""

    def __init__(self, directory):
        self.directory = directory
        (directory / "relay.toml").write_text(f"""
            [defaults]
            segment_seconds = 1
            [cameras.gate]
            source = "test:320x240@10"
            [cameras.yard]
            name = "{HOSTILE}"
            source = "rtsp://user:{SECRET}@127.0.0.1:1/stream"
            """)
        env = {key: value for key, value in os.environ.items() if not key.startswith("RELAY_")}
        env |= {"RELAY_CLOUD": NOWHERE, "RELAY_TOKEN": SECRET, "RELAY_BROKER": "redis://127.0.0.1:1/0"}
        env |= {"RELAY_DRAIN_TIMEOUT": "0"}
        self._log = directory / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "capture", "run", "--config", "relay.toml", "--web", "0", "--json"],
                cwd=directory,
                env=env,
                stderr=log,
            )
        url = self.wait(lambda: re.search(r'"url": "http://127.0.0.1:(\d+)/', self.log), "the page")
        self.port = int(url[1])

    @property
    def log(self):
        return self._log.read_text()

    def wait(self, condition, what):
        end = time.monotonic() + DEADLINE
        while not (found := condition()):
            assert self.process.poll() is None, self.log
            assert time.monotonic() < end, f"{what}\n{self.log[-3000:]}"
            time.sleep(0.02)
        return found

    def closed(self):
        files = sorted(self.directory.glob("spool/journal/gate/*.jsonl"))
        return sum(path.read_bytes().count(b'"event": "closed"') for path in files)

    def wait_for_segments(self, more):
        target = self.closed() + more
        self.wait(lambda: self.closed() >= target, f"{more} more segments")

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE)

    def ask(self, raw):
        """Send bytes, return all that comes back."""
        with self.connect() as line:
            line.sendall(raw)
            return read_all(line)

    def get(self, path, *, method="GET", host="localhost"):
        answer = self.ask(f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        head, _, body = answer.partition(b"\r\n\r\n")
        status, *fields = head.decode().split("\r\n")
        return int(status.split()[1]), dict(field.split(": ", 1) for field in fields), body

    def json(self, path):
        return json.loads(self.get(path)[2])

    def stop(self):
        self.process.terminate()
        self.process.wait(DEADLINE)


def port_of(server):
    return int(server.url.rsplit(":", 1)[1].strip("/"))


def read_all(line):
    data = b""
    try:
        while chunk := line.recv(65536):
            data += chunk
    except ConnectionResetError:
        pass
    return data


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    agent = RealAgent(tmp_path_factory.mktemp("web"))
    try:
        agent.wait_for_segments(1)
        yield agent
    finally:
        agent.stop()
    assert agent.process.returncode == 75  # what was captured is owed
    assert "Traceback" not in agent.log


def test_the_page_comes_with_headers_that_leave_nothing_open(agent):
    status, headers, body = agent.get("/")

    assert status == 200
    assert body.startswith(b"<!doctype html>")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Content-Length"] == str(len(body))


def test_both_cameras_are_told_and_no_secret_is(agent):
    def cameras():
        found = {camera["id"]: camera for camera in agent.json("/api/status")["cameras"]}
        return found if found["gate"]["words"] == "recording" and found["gate"]["owed"] else None

    found = agent.wait(cameras, "the first facts")

    assert found["yard"]["name"] == HOSTILE
    assert found["yard"]["words"] in {"retrying", "starting"}
    assert found["gate"]["closed_bytes_per_second"] > 0
    for path in ("/", "/api/status", "/readyz", "/healthz"):
        assert SECRET.encode() not in agent.get(path)[2]


def test_the_picture_is_a_jpeg_of_now_and_none_is_no_error(agent):
    status, headers, body = agent.wait(
        lambda: found if (found := agent.get("/picture/gate.jpg"))[0] == 200 else None, "a picture"
    )

    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    assert body.startswith(b"\xff\xd8")
    assert float(headers["X-Picture-Age"]) < DEADLINE
    assert agent.get("/picture/yard.jpg")[0] == 204


def test_a_picture_follows_the_video(agent):
    first = agent.wait(lambda: agent.get("/picture/gate.jpg")[2], "a picture")

    agent.wait(lambda: agent.get("/picture/gate.jpg")[2] not in {b"", first}, "another picture")


def test_alive_and_ready_are_told_with_reasons(agent):
    assert agent.get("/healthz")[0] == 200
    status, _, body = agent.get("/readyz")

    checks = {check["name"]: check for check in json.loads(body)["checks"]}
    assert (status, set(checks)) == (200, {"loop", "spool", "cameras", "broker", "ingest"})
    assert not checks["broker"]["ok"]
    assert "yard" in checks["cameras"]["found"]


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"GET / HTTP/1.1\r\nHost: evil.example.com\r\n\r\n", 421),
        (b"GET / HTTP/1.1\r\n\r\n", 421),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example.com\r\n\r\n", 421),
        (b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET /picture/nobody.jpg HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET /picture/gate HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET /picture/../gate.jpg HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET /picture/../../relay.toml HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET /picture/..%2f..%2frelay.toml%00.jpg HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET //etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET http://localhost/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX\0: y\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: localhost\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * HEAD_LIMIT + b"\r\n\r\n", 431),
        (b"G" * 100_000, 431),
        (b"\r\n\r\n", 400),
    ],
)
def test_hostile_requests_are_refused_in_words(agent, raw, status):
    answer = agent.ask(raw)

    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"nosniff" in answer
    assert agent.get("/healthz")[0] == 200


def test_head_brings_headers_alone(agent):
    status, headers, body = agent.get("/", method="HEAD")

    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) > 1000


def test_who_trickles_is_cut_off(monkeypatch):
    monkeypatch.setattr(web_server, "HEAD_SECONDS", 0.3)
    server = WebServer("127.0.0.1:0", {}, always=frozenset())
    server.start()
    with socket.create_connection(("127.0.0.1", port_of(server)), timeout=0.1) as line:
        end = time.monotonic() + DEADLINE
        is_open = True
        while is_open and time.monotonic() < end:
            try:
                line.send(b"G")
                is_open = line.recv(1) != b""
            except TimeoutError:
                continue
            except OSError:
                is_open = False
    server.close()
    assert not is_open


def test_hundreds_of_connections_leave_it_capturing_and_answering(agent):
    process = psutil.Process(agent.process.pid)
    agent.get("/")
    before, memory = process.num_fds(), process.memory_info().rss
    with ExitStack() as stack:
        idle = [stack.enter_context(agent.connect()) for _ in range(200)]
        asking = [stack.enter_context(agent.connect()) for _ in range(200)]
        for line in asking:
            line.setblocking(False)
            try:
                line.send(b"GET /api/status HTTP/1.1\r\nHost: localhost\r\n\r\n")
            except OSError:  # made way already
                continue
        # A connection is counted some turns of the loop after it was accepted.
        most = MOST_WAITING + MOST_ANSWERED + 5 * ACCEPTED_AT_ONCE
        assert process.num_fds() <= before + most + 10  # what the agent itself opens meanwhile
        assert agent.get("/healthz")[0] == 200
        agent.wait(lambda: agent.get("/")[0] == 200, "the page")
        agent.wait_for_segments(2)
        assert idle
    assert process.memory_info().rss - memory < 30_000_000
    assert agent.json("/api/status")["cameras"][0]["restarts"] == 0


def test_who_reads_nothing_holds_nothing_up(agent):
    with ExitStack() as stack:
        for _ in range(MOST_ANSWERED):
            line = stack.enter_context(socket.socket())
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            line.connect(("127.0.0.1", agent.port))
            line.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        agent.wait_for_segments(2)
    assert agent.wait(lambda: agent.get("/healthz")[0] == 200, "an answer")


def test_a_port_in_use_is_told_before_anything_starts():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"found port {port} on 127.0.0.1 in use"):
            WebServer(f"127.0.0.1:{port}", {}, always=frozenset())


def test_it_ends_with_connections_open():
    server = WebServer("127.0.0.1:0", {}, always=frozenset())
    server.start()
    port = port_of(server)
    with socket.create_connection(("127.0.0.1", port), timeout=5) as line:
        line.send(b"GET / HT")
        begun = time.monotonic()
        server.close()
        assert time.monotonic() - begun < 10
        assert select.select([line], [], [], 10)[0]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


# --- the routes by themselves -----------------------------------------------------------------------


@pytest.fixture
def site(spool, clock):
    """The routes of an agent that was not started, and the clock of its main loop."""
    settings = load_settings(environ={"RELAY_SOURCE": "test:", "RELAY_CAMERA_ID": "gate"})
    agent = Agent(settings, spool, "ffmpeg")
    site = Site(agent, spool, "ffmpeg", Heartbeat(clock), {"/metrics": lambda: ("text/x", b"metrics 1")})
    yield site
    site.close()


def route(site, path, rest=""):
    answer = asyncio.run(site.routes[path](rest))
    return answer.status, answer.body


def test_a_main_loop_that_stands_still_is_told(site, clock):
    assert route(site, "/healthz")[0] == 200
    clock.step(STILL_SECONDS)
    status, body = route(site, "/healthz")
    assert (status, json.loads(body)["alive"]) == (503, False)
    assert route(site, "/readyz")[0] == 503


def test_an_agent_that_captures_nothing_yet_is_not_ready(site):
    status, body = route(site, "/readyz")

    assert status == 503
    assert [check["name"] for check in json.loads(body)["checks"] if not check["ok"]] == ["cameras", "broker"]


def test_a_spool_that_is_gone_is_told_on_the_page(site, spool):
    (spool.root / ".relay-spool").unlink()

    found = json.loads(route(site, "/api/status")[1])

    assert "the spool cannot be read" in found["trouble"]
    assert [camera["id"] for camera in found["cameras"]] == ["gate"]


def test_a_further_page_is_rendered_when_it_is_asked_for(site):
    assert route(site, "/metrics") == (200, b"metrics 1")


# --- pictures of real video -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Four seconds of a real segment, a key frame each second, of each codec that ffmpeg has here."""
    made = {}
    for codec, more in (("libx264", ["-bf", "2"]), ("libx265", ["-x265-params", "log-level=none"])):
        path = tmp_path_factory.mktemp("video") / "00000001.ts"
        pattern = "testsrc2=size=1280x720:rate=10:duration=4"
        options = ["-c:v", codec, *more, "-preset", "ultrafast", "-g", "10", "-pix_fmt", "yuv420p"]
        command = [find_ffmpeg().path, "-nostdin", "-v", "error", "-f", "lavfi", "-i", pattern, *options]
        if subprocess.run([*command, path], check=False, timeout=60).returncode == 0:
            made[codec] = path.read_bytes()
    assert "libx264" in made
    return made


def picture_of(spool, content):
    with start_session(spool) as session:
        (session.open_directory / "00000001.ts").write_bytes(content)
        return Pictures(spool, find_ffmpeg().path).latest("door")


def test_pictures_are_made_of_each_codec_and_are_small(spool, video):
    for content in video.values():
        found = picture_of(spool, content)

        assert found.jpeg.startswith(b"\xff\xd8")
        assert len(found.jpeg) < LARGEST_JPEG
        height, width = struct.unpack(">HH", found.jpeg.partition(b"\xff\xc0")[2][3:7])
        assert (width, height) == (480, 270)


@pytest.mark.parametrize("cut", [0, 100, 188 * 20, 188 * 20 + 7])
def test_what_is_being_written_ends_anywhere(spool, video, cut):
    content = video["libx264"]

    assert picture_of(spool, content[: len(content) - cut]) is not None


def test_damaged_video_costs_a_picture_and_nothing_else(spool, video):
    noise = random.Random(5)
    content = bytearray(video["libx264"])
    for at in range(188 * 3, len(content)):
        if at % 188 > 30 and noise.random() < 0.5:
            content[at] = noise.randrange(256)

    begun = time.monotonic()
    picture_of(spool, bytes(content))
    assert time.monotonic() - begun < DEADLINE


@pytest.mark.parametrize("content", [b"", b"\0" * 188, b"no video at all", b"\x47" * 188 * 1000])
def test_no_picture_is_made_of_what_is_no_video(spool, content):
    assert picture_of(spool, content) is None


def test_a_link_in_the_place_of_a_segment_is_not_followed(spool, video, tmp_path):
    (tmp_path / "secret.ts").write_bytes(video["libx264"])
    with start_session(spool) as session:
        (session.open_directory / "00000001.ts").symlink_to(tmp_path / "secret.ts")

        assert Pictures(spool, find_ffmpeg().path).latest("door") is None


def test_an_ffmpeg_that_hangs_is_given_up(spool, video, tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot, "FFMPEG_SECONDS", 0.5)
    hanging = tmp_path / "ffmpeg"
    hanging.write_text("#!/bin/sh\nexec sleep 300\n")
    hanging.chmod(0o755)
    with start_session(spool) as session:
        (session.open_directory / "00000001.ts").write_bytes(video["libx264"])

        assert Pictures(spool, str(hanging)).latest("door") is None
    assert not [each for each in psutil.Process().children(recursive=True) if "300" in each.cmdline()]
