"""What the doctor makes of what it saw: figures from packets, mounts, clocks, the uplink."""

import threading
import time
from datetime import UTC, datetime

import pytest

from capture.doctor_camera_clock import read_offset
from capture.doctor_check import Check, HungError, exit_code, within
from capture.doctor_ingest import examine_uplink
from capture.doctor_source import Seen
from capture.doctor_spool import judge_mount, mount_of, read_mounts
from capture.doctor_video import Look, describe, measure, read_stream, warnings
from capture.ffmpeg import CaptureOptions
from capture.settings import load_settings
from capture.source import SourceKind

RTSP, FILE = SourceKind.RTSP, SourceKind.FILE
H264 = (
    "[info]   Stream #0:0: Video: h264 (High), yuv420p(tv, bt709, progressive), 1920x1080 [SAR 1:1], 25 fps"
)
AAC = "[info]   Stream #0:1: Audio: aac (LC), 44100 Hz, mono, fltp"


def look_at(*, seconds=6.0, fps=10, key_every=2.0, offset=0.0, pace=1.0, size=1000, began=100.0):
    """Return a look at packets; the first key frame comes `offset` seconds after the first packet."""
    look = Look()
    assert look.take(b"#tb 0: 1/90000", began)
    for number in range(round(seconds * fps) + 1):
        since = number / fps
        keys, rest = divmod(round((since - offset) * fps), round(key_every * fps)) if key_every else (0, 1)
        is_key = bool(key_every) and since >= offset and rest == 0 and keys >= 0
        stamp = 0 if since < offset else round((since - offset) * pace * 90000)
        line = f"0, {stamp:10}, {stamp:10},     9000, {size:8}, 0xca409550{'' if is_key else ', F=0x0'}"
        assert look.take(line.encode(), began + since)
    return look


def judged(look, *, kind=RTSP, lines=(H264,), **options):
    options = CaptureOptions(**{"segment_seconds": 10.0, **options})
    stream = read_stream(list(lines))
    figures = measure(look, options, kind, encodes=False)
    found = warnings(stream, figures, options, kind, encodes=False)
    return figures, {each.about for each in found}, describe(stream, figures, options, encodes=False)


# --- video -----------------------------------------------------------------------------------------


def test_a_good_camera_is_described_and_nothing_will_hurt():
    figures, warned, shown = judged(look_at(), lines=[H264, AAC])

    assert warned == set()
    assert shown == (
        "h264 (High) 1920x1080, 25 fps declared and 10.0 measured, a key frame every 2.0 s, 80 kbit/s, "
        "audio aac (not captured)"
    )
    assert figures.sent == pytest.approx(80_000 * 1.05)


@pytest.mark.parametrize(
    ("look", "seconds", "is_longer", "warned"),
    [
        ({"key_every": 9.0, "seconds": 12}, 9.0, False, set()),
        ({"key_every": 10.0, "seconds": 12}, 10.0, False, {"key frames"}),
        ({"key_every": 30.0, "seconds": 15}, 15.0, True, {"key frames"}),
        ({"key_every": 30.0, "seconds": 15, "offset": 8.0}, 8.0, True, {"key frames"}),
        ({"key_every": 4.0, "seconds": 6, "offset": 1.0}, 4.0, False, set()),
        ({"key_every": 0, "seconds": 15}, 15.0, True, {"key frames"}),
    ],
    ids=["below-ten", "ten", "one", "one-in-the-middle", "joined-between", "none"],
)
def test_key_frames_that_are_rare_or_missing_are_a_warning(look, seconds, is_longer, warned):
    figures, found, _ = judged(look_at(**look))

    assert figures.key_seconds == pytest.approx(seconds, abs=0.11)
    assert figures.is_longer is is_longer
    assert found == warned


def test_key_frames_that_stop_coming_are_as_far_apart_as_was_seen():
    look = look_at(key_every=1.0, seconds=1.0)
    for number in range(11, 100):
        look.take(b"0, %d, %d, 9000, 100, 0xaa, F=0x0" % (number * 9000, number * 9000), 100 + number / 10)

    figures, warned, _ = judged(look)

    assert (figures.key_seconds, figures.is_longer, warned) == (pytest.approx(8.9), True, {"key frames"})


def test_key_frames_further_apart_than_a_segment_are_a_warning_however_near():
    assert judged(look_at(key_every=3.0, seconds=7), segment_seconds=2.0)[1] == {"key frames"}
    assert judged(look_at(key_every=3.0, seconds=7), segment_seconds=3.0)[1] == set()


def test_a_file_with_one_key_frame_has_pieces_of_its_whole_length_and_not_longer():
    look = look_at(key_every=100, seconds=8)
    look.is_whole = True

    figures, warned, _ = judged(look, kind=FILE, segment_seconds=2.0)

    assert (figures.key_seconds, figures.is_longer) == (pytest.approx(8.0), False)
    assert warned == {"key frames"}


def test_the_bitrate_is_that_of_whole_groups_because_key_frames_are_large():
    look = Look()
    look.take(b"#tb 0: 1/1000", 0)
    for number in range(36):  # the last group is cut off after its large frame
        size, flag = (9100, b"") if number % 10 == 0 else (100, b", F=0x0")
        look.take(b"0, %d, %d, 100, %d, 0xaa%s" % (number * 100, number * 100, size, flag), number / 10)

    assert judged(look)[0].bits == pytest.approx(80_000)


def test_sound_counts_for_the_uplink_only_where_it_is_captured():
    look = look_at()
    look.take(b"1,  0,  0,  1024,  60000, 0xaa", 103.0)

    assert judged(look)[0].sent == pytest.approx(84_000)
    assert judged(look, audio="copy")[0].sent == pytest.approx(84_000 + 80_000)


@pytest.mark.parametrize(("pace", "warned"), [(1.0, set()), (0.5, {"timestamps"}), (20.0, {"timestamps"})])
def test_timestamps_that_do_not_keep_pace_with_the_clock_are_a_warning(pace, warned):
    figures, found, _ = judged(look_at(pace=pace))

    assert found == warned
    assert figures.fps == pytest.approx(10, rel=0.05)  # by the clock where timestamps cannot be believed
    assert figures.key_seconds == pytest.approx(2.0, abs=0.11)


def test_a_file_is_read_as_fast_as_it_comes_and_its_pace_is_no_matter():
    assert judged(look_at(pace=20.0, key_every=0.1), kind=FILE)[1] == set()


@pytest.mark.parametrize(
    ("line", "codec", "profile", "warned"),
    [
        (H264, "h264", "High", set()),
        (H264.replace("h264 (High)", "hevc (Main 10)"), "hevc", "Main 10", {"codec"}),
        (H264.replace("h264 (High)", "mjpeg"), "mjpeg", None, {"codec"}),
        (H264.replace("(High)", "(High) (avc1 / 0x31637661)"), "h264", "High", set()),
        (H264.replace(", 1920x1080 [SAR 1:1]", ""), "h264", "High", {"headers"}),
        ("[error] Stream #x: nonsense", None, None, {"headers"}),
    ],
)
def test_the_stream_is_read_from_ffmpegs_words(line, codec, profile, warned):
    stream = read_stream([line])

    assert (stream.codec, stream.profile) == (codec, profile)
    assert judged(look_at(), lines=[line])[1] == warned


@pytest.mark.parametrize(("audio", "warned"), [("copy", {"audio"}), ("aac", set()), ("off", set())])
def test_sound_that_cannot_be_copied_is_a_warning(audio, warned):
    assert judged(look_at(), lines=[H264, AAC.replace("aac", "pcm_alaw")], audio=audio)[1] == warned


@pytest.mark.parametrize(
    "line", [b"frame=12", b"00000001.ts,0.000000,1.000000", b"0, 1, 2", b"0, 1, 2, 3, -4, 0xaa", b"\xff" * 50]
)
def test_what_is_no_line_about_a_packet_is_left_to_others(line):
    look = Look()

    assert look.take(line, 0.0) is False
    assert look.packets == []


def test_a_time_base_of_zero_harms_nobody():
    look = Look()
    look.take(b"#tb 0: 1/0", 0.0)
    look.take(b"0, 5, 5, 1, 10, 0xaa", 0.0)

    assert judged(look)[0].bits is None


# --- the spool -------------------------------------------------------------------------------------

MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:20 / /tmp rw - tmpfs tmpfs rw
24 22 8:17 / /var/spool/relay rw,noatime - xfs /dev/sdb1 rw
25 24 0:44 / /var/spool/relay/far rw shared:2 master:1 - nfs4 nas:/video rw,vers=4.2,local_lock=none
26 24 0:45 / /var/spool/relay/own rw - nfs nas:/v rw,vers=3,nolock,local_lock=all
27 24 0:46 / /srv/two\\040words rw - cifs //nas/v rw
28 22 8:33 / /var/spool/relay rw - btrfs /dev/sdc1 rw
nonsense
29 - x
"""


def mount(path):
    from pathlib import Path  # noqa: PLC0415

    return mount_of(Path(path), read_mounts(MOUNTS))


def test_a_path_lies_in_its_deepest_mount_and_in_the_last_one_there():
    assert str(mount("/var/spool/relay/x")) == "/dev/sdc1 (btrfs) at /var/spool/relay"
    assert str(mount("/var/spool/relayed")) == "/dev/sda1 (ext4) at /"
    assert str(mount("/srv/two words/x")) == "//nas/v (cifs) at /srv/two words"
    assert mount_of(mount("/").point, []) is None


@pytest.mark.parametrize(
    ("path", "create", "verdict", "words"),
    [
        ("/var/spool/relay", "true", "ok", "xfs"),
        ("/home/relay", "true", "ok", "ext4"),
        ("/home/relay", "false", "warn", "the root file system, though spool.create = false"),
        ("/var/spool/relay", "false", "ok", "btrfs"),
        ("/tmp/spool", "true", "warn", "gone with a restart"),
        ("/var/spool/relay/far", "true", "ok", "a network file system"),
        ("/var/spool/relay/own", "true", "warn", "nolock: locks do not reach other hosts"),
    ],
)
def test_a_mount_is_judged_by_what_it_is_and_what_was_meant(path, create, verdict, words):
    settings = load_settings(environ={"RELAY_SPOOL__CREATE": create}).spool

    [check] = judge_mount(mount(path), settings)

    assert (check.verdict, check.what) == (verdict, "spool mount")
    assert words.replace("xfs", "btrfs") in check.found
    assert check.fix or verdict == "ok"


# --- clocks and the uplink -------------------------------------------------------------------------

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("answer", "offset"),
    [
        (b"RTSP/1.0 200 OK\r\nCSeq: 1\r\nDate: Tue, 24 Nov 2026 12:00:30 GMT\r\n\r\n", 30),
        (b"RTSP/1.0 401 Unauthorized\r\ndate: Tue, 24 Nov 2026 12:59:00 +0100\r\n\r\n", -60),
        (b"RTSP/1.0 200 OK\r\nCSeq: 1\r\n\r\n", None),
        (b"RTSP/1.0 200 OK\r\nDate: 99999999999999\r\n\r\n", None),
        (b"HTTP/1.1 200 OK\r\nDate: Tue, 24 Nov 2026 12:00:30 GMT\r\n\r\n", None),
        (b"\xff\x00\r\n", None),
        (b"", None),
    ],
)
def test_a_cameras_clock_is_read_from_its_answer(answer, offset):
    assert read_offset(answer, NOW) == offset


def uplink(sent, uplink=None):
    environ = {} if uplink is None else {"RELAY_INGEST__SLOWEST_UPLINK": str(uplink)}
    seen = [Seen(str(number), (), bits) for number, bits in enumerate(sent)]
    return list(examine_uplink(load_settings(environ=environ), seen))


def test_the_bitrates_of_all_cameras_are_compared_with_the_uplink_that_is_set():
    [check] = uplink([4_000_000, 3_000_000], 500_000)
    assert check.verdict == "warn"
    assert (
        "2 cameras together send 7 Mbit/s, judged by ingest.slowest_uplink (4 Mbit/s), without" in check.found
    )

    [check] = uplink([1_000_000], 500_000)
    assert (check.verdict, check.fix) == ("ok", None)
    assert check.found.endswith("fits; an outage of an hour takes 20 min to make up for")

    assert uplink([3_600_000], 500_000)[0].verdict == "warn"  # nine hours for one


def test_an_uplink_that_nobody_stated_is_not_guessed():
    [check] = uplink([4_000_000, None])

    assert check.verdict == "ok"
    assert "1 camera sends 4 Mbit/s (and 1 that could not be measured)" in check.found
    assert "at least 625 kB" in check.fix


def test_nothing_measured_is_nothing_compared():
    assert uplink([None, None]) == []


# --- the frame -------------------------------------------------------------------------------------


def test_the_first_failure_decides_the_exit_code():
    checks = [
        Check("ok", "a", ""),
        Check("warn", "b", "", exit_code=66),
        Check("fail", "c", "", exit_code=77),
    ]

    assert exit_code([*checks, Check("fail", "d", "")]) == 77
    assert exit_code(checks[:2]) == 0


def test_what_hangs_is_left_behind_and_what_fails_fails_here():
    never = threading.Event()
    began = time.monotonic()
    with pytest.raises(HungError):
        within(0.05, never.wait)
    assert time.monotonic() - began < 5
    with pytest.raises(ZeroDivisionError):
        within(5.0, lambda: 1 / 0)
    assert within(5.0, lambda: "fine") == "fine"
    never.set()
