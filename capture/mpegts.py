"""What little of MPEG-TS is needed to salvage a segment whose writer died, and to find frames in one.

A transport stream is a row of 188-byte packets, each beginning with 0x47 (ISO/IEC 13818-1, 2.4.3).
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

PACKET = 188
SYNC = 0x47

_CHUNK = PACKET * 5000  # just below 1 MB
CLOCK_HZ = 90_000
WRAP = 1 << 33
_VIDEO_STREAM_IDS = range(0xE0, 0xF0)
_PMT_HEADER = 12
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
        pts = video_pts(packet)
        pid = int.from_bytes(packet[1:3], "big") & 0x1FFF
        if pts is None or video not in {None, pid}:
            continue
        if video is None:
            video, first = pid, pts
            last = earliest = latest = first
        # The nearest value that reads as this PTS: B-frames step back, a wrap does not.
        last += (pts - last + WRAP // 2) % WRAP - WRAP // 2
        earliest, latest = min(earliest, last), max(latest, last)
    if video is None:
        return None
    begin = earliest % WRAP
    return begin / CLOCK_HZ, (begin + latest - earliest) / CLOCK_HZ


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


def payload(packet: bytes) -> bytes:
    """Return what a whole packet carries; nothing where it is damaged, scrambled or carries nothing."""
    if packet[1] & 0x80 or packet[3] & 0xC0 or not packet[3] & 0x10:
        return b""
    return packet[4 + (1 + packet[4] if packet[3] & 0x20 else 0) :]


def is_random_access(packet: bytes) -> bool:
    """Tell whether the writer marked a packet as one where decoding can begin."""
    return bool(packet[3] & 0x20 and packet[4] and packet[5] & 0x40)


def video_pts(packet: bytes) -> int | None:
    """Return the PTS of the video frame that begins in this packet, in ticks of 90 kHz."""
    pes = payload(packet) if packet[1] & 0x40 else b""
    if len(pes) < _PES_HEADER or pes[:3] != b"\0\0\1" or pes[3] not in _VIDEO_STREAM_IDS:
        return None
    if not pes[7] & 0x80:
        return None
    high, middle, low = pes[9], int.from_bytes(pes[10:12], "big"), int.from_bytes(pes[12:14], "big")
    if not high & middle & low & 1:  # marker bits, always 1
        return None
    return (high >> 1 & 0x07) << 30 | (middle >> 1) << 15 | low >> 1


def seconds_between(earlier: int, later: int) -> float:
    """Return the seconds from one PTS to another, below 0 where it runs backwards; a wrap is undone."""
    return ((later - earlier + WRAP // 2) % WRAP - WRAP // 2) / CLOCK_HZ


def pes_content(pes: bytes) -> bytes:
    """Return what follows the header of a PES packet that begins here."""
    return pes[9 + pes[8] :] if len(pes) > _PES_HEADER else b""


def map_pid(section: bytes) -> int | None:
    """Return the PID of the first program's map from the payload of a PAT packet (2.4.4.3)."""
    entries = _section(section, table=0x00)
    for at in range(8, len(entries) - 3, 4):
        if entries[at : at + 2] != b"\0\0":
            return int.from_bytes(entries[at + 2 : at + 4], "big") & 0x1FFF
    return None


def streams(section: bytes) -> list[tuple[int, int]]:
    """Return the PID and stream type of each stream from the payload of a PMT packet (2.4.4.8)."""
    table = _section(section, table=0x02)
    if len(table) < _PMT_HEADER:
        return []
    at, found = _PMT_HEADER + (int.from_bytes(table[10:12], "big") & 0x0FFF), []
    while at + 5 <= len(table):
        found.append((int.from_bytes(table[at + 1 : at + 3], "big") & 0x1FFF, table[at]))
        at += 5 + (int.from_bytes(table[at + 3 : at + 5], "big") & 0x0FFF)
    return found


def _section(content: bytes, *, table: int) -> bytes:
    """Return a table that begins in this payload, without its checksum; ffmpeg's fit in one packet."""
    if not content or len(content) < content[0] + 12:
        return b""
    body = content[1 + content[0] :]
    if len(body) < 8 or body[0] != table:  # noqa: PLR2004 - the header of a table
        return b""
    return body[: max(0, 3 + (int.from_bytes(body[1:3], "big") & 0x0FFF) - 4)]
