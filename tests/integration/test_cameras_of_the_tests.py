"""The cameras of the tests themselves: what they claim to do, seen by a plain ffmpeg and a plain socket."""

import socket
import subprocess
from collections import Counter
from itertools import pairwise

import imageio_ffmpeg
import pytest

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
WIDTH, HEIGHT = 320, 192  # JPEG over RTP knows multiples of eight alone
SIZE = f"{WIDTH}x{HEIGHT}"


def reading(url):
    """Return the command that reads a camera after a short look at it."""
    options = ["-rtsp_transport", "tcp", "-timeout", "1000000"] if url.startswith("rtsp") else []
    quick = ["-analyzeduration", "300000", "-fpsprobesize", "1"]
    return [FFMPEG, "-nostdin", "-v", "info", *options, *quick, "-i", url]


def look(url, *options, seconds=1.0):
    """Read a stream for so long; return the exit code, what was written, and what was said."""
    command = [*reading(url), "-t", str(seconds), *options]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr.decode(errors="replace")


def numbers(url):
    """Return the number that stands in each picture."""
    gray = ["-f", "rawvideo", "-pix_fmt", "gray", "-fps_mode", "passthrough", "-"]
    code, raw, said = look(url, *gray)
    assert code == 0, said
    block = WIDTH // 16
    rows = [raw[at : at + WIDTH] for at in range(0, len(raw), WIDTH * HEIGHT)]
    return [sum((row[block * i + block // 2] > 128) << (15 - i) for i in range(16)) for row in rows]


@pytest.mark.parametrize("codec", ["h264", "h265", "mjpeg"])
def test_pictures_carry_their_number(rtsp_camera, codec):
    seen = numbers(rtsp_camera(codec=codec, size=SIZE).url)
    assert seen == list(range(len(seen)))
    assert len(seen) >= 9


@pytest.mark.parametrize("auth", ["basic", "digest"])
def test_a_login_is_asked_for(rtsp_camera, auth):
    camera = rtsp_camera(auth=auth, password="secret", size=SIZE)
    assert numbers(camera.url)
    code, _, said = look(camera.url_with("admin:wrong@"), "-f", "null", "-")
    assert code != 0
    assert "401 Unauthorized" in said


@pytest.mark.parametrize(
    ("audio", "codec", "streams"),
    [("aac", "h264", {"Video": 1, "Audio": 1}), ("pcma", "none", {"Audio": 1})],
)
def test_a_camera_has_sound_with_or_without_video(rtsp_camera, audio, codec, streams):
    _, _, said = look(rtsp_camera(audio=audio, codec=codec).url, "-c", "copy", "-f", "null", "-")
    found = said.partition("Output #0")[0].partition("Stream mapping")[0].splitlines()
    kinds = (line.split()[2].strip(":") for line in found if line.startswith("  Stream #0:"))
    assert Counter(kinds) == streams


def test_a_refusing_camera_and_a_full_one_say_453_and_take_others_later(rtsp_camera):
    camera = rtsp_camera(max_sessions=1, stale_seconds=3600, size=SIZE)
    camera.tell("refuse")
    assert "453" in look(camera.url, "-f", "null", "-")[2]
    camera.tell("accept")
    assert numbers(camera.url)
    assert look(camera.url, "-f", "null", "-")[0] != 0  # the place is still taken
    camera.wait_for("refused 453", times=2)


def test_it_comes_back_at_the_same_address(rtsp_camera):
    camera = rtsp_camera()
    url = camera.url
    camera.kill()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", camera.port), timeout=10)
    camera.restart(size="160x90")
    assert camera.url == url
    assert "160x90" in look(url, "-f", "null", "-")[2]


def stamps(lines):
    return [int(line.split(",")[1]) for line in lines if line.startswith("0,")]


def keyless(lines):
    """Return how many packets at the end are no key frames."""
    packets = [line for line in reversed(lines) if line.startswith("0,")]
    return next((n for n, line in enumerate(packets) if "f=0x0" not in line), len(packets))


def steps(lines):
    return [later - earlier for earlier, later in pairwise(stamps(lines))]


@pytest.mark.parametrize(
    ("command", "codec", "shows"),
    [
        ("drop", "copy", lambda lines: lines[-1] == "ended"),
        ("keys off", "copy", lambda lines: keyless(lines) > 20),
        ("speed 20", "copy", lambda lines: max(steps(lines), default=0) == 20 * 9000),
        ("jump 100", "copy", lambda lines: max(steps(lines), default=0) > 100 * 90000),
        ("size 640x360", "rawvideo", lambda lines: "640x360" in lines[-1]),
        ("spoil", "rawvideo", lambda lines: "error while decoding" in lines[-1]),
        ("stall", "rawvideo", lambda lines: "timed out" in lines[-1]),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_a_fault_shows_to_who_reads(rtsp_camera, command, codec, shows):
    camera = rtsp_camera()
    writing = ["-c", codec, "-f", "framecrc", "-flush_packets", "1", "-"]
    lines = []
    with subprocess.Popen(
        [*reading(camera.url), *writing], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as child:
        try:
            for line in child.stdout:
                is_first = not lines and line.startswith("0,")
                if lines or is_first:
                    lines.append(line.lower())
                if is_first:
                    camera.tell(command)
                if lines and shows(lines):
                    return
        finally:
            child.kill()
    assert shows([*lines, "ended"]), lines[-20:]


def test_a_dead_address_answers_no_syn(dead_ip):
    with pytest.raises(TimeoutError):
        socket.create_connection((dead_ip.host, dead_ip.port), timeout=1)


@pytest.mark.parametrize(
    ("behaviour", "answer"),
    [
        ("closes", lambda text: text == b""),
        ("garbage", lambda text: text and not text.startswith(b"RTSP")),
        ("trickle", lambda text: text == b"R"),
        ("web", lambda text: text.startswith(b"HTTP/1.1 200")),
    ],
    ids=["closes", "garbage", "trickle", "web"],
)
def test_an_odd_port_answers_oddly(odd_port, behaviour, answer):
    port = odd_port(behaviour)
    with socket.create_connection((port.host, port.port), timeout=10) as client:
        if behaviour != "closes":
            client.sendall(b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n")
        assert answer(client.recv(1000))
    assert len(port.calls) == 1


def test_a_silent_port_takes_what_is_said_and_answers_nothing(odd_port):
    port = odd_port("silent")
    with socket.create_connection((port.host, port.port), timeout=0.5) as client:
        client.sendall(b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n")
        with pytest.raises(TimeoutError):
            client.recv(1)


@pytest.mark.parametrize(("form", "codec"), [("mpegts", "h264"), ("mjpeg", "mjpeg")])
def test_an_http_stream_has_no_end_but_can_be_refused(http_camera, form, codec):
    camera = http_camera(form)
    code, _, said = look(camera.url, "-f", "null", "-")
    assert (code, codec in said) == (0, True)
    camera.refuse(503)
    assert look(camera.url, "-f", "null", "-")[0] != 0
