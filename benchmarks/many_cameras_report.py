"""What was measured of many cameras, in tables and verdicts."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.figures import MIB, environment, spread, table, verdict, write_figures

BARE = "bare"
OURS = "up"
MOST_ADDED = 0.10  # of what bare ffmpegs use: the agent, and what our ffmpegs use more than bare ones
MOST_BASE_MIB = 60.0
MOST_MIB_PER_CAMERA = 0.5


Case = tuple[float, int]  # seconds of a segment, cameras


@dataclass(frozen=True)
class Sample:
    """One run of some cameras: CPU seconds and proportional memory (bytes) of each group of processes."""

    kind: str
    cameras: int
    segment: float
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
        return f"{self.kind:>4} {self.cameras:>3} x {self.segment:g} s: {'; '.join(cells)}{end}"


def line_fit(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return what is there at zero, and what each one adds, by least squares; one x alone adds nothing."""
    if len({x for x, _ in points}) < 2:
        return (statistics.median(y for _, y in points), 0.0)
    fit = statistics.linear_regression(*zip(*points, strict=True))
    return fit.intercept, fit.slope


def _ratio(value: float, to: float) -> float:
    """Return a quotient; infinity where the system counted nothing, in a very short time."""
    return value / to if to else math.inf


def _name(case: Case) -> str:
    return f"{case[1]} x {case[0]:g} s"


class Report:
    """All samples, compared with each other."""

    def __init__(self, samples: Sequence[Sample], *, floors: Mapping[float, float] | None = None) -> None:
        """`floors` are the CPU milliseconds that the parts of a close take at least, by segment seconds."""
        self._samples = samples
        self._floors = floors or {}
        self._cases = sorted({(each.segment, each.cameras) for each in samples})
        self._agent_fit = line_fit([(each.cameras, each.mib("agent")) for each in self._all(OURS)])

    def _all(self, kind: str) -> list[Sample]:
        return [each for each in self._samples if each.kind == kind]

    def _of(self, kind: str, case: Case) -> list[Sample]:
        return [each for each in self._all(kind) if (each.segment, each.cameras) == case]

    def added(self, case: Case, *groups: str) -> list[float]:
        """Return what these groups take beyond as many bare ffmpegs, as a share of theirs, run by run."""
        pairs = zip(self._of(OURS, case), self._of(BARE, case), strict=True)
        less = 1.0 if "ffmpeg" in groups else 0.0
        return [_ratio(ours.share(*groups), bare.share("ffmpeg")) - less for ours, bare in pairs]

    def split(self, cameras: int) -> tuple[float, float] | None:
        """Return the agent's CPU milliseconds a camera takes each second, and for each segment.

        None with segments of one length. What grows with the bytes, the digest above all, is in the first.
        """
        runs = [each for each in self._all(OURS) if each.cameras == cameras]
        if len({each.segment for each in runs}) < 2:
            return None
        return line_fit([(1 / each.segment, 10 * each.share("agent")) for each in runs])

    def write(self, path: Path | None) -> None:
        base, each = self._agent_fit
        data = {
            "environment": environment(),
            "samples": [asdict(sample) for sample in self._samples],
            "added_to_bare": {_name(case): self.added(case, "agent", "ffmpeg") for case in self._cases},
            "agent_to_bare": {_name(case): self.added(case, "agent") for case in self._cases},
            "agent_ms": {count: self.split(count) for _, count in self._cases},
            "close_floor_ms": self._floors,
            "agent_mib": {"base": base, "per_camera": each},
        }
        write_figures(path, data)

    def show(self) -> int:
        """Print the tables and verdicts; return the exit code."""
        print(f"\n{self._cpu()}\n\n{self._memory()}\n")
        base, each = self._agent_fit
        print(f"agent memory (PSS): {base:.1f} MiB and {each:.2f} MiB for each camera")
        print("\n".join([*self._splits(), *self._least()]))
        verdicts = self._verdicts()
        print("\n".join(verdict(name, holds, found) for name, holds, found in verdicts))
        return 0 if all(holds is not False for _, holds, _ in verdicts) else 1

    def _cpu(self) -> str:
        header = ["cameras", "bare %", "ffmpeg %", "agent %", "uploads %", "agent/bare", "added/bare"]
        header += ["a core bears", "with uploads"]
        return "CPU, percent of one core for each camera\n" + table(header, map(self._cpu_row, self._cases))

    def _cpu_row(self, case: Case) -> list[str]:
        ours, bare = self._of(OURS, case), self._of(BARE, case)
        return [
            _name(case),
            spread([each.share("ffmpeg") for each in bare], ".3f"),
            *(
                spread([each.share(group) for each in ours], ".3f")
                for group in ("ffmpeg", "agent", "uploads")
            ),
            spread(self.added(case, "agent")),
            spread(self.added(case, "agent", "ffmpeg")),
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
        rows = map(self._memory_row, self._cases)
        return "Memory (MiB, proportional), and what else the agent takes\n" + table(header, rows)

    def _memory_row(self, case: Case) -> list[str]:
        ours, bare, (_, cameras) = self._of(OURS, case), self._of(BARE, case), case

        def cell(runs: Sequence[Sample], value: Callable[[Sample], float], form: str = ".1f") -> str:
            return spread([value(each) for each in runs], form)

        return [
            _name(case),
            cell(bare, lambda each: each.mib("ffmpeg") / cameras),
            cell(ours, lambda each: each.mib("ffmpeg") / cameras),
            cell(ours, lambda each: each.mib("agent")),
            cell(ours, lambda each: each.mib("uploads")),
            cell(ours, lambda each: each.agent_fds, ".0f"),
            cell(ours, lambda each: each.agent_threads, ".0f"),
            cell(ours, lambda each: each.stopped_in),
        ]

    def _splits(self) -> list[str]:
        found = {count: self.split(count) for count in sorted({cameras for _, cameras in self._cases})}
        return [
            f"agent CPU, {count} cameras, each: {parts[0]:.2f} ms a second and {parts[1]:.1f} ms a segment"
            for count, parts in found.items()
            if parts is not None
        ]

    def _least(self) -> list[str]:
        return [
            f"reading a segment of {segment:g} s once, its digest and its fsync take {ms:.1f} ms of CPU: "
            f"{ms / segment / 10:.3f} % of a core"
            for segment, ms in self._floors.items()
        ]

    def _verdicts(self) -> list[tuple[str, bool | None, str]]:
        limits = [
            (each.mib("agent"), MOST_BASE_MIB + MOST_MIB_PER_CAMERA * each.cameras)
            for each in self._all(OURS)
        ]
        worst = max(limits, key=lambda pair: pair[0] / pair[1])
        problems = [each.problems for each in self._samples if each.problems]
        return [
            *(self._verdict_of(case) for case in self._cases),
            (
                f"agent memory at most {MOST_BASE_MIB:g} MiB and {MOST_MIB_PER_CAMERA:g} for each camera",
                all(found <= limit for found, limit in limits),
                f"nearest to it: {worst[0]:.1f} of {worst[1]:.1f} MiB",
            ),
            ("nothing is lost", not problems, problems[0] if problems else "audit of every run"),
        ]

    def _verdict_of(self, case: Case) -> tuple[str, bool | None, str]:
        added, agent = self.added(case, "agent", "ffmpeg"), self.added(case, "agent")
        found = f"{statistics.median(added):.1%} ({min(added):.1%} to {max(added):.1%}), of it the agent "
        return (
            f"agent and what its ffmpegs take more, at most {MOST_ADDED:.0%} of bare ones, {_name(case)}",
            statistics.median(added) <= MOST_ADDED,
            f"{found}{statistics.median(agent):.1%}",
        )
