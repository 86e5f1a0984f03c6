"""The ingest as a process of its own: `relay-capture sink`, and what it wrote down."""

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.relay import COMMAND, TOKEN, wait_until

_URL = re.compile(r"listens on http://127\.0\.0\.1:([0-9]+)")


@dataclass(frozen=True)
class Arrival:
    """One segment that was stored; `at` in seconds since 1970."""

    camera: str
    session: str
    sequence: int
    bytes: int
    at: float


class Ingest:
    """The directory and the port of a sink that runs elsewhere."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.port = port
        self._read = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def arrivals(self) -> list[Arrival]:
        """Return what was stored since the last call, in the order it came."""
        with (self.directory / "receipts.jsonl").open("rb") as file:
            file.seek(self._read)
            lines = file.read()
        whole = lines[: lines.rfind(b"\n") + 1]
        self._read += len(whole)
        return [_arrival(line) for line in whole.splitlines()]

    def forget_bodies(self) -> None:
        """Remove the stored segments, whose digests were checked when they came: they fill the disk."""
        for path in self.directory.glob("[!.]*/*/*.ts"):
            path.unlink()


def _arrival(line: bytes) -> Arrival:
    fields = json.loads(line)
    return Arrival(
        fields["camera"], fields["session"], int(fields["sequence"]), fields["bytes"], fields["received_at"]
    )


@contextmanager
def ingest_process(folder: Path) -> Iterator[Ingest]:
    """Run a sink on a free port."""
    directory, log = folder / "ingest", folder / "ingest.log"
    command = [COMMAND, "sink", "--port", "0", "--dir", directory, "--token", TOKEN]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file)
    try:
        wait_until(lambda: _URL.search(log.read_text()) is not None, seconds=30, what="the ingest listens")
        match = _URL.search(log.read_text())
        assert match is not None  # noqa: S101 - just waited for
        yield Ingest(directory, int(match[1]))
    finally:
        process.terminate()
        process.wait(15)
