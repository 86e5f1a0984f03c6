"""What `up` costs at its start and afterwards when very many segments are owed.

    python -m benchmarks.startup_backlog [--segments 100000] [--cameras 8] [--seconds 60]
                                         [--ingest up|down] [--limit SHARE]

Makes the segments (ten packets each, in one dead session per camera), starts `up` with as many test cameras,
and prints: seconds until every camera captures, until the first fresh segment is confirmed (`--ingest up`),
then the CPU seconds per minute and the largest resident memory (MiB) of each process. `--limit`
sets `spool.max_bytes` to a share of what is owed: 2 is far away, at 1 each new segment drops old ones, and at
0.5 half of all goes before the first frame.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from benchmarks.figures import environment, environment_lines, write_figures
from capture.session import Session
from capture.source import parse_source
from capture.spool import Spool

COMMAND = Path(sys.executable).with_name("relay-capture")
MIB = 1024 * 1024
CONTENT = (b"\x47\x1f\xff\x10" + b"\xff" * 184) * 10
DEADLINE = 120.0


class Meter:
    """CPU and the largest memory of each kind of process, its children counted in."""

    def __init__(self, root: psutil.Process) -> None:
        self._root = root
        self.cpu: dict[int, tuple[str, float]] = {}
        self.peak: dict[str, int] = {}

    def look(self) -> None:
        for process in [self._root, *self._root.children(recursive=True)]:
            try:
                name = name_of(process)
                times = process.cpu_times()
                rss = process.memory_info().rss
            except psutil.Error:
                continue
            self.cpu[process.pid] = name, times.user + times.system
            self.peak[name] = max(self.peak.get(name, 0), rss)

    def by_name(self) -> dict[str, float]:
        sums: dict[str, float] = {}
        for name, seconds in self.cpu.values():
            sums[name] = sums.get(name, 0.0) + seconds
        return sums


def name_of(process: psutil.Process) -> str:
    words = " ".join(process.cmdline())
    for part, name in (("ffmpeg", "ffmpeg"), ("valkey", "valkey"), (" beat", "beat"), ("worker", "worker")):
        if part in words:
            return name
    return "agent (up)"


def owe(root: Path, segments: int, cameras: int) -> int:
    """Fill a new spool as a killed agent leaves it; return its bytes."""
    spool = Spool.open(root, create=True)
    for number in range(cameras):
        camera = f"cam{number}"
        with Session.start(
            spool, camera, display_name=camera, source=parse_source("test:"), segment_seconds=2.0
        ) as session:
            for sequence in range(1, segments // cameras + 1):
                (session.path / f"{sequence:08d}_20260601T120000.000Z_2000.ts").write_bytes(CONTENT)
    return segments // cameras * cameras * len(CONTENT)


def configure(folder: Path, cameras: int, max_bytes: int | None) -> Path:
    tables = [f'[cameras.cam{number}]\nsource = "test:320x180@10"\n' for number in range(cameras)]
    limit = "" if max_bytes is None else f"[spool]\nmax_bytes = {max_bytes}\n"
    path = folder / "relay.toml"
    path.write_text("\n".join([limit, *tables]))
    return path


def wait(condition: Callable[[], bool], meter: Meter, what: str) -> float:
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > DEADLINE:
            raise SystemExit(f"not within {DEADLINE:.0f} s: {what}")
        meter.look()
        time.sleep(0.05)
    return time.monotonic()


def is_fresh_confirmed(spool: Path) -> bool:
    """Tell whether a segment of this run was delivered: those that were made have an older date."""
    for path in spool.glob("journal/*/*.jsonl"):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if entry["event"] == "delivered" and "_20260601T" not in entry["segment"]:
                return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description="What a large backlog costs.")
    parser.add_argument("--segments", type=int, default=100_000)
    parser.add_argument("--cameras", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--ingest", choices=["up", "down"], default="up")
    parser.add_argument("--limit", type=float)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    options = parser.parse_args()
    print(environment_lines(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), options)


def measure(folder: Path, options: argparse.Namespace) -> None:
    spool = folder / "spool"
    size = owe(spool, options.segments, options.cameras)
    config = configure(folder, options.cameras, None if options.limit is None else int(size * options.limit))
    sink = None
    url = "http://127.0.0.1:9"  # nobody listens there
    if options.ingest == "up":
        port = 18_080 + os.getpid() % 10_000
        url = f"http://127.0.0.1:{port}"
        arguments = ["sink", "--port", str(port), "--dir", str(folder / "sink")]
        sink = subprocess.Popen([COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = folder / "up.log"
    variables = {"RELAY_TOKEN": "benchmark", "RELAY_CLOUD": url, "RELAY_SPOOL": str(spool)}
    began = time.monotonic()
    with log.open("wb") as file:
        up = subprocess.Popen(
            [COMMAND, "up", "--config", config, "--segment-duration", "2", "--drain-timeout", "0"],
            env={**os.environ, **variables},
            stderr=file,
        )
    meter = Meter(psutil.Process(up.pid))
    try:
        captured = wait(
            lambda: log.read_text().count("capture_running") >= options.cameras, meter, "all cameras capture"
        )
        print(f"{options.segments} owed segments, {options.cameras} cameras, ingest {options.ingest}")
        print(f"every camera captures after {captured - began:.1f} s")
        found: dict[str, float] = {"owed": options.segments, "captures": captured - began}
        if sink is not None:
            confirmed = wait(lambda: is_fresh_confirmed(spool), meter, "a fresh segment is confirmed")
            print(f"first fresh segment confirmed after {confirmed - began:.1f} s")
            found["confirmed"] = confirmed - began
        follow(meter, options.seconds)
        data = {"environment": environment(), "start": found, "peak_bytes": meter.peak}
        write_figures(options.json, data)
    finally:
        up.send_signal(signal.SIGTERM)
        up.wait(60)
        if sink is not None:
            sink.terminate()
            sink.wait(10)
        left = sum(1 for _ in spool.glob("relay-segments-*/*.ts"))
        dropped = sum(path.read_text().count('"dropped"') for path in spool.glob("journal/*/*.jsonl"))
        print(f"at the end {left} owed, {dropped} dropped")
        if problem := os.environ.get("KEEP_LOG"):
            shutil.copy(log, problem)


def follow(meter: Meter, seconds: float) -> None:
    meter.look()
    before, began = meter.by_name(), time.monotonic()
    while time.monotonic() - began < seconds:
        meter.look()
        time.sleep(0.1)
    lasted = time.monotonic() - began
    print(f"\n{'process':<12}{'CPU s per min':>14}{'peak RSS MiB':>14}")
    for name, cpu in sorted(meter.by_name().items()):
        used = (cpu - before.get(name, 0.0)) / lasted * 60
        print(f"{name:<12}{used:>14.1f}{meter.peak[name] / MIB:>14.1f}")


if __name__ == "__main__":
    main()
