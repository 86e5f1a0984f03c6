"""What soak.py found: series, trends and verdicts."""

import argparse
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from benchmarks.figures import MIB, quarters, slope, table, verdict
from benchmarks.processes import Usage
from benchmarks.relay import confirmations
from capture.sink import Receipt
from capture.spool import Spool

LEAST_JUDGED = 20 * 60.0  # seconds of a series
FLAT_BYTES, FLAT_SHARE = 2 * MIB, 0.05  # an hour
SHOWN = 12  # columns of the table of series


@dataclass(frozen=True)
class Moment:
    """Everything at one moment, `seconds` after the beginning."""

    seconds: float
    usage: Sequence[Usage]
    broker_bytes: int | None
    messages: int | None
    state_files: int
    sessions: int
    journal_bytes: int
    owed: int
    stored: int


@dataclass(frozen=True)
class Series:
    """One process, from its first sample after the warm-up to its last."""

    name: str
    pid: int
    points: Sequence[tuple[float, Usage]]

    @property
    def seconds(self) -> float:
        return self.points[-1][0] - self.points[0][0]

    def growth(self, what: Callable[[Usage], float]) -> float:
        """Return the trend of something, an hour."""
        return 3600 * slope([(at, what(usage)) for at, usage in self.points])

    def allowed(self) -> float:
        """Return the bytes of resident memory that it may grow by in an hour."""
        return max(FLAT_BYTES, FLAT_SHARE * median(usage.rss for _, usage in self.points))

    def is_flat(self) -> bool | None:
        """Tell whether neither memory nor descriptors grow; None when it was seen for too short a time."""
        if self.seconds < LEAST_JUDGED:
            return None
        first, last = self.fds()
        return self.growth(lambda usage: usage.rss) < self.allowed() and last <= first

    def fds(self) -> tuple[float, float]:
        return quarters([usage.fds for _, usage in self.points])


def series_of(moments: Sequence[Moment], *, warm_up: float) -> list[Series]:
    """Return the series of each process; one that was started again has another number, and its own."""
    points: dict[tuple[str, int], list[tuple[float, Usage]]] = defaultdict(list)
    for moment in moments:
        if moment.seconds >= warm_up:
            for usage in moment.usage:
                points[usage.name, usage.pid].append((moment.seconds, usage))
    return [Series(name, pid, found) for (name, pid), found in sorted(points.items())]


@dataclass
class Soak:
    """A whole run."""

    options: argparse.Namespace
    moments: list[Moment] = field(default_factory=list)
    outages: int = 0
    exit_code: int = -1
    audit_code: int = -1
    audit_words: str = ""
    closed: int = 0
    confirmed: int = 0
    arrived: int = 0
    twice: int = 0

    def count(self, spool: Spool, receipts: Sequence[Receipt]) -> None:
        """Count what was closed, what was confirmed, and what came."""
        times = confirmations(spool)
        self.closed = len(times)
        self.confirmed = sum(confirmed is not None for _, confirmed in times.values())
        self.arrived = len(receipts)
        self.twice = sum(receipt.duplicates for receipt in receipts)

    def series(self) -> list[Series]:
        return series_of(self.moments, warm_up=60 * self.options.warm_up)

    def show(self) -> int:
        """Print series, trends and verdicts; return the exit code."""
        everything = series_of(self.moments, warm_up=0.0)
        print(
            f"\nresident memory in MiB\n{_series_table(everything, lambda usage: f'{usage.rss / MIB:.1f}')}"
        )
        print(f"\nopen descriptors\n{_series_table(everything, lambda usage: str(usage.fds))}")
        print(f"\ntrends after {self.options.warm_up:g} min, an hour\n{self._trends()}\n")
        verdicts = self._verdicts()
        for name, holds, words in verdicts:
            print(verdict(name, holds, words))
        if self.audit_code:
            print(self.audit_words[-2000:])
        return 0 if all(holds is not False for _, holds, _ in verdicts) else 1

    def _trends(self) -> str:
        header = [
            "process",
            "pid",
            "min",
            "RSS MiB",
            "RSS +MiB/h",
            "allowed",
            "PSS +MiB/h",
            "fds",
            "threads",
            "",
        ]
        return table(header, [_trend_row(each) for each in self.series()])

    def _verdicts(self) -> list[tuple[str, bool | None, str]]:
        series = self.series()
        judged = [each for each in series if each.is_flat() is not None]
        growing = [f"{each.name} {each.pid}" for each in judged if not each.is_flat()]
        words = f"{len(judged)} of {len(series)} processes judged"
        if growing:
            words += f", growing: {', '.join(growing)}"
        return [
            ("memory and descriptors are flat", not growing if judged else None, words),
            *self._held(),
            (
                "everything is delivered",
                self.closed == self.confirmed == self.arrived,
                f"{self.closed} closed, {self.confirmed} confirmed, {self.arrived} came, {self.twice} twice",
            ),
            ("nothing is lost", self.audit_code == 0, f"audit {self.audit_code}"),
            ("the stop is clean", self.exit_code == 0, f"exit code {self.exit_code}"),
        ]

    def _held(self) -> list[tuple[str, bool | None, str]]:
        """Say what broker and spool held, first and last; the journal is meant to grow."""
        late = [
            moment for moment in self.moments if moment.seconds >= 60 * self.options.warm_up
        ] or self.moments
        if not late:
            return []
        first, last = late[0], late[-1]
        segments = max(1, last.stored - first.stored)
        per_segment = (last.journal_bytes - first.journal_bytes) / segments
        broker = [moment.broker_bytes / 1024 for moment in late if moment.broker_bytes is not None]
        most = max((moment.messages for moment in late if moment.messages is not None), default=0)
        found = f"{broker[0]:.0f} -> {broker[-1]:.0f} KiB" if broker else "unknown"
        return [
            ("broker's memory", None, f"{found}, at most {most} messages"),
            ("files in .state", None, f"{first.state_files} -> {last.state_files}"),
            ("journal", None, f"{per_segment:.0f} bytes a segment"),
            ("outages", None, str(self.outages)),
        ]

    def as_data(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        return {
            "moments": [asdict(moment) for moment in self.moments],
            "trends": [
                {
                    "process": each.name,
                    "pid": each.pid,
                    "seconds": each.seconds,
                    "rss_bytes_per_hour": each.growth(lambda usage: usage.rss),
                    "flat": each.is_flat(),
                }
                for each in self.series()
            ],
            "closed": self.closed,
            "confirmed": self.confirmed,
            "arrived": self.arrived,
            "twice": self.twice,
            "outages": self.outages,
            "audit": self.audit_code,
            "exit_code": self.exit_code,
        }


def _trend_row(series: Series) -> list[str]:
    rss = [usage.rss / MIB for _, usage in series.points]
    has_pss = all(usage.pss is not None for _, usage in series.points)
    first, last = series.fds()
    threads = quarters([usage.threads for _, usage in series.points])
    word = {True: "flat", False: "GROWS", None: "too short"}[series.is_flat()]
    return [
        series.name,
        str(series.pid),
        f"{series.seconds / 60:.0f}",
        f"{rss[0]:.1f} -> {rss[-1]:.1f}",
        f"{series.growth(lambda usage: usage.rss) / MIB:+.2f}",
        f"{series.allowed() / MIB:.1f}",
        f"{series.growth(lambda usage: usage.pss or 0) / MIB:+.2f}" if has_pss else "-",
        f"{first:g} -> {last:g}",
        f"{threads[0]:g} -> {threads[1]:g}",
        word,
    ]


def _series_table(series: Sequence[Series], show: Callable[[Usage], str]) -> str:
    """Return a row for each process and a column for each of a dozen moments, spread over the run."""
    moments = sorted({at for each in series for at, _ in each.points})
    step = max(1, -(-len(moments) // SHOWN))
    chosen = moments[::-step][::-1]  # the last one always
    rows = []
    for each in series:
        points = dict(each.points)
        rows.append([each.name, str(each.pid), *(show(points[at]) if at in points else "" for at in chosen)])
    return table(["min", "pid", *(f"{at / 60:.1f}" for at in chosen)], rows)
