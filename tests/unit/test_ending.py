"""What the end of an ffmpeg means."""

import signal

import pytest

from capture.ending import Ending, is_over
from capture.errors import RelayError, SourceError, SpoolFullError
from capture.ffmpeg import FailureKind
from capture.source import parse_source

FILE = parse_source("clip.mp4")
CAMERA = parse_source("rtsp://cam.example/live")
FULL = ["[error] av_interleaved_write_frame(): No space left on device"]
NO_VIDEO = ["[fatal] Stream map '' matches no streams."]


@pytest.mark.parametrize(
    ("ending", "segments", "expected"),
    [
        (Ending(0, []), 3, True),
        (Ending(1, []), 3, True),  # a damaged end; what came before counts
        (Ending(None, []), 0, False),  # it never started: no room for a process, no spool
        (Ending(1, FULL), 0, False),  # nothing of it is captured yet
        (Ending(1, FULL), 3, SpoolFullError),
        (Ending(-signal.SIGKILL, []), 3, RelayError),
        (Ending(-signal.SIGKILL, []), 0, RelayError),
        (Ending(0, []), 0, SourceError),
        (Ending(1, NO_VIDEO), 0, SourceError),
        (Ending(255, [], "no new frame"), 3, SourceError),
        (Ending(-signal.SIGKILL, [], "ffmpeg is frozen"), 3, SourceError),
    ],
)
def test_a_file_that_was_captured_in_part_is_never_called_done(ending, segments, expected):
    if isinstance(expected, bool):
        assert is_over(ending, FILE, segments=segments) is expected
    else:
        with pytest.raises(RelayError) as caught:
            is_over(ending, FILE, segments=segments)
        assert type(caught.value) is expected


@pytest.mark.parametrize(
    "ending",
    [Ending(0, []), Ending(1, FULL), Ending(-9, []), Ending(255, [], "no key frame"), Ending(None, [])],
)
def test_a_camera_is_never_over(ending):
    assert not is_over(ending, CAMERA, segments=3)


@pytest.mark.parametrize(
    ("ending", "cause"),
    [
        (Ending(-9, ["[tcp @ 0x5] [error] Connection refused"], "ffmpeg is frozen"), "ffmpeg is frozen"),
        (Ending(8, ["[tcp @ 0x5] [error] Connection refused"]), "nothing listens at host and port"),
        (Ending(0, []), "the source ended"),
        (Ending(-signal.SIGSEGV, []), "ffmpeg killed by SIGSEGV"),
        (Ending(None, []), "ffmpeg ended"),
    ],
)
def test_a_loss_has_the_nearest_cause(ending, cause):
    assert ending.cause == cause


def test_an_error_that_ffmpeg_did_not_name_shows_its_last_line():
    with pytest.raises(SourceError, match=r"something new"):
        is_over(Ending(1, ["[error] something new"]), FILE, segments=0)
    assert Ending(1, ["[error] something new"]).failure.kind is FailureKind.UNKNOWN
