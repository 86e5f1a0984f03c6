"""What each part of a safe delivery costs, alone: syncs, digest, journal, lock, removal, message.

    python -m benchmarks.costs [--sizes 64KiB,1.5MiB,12MiB] [--repeat 30] [--folder DIR]

Each part is the call that the product makes, on real files in the file system of a real spool. All parts of
one segment are measured one after the other, and beside them in the same round a bare httpx client sends the
same bytes from memory to the same server, which only discards: each part is also told as a share of that (of
the medians). In the product all of them are always on. A first round that opens and warms all is left out.
"""

import argparse
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from celery import Celery

from benchmarks.backlog import video
from benchmarks.cameras import begin
from benchmarks.discard import discarding
from benchmarks.figures import (
    MIB,
    environment,
    environment_lines,
    file_system,
    parse_sizes,
    spread,
    table,
    write_figures,
)
from capture.broker import EmbeddedBroker, RuntimeDir
from capture.claim import Claim, claim
from capture.handoff import publish, publisher_app, upload_message
from capture.ingest import Ingest
from capture.journal import Event
from capture.segment import SegmentName
from capture.session import Session
from capture.settings import Settings, load_settings
from capture.spool import Spool, sync_directory

TOKEN = "benchmark"  # noqa: S105 - made up
BARE = "httpx"
ALL = "all"
PARTS = {
    "file_sync": "fsync of the file, at closing",
    "digest_closing": "SHA-256, at closing",
    "directory_sync": "fsync of its directory, at closing",
    "closed_line": 'journal line "closed"',
    "publish": "publishing the message",
    "lock": "lock: open, flock, check",
    "digest_sending": "SHA-256, at sending",
    "delivered_line": 'journal line "delivered", with fdatasync',
    "unlink": "unlink, with its pages",
}
WHOLE = {
    "close_segment": "closing a segment, as the agent does",
    "send_segment": "sending it, as a worker does (with SHA-256)",
    "delivered": "settling it, as a worker does: line and unlink",
    "release": "closing its file, which frees the pages",
}
NAMES = {**PARTS, ALL: "all of the above", **WHOLE, BARE: "a bare httpx client sending the same"}


@dataclass(frozen=True)
class Stage:
    """What all rounds share: a session to write in, a broker, and two clients of one server."""

    settings: Settings
    spool: Spool
    session: Session
    app: Celery
    ingest: Ingest
    bare: httpx.Client
    url: str


@dataclass
class Costs:
    """The seconds of one segment's parts, by the clock and of this process's CPU."""

    wall: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)

    def time(self, name: str, call: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever the call returns
        used, began = time.process_time(), time.perf_counter()
        result = call()
        self.wall[name], self.cpu[name] = time.perf_counter() - began, time.process_time() - used
        return result

    def seconds(self, name: str) -> float:
        """Return what a part took by the clock, or all of them."""
        return _total(self.wall, name)

    def cpu_seconds(self, name: str) -> float:
        return _total(self.cpu, name)


def _total(times: dict[str, float], name: str) -> float:
    return sum(times[part] for part in PARTS) if name == ALL else times[name]


@contextmanager
def stage(folder: Path) -> Iterator[Stage]:
    """Open all that the product has open when it delivers."""
    with RuntimeDir() as runtime, discarding() as server:
        broker = EmbeddedBroker(runtime.path)
        broker.start()
        flags = {"--cloud": server.url, "--token": TOKEN, "--broker": broker.url}
        settings = load_settings(flags, environ={})
        spool = Spool.open(folder / "spool", create=True)
        try:
            with (
                begin(spool, "cam", 1.0) as session,
                publisher_app(settings) as app,
                httpx.Client(trust_env=False, timeout=60.0) as bare,
            ):
                url = f"{server.url}/api/stream/ingest/bare"
                yield Stage(settings, spool, session, app, Ingest(settings.ingest), bare, url)
        finally:
            broker.stop()


def one_by_one(stage: Stage, sequence: int, content: bytes) -> Costs:
    """Take a segment through its life by the parts, each timed alone."""
    found = Costs()
    path, name = _written(stage, sequence, content), _name(stage, sequence)
    with path.open("rb") as file:
        found.time("file_sync", lambda: os.fsync(file.fileno()))
        digest = found.time("digest_closing", lambda: hashlib.file_digest(file, "sha256")).hexdigest()
    target = stage.session.path / str(name)
    path.rename(target)
    found.time("directory_sync", lambda: sync_directory(stage.session.path))
    fields = {"session": str(stage.session.name), "segment": str(name), "bytes": len(content)}
    journal, camera = stage.spool.journal, stage.session.name.camera
    found.time("closed_line", lambda: journal.append(camera, Event.CLOSED, sha256=digest, **fields))
    message = upload_message(stage.settings.ingest, stage.session.name, name, len(content))
    found.time("publish", lambda: publish(stage.app, message))
    with found.time("lock", lambda: _claimed(stage, name)) as owed:
        # As the sender does, from the unbuffered file of the claim.
        found.time("digest_sending", lambda: hashlib.file_digest(owed.file, "sha256"))
    fields |= {"sha256": digest, "status": 204, "attempts": 1}
    found.time("delivered_line", lambda: journal.append(camera, Event.DELIVERED, durable=True, **fields))
    found.time("unlink", target.unlink)
    return found


def as_a_whole(stage: Stage, sequence: int, content: bytes) -> Costs:
    """Take a segment through its life as the product does, and send the same bytes without any of it."""
    found = Costs()
    _written(stage, sequence, content)
    start = stage.spool.clock.now()
    owed = found.time("close_segment", lambda: stage.session.close_segment(sequence, start, 1.0))
    with _claimed(stage, owed.segment) as ours:
        outcome, sha256 = found.time("send_segment", lambda: stage.ingest.send_segment(ours, TOKEN))
        if outcome.status != httpx.codes.NO_CONTENT:
            raise RuntimeError(outcome.reason)
        found.time("delivered", lambda: ours.delivered(sha256=sha256, status=204, attempts=1))
        found.time("release", ours.file.close)
    found.time(BARE, lambda: stage.bare.post(stage.url, content=content).raise_for_status())
    return found


def _written(stage: Stage, sequence: int, content: bytes) -> Path:
    """Write an open segment, as ffmpeg leaves it: in memory, not yet on the disk."""
    path = stage.session.open_path(sequence)
    path.write_bytes(content)
    return path


def _name(stage: Stage, sequence: int) -> SegmentName:
    return SegmentName.of(sequence, stage.spool.clock.now(), 1.0)


def _claimed(stage: Stage, name: SegmentName) -> Claim:
    found = claim(stage.spool, stage.session.name, name)
    if found is None:
        raise RuntimeError(f"{name} is not owed, or somebody else has it")
    return found


def measure(stage: Stage, size: int, rounds: int, first: int) -> list[Costs]:
    """Return the rounds for one size; `first` is the first free sequence number."""
    content = video(size)
    found = []
    for number in range(rounds + 1):
        sequence = first + 2 * number
        parts, whole = one_by_one(stage, sequence, content), as_a_whole(stage, sequence + 1, content)
        if number:
            found.append(Costs({**parts.wall, **whole.wall}, {**parts.cpu, **whole.cpu}))
    return found


def show(size: int, rounds: Sequence[Costs]) -> None:
    bare = median(each.wall[BARE] for each in rounds)
    rows = []
    for name, words in NAMES.items():
        wall = [each.seconds(name) for each in rounds]
        cpu = median(each.cpu_seconds(name) for each in rounds)
        rows.append(
            [
                words,
                spread([1000 * each for each in wall], ".3f"),
                f"{1000 * cpu:.3f}",
                f"{100 * median(wall) / bare:.0f} %",
            ]
        )
    print(f"\n{size / MIB:g} MiB, n = {len(rounds)}")
    print(table(["", "ms", "of it CPU", "share of bare httpx"], rows), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes", type=parse_sizes, default="64KiB,1.5MiB,12MiB", help="of a segment, in turn"
    )
    parser.add_argument("--repeat", type=int, default=30, help="rounds for each size  [30]")
    parser.add_argument("--folder", type=Path, help="where the spool is  [the directory for temporary files]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    options = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="costs-", dir=options.folder) as name:
        kind = file_system(Path(name))
        print(f"{environment_lines()}\nspool on {kind}, {options.repeat} rounds", flush=True)
        with stage(Path(name)) as ready:
            first = 1
            for size in options.sizes:
                rounds = measure(ready, size, options.repeat, first)
                first += 2 * (options.repeat + 1)
                show(size, rounds)
                found[str(size)] = [vars(each) for each in rounds]
    write_figures(options.json, {"environment": environment(), "file_system": kind, "sizes": found})


if __name__ == "__main__":
    main()
