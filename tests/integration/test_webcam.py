"""Webcams: no test machine has one; a real ffmpeg is asked to open one that is not there."""

import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="its options are those of Linux")
NOT_THERE = 987


@pytest.mark.parametrize("options", [{}, {"fps": 15, "resolution": (640, 480), "audio": "aac"}])
def test_a_webcam_that_is_not_there_is_named_and_its_options_are_known_to_ffmpeg(record, options):
    recording = record(f"webcam:{NOT_THERE}", **options)
    assert recording.wait_logged("capture_interrupted")["reason"] == "there is no such file or device"
    said = "\n".join(recording.wait_logged("ffmpeg_said")["lines"])
    assert f"Cannot open video device /dev/video{NOT_THERE}" in said
    assert "ption" not in said  # "Option … not found", "Unrecognized option"
