"""What a demo stages: its directory, its settings, and the outage."""

import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TextIO

from capture.broker import RuntimeDir
from capture.demo_result import FPS, SEGMENT_SECONDS
from capture.errors import ConfigError, UsageError
from capture.settings import Settings, load_settings
from capture.sink import Fault

CAMERA = "demo"
SIZE = "640x360"
_OUTAGE = re.compile(r"([0-9]{1,5}(?:\.[0-9]{1,3})?)\+([0-9]{1,3}(?:\.[0-9]{1,3})?)")


@dataclass(frozen=True)
class Outage:
    """When the cloud is out: seconds after the start of capture, and for how many."""

    start: float
    seconds: float

    @classmethod
    def of(cls, length: int) -> Self:
        """Return an outage a third into a run of `length` seconds: a fifth of it, 3 to 6 s."""
        return cls(round(length / 3, 1), max(3.0, min(6.0, length / 5)))

    @classmethod
    def parse(cls, text: str, *, length: int) -> Self:
        """Read ``START+SECONDS``; UsageError for one that could miss every segment."""
        match = _OUTAGE.fullmatch(text)
        found = cls(float(match[1]), float(match[2])) if match else None
        # A shorter one could fall between two segments, and one at the very end behind the last.
        if found is None or found.seconds <= SEGMENT_SECONDS or found.start + SEGMENT_SECONDS > length:
            raise UsageError(
                f"--outage: found {text!r}; expected START+SECONDS, like 10+6: of more than "
                f"{SEGMENT_SECONDS} s, and beginning at least {SEGMENT_SECONDS} s before the end ({length} s)"
            )
        return found

    def is_due(self, elapsed: float, *, works: bool, length: int) -> bool:
        """Tell whether it begins, so many seconds after the start of capture.

        It waits for the first upload (`works`): where a busy machine is slow to start, an outage before it
        would hit nothing. Not longer than leaves it a whole segment at the end.
        """
        latest = length - self.seconds - SEGMENT_SECONDS
        return elapsed >= self.start and (works or elapsed >= latest)

    def faults(self) -> tuple[Fault, Fault]:
        """Return what the ingest plays: errors all the time, and for the last third nobody at the door."""
        third = self.seconds / 3
        return (
            Fault("status", status=503, duration=self.seconds, method="any", path="any"),
            Fault("refuse", start=self.seconds - third, duration=third, method="any", path="any"),
        )


class Place:
    """The directory of a run. It goes with the run unless it was asked for, or saved."""

    def __init__(self, path: Path, *, kept: bool) -> None:
        self.path = path
        self.kept = kept
        self.log: TextIO = self.log_path.open("a", encoding="utf-8")

    @property
    def log_path(self) -> Path:
        return self.path / "demo.log"

    def save(self) -> Path:
        """Keep what is there; return where."""
        if not self.kept:
            self.path = self.path.rename(tempfile.mkdtemp(prefix="relay-demo-"))
            self.kept = True
        return self.path


@contextmanager
def open_place(keep: Path | None) -> Iterator[Place]:
    """Make the directory: `keep`, or a private one that is removed afterwards, also after a hard kill."""
    if keep is not None:
        place = Place(_empty(keep.absolute()), kept=True)
        with place.log:
            yield place
        return
    with RuntimeDir(Path(tempfile.gettempdir())) as temporary:
        path = temporary.path / "demo"
        path.mkdir()
        place = Place(path, kept=False)
        with place.log:
            yield place


def _empty(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
        found = sorted(os.listdir(path))
    except OSError as error:
        raise ConfigError(
            f"--keep: {path} cannot be used: {error.strerror}; expected a directory that this user may write"
        ) from None
    if found:
        raise UsageError(f"--keep: {path} holds {found[0]!r}; expected an empty directory, or none yet")
    return path


def demo_settings(place: Path, cloud: str, seconds: int) -> Settings:
    """Return the settings of a run: the defaults, whatever this machine's relay is set to.

    Only ffmpeg is taken from the environment. What is owed is looked for after one segment length instead
    of fifteen seconds: an outage of seconds should be caught up in seconds.
    """
    environ = {"RELAY_SPOOL__RECOVER_AFTER": str(SEGMENT_SECONDS)}
    if ffmpeg := os.environ.get("RELAY_FFMPEG"):
        environ["RELAY_FFMPEG"] = ffmpeg
    flags = {
        "--cloud": cloud,
        "--token": secrets.token_urlsafe(24),
        "--spool": str(place / "spool"),
        "--segment-duration": str(SEGMENT_SECONDS),
        "--drain-timeout": "5",
    }
    return load_settings(flags, environ=environ, source=f"test:{SIZE}@{FPS},{seconds}s", camera_id=CAMERA)
