"""The installed `relay-capture up` with test cameras, and what its spool and broker say."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

import psutil

import celeryconfig
from benchmarks.processes import Usage, usage_of_tree
from capture.broker import SOCKET_NAME, queue_lengths
from capture.errors import ConfigError
from capture.journal import Event
from capture.segment import SegmentName
from capture.spool import Spool

COMMAND = Path(sys.executable).with_name("relay-capture")
TOKEN = "benchmark"  # noqa: S105 - made up
QUEUES = tuple(queue.name for queue in celeryconfig.task_queues)
STOP_SECONDS = 30.0


def wait_until(
    condition: Callable[[], bool], *, seconds: float, what: str, check: Callable[[], None] = lambda: None
) -> None:
    """Wait for a condition; end the program with what was waited for when it does not come."""
    end = time.monotonic() + seconds
    while not condition():
        check()
        if time.monotonic() > end:
            sys.exit(f"waited {seconds:.0f} s in vain until {what}")
        time.sleep(0.05)


class Relay:
    """`up` in a directory of its own, with nothing of this machine's settings."""

    def __init__(
        self, folder: Path, cloud: str, *, cameras: int, source: str, settings: Mapping[str, str]
    ) -> None:
        self.folder = folder
        self.root = folder / "spool"
        self.cameras = [f"cam{number}" for number in range(cameras)]
        tables = (f'[cameras.{camera}]\nsource = "{source}"\n' for camera in self.cameras)
        (folder / "relay.toml").write_text("\n".join(tables), encoding="utf-8")
        (folder / "tmp").mkdir()
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "TMPDIR": str(folder / "tmp"),
            "RELAY_CLOUD": cloud,
            "RELAY_TOKEN": TOKEN,
            "RELAY_SPOOL": str(self.root),
            **settings,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._spool: Spool | None = None

    def start(self) -> None:
        with (self.folder / "relay.log").open("ab") as log:
            self._process = subprocess.Popen(
                [COMMAND, "up", "--config", self.folder / "relay.toml"], env=self._environment, stderr=log
            )

    @property
    def spool(self) -> Spool:
        if self._spool is None:
            self._spool = Spool.open(self.root)
        return self._spool

    @property
    def pid(self) -> int:
        assert self._process is not None  # noqa: S101 - for the type checker
        return self._process.pid

    def check(self) -> None:
        """End the program with the relay's log if the relay ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            sys.exit(f"up ended with {self._process.returncode}:\n{self.log_tail()}")

    def log_tail(self) -> str:
        return (self.folder / "relay.log").read_text(errors="replace")[-3000:]

    def usage(self) -> dict[int, Usage]:
        with suppress(psutil.NoSuchProcess):
            return usage_of_tree(psutil.Process(self.pid))
        return {}

    def messages(self) -> dict[str, int] | None:
        """Return how many messages wait in each queue and how many a worker has; None without a broker."""
        socket = self.broker_socket()
        if socket is not None:
            with suppress(ConfigError):
                return queue_lengths(f"redis+socket://{quote(str(socket))}", QUEUES)
        return None

    def broker_socket(self) -> Path | None:
        """Return where the embedded broker listens, if it does."""
        return next((self.folder / "tmp").glob(f"relay-capture-*/{SOCKET_NAME}"), None)

    def owed(self) -> Iterator[SegmentName]:
        """Yield what is owed now, of all cameras."""
        for session in self.spool.sessions():
            for name in self.spool.segment_names(session):
                if (segment := SegmentName.parse(name)) is not None:
                    yield segment

    def stop(self) -> int:
        """Stop it as an operator does; return its exit code."""
        assert self._process is not None  # noqa: S101 - for the type checker
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(STOP_SECONDS)

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def audit(self) -> tuple[int, str]:
        """Return the exit code of `audit` and what it says."""
        return audit(self.root)


def audit(spool: Path) -> tuple[int, str]:
    """Return the exit code of `relay-capture audit` and what it says."""
    done = subprocess.run([COMMAND, "audit", "--spool", spool], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@contextmanager
def running(relay: Relay) -> Iterator[Relay]:
    """Start a relay, wait until each camera has closed a segment, and never leave it behind."""
    relay.start()
    try:
        wait_until(
            (relay.root / ".relay-spool").exists, seconds=60, what="up made its spool", check=relay.check
        )
        wait_until(
            lambda: all(relay.spool.journal.last_segment(camera) for camera in relay.cameras),
            seconds=120,
            what="every camera closed a segment",
            check=relay.check,
        )
        yield relay
    finally:
        relay.kill()


def pile(messages: Mapping[str, int]) -> int:
    """Return how many messages there are in all, waiting or in a worker's hands."""
    return sum(messages.values())


def confirmations(spool: Spool) -> dict[tuple[str, str], tuple[float, float | None]]:
    """Return for each segment that was closed, by session and name: when, and when it was confirmed.

    In seconds since 1970, from the journal: `closed` is written right after the rename that makes a segment
    owed, `delivered` right before the file of a confirmed segment is removed.
    """
    found: dict[tuple[str, str], tuple[float, float | None]] = {}
    for camera in spool.journal.cameras():
        for entry in spool.journal.read(camera):
            key = str(entry.fields.get("session")), str(entry.fields.get("segment"))
            if entry.event in {Event.CLOSED, Event.RECOVERED}:
                found[key] = moment(entry.fields), None
            elif entry.event is Event.DELIVERED and key in found:
                found[key] = found[key][0], moment(entry.fields)
    return found


def moment(fields: Mapping[str, object]) -> float:
    """Return when a journal line was written, in seconds since 1970."""
    return datetime.fromisoformat(str(fields["t"])).timestamp()
