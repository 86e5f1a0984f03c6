"""The targets, and where their figures stand in the JSON of the benchmarks: pure.

A target whose figure is not there is not measured, whatever the reason: it never counts as met.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.figures import MIB, spread

Data = Mapping[str, Any]
Results = Mapping[str, Data]  # by the name of the run

MET, MISSED, UNKNOWN = "met", "missed", "not measured"
LIVE, BACKLOG, BARE = "relay, live", "relay, backlog", "httpx"
SIZE = str(int(1.5 * MIB))
FLAT = 1.25  # what we call flat: noise of a shared machine is in it


@dataclass(frozen=True)
class Target:
    """What is promised, of which run, and how to read it.

    `values` returns one value for each repetition, in `unit`. The median is judged, or the worst one where a
    promise has to hold each time.
    """

    run: str
    what: str
    limit: float
    values: Callable[[Data], Sequence[float]]
    unit: str = ""
    form: str = ".2f"
    at_least: bool = False
    judge_worst: bool = False

    @property
    def words(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}{self.unit}"

    def judged(self, values: Sequence[float]) -> float:
        if not self.judge_worst:
            return median(values)
        return min(values) if self.at_least else max(values)

    def holds(self, values: Sequence[float]) -> bool:
        found = self.judged(values)
        return found >= self.limit if self.at_least else found <= self.limit


@dataclass(frozen=True)
class Verdict:
    """A target, what was measured of it, and what that means."""

    target: Target
    values: Sequence[float]
    word: str

    @property
    def measured(self) -> str:
        if not self.values:
            return "–"  # noqa: RUF001 - the sign for "none"
        return f"{spread(self.values, self.target.form, self.target.unit)}, n = {len(self.values)}"


def verdict(target: Target, results: Results) -> Verdict:
    """Judge one target by the results that there are."""
    try:
        found = [float(each) for each in target.values(results[target.run])]
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError):
        found = []  # the run failed, measured less, or writes its figures in another way
    if not found or not all(map(math.isfinite, found)):
        return Verdict(target, [], UNKNOWN)
    return Verdict(target, found, MET if target.holds(found) else MISSED)


def verdicts(results: Results) -> list[Verdict]:
    return [verdict(target, results) for target in TARGETS]


def _to_bare(way: str, key: str) -> Callable[[Data], list[float]]:
    """Read what a way of the upload path needs, divided by what plain httpx does in the same round."""

    def read(data: Data) -> list[float]:
        rounds = data["sizes"][SIZE]
        return [ours[key] / bare[key] for ours, bare in zip(rounds[way], rounds[BARE], strict=True)]

    return read


def _waits(name: str) -> Callable[[Data], list[float]]:
    return lambda data: [data["close_to_confirmed_ms"][name]]


def _drain_shares(data: Data) -> list[float]:
    """Read the ideal time of each drain after an outage, divided by what it took, in percent."""
    return [
        100 * each["owed_bytes"] / (each["rate"] - each["live_bytes"] / each["seconds"]) / each["seconds"]
        for each in data["drains"]
    ]


def _live_beside(data: Data) -> list[float]:
    return [median(each["beside"]) / median(each["normal"]) for each in data["drains"]]


def _cap_errors(data: Data) -> list[float]:
    """Read how far each window of ten seconds is off the cap, in percent."""
    return [100 * abs(share - 1) for cap in data["caps"] for share in cap["shares"]]


def _with_most_cameras(key: str) -> Callable[[Data], list[float]]:
    """Read the shares with the most cameras that were tried, run by run, in percent."""

    def read(data: Data) -> list[float]:
        shares = {int(kind.split()[0]): values for kind, values in data[key].items()}  # "50 x 10 s"
        return [100 * each for each in shares[max(shares)]]

    return read


def _agent_memory(data: Data) -> list[float]:
    """Read the agent's memory as a share of 60 MB and 0.5 MB for each camera, in percent."""
    return [
        100 * each["pss"]["agent"] / (60e6 + 0.5e6 * each["cameras"])
        for each in data["samples"]
        if each["kind"] == "up"
    ]


def _confirmed(data: Data) -> list[float]:
    run = max(data["runs"], key=lambda each: each["cameras"])
    if run["cameras"] < 1000:
        return []
    return [100 * run["delivered"] / run["asked"]]


def _by_cameras(data: Data) -> list[float]:
    """Read the CPU of a segment with the most cameras, divided by that with the fewest."""
    runs = sorted(data["runs"], key=lambda each: each["cameras"])
    costs = [each["worker_ms"] + each["publisher_ms"] + each["broker_ms"] for each in runs]
    return [costs[-1] / costs[0]] if len(costs) > 1 else []


def _among(few: int) -> Callable[[Data], list[float]]:
    """Read the CPU of a segment among 100,000 owed ones, divided by that among few, round by round."""

    def read(data: Data) -> list[float]:
        costs: dict[int, list[float]] = {}
        for each in data["owed"]:
            costs.setdefault(int(each["owed"]), []).append(each["cpu_ms"])
        return [many / less for many, less in zip(costs[100_000], costs[few], strict=True)]

    return read


def _command(name: str) -> Callable[[Data], list[float]]:
    return lambda data: data["commands"][name]


def _beyond(data: Data) -> list[float]:
    return [run["beyond"] for runs in data["up"].values() for run in runs]


TARGETS = (
    Target(
        "upload_path",
        "live, one task per segment, 1.5 MiB: CPU per segment, times a bare httpx loop",
        2.0,
        _to_bare(LIVE, "cpu_ms"),
    ),
    Target(
        "upload_path",
        "backlog, 1.5 MiB: segments/s, times as many bare httpx loops",
        0.85,
        _to_bare(BACKLOG, "rate"),
        at_least=True,
    ),
    Target("upload_path", "closed → confirmed at 20 segments/s: p50", 15.0, _waits("p50"), " ms", ".1f"),
    Target("upload_path", "closed → confirmed at 20 segments/s: p99", 60.0, _waits("p99"), " ms", ".1f"),
    Target(
        "wan_outage",
        "backlog after an outage over a WAN: share of what new video leaves of the line",
        90.0,
        _drain_shares,
        " %",
        ".1f",
        at_least=True,
        judge_worst=True,
    ),
    Target(
        "wan_outage",
        "the same: closed → confirmed of new video beside it, times normal (p50)",
        2.0,
        _live_beside,
        judge_worst=True,
    ),
    Target(
        "rate_cap",
        "`ingest.max_rate`: off by, in any ten seconds",
        5.0,
        _cap_errors,
        " %",
        ".1f",
        judge_worst=True,
    ),
    Target(
        "many_cameras",
        "what capture adds to the CPU of as many bare ffmpegs",
        10.0,
        _with_most_cameras("added_to_bare"),
        " %",
        ".0f",
    ),
    Target(
        "many_cameras",
        "of that the agent's CPU",
        10.0,
        _with_most_cameras("agent_to_bare"),
        " %",
        ".0f",
    ),
    Target(
        "many_cameras",
        "agent memory (PSS), of 60 MB + 0.5 MB per camera",
        100.0,
        _agent_memory,
        " %",
        ".0f",
        judge_worst=True,
    ),
    Target(
        "scale",
        "1,000 simulated cameras: segments confirmed, of those closed, in the same time",
        90.0,
        _confirmed,
        " %",
        ".0f",
        at_least=True,
    ),
    Target("scale", "CPU per segment, most cameras to fewest", FLAT, _by_cameras),
    Target("owed", "CPU per segment, among 100,000 owed to among 1,000", FLAT, _among(1000)),
    Target("owed", "CPU per segment, among 100,000 owed to among 10", FLAT, _among(10)),
    Target("start_up", "`relay-capture --help`", 0.25, _command("--help"), " s", ".3f"),
    Target("start_up", "`up`: first segment confirmed, beyond its length", 3.0, _beyond, " s"),
)
