"""Codec, size and key frames as parameter sets and slices say them, or lie."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.picture import H264, H265, Access, Picture, read_access
from tests.transport import H265_SPS, IDR, PPS, RECOVERY, SLICE, SPS, START, frame, key_frame

ODD_SPS = {
    # As x264 and x265 wrote them: fields, 4:4:4, scaling lists, 4:2:2, three temporal layers.
    "674d4028f403c0227ef0110000030001000003000a1f162ea0": (H264, 1920, 1080),
    "67f4000a919682cde3e7c044000003000400000300283c489a80": (H264, 162, 90),
    "677a0032bcb4014407afc4e022000003000200000300141e306540": (H264, 2592, 1944),
    "4201040160000003009000000300000300960000a001e020021c5965652b295952930bc05a020000030002000003000a10": (
        H265,
        3840,
        2160,
    ),
}
ROWS = [
    *((codec, unit, *size) for codec, sets in ((H264, SPS), (H265, H265_SPS)) for size, unit in sets.items()),
    *((codec, bytes.fromhex(unit), width, height) for unit, (codec, width, height) in ODD_SPS.items()),
]


@pytest.mark.parametrize(("codec", "unit", "width", "height"), ROWS)
def test_a_size_is_read_from_the_parameter_set(codec, unit, width, height):
    assert read_access(codec, START + unit).picture == Picture(codec, width, height)


@pytest.mark.parametrize(("codec", "unit"), [row[:2] for row in ROWS])
def test_a_set_cut_anywhere_gives_a_picture_with_or_without_a_size(codec, unit):
    for end in range(len(unit)):
        assert read_access(codec, START + unit[:end]).picture.codec == codec


@pytest.mark.parametrize("codec", [H264, H265])
def test_a_key_frame_is_one_and_another_is_not(codec):
    assert read_access(codec, key_frame(codec=codec)) == Access(
        is_key=True, picture=Picture(codec, 320, 180), has_slice=True, has_sets=True
    )
    other = read_access(codec, frame(codec))
    assert (other.is_key, other.has_slice, other.has_sets) == (False, True, False)


def test_a_refresh_point_is_as_good_as_a_key_frame():
    refresh = b"".join(START + unit for unit in (SPS[320, 180], PPS, RECOVERY, SLICE))
    assert read_access(H264, refresh).is_key
    assert not read_access(H264, refresh.replace(RECOVERY, b"\x06\x05\x01\x84\x80")).is_key


def test_of_two_sets_the_later_one_counts():
    """The first is what ffmpeg knows from the session description."""
    both = b"".join(START + unit for unit in (SPS[320, 180], PPS, SPS[1920, 1080], PPS, IDR))
    assert read_access(H264, both).picture == Picture(H264, 1920, 1080)


def golomb(*values):
    return "".join(f"{value + 1:b}".zfill(2 * (value + 1).bit_length() - 1) for value in values)


def h264_set(columns, rows):
    bits = (
        f"01100111{66:08b}"
        + "0" * 16
        + golomb(0, 0, 2, 1)
        + "0"
        + golomb(columns - 1, rows - 1)
        + "11"
        + "01"
    )
    bits = bits.ljust(-(-len(bits) // 8) * 8, "0")
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


@pytest.mark.parametrize(
    ("columns", "rows", "size"),
    [
        (20, 12, (320, 192)),
        (4095, 4095, (65520, 65520)),
        (4096, 1, (None, None)),
        (2**31, 2**31, (None, None)),
    ],
)
def test_a_set_may_say_any_size_and_an_absurd_one_is_none(columns, rows, size):
    picture = read_access(H264, START + h264_set(columns, rows)).picture
    assert (picture.width, picture.height) == size


@given(
    st.binary(max_size=300),
    st.sampled_from([H264, H265]),
    st.sampled_from([b"", b"\x67\x64", b"\x42\x01", b"\x06"]),
)
def test_no_bytes_make_it_raise(noise, codec, head):
    access = read_access(codec, START + head + noise)
    assert access.picture.width is None or 0 < access.picture.width <= 65535


@pytest.mark.parametrize(
    ("one", "other", "differs"),
    [
        (Picture(H264, 320, 180), Picture(H264, 320, 180), False),
        (Picture(H264, 320, 180), Picture(H264, 640, 360), True),
        (Picture(H264, 320, 180), Picture(H265, 320, 180), True),
        (Picture(H264, 320, 180), Picture(H264), False),  # a set that cannot be read proves nothing
        (Picture(H264), Picture(H265), True),
    ],
)
def test_pictures_differ_only_where_that_is_sure(one, other, differs):
    assert one.differs(other) is other.differs(one) is differs
