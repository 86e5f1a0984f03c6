"""What little of MPEG-TS is needed to salvage a segment whose writer died.

A transport stream is a row of 188-byte packets, each beginning with 0x47 (ISO/IEC 13818-1, 2.4.3).
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

PACKET = 188
SYNC = 0x47

_CHUNK = PACKET * 5000  # just below 1 MB
_CLOCK_HZ = 90_000
_WRAP = 1 << 33
_VIDEO_STREAM_IDS = range(0xE0, 0xF0)
_PES_HEADER = 14  # start code, stream id, length, two flag bytes, header length, PTS


def whole_packets(size: int) -> int:
    """Return `size` bytes cut to whole packets."""
    return size - size % PACKET


def trim(target: Path | int) -> int:
    """Cut a file (a path, or a descriptor open for reading and writing) to its good beginning.

    Good are whole packets up to the first without a sync byte. Returns the new size in bytes.
    """
    if not isinstance(target, int):
        with target.open("r+b", buffering=0) as file:
            return trim(file.fileno())
    size = _good_size(target)
    if size != os.fstat(target).st_size:
        os.ftruncate(target, size)
    return size


def time_span(file: BinaryIO) -> tuple[float, float] | None:
    """Return the earliest and the latest PTS of the first video stream, in seconds.

    None where no video PTS is found. The last frame ends one frame later than the latest PTS. Reads
    from the current position to the first packet without a sync byte, in bounded memory. The PTS
    wraps every 26.5 hours; a wrap inside the file is undone, so that latest - earliest is the time
    between them.
    """
    video: int | None = None
    first = last = earliest = latest = 0
    for packet in _packets(file):
        pts = _video_pts(packet)
        pid = int.from_bytes(packet[1:3], "big") & 0x1FFF
        if pts is None or video not in {None, pid}:
            continue
        if video is None:
            video, first = pid, pts
            last = earliest = latest = first
        # The nearest value that reads as this PTS: B-frames step back, a wrap does not.
        last += (pts - last + _WRAP // 2) % _WRAP - _WRAP // 2
        earliest, latest = min(earliest, last), max(latest, last)
    if video is None:
        return None
    begin = earliest % _WRAP
    return begin / _CLOCK_HZ, (begin + latest - earliest) / _CLOCK_HZ


def _good_size(descriptor: int) -> int:
    offset = 0
    while chunk := os.pread(descriptor, _CHUNK, offset):
        good = _good_length(chunk)
        offset += good
        if good < len(chunk):
            break
    return offset


def _good_length(chunk: bytes) -> int:
    whole = chunk[: whole_packets(len(chunk))]
    sync_bytes = whole[::PACKET]
    bad = next((i for i, byte in enumerate(sync_bytes) if byte != SYNC), len(sync_bytes))
    return bad * PACKET


def _packets(file: BinaryIO) -> Iterator[bytes]:
    while len(packet := file.read(PACKET)) == PACKET and packet[0] == SYNC:
        yield packet


def _video_pts(packet: bytes) -> int | None:
    """Return the PTS of the video frame that begins in this packet, in ticks of 90 kHz."""
    has_error, is_start = packet[1] & 0x80, packet[1] & 0x40
    is_scrambled, has_adaptation, has_payload = packet[3] & 0xC0, packet[3] & 0x20, packet[3] & 0x10
    if has_error or is_scrambled or not is_start or not has_payload:
        return None
    pes = packet[4 + (1 + packet[4] if has_adaptation else 0) :]
    if len(pes) < _PES_HEADER or pes[:3] != b"\0\0\1" or pes[3] not in _VIDEO_STREAM_IDS:
        return None
    if not pes[7] & 0x80:
        return None
    high, middle, low = pes[9], int.from_bytes(pes[10:12], "big"), int.from_bytes(pes[12:14], "big")
    if not high & middle & low & 1:  # marker bits, always 1
        return None
    return (high >> 1 & 0x07) << 30 | (middle >> 1) << 15 | low >> 1
