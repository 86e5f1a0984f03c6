"""Each call to the operating system fails once, in turn, on every path that writes to the spool.

After each: every segment is delivered, owed or explained, under one name, with the bytes that were written;
no temporary file is left; the next round repairs everything.
"""

import builtins
import errno
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from capture.audit_spool import audit_spool, cameras
from capture.budget import Budget
from capture.claim import claim
from capture.errors import RelayError
from capture.gate import Gate, Verdict
from capture.journal import Event
from capture.outcome import Kind, Outcome
from capture.recovery import Shortlist
from capture.segment import SegmentName, parse_open_name
from capture.settings import IngestSettings, SpoolSettings
from capture.spool import Spool
from capture.upkeep import close_dead_sessions, requeue_rejected, sweep
from tests.conftest import PACKET, SteppedClock, add_segment, start_session

WRITING = ("open", "write", "fsync", "fdatasync", "rename", "replace", "mkdir", "ftruncate")
READING = ("unlink", "stat", "lstat", "scandir", "pread", "utime")
MOST_CALLS = 200


class Killed(BaseException):
    """Stands for SIGKILL: from here on not even what tidies up gets through."""


class Faults:
    """Makes the n-th call to the operating system fail; with `lasting`, also all that follow."""

    def __init__(self, number: int, code: int | None, *, lasting: bool = False) -> None:
        self._left = number
        self._code = code  # None: the process was killed
        self._lasting = lasting
        self._all = code in {None, errno.EIO}
        self.struck: str | None = None

    def _count(self, what: str) -> None:
        self._left -= 1
        if self._left == 0 or (self._left < 0 and self._lasting):
            self.struck = self.struck or what
            raise Killed if self._code is None else OSError(self._code, os.strerror(self._code), what)

    def _wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            writes = name != "open" or args[1] & (os.O_CREAT | os.O_WRONLY | os.O_RDWR)
            if writes or self._all:
                self._count(f"{name} {args[0]}")
            return real(*args, **kwargs)

        return call

    def _open(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """A file object writes without `os.write`: count its opening and each flush of it."""

        def call(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if not set(mode) & set("wxa+"):
                return real(file, mode, *args, **kwargs)
            self._count(f"open {file}")
            opened = real(file, mode, *args, **kwargs)
            return _Counted(opened, lambda: self._count(f"write {file}"))

        return call

    @contextmanager
    def armed(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name in WRITING + READING if self._all else WRITING:
                patch.setattr(os, name, self._wrap(name, getattr(os, name)))
            patch.setattr(io, "open", self._open(builtins.open))
            yield


class _Counted:
    """A file whose content reaches the disk when it is flushed, or fails to."""

    def __init__(self, file: Any, count: Callable[[], None]) -> None:
        self._file = file
        self._count = count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def flush(self) -> None:
        self._count()
        self._file.flush()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


Key = tuple[str, int]


class World:
    """A spool with a little of everything, and what was truly written to it."""

    def __init__(self, root: Path) -> None:
        self.clock = SteppedClock()
        self.spool = Spool.open(root / "spool", create=True, clock=self.clock)
        self.spool.keep_ballast()
        self.truth: dict[Key, bytes] = {}
        self.ingest: dict[Key, bytes] = {}
        self.sessions = ExitStack()
        self.door = self.sessions.enter_context(start_session(self.spool, "door"))
        self.gate = Gate(self.spool, IngestSettings())

    def write(self, session: Any, number: int, content: bytes | None = None) -> None:
        content = content or PACKET * (10 + number)
        (session.open_directory / f"{number:08d}.ts").write_bytes(content)
        self.truth[str(session.name), number] = content[: len(content) // 188 * 188]

    def owe(self, session: Any, number: int) -> SegmentName:
        content = PACKET * (10 + number)
        self.truth[str(session.name), number] = content
        return add_segment(session, number, content).segment

    def deliver(self, session: Any, segment: SegmentName) -> None:
        """What `upload_segment` does with an answer 204."""
        with claim(self.spool, session, segment) or ExitStack() as found:
            if isinstance(found, ExitStack) or found.finish_delivered():
                return
            content = self.ingest[str(session), segment.sequence] = found.file.read()
            digest = hashlib.sha256(content).hexdigest()
            found.delivered(sha256=digest, status=204, attempts=1)

    def repair(self) -> None:
        """The next rounds: recover, uploads, requeue by hand, sweep."""
        self.sessions.close()
        self.clock.step(60.0)
        close_dead_sessions(self.spool)
        requeue_rejected(self.spool)
        for debt in list(self.spool.debts()):
            self.deliver(debt.session, debt.segment)
        self.clock.step(1.0)

    def names(self) -> list[Key]:
        """Return each place where a segment lies: open, owed or rejected."""
        found = []
        for path in self.spool.root.glob("relay-segments-*/**/*.ts"):
            session = path.relative_to(self.spool.root).parts[0]
            number = parse_open_name(path.name)
            parsed = SegmentName.parse(path.name)
            found.append((session, parsed.sequence if parsed else number or 0))
        return found

    def explained(self) -> set[Key]:
        return {
            (entry.fields["session"], SegmentName.parse(entry.fields["segment"]).sequence)
            for camera in cameras(self.spool)
            for entry in self.spool.journal.read(camera)
            if entry.event in {Event.DROPPED, Event.REJECTED}
        }


# --- the paths: each prepares, and returns what is done while calls fail ---


def start_of_a_session(world: World) -> Callable[[], object]:
    return lambda: world.sessions.enter_context(start_session(world.spool, "yard"))


def closing(world: World) -> Callable[[], object]:
    world.write(world.door, 1)
    return lambda: world.door.close_segment(1, world.clock.now(), 2.0)


def closing_of_a_torn_one(world: World) -> Callable[[], object]:
    world.write(world.door, 1, PACKET * 5 + PACKET[:90])
    return lambda: world.door.close_segment(1, world.clock.now(), 2.0)


def salvage(world: World) -> Callable[[], object]:
    for number in (1, 2):
        world.write(world.door, number)
    world.sessions.close()
    return lambda: close_dead_sessions(world.spool)


def delivery(world: World) -> Callable[[], object]:
    segment = world.owe(world.door, 1)
    return lambda: world.deliver(world.door.name, segment)


def reject(world: World, segment: SegmentName) -> None:
    with claim(world.spool, world.door.name, segment) as found:
        found.rejected(status=413, reason="too large")
    world.spool.count_reject("door")


def rejection(world: World) -> Callable[[], object]:
    segment = world.owe(world.door, 1)
    return lambda: reject(world, segment)


def requeueing(world: World) -> Callable[[], object]:
    for number in (1, 2):
        reject(world, world.owe(world.door, number))
    return lambda: requeue_rejected(world.spool)


def budget(world: World) -> Callable[[], object]:
    reject(world, world.owe(world.door, 1))
    for number in range(2, 6):
        world.owe(world.door, number)
    return Budget(world.spool, SpoolSettings(min_free=10**18), cameras=1).enforce


def gate(world: World) -> Callable[[], object]:
    def act() -> None:
        for _ in range(3):
            world.gate.report(Outcome(Kind.TRANSIENT, 503, "out of order"), "token")
        world.gate.admit("token")
        world.gate.report(Outcome(Kind.FATAL, 401, "no"), "token")
        world.gate.forgive("token")
        world.gate.report(Outcome(Kind.OK, 204, "ok"), "token")

    return act


def recovery(world: World) -> Callable[[], object]:
    world.owe(world.door, 1)
    world.clock.step(60.0)

    return lambda: Shortlist(world.spool).pick(4, older_than=1.0)


def end_of_a_session(world: World) -> Callable[[], object]:
    return world.door.end


def sweeping(world: World) -> Callable[[], object]:
    world.deliver(world.door.name, world.owe(world.door, 1))
    reject(world, world.owe(world.door, 2))
    world.door.end()
    world.sessions.close()
    world.clock.moment = world.clock.moment.replace(year=2099)
    return lambda: sweep(world.spool, sweep_after=60.0, keep_rejected=60.0)


PATHS = [
    start_of_a_session,
    closing,
    closing_of_a_torn_one,
    salvage,
    delivery,
    rejection,
    requeueing,
    budget,
    gate,
    recovery,
    end_of_a_session,
    sweeping,
]


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "until the end"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO], ids=["full", "quota", "broken"])
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__)
def test_whatever_call_fails_nothing_is_lost_and_the_next_round_repairs_it(path, code, lasting, tmp_path):
    problems = []
    for number in range(1, MOST_CALLS):
        root = tmp_path / str(number)
        root.mkdir()
        world = World(root)
        faults = Faults(number, code, lasting=lasting)
        act = path(world)
        with faults.armed(), suppress(OSError, RelayError):
            act()
        if faults.struck is None:
            break
        tidy = code != errno.EIO or not lasting  # nothing can be removed where each removal fails, too
        problems += [f"call {number}, {faults.struck}: {found}" for found in judge(world, tidy=tidy)]
    else:
        pytest.fail(f"more than {MOST_CALLS} calls")
    assert number > 1
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__)
def test_a_kill_before_any_call_loses_nothing_and_the_next_round_repairs_it(path, tmp_path):
    problems = []
    for number in range(1, MOST_CALLS):
        root = tmp_path / str(number)
        root.mkdir()
        world = World(root)
        faults = Faults(number, None, lasting=True)
        act = path(world)
        with faults.armed(), suppress(Killed):
            act()
        if faults.struck is None:
            break
        problems += [f"call {number}, {faults.struck}: {found}" for found in judge(world, tidy=False)]
    assert number > 1
    assert not problems, "\n".join(problems)


def judge(world: World, *, tidy: bool) -> Iterator[str]:
    """Say what is wrong right after the fault, and after the next round."""
    names = world.names()
    yield from (f"two names: {key}" for key in set(names) if names.count(key) > 1)
    if tidy:
        yield from (f"left behind: {path.name}" for path in world.spool.root.rglob("*.tmp"))
    try:
        world.repair()
        world.gate.report(Outcome(Kind.OK, 204, "ok"), "token")
    except (OSError, RelayError) as error:
        yield f"not repaired: {error!r}"
        return
    yield from judge_segments(world)
    yield from judge_state(world)


def judge_segments(world: World) -> Iterator[str]:
    explained = world.explained()
    for key, content in world.truth.items():
        if key in world.ingest:
            if world.ingest[key] != content:
                yield f"altered: {key}"
        elif key not in explained:
            yield f"lost: {key}"
    yield from (f"invented: {key}" for key in world.ingest.keys() - world.truth.keys())
    yield from (f"still there: {key}" for key in world.names())


def judge_state(world: World) -> Iterator[str]:
    if world.gate.admit("token").verdict not in {Verdict.GO, Verdict.PROBE}:
        yield "the gate stays shut"
    for camera in cameras(world.spool):
        report = audit_spool(world.spool, camera)
        if report.faults:
            yield f"audit: {[finding.text for finding in report.findings]}"
    for path in world.spool.root.glob("**/*.json"):
        try:
            json.loads(path.read_text())
        except ValueError:
            yield f"damaged: {path.name}"
