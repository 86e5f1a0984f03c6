"""What all tiers share."""

import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import structlog
from hypothesis import settings

from capture.segment import SegmentName
from capture.session import Measured, Owed, Session
from capture.source import parse_source
from capture.spool import Spool
from tests.order import dealt

pytest_plugins = ["tests.cameras.fixtures"]

# How long one example takes says more about the machine's other tenants than about the code.
settings.register_profile("relay", deadline=None)
settings.load_profile("relay")

PACKET = b"\x47" + b"\x1f\xff\x10" + b"\xff" * 184  # a null packet of a transport stream


def pytest_configure() -> None:
    """Hear ^C, for what is started inherits that: a shell makes deaf to it what it runs in its background."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put what takes long first where several processes run the tests."""
    worker = getattr(config, "workerinput", None)
    if worker is not None:
        items[:] = dealt(items, worker["workercount"], node=lambda item: item.nodeid)


class SteppedClock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.moment = datetime(2026, 6, 1, 12, tzinfo=UTC)
        self.ticks = 1000.0

    def now(self) -> datetime:
        return self.moment

    def time(self) -> float:
        return self.moment.timestamp()

    def monotonic(self) -> float:
        return self.ticks

    def step(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)
        self.ticks += seconds


@pytest.fixture(autouse=True)
def kept_logging() -> Iterator[None]:
    """Puts logging back: a test that has it set up as a command does would change what the next ones see."""
    root, configured, config = logging.getLogger(), structlog.is_configured(), structlog.get_config()
    handlers, level = root.handlers[:], root.level
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
    if configured:
        structlog.configure(**config)
    else:
        structlog.reset_defaults()


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock()


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool.open(tmp_path / "spool", create=True)


def start_session(spool: Spool, camera: str = "door", *, segment_seconds: float = 2.0) -> Session:
    return Session.start(
        spool,
        camera,
        display_name=camera,
        source=parse_source("test:"),
        segment_seconds=segment_seconds,
    )


def add_segment(session: Session, sequence: int, content: bytes = PACKET * 4) -> Owed:
    """Write a segment as ffmpeg and the agent do."""
    (session.open_directory / f"{sequence:08d}.ts").write_bytes(content)
    start = session.spool.clock.now() + timedelta(seconds=2 * sequence)
    return session.close_segment(sequence, start, 2.0)


def owing(spool: Spool, camera: str, count: int) -> Session:
    """Leave a session that has ended and owes so many segments."""
    with start_session(spool, camera) as session:
        for number in range(1, count + 1):
            add_segment(session, number)
        session.end()
    return session


def owed_path(session: Session, segment: SegmentName) -> Path:
    return session.path / str(segment)


@pytest.fixture
def unreadable_where(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str, int], bool]], None]:
    """Has the disk fail to read the open segments of which a test says so, by camera and number."""
    measure = Session.measure

    def fail(test: Callable[[str, int], bool]) -> None:
        def fails_for_some(self: Session, sequence: int) -> Measured | None:
            if test(self.name.camera, sequence):
                raise OSError(5, "Input/output error")
            return measure(self, sequence)

        monkeypatch.setattr(Session, "measure", fails_for_some)

    return fail


class Immutable:
    """Makes files such that not even root can write or remove them."""

    def __init__(self) -> None:
        self._paths: list[str] = []

    def __call__(self, path: Path) -> None:
        if not self._set("+i", [str(path)]):
            pytest.skip("this file system, or this user, cannot make a file immutable")
        self._paths.append(str(path))

    def undo(self) -> None:
        self._set("-i", self._paths)
        self._paths = []

    def _set(self, flag: str, paths: list[str]) -> bool:
        try:
            return subprocess.run(["chattr", flag, *paths], capture_output=True, check=False).returncode == 0
        except FileNotFoundError:
            return False


@pytest.fixture
def immutable() -> Iterator[Immutable]:
    files = Immutable()
    yield files
    files.undo()
