"""A transport stream made by hand, as ffmpeg's segment muxer writes one, and the pictures that go into it."""

from capture.mpegts import PACKET

MAP_PID, VIDEO_PID = 0x1000, 0x100
TYPES = {"h264": 0x1B, "h265": 0x24, "mpeg2": 0x02, "private": 0x06}
START = b"\0\0\1"
# What x264 and x265 wrote for pictures of these sizes.
SPS = {
    (320, 180): bytes.fromhex("6742c00bda05067e7c044000000300400000030283c50aa8"),
    (1920, 1080): bytes.fromhex("6742c028da01e0089f970110000003001000000300a0f1832a"),
}
H265_SPS = {
    (320, 180): bytes.fromhex(
        "42010101600000030090000003000003003ca00a080c1f3e595952930bc05a020000030002000003000a10"
    ),
    (1920, 1080): bytes.fromhex(
        "4201010408000003009d08000003000078b003c0801107c4e595952930bc05a020000003002000000300a1"
    ),
}
PPS, IDR, SLICE = b"\x68\xce\x3c\x80", b"\x65\x88" + b"\x5a" * 40, b"\x41\x9a" + b"\x5a" * 40
RECOVERY = b"\x06\x06\x01\x84\x80"  # an SEI message: decoding can begin here
H265_PPS, H265_IDR, H265_SLICE = b"\x44\x01\xc1\x72", b"\x26\x01" + b"\x5a" * 40, b"\x02\x01" + b"\x5a" * 40


def key_frame(size=(320, 180), *, codec="h264", filler=0):
    """Return a key frame in annex B form, `filler` bytes longer than it has to be."""
    if codec == "h265":
        return b"".join(START + unit for unit in (H265_SPS[size], H265_PPS, H265_IDR + b"\x5a" * filler))
    return b"".join(START + unit for unit in (SPS[size], PPS, IDR + b"\x5a" * filler))


def frame(codec="h264"):
    return START + (H265_SLICE if codec == "h265" else SLICE)


def _packet(pid, content, *, starts, flags=None):
    head = bytes([0x47, 0x40 * starts | pid >> 8, pid & 0xFF])
    stuffing = PACKET - 4 - len(content)
    if stuffing == 0 and flags is None:
        return head + b"\x10" + content
    if stuffing == 1 and flags is None:
        return head + b"\x30\x00" + content
    return head + b"\x30" + bytes([stuffing - 1, flags or 0]) + b"\xff" * (stuffing - 2) + content


def _section(body):
    return (b"\0" + body).ljust(PACKET - 4, b"\xff")


def tables(codec="h264"):
    """Return the two packets that say where the video is."""
    programs = b"\x00\xb0\x0d\x00\x01\xc1\x00\x00\x00\x01" + (0xE000 | MAP_PID).to_bytes(2, "big") + b"CRC!"
    streams = bytes([TYPES[codec]]) + (0xE000 | VIDEO_PID).to_bytes(2, "big") + b"\xf0\x00"
    table = b"\x02\xb0\x12\x00\x01\xc1\x00\x00\xe1\x00\xf0\x00" + streams + b"CRC!"
    return _packet(0, _section(programs), starts=True) + _packet(MAP_PID, _section(table), starts=True)


def _stamp(pts):
    high, middle, low = 0x21 | pts >> 29 & 0x0E, pts >> 14 & 0xFFFE | 1, pts << 1 & 0xFFFE | 1
    return bytes([high]) + middle.to_bytes(2, "big") + low.to_bytes(2, "big")


def packets(content, pts, *, is_key, pid=VIDEO_PID):
    """Return the packets of one frame; `pts` in ticks of 90 kHz."""
    pes = b"\0\0\1\xe0\0\0\x80\x80\x05" + _stamp(pts) + content
    flags, room = (0x40, PACKET - 6) if is_key else (None, PACKET - 4)
    first = _packet(pid, pes[:room], starts=True, flags=flags)
    rest = (pes[at : at + PACKET - 4] for at in range(room, len(pes), PACKET - 4))
    return first + b"".join(_packet(pid, piece, starts=False) for piece in rest)


def stream(*sizes, codec="h264", fps=10, first_pts=90_000):
    """Return a segment with a second of video of each size: a key frame, and others after it."""
    found, pts = [tables(codec)], first_pts
    for size in sizes:
        found.append(packets(key_frame(size, codec=codec), pts % (1 << 33), is_key=True))
        for _ in range(fps - 1):
            pts += 90_000 // fps
            found.append(packets(frame(codec), pts % (1 << 33), is_key=False))
        pts += 90_000 // fps
    return b"".join(found)
