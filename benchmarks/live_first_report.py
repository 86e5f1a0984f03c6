"""What live_first.py found, in tables and verdicts."""

import argparse
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.figures import (
    environment,
    histogram,
    overtaken,
    spread,
    summary,
    table,
    verdict,
    write_figures,
)
from benchmarks.ingest import Arrival

RATIO = 2.0  # what the contract promises


@dataclass(frozen=True)
class Phase:
    """What one phase showed.

    `waits` are milliseconds, infinite for a segment that never came. `live_bytes` and `drained_bytes` arrived
    within `seconds`, in which the segments of `waits` were closed; `overtaking` and `apart` are about the
    whole phase, and all the backlog that arrived in it.
    """

    backlog: bool
    waits: list[float]
    seconds: float
    live_bytes: int
    drained_bytes: int
    owed_before: int
    owed_after: int
    overtaking: list[int]
    apart: list[int]

    def share(self, line_rate: float) -> float:
        """Return the drain as a share of what live left of the line."""
        rest = line_rate * self.seconds - self.live_bytes
        return self.drained_bytes / rest if rest > 0 else float("nan")

    def drain_rate(self) -> float:
        """Return the bytes of the backlog that came in a second."""
        return self.drained_bytes / self.seconds


def overtaking(arrivals: Sequence[Arrival]) -> list[int]:
    """Return for each segment how many older ones of its camera came only after it."""
    by_camera = defaultdict(list)
    for each in arrivals:
        by_camera[each.camera].append((each.session, each.sequence))
    return [count for order in by_camera.values() for count in overtaken(order)]


def turns(order: Sequence[str], cameras: Sequence[str], each_owes: int) -> list[int]:
    """Return after each arrival how many more segments the first camera had through than the last.

    Only as long as all cameras owe: afterwards there are no turns to take.
    """
    through = Counter(dict.fromkeys(cameras, 0))
    found = []
    for camera in order:
        through[camera] += 1
        if through[camera] >= each_owes:
            break
        found.append(max(through.values()) - min(through.values()))
    return found


def mbit(rate: float) -> str:
    """Return bytes per second in words."""
    return f"{rate * 8 / 1e6:.1f} Mbit/s"


def phase_line(phase: Phase, line_rate: float) -> str:
    """Return one phase in a line, for those who wait."""
    found = summary(phase.waits)
    text = f"{'B with   ' if phase.backlog else 'A without'} backlog: p50 {found['p50']:.0f} ms, "
    text += f"p95 {found['p95']:.0f} ms, max {found['max']:.0f} ms of {found['n']}"
    if phase.backlog:
        text += f"; owed {phase.owed_before} -> {phase.owed_after}, {mbit(phase.drain_rate())}"
        text += f" = {phase.share(line_rate):.0%} of what live left"
    return text


@dataclass(frozen=True)
class Report:
    """All phases of a run, A and B in turn, beside what the line can carry in bytes per second."""

    options: argparse.Namespace
    phases: Sequence[Phase]
    line_rate: float
    problems: Sequence[str]

    @property
    def without(self) -> list[Phase]:
        return [phase for phase in self.phases if not phase.backlog]

    @property
    def with_backlog(self) -> list[Phase]:
        return [phase for phase in self.phases if phase.backlog]

    @property
    def ratios(self) -> list[float]:
        """The p95 with a backlog by the one without it, of each repetition."""
        pairs = zip(self.without, self.with_backlog, strict=True)
        return [summary(b.waits)["p95"] / summary(a.waits)["p95"] for a, b in pairs]

    @property
    def shares(self) -> list[float]:
        return [phase.share(self.line_rate) for phase in self.with_backlog]

    def show(self) -> int:
        """Print it; return the exit code: 2 when there was nothing to measure."""
        if not all(phase.waits for phase in self.phases):
            print(
                "A phase without a single live segment that counts: give more --segments, or less --settle."
            )
            return 2
        self._show_distributions()
        print(table(["", "median (least to most)"], self._rows()))
        print()
        verdicts = self._verdicts()
        for name, holds, found in verdicts:
            print(verdict(name, holds, found))
        return 0 if all(holds is not False for _, holds, _ in verdicts) else 1

    def _show_distributions(self) -> None:
        named = {
            "A without backlog": [wait for phase in self.without for wait in phase.waits],
            "B with backlog": [wait for phase in self.with_backlog for wait in phase.waits],
        }
        columns = ("n", "p50", "p95", "p99", "max")
        found = {name: summary(waits) for name, waits in named.items()}
        rows = [[name, *(f"{each[column]:.0f}" for column in columns)] for name, each in found.items()]
        print("\nclose to confirmed in ms, all repetitions together")
        print(f"{table(['', *columns], rows)}\n\n{histogram(named)}\n")

    def _rows(self) -> list[list[str]]:
        early = [each for phase in self.with_backlog for each in phase.overtaking]
        apart = [each for phase in self.with_backlog for each in phase.apart]
        rates = [phase.drain_rate() * 8 / 1e6 for phase in self.with_backlog]
        p95s = {phase.backlog: [summary(p.waits)["p95"] for p in self.phases if p.backlog is phase.backlog]
                for phase in self.phases}  # fmt: skip
        return [
            ["p95 without backlog, ms", spread(p95s[False], ".0f")],
            ["p95 with backlog, ms", spread(p95s[True], ".0f")],
            ["p95 with / without", spread(self.ratios)],
            ["line by plain httpx, Mbit/s", f"{self.line_rate * 8 / 1e6:.1f}"],
            ["backlog, Mbit/s", spread(rates, ".1f")],
            ["backlog, share of what live left of the line", spread(self.shares)],
            ["backlog segments that came", str(len(early))],
            ["... before an older one of their camera", str(sum(map(bool, early)))],
            ["... and before how many at most", str(max(early, default=0))],
            ["cameras apart, segments, median", f"{median(apart):g}" if apart else "-"],
            ["cameras apart, segments, most", str(max(apart, default=0))],
        ]

    def _verdicts(self) -> list[tuple[str, bool | None, str]]:
        least = self.options.least_share
        # Without a line plain httpx shows what the processors can do, and they have more to do here.
        enough = None if self.options.loopback else median(self.shares) >= least
        return [
            ("live stays within 2x", median(self.ratios) <= RATIO, f"{median(self.ratios):.2f} times at p95"),
            (
                f"the backlog gets at least {least:.0%} of what live leaves",
                enough,
                f"{median(self.shares):.0%}",
            ),
            ("nothing is lost", not self.problems, "; ".join(self.problems) or "closed = confirmed + owed"),
        ]

    def write(self, path: Path | None) -> None:
        """Write all of it, if a file was asked for."""
        data: dict[str, Any] = {
            "environment": environment(),
            "parameters": vars(self.options),
            "line_bytes_per_second": self.line_rate,
            "p95_ratios": self.ratios,
            "drain_shares": self.shares,
            "problems": self.problems,
            "phases": [asdict(phase) for phase in self.phases],
        }
        write_figures(path, data)
