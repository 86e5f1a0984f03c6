import io
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.mpegts import PACKET, time_span, trim, whole_packets

WRAP = 1 << 33


def pts_field(pts):
    return bytes(
        [
            0x21 | (pts >> 29 & 0x0E),
            *((pts >> 14 & 0xFFFE | 1).to_bytes(2, "big")),
            *((pts << 1 & 0xFFFE | 1).to_bytes(2, "big")),
        ]
    )


def frame(pts, *, pid=0x100, stream_id=0xE0, flags=0x40, control=0x10):
    """The packet in which a frame with this PTS (ticks of 90 kHz) begins."""
    head = bytes([0x47, flags | pid >> 8, pid & 0xFF, control])
    adaptation = b"\x07\x10\0\0\0\0\0\0" if control & 0x20 else b""
    pes = bytes([0, 0, 1, stream_id, 0, 0, 0x80, 0x80, 5]) + pts_field(pts)
    return (head + adaptation + pes).ljust(PACKET, b"\xff")


def span(*packets):
    return time_span(io.BytesIO(b"".join(packets)))


@pytest.mark.parametrize(("size", "whole"), [(0, 0), (187, 0), (188, 188), (564, 564), (700, 564)])
def test_a_size_is_cut_to_whole_packets(size, whole):
    assert whole_packets(size) == whole


@pytest.mark.parametrize(
    ("content", "size"),
    [
        (b"", 0),
        (b"G", 0),
        (frame(0) * 3, 3 * PACKET),
        (frame(0) * 3 + b"G" * 100, 3 * PACKET),
        (frame(0) * 2 + b"\0" * PACKET + frame(0), 2 * PACKET),
        (b"\0" * PACKET * 3, 0),
        (frame(0) * 6000 + b"Gx", 6000 * PACKET),
        (frame(0) * 5500 + b"\0" * PACKET * 600, 5500 * PACKET),
    ],
)
@pytest.mark.parametrize("by_descriptor", [False, True])
def test_a_file_is_cut_at_the_first_packet_that_is_not_whole_and_good(tmp_path, content, size, by_descriptor):
    path = tmp_path / "00000001.ts"
    path.write_bytes(content)
    if by_descriptor:
        descriptor = os.open(path, os.O_RDWR)
        assert trim(descriptor) == size
        os.close(descriptor)
    else:
        assert trim(path) == size
    assert path.read_bytes() == content[:size]


def test_a_good_file_is_not_touched(tmp_path):
    path = tmp_path / "00000001.ts"
    path.write_bytes(frame(0) * 3)
    os.utime(path, (1, 1))
    trim(path)
    assert path.stat().st_mtime == 1


@pytest.mark.parametrize(
    ("packets", "expected"),
    [
        ([], None),
        ([frame(90_000)], (1.0, 1.0)),
        ([frame(90_000), frame(180_000), frame(135_000)], (1.0, 2.0)),
        # A leading B-frame is shown before the key frame that it follows in the file.
        ([frame(90_000), frame(45_000), frame(180_000)], (0.5, 2.0)),
        ([frame(90_000, control=0x30)], (1.0, 1.0)),
        # The first video stream counts, and sound does not.
        ([frame(0, pid=0x101, stream_id=0xC0), frame(90_000), frame(900_000, pid=0x102)], (1, 1)),
        # No start of a frame, an error, scrambled, no payload.
        ([frame(90_000, flags=0)], None),
        ([frame(90_000, flags=0xC0)], None),
        ([frame(90_000, control=0x90)], None),
        ([frame(90_000, control=0x20)], None),
        # What follows a packet without its sync byte is not read.
        ([frame(90_000), b"\0" * PACKET, frame(180_000)], (1.0, 1.0)),
        ([frame(90_000), frame(180_000)[:100]], (1.0, 1.0)),
    ],
)
def test_the_span_reaches_from_the_earliest_to_the_latest_frame(packets, expected):
    assert span(*packets) == expected


def test_a_wrap_inside_the_file_is_undone():
    earliest, latest = span(frame(WRAP - 90_000), frame(0), frame(90_000))
    assert latest - earliest == pytest.approx(2.0)


def test_a_wrap_between_a_key_frame_and_its_leading_frame_is_undone():
    earliest, latest = span(frame(0), frame(WRAP - 3_000), frame(90_000))
    assert earliest > 0
    assert latest - earliest == pytest.approx(1.0 + 3_000 / 90_000)


@given(st.lists(st.integers(0, WRAP - 1), min_size=1, max_size=20))
def test_any_timestamps_give_a_span_that_does_not_run_backwards(values):
    earliest, latest = span(*map(frame, values))
    assert 0 <= earliest <= latest


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=400),
            st.binary(min_size=187, max_size=187).map(lambda tail: b"G" + tail),
            st.binary(min_size=183, max_size=183).map(lambda tail: b"G@\x01\x00\x30" + tail),
            st.integers(0, WRAP - 1).map(frame),
        ),
        max_size=12,
    )
)
def test_no_bytes_make_it_raise(pieces):
    content = b"".join(pieces)
    found = time_span(io.BytesIO(content))
    assert found is None or 0 <= found[0] <= found[1]


@given(st.binary(max_size=2000))
def test_trimming_any_bytes_leaves_a_good_beginning_of_them(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "trim.ts"
    path.write_bytes(content)
    size = trim(path)
    assert size == path.stat().st_size == whole_packets(size)
    assert content.startswith(path.read_bytes())
    assert trim(path) == size
