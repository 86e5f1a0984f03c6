"""What the sink keeps: segments on disk, one receipt line each, and the keys it has seen.

::

    <dir>/receipts.jsonl                    one JSON line per stored segment
    <dir>/.incoming/                        bodies on their way in; never a stored segment
    <dir>/<camera>/<session>/00000001.ts    moved there whole, in one rename

A segment is moved first and then receipted, so a crash between the two leaves a file whose key is
unknown: the next attempt puts the same bytes in the same place.
"""

import fcntl
import hashlib
import itertools
import json
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import KW_ONLY, asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from capture.errors import ConfigError

RECEIPTS: Final = "receipts.jsonl"
INCOMING: Final = ".incoming"
CAMERA: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
SESSION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
SEQUENCE: Final = re.compile(r"[0-9]{1,12}")

RESERVED: Final = (RECEIPTS,)  # a camera of this name would need a directory where a file is

Kept = Literal["stored", "duplicate", "conflict"]


def is_camera(text: str) -> bool:
    """Say whether this may be a camera id, and so the name of a directory."""
    return CAMERA.fullmatch(text) is not None and text.lower() not in RESERVED


class Key(NamedTuple):
    camera: str
    session: str
    sequence: int


@dataclass(frozen=True)
class Receipt:
    """One stored segment. `attempts` counts every request seen for its key, failed ones too."""

    camera: str
    _: KW_ONLY
    session: str
    sequence: int
    path: Path
    bytes: int
    sha256: str
    start: str
    duration: float
    received_at: float
    attempts: int = 1
    duplicates: int = 0

    @property
    def key(self) -> Key:
        return Key(self.camera, self.session, self.sequence)


@dataclass(frozen=True)
class Draft:
    """A body that arrived whole but is not stored yet."""

    path: Path
    _: KW_ONLY
    bytes: int
    sha256: str

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)


class StoreClosedError(Exception):
    """The sink stopped while the segment was on its way in."""


class Store:
    """Keeps each key once, under one lock; open it before use."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = threading.Lock()
        self._receipts: dict[Key, Receipt] = {}
        self._attempts: Counter[Key] = Counter()
        self._duplicates: Counter[Key] = Counter()
        self._folders: set[Path] = set()
        self._names = itertools.count(1)
        self._fd = -1

    def open(self) -> None:
        """Take the directory for this sink alone and read back what it holds."""
        try:
            (self.directory / INCOMING).mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self.directory / RECEIPTS, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read_back()
        except BlockingIOError:
            self.close()
            raise ConfigError(
                f"found another sink at work in {self.directory}, expected a directory of its own; "
                "stop the other one or choose another directory"
            ) from None
        except OSError as error:
            self.close()
            raise ConfigError(
                f"found {self.directory} unusable ({error.strerror}), expected a directory "
                "this user can write to; choose another one"
            ) from error

    def _read_back(self) -> None:
        for leftover in (self.directory / INCOMING).iterdir():
            leftover.unlink()
        path = self.directory / RECEIPTS
        whole = path.read_bytes().rfind(b"\n") + 1
        os.ftruncate(self._fd, whole)  # a crash may have left half a line; nothing may follow it
        self._folders.clear()
        with self._lock:
            for _, receipt in _lines(self.directory):
                if receipt is not None and receipt.key not in self._receipts:
                    self._receipts[receipt.key] = receipt
                    self._attempts[receipt.key] = receipt.attempts

    def close(self) -> None:
        with self._lock:
            if self._fd >= 0:
                # Unlocked by hand: a forked child may still hold the descriptor.
                fcntl.flock(self._fd, fcntl.LOCK_UN)
                os.close(self._fd)
                self._fd = -1

    def seen(self, key: Key) -> None:
        """Count a request for the key."""
        with self._lock:
            self._attempts[key] += 1

    def receive(self, pieces: Iterable[memoryview]) -> Draft:
        """Write a body aside while hashing it; a body that breaks off leaves nothing."""
        path = self.directory / INCOMING / str(next(self._names))
        digest, size = hashlib.sha256(), 0
        try:
            with path.open("xb") as file:
                for piece in pieces:
                    file.write(piece)
                    digest.update(piece)
                    size += len(piece)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return Draft(path, bytes=size, sha256=digest.hexdigest())

    def keep(self, draft: Draft, *, key: Key, start: str, duration: float) -> Kept:
        """Store a draft unless its key is known; the draft is gone afterwards."""
        with self._lock:
            known = self._receipts.get(key)
            if known is not None:
                draft.discard()
                if known.sha256 != draft.sha256:
                    return "conflict"
                self._duplicates[key] += 1
                return "duplicate"
            if self._fd < 0:
                draft.discard()
                raise StoreClosedError
            self._store(draft, key=key, start=start, duration=duration)
            return "stored"

    def _store(self, draft: Draft, *, key: Key, start: str, duration: float) -> None:
        receipt = Receipt(
            key.camera,
            session=key.session,
            sequence=key.sequence,
            path=_place(self.directory, key),
            bytes=draft.bytes,
            sha256=draft.sha256,
            start=start,
            duration=duration,
            received_at=time.time(),
            attempts=self._attempts[key] or 1,
        )
        try:
            self._move(draft.path, receipt.path)
            self._append(receipt)
        except OSError:
            draft.discard()
            receipt.path.unlink(missing_ok=True)
            raise
        self._receipts[key] = receipt

    def _move(self, draft: Path, final: Path) -> None:
        if final.parent not in self._folders:
            final.parent.mkdir(parents=True, exist_ok=True)
            self._folders.add(final.parent)
        draft.replace(final)

    def _append(self, receipt: Receipt) -> None:
        fields = asdict(receipt) | {"path": str(receipt.path.relative_to(self.directory))}
        line = json.dumps(fields, separators=(",", ":")).encode() + b"\n"
        size = os.fstat(self._fd).st_size
        try:
            written = os.write(self._fd, line)
        except OSError:
            written = 0
        if written < len(line):
            with suppress(OSError):
                os.ftruncate(self._fd, size)
            raise OSError("found no room for a receipt")

    def receipts(self) -> list[Receipt]:
        """Return what is stored, in the order it came, with the counts as they are now."""
        with self._lock:
            return [
                replace(
                    receipt,
                    attempts=max(self._attempts[key], 1),
                    duplicates=self._duplicates[key],
                )
                for key, receipt in self._receipts.items()
            ]

    def cameras(self) -> set[str]:
        with self._lock:
            return {key.camera for key in self._receipts}


def verify(directory: Path) -> list[str]:
    """Hash every stored file again and list, in sentences, what does not match its receipt."""
    found = {path for path in directory.glob("[!.]*/*/*") if path.suffix == ".ts"}
    problems: list[str] = []
    if not (directory / RECEIPTS).is_file():
        problems.append(f"{directory / RECEIPTS}: missing")
    known: set[Key] = set()
    for number, receipt in _lines(directory):
        if receipt is None:
            problems.append(f"{RECEIPTS} line {number}: no receipt")
        elif receipt.key in known:
            problems.append(f"{RECEIPTS} line {number}: {_name(receipt)} is receipted twice")
        else:
            known.add(receipt.key)
            problems += _check(receipt)
    expected = {_place(directory, key) for key in known}
    problems += [f"{path.relative_to(directory)}: no receipt" for path in sorted(found - expected)]
    return problems


def _check(receipt: Receipt) -> list[str]:
    try:
        size, sha256 = _measure(receipt.path)
    except OSError as error:
        return [f"{_name(receipt)}: {error.strerror}"]
    if size != receipt.bytes:
        return [f"{_name(receipt)}: found {size} bytes, expected {receipt.bytes}"]
    if sha256 != receipt.sha256:
        return [f"{_name(receipt)}: found sha256 {sha256}, expected {receipt.sha256}"]
    return []


def _measure(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return file.tell(), digest.hexdigest()


def _name(receipt: Receipt) -> str:
    return f"{receipt.camera}/{receipt.session}/{receipt.path.name}"


def _place(directory: Path, key: Key) -> Path:
    return directory / key.camera / key.session / f"{key.sequence:08d}.ts"


def _lines(directory: Path) -> Iterator[tuple[int, Receipt | None]]:
    """Read the receipts with their line numbers; None stands for a line that is no receipt."""
    try:
        file = (directory / RECEIPTS).open("rb")
    except FileNotFoundError:
        return
    with file:
        for number, line in enumerate(file, start=1):
            yield number, _receipt(directory, line)


def _receipt(directory: Path, line: bytes) -> Receipt | None:
    try:
        fields: dict[str, Any] = json.loads(line)
        key = Key(fields["camera"], fields["session"], int(fields["sequence"]))
        # A receipt is never trusted to name a place: the path is made from the key again.
        if not (is_camera(key.camera) and SESSION.fullmatch(key.session)):
            return None
        return Receipt(
            **fields | {"path": _place(directory, key), "sequence": key.sequence},
        )
    except (ValueError, KeyError, TypeError, OverflowError):
        return None
