"""The evidence of a demo run: what the journal, the ingest's store and a decoder say."""

import hashlib
import math
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

from capture.demo_result import Decoded, Wait
from capture.ffmpeg import Progress, StdoutParser
from capture.journal import Event
from capture.process import Child, Output, Stream, describe_exit
from capture.segment import SegmentName
from capture.session import lock_session
from capture.sink import Receipt, verify
from capture.spool import Spool

DECODE_SECONDS = 60.0
GONE_SECONDS = 2.0
_READ_SECONDS = 1.0
_FIRST_FRAME = re.compile(rb"Parsed_showinfo.*\bn: *0 .*\biskey:([01])")
_COMPLAINT = re.compile(rb"\[(?:error|fatal)\] *(.*)|(.*corrupt.*)", re.IGNORECASE)


@dataclass(frozen=True)
class Piece:
    """One segment as the journal tells it. Times in seconds since 1970; None: not yet."""

    sequence: int
    closed_at: float
    bytes: int
    delivered_at: float | None = None
    sha256: str = ""

    @property
    def wait(self) -> float | None:
        """Seconds from closed to confirmed."""
        return None if self.delivered_at is None else max(0.0, self.delivered_at - self.closed_at)


@dataclass(frozen=True)
class Story:
    """What the journal of one camera says. Numbers that stand twice in it stand twice here."""

    pieces: tuple[Piece, ...] = ()
    captured: tuple[int, ...] = ()
    delivered: tuple[int, ...] = ()
    rejected: int = 0
    dropped: int = 0
    gaps: tuple[str, ...] = ()
    torn: int = 0


def read_story(spool: Spool, camera: str) -> Story:
    """Read the journal of a camera from its beginning."""
    captured: list[int] = []
    delivered: list[int] = []
    pieces: dict[int, Piece] = {}
    gaps: list[str] = []
    other = dict.fromkeys((Event.REJECTED, Event.DROPPED, None), 0)
    for entry in spool.journal.read(camera):
        segment = SegmentName.parse(str(entry.fields.get("segment")))
        if entry.event in other:
            other[entry.event] += 1
        elif entry.event is Event.GAP:
            gaps.append(f"{entry.fields.get('seconds')} s without video: {entry.fields.get('cause')}")
        elif segment is not None and entry.event in {Event.CLOSED, Event.RECOVERED}:
            captured.append(segment.sequence)
            pieces[segment.sequence] = Piece(
                segment.sequence, _moment(entry.fields), int(entry.fields["bytes"])
            )
        elif segment is not None and entry.event is Event.DELIVERED:
            delivered.append(segment.sequence)
            _deliver(pieces, segment.sequence, entry.fields)
    ordered = tuple(pieces[number] for number in sorted(pieces))
    return Story(
        ordered,
        tuple(captured),
        tuple(delivered),
        rejected=other[Event.REJECTED],
        dropped=other[Event.DROPPED],
        gaps=tuple(gaps),
        torn=other[None],
    )


def _deliver(pieces: dict[int, Piece], sequence: int, fields: Mapping[str, object]) -> None:
    if (piece := pieces.get(sequence)) is not None:
        pieces[sequence] = Piece(
            sequence, piece.closed_at, piece.bytes, _moment(fields), str(fields.get("sha256"))
        )


def _moment(fields: Mapping[str, object]) -> float:
    return datetime.fromisoformat(str(fields["t"])).timestamp()


@dataclass(frozen=True)
class Window:
    """The outage, in seconds since 1970, and when the relay noticed its end: the first delivery after it."""

    begin: float
    end: float
    noticed: float

    @classmethod
    def of(cls, outage: tuple[float, float], pieces: Sequence[Piece]) -> Self:
        """Find out when its end was noticed."""
        begin, end = outage
        after = [at for piece in pieces if (at := piece.delivered_at) is not None and at >= end]
        return cls(begin, end, min(after, default=math.inf))

    def delayed(self, piece: Piece) -> bool:
        """Tell whether a segment was owed while the cloud was out, or waited until that was noticed."""
        delivered_at = math.inf if piece.delivered_at is None else piece.delivered_at
        was_owed = piece.closed_at < self.end and delivered_at > self.begin
        has_waited = piece.closed_at < self.noticed < delivered_at and delivered_at > self.end
        return was_owed or has_waited


def waits(pieces: Sequence[Piece], outage: tuple[float, float] | None) -> tuple[Wait, ...]:
    """Return how long each delivered segment waited, and whether the outage was why."""
    window = Window.of(outage, pieces) if outage else None
    return tuple(
        Wait(piece.sequence, piece.wait, in_outage=window is not None and window.delayed(piece))
        for piece in pieces
        if piece.wait is not None
    )


def wrong_digests(directory: Path, receipts: Sequence[Receipt], pieces: Sequence[Piece]) -> tuple[str, ...]:
    """Hash every stored file again; list what differs from its receipt or from the journal."""
    problems = verify(directory)
    journalled = {piece.sequence: piece.sha256 for piece in pieces}
    for receipt in receipts:
        sha256 = _sha256(receipt.path)
        if sha256 != journalled.get(receipt.sequence):
            problems.append(
                f"segment {receipt.sequence}: found sha256 {sha256[:12] or 'of nothing'} in the store, "
                f"expected {(journalled.get(receipt.sequence) or 'none')[:12]} as the journal has it"
            )
    return tuple(problems)


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def join(receipts: Sequence[Receipt], target: Path) -> Path:
    """Write the stored segments one after the other, by sequence, into one file."""
    with target.open("wb") as joined:
        for receipt in sorted(receipts, key=lambda receipt: receipt.sequence):
            with receipt.path.open("rb") as file:
                shutil.copyfileobj(file, joined)
    return target


def decode(ffmpeg: str, path: Path) -> Decoded:
    """Decode a file to its end: every frame is made, none doubled, none left out."""
    argv = [
        *(ffmpeg, "-hide_banner", "-nostdin", "-nostats", "-progress", "pipe:1", "-loglevel", "level+info"),
        *("-i", f"file:{path}", "-map", "0:v:0", "-fps_mode", "passthrough"),
        *("-vf", "showinfo=checksum=0", "-f", "null", "-"),
    ]
    env = {key: value for key, value in os.environ.items() if not key.startswith("RELAY_")}
    frames, key, errors = 0, False, list[str]()
    parser, words = StdoutParser(), bytearray()
    give_up_at = time.monotonic() + DECODE_SECONDS
    with Child(argv, env=env, stdout=Stream.PIPE, stderr=Stream.PIPE) as child, Output(child) as output:
        while (not output.eof or child.poll() is None) and time.monotonic() < give_up_at:
            for stream, data in output.read(_READ_SECONDS):
                if stream == "stderr":
                    key = _read_words(words, data, errors) or key
                    continue
                reports = [event for event in parser.feed(data) if isinstance(event, Progress)]
                frames = max([frames, *(report.frames for report in reports)])
        code = child.poll()
    if code != 0:
        errors.append(f"the decoder {'did not end' if code is None else describe_exit(code)}")
    return Decoded(frames, key, tuple(errors))


def _read_words(words: bytearray, data: bytes, errors: list[str]) -> bool:
    """Take the decoder's next words, note complaints; tell whether they say "first frame: key frame"."""
    words += data
    *lines, rest = bytes(words).split(b"\n")
    words[:] = rest
    key = False
    for line in lines:
        if first := _FIRST_FRAME.search(line):
            key = first[1] == b"1"
        elif complaint := _COMPLAINT.search(line):
            text = (complaint[1] or complaint[2] or b"").decode("utf-8", "replace")
            errors.append("".join(char for char in text if char.isprintable()))
    return key


# --- what is left ----------------------------------------------------------------------------------


def still_running(spool: Spool, groups: Mapping[int, str]) -> tuple[str, ...]:
    """Return what has not gone within a moment: process groups by name, and any ffmpeg of a session.

    ffmpeg holds the lock of its session for as long as it lives, so a free lock says that it is gone.
    """
    deadline = time.monotonic() + GONE_SECONDS
    while (left := _left(spool, groups)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _left(spool: Spool, groups: Mapping[int, str]) -> tuple[str, ...]:
    found = [f"{name} (process {pid})" for pid, name in groups.items() if _group_lives(pid)]
    for session in spool.sessions():
        lock = lock_session(spool.session_path(session))
        if lock is None:
            found.append(f"ffmpeg of {session}")
        else:
            os.close(lock)
    return tuple(found)


def _group_lives(pid: int) -> bool:
    with suppress(ChildProcessError):  # as process 1 of a container we inherit what the worker left
        while os.waitpid(-pid, os.WNOHANG)[0]:
            pass
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's by now
        return False
    return True


def tail(path: Path, lines: int) -> list[str]:
    """Return the last lines of a log that say that something is wrong, or else just its last ones."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    loud = [line for line in text if re.search(r"\b(warning|error|critical|Traceback)\b", line)]
    return (loud or text)[-lines:]
