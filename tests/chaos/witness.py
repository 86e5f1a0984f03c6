"""Sees everything that is ever written to a spool, in a process of its own, and keeps it.

``python -m tests.chaos.witness SPOOL KEPT`` gives every file that appears in an ``open/`` a second name in
KEPT (a hard link), so that its content outlives whatever the relay does with the first, and reads along as it
grows, so that bytes changed or cut off later are found out. What it saw is in ``KEPT.jsonl``; SIGTERM ends
it. It shares no code with what it watches.
"""

import hashlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

PACKET = 188
POLL_SECONDS = 0.01
NICE = -10  # where that is allowed: what it does not see in time is gone
QUIET_NS = 2_000_000_000  # a directory that did not change for so long is not listed again
CLOSED = re.compile(r"([0-9]+)_[0-9TZ.]+_[0-9]+\.ts")
OPEN = re.compile(r"([0-9]+)\.ts")

Key = tuple[str, int]


@dataclass
class Writing:
    """A file that is being written: what was read of it, in whole packets."""

    file: int
    packets: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    rest: bytes = b""

    def follow(self) -> None:
        """Read what came since the last look."""
        while piece := os.read(self.file, 1 << 20):
            data = self.rest + piece
            whole = len(data) - len(data) % PACKET
            self.digest.update(data[:whole])
            self.packets += whole // PACKET
            self.rest = data[whole:]


@dataclass(frozen=True)
class Seen:
    """A segment that was written: its session directory, its number, and what it held in the end."""

    session: str
    sequence: int
    size: int
    sha256: str
    damage: str = ""  # how that differs from what was read while it was written


class Witness:
    """Keeps a second name of every segment, open or closed. Start it before the relay."""

    def __init__(self, spool: Path, kept: Path, notes: Path | None = None) -> None:
        """`kept` must be on the file system of the spool; `notes` need not, for a disk that will be full."""
        self._spool = spool
        self._kept = kept
        self._known: set[Key] = set()
        self._writing: dict[Key, Writing] = {}
        self._listed: dict[str, int] = {}
        kept.mkdir()
        self._notes: TextIO = notes_file(kept, notes).open("a")

    def look(self) -> None:
        """See what there is now."""
        for writing in self._writing.values():
            writing.follow()
        with suppress(FileNotFoundError):
            for entry in os.scandir(self._spool):
                if entry.name.startswith("relay-segments-") and self._may_have_changed(entry.path):
                    self._list(Path(entry.path))

    def close(self) -> None:
        """Note how far each open file was read, and end."""
        self.look()
        for key in list(self._writing):
            self._finish(key)
        self._notes.close()

    def _may_have_changed(self, path: str) -> bool:
        newest = 0
        for directory in (Path(path), Path(path, "open")):
            with suppress(FileNotFoundError):
                newest = max(newest, directory.stat().st_mtime_ns)
        if self._listed.get(path) == newest and time.time_ns() - newest > QUIET_NS:
            return False
        self._listed[path] = newest
        return True

    def _list(self, session: Path) -> None:
        # The open ones first: what is renamed between the two lists is then seen twice, not missed.
        being_written = set()
        for folder, pattern in ((session / "open", OPEN), (session, CLOSED)):
            with suppress(FileNotFoundError):
                for name in os.listdir(folder):
                    if match := pattern.fullmatch(name):
                        key = (session.name, int(match[1]))
                        self._see(key, folder / name)
                        being_written |= {key} if pattern is OPEN else set()
        for key in [key for key in self._writing if key[0] == session.name and key not in being_written]:
            self._finish(key)

    def _see(self, key: Key, path: Path) -> None:
        if key in self._known:
            return
        target = self._kept / f"{key[0]}@{key[1]:08d}.ts"
        with suppress(FileNotFoundError):
            target.hardlink_to(path)
            self._known.add(key)
            self._writing[key] = Writing(os.open(target, os.O_RDONLY))
            self._note("opened", key)

    def _finish(self, key: Key) -> None:
        writing = self._writing.pop(key)
        writing.follow()
        os.close(writing.file)
        self._note("closed", key, packets=writing.packets, sha256=writing.digest.hexdigest())

    def _note(self, event: str, key: Key, **fields: object) -> None:
        line = {"at": time.monotonic(), "event": event, "session": key[0], "sequence": key[1], **fields}
        print(json.dumps(line), file=self._notes, flush=True)


def notes_file(kept: Path, notes: Path | None) -> Path:
    """Return where a witness writes down what it saw."""
    return notes or kept.with_suffix(".jsonl")


def notes(kept: Path, file: Path | None = None) -> Iterator[dict[str, Any]]:
    """Yield what a witness noted: when each file was opened and closed, and what was read until then."""
    with suppress(FileNotFoundError):
        for line in notes_file(kept, file).read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                yield json.loads(line)


def seen(kept: Path, file: Path | None = None) -> Iterator[Seen]:
    """Yield what was written; files without one whole packet held nothing."""
    read = {
        (note["session"], note["sequence"]): (note["packets"] * PACKET, note["sha256"])
        for note in notes(kept, file)
        if note["event"] == "closed"
    }
    for path in sorted(kept.iterdir()):
        session, _, name = path.name.rpartition("@")
        key = (session, int(name.removesuffix(".ts")))
        content = path.read_bytes()
        damage = _damage(content, *read.get(key, (0, "")))
        if len(content) >= PACKET or damage:
            yield Seen(*key, len(content), hashlib.sha256(content).hexdigest(), damage)


def _damage(content: bytes, length: int, sha256: str) -> str:
    if len(content) < length:
        return f"cut to {len(content)} bytes after {length} were written"
    if length and hashlib.sha256(content[:length]).hexdigest() != sha256:
        return "changed after it was written"
    return ""


def main() -> None:
    spool, kept = map(Path, sys.argv[1:])
    # No Event: a handler that sets one can meet the very lock that it interrupted, and waits for ever.
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches us with the run, which then stops us
    with suppress(PermissionError):
        os.nice(NICE)
    witness = Witness(spool, kept)
    while not asked:
        time.sleep(POLL_SECONDS)
        witness.look()
    witness.close()


if __name__ == "__main__":
    main()
