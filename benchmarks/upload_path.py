"""What the whole upload path costs, against bare loops: agent's message → worker → 204 → journal → file gone.

    python -m benchmarks.upload_path [--sizes 64KiB,1.5MiB,12MiB] [--processes 2] [--repeat 3]

One ingest that only discards, on loopback, for everybody. In turn, `--repeat` times: the relay's live path
(a message for each segment), its backlog path (recover's batches; with one more child, which is kept for new
video, and three times as many segments), the Celery worker that everybody writes first, and as many processes
of plain httpx, httpx from files, http.client and curl. CPU of a worker is that of all its processes, the
broker and the publisher. All that makes a delivery safe is on in the relay alone: digest, lock, journal
with its sync.
Then new segments at a steady rate: from the end of closing to the line "delivered".
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.figures import (
    MIB,
    environment,
    environment_lines,
    parse_sizes,
    spread,
    summary,
    table,
    write_figures,
)
from benchmarks.rivals import SENDERS, Cost, race
from benchmarks.upload_workers import BACKLOG_PATH, WAYS, Bench, Run, bench, worker

COUNTS = {64 * 1024: 2000, int(1.5 * MIB): 400, 12 * MIB: 60}
OTHERWISE = 200
# The first batch of a backlog is sent by one process alone: of a short one that is the most.
BACKLOG_TIMES = 3
BARE, FILES = "httpx", "httpx, files"


def measure(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {"sizes": {}}
    for size in options.sizes:
        found["sizes"][size] = _one_size(bench, size, options.repeat)
        _show(size, found["sizes"][size])
    with worker(bench, children=bench.processes) as process:
        run = Run(bench, process, children=bench.processes)
        run.warm_up()
        times = run.at_a_rate(count=options.paced, size=int(1.5 * MIB), rate=options.rate)
    found["close_to_confirmed_ms"] = summary(times)
    print(
        f"\nnew segments of 1.5 MiB at {options.rate:g} a second, closed to confirmed: "
        + ", ".join(f"{name} {value:.1f} ms" for name, value in summary(times).items() if name != "n")
    )
    return found


def _one_size(bench: Bench, size: int, repeat: int) -> dict[str, list[dict[str, float]]]:
    count = COUNTS.get(size, OTHERWISE)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in (*WAYS, *SENDERS)}
    for _ in range(repeat):
        for name, done in results.items():
            before = bench.server.ask()
            cost = _once(bench, name, size=size, count=count)
            cpu, requests, connections, _ = (b - a for a, b in zip(before, bench.server.ask(), strict=True))
            if requests < cost.segments:
                sys.exit(f"{name}: the server counted {requests} of {cost.segments} segments")
            done.append(
                {
                    "rate": cost.rate,
                    "cpu_ms": cost.cpu_each * 1000,
                    "server_share": cpu / cost.seconds,
                    "connections": connections,
                }
            )
    return results


def _once(bench: Bench, name: str, *, size: int, count: int) -> Cost:
    if name in WAYS:
        return WAYS[name](bench, size, count * BACKLOG_TIMES if name == BACKLOG_PATH else count)
    return race(
        name, bench.server.url, count=count, size=size, processes=bench.processes, folder=bench.folder
    )


def _show(size: int, results: dict[str, list[dict[str, float]]]) -> None:
    rows = []
    for name, runs in results.items():
        bare = list(zip(runs, results[BARE], strict=True))
        files = list(zip(runs, results[FILES], strict=True))
        rows.append(
            [
                name,
                spread([run["rate"] for run in runs], ".0f"),
                spread([run["rate"] / other["rate"] for run, other in bare]),
                spread([run["cpu_ms"] for run in runs]),
                spread([run["cpu_ms"] / other["cpu_ms"] for run, other in bare]),
                spread([run["cpu_ms"] / other["cpu_ms"] for run, other in files]),
                spread([100 * run["server_share"] for run in runs], ".0f", " %"),
            ]
        )
    header = ["", "segments/s", f"to {BARE}", "CPU ms each", f"to {BARE}", f"to {FILES}", "server's CPU"]
    print(f"\n{size / MIB:g} MiB\n{table(header, rows)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = [64 * 1024, int(1.5 * MIB), 12 * MIB]
    parser.add_argument("--sizes", type=parse_sizes, default=sizes)
    parser.add_argument("--processes", type=int, default=2, help="of the worker, and of each rival  [2]")
    parser.add_argument("--repeat", type=int, default=3, help="rounds  [3]")
    parser.add_argument("--rate", type=float, default=20.0, help="new segments a second  [20]")
    parser.add_argument("--paced", type=int, default=400, help="how many of those  [400]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    options = parser.parse_args()
    print(f"{environment_lines()}\n{options.processes} processes each, {options.repeat} rounds", flush=True)
    with bench(options.processes) as ready:
        found = measure(ready, options)
    write_figures(options.json, {"environment": environment(), **found})


if __name__ == "__main__":
    main()
