"""SIGTERM to `relay-capture up` with a busy ffmpeg, many times over: how long until everything is gone.

Fails when one stop takes longer than its drain and five seconds, leaves a process behind, or ends with
another exit code than 0.
"""

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.figures import environment_lines, percentile
from benchmarks.relay import COMMAND, TOKEN
from capture.sink import Sink

SLACK = 5.0  # seconds that a stop may take beyond its drain
RUN_SECONDS = (0.3, 2.5)
START_DEADLINE = 60.0


@dataclass(frozen=True)
class Stop:
    """One stop: seconds until the command ended, its exit code, and who outlived it."""

    seconds: float
    code: int
    left: Sequence[str]


def main() -> int:
    """Run the stops, print the figures; return the exit code."""
    options = _options()
    dice = random.Random(options.seed)  # noqa: S311 - when to stop, not a secret
    limit = options.drain + SLACK
    print(environment_lines(), flush=True)
    stops = []
    for number in range(1, options.stops + 1):
        stop = _one(options, dice.uniform(*RUN_SECONDS), limit)
        stops.append(stop)
        left = f", left behind: {', '.join(stop.left)}" if stop.left else ""
        print(f"{number:4}  {stop.seconds:6.2f} s  exit {stop.code}{left}", flush=True)
    return _sum_up(stops, limit)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/stop-times", description=__doc__)
    parser.add_argument("--stops", type=int, default=100, help="how many  [default: 100]")
    parser.add_argument("--drain", type=float, default=10.0, help="--drain-timeout  [default: 10]")
    parser.add_argument("--resolution", default="640x360", help="of the test pattern  [default: 640x360]")
    parser.add_argument("--fast", action="store_true", help="encode as fast as it goes, not in real time")
    parser.add_argument("--seed", type=int, default=1, help="for the moments of the stops  [default: 1]")
    return parser.parse_args()


def _one(options: argparse.Namespace, run_seconds: float, limit: float) -> Stop:
    with tempfile.TemporaryDirectory(prefix="stop-") as directory:
        base = Path(directory)
        with Sink(base / "sink", token=TOKEN) as sink, (base / "log").open("wb") as log:
            environment = {
                **{key: value for key, value in os.environ.items() if not key.startswith("RELAY_")},
                "RELAY_TOKEN": TOKEN,
                "XDG_RUNTIME_DIR": directory,
            }
            process = subprocess.Popen(
                [COMMAND, "up", *_arguments(options, sink.url, base / "spool")],
                env=environment,
                stdout=log,
                stderr=log,
            )
            try:
                _wait(lambda: any((base / "spool").glob("*/open/*")), process, base / "log")
                time.sleep(run_seconds)
                return _stop(process, limit)
            finally:
                process.kill()
                process.wait()


def _arguments(options: argparse.Namespace, cloud: str, spool: Path) -> list[str]:
    words = ["--source", "test:", "--resolution", options.resolution, "--segment-duration", "1"]
    words += ["--cloud", cloud, "--spool", str(spool), "--drain-timeout", str(options.drain)]
    return [*words, *(["--no-realtime"] if options.fast else [])]


def _wait(condition: Callable[[], bool], process: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + START_DEADLINE
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            sys.exit(f"capture did not start: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.02)


def _stop(process: "subprocess.Popen[bytes]", limit: float) -> Stop:
    family = psutil.Process(process.pid).children(recursive=True)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    try:
        code = process.wait(4 * limit)
    except subprocess.TimeoutExpired:
        return Stop(time.monotonic() - began, -1, ["the command itself"])
    seconds = time.monotonic() - began
    return Stop(seconds, code, [name for child in family if (name := _name_if_alive(child))])


def _name_if_alive(process: psutil.Process) -> str | None:
    try:
        alive = process.status() != psutil.STATUS_ZOMBIE
        return f"{process.pid} {process.name()}" if alive else None
    except psutil.NoSuchProcess:
        return None


def _sum_up(stops: Sequence[Stop], limit: float) -> int:
    seconds = sorted(stop.seconds for stop in stops)
    beyond = sum(each > limit for each in seconds)
    leaving = sum(bool(stop.left) for stop in stops)
    wrong = sum(stop.code != 0 for stop in stops)
    print(
        f"{len(stops)} stops: min {seconds[0]:.2f} s, median {statistics.median(seconds):.2f} s, "
        f"p95 {percentile(seconds, 0.95):.2f} s, max {seconds[-1]:.2f} s; beyond {limit:g} s: {beyond}; "
        f"processes left behind: {leaving}; exit code not 0: {wrong}"
    )
    return 1 if beyond or leaving or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
