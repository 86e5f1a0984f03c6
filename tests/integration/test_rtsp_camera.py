"""Capture from a real RTSP camera: logins, borders, losses, refusals, and switches of what it sends."""

import re
import subprocess
import time
from datetime import datetime

import pytest

from tests.cameras.recording import Recording, picture_numbers

MARK = "Zq7xKv"  # in every password: letters and digits survive any escaping
PASSWORD = f"p@ss: {MARK}w'o\"r\\d/%?#&ü€="
LONG = MARK + "x" * 100
LOOP = 100  # pictures, then their numbers begin anew
CLOSED = {"the camera closed the connection", "the source ended"}


def assert_shown_nowhere(*places):
    assert not [text[:2000] for text in places if MARK in text]


@pytest.mark.parametrize("auth", ["basic", "digest"])
def test_a_login_of_any_characters_gets_in_and_is_shown_nowhere(rtsp_camera, record, entries, auth):
    logins = [("admin", PASSWORD), ("jörg@home", LONG)]
    cameras = [rtsp_camera(auth=auth, user=user, password=password) for user, password in logins]
    recordings = [record(camera.url) for camera in cameras]
    for recording in recordings:
        recording.wait_segments(1)
    lines = [" ".join(child.cmdline()) for recording in recordings for child in recording.children()]
    assert len(lines) == 2
    for recording in recordings:
        recording.stop()
    paths = [path for recording in recordings for path in recording.folder.rglob("*.json*")]
    assert_shown_nowhere(*lines, str(entries), *(path.read_text() for path in paths))


def test_a_password_that_was_changed_is_named_as_the_cause_and_capture_goes_on_with_the_old_one(
    rtsp_camera, record, entries
):
    camera = rtsp_camera(auth="digest", password=f"{MARK} old")
    recording = record(camera.url)
    recording.wait_segments(1)
    camera.restart(password="another")
    changed = time.monotonic()
    refused = recording.wait_for(
        lambda: [e for e in recording.logged("capture_interrupted", since=changed) if "401" in e["reason"]],
        "refused",
    )
    assert refused[0]["reason"] == "the camera refuses user or password (401)"
    camera.restart(password=f"{MARK} old")
    recording.wait_segments(1, since=recording.wait_logged("capture_running", since=changed)["at"])
    (gap,) = recording.gaps()
    assert tells(gap, *CLOSED, "the camera refuses user or password (401)")
    assert "401 Unauthorized" in str(entries)  # ffmpeg's own words are among them
    assert_shown_nowhere(str(entries))


@pytest.mark.parametrize(
    "options",
    [
        {"fps": 25, "loop_seconds": 4.0},
        {"key_seconds": 2.0, "join": "live"},
        {"codec": "h265", "fps": 20, "loop_seconds": 5.0},
        {"audio": "aac"},
    ],
    ids=["quick", "joined-between-key-frames", "h265", "with-sound"],
)
def test_no_frame_is_lost_or_doubled_at_the_borders_of_segments(rtsp_camera, record, options):
    camera = rtsp_camera(**options)
    recording = record(camera.url)
    recording.wait_segments(2)
    recording.stop()  # a third one is cut short
    numbers = picture_numbers(recording.ffmpeg, recording.files())
    assert len(recording.files()) >= 2
    assert len(numbers) >= 2 * options.get("fps", 10)
    assert numbers == [(numbers[0] + place) % LOOP for place in range(len(numbers))]


def tells(gap, *causes):
    """Whether one of them is told: the first that was seen of it, or the last, or both are true."""
    return any(cause in gap["cause"] for cause in causes)


def moment(text):
    return datetime.fromisoformat(text)


def test_a_camera_that_was_killed_and_comes_back_leaves_one_gap_with_its_times_and_its_cause(
    rtsp_camera, record
):
    camera = rtsp_camera()
    recording = record(camera.url)
    recording.wait_segments(1, since=recording.wait_logged("capture_running")["at"])
    killed, killed_at = datetime.now().astimezone(), time.monotonic()
    camera.kill()
    recording.wait_logged("capture_interrupted", since=killed_at, deadline=15)
    camera.restart()
    back = datetime.now().astimezone()
    recording.wait_segments(2, since=recording.wait_logged("capture_running", since=killed_at)["at"])
    (gap,) = recording.gaps()
    assert tells(gap, *CLOSED, "nothing listens at host and port")
    start, end = moment(gap["start"]), moment(gap["end"])
    assert gap["seconds"] == pytest.approx((end - start).total_seconds(), abs=0.002)
    assert abs((start - killed).total_seconds()) < 2.0
    # Video begins again when the camera is asked again, and that is after it listens.
    assert -0.5 < (end - back).total_seconds() < 20.0
    # The gap lies between two segments, and touches both.
    segments = recording.segments()
    assert start in {segment.end for segment in segments}
    assert any(abs((segment.start - end).total_seconds()) < 0.002 for segment in segments)


def test_a_camera_that_refuses_sessions_is_asked_again_until_it_takes_one(rtsp_camera, record):
    camera = rtsp_camera()
    camera.tell("refuse")
    recording = record(camera.url)
    camera.wait_for("refused", times=2)
    refused = recording.wait_logged("capture_interrupted")
    assert refused["reason"]
    asked = camera.said("refused")
    assert asked[1] - asked[0] >= 0.9  # not hammered
    camera.tell("accept")
    recording.wait_segments(1)


def test_a_camera_without_video_is_told_from_one_that_does_not_answer(rtsp_camera, record):
    recording = record(rtsp_camera(codec="none", audio="pcma").url)
    assert "no video" in recording.wait_logged("capture_interrupted")["reason"]


def pictures(ffmpeg, path):
    """Return the codec and the sizes of what a decoder finds in a segment."""
    command = [ffmpeg, "-nostdin", "-hide_banner", "-f", "mpegts", "-i", path, "-f", "null", "-"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    said = done.stderr
    assert done.returncode == 0, said
    codec = re.search(r"Stream #0:0.*Video: (\w+)", said)
    sizes = re.findall(r"(?:Video: .*?, |changed to .*?, )(\d+x\d+)", said.partition("Output #0")[0])
    sizes += re.findall(r"changed to .*?, (\d+x\d+)", said)
    return codec[1] if codec else None, set(sizes)


@pytest.mark.parametrize("how", ["size-in-the-stream", "size-after-a-restart", "codec-after-a-restart"])
def test_a_switch_of_size_or_codec_begins_a_new_session_and_no_segment_holds_both(rtsp_camera, record, how):
    camera = rtsp_camera()
    recording = record(camera.url)
    recording.wait_segments(2)
    switched = time.monotonic()
    if how == "size-in-the-stream":
        camera.resize("480x270")
    elif how == "size-after-a-restart":
        camera.restart(size="480x270")
    else:
        camera.restart(codec="h265")
    recording.new_session_or(6, since=switched)
    recording.stop()
    by_session = {}
    for closed, path in zip(recording.closed, recording.files(), strict=True):
        codec, sizes = pictures(recording.ffmpeg, path)
        by_session.setdefault(str(closed.session), set()).update((codec, size) for size in sizes)
    codec, size = ("hevc", "320x180") if how.startswith("codec") else ("h264", "480x270")
    assert list(by_session.values()) == [{("h264", "320x180")}, {(codec, size)}]


def test_pictures_of_an_mjpeg_camera_can_be_played(rtsp_camera, record):
    recording = record(rtsp_camera(codec="mjpeg", size="320x192").url)
    encoded = recording.wait_logged("video_not_carried")["at"]
    recording.wait_segments(1, since=recording.wait_logged("capture_running", since=encoded)["at"])
    codec, sizes = pictures(recording.ffmpeg, recording.files()[-1])
    assert codec
    assert sizes == {"320x192"}


def test_an_endless_http_stream_is_captured_and_taken_up_again_when_it_was_closed(http_camera, record):
    camera = http_camera()
    recording = record(camera.url)
    recording.wait_segments(2)
    closed = time.monotonic()
    camera.drop()
    assert recording.wait_logged("capture_interrupted", since=closed)["reason"] in CLOSED
    recording.wait_segments(2, since=recording.wait_logged("capture_running", since=closed)["at"])
    assert len(recording.gaps()) == 1
    assert camera.requests == 2
    assert all(pictures(recording.ffmpeg, path) == ("h264", {"320x180"}) for path in recording.files())


def test_a_camera_whose_key_frames_are_far_apart_is_captured_and_warned_of_once(
    rtsp_camera, entries, tmp_path
):
    camera = rtsp_camera(key_seconds=4.0, loop_seconds=8.0)
    with Recording(tmp_path / "far", camera.url, entries, "far", 0.5) as recording:
        recording.wait_segments(3)
    (warning,) = recording.logged("key_frames_far_apart")
    assert warning["seconds"] >= 1.0
    assert recording.logged("capture_interrupted") == []
    assert [round(segment.duration) for segment in recording.segments()[:3]] == [4, 4, 4]
    numbers = picture_numbers(recording.ffmpeg, recording.files())
    assert numbers == [(numbers[0] + place) % 80 for place in range(len(numbers))]
