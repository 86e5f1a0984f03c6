"""Pulses: a small file for agent, worker and beat, rewritten every few seconds while its loop turns.

A supervisor on the same machine - `up`, or the health check of a container - sees from it that a process
lives but does nothing any more. The file holds seconds of the monotonic clock, which a stepped wall clock
does not move and all processes of a machine share. Where no file can be made, nobody is judged.
"""

import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

DIRECTORY_VARIABLE = "RELAY_PULSE_DIR"
PULSE_SECONDS = 5.0
# Far above a pulse and a broker that takes its time to refuse, far below what an operator would notice.
STUCK_SECONDS = 30.0
_NAME = re.compile(r"(?P<what>agent|worker|beat)-(?P<pid>[0-9]{1,10})@(?P<host>.+)\.pulse")


@dataclass(frozen=True)
class Pulse:
    """One process of this machine. `age` in seconds."""

    what: str
    pid: int
    age: float
    path: Path

    @property
    def is_stuck(self) -> bool:
        return self.age > STUCK_SECONDS


def pulse_directory(state: Path, environ: Mapping[str, str] = os.environ) -> Path:
    """Return where pulses are: a directory named in the environment, else the spool's `.state`."""
    named = environ.get(DIRECTORY_VARIABLE)
    return Path(named) if named else state


def pulse_path(directory: Path, what: str, pid: int) -> Path:
    """Return the file of one process of this machine."""
    return directory / f"{what}-{pid}@{socket.gethostname()}.pulse"


class PulseFile:
    """The pulse of this process. Where it cannot be written there is none."""

    def __init__(self, directory: Path, what: str) -> None:
        self._path = pulse_path(directory, what, os.getpid())
        with suppress(OSError):  # killed ones leave their files
            list(pulses(directory))

    def beat(self) -> None:
        """Show that we live. Always as many bytes, so that a full disk does not matter after the first."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        with suppress(OSError):
            descriptor = os.open(self._path, flags, 0o640)
            try:
                os.pwrite(descriptor, f"{time.monotonic():020.3f}\n".encode(), 0)
            finally:
                os.close(descriptor)

    def end(self) -> None:
        """Leave no file behind."""
        with suppress(OSError):
            self._path.unlink()


def age_of(path: Path) -> float | None:
    """Return the seconds since a pulse; None where there is none to judge by."""
    try:
        age = time.monotonic() - float(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return max(age, 0.0) if age > -1.0 else None  # later than now: from before this machine's last start


def pulses(directory: Path) -> Iterator[Pulse]:
    """Yield the pulses of the processes of this machine that are still there; remove those of others."""
    for path in sorted(directory.glob("*.pulse")):
        match = _NAME.fullmatch(path.name)
        if match is None or match["host"] != socket.gethostname():
            continue
        if not _exists(int(match["pid"])):
            with suppress(OSError):
                path.unlink()
            continue
        age = age_of(path)
        if age is not None:
            yield Pulse(match["what"], int(match["pid"]), age, path)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
