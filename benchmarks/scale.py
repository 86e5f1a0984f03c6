"""Many simulated cameras on this machine: real sessions, files, journal and messages; only ffmpeg is missing.

    python -m benchmarks.scale [--cameras 100,300,1000] [--segment 10] [--size 64KiB] [--seconds 40]

Every camera closes a segment in each segment length, evenly spread, as staggered cameras do. A worker with
`--processes` sends them to an ingest that only discards. For each number of cameras: the segments a second
asked for and delivered, close-to-confirmed times, and the CPU milliseconds per segment of worker, agent's
part and broker. Every segment costs three syncs: file, directory, and the line "delivered". Recover looks at
all sessions every five seconds, as beat has it do. Before that all cameras are registered, and it is told how
long that takes: an agent starts 15 a second, and here they come at once.
"""

import argparse
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from benchmarks.backlog import video
from benchmarks.cameras import begin, close_one
from benchmarks.figures import environment, environment_lines, parse_size, percentile, table, write_figures
from benchmarks.processes import CpuMeter
from benchmarks.relay import wait_until
from benchmarks.upload_workers import Bench, bench, waits, worker
from capture.handoff import RECOVER, REGISTER_CAMERA, Message, Publisher, publisher_app, upload_message
from capture.session import Session
from capture.spool import Spool
from capture.upkeep import REGISTERED_NOTE

WAIT_SECONDS = 120.0
RECOVER_SECONDS = 5.0


class Ticks:
    """Asks for a round of recover as often as beat does."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._due = time.monotonic()

    def tick(self) -> None:
        if time.monotonic() >= self._due:
            self._due += RECOVER_SECONDS
            self._publisher.send(Message(RECOVER, ()))


def start_all(stack: ExitStack, spool: Spool, names: Sequence[str], segment: float) -> list[Session]:
    """Begin a session for each camera, until the end of the stack."""
    return [stack.enter_context(begin(spool, name, segment)) for name in names]


def register_all(publisher: Publisher, sessions: Sequence[Session]) -> float:
    """Have all cameras registered, as the agent does; return the seconds that it took."""
    began = time.monotonic()
    for session in sessions:
        publisher.send(Message(REGISTER_CAMERA, (str(session.name),)))
    wait_until(
        lambda: all((each.path / REGISTERED_NOTE).exists() for each in sessions),
        seconds=WAIT_SECONDS,
        what="all cameras were registered",
    )
    return time.monotonic() - began


def close_all(
    bench: Bench,
    publisher: Publisher,
    sessions: Sequence[Session],
    *,
    content: bytes,
    segment: float,
    seconds: float,
) -> tuple[int, float]:
    """Have each camera close a segment in every `segment` seconds; return how many, and how long all took."""
    spool = Spool.open(bench.folder / "spool")
    count, began, ticks = 0, time.monotonic(), Ticks(publisher)
    while (due := began + count * segment / len(sessions)) < began + seconds:
        time.sleep(max(0.0, due - time.monotonic()))
        ticks.tick()
        sequence, number = count // len(sessions) + 1, count % len(sessions)
        session = sessions[number]
        owed = close_one(session, sequence, content, segment)
        publisher.send(upload_message(bench.settings.ingest, session.name, owed.segment, owed.size))
        count += 1
    wait_until(
        lambda: not any(spool.has_segments(each.name) for each in sessions),
        seconds=WAIT_SECONDS,
        what="all was delivered",
        check=ticks.tick,
    )
    return count, time.monotonic() - began


def measure(
    bench: Bench, process: psutil.Process, cameras: int, options: argparse.Namespace
) -> dict[str, Any]:
    names = [f"n{cameras}-{number}" for number in range(cameras)]
    publisher = Publisher(publisher_app(bench.settings))
    publisher.start()
    spool = Spool.open(bench.folder / "spool")
    with ExitStack() as stack:
        sessions = start_all(stack, spool, names, options.segment)
        registered = register_all(publisher, sessions)
        meter = CpuMeter(process, bench.broker_pid)
        count, took = close_all(
            bench,
            publisher,
            sessions,
            content=video(options.size),
            segment=options.segment,
            seconds=options.seconds,
        )
        cpu = meter.used()
        descriptors = psutil.Process().num_fds()
        for session in sessions:
            session.end()
    publisher.close(5)
    times = [each for name in names for each in waits(spool, name)]
    return {
        "cameras": cameras,
        "asked": cameras / options.segment,
        "delivered": count / took,
        "segments": count,
        "p50_ms": percentile(times, 0.5),
        "p95_ms": percentile(times, 0.95),
        "p99_ms": percentile(times, 0.99),
        "worker_ms": cpu.worker / count * 1000,
        "publisher_ms": cpu.own / count * 1000,
        "broker_ms": cpu.broker / count * 1000,
        "registered_s": registered,
        "fds": descriptors,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cameras", default="100,300,1000", help="how many, in turn")
    parser.add_argument("--segment", type=float, default=10.0, help="seconds of a segment  [10]")
    parser.add_argument("--size", type=parse_size, default="64KiB", help="of a segment  [64KiB]")
    parser.add_argument("--seconds", type=float, default=40.0, help="for each number  [40]")
    parser.add_argument("--processes", type=int, default=2, help="of the worker  [2]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    options = parser.parse_args()
    print(f"{environment_lines()}\n", flush=True)
    with bench(options.processes) as ready, worker(ready, children=options.processes) as process:
        counts = map(int, options.cameras.split(","))
        found = [measure(ready, process, cameras, options) for cameras in counts]
    rows = [
        [
            each["cameras"],
            f"{each['asked']:.0f}",
            f"{each['delivered']:.0f}",
            *(f"{each[key]:.0f}" for key in ("p50_ms", "p95_ms", "p99_ms")),
            *(f"{each[key]:.2f}" for key in ("worker_ms", "publisher_ms", "broker_ms")),
            f"{each['registered_s']:.1f}",
        ]
        for each in found
    ]
    header = ["cameras", "segments/s", "delivered/s", "p50 ms", "p95 ms", "p99 ms"]
    print(table([*header, "CPU ms: worker", "agent's part", "broker", "registered s"], rows))
    write_figures(options.json, {"environment": environment(), "runs": found})


if __name__ == "__main__":
    main()
