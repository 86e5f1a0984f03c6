"""Two ways to run the relay: all of it as one `up`, or its parts as an operator would start them.

Each part is started again whenever it has ended, as a service manager would. Who belongs to a run is known by
a variable in the environment, whoever the parent is by now.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import psutil

from capture.broker import EmbeddedBroker, RuntimeDir
from capture.errors import ConfigError

BIN = Path(sys.executable).parent
MARK = "CHAOS_RUN"
TOKEN = "chaos-token"
STOP_SECONDS = 15.0  # what a stop may take: drain_timeout and five more
AGAIN_SECONDS = 0.5  # between the end of a part and its next start
GONE_SECONDS = 5.0
WORKER = ("-Q", "live,backlog", "-c", "2", "--without-gossip", "--without-mingle", "--without-heartbeat")


class Layout:
    """What both ways have in common: the folder, the settings, and who is who."""

    name: ClassVar[str]

    def __init__(self, folder: Path, url: str, cameras: int, extra: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.spool = folder / "spool"
        self.temporary = folder / "tmp"
        self.log = folder / "relay.log"
        self.cameras = [f"cam{number}" for number in range(cameras)]
        self._mark = uuid.uuid4().hex
        config = [f'[cameras.{camera}]\nsource = "test:320x180@25"\n' for camera in self.cameras]
        (folder / "relay.toml").write_text("\n".join(config))
        self.temporary.mkdir()
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "TMPDIR": str(self.temporary),
            MARK: self._mark,
            "RELAY_CLOUD": url,
            "RELAY_TOKEN": TOKEN,
            "RELAY_SPOOL": str(self.spool),
            "RELAY_DEFAULTS__SEGMENT_SECONDS": "1",
            "RELAY_SPOOL__RECOVER_AFTER": "2",
            "RELAY_SPOOL__SWEEP_AFTER": "60",
            "RELAY_INGEST__ATTEMPT_SECONDS": "3",
            "RELAY_INGEST__ON_REFUSED": "hold",
            "RELAY_INGEST__HOLD_PROBE_EVERY": "1",
            **(extra or {}),
        }
        self.starts = 0

    def ensure(self) -> None:
        """Start what does not run."""
        raise NotImplementedError

    def stop(self) -> list[str]:
        """End it as an operator would; return what was wrong with that."""
        raise NotImplementedError

    def kill(self) -> None:
        """End all of it at once, whatever state it is in."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def broker_sockets(self) -> list[Path]:
        return list(self.temporary.glob("*/broker.sock"))

    def processes(self) -> list[psutil.Process]:
        """Return all that runs because of this run, also what was orphaned."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error, OSError):  # gone, or another user's
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            # Valkey writes its title over its environment; the title names its socket.
            ours = process.environ().get(MARK) == self._mark
            return ours or f"{self.temporary}/" in " ".join(process.cmdline())
        return False

    def parts(self) -> dict[str, list[psutil.Process]]:
        """Return the running processes by what they are."""
        found: dict[str, list[psutil.Process]] = {}
        workers: list[psutil.Process] = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                part = part_of(process.cmdline())
                (workers if part == "worker" else found.setdefault(part, [])).append(process)
        pids = {worker.pid for worker in workers}
        for worker in workers:
            with contextlib.suppress(psutil.Error):
                part = "worker child" if worker.ppid() in pids else "worker parent"
                found.setdefault(part, []).append(worker)
        return found

    def left(self) -> list[str]:
        """Give what was killed a moment to be gone; return what still runs after it."""
        deadline = time.monotonic() + GONE_SECONDS
        while (found := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        told = []
        for process in found:
            with contextlib.suppress(psutil.Error):
                who = f"{process.pid} (parent {process.ppid()}) {' '.join(process.cmdline())}"
                told.append(f"left running: {who}")
        return told

    def _open(self, argv: list[str | Path], environment: Mapping[str, str]) -> psutil.Popen:
        self.starts += 1
        with self.log.open("ab") as log:
            return psutil.Popen(
                argv, env=environment, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )


class Up(Layout):
    """The installed `up`: broker, worker, beat and agent under one command."""

    name = "up"

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self._process: psutil.Popen | None = None
        self._again_at = 0.0

    def ensure(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._again_at = time.monotonic() + AGAIN_SECONDS
        elif time.monotonic() >= self._again_at:
            self._process = self._open(
                [BIN / "relay-capture", "up", "--config", self.folder / "relay.toml"], self.environment
            )

    def stop(self) -> list[str]:
        if self._process is None or self._process.poll() is not None:
            return ["up does not run at the end of it all"]
        return _ended(self._process, "up")


class Part:
    """One command of an operator, in a temporary directory of its own, as systemd's PrivateTmp gives it."""

    def __init__(self, layout: "Parts", name: str, argv: list[str | Path]) -> None:
        self.name = name
        self._layout = layout
        self._argv = argv
        self._temporary = layout.temporary / name
        self._process: psutil.Popen | None = None
        self._again_at = 0.0

    def ensure(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._again_at = time.monotonic() + AGAIN_SECONDS
        elif time.monotonic() >= self._again_at:
            self._clean()
            self._temporary.mkdir()
            environment = {**self._layout.environment, "TMPDIR": str(self._temporary)}
            self._process = self._layout._open(self._argv, environment)

    def stop(self) -> list[str]:
        if self._process is None or self._process.poll() is not None:
            return [f"{self.name} does not run at the end of it all"]
        found = _ended(self._process, self.name)
        found += [f"left behind by {self.name}: {path}" for path in self._temporary.iterdir()]
        self._clean()
        return found

    def _clean(self) -> None:
        shutil.rmtree(self._temporary, ignore_errors=True)


class Parts(Layout):
    """`run`, a worker, a beat and a broker, each by itself."""

    name = "parts"

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self._runtime = RuntimeDir(self.temporary)
        self._broker = EmbeddedBroker(self._runtime.path)
        self._broker_began = False
        self.environment["RELAY_BROKER"] = self._broker.url
        celery = [BIN / "celery", "-A", "tasks"]
        self._parts = [
            Part(self, "agent", [BIN / "relay-capture", "run", "--config", self.folder / "relay.toml"]),
            Part(self, "worker", [*celery, "worker", *WORKER, "--loglevel=INFO"]),
            Part(self, "beat", [*celery, "beat", "--loglevel=INFO"]),
        ]

    def ensure(self) -> None:
        if not self._broker_began or self._broker.poll() is not None:
            self._broker_began = True
            self.starts += 1
            # It gives its server the environment that it finds.
            with _as_environment(self.environment), contextlib.suppress(ConfigError):
                self._broker.start()
        for part in self._parts:
            part.ensure()

    def stop(self) -> list[str]:
        problems = [problem for part in self._parts for problem in part.stop()]
        self.close()
        return problems

    def kill(self) -> None:
        super().kill()
        self.close()

    def close(self) -> None:
        self._broker.stop()
        self._runtime.close()


LAYOUTS: dict[str, type[Layout]] = {layout.name: layout for layout in (Up, Parts)}


def part_of(argv: list[str]) -> str:
    """Return which part of the relay has this command line."""
    words = [Path(argv[0]).name if argv else "", *argv[1:]]
    if any(word.endswith("leash.py") for word in words):
        return "leash"  # becomes something else within a moment
    if words[0].startswith("ffmpeg"):
        return "ffmpeg"
    if argv and "valkey-server" in argv[0]:  # its title: the program, and its socket, in one word
        return "broker"
    for word in ("worker", "beat"):
        if word in words and any("celery" in each for each in words):
            return word
    if any(Path(word).name == "relay-capture" for word in argv) and {"up", "run"} & set(words):
        return "agent"
    return "other"


def _ended(process: psutil.Popen, name: str) -> list[str]:
    """Ask for the end; it must come in time, and with 0."""
    process.terminate()
    try:
        code = process.wait(STOP_SECONDS)
    except psutil.TimeoutExpired:
        process.kill()
        process.wait()
        return [f"the stop of {name} took more than {STOP_SECONDS:.0f} s"]
    return [f"the stop of {name} ended with {code}"] if code else []


@contextlib.contextmanager
def _as_environment(environment: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
