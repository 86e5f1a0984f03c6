"""What a video stream says about its pictures: key frames, parameter sets, codec and size.

Only the few fields that tell one picture format from another are read, from at most so many bytes, whatever
stands in them: a stream may lie, end in the middle, or be noise. H.264 is ITU-T H.264 (7.3), H.265 is ITU-T
H.265 (7.3); a start code is 00 00 01 in both (annex B).
"""

from dataclasses import dataclass
from functools import lru_cache

START_CODE = b"\0\0\1"
H264, H265 = "h264", "h265"

_LONGEST_SET = 512  # bytes of a sequence parameter set that are read; real ones have about 30
_LONGEST_GOLOMB = 32  # leading zero bits
_LARGEST_SIDE = 65535  # pixels
_MORE = 0xFF
_RECOVERY_POINT = 6  # the same number in both codecs
_MOST_SEI_MESSAGES = 32

_H264_IDR, _H264_SEI, _H264_SPS, _H264_PPS = 5, 6, 7, 8
_H264_SLICES = range(1, 6)
_H265_IRAP, _H265_SPS, _H265_PPS, _H265_SEI = range(16, 24), 33, 34, 39
_H265_SLICES = range(32)
# Profiles whose set has the chroma format and scaling lists (7.3.2.1.1).
_H264_HIGH = {100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135}


@dataclass(frozen=True, slots=True)
class Picture:
    """The format of a picture: codec, and pixels where they could be read."""

    codec: str
    width: int | None = None
    height: int | None = None

    def differs(self, other: "Picture") -> bool:
        """Tell whether both are surely not of one format; what could not be read differs from nothing."""
        if self.codec != other.codec:
            return True
        sizes = (self.width, self.height), (other.width, other.height)
        return None not in {self.width, other.width} and sizes[0] != sizes[1]

    def __str__(self) -> str:
        return self.codec if self.width is None else f"{self.codec} {self.width}x{self.height}"


@dataclass(frozen=True, slots=True)
class Access:
    """What begins a frame: can a decoder begin there, its picture, and whether slices and sets were seen."""

    is_key: bool
    picture: Picture
    has_slice: bool
    has_sets: bool


def read_access(codec: str, payload: bytes) -> Access:
    """Look into the beginning of a frame in annex B form; `payload` may be cut anywhere, or be noise."""
    units = [unit for unit in payload.split(START_CODE)[1:] if unit]
    if codec == H264:
        kinds = [unit[0] & 0x1F for unit in units]
        starts = {_H264_IDR}
        slices, sps, pps, sei, head = _H264_SLICES, _H264_SPS, _H264_PPS, _H264_SEI, 1
    else:
        kinds = [unit[0] >> 1 & 0x3F for unit in units]
        starts = set(_H265_IRAP)
        slices, sps, pps, sei, head = _H265_SLICES, _H265_SPS, _H265_PPS, _H265_SEI, 2
    # Of several sets the last counts: ffmpeg puts those of the session description before the camera's own.
    size = next(
        (_size(codec, u[:_LONGEST_SET]) for u, k in zip(units[::-1], kinds[::-1], strict=True) if k == sps),
        None,
    )
    recovers = any(k == sei and _recovers(unit[head:]) for unit, k in zip(units, kinds, strict=True))
    return Access(
        is_key=recovers or not starts.isdisjoint(kinds),
        picture=Picture(codec, *(size or (None, None))),
        has_slice=any(kind in slices for kind in kinds),
        has_sets={sps, pps} <= set(kinds),
    )


# A camera sends the same few bytes with each key frame.
@lru_cache(maxsize=256)
def _size(codec: str, unit: bytes) -> tuple[int, int] | None:
    bits = _Bits(unit)
    try:
        width, height = _h264_size(bits) if codec == H264 else _h265_size(bits)
    except _EndError:
        return None
    return (width, height) if 0 < width <= _LARGEST_SIDE and 0 < height <= _LARGEST_SIDE else None


def _recovers(messages: bytes) -> bool:
    """Tell whether there is a recovery point among SEI messages: decoding can begin there as well."""
    at = 0
    for _ in range(_MOST_SEI_MESSAGES):
        kind, at = _sei_number(messages, at)
        size, at = _sei_number(messages, at)
        if kind == _RECOVERY_POINT and at <= len(messages):
            return True
        at += size
        if at >= len(messages):
            return False
    return False


def _sei_number(data: bytes, at: int) -> tuple[int, int]:
    """Return a number written as a row of 255 and a rest, and where it ends."""
    total = 0
    while at < len(data):
        total += data[at]
        at += 1
        if data[at - 1] != _MORE:
            return total, at
    return total, at + 1


class _EndError(Exception):
    """The set ends before its fields do, or a number is longer than any can be."""


class _Bits:
    """Reads a parameter set bit by bit, without its emulation prevention bytes."""

    def __init__(self, unit: bytes) -> None:
        data = unit.replace(b"\0\0\3", b"\0\0")
        self._value = int.from_bytes(data, "big")
        self._left = len(data) * 8

    def take(self, count: int) -> int:
        """Return the next `count` bits as a number."""
        if count > self._left:
            raise _EndError
        self._left -= count
        return self._value >> self._left & ((1 << count) - 1)

    def golomb(self) -> int:
        """Return a number in Exp-Golomb code, ue(v)."""
        zeros = 0
        while not self.take(1):
            zeros += 1
            if zeros > _LONGEST_GOLOMB:
                raise _EndError
        return (1 << zeros) - 1 + self.take(zeros)

    def signed_golomb(self) -> int:
        """Return a number in signed Exp-Golomb code, se(v)."""
        value = self.golomb()
        return (value + 1) // 2 if value % 2 else -(value // 2)


def _h264_size(bits: _Bits) -> tuple[int, int]:
    bits.take(8)  # the unit's header
    profile = bits.take(8)
    bits.take(16)  # constraints, level
    bits.golomb()  # id
    chroma = _h264_chroma(bits) if profile in _H264_HIGH else 1
    bits.golomb()  # log2_max_frame_num
    _skip_order_count(bits)
    bits.golomb()  # max_num_ref_frames
    bits.take(1)
    columns, rows = bits.golomb() + 1, bits.golomb() + 1
    fields = 2 - bits.take(1)  # 2 where a picture may be made of two fields
    if fields == 2:  # noqa: PLR2004 - as above
        bits.take(1)
    bits.take(1)
    left, right, top, bottom = [bits.golomb() for _ in range(4)] if bits.take(1) else (0, 0, 0, 0)
    unit_x = 2 if chroma in {1, 2} else 1
    unit_y = (2 if chroma == 1 else 1) * fields
    return columns * 16 - unit_x * (left + right), rows * 16 * fields - unit_y * (top + bottom)


def _h264_chroma(bits: _Bits) -> int:
    chroma = bits.golomb()
    if chroma == 3:  # noqa: PLR2004 - 4:4:4
        bits.take(1)
    bits.golomb()
    bits.golomb()
    bits.take(1)
    if bits.take(1):
        for number in range(12 if chroma == 3 else 8):  # noqa: PLR2004 - 4:4:4
            if bits.take(1):
                _skip_scaling_list(bits, 16 if number < 6 else 64)  # noqa: PLR2004 - 4x4, then 8x8
    return chroma


def _skip_scaling_list(bits: _Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.signed_golomb()) % 256
        last = following or last


def _skip_order_count(bits: _Bits) -> None:
    kind = bits.golomb()
    if kind == 0:
        bits.golomb()
    elif kind == 1:
        bits.take(1)
        bits.golomb()
        bits.golomb()
        for _ in range(min(bits.golomb(), 255)):
            bits.golomb()


def _h265_size(bits: _Bits) -> tuple[int, int]:
    bits.take(16 + 4)  # the unit's header, the id of the video parameter set
    layers = bits.take(3)
    bits.take(1)
    _skip_profile(bits, layers)
    bits.golomb()  # id
    chroma = bits.golomb()
    if chroma == 3:  # noqa: PLR2004 - 4:4:4
        bits.take(1)
    width, height = bits.golomb(), bits.golomb()
    left, right, top, bottom = [bits.golomb() for _ in range(4)] if bits.take(1) else (0, 0, 0, 0)
    unit_x, unit_y = 2 if chroma in {1, 2} else 1, 2 if chroma == 1 else 1
    return width - unit_x * (left + right), height - unit_y * (top + bottom)


def _skip_profile(bits: _Bits, layers: int) -> None:
    """Skip profile, tier and level (7.3.3) of a stream with `layers` + 1 temporal layers."""
    bits.take(88 + 8)
    present = [(bits.take(1), bits.take(1)) for _ in range(layers)]
    if layers:
        bits.take(2 * (8 - layers))
    for has_profile, has_level in present:
        bits.take(88 * has_profile + 8 * has_level)
