"""What outage.py found, in tables and verdicts."""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from statistics import median
from typing import Any

from benchmarks.figures import MIB, most_at_once, per_minute, table, verdict
from benchmarks.processes import Usage, cpu_between, total_memory
from benchmarks.relay import pile
from capture.settings import IngestSettings
from capture.sink import Receipt, SinkEvent

MESSAGES_PER_CAMERA = 4
UNAWARE_SLACK = 5.0  # seconds
CURRENT_SLACK = 2.0  # seconds beyond a segment's length within which live counts as current


@dataclass(frozen=True)
class Sample:
    """The relay at one moment: messages by queue, use by process, and the ends of what is owed."""

    at: float
    messages: Mapping[str, int] | None
    usage: Mapping[int, Usage]
    owed_ends: Sequence[float]


@dataclass
class Found:
    """All that was seen of one outage; moments in seconds since 1970."""

    how: str
    options: argparse.Namespace
    samples: list[Sample]
    heads: list[float]
    events: list[SinkEvent]
    failures: list[tuple[float, int]]  # that the workers noted, since the line before
    refusals: list[
        tuple[float, int]
    ]  # of the whole machine, since the line before; empty where nobody counts
    settled_at: float = 0.0
    down_at: float = 0.0
    up_at: float = 0.0
    drained_at: float = 0.0
    watched_until: float = 0.0
    owed_at_return: int = 0
    owed_at_end: int = 0
    receipts: list[Receipt] = field(default_factory=list)
    exit_code: int = -1
    audit_code: int = -1
    audit_words: str = ""
    bare_rate: float = 0.0
    segment_bytes: int = 0

    def between(self, begin: float, end: float) -> list[Sample]:
        return [sample for sample in self.samples if begin <= sample.at < end]

    def requests(self) -> list[int]:
        """Return the requests of each minute of the outage."""
        if self.how == "refuse":
            return per_minute(_each(self.failures), self.down_at, self.up_at)
        return per_minute(self.heads, self.down_at, self.up_at)

    def refused(self, begin: float, end: float) -> list[int] | None:
        """Return the refused connections of the whole machine in each minute; None where nobody counts."""
        return per_minute(_each(self.refusals), begin, end) if self.refusals else None

    def most_in_a_second(self) -> int:
        moments = Counter(int(at - self.down_at) for at in self.heads if self.down_at <= at < self.up_at)
        return max(moments.values(), default=0)

    def at_once(self) -> int:
        """Return how many requests the ingest had in its hands at most, in the outage."""
        spans = [(max(e.at - e.seconds, self.down_at), min(e.at, self.up_at)) for e in self.events]
        return most_at_once(span for span in spans if span[0] < span[1])

    def messages(self, begin: float, end: float) -> list[int]:
        return [pile(sample.messages) for sample in self.between(begin, end) if sample.messages is not None]

    def ends(self) -> list[tuple[float, str, float]]:
        """Return for each confirmed segment when it came, its camera, and when it ended."""
        found = [
            (r.received_at, r.camera, datetime.fromisoformat(r.start).timestamp() + r.duration)
            for r in self.receipts
        ]
        return sorted(found)

    def cameras(self) -> list[str]:
        return [f"cam{number}" for number in range(self.options.cameras)]

    def every_camera_after(self) -> float | None:
        return seconds_until_all_new(self.ends(), self.cameras(), self.up_at)

    def current_after(self) -> float | None:
        limit = self.options.segment + CURRENT_SLACK
        return seconds_until_current(self.ends(), self.cameras(), self.up_at, limit=limit)

    def stayed_current(self) -> float | None:
        """Return for which share of the time it stayed so, once live was current; None if it never was."""
        after = self.current_after()
        if after is None:
            return None
        limit, ends = self.options.segment + CURRENT_SLACK, self.ends()
        moments = [
            sample.at for sample in self.samples if self.up_at + after <= sample.at < self.watched_until
        ]
        good = [is_current(ends, self.cameras(), moment, limit=limit) for moment in moments]
        return sum(good) / len(good) if good else None

    def cpu(self, begin: float, end: float) -> float:
        """Return the share of one processor that all processes used together."""
        samples = [sample for sample in self.between(begin, end) if sample.usage]
        used = sum(
            cpu_between(a.usage, b.usage) for a, b in pairwise(samples) if a.usage.keys() & b.usage.keys()
        )
        return used / (samples[-1].at - samples[0].at) if len(samples) > 1 else float("nan")

    def memory(self, begin: float, end: float) -> list[int]:
        return [total_memory(s.usage.values()) for s in self.between(begin, end) if s.usage]

    def ideal_drain(self) -> float:
        """Return the seconds in which plain httpx would have sent what was owed at the return."""
        return self.owed_at_return * self.segment_bytes / self.bare_rate if self.bare_rate else float("nan")

    def as_data(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        return {
            "how": self.how,
            "requests_per_minute": self.requests(),
            "refused_connections_of_this_machine": self.refused(self.down_at, self.up_at),
            "failures_noted": [[at - self.down_at, count] for at, count in self.failures if count],
            "refusals_counted": [[at - self.down_at, count] for at, count in self.refusals if count],
            "at_once": self.at_once(),
            "messages": [[s.at - self.down_at, s.messages] for s in self.samples],
            "memory": [[s.at - self.down_at, total_memory(s.usage.values())] for s in self.samples],
            "owed": [[s.at - self.down_at, len(s.owed_ends)] for s in self.samples],
            "cpu_before": self.cpu(self.settled_at, self.down_at),
            "cpu_during": self.cpu(self.down_at, self.up_at),
            "every_camera_after": self.every_camera_after(),
            "current_after": self.current_after(),
            "drained_after": self.drained_at - self.up_at,
            "ideal_drain": self.ideal_drain(),
            "owed_at_return": self.owed_at_return,
            "owed_at_end": self.owed_at_end,
            "duplicates": sum(receipt.duplicates for receipt in self.receipts),
            "exit_code": self.exit_code,
            "audit": self.audit_code,
        }


def _each(counts: Sequence[tuple[float, int]]) -> list[float]:
    """Return one moment for each that was counted."""
    return [at for at, count in counts for _ in range(count)]


def is_current(
    ends: Sequence[tuple[float, str, float]], cameras: Sequence[str], moment: float, *, limit: float
) -> bool:
    """Tell whether the newest confirmed segment of every camera is younger than `limit` seconds."""
    newest = dict.fromkeys(cameras, 0.0)
    for came, camera, end in ends:
        if came <= moment and camera in newest:
            newest[camera] = max(newest[camera], end)
    return all(moment - end <= limit for end in newest.values())


def seconds_until_current(
    ends: Sequence[tuple[float, str, float]], cameras: Sequence[str], since: float, *, limit: float
) -> float | None:
    """Return after how many seconds live was current for the first time; None if never."""
    moments = sorted(came for came, _, _ in ends if came >= since)
    found = (moment - since for moment in moments if is_current(ends, cameras, moment, limit=limit))
    return next(found, None)


def seconds_until_all_new(
    ends: Sequence[tuple[float, str, float]], cameras: Sequence[str], since: float
) -> float | None:
    """Return until every camera had a segment confirmed that was closed after `since`; None if never."""
    first: dict[str, float] = {}
    for came, camera, end in sorted(ends):
        if end >= since:
            first.setdefault(camera, came - since)
    return max(first.values()) if set(cameras) <= set(first) else None


def show(found: Found) -> int:
    """Print one outage; return the exit code."""
    minutes = (found.up_at - found.down_at) / 60
    print(f"\n{found.how}: {minutes:.1f} min, {found.owed_at_return} owed at the return\n")
    print(table(["", "before", "outage", "after"], _rows(found)))
    print()
    verdicts = _verdicts(found)
    for name, holds, words in verdicts:
        print(verdict(name, holds, words))
    if found.audit_code:
        print(found.audit_words[-2000:])
    return 0 if all(holds is not False for _, holds, _ in verdicts) else 1


def _rows(found: Found) -> list[list[str]]:
    spans = (
        (found.settled_at, found.down_at),
        (found.down_at, found.up_at),
        (found.up_at, found.drained_at),
    )
    before, _, after = [
        sum(begin <= at < end for at in found.heads) * 60 / (end - begin) for begin, end in spans
    ]
    requests = found.requests()
    memory = [found.memory(*span) for span in spans]
    messages = [found.messages(*span) for span in spans]
    rows = [
        [
            "requests in a minute, mean",
            f"{before:.0f}",
            f"{sum(requests) / len(requests):.1f}",
            f"{after:.0f}",
        ],
        ["requests in a minute, most", "", str(max(requests)), ""],
        [
            "requests in a second, most",
            "",
            str(found.most_in_a_second()) if found.how != "refuse" else "-",
            "",
        ],
        ["requests at once, most", "", str(found.at_once()) if found.how != "refuse" else "-", ""],
        ["messages in the broker, median", *(f"{median(each):g}" if each else "-" for each in messages)],
        ["messages in the broker, most", *(str(max(each, default=0)) for each in messages)],
        ["CPU of all, % of one core", *(f"{100 * found.cpu(*span):.1f}" for span in spans)],
        ["memory of all (PSS), most, MiB", *(f"{max(each, default=0) / MIB:.0f}" for each in memory)],
        [
            "memory of all (PSS), at the end, MiB",
            *(f"{each[-1] / MIB:.0f}" if each else "-" for each in memory),
        ],
    ]
    if found.how == "refuse":
        counts = [found.refused(*span) for span in spans[:2]]
        cells = ["-" if each is None else str(max(each)) for each in counts]
        rows.insert(3, ["refused connections of the machine, most", *cells, ""])
    return rows


def _verdicts(found: Found) -> list[tuple[str, bool | None, str]]:
    options = found.options
    current, new = found.current_after(), found.every_camera_after()
    stayed = found.stayed_current()
    drain, ideal = found.drained_at - found.up_at, found.ideal_drain()
    duplicates = sum(receipt.duplicates for receipt in found.receipts)
    return [
        _trickle(found),
        _no_pile(found),
        _within("live is current again", current, options.current_within),
        _within("every camera's new video is confirmed", new, options.current_within),
        ("live stays current from then on", None, "never" if stayed is None else f"{stayed:.0%} of the time"),
        (
            "the backlog is gone",
            None,
            f"{drain:.1f} s after the return; plain httpx would have sent as much in {ideal:.1f} s",
        ),
        ("segments that came twice", None, str(duplicates)),
        ("nothing is lost", found.audit_code == 0, f"audit {found.audit_code}"),
        (
            "a stop after it is clean",
            found.exit_code == 0 and not found.owed_at_end,
            f"exit code {found.exit_code}, {found.owed_at_end} owed",
        ),
    ]


def _trickle(found: Found) -> tuple[str, bool | None, str]:
    """Judge the requests; at a closed port by the workers' own count, unless the kernel's is as low."""
    name, limit, most = "a trickle, not a storm", found.options.most_requests, max(found.requests())
    words = f"at most {most} requests in a minute, limit {limit:g}"
    if found.how != "refuse":
        return name, most <= limit, words
    counted = found.refused(found.down_at, found.up_at)
    if counted is None:
        return name, None if most <= limit else False, f"{words}, by the workers' count alone"
    words += f"; the whole machine had {max(counted)} refusals"
    if most > limit:
        return name, False, words
    return name, True if max(counted) <= limit else None, words


def _no_pile(found: Found) -> tuple[str, bool, str]:
    """Judge the messages: none may be left from long ago.

    An ingest that hangs holds every worker for one deadline before anybody knows; what the cameras close
    meanwhile waits. After that there are a few messages per camera at most, however long it lasts.
    """
    options = found.options
    few = MESSAGES_PER_CAMERA * options.cameras
    unaware = IngestSettings().attempt_seconds + UNAWARE_SLACK
    many = few + round(options.cameras / options.segment * unaware)
    most = max(found.messages(found.down_at, found.up_at), default=0)
    last = max(found.messages(max(found.down_at, found.up_at - 10), found.up_at), default=0)
    words = f"at most {most}, limit {many}; in the last ten seconds {last}, limit {few}"
    return "no pile of messages", most <= many and last <= few, words


def _within(name: str, seconds: float | None, limit: float) -> tuple[str, bool, str]:
    if seconds is None:
        return name, False, "never"
    return name, seconds <= limit, f"{seconds:.1f} s after the return, limit {limit:g} s"
