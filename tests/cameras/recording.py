"""The product's own camera thread at work on a source, watched from outside: log, journal, files."""

import subprocess
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil
import structlog
from structlog.testing import capture_logs

from capture.camera import Camera, CameraPlan
from capture.ffmpeg import CaptureOptions, find_ffmpeg
from capture.journal import Event
from capture.segment import SegmentName, SessionName
from capture.session import Owed
from capture.source import parse_source
from capture.spool import Spool

DEADLINE = 60.0  # seconds for what takes a few on an idle machine
STOP_SECONDS = 20.0
BITS = 16  # of the number in each picture of an RTSP camera of the tests

Logged = MutableMapping[str, Any]


@contextmanager
def logs() -> Iterator[list[Logged]]:
    """Collect what is logged at every level; each entry has the monotonic seconds it came `at`."""
    with capture_logs(processors=[_stamp]) as entries:
        yield entries


def _stamp(_: structlog.typing.WrappedLogger, __: str, entry: Logged) -> Logged:
    entry["at"] = time.monotonic()
    return entry


@dataclass(frozen=True)
class Closed:
    """A segment that became owed, and when (monotonic seconds)."""

    at: float
    session: SessionName
    owed: Owed


@dataclass
class Recording:
    """A capture that runs from its making to its end as a context; `entries` are the logs of all of them."""

    folder: Path
    url: str
    entries: list[Logged]
    camera_id: str = "gate"
    segment_seconds: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)
    closed: list[Closed] = field(default_factory=list)
    sessions: list[tuple[SessionName, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.spool = Spool.open(self.folder, create=True)
        self.ffmpeg = find_ffmpeg().path
        self.camera = Camera(
            CameraPlan(
                self.camera_id,
                self.camera_id,
                parse_source(self.url),
                CaptureOptions(segment_seconds=self.segment_seconds, **self.options),
            ),
            spool=self.spool,
            ffmpeg=self.ffmpeg,
            on_owed=lambda session, owed: self.closed.append(Closed(time.monotonic(), session, owed)),
            on_session=lambda session, what: self.sessions.append((session, what)),
        )
        self.began = time.monotonic()
        self.camera.start()

    # --- what it does ---

    def logged(self, event: str, *, since: float = 0.0) -> list[Logged]:
        """Return its log entries of one name, from a moment on."""
        return [
            entry
            for entry in list(self.entries)
            if entry["event"] == event and entry.get("camera") == self.camera_id and entry["at"] >= since
        ]

    def gaps(self) -> list[dict[str, Any]]:
        """Return the gap lines of its journal."""
        entries = self.spool.journal.read(self.camera_id)
        return [dict(entry.fields) for entry in entries if entry.event is Event.GAP]

    def files(self) -> list[Path]:
        """Return the closed segments that are still there, in the order of their making."""
        return [self.spool.session_path(each.session) / str(each.owed.segment) for each in self.closed]

    def segments(self) -> list[SegmentName]:
        return [each.owed.segment for each in self.closed]

    def children(self) -> list[psutil.Process]:
        """Return the ffmpegs that write its segments at the moment."""
        return [child for child in psutil.Process().children(recursive=True) if self._is_own(child)]

    def _is_own(self, child: psutil.Process) -> bool:
        try:
            return any(str(self.folder) in word for word in child.cmdline())
        except psutil.Error:  # gone by now
            return False

    # --- waiting ---

    def wait_for(self, condition: Callable[[], Any], what: str, *, deadline: float = DEADLINE) -> Any:
        """Wait until the condition holds, and return what it returned."""
        end = time.monotonic() + deadline
        while not (result := condition()):
            assert self.camera.is_alive(), f"ended before: {what}\n{self.story()}"
            assert time.monotonic() < end, f"not within {deadline:g} s: {what}\n{self.story()}"
            time.sleep(0.02)
        return result

    def wait_segments(self, count: int, *, since: float = 0.0) -> float:
        """Wait until so many segments were closed after a moment; return when the last of these was."""

        def found() -> list[float]:
            return [each.at for each in self.closed if each.at >= since][count - 1 : count]

        return self.wait_for(found, f"{count} segments")[0]

    def wait_logged(self, event: str, *, since: float = 0.0, deadline: float = DEADLINE) -> Logged:
        """Wait for a log entry after a moment, and return the first one."""
        return self.wait_for(lambda: self.logged(event, since=since), event, deadline=deadline)[0]

    def story(self) -> str:
        """Say what happened so far, for a failed test."""
        return "\n".join(str(entry) for entry in self.entries if entry.get("camera") == self.camera_id)

    def new_session_or(self, segments: int, *, since: float) -> None:
        """Wait until a second session has two segments, or the first had so many more after a moment."""

        def is_told() -> bool:
            names = [each.session for each in self.closed]
            own = [name for name in names if name != names[0]]
            return len(own) > 1 or sum(each.at >= since for each in self.closed) >= segments

        self.wait_for(is_told, "a new session, or many more segments")

    def stop(self) -> None:
        self.camera.stop()
        assert self.camera.join(STOP_SECONDS), f"did not stop\n{self.story()}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


# --- what is in the pictures ---


def picture_numbers(ffmpeg: str, files: list[Path], size: tuple[int, int] = (320, 180)) -> list[int]:
    """Return the number in each picture of segments of an RTSP camera of the tests, decoded one by one."""
    return [number for file in files for number in _numbers(ffmpeg, file, *size)]


def _numbers(ffmpeg: str, file: Path, width: int, height: int) -> list[int]:
    # The form is told: a segment that a stop cut to a picture or two has too few packets to be guessed by.
    command = [ffmpeg, "-nostdin", "-v", "error", "-f", "mpegts", "-i", str(file), "-fps_mode", "passthrough"]
    command += ["-f", "rawvideo", "-pix_fmt", "gray", "-"]
    raw = subprocess.run(command, check=True, capture_output=True, timeout=60).stdout
    block = width // BITS
    rows = [raw[at : at + width] for at in range(0, len(raw), width * height)]
    return [sum((row[block * i + block // 2] > 128) << (BITS - 1 - i) for i in range(BITS)) for row in rows]
