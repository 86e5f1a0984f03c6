"""A small JPEG of what a camera shows, made from its segments when somebody looks.

The freshest pictures are in the segment that ffmpeg is writing: closed ones are gone within milliseconds.
The last whole key frame is cut out of it here, in Python, and one ffmpeg at a time, niced and limited, makes
a picture of that frame alone. Segments are only read, and nothing is read when nobody looks.
"""

import os
import resource
import stat
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from threading import Event
from typing import Final

import structlog

from capture import mpegts
from capture.process import Child, Output, Stream
from capture.segment import open_name
from capture.settings import child_environment
from capture.spool import OPEN, Spool

REACH: Final = mpegts.PACKET * 12_000  # bytes of a file that are looked at, from its end and its beginning
SIDE: Final = 480  # pixels; the longer side of the picture
LARGEST_JPEG: Final = 128 * 1024  # bytes
MOST_PICTURES: Final = 128
FRESH_SECONDS: Final = 2.0  # a picture younger than this is not made again
FFMPEG_SECONDS: Final = 5.0
_FFMPEG_MEMORY: Final = 1024**3  # bytes of address space
_MOST_PIXELS: Final = 40_000_000  # of a camera: 8K has 33 million
_STARTS: Final = frozenset(bytes([number]) for number in range(0xE0, 0xF0))  # stream ids of video
_SMALL: Final = f"'min({SIDE},iw)':'min({SIDE},ih)'"
_RANDOM_ACCESS: Final = 0x40

log = structlog.get_logger()


@dataclass(frozen=True)
class KeyFrame:
    """A key frame cut out of a transport stream, which plays by itself; its place in the file in bytes."""

    data: bytes
    offset: int


@dataclass(frozen=True)
class Picture:
    """A JPEG; what it shows, when that was, and when it was last looked for (both monotonic seconds)."""

    jpeg: bytes
    shows: tuple[str, str, int]
    taken_at: float
    looked_at: float


def last_key_frame(stream: bytes, header: bytes) -> KeyFrame | None:
    """Return the last key frame of which every packet is there; None where there is none. Pure.

    `stream` is whole packets, `header` the beginning of its file: its tables are put before the frame.
    """
    after: dict[int, int] = {}  # of each stream, where the frame begins that comes next in the file
    for at in range(len(stream) - mpegts.PACKET, -1, -mpegts.PACKET):
        packet = stream[at : at + mpegts.PACKET]
        if packet[0] != mpegts.SYNC:
            return None
        if not packet[1] & 0x40 or not _is_video_start(packet):
            continue
        pid = _pid(packet)
        if pid in after and packet[3] & 0x20 and packet[4] and packet[5] & _RANDOM_ACCESS:
            frame = _only(stream[at : after[pid]], pid)
            return KeyFrame(_tables(header) + frame, at)
        after[pid] = at
    return None


def _pid(packet: bytes) -> int:
    return int.from_bytes(packet[1:3], "big") & 0x1FFF


def _is_video_start(packet: bytes) -> bool:
    if not packet[3] & 0x10:
        return False
    payload = 4 + (1 + packet[4] if packet[3] & 0x20 else 0)
    return packet[payload : payload + 3] == b"\0\0\1" and packet[payload + 3 : payload + 4] in _STARTS


def _only(stream: bytes, pid: int) -> bytes:
    packets = (stream[at : at + mpegts.PACKET] for at in range(0, len(stream), mpegts.PACKET))
    return b"".join(packet for packet in packets if _pid(packet) == pid)


def _tables(header: bytes) -> bytes:
    """Return what stands before the first video of a file: the tables that say what is in it."""
    for at in range(0, len(header) - mpegts.PACKET + 1, mpegts.PACKET):
        packet = header[at : at + mpegts.PACKET]
        if packet[1] & 0x40 and _is_video_start(packet):
            return header[:at]
    return b""


def picture_command(ffmpeg: str, descriptor: int) -> list[str]:
    """Return the command that reads one frame from an open file and writes a JPEG to standard output."""
    return [
        *(ffmpeg, "-hide_banner", "-nostdin", "-nostats", "-loglevel", "error"),
        *("-threads", "1", "-max_pixels", str(_MOST_PIXELS)),
        *("-protocol_whitelist", "pipe", "-f", "mpegts", "-i", f"pipe:{descriptor}"),
        *("-map", "0:v:0", "-frames:v", "1", "-filter_threads", "1", "-threads", "1"),
        # Never larger than it is, and both sides bounded: what a camera says of its size is not trusted.
        *(
            "-vf",
            f"scale='min({SIDE},iw)':'min({SIDE},ih)':force_original_aspect_ratio=decrease,format=yuvj420p",
        ),
        *("-c:v", "mjpeg", "-q:v", "5", "-f", "mjpeg", "pipe:1"),
    ]


class Pictures:
    """The latest picture of each camera, made when asked for. For one thread, that outlives its calls."""

    def __init__(self, spool: Spool, ffmpeg: str, *, hidden: Collection[str] = ()) -> None:
        """`hidden` are environment variables that hold secrets, and that ffmpeg does not need."""
        self._spool = spool
        self._ffmpeg = ffmpeg
        self._hidden = hidden
        self._made: OrderedDict[str, Picture] = OrderedDict()
        self._closing = Event()
        self._rests_until = 0.0  # monotonic seconds
        self._unusable: dict[str, tuple[str, str, int]] = {}  # the frame no picture could be made of
        self._is_failing = False

    def known(self, camera: str) -> Picture | None:
        """Return the picture that is here already; for any thread."""
        return self._made.get(camera)

    def latest(self, camera: str) -> Picture | None:
        """Return the newest picture of a camera, made anew if there is a newer frame; None without any."""
        now = time.monotonic()
        before = self._made.get(camera)
        if before is not None and now - before.looked_at < FRESH_SECONDS:
            return before
        try:
            found = self._look(camera, before)
            self._is_failing = False
        except Exception:
            if not self._is_failing:
                log.exception("picture_failed", camera=camera)
            self._is_failing = True
            found = None
        if found is None:
            return before
        self._made[camera] = found
        self._made.move_to_end(camera)
        while len(self._made) > MOST_PICTURES:
            self._made.popitem(last=False)
        return found

    def close(self) -> None:
        """Have a picture that is being made given up."""
        self._closing.set()

    def _look(self, camera: str, before: Picture | None) -> Picture | None:
        for session, path in self._files(camera):
            try:
                frame, age = _read(path)
            except FileNotFoundError:  # closed, or delivered, meanwhile
                continue
            if frame is None:
                continue
            now = time.monotonic()
            shows = (session, path.name, frame.offset)
            if before is not None and before.shows == shows:
                return replace(before, looked_at=now)
            if shows == self._unusable.get(camera):
                continue
            if jpeg := self._make(frame):
                return Picture(jpeg, shows, now - age, now)
            self._unusable[camera] = shows
        return None

    def _files(self, camera: str) -> list[tuple[str, Path]]:
        """Return where pictures may be, the newest first: what is open, then what is owed."""
        sessions = self._spool.sessions(camera)[-1:]
        found = []
        for session in sessions:
            base = self._spool.session_path(session)
            numbers = self._spool.open_segments(session)
            found += [(str(session), base / OPEN / open_name(number)) for number in numbers[-1:]]
            found += [(str(session), base / str(owed)) for owed in self._spool.segments(session)[-1:]]
        return found

    def _make(self, frame: KeyFrame) -> bytes | None:
        # Half of one core at most, however many look at however many cameras: it rests as long as it worked.
        self._closing.wait(max(0.0, self._rests_until - time.monotonic()))
        begun = time.monotonic()
        try:
            return self._run(frame)
        finally:
            ended = time.monotonic()
            self._rests_until = ended + (ended - begun)

    def _run(self, frame: KeyFrame) -> bytes | None:
        descriptor = _as_file(frame.data)
        try:
            command = picture_command(self._ffmpeg, descriptor)
            with (
                Child(
                    command,
                    env=child_environment(self._hidden),
                    stdout=Stream.PIPE,
                    stderr=Stream.NULL,
                    pass_fds=(descriptor,),
                ) as child,
                Output(child) as output,
            ):
                _make_modest(child.pid)
                return self._collect(output)
        finally:
            os.close(descriptor)

    def _collect(self, output: Output) -> bytes | None:
        """Return what comes until the end; None if that is too much, too late, or nothing."""
        deadline = time.monotonic() + FFMPEG_SECONDS
        data = b""
        while not output.eof:
            left = deadline - time.monotonic()
            if left <= 0 or len(data) > LARGEST_JPEG or self._closing.is_set():
                return None
            data += b"".join(chunk for _, chunk in output.read(min(left, 0.2)))
        return data if data.startswith(b"\xff\xd8") and data.rstrip(b"\0").endswith(b"\xff\xd9") else None


def _read(path: Path) -> tuple[KeyFrame | None, float]:
    """Return the last key frame of a file, and its age in seconds as far as the file tells."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return None, 0.0
        size = mpegts.whole_packets(found.st_size)
        start = max(0, size - REACH)
        tail = os.pread(descriptor, size - start, start)
        header = os.pread(descriptor, mpegts.PACKET * 64, 0) if start else tail
        frame = last_key_frame(tail[: mpegts.whole_packets(len(tail))], header)
        if frame is not None:
            span = mpegts.time_span(BytesIO(tail[frame.offset :]))
            later = span[1] - span[0] if span else 0.0
            return replace(frame, offset=start + frame.offset), max(0.0, time.time() - found.st_mtime) + later
        if start == 0:
            return None, 0.0
        head = os.pread(descriptor, REACH, 0)  # key frames are far apart: there is one at the beginning
        return last_key_frame(head, head), max(0.0, time.time() - found.st_mtime)
    finally:
        os.close(descriptor)


def _as_file(data: bytes) -> int:
    """Return a descriptor of a nameless file with this content, at its beginning."""
    if sys.platform == "linux":
        descriptor = os.memfd_create("picture", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile(buffering=0) as file:
            descriptor = os.dup(file.fileno())
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _make_modest(pid: int) -> None:
    """Let everything else go first, and bound what a hostile stream can make ffmpeg take."""
    # Each for itself: a sandbox may forbid one of them.
    if sys.platform == "linux":
        with suppress(OSError):
            resource.prlimit(pid, resource.RLIMIT_AS, (_FFMPEG_MEMORY, _FFMPEG_MEMORY))
        with suppress(OSError):
            resource.prlimit(pid, resource.RLIMIT_CPU, (int(FFMPEG_SECONDS), int(FFMPEG_SECONDS)))
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, 19)
