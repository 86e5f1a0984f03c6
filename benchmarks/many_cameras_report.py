"""What was measured of many cameras, in tables and verdicts."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.figures import MIB, environment, spread, table, verdict, write_figures

BARE = "bare"
OURS = "up"
MOST_CPU_SHARE = 0.10  # of the agent, of what its ffmpegs use
MOST_BASE_MIB = 60.0
MOST_MIB_PER_CAMERA = 0.5


@dataclass(frozen=True)
class Sample:
    """One run of some cameras: CPU seconds and proportional memory (bytes) of each group of processes."""

    kind: str
    cameras: int
    seconds: float
    cpu: Mapping[str, float]
    pss: Mapping[str, int]
    agent_fds: int = 0
    agent_threads: int = 0
    stopped_in: float = 0.0
    exit_code: int = 0
    problems: str = ""

    def share(self, *groups: str) -> float:
        """Return the percent of one core that a camera takes in these groups."""
        return 100 * sum(self.cpu[group] for group in groups) / self.seconds / self.cameras

    def mib(self, group: str) -> float:
        return self.pss[group] / MIB

    def line(self) -> str:
        cells = [f"{group} {self.share(group):.3f} %, {self.mib(group):.1f} MiB" for group in self.cpu]
        end = f"; stopped in {self.stopped_in:.1f} s with {self.exit_code}" if self.kind == OURS else ""
        return f"{self.kind:>4} {self.cameras:>3}: {'; '.join(cells)}{end}"


def line_fit(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return what is there at zero, and what each one adds, by least squares; one x alone adds nothing."""
    if len({x for x, _ in points}) < 2:
        return (statistics.median(y for _, y in points), 0.0)
    fit = statistics.linear_regression(*zip(*points, strict=True))
    return fit.intercept, fit.slope


def _ratio(value: float, to: float) -> float:
    """Return a quotient; infinity where the system counted nothing, in a very short time."""
    return value / to if to else math.inf


class Report:
    """All samples, compared with each other."""

    def __init__(self, samples: Sequence[Sample], *, segment: float) -> None:
        self._samples = samples
        self._segment = segment
        self._counts = sorted({each.cameras for each in samples})
        self._agent_fit = line_fit([(each.cameras, each.mib("agent")) for each in self._of(OURS)])

    def _of(self, kind: str, cameras: int | None = None) -> list[Sample]:
        return [each for each in self._samples if each.kind == kind and cameras in (None, each.cameras)]

    def agent_ratios(self, cameras: int | None = None) -> list[float]:
        """Return what the agent uses of CPU, as a share of what its ffmpegs do, for each run."""
        return [_ratio(each.cpu["agent"], each.cpu["ffmpeg"]) for each in self._of(OURS, cameras)]

    def total_ratios(self, cameras: int) -> list[float]:
        """Return agent and ffmpegs together, divided by as many bare ones, run by run."""
        pairs = zip(self._of(OURS, cameras), self._of(BARE, cameras), strict=True)
        return [_ratio(ours.share("agent", "ffmpeg"), bare.share("ffmpeg")) for ours, bare in pairs]

    def write(self, path: Path | None) -> None:
        base, each = self._agent_fit
        data = {
            "environment": environment(),
            "segment_seconds": self._segment,
            "samples": [asdict(sample) for sample in self._samples],
            "agent_cpu_share": {count: self.agent_ratios(count) for count in self._counts},
            "capture_to_bare": {count: self.total_ratios(count) for count in self._counts},
            "agent_mib": {"base": base, "per_camera": each},
        }
        write_figures(path, data)

    def show(self) -> int:
        """Print the tables and verdicts; return the exit code."""
        print(f"\n{self._cpu()}\n\n{self._memory()}\n")
        base, each = self._agent_fit
        print(f"agent memory (PSS): {base:.1f} MiB and {each:.2f} MiB for each camera")
        verdicts = self._verdicts()
        print("\n".join(verdict(name, holds, found) for name, holds, found in verdicts))
        return 0 if all(holds is not False for _, holds, _ in verdicts) else 1

    def _cpu(self) -> str:
        header = ["cameras", "bare %", "ffmpeg %", "agent %", "uploads %", "agent/ffmpeg", "capture/bare"]
        header += ["a core bears", "with uploads"]
        return "CPU, percent of one core for each camera\n" + table(header, map(self._cpu_row, self._counts))

    def _cpu_row(self, cameras: int) -> list[str]:
        ours, bare = self._of(OURS, cameras), self._of(BARE, cameras)
        return [
            str(cameras),
            spread([each.share("ffmpeg") for each in bare]),
            *(spread([each.share(group) for each in ours]) for group in ("ffmpeg", "agent", "uploads")),
            spread(self.agent_ratios(cameras)),
            spread(self.total_ratios(cameras)),
            spread([_ratio(100, each.share("agent", "ffmpeg")) for each in ours], ".0f"),
            spread([_ratio(100, each.share("agent", "ffmpeg", "uploads")) for each in ours], ".0f"),
        ]

    def _memory(self) -> str:
        header = [
            "cameras",
            "bare each",
            "ffmpeg each",
            "agent",
            "uploads",
            "descriptors",
            "threads",
            "stop s",
        ]
        rows = map(self._memory_row, self._counts)
        return "Memory (MiB, proportional), and what else the agent takes\n" + table(header, rows)

    def _memory_row(self, cameras: int) -> list[str]:
        ours, bare = self._of(OURS, cameras), self._of(BARE, cameras)

        def cell(runs: Sequence[Sample], value: Callable[[Sample], float], form: str = ".1f") -> str:
            return spread([value(each) for each in runs], form)

        return [
            str(cameras),
            cell(bare, lambda each: each.mib("ffmpeg") / cameras),
            cell(ours, lambda each: each.mib("ffmpeg") / cameras),
            cell(ours, lambda each: each.mib("agent")),
            cell(ours, lambda each: each.mib("uploads")),
            cell(ours, lambda each: each.agent_fds, ".0f"),
            cell(ours, lambda each: each.agent_threads, ".0f"),
            cell(ours, lambda each: each.stopped_in),
        ]

    def _verdicts(self) -> list[tuple[str, bool | None, str]]:
        most = self._counts[-1]
        ratio = statistics.median(self.agent_ratios(most))
        limits = [
            (each.mib("agent"), MOST_BASE_MIB + MOST_MIB_PER_CAMERA * each.cameras) for each in self._of(OURS)
        ]
        worst = max(limits, key=lambda pair: pair[0] / pair[1])
        problems = [each.problems for each in self._samples if each.problems]
        return [
            (
                f"agent CPU at most {MOST_CPU_SHARE:.0%} of its ffmpegs'",
                ratio <= MOST_CPU_SHARE,
                f"{ratio:.1%} with {most} cameras",
            ),
            (
                f"agent memory at most {MOST_BASE_MIB:g} MiB and {MOST_MIB_PER_CAMERA:g} for each camera",
                all(found <= limit for found, limit in limits),
                f"nearest to it: {worst[0]:.1f} of {worst[1]:.1f} MiB",
            ),
            ("nothing is lost", not problems, problems[0] if problems else "audit of every run"),
        ]
