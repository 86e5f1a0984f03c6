"""The judge of a chaos run. It shares no code with what it judges.

It holds what the witness saw being written against what the ingest stored, what the spool still owes and
what the journal says: every segment that holds whole packets must be at the ingest byte for byte, or still
owed, or explained; the ingest must hold nothing else; what left the spool must have a line in the journal.
A starved witness can miss a piece that ffmpeg began just before it was killed, and that was salvaged, sent
and deleted within milliseconds. For very few of these the journal and its digest may stand in.
"""

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.witness import CLOSED, PACKET, Key, Seen

SYNC = 0x47
STATE_FILES = {"breaker.json", "broker.json", "ballast"}
STATE_PATTERNS = (
    "refused-*.json",
    "rejects-*.json",
    "narrow-*.json",
    "live-*.bin",
    "*.lock",
    "worker-*.pulse",
)
SWEPT_SECONDS = 180.0  # what a killed writer left half written may stay so long
SAMPLE = 12  # segments that are decoded
MOST_UNSEEN = 0.01  # of all segments; two in any case


@dataclass
class Verdict:
    """What became of everything that was seen."""

    segments: int = 0
    delivered: int = 0
    owed: int = 0
    explained: int = 0
    unseen: int = 0
    journal_lines: int = 0
    torn_lines: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Journal:
    """What the journal says, by event, the digests of what was delivered, and how many lines were torn."""

    events: dict[str, set[Key]]
    digests: dict[Key, str]
    lines: int
    torn: int

    def says(self, *events: str) -> set[Key]:
        return set().union(*(self.events.get(event, set()) for event in events))


def judge(seen: Sequence[Seen], spool: Path, ingest: Path) -> Verdict:
    """Hold what was seen against what the ingest stored, what the spool still owes, and the journal."""
    stored, owed, journal = dict(_stored(ingest)), dict(_in_spool(spool)), read_journal(spool)
    rejected = dict(_in_spool(spool, "rejected/"))
    verdict = Verdict(segments=len(seen), journal_lines=journal.lines, torn_lines=journal.torn)
    for segment in seen:
        _judge_one(segment, stored, owed, journal, verdict)
        key = (segment.session, segment.sequence)
        if {**rejected, **owed}.get(key, segment.sha256) != segment.sha256:
            verdict.problems.append(f"altered in the spool: {key}")
    known = {(segment.session, segment.sequence) for segment in seen}
    for where, there in (("at the ingest", stored), ("owed", owed), ("rejected", rejected)):
        for key in there.keys() - known:
            if where == "at the ingest" and _is_told(key, there[key], journal):
                verdict.unseen += 1
            else:
                verdict.problems.append(f"invented: {key} is {where}, and nobody wrote it")
    if verdict.unseen > max(2, MOST_UNSEEN * len(seen)):
        verdict.problems.append(f"the witness missed {verdict.unseen} segments: what it saw proves little")
    verdict.problems += list(_leaks(spool))
    return verdict


def _is_told(key: Key, sha256: str, journal: Journal) -> bool:
    """Tell whether the journal says that such a segment was closed, and delivered as it is stored."""
    return key in journal.says("closed", "recovered") and journal.digests.get(key) == sha256


def _judge_one(
    segment: Seen, stored: dict[Key, str], owed: dict[Key, str], journal: Journal, verdict: Verdict
) -> None:
    key = (segment.session, segment.sequence)
    if segment.damage:
        verdict.problems.append(f"damaged in the spool: {key}, {segment.damage}")
    if key in stored:
        verdict.delivered += 1
        if stored[key] != segment.sha256:
            verdict.problems.append(f"altered: {key} is not what was written")
        if key not in owed and key not in journal.says("delivered", "rejected", "dropped"):
            verdict.problems.append(f"gone without a line: {key} was stored and left the spool")
    elif key in owed:
        verdict.owed += 1
    elif key in journal.says("rejected", "dropped"):
        verdict.explained += 1
    else:
        claim = "; the journal says delivered" if key in journal.says("delivered") else ""
        verdict.problems.append(f"lost: {key}, {segment.size} bytes{claim}")


def read_journal(spool: Path) -> Journal:
    """Read every line; one that a crash tore says nothing, and is counted."""
    events: dict[str, set[Key]] = {}
    digests: dict[Key, str] = {}
    lines = torn = 0
    for path in sorted(spool.glob("journal/*/*.jsonl")):
        for line in path.read_bytes().splitlines():
            lines += 1
            entry = _parsed(line)
            if entry is None:
                torn += 1
            elif "segment" in entry:
                key = (str(entry["session"]), int(str(entry["segment"]).split("_")[0]))
                events.setdefault(str(entry["event"]), set()).add(key)
                digests |= {key: str(entry["sha256"])} if "sha256" in entry else {}
    return Journal(events, digests, lines, torn)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and "event" in entry else None


def _stored(ingest: Path) -> Iterator[tuple[Key, str]]:
    for path in ingest.glob("*/*/*.ts"):
        camera, session = path.parts[-3:-1]
        key = (f"relay-segments-{camera}-{session}", int(path.stem))
        yield key, hashlib.sha256(path.read_bytes()).hexdigest()


def _in_spool(spool: Path, folder: str = "") -> Iterator[tuple[Key, str]]:
    """Yield the closed segments that are still there."""
    for path in spool.glob(f"relay-segments-*/{folder}*.ts"):
        if match := CLOSED.fullmatch(path.name):
            session = path.relative_to(spool).parts[0]
            yield (session, int(match[1])), hashlib.sha256(path.read_bytes()).hexdigest()


# --- what was left lying about ---------------------------------------------------------------------


def _leaks(spool: Path) -> Iterator[str]:
    for path in sorted(spool.rglob("*.tmp")):
        if time.time() - path.lstat().st_mtime > SWEPT_SECONDS:
            yield f"leaked: {path.relative_to(spool)}, a temporary file"
    for path in sorted(spool.glob("relay-segments-*/open/*")):
        yield f"leaked: {path.relative_to(spool)}, open and nobody writes it"
    yield from _pile(spool)


def _pile(spool: Path) -> Iterator[str]:
    """Find what would pile up over the years: notes about sessions that are gone, files nobody knows."""
    sessions = {path.name for path in spool.glob("relay-segments-*")}
    for path in sorted(spool.glob(".state/*")):
        if path.name in STATE_FILES or any(path.match(pattern) for pattern in STATE_PATTERNS):
            continue
        if path.suffix == ".tmp":
            continue  # said above
        if not path.name.startswith("asked-"):
            yield f"leaked: {path.relative_to(spool)}, a file that the contract does not know"
        elif not any(path.name.startswith(f"asked-{name}.") for name in sessions):
            yield f"leaked: {path.relative_to(spool)}, about a session that is gone"


def held_locks(folder: Path) -> list[str]:
    """Return the files below a folder that anybody still holds a lock on (as Linux tells)."""
    locked = {line.split()[5].rpartition(":")[2] for line in _lines("/proc/locks") if "->" not in line}
    found = []
    for directory, names, files in os.walk(folder):
        paths = [Path(directory, name) for name in (*names, *files)]
        found += [str(path) for path in paths if str(path.lstat().st_ino) in locked]
    return found


def listening_sockets(folder: Path) -> list[str]:
    """Return the Unix sockets below a folder that somebody still holds (as Linux tells)."""
    return sorted({line.split()[-1] for line in _lines("/proc/net/unix") if f" {folder}/" in line})


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except FileNotFoundError:
        return []


# --- does it play? ---------------------------------------------------------------------------------


def sample(spool: Path, ingest: Path, count: int = SAMPLE) -> list[Path]:
    """Return stored segments that ffmpeg itself brought to their end, spread evenly over the run."""
    journal = read_journal(spool)
    whole = journal.says("closed") - journal.says("recovered")
    paths = [path for path in sorted(ingest.glob("*/*/*.ts")) if _key(path) in whole]
    return paths[:: max(1, len(paths) // count)][:count]


def _key(path: Path) -> Key:
    camera, session = path.parts[-3:-1]
    return f"relay-segments-{camera}-{session}", int(path.stem)


def decoding_problems(paths: Iterable[Path], ffmpeg: str) -> Iterator[str]:
    """Decode segments, each by itself: as many frames must come out as were put in, and no complaint."""
    for path in paths:
        argv = [ffmpeg, "-nostdin", "-v", "warning", "-f", "mpegts", "-i", str(path)]
        argv += ["-fps_mode", "passthrough", "-map", "0:v", "-f", "framecrc", "-"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
        frames = sum(1 for line in done.stdout.splitlines() if line[:1] not in {"#", ""})
        written = frames_written(path.read_bytes())
        if done.returncode or done.stderr.strip():
            yield f"does not decode cleanly: {_key(path)}: {done.stderr.strip()[:300]}"
        elif frames != written:
            yield f"frames: {_key(path)} holds {written} and decodes to {frames}"


def frames_written(stream: bytes) -> int:
    """Count the pictures of a transport stream by its packets: each begins a unit of a video stream."""
    return sum(_begins_picture(stream[at : at + PACKET]) for at in range(0, len(stream), PACKET))


def _begins_picture(packet: bytes) -> bool:
    if len(packet) < PACKET or packet[0] != SYNC or not packet[1] & 0x40 or not packet[3] & 0x10:
        return False
    start = 5 + packet[4] if packet[3] & 0x20 else 4  # after an adaptation field
    return packet[start : start + 3] == b"\0\0\1" and b"\xe0" <= packet[start + 3 : start + 4] < b"\xf0"
