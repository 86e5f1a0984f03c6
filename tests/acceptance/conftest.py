"""The installed command as a child, the ingest it talks to, the spool it writes, and a clip to send."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import psutil
import pytest

from capture.sink import Receipt, Sink, SinkEvent

COMMAND = Path(sys.executable).with_name("relay-capture")
MARK = "ACCEPTANCE_RUN"  # in the environment of everything that a test starts, however it is orphaned
TOKEN = "made-up-token"
DEADLINE = 30.0  # seconds for what takes a few on an idle machine
GONE_WITHIN = 5.0  # seconds for all processes to follow the one that was killed
TAIL = 4000  # characters


class Relay:
    """A running `relay-capture`, its standard error in a file."""

    def __init__(self, arguments: list[str], *, env: Mapping[str, str], log: Path):
        self.mark = uuid.uuid4().hex
        self.runtime = Path(env["XDG_RUNTIME_DIR"])  # where `up` makes its private directory
        self._log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [str(COMMAND), *arguments],
                env={**env, MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=log.parent,
                start_new_session=True,
            )
        self.pid = self.process.pid
        self.began = time.monotonic()

    @property
    def log(self) -> str:
        """All that it said, on both outputs."""
        return self._log.read_text("utf-8", "replace")

    @property
    def seconds(self) -> float:
        """How long it has been running."""
        return time.monotonic() - self.began

    def poll(self) -> int | None:
        return self.process.poll()

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def processes(self) -> list[psutil.Process]:
        """All that runs because of it, itself among them, whoever the parent is by now."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            if process.environ().get(MARK) == self.mark:
                return True
            # Valkey writes its title over its environment, and the title names its socket.
            return f"{self.runtime}/" in " ".join(process.cmdline())
        except (psutil.Error, OSError):  # gone, a zombie, or another user's
            return False

    def descendants(self) -> list[psutil.Process]:
        return [process for process in self.processes() if process.pid != self.pid]

    def wait_for(self, condition: Callable[[], Any], what: str, *, deadline: float = DEADLINE) -> Any:
        """Wait until the condition holds and return it; fail early when the command has ended."""
        end = time.monotonic() + deadline
        while True:
            ended = self.poll()
            if result := condition():
                return result
            if ended is not None:
                pytest.fail(f"ended with {ended} before: {what}\n{self.tail()}")
            if time.monotonic() > end:
                pytest.fail(f"not within {deadline:g} s: {what}\n{self.tail()}")
            time.sleep(0.02)

    def exit_code(self, *, deadline: float = DEADLINE) -> int:
        """Wait for its end."""
        try:
            return self.process.wait(deadline)
        except subprocess.TimeoutExpired:
            return pytest.fail(f"still running after another {deadline:g} s\n{self.tail()}")

    def tail(self) -> str:
        return f"--- the end of {self._log} ---\n{self.log[-TAIL:]}"

    def close(self) -> str | None:
        """Kill what still runs; say who did not follow the command to its end."""
        self.process.kill()
        self.process.wait()
        end = time.monotonic() + GONE_WITHIN
        while (left := self.processes()) and time.monotonic() < end:
            time.sleep(0.02)
        stayed = []
        for process in left:
            try:
                stayed.append(f"{process.pid} {' '.join(process.cmdline())[:200]}")
                process.kill()
            except psutil.NoSuchProcess:
                continue
        return f"left behind by {self.pid}: {stayed}\n{self.tail()}" if stayed else None


@dataclass(frozen=True)
class SpoolFiles:
    """A spool as its files show it, read without the code under test."""

    path: Path

    def sessions(self) -> list[Path]:
        return sorted(self.path.glob("relay-segments-*"))

    def owed(self) -> list[Path]:
        return sorted(self.path.glob("relay-segments-*/*.ts"))

    def open(self) -> list[Path]:
        return sorted(self.path.glob("relay-segments-*/open/*"))

    def rejected(self) -> list[Path]:
        return sorted(self.path.glob("relay-segments-*/rejected/*.ts"))

    def refused(self) -> list[Path]:
        return sorted(self.path.glob("relay-segments-*/refused.json"))

    def journal(self, event: str | None = None) -> list[dict[str, Any]]:
        files = sorted(self.path.glob("journal/*/*.jsonl"))
        lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        return [line for line in lines if event in (None, line["event"])]


@dataclass(frozen=True)
class Video:
    """What a decoder makes of some bytes: a hash for each frame in order, and its complaints."""

    frames: list[str]
    complaints: str


@dataclass(frozen=True)
class Clip:
    path: Path
    frames: list[str]


@pytest.fixture(scope="session")
def ffmpeg() -> str:
    return imageio_ffmpeg.get_ffmpeg_exe()


@pytest.fixture(scope="session")
def decode(ffmpeg) -> Callable[..., Video]:
    """Decodes files, one after the other, as if they were one."""
    reading = ["-nostdin", "-v", "warning", "-i"]
    hashing = ["-map", "0:v", "-fps_mode", "passthrough", "-f", "framemd5", "-"]

    def run(*paths: Path) -> Video:
        done = subprocess.run(
            [ffmpeg, *reading, f"concat:{'|'.join(map(str, paths))}", *hashing],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        lines = [line for line in done.stdout.splitlines() if not line.startswith("#")]
        return Video([line.rpartition(",")[2].strip() for line in lines], done.stderr)

    return run


@pytest.fixture(scope="session")
def clip(ffmpeg, decode, tmp_path_factory) -> Clip:
    """Twelve seconds with B-frames and a key frame each second; no two frames are the same."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    pattern = "testsrc2=size=640x360:rate=25:duration=12"
    options = ["-c:v", "libx264", "-preset", "veryfast", "-bf", "2", "-g", "25", "-pix_fmt", "yuv420p"]
    command = [ffmpeg, "-nostdin", "-v", "error", "-f", "lavfi", "-i", pattern, *options, path]
    subprocess.run(command, check=True, timeout=60)
    frames = decode(path).frames
    assert len(set(frames)) == 300
    return Clip(path, frames)


@pytest.fixture
def spool(tmp_path) -> SpoolFiles:
    return SpoolFiles(tmp_path / "spool")


@pytest.fixture
def events() -> list[SinkEvent]:
    """What the sink answered, in order."""
    return []


@pytest.fixture
def sink(tmp_path, events) -> Iterator[Sink]:
    with Sink(tmp_path / "sink", token=TOKEN, on_event=events.append) as sink:
        yield sink


@pytest.fixture
def arrived(sink, decode) -> Callable[[], Video]:
    """Decodes all that the sink has stored, in the order of sequence numbers."""

    def by_sequence(receipt: Receipt) -> tuple[str, int]:
        return receipt.session, receipt.sequence

    return lambda: decode(*(receipt.path for receipt in sorted(sink.receipts(), key=by_sequence)))


@pytest.fixture
def start(tmp_path) -> Iterator[Callable[..., Relay]]:
    """Starts the command with these arguments and variables, and nothing else that could set it up."""
    relays: list[Relay] = []
    with tempfile.TemporaryDirectory(prefix="acc-") as runtime:  # short: a socket's path has to be
        clean = {key: value for key, value in os.environ.items() if not key.startswith("RELAY_")}

        def run(*arguments: str | Path, env: Mapping[str, str] | None = None) -> Relay:
            number = len(relays) + 1
            own = Path(runtime, str(number))
            own.mkdir()
            relay = Relay(
                [str(argument) for argument in arguments],
                env={**clean, "XDG_RUNTIME_DIR": str(own), **(env or {})},
                log=tmp_path / f"relay-{number}.log",
            )
            relays.append(relay)
            return relay

        yield run
        complaints = [found for relay in relays if (found := relay.close()) is not None]
    assert not complaints, "\n".join(complaints)


@pytest.fixture
def up(start, sink, spool) -> Callable[..., Relay]:
    """Starts `up` for a source against the sink and the spool, with one-second segments."""

    def run(source: str | Path, *arguments: str | Path, env: Mapping[str, str] | None = None) -> Relay:
        settings = {"RELAY_CLOUD": sink.url, "RELAY_TOKEN": TOKEN, "RELAY_SPOOL": str(spool.path)}
        words = ["up", "--source", source, "--camera-id", "gate", "--segment-duration", "1"]
        return start(*words, *arguments, env={**settings, **(env or {})})

    return run
