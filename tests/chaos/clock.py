"""A wall clock that can be stepped under running processes, and only for them.

libfaketime, preloaded into everything that the relay starts, reads its offset from a file at each look at the
clock. Clocks that only run forward are left alone, as a real step leaves them alone, and so are the times
that the file system writes: with the clock an hour ahead, a file that was just written looks an hour old.
"""

import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

LIBRARY = "libfaketime.so.1"
PLACES = ("/usr/lib/*/faketime", "/usr/lib/faketime", "/usr/lib64/faketime", "/usr/local/lib/faketime")
HOUR = 3600.0
SECONDS_FROM_1904_TO_1970 = 2082844800
SLACK = 60.0  # seconds; the loaded machine may be slow, a step that is missed is off by an hour

# With clocks left alone libfaketime 0.9.10 fails in clock_nanosleep with an absolute time, which is how
# Python sleeps. Waiting on no file at all is the same sleep by another call.
SLEEP = """import select, time
def _sleep(seconds, _select=select.select):
    if seconds < 0:
        raise ValueError("sleep length must be non-negative")
    _select((), (), (), seconds)
time.sleep = _sleep
"""


class NoClockError(Exception):
    """The clock cannot be stepped here; says why."""


class SteppedClock:
    """The clock of the processes that get its environment."""

    def __init__(self, folder: Path) -> None:
        self._library = find_library()
        self._file = folder / "offset"
        self._site = folder / "site"
        self.offset = 0.0
        self._site.mkdir(parents=True)
        (self._site / "sitecustomize.py").write_text(SLEEP)
        self.step(0.0)

    @property
    def library(self) -> Path:
        return self._library

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to live by this clock, and to pass it on."""
        return {
            "LD_PRELOAD": str(self._library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
            "PYTHONPATH": str(self._site),
        }

    def step(self, offset: float) -> None:
        """Set the clock that many seconds from the true time."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{offset:+.0f}\n")
        new.replace(self._file)  # nobody may read half of it
        self.offset = offset

    def moves(self, pid: int) -> bool:
        """Tell whether a process has the library in it; one that is gone has no clock."""
        try:
            maps = Path(f"/proc/{pid}/maps").read_text()
        except OSError:
            return True
        return not maps or LIBRARY in maps

    def prove(self, ffmpeg: str, environment: Mapping[str, str]) -> None:
        """Raise NoClockError unless Python and this ffmpeg live by it, and durations stay true."""
        env = {**environment, **self.environment}
        self.step(HOUR)
        try:
            for name, seen in (("Python", _python(env)), ("ffmpeg", _ffmpeg(ffmpeg, env))):
                off = seen - time.time()
                if abs(off - HOUR) > SLACK:
                    raise NoClockError(f"{self._library} moves {name} by {off:.0f} s, not by {HOUR:.0f}")
        finally:
            self.step(0.0)


def find_library() -> Path:
    """Return where libfaketime is. Raises NoClockError when it is not there."""
    found = [path for place in PLACES for path in sorted(Path("/").glob(f"{place[1:]}/{LIBRARY}"))]
    if not found:
        raise NoClockError(f"there is no {LIBRARY}; on Debian: apt-get install faketime")
    return found[0]


def _python(env: Mapping[str, str]) -> float:
    code = (
        "import time; a = time.monotonic(); time.sleep(0.05); b = time.monotonic() - a\n"
        "assert 0.05 <= b < 30, b; print(time.time())"
    )
    return float(_output([sys.executable, "-c", code], env))


def _ffmpeg(ffmpeg: str, env: Mapping[str, str]) -> float:
    """Return the time that ffmpeg writes into the head of a film when it is told to write the time."""
    picture = ["-f", "lavfi", "-i", "color=size=16x16:rate=1", "-frames:v", "1", "-c:v", "mpeg4"]
    output = ["-metadata", "creation_time=now", "-movflags", "frag_keyframe+empty_moov", "-f", "mp4", "-"]
    film = _output([ffmpeg, "-nostdin", "-v", "error", *picture, *output], env)
    head = film.index(b"mvhd") + 4  # a byte of version, three of flags, then the time
    (since_1904,) = struct.unpack_from(">I", film, head + 4)
    return float(since_1904 - SECONDS_FROM_1904_TO_1970)


def _output(argv: list[str], env: Mapping[str, str]) -> bytes:
    done = subprocess.run(argv, env=dict(env), capture_output=True, check=False, timeout=60)
    if done.returncode:
        complaint = done.stderr[-300:].decode(errors="replace")
        raise NoClockError(f"{Path(argv[0]).name} does not run with {LIBRARY}: {complaint}")
    return done.stdout
