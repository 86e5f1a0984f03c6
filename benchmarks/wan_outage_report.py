"""What wan_outage.py found, in tables and verdicts."""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Self

from benchmarks.figures import spread, summary, table, verdict

LEAST_SHARE = 0.9
RATIO = 2.0  # of the contract, for new video


@dataclass(frozen=True)
class Sent:
    """One segment of the journal: bytes, and moments in seconds since 1970; infinite for never."""

    camera: str
    bytes: int
    closed: float
    confirmed: float = float("inf")


@dataclass(frozen=True)
class Drain:
    """What one outage showed. Seconds and bytes; the waits of new video are milliseconds.

    `first_after` is when the first segment came after the line was mended; `normal` are the waits before the
    outage, `beside` those of what was closed from then on until nothing old was owed.
    """

    rtt: float
    rate: float
    owed_bytes: int
    owed_segments: int
    live_bytes: int
    seconds: float
    first_after: float
    normal: Sequence[float]
    beside: Sequence[float]
    problems: str

    @classmethod
    def of(
        cls,
        sent: Sequence[Sent],
        *,
        rtt: float,
        rate: float,
        normal: tuple[float, float],
        mended_at: float,
        problems: str,
    ) -> Self:
        old = [each for each in sent if each.closed < mended_at <= each.confirmed]
        gone_at = max(each.confirmed for each in old)
        first_at = min(each.confirmed for each in sent if each.confirmed >= mended_at)
        new = [each for each in sent if each.closed >= mended_at]
        return cls(
            rtt=rtt,
            rate=rate,
            owed_bytes=sum(each.bytes for each in old),
            owed_segments=len(old),
            live_bytes=sum(each.bytes for each in new if each.confirmed <= gone_at),
            seconds=gone_at - mended_at,
            first_after=first_at - mended_at,
            normal=waits(sent, *normal),
            beside=waits(sent, first_at, gone_at),
            problems=problems,
        )

    @property
    def ideal(self) -> float:
        """What was owed / (the line's rate - that of new video)."""
        return self.owed_bytes / (self.rate - self.live_bytes / self.seconds)

    @property
    def share(self) -> float:
        """The drain as a share of what new video left of the line."""
        return self.ideal / self.seconds

    @property
    def line_used(self) -> float:
        return (self.owed_bytes + self.live_bytes) / (self.rate * self.seconds)

    def times_normal(self, which: str) -> float:
        return summary(self.beside)[which] / summary(self.normal)[which]


def waits(sent: Sequence[Sent], begun: float, ended: float) -> list[float]:
    """Return the milliseconds from closed to confirmed of what was closed within."""
    return [(each.confirmed - each.closed) * 1000 for each in sent if begun <= each.closed < ended]


def introduction(options: argparse.Namespace) -> str:
    new = options.cameras * options.bitrate
    debt, size = new * options.minutes * 60, options.bitrate * options.segment
    return (
        f"line {options.rate * 8 / 1e6:g} Mbit/s, TLS; {options.cameras} cameras of "
        f"{options.bitrate * 8 / 1e6:g} Mbit/s, a segment of {size / 1e3:.0f} kB "
        f"every {options.segment:g} s; concurrency {options.concurrency}\nan outage of "
        f"{options.minutes:g} min on a clock scaled down: its {debt / 1e6:.0f} MB are written at once, with "
        f"the names and times of then; at best gone after {debt / (options.rate - new):.0f} s"
    )


def _three(waits: Sequence[float]) -> str:
    found = summary(waits)
    return f"{found['p50']:.0f} / {found['p95']:.0f} / {found['max']:.0f}"


def line_of(drain: Drain) -> str:
    """Return one in a line, for those who wait."""
    return (
        f"{drain.rtt * 1000:g} ms: {drain.owed_segments} segments gone after {drain.seconds:.1f} s, ideal "
        f"{drain.ideal:.1f} s = {drain.share:.1%}; new video {_three(drain.beside)} ms against "
        f"{_three(drain.normal)} ({len(drain.beside)}, {len(drain.normal)} segments)"
    )


def _times_normal(found: Sequence[Drain], which: str) -> str:
    return f"{median(each.times_normal(which) for each in found):.2f}"


def show(drains: Sequence[Drain]) -> int:
    """Print them; return the exit code. Waits are p50 / p95 / max."""
    by_rtt = defaultdict(list)
    for drain in drains:
        by_rtt[drain.rtt].append(drain)
    columns = [
        *("round trip", "ideal, s", "took, s", "ideal / took, %", "line used, %", "first came after, s"),
        *("new video before, ms", "beside the debts, ms", "times normal (p50, p95)"),
    ]
    rows = [
        [
            f"{rtt * 1000:g} ms",
            spread([each.ideal for each in found], ".1f"),
            spread([each.seconds for each in found], ".1f"),
            spread([100 * each.share for each in found], ".1f"),
            spread([100 * each.line_used for each in found], ".1f"),
            spread([each.first_after for each in found], ".1f"),
            _three([wait for each in found for wait in each.normal]),
            _three([wait for each in found for wait in each.beside]),
            ", ".join(_times_normal(found, which) for which in ("p50", "p95")),
        ]
        for rtt, found in by_rtt.items()
    ]
    print(f"\n{table(columns, rows)}\n")
    verdicts = _verdicts(by_rtt, [each.problems for each in drains if each.problems])
    for name, holds, words in verdicts:
        print(verdict(name, holds, words))
    return 0 if all(holds for _, holds, _ in verdicts) else 1


def _verdicts(by_rtt: dict[float, list[Drain]], problems: Sequence[str]) -> list[tuple[str, bool, str]]:
    shares = [median(each.share for each in found) for found in by_rtt.values()]
    ratios = [median(each.times_normal("p95") for each in found) for found in by_rtt.values()]
    return [
        (
            f"the backlog gets at least {LEAST_SHARE:.0%} of what new video leaves of the line",
            min(shares) >= LEAST_SHARE,
            ", ".join(f"{share:.1%}" for share in shares),
        ),
        (
            "new video stays within 2x at p95",
            max(ratios) <= RATIO,
            ", ".join(f"{ratio:.2f}" for ratio in ratios),
        ),
        ("nothing is lost", not problems, "; ".join(problems) or "audit finds nothing missing"),
    ]
