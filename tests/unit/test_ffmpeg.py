from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.errors import ConfigError, UsageError
from capture.ffmpeg import (
    CaptureOptions,
    FailureKind,
    Progress,
    SegmentClosed,
    StdoutParser,
    capture_command,
    explain,
    find_ffmpeg,
    parse_segment_line,
)
from capture.ffmpeg_binary import shortcoming
from capture.source import parse_source

TEN_SECONDS = CaptureOptions(segment_seconds=10)


def command(text, options=TEN_SECONDS, *, open_dir=Path("/spool/open"), sequence=1, on="linux"):
    return capture_command(
        "ffmpeg",
        parse_source(text),
        options,
        open_dir=open_dir,
        first_sequence=sequence,
        platform=on,
    )


def value(argv, flag):
    """The argument of a flag that must be there exactly once."""
    assert argv.count(flag) == 1, f"{flag} in {argv}"
    return argv[argv.index(flag) + 1]


def test_an_rtsp_camera_is_copied_and_its_url_is_in_the_script_alone():
    made = command("rtsp://admin:s3same@cam.lan/live", sequence=12)
    pts = "if(eq(PTS,NOPTS),if(eq(NEXT_PTS,NOPTS),DTS,NEXT_PTS-DURATION),PTS)"
    assert made.argv == [
        *("ffmpeg", "-hide_banner", "-nostdin"),
        *("-nostats", "-progress", "pipe:1", "-stats_period", "1"),
        *("-loglevel", "level+warning"),
        *("-f", "concat", "-safe", "0"),
        *("-protocol_whitelist", "pipe,rtp,srtp,udp,tcp,tls", "-i", "pipe:0"),
        *("-map", "0:v:0", "-c:v", "copy"),
        *("-bsf:v", f"dump_extra=freq=keyframe,setts=pts='{pts}':dts='min(DTS,{pts})'"),
        *("-muxdelay", "0", "-muxpreload", "0"),
        *("-f", "segment", "-segment_format", "mpegts"),
        *("-segment_time", "10", "-segment_time_delta", "0.5", "-segment_start_number", "12"),
        *("-segment_format_options", "flush_packets=1:mpegts_flags=+initial_discontinuity"),
        *("-segment_list", "pipe:1", "-segment_list_type", "csv"),
        "/spool/open/%08d.ts",
    ]
    assert made.script.decode().splitlines() == [
        "ffconcat version 1.0",
        "file 'rtsp://admin:s3same@cam.lan/live'",
        "option rtsp_transport tcp",
        "option timeout 10000000",
        "option allowed_media_types video",
    ]
    assert "s3same" not in repr(made)


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("http://cam/x.ts", b"file 'http://cam/x.ts'\noption rw_timeout 10000000\n"),
        ("/clips/a.mp4", b"file 'file:/clips/a.mp4'\noption fflags +genpts\n"),
        ("/clips/it's 100%\\ \xfc.mp4", b"file 'file:/clips/it'\\''s 100%\\ \xc3\xbc.mp4'\n"),
        ("/clips/\udcff.mp4", b"file 'file:/clips/\xff.mp4'\n"),
        ("rtsp://u:it's@cam.lan/x", b"file 'rtsp://u:it'\\''s@cam.lan/x'\n"),
    ],
)
def test_the_script_quotes_what_it_names(text, script):
    assert script in command(text).script


@pytest.mark.parametrize(
    ("text", "realtime", "is_paced"),
    [
        ("/clips/a.mp4", True, True),
        ("/clips/a.mp4", False, False),
        ("test:", True, True),
        ("test:", False, False),
        ("rtsp://cam/x", True, False),
        ("http://cam/x", True, False),
        ("webcam:0", True, False),
    ],
)
def test_only_a_source_without_a_pace_of_its_own_is_paced(text, realtime, is_paced):
    options = CaptureOptions(segment_seconds=10, realtime=realtime)
    assert ("-re" in command(text, options).argv) is is_paced


def test_the_test_pattern_is_encoded_quickly_and_needs_no_script():
    made = command("test:640x360@25,30s", CaptureOptions(segment_seconds=2))
    assert made.script == b""
    assert value(made.argv, "-i") == "testsrc2=size=640x360:rate=25:duration=30"
    assert value(made.argv, "-preset") == "ultrafast"
    assert value(made.argv, "-bf") == "0"
    assert value(made.argv, "-segment_time_delta") == "0.001"
    assert value(made.argv, "-force_key_frames") == (
        "expr:if(isnan(prev_forced_t),1,gt(floor((t+0.001)/2),floor((prev_forced_t+0.001)/2)))"
    )
    assert "-vf" not in made.argv


# No test has a real webcam, and none runs on macOS: these tables are all that is known of them, with
# `test_webcam`, which has the real ffmpeg take the Linux options and open a device that is not there.
@pytest.mark.parametrize(
    ("text", "on", "options", "expected"),
    [
        # Linux: an index or a path; the driver is asked for what is wanted; it brings no sound.
        ("webcam:0", "linux", {}, "-f v4l2 -i /dev/video0"),
        ("webcam:12", "linux", {}, "-f v4l2 -i /dev/video12"),
        ("/dev/video2", "linux", {}, "-f v4l2 -i /dev/video2"),
        ("webcam:/dev/video3", "linux", {}, "-f v4l2 -i /dev/video3"),
        ("webcam:/dev/v4l/by-id/x", "linux", {}, "-f v4l2 -i /dev/v4l/by-id/x"),
        ("webcam:0", "linux", {"fps": 15}, "-f v4l2 -framerate 15 -i /dev/video0"),
        ("webcam:0", "linux", {"fps": 29.97}, "-f v4l2 -framerate 29.97 -i /dev/video0"),
        ("webcam:0", "linux", {"resolution": (640, 480)}, "-f v4l2 -video_size 640x480 -i /dev/video0"),
        (
            "webcam:0",
            "linux",
            {"fps": 15, "resolution": (640, 480), "audio": "aac"},
            "-f v4l2 -framerate 15 -video_size 640x480 -i /dev/video0",
        ),
        # macOS: an index with a microphone or none; its cameras take 30, and the filters do the rest.
        ("webcam:0", "darwin", {}, "-f avfoundation -framerate 30 -i 0:none"),
        ("webcam:1", "darwin", {}, "-f avfoundation -framerate 30 -i 1:none"),
        ("/dev/video1", "darwin", {}, "-f avfoundation -framerate 30 -i 1:none"),
        ("webcam:0", "darwin", {"audio": "aac"}, "-f avfoundation -framerate 30 -i 0:default"),
        ("webcam:0", "darwin", {"fps": 15}, "-f avfoundation -framerate 30 -i 0:none"),
        (
            "webcam:0",
            "darwin",
            {"resolution": (1280, 720), "audio": "aac"},
            "-f avfoundation -framerate 30 -i 0:default",
        ),
    ],
)
def test_a_webcam_is_opened_as_its_system_does_it(text, on, options, expected):
    made = command(text, CaptureOptions(segment_seconds=2, **options), on=on)
    start, end = made.argv.index("-f"), made.argv.index("-map")
    assert " ".join(made.argv[start:end]) == expected
    # Never a camera's own stream as it is: many send MJPEG, which MPEG-TS cannot hold.
    assert value(made.argv, "-c:v") == "libx264"
    assert made.script == b""
    assert "-re" not in made.argv


@pytest.mark.parametrize("on", ["linux", "darwin"])
@pytest.mark.parametrize(
    ("options", "filters"),
    [
        ({"fps": 15, "resolution": (640, 480)}, "fps=15,scale=640:480,setsar=1"),
        ({"fps": 15}, "fps=15"),
        ({"resolution": (640, 480)}, "scale=640:480,setsar=1"),
    ],
)
def test_the_picture_of_a_webcam_is_what_was_wanted_whatever_the_driver_gave(on, options, filters):
    made = command("webcam:0", CaptureOptions(segment_seconds=2, **options), on=on)
    assert value(made.argv, "-vf") == filters


@pytest.mark.parametrize("on", ["linux", "darwin"])
@pytest.mark.parametrize(("audio", "maps"), [("off", ["0:v:0"]), ("aac", ["0:v:0", "0:a:0?"])])
def test_a_webcam_has_sound_when_asked_for_and_where_there_is_some(on, audio, maps):
    argv = command("webcam:0", CaptureOptions(segment_seconds=2, audio=audio), on=on).argv
    assert [argv[place + 1] for place, word in enumerate(argv) if word == "-map"] == maps
    assert ("-c:a" in argv) is (audio == "aac")


HTTP = "pipe,http,https,httpproxy,tcp,tls,crypto,data"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("http://cam.lan/video.ts", "http://cam.lan/video.ts"),
        ("http://cam.lan:8080/stream?channel=1", "http://cam.lan:8080/stream?channel=1"),
        ("https://[2001:db8::1]/x", "https://[2001:db8::1]/x"),
        ("http://admin:p@ss@cam.lan/x", "http://admin:p%40ss@cam.lan/x"),
        ("http://admin:it's@cam.lan/x", "http://admin:it'\\''s@cam.lan/x"),
        ("http://cam.lan/x?user=a&password=s3same", "http://cam.lan/x?user=a&password=s3same"),
    ],
)
def test_an_endless_http_stream_is_copied_at_its_own_pace_and_its_url_is_in_the_script_alone(text, line):
    made = command(text)
    start, end = made.argv.index("-f"), made.argv.index("-map")
    assert made.argv[start:end] == [
        *("-f", "concat", "-safe", "0", "-protocol_whitelist", HTTP, "-i", "pipe:0")
    ]
    assert value(made.argv, "-c:v") == "copy"
    assert not {"-re", "-bsf:v", "-vf"} & set(made.argv)
    # Given up after 10 s of silence; reconnecting is ours, so that no gap goes unseen.
    assert made.script.decode().splitlines() == [
        "ffconcat version 1.0",
        f"file '{line}'",
        "option rw_timeout 10000000",
    ]
    assert not [word for word in made.argv if "cam.lan" in word or "s3same" in word]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fps": 5}, "-vf fps=5 -fps_mode vfr -c:v libx264"),
        ({"resolution": (640, 360)}, "-vf scale=640:360,setsar=1 -fps_mode vfr -c:v libx264"),
        ({"audio": "copy"}, "-c:v copy -map 0:a:0? -c:a copy"),
        ({"audio": "aac"}, "-c:v copy -map 0:a:0? -c:a aac"),
    ],
)
def test_an_http_stream_is_transcoded_and_heard_when_asked_for(options, words):
    argv = command("http://cam.lan/x", CaptureOptions(segment_seconds=2, **options)).argv
    assert words in " ".join(argv)


@pytest.mark.parametrize(
    ("fps", "resolution", "filters"),
    [
        (None, (640, 360), "scale=640:360,setsar=1"),
        (29.97, None, "fps=29.97"),
        (10, (320, 240), "fps=10,scale=320:240,setsar=1"),
    ],
)
def test_another_rate_or_size_means_transcoding(fps, resolution, filters):
    options = CaptureOptions(segment_seconds=2.5, fps=fps, resolution=resolution)
    assert options.transcodes
    argv = command("rtsp://cam/x", options).argv
    assert value(argv, "-vf") == filters
    assert value(argv, "-c:v") == "libx264"
    assert value(argv, "-preset") == "veryfast"
    assert "-bsf:v" not in argv


@pytest.mark.parametrize(
    ("audio", "argv", "media"),
    [
        ("off", [], b"types video\n"),
        ("copy", ["-map", "0:a:0?", "-c:a", "copy"], b"types video+audio\n"),
        ("aac", ["-map", "0:a:0?", "-c:a", "aac"], b"types video+audio\n"),
    ],
)
def test_sound_is_taken_only_when_asked_for_and_never_required(audio, argv, media):
    made = command("rtsp://cam/x", CaptureOptions(segment_seconds=2, audio=audio))
    assert ("0:a:0?" in made.argv) is bool(argv)
    assert " ".join(argv) in " ".join(made.argv)
    assert media in made.script


def test_a_percent_sign_in_the_directory_is_no_pattern(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = command("test:", open_dir=Path("100%d"))
    assert made.argv[-1] == f"{tmp_path}/100%%d/%08d.ts"


@pytest.mark.parametrize(
    "wrong",
    [
        {"segment_seconds": 0},
        {"segment_seconds": 2, "fps": 0},
        {"segment_seconds": 2, "resolution": (641, 360)},
        {"segment_seconds": 2, "resolution": (0, 360)},
    ],
)
def test_options_that_no_encoder_takes_are_refused(wrong):
    with pytest.raises(UsageError, match="expected"):
        CaptureOptions(**wrong)


@pytest.mark.parametrize(
    ("line", "event"),
    [
        ("00000012.ts,24.000000,26.040000", SegmentClosed(12, 24.0, 26.04)),
        ("123456789.ts,0.000000,2.000000", SegmentClosed(123456789, 0.0, 2.0)),
        ("12.ts,0.0,2.0", None),
        ("00000012.ts,N/A,2.0", None),
        ("00000012.ts,nan,2.0", None),
        ("00000012.ts,0.0", None),
        ("00000012.ts,0.0,1.0,2.0", None),
        ("../00000012.ts,0.0,1.0", None),
        ("frame=12", None),
        ("", None),
    ],
)
def test_a_list_line_is_read_and_nothing_else_is(line, event):
    assert parse_segment_line(line) == event


# As ffmpeg 9.0.2 writes it.
STDOUT = b"""\
frame=39
fps=38.99
stream_0_0_q=-1.0
bitrate=N/A
total_size=N/A
out_time_us=1503222
out_time_ms=1503222
out_time=00:00:01.503222
dup_frames=2
drop_frames=1
speed= 1.5x
progress=continue
00000000.ts,0.000000,2.080000
frame=139
out_time_us=N/A
speed=N/A
progress=end
"""
EVENTS = [
    Progress(39, out_time=1.503222),
    SegmentClosed(0, 0.0, 2.08),
    Progress(139, final=True),
]


@given(st.lists(st.integers(0, len(STDOUT)), max_size=8).map(sorted))
def test_output_gives_the_same_events_in_whatever_pieces_it_arrives(cuts):
    parser = StdoutParser()
    pieces = [STDOUT[a:b] for a, b in zip([0, *cuts], [*cuts, len(STDOUT)], strict=True)]
    assert [event for piece in pieces for event in parser.feed(piece)] == EVENTS


def test_a_windows_line_end_is_no_trouble():
    assert StdoutParser().feed(STDOUT.replace(b"\n", b"\r\n")) == EVENTS


def test_a_huge_line_is_thrown_away_as_it_arrives():
    parser = StdoutParser()
    for _ in range(100):
        assert parser.feed(b"x" * 100_000) == []
    assert len(parser._rest) <= 1024
    assert parser.feed(b"\n00000001.ts,0.0,2.0\n") == [SegmentClosed(1, 0.0, 2.0)]


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_garbage_is_no_event_and_what_follows_it_is(pieces):
    parser = StdoutParser()
    for piece in pieces:
        parser.feed(piece)
    assert SegmentClosed(1, 0.0, 2.0) in parser.feed(b"\n00000001.ts,0.0,2.0\n")


OPENING = "[in#0 @ 0x5] [error] Error opening input: "


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        # As ffmpeg 9.0.2 wrote them.
        (
            "[tcp @ 0x5] [error] Connection to tcp://127.0.0.1:9 failed: Connection refused",
            FailureKind.CONNECTION_REFUSED,
        ),
        (
            "[tcp @ 0x5] [error] Failed to resolve hostname cam.invalid: Name or service not known",
            FailureKind.HOST_UNKNOWN,
        ),
        (
            OPENING + "Server returned 401 Unauthorized (authorization failed)",
            FailureKind.UNAUTHORIZED,
        ),
        (
            OPENING + "Server returned 403 Forbidden (access denied)",
            FailureKind.FORBIDDEN,
        ),
        (
            OPENING + "Server returned 404 Not Found",
            FailureKind.NOT_FOUND,
        ),
        (
            OPENING + "Server returned 5XX Server Error reply",
            FailureKind.SERVER_ERROR,
        ),
        (
            OPENING + "Server returned 400 Bad Request",
            FailureKind.SERVER_ERROR,
        ),
        (
            "[in#0/concat @ 0x5] [error] Error during demuxing: Connection timed out",
            FailureKind.TIMED_OUT,
        ),
        (
            "[in#0/concat @ 0x5] [error] Error during demuxing: Input/output error",
            FailureKind.DISCONNECTED,
        ),
        (
            "[tls @ 0x5] [error] error:0A000086:SSL routines::certificate verify failed",
            FailureKind.TLS,
        ),
        (
            "[tls @ 0x5] [error] error:0A00010B:SSL routines::wrong version number",
            FailureKind.TLS,
        ),
        (
            OPENING + "No such file or directory",
            FailureKind.NO_SUCH_FILE,
        ),
        (
            "[in#0 @ 0x5] [error] Cannot open video device /dev/video9: No such file or directory",
            FailureKind.NO_SUCH_FILE,
        ),
        (OPENING + "Is a directory", FailureKind.NO_SUCH_FILE),
        (OPENING + "Permission denied", FailureKind.PERMISSION),
        (
            OPENING + "Invalid data found when processing input",
            FailureKind.INVALID_DATA,
        ),
        ("[fatal] Stream map '' matches no streams.", FailureKind.NO_VIDEO),
        (
            "[mpegts @ 0x5] [error] first pts and dts value must be set",
            FailureKind.NO_TIMESTAMPS,
        ),
        (
            "[out#0/segment @ 0x5] [error] Task finished, code: -28 (No space left on device)",
            FailureKind.DISK_FULL,
        ),
        ("[segment @ 0x5] [error] Failed to open segment '/gone/0.ts'", FailureKind.OUTPUT),
        ("[error] something new", FailureKind.UNKNOWN),
        ("[in#0 @ 0x5] [error] Impossible to open 'file:/permission denied'", FailureKind.UNKNOWN),
    ],
)
def test_a_failure_is_named_by_what_ffmpeg_wrote(line, kind):
    failure = explain(["[warning] something before it", line, "[fatal] Error opening input files"])
    assert failure.kind is kind
    assert failure.cause


def test_the_particular_cause_counts_and_not_what_followed_from_it():
    tail = [
        "[tcp @ 0x5] [error] Failed to resolve hostname cam.invalid: Name or service not known",
        "[in#0 @ 0x55] [error] Error opening input: Input/output error",
    ]
    assert explain(tail).kind is FailureKind.HOST_UNKNOWN
    assert explain([]).kind is FailureKind.UNKNOWN


FORMATS = """\
 D   concat          Virtual concatenation script
 D d lavfi           Libavfilter virtual input device
 DE  mpegts          MPEG-TS (MPEG-2 Transport Stream)
 DE  rtsp            RTSP output
  E  segment         segment
  E  stream_segment,ssegment streaming segment muxer
"""
CONFIGURATION = " Copyright (c) 2000-2026\nconfiguration: --enable-gpl --enable-libx264\n"


@pytest.mark.parametrize(
    ("version", "problem"),
    [
        ("ffmpeg version 6.0", None),
        ("ffmpeg version n9.0.2-17-g2a571b6068-20260930", None),
        ("ffmpeg version 6.1.1-3ubuntu5", None),
        ("ffmpeg version 7-x", None),
        ("ffmpeg version N-109468-gd39b34123d", None),
        ("ffmpeg version git-2026-01-01-abcdef", None),
        ("ffmpeg version 2026-01-01-git-abcdef", None),
        ("ffmpeg version 5.1.6-0+deb12u1", "5.1.6"),
        ("ffmpeg version 4.4.2-0ubuntu0.22.04.1", "4.4.2"),
        ("ffmpeg version unknown", "unknown"),
        ("avconv version 12", "no ffmpeg"),
    ],
)
def test_a_version_is_good_from_six_on_or_from_git(version, problem):
    found = shortcoming(version + CONFIGURATION, FORMATS)
    assert found is None if problem is None else problem in found


@pytest.mark.parametrize("lost", ["concat", "rtsp", "segment", "mpegts"])
def test_an_ffmpeg_without_a_needed_format_is_not_good_enough(lost):
    formats = "".join(line for line in FORMATS.splitlines(keepends=True) if line.split()[1] != lost)
    assert f"the {lost}" in shortcoming("ffmpeg version 7.1" + CONFIGURATION, formats)


def test_an_ffmpeg_without_libx264_is_not_good_enough():
    assert "libx264" in shortcoming("ffmpeg version 7.1 configuration: --enable-gpl", FORMATS)


def test_a_setting_that_names_no_program_is_an_error_with_advice(tmp_path):
    with pytest.raises(ConfigError, match="RELAY_FFMPEG"):
        find_ffmpeg(str(tmp_path / "ffmpeg"))
