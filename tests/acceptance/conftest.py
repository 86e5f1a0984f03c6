"""The installed command as a child, the ingest it talks to, the spool it writes, and a clip to send."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import psutil
import pytest

from capture.broker import EmbeddedBroker, RuntimeDir
from capture.handoff import RECOVER, Message, publish, publisher_app, upload_message
from capture.session import Session
from capture.settings import load_settings
from capture.sink import Receipt, Sink, SinkEvent
from capture.source import parse_source
from capture.spool import Spool
from tests.acceptance.image import Image, build, read_image, require_tools

COMMAND = Path(sys.executable).with_name("relay-capture")
MARK = "ACCEPTANCE_RUN"  # in the environment of everything that a test starts, however it is orphaned
TOKEN = "made-up-token"
DEADLINE = 30.0  # seconds for what takes a few on an idle machine
GONE_WITHIN = 5.0  # seconds for all processes to follow the one that was killed
TAIL = 4000  # characters


class Relay:
    """A running `relay-capture`, or another `command`, its standard error in a file."""

    def __init__(self, arguments: list[str], *, env: Mapping[str, str], log: Path, command: Path = COMMAND):
        self.mark = uuid.uuid4().hex
        self.runtime = Path(env["XDG_RUNTIME_DIR"])  # where `up` makes its private directory
        self._log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [str(command), *arguments],
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
        # A line without its end is being written at this moment: a reader can see the first part of a write.
        whole = [file.read_text().rpartition("\n")[0] for file in files]
        lines = [json.loads(line) for text in whole for line in text.splitlines()]
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


# --- workers by themselves, with a broker of their own ------------------------------------------------

PACKETS = (b"\x47" + bytes(187)) * 1000
CELERY = "\nfrom celery.__main__ import main\nmain()\n"


class Worker:
    """A worker process as an operator starts it; or with some code before, that changes it."""

    def __init__(self, directory, env, *options, changed=""):
        self._log = directory / "worker.log"
        program = ["-c", changed + CELERY] if changed else ["-m", "celery"]
        flags = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=INFO"]
        argv = [sys.executable, "-P", *program, "-A", "tasks", "worker", "-Q", "live,backlog", *flags]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*argv, *options], env=env, cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    @property
    def log(self):
        return self._log.read_text("utf-8", "replace")

    def children(self):
        return psutil.Process(self.process.pid).children(recursive=True)

    def wait_for(self, condition, what, *, deadline=DEADLINE):
        end = time.monotonic() + deadline
        while not (result := condition()):
            if time.monotonic() > end:
                pytest.fail(f"not within {deadline:g} s: {what}\n{self.log[-4000:]}")
            time.sleep(0.02)
        return result

    def wait_ready(self, times=1):
        self.wait_for(lambda: len(re.findall(r"\bready\.", self.log)) >= times, "ready")

    def close(self):
        family = [] if self.process.poll() is not None else self.children()
        self.process.kill()
        self.process.wait()
        for process in family:
            if process.is_running():
                process.kill()


@pytest.fixture
def broker():
    with tempfile.TemporaryDirectory(prefix="acc-") as base, RuntimeDir(Path(base)) as runtime:
        embedded = EmbeddedBroker(runtime.path)
        embedded.start()
        yield embedded
        embedded.stop()


@pytest.fixture
def settings(broker, sink, tmp_path):
    environment = {
        "RELAY_CLOUD": sink.url,
        "RELAY_TOKEN": TOKEN,
        "RELAY_SPOOL": str(tmp_path / "spool"),
        "RELAY_BROKER": broker.url,
        "RELAY_SPOOL__RECOVER_AFTER": "1",
    }
    return load_settings(environ=environment)


@pytest.fixture
def worker(settings, session, tmp_path):
    """Starts workers, and ends them with all that they started."""
    workers = []
    clean = {key: value for key, value in os.environ.items() if not key.startswith("RELAY_")}

    def run(*options, changed=""):
        env = {**clean, **settings.worker_environment()}
        workers.append(Worker(tmp_path, env, *options, changed=changed))
        return workers[-1]

    yield run
    for each in workers:
        each.close()


@pytest.fixture
def session(settings):
    spool = Spool.open(settings.spool.path, create=True)
    with Session.start(
        spool, "gate", display_name="gate", source=parse_source("test:"), segment_seconds=10
    ) as session:
        yield session


@pytest.fixture
def send(settings, session):
    """Closes segments and publishes them as the agent does."""
    app = publisher_app(settings)
    begun = datetime(2026, 11, 23, 21, 11, 31, tzinfo=UTC)

    def close(sequence):
        (session.open_directory / f"{sequence:08d}.ts").write_bytes(PACKETS)
        return session.close_segment(sequence, begun + timedelta(seconds=10 * sequence), 10.0)

    def run(*sequences):
        for sequence in sequences:
            owed = close(sequence)
            publish(app, upload_message(settings.ingest, session.name, owed.segment, owed.size))

    run.close = close
    run.message = lambda message: publish(app, message)
    run.recover = lambda: publish(app, Message(RECOVER, ()))
    run.spool = session.spool
    yield run
    app.close()


# --- the image -----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Has something expensive made in a folder once, for all processes that test; returns the folder."""
    base = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):  # each has a folder of its own in that of this run
        base = base.parent

    def make(name: str, fill: Callable[[Path], None]) -> Path:
        folder, done = base / name, base / f"{name}.done"
        with (base / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def image(once) -> Image:
    """What the Dockerfile makes."""
    require_tools()
    return read_image(once("image", build))
