"""Follows the video of a segment, as it grows or when it is whole: key frames, codec, size, what changes.

Only the packets in which a frame begins are looked at one by one, and only the beginnings of key frames are
read: a megabyte takes about a quarter of a millisecond, and nothing but those beginnings is kept. The digest
is taken from the same bytes on their way, so that a segment is read once.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import structlog

from capture import mpegts
from capture.mpegts import PACKET, SYNC
from capture.picture import H264, H265, Picture, read_access

NOT_CARRIED = "video that MPEG-TS cannot carry"
CHUNK = PACKET * 640  # bytes read at a time, by each of many cameras
MOST_AT_ONCE = CHUNK * 250  # bytes; a look at a file that grows fast must not hold up its reader
MOST_CHANGES = 16  # of the picture within one segment that are noted
_BEGINNING = 16 * 1024  # bytes of a key frame that are read at most
_FIRST_BYTES = 1024  # that are read first: mostly enough, for parameter sets come before the slices
_CODECS = {0x1B: H264, 0x24: H265, 0x01: "mpeg1", 0x02: "mpeg2", 0x10: "mpeg4", 0x42: "avs2", 0x33: "vvc"}

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Change:
    """Where a key frame begins whose picture differs from those before it: byte, PTS, and the new picture."""

    offset: int
    pts: int
    picture: Picture


@dataclass(frozen=True, slots=True)
class Digest:
    """The SHA-256 (hexadecimal) of the first `size` bytes of a file."""

    size: int
    sha256: str


@dataclass
class _Beginning:
    """A key frame whose first bytes are being gathered."""

    offset: int
    pts: int
    payload: bytearray
    enough: int = _FIRST_BYTES


class Scan:
    """What was found so far. Fed with a transport stream in order, in whatever pieces."""

    def __init__(self) -> None:
        self.codec: str | None = None
        self.picture: Picture | None = None  # of the last key frame
        self.first_picture: Picture | None = None
        self.changes: list[Change] = []
        self.frames = 0
        self.key_frames = 0
        self.has_sets = False  # parameter sets, where the codec has some
        self.starts_with_key: bool | None = None
        self.first_pts: int | None = None
        self.key_interval = 0.0  # seconds in the stream, the longest between two key frames
        self.tables = b""  # the packets that say what is where; a cut-off rest needs them in front
        self.size = 0  # bytes taken in whole packets
        self._last_key: int | None = None
        self._last_pts: int | None = None  # of the last frame that began
        self._map_pid: int | None = None
        self._video_pid: int | None = None
        self._rest = b""
        self._beginning: _Beginning | None = None
        self._is_broken = False
        self.has_failed = False

    def feed(self, data: bytes) -> None:
        """Take the next bytes. What follows a packet without its sync byte is not read."""
        data = self._rest + data
        whole = mpegts.whole_packets(len(data))
        chunk, self._rest = data[:whole], data[whole:]
        if self._is_broken or not chunk:
            self._rest = b"" if self._is_broken else self._rest
            return
        marks = chunk[::PACKET]
        if marks.count(SYNC) != len(marks):
            self._is_broken = True
            good = next(at for at, mark in enumerate(marks) if mark != SYNC)
            chunk = chunk[: good * PACKET]
        try:
            self._read(chunk)
        except Exception:
            log.exception("scan_failed", then="the segment is delivered all the same")
            self.has_failed = self._is_broken = True
        self.size += len(chunk)

    @property
    def seconds_to_last_key(self) -> float:
        """How far into the stream the last key frame is."""
        if self.first_pts is None or self._last_key is None:
            return 0.0
        return mpegts.seconds_between(self.first_pts, self._last_key)

    @property
    def seconds_since_key(self) -> float:
        """How far into the stream the last frame is after the last key frame."""
        if self._last_pts is None or self._last_key is None:
            return 0.0
        return max(0.0, mpegts.seconds_between(self._last_key, self._last_pts))

    def finish(self) -> None:
        """Judge the key frame that was still being gathered."""
        if self._beginning is not None and not self.has_failed:
            self._judge(self._beginning, is_cut=False)

    def unplayable(self) -> str | None:
        """Say why a whole segment cannot be played by itself; None if nothing speaks against it."""
        if self.has_failed:
            return None
        if self._video_pid is None or not self.frames:
            return NOT_CARRIED
        if self.codec in {H264, H265} and not self.has_sets:
            return "a segment without decodable video"
        if not self.starts_with_key:
            return "a segment without a key frame at its start"
        return None

    def _read(self, chunk: bytes) -> None:
        at = 0 if self._video_pid is not None else self._find_video(chunk)
        if self._video_pid is None:
            return
        starts = _Starts(chunk, self._video_pid)
        while at < len(chunk):
            if self._beginning is not None:
                at = self._gather(chunk, at, self._beginning)
                continue
            # Nearly all frames have not the mark of `is_random_access`: they are counted, and no more.
            at, passed = starts.following(at, only_marked=self.first_pts is not None)
            self.frames += passed
            if at < len(chunk):
                self._begin(chunk[at : at + PACKET], self.size + at)
                at += PACKET
        pts = None if starts.last is None else mpegts.video_pts(chunk[starts.last : starts.last + PACKET])
        self._last_pts = self._last_pts if pts is None else pts

    def _find_video(self, chunk: bytes) -> int:
        """Look for the tables; return where the packets after them begin."""
        for at in range(0, len(chunk), PACKET):
            packet = chunk[at : at + PACKET]
            pid = _pid(packet)
            if pid == 0 and self._map_pid is None:
                self._map_pid = mpegts.map_pid(mpegts.payload(packet))
                self.tables = packet
            elif pid == self._map_pid and self._map_pid:
                self._take_map(packet)
                if self._video_pid is not None:
                    return at + PACKET
        return len(chunk)

    def _take_map(self, packet: bytes) -> None:
        for pid, kind in mpegts.streams(mpegts.payload(packet)):
            if kind in _CODECS:
                self._video_pid, self.codec = pid, _CODECS[kind]
                self.tables += packet
                return

    def _begin(self, packet: bytes, offset: int) -> None:
        pts = mpegts.video_pts(packet)
        if pts is None:
            return
        self.frames += 1
        if self.first_pts is None:
            self.first_pts = pts
        if not mpegts.is_random_access(packet):
            self.starts_with_key = bool(self.starts_with_key)
            return
        content = bytearray(mpegts.pes_content(mpegts.payload(packet)))
        self._beginning = _Beginning(offset, pts, content)

    def _gather(self, chunk: bytes, at: int, beginning: _Beginning) -> int:
        """Add packets of the frame until it is long enough or the next one begins; return where that is."""
        while at < len(chunk) and len(beginning.payload) < beginning.enough:
            packet = chunk[at : at + PACKET]
            if _pid(packet) == self._video_pid:
                if packet[1] & 0x40:
                    break
                beginning.payload += mpegts.payload(packet)
            at += PACKET
        is_cut = len(beginning.payload) >= beginning.enough
        if at < len(chunk) or is_cut:
            self._judge(beginning, is_cut=is_cut)
        return at

    def _judge(self, beginning: _Beginning, *, is_cut: bool) -> None:
        """Decide whether a frame that the writer marked is a key frame, and whether its picture is new.

        One that is cut off before its first slice is read further, as far as any is.
        """
        self._beginning = None
        picture = Picture(self.codec or "")
        if self.codec in {H264, H265}:
            access = read_access(self.codec, bytes(beginning.payload))
            if is_cut and not access.has_slice and beginning.enough < _BEGINNING:
                self._beginning, beginning.enough = beginning, _BEGINNING
                return
            # Where much else comes before the slices, the mark is believed.
            is_key = access.is_key or not access.has_slice
            picture = access.picture
            self.has_sets = self.has_sets or access.has_sets
        else:
            is_key = True
        if self.starts_with_key is None:
            self.starts_with_key = is_key
        if is_key:
            self._take_key(beginning, picture)

    def _take_key(self, beginning: _Beginning, picture: Picture) -> None:
        self.key_frames += 1
        if self._last_key is not None:
            interval = mpegts.seconds_between(self._last_key, beginning.pts)
            self.key_interval = max(self.key_interval, interval)
        self._last_key = beginning.pts
        if self.first_picture is None or self.first_picture.width is None:
            self.first_picture = picture
        elif self.picture is not None and self.picture.differs(picture) and len(self.changes) < MOST_CHANGES:
            self.changes.append(Change(beginning.offset, beginning.pts, picture))
        if self.picture is None or picture.width is not None:
            self.picture = picture


class GrowingScan:
    """Scans a file that is being written, at each look what came since the last."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.scan = Scan()
        self._offset = 0
        self._sha256 = hashlib.sha256()

    @property
    def digest(self) -> Digest:
        """The digest of all whole packets that were read so far."""
        return Digest(self._offset, self._sha256.hexdigest())

    def look(self) -> Scan:
        """Read what is new, at most `MOST_AT_ONCE`; a file that is not there yet is empty. Raises OSError."""
        self._advance()
        return self.scan

    def conclude(self) -> Scan:
        """Read the rest of a file that will not grow any more. Raises OSError."""
        while self._advance():
            pass
        self.scan.finish()
        return self.scan

    def _advance(self) -> bool:
        """Tell whether there may be more."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        try:
            for _ in range(MOST_AT_ONCE // CHUNK):
                data = os.pread(descriptor, CHUNK, self._offset)
                whole = mpegts.whole_packets(len(data))
                if not whole:
                    return False
                data = data[:whole]  # the beginning of a packet is read again with its end
                self._offset += whole
                self._sha256.update(data)
                self.scan.feed(data)
        finally:
            os.close(descriptor)
        return True


def scan_file(path: Path) -> Scan:
    """Scan a whole file. Raises OSError."""
    return GrowingScan(path).conclude()


def _pid(packet: bytes) -> int:
    return int.from_bytes(packet[1:3], "big") & 0x1FFF


class _Starts:
    """Where packets stand in which a frame of this PID begins, in a row of whole packets.

    `last` is where the last one stands that was found, None before there was any.
    """

    def __init__(self, chunk: bytes, pid: int) -> None:
        self._chunk = chunk
        self._high, self._low = chunk[1::PACKET], chunk[2::PACKET]
        self._mark, self._pid = 0x40 | pid >> 8, pid & 0xFF
        self.last: int | None = None

    def following(self, at: int, *, only_marked: bool) -> tuple[int, int]:
        """Return where the first one stands at `at` or after it, and how many were passed over before it.

        With `only_marked` the first that the writer marked, as `mpegts.is_random_access` reads it. The end of
        the row when there is none.
        """
        chunk, low, pid, find, mark = self._chunk, self._low, self._pid, self._high.find, self._mark
        passed, packet = 0, find(mark, at // PACKET)
        while packet >= 0:
            if low[packet] == pid:
                self.last = at = packet * PACKET
                if not only_marked or (chunk[at + 5] & 0x40 and chunk[at + 3] & 0x20 and chunk[at + 4]):
                    return at, passed
                passed += 1
            packet = find(mark, packet + 1)
        return len(chunk), passed
