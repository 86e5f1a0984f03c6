"""The cameras of the tests themselves: what they claim to do, seen by a plain ffmpeg and a plain socket."""

import socket
import subprocess
import time
from collections import Counter

import imageio_ffmpeg
import pytest

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
PASSWORD = "p@ss: w'o\"r\\d/%?#ü€"
WIDTH, HEIGHT = 320, 180


def look(url, *options, seconds=2.0, timeout=60):
    """Read a stream for so long with ffmpeg; return its exit code, what it wrote, what it said."""
    reading = ["-rtsp_transport", "tcp"] if url.startswith("rtsp") else []
    command = [FFMPEG, "-nostdin", "-v", "info", *reading, "-i", url, "-t", str(seconds), *options]
    done = subprocess.run(command, capture_output=True, timeout=timeout, check=False)
    return done.returncode, done.stdout, done.stderr.decode(errors="replace")


def numbers(url, seconds=2.0):
    """Return the number that stands in each picture."""
    code, raw, said = look(url, "-f", "rawvideo", "-pix_fmt", "gray", "-fps_mode", "passthrough", "-", seconds=seconds)
    assert code == 0, said
    block, size = WIDTH // 16, WIDTH * HEIGHT
    rows = [raw[at + 20 * WIDTH : at + 21 * WIDTH] for at in range(0, len(raw), size)]
    return [sum((row[block * i + block // 2] > 128) << (15 - i) for i in range(16)) for row in rows]


@pytest.mark.parametrize("codec", ["h264", "h265", "mjpeg"])
def test_pictures_carry_their_number(rtsp_camera, codec):
    camera = rtsp_camera(codec=codec)
    seen = numbers(camera.url)
    assert seen == list(range(len(seen)))
    assert len(seen) >= 19


@pytest.mark.parametrize("auth", ["basic", "digest", "both"])
def test_a_login_is_asked_for(rtsp_camera, auth):
    camera = rtsp_camera(auth=auth, password="secret")
    assert numbers(camera.url, seconds=0.5)
    code, _, said = look(camera.url_with("admin:wrong@"), "-f", "null", "-")
    assert code != 0
    assert "401 Unauthorized" in said


@pytest.mark.parametrize("audio", ["aac", "pcma"])
def test_a_camera_has_sound_with_or_without_video(rtsp_camera, audio):
    for codec, streams in [("h264", {"Video": 1, "Audio": 1}), ("none", {"Audio": 1})]:
        _, _, said = look(rtsp_camera(audio=audio, codec=codec).url, "-c", "copy", "-f", "null", "-")
        shown = said.partition("Output #0")[0]
        assert Counter(line.split()[2].strip(":") for line in shown.splitlines() if "Stream #0:" in line) == streams


def test_a_refusing_camera_and_a_full_one_say_453_and_take_others_later(rtsp_camera):
    camera = rtsp_camera(max_sessions=1, stale_seconds=3600)
    camera.tell("refuse")
    assert "453" in look(camera.url, "-f", "null", "-")[2]
    camera.tell("accept")
    assert numbers(camera.url, seconds=0.5)
    assert look(camera.url, "-f", "null", "-")[0] != 0  # the place is still taken
    assert len(camera.said("refused 453")) == 2


def test_it_comes_back_at_the_same_address(rtsp_camera):
    camera = rtsp_camera()
    url = camera.url
    camera.kill()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", camera.port), timeout=10)
    camera.restart(size="160x90")
    assert camera.url == url
    assert "160x90" in look(url, "-f", "null", "-", seconds=0.5)[2]


@pytest.mark.parametrize("command", ["drop", "size 640x360", "spoil", "speed 20", "keys off", "jump 100"])
def test_a_fault_changes_what_is_sent(rtsp_camera, command):
    camera = rtsp_camera()
    with subprocess.Popen(
        [FFMPEG, "-nostdin", "-v", "warning", "-rtsp_transport", "tcp", "-i", camera.url]
        + ["-t", "300", "-c", "copy", "-f", "framecrc", "-flush_packets", "1", "-"],
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        for line in child.stdout:
            if not line.startswith("#"):
                break
        camera.tell(command)
        end = time.monotonic() + 4
        lines = []
        for line in child.stdout:
            lines.append(line)
            if time.monotonic() > end:
                break
        print(command, len(lines), "".join(lines[-8:]))
        child.kill()


def test_a_dead_address_answers_no_syn(dead_ip):
    with pytest.raises(TimeoutError):
        socket.create_connection((dead_ip.host, dead_ip.port), timeout=1)


@pytest.mark.parametrize(("form", "codec"), [("mpegts", "h264"), ("mjpeg", "mjpeg")])
def test_an_http_stream_has_no_end_but_can_be_cut(http_camera, form, codec):
    camera = http_camera(form)
    code, _, said = look(camera.url, "-f", "null", "-", seconds=1)
    assert (code, codec in said) == (0, True)
    camera.refuse(503)
    assert look(camera.url, "-f", "null", "-")[0] != 0
