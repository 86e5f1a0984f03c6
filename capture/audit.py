"""The audit: proves from the journal and the directories that no segment is unaccounted for.

Each segment that the journal ever named, or that lies in a session directory, is delivered, owed, rejected
or dropped. A fault is what breaks that proof; a note is what looks odd and has a harmless explanation.

Faults: a segment without a file and without an outcome; a journal line that is torn or not ours; one sequence
number with two names; a hole in a session's numbers; a size or a digest that is not the one that was closed.

Notes, and why they are harmless:

* A file, or an outcome, that no line announced: power loss takes the last lines of the journal, never the
  file, and a journal that cannot be written does not stop a segment.
* A file whose delivery or drop is journalled: the line comes first, then a crash came. It is sent once more.
* An empty file: delivered, and a full disk had no room for the line (see `capture.claim`).
* A hole where ffmpeg was started anew: it opened a file, got no packet, and salvage removed the empty file.
  The journal shows a gap line between the two neighbours of such a hole, unless the upper one was not closed
  by its own agent: then the line that would have told died with that agent, and where salvage died too, so
  did its own. A session's first numbers may also be missing from the first session that the journal knows,
  which has no video before it to miss.
* The first numbers of a session that began before the journal's first day: the days that told of them were
  put away, by hand or as `spool.keep_journal` says.

What no audit of these files can see, because what is left is what an honest history leaves:

* The newest segments of a session, when lines and files are gone together; and so a whole session or camera.
* The oldest days of the journal, when nothing of them is owed any more: as if somebody had put them away.
* A segment whose line and file are gone where a note above explains the hole: between a gap line and the next
  closing, or right below a salvaged segment.
* A line of a gap. An announcement (`closed`, `rejected`, `requeued`) of what the journal settles, or of what
  is still here: only a note tells of the latter.
* A flipped byte in a file that is owed or rejected, or a rejected one cut short, unless the audit is asked
  to read the files. What was delivered is always compared: both lines bear a digest, unless a full disk
  came between. So is only the first of two outcomes of one segment, where a crash made a second.
* A line that was changed into another true-looking one. The journal is no seal against its owner.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any


class Kind(StrEnum):
    """What was found: first the faults, then the notes."""

    LOST = "lost"
    TORN = "torn"
    FOREIGN = "foreign"
    DUPLICATE = "duplicate"
    HOLE = "hole"
    SIZE = "size"
    CONTENT = "content"
    UNANNOUNCED = "unannounced"
    STILL_PRESENT = "still_present"
    UNJOURNALLED = "unjournalled"
    RESTART = "restart"
    PUT_AWAY = "put_away"


FAULTS = frozenset({Kind.LOST, Kind.TORN, Kind.FOREIGN, Kind.DUPLICATE, Kind.HOLE, Kind.SIZE, Kind.CONTENT})


@dataclass(frozen=True)
class Finding:
    """One fault or note, in words; with the session and the segment where there are such."""

    kind: Kind
    text: str
    session: str | None = None
    segment: str | None = None


@dataclass(frozen=True)
class Gap:
    """A time without video, as journalled."""

    start: str
    end: str
    seconds: float
    cause: str


@dataclass(frozen=True)
class CameraReport:
    """What the audit of one camera found. The five counts of segments add up to `segments`."""

    camera: str
    sessions: int
    segments: int
    delivered: int
    owed: int
    rejected: int
    dropped: int
    unaccounted: int
    counts: Mapping[Kind, int]  # of findings
    findings: tuple[Finding, ...]  # the first ones
    gap_count: int
    gap_seconds: float
    gaps: tuple[Gap, ...]  # the last ones

    @property
    def faults(self) -> int:
        return sum(count for kind, count in self.counts.items() if kind in FAULTS)


@dataclass(frozen=True)
class SessionFiles:
    """What lies in a session directory: closed segments with their bytes, rejected ones, open ones.

    `digests` holds the SHA-256 of those that were read.
    """

    owed: Mapping[str, int] = field(default_factory=dict)
    rejected: frozenset[str] = frozenset()
    open: frozenset[int] = frozenset()
    digests: Mapping[str, str] = field(default_factory=dict)


Listing = Mapping[str, SessionFiles]
NO_FILES = SessionFiles()


def as_json(reports: Iterable[CameraReport], spool: Path) -> dict[str, Any]:
    """Return what `audit --json` prints.

    ``{"format": 1, "spool", "ok", "cameras": [{"camera", "ok", "sessions", "segments", "delivered", "owed",
    "rejected", "dropped", "unaccounted", "faults": {kind: count}, "notes": {kind: count}, "findings":
    [{"kind", "text", "session", "segment"}], "gap_count", "gap_seconds", "gaps": [{"start", "end",
    "seconds", "cause"}]}]}``. Findings are the first 200 of a camera, gaps its last 1000.
    """
    rows = [_row(report) for report in reports]
    return {"format": 1, "spool": str(spool), "ok": all(row["ok"] for row in rows), "cameras": rows}


def _row(report: CameraReport) -> dict[str, Any]:
    plain = ("camera", "sessions", "segments", "delivered", "owed", "rejected", "dropped", "unaccounted")
    return {
        "ok": report.faults == 0,
        **{key: getattr(report, key) for key in plain},
        "faults": {str(kind): count for kind, count in report.counts.items() if kind in FAULTS},
        "notes": {str(kind): count for kind, count in report.counts.items() if kind not in FAULTS},
        "findings": [vars(finding) for finding in report.findings],
        "gap_count": report.gap_count,
        "gap_seconds": report.gap_seconds,
        "gaps": [vars(gap) for gap in report.gaps],
    }
