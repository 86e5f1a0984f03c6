"""The judge of a chaos run. It shares no code with what it judges.

While the run lasts, a witness gives every file that ffmpeg opens a second name outside the spool (a hard
link), so that its content outlives whatever the relay does with the first. Afterwards every one of them
that holds whole packets must be at the ingest byte for byte, or still owed, or explained in the journal; and
the ingest must hold nothing else.
"""

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

PACKET = 188
POLL_SECONDS = 0.05
CLOSED = re.compile(r"([0-9]+)_[0-9TZ.]+_[0-9]+\.ts")


@dataclass(frozen=True)
class Seen:
    """A segment that was written: its session directory, its number, and what it held in the end."""

    session: str
    sequence: int
    size: int
    sha256: str


@dataclass
class Verdict:
    """What became of everything that was seen."""

    segments: int = 0
    delivered: int = 0
    owed: int = 0
    explained: int = 0
    problems: list[str] = field(default_factory=list)


class Witness:
    """Keeps a second name of every file in every ``open/``. Start it before the relay."""

    def __init__(self, spool: Path, kept: Path) -> None:
        self._spool = spool
        self._kept = kept
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._kept.mkdir()
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(POLL_SECONDS):
            self.look()

    def look(self) -> None:
        with suppress(FileNotFoundError):
            for session in os.scandir(self._spool):
                if session.name.startswith("relay-segments-"):
                    self._keep(Path(session.path))

    def _keep(self, session: Path) -> None:
        with suppress(FileNotFoundError):
            for name in os.listdir(session / "open"):
                target = self._kept / f"{session.name}@{name}"
                if not target.exists():
                    with suppress(FileNotFoundError, FileExistsError):
                        target.hardlink_to(session / "open" / name)

    def seen(self) -> Iterator[Seen]:
        """Yield what was written; files without one whole packet held nothing."""
        for path in sorted(self._kept.iterdir()):
            session, _, name = path.name.rpartition("@")
            content = path.read_bytes()
            if len(content) >= PACKET:
                digest = hashlib.sha256(content).hexdigest()
                yield Seen(session, int(name.removesuffix(".ts")), len(content), digest)


def judge(seen: list[Seen], spool: Path, ingest: Path) -> Verdict:
    """Hold what was seen against what the ingest stored, what the spool still owes, and the journal."""
    stored = dict(_stored(ingest))
    owed = dict(_owed(spool))
    explained = set(_explained(spool))
    verdict = Verdict(segments=len(seen))
    for segment in seen:
        key = (segment.session, segment.sequence)
        if key in stored:
            if stored[key] != segment.sha256:
                verdict.problems.append(f"altered: {key} is not what was written")
            verdict.delivered += 1
        elif key in owed:
            if owed[key] != segment.sha256:
                verdict.problems.append(f"altered in the spool: {key}")
            verdict.owed += 1
        elif key in explained:
            verdict.explained += 1
        else:
            verdict.problems.append(f"lost: {key}, {segment.size} bytes")
    known = {(segment.session, segment.sequence) for segment in seen}
    verdict.problems += [f"invented: {key}" for key in stored if key not in known]
    verdict.problems += [f"leaked: {path}" for path in _leaks(spool)]
    return verdict


def _stored(ingest: Path) -> Iterator[tuple[tuple[str, int], str]]:
    for path in ingest.glob("*/*/*.ts"):
        camera, session = path.parts[-3:-1]
        key = (f"relay-segments-{camera}-{session}", int(path.stem))
        yield key, hashlib.sha256(path.read_bytes()).hexdigest()


def _owed(spool: Path) -> Iterator[tuple[tuple[str, int], str]]:
    for path in spool.glob("relay-segments-*/**/*.ts"):
        match = CLOSED.fullmatch(path.name)
        if match:
            session = path.relative_to(spool).parts[0]
            yield (session, int(match[1])), hashlib.sha256(path.read_bytes()).hexdigest()


def _explained(spool: Path) -> Iterator[tuple[str, int]]:
    for path in spool.glob("journal/*/*.jsonl"):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if entry["event"] in {"dropped", "rejected"}:
                yield entry["session"], int(entry["segment"].split("_")[0])


def _leaks(spool: Path) -> Iterator[Path]:
    yield from spool.rglob("*.tmp")
    yield from spool.glob("relay-segments-*/open/*")
