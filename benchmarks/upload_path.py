"""What the whole upload path costs, against bare loops: agent's message → worker → 204 → journal → file gone.

    python -m benchmarks.upload_path [--sizes 64KiB,1.5MiB,12MiB] [--processes 2] [--repeat 3]

One ingest that only discards, on loopback, for everybody. In turn, `--repeat` times: the relay's live path
(a message for each segment), its backlog path (recover's batches), and as many processes of plain httpx,
httpx from files, http.client and curl. CPU of the relay is that of the worker with all its processes, the
broker and the publisher. Everything that makes a delivery safe is on: digest, lock, journal with its sync.
Then new segments at a steady rate: from the end of closing to the line "delivered".
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psutil

from benchmarks.backlog import AGE, Backlog, video
from benchmarks.discard import Discard, discarding
from benchmarks.figures import MIB, environment, environment_lines, spread, summary, table, write_figures
from benchmarks.processes import cpu_between, usage_of_tree
from benchmarks.relay import wait_until
from benchmarks.rivals import SENDERS, Cost, race
from capture.broker import EmbeddedBroker, RuntimeDir
from capture.handoff import BACKLOG, LIVE, RECOVER, Message, publish, publisher_app, upload_message
from capture.journal import Event
from capture.segment import open_name
from capture.session import Session
from capture.settings import Settings, load_settings
from capture.source import parse_source
from capture.spool import Spool

ROOT = Path(__file__).parents[1]
UNITS = {"KiB": 1024, "MiB": MIB}
COUNTS = {64 * 1024: 2000, int(1.5 * MIB): 400, 12 * MIB: 60}
OTHERWISE = 200
WAIT_SECONDS = 90.0
RELAY = ("relay, live", "relay, backlog")


@dataclass(frozen=True)
class Bench:
    """What runs for all measurements."""

    folder: Path
    settings: Settings
    environment: Mapping[str, str]
    server: Discard
    broker_pid: int
    processes: int


@contextmanager
def bench(processes: int) -> Iterator[Bench]:
    with (
        tempfile.TemporaryDirectory(prefix="upload-") as name,
        RuntimeDir() as runtime,
        discarding() as server,
    ):
        broker = EmbeddedBroker(runtime.path)
        broker.start()
        folder = Path(name)
        environment = {
            "RELAY_CLOUD": server.url,
            "RELAY_TOKEN": "benchmark",
            "RELAY_SPOOL": str(folder / "spool"),
            "RELAY_BROKER": broker.url,
        }
        Spool.open(folder / "spool", create=True)
        try:
            yield Bench(
                folder,
                load_settings(environ=environment),
                {**os.environ, **environment},
                server,
                next(child.pid for child in psutil.Process().children() if "valkey" in child.name()),
                processes,
            )
        finally:
            broker.stop()


@contextmanager
def worker(bench: Bench) -> Iterator[psutil.Process]:
    """Run a worker until the end of the block, ready when it begins."""
    options = ["-Q", f"{LIVE},{BACKLOG}", "-c", str(bench.processes), "--loglevel=INFO"]
    flags = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    with (bench.folder / "worker.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "tasks", "worker", *options, *flags],
            env=dict(bench.environment),
            cwd=ROOT,
            stdout=log,
            stderr=log,
        )
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


class Run:
    """One measurement of the relay: what it owes, and what sending that used."""

    def __init__(self, bench: Bench, process: psutil.Process) -> None:
        self._bench = bench
        self._process = process
        self._app = publisher_app(bench.settings)
        self._broker = psutil.Process(bench.broker_pid)

    def owe(self, count: int, content: bytes, *, age: timedelta = timedelta(0)) -> Backlog:
        """Owe new segments, or some of that age: an old one with a live message would make way."""
        root = self._bench.folder / "spool"
        parked = self._bench.folder / "parked"
        backlog = Backlog(root, parked, cameras=["cam"], content=content, seconds=2.0, age=age)
        backlog.fill(count)
        return backlog

    def warm_up(self) -> None:
        """Have each process send something: its first upload opens everything."""
        for _ in range(3):
            self._send_live(self.owe(4 * self._bench.processes, video(188)))

    def live(self, backlog: Backlog) -> Cost:
        return self._measure(backlog, self._send_live)

    def backlog(self, backlog: Backlog) -> Cost:
        return self._measure(backlog, self._send_backlog)

    def _measure(self, backlog: Backlog, send: Any) -> Cost:  # noqa: ANN401 - one of the two below
        count = backlog.owed()
        before, own, broker, began = *self._used(), time.monotonic()
        send(backlog)
        seconds = time.monotonic() - began
        after, own_after, broker_after = self._used()
        return Cost(count, seconds, cpu_between(before, after) + own_after - own + broker_after - broker)

    def _used(self) -> tuple[Any, float, float]:
        times = self._broker.cpu_times()
        return usage_of_tree(self._process), time.process_time(), times.user + times.system

    def _send_live(self, backlog: Backlog) -> None:
        spool = Spool.open(self._bench.folder / "spool")
        ingest = self._bench.settings.ingest
        for session in backlog.sessions:
            for segment in spool.segments(session):
                publish(self._app, upload_message(ingest, session, segment, 0))
        self._wait(backlog)

    def _send_backlog(self, backlog: Backlog) -> None:
        publish(self._app, Message(RECOVER, (True, True)))
        self._wait(backlog)

    def _wait(self, backlog: Backlog) -> None:
        wait_until(backlog.is_gone, seconds=WAIT_SECONDS, what="everything was sent")

    def at_a_rate(self, *, count: int, size: int, rate: float) -> list[float]:
        """Close and publish segments at a steady rate; return the milliseconds from closed to delivered."""
        spool = Spool.open(self._bench.folder / "spool")
        content = video(size)
        source = parse_source("test:")
        with Session.start(spool, "pace", display_name="pace", source=source, segment_seconds=1.0) as session:
            begin = time.monotonic()
            for sequence in range(1, count + 1):
                time.sleep(max(0.0, begin + sequence / rate - time.monotonic()))
                (session.open_directory / open_name(sequence)).write_bytes(content)
                owed = session.close_segment(sequence, spool.clock.now(), 1.0)
                assert owed is not None  # noqa: S101 - it holds video
                publish(
                    self._app,
                    upload_message(self._bench.settings.ingest, session.name, owed.segment, owed.size),
                )
            wait_until(
                lambda: not spool.has_segments(session.name), seconds=WAIT_SECONDS, what="all was sent"
            )
            session.end()
        return waits(spool, "pace")


def waits(spool: Spool, camera: str) -> list[float]:
    """Return the milliseconds from closed to delivered of each segment of a camera, by its journal."""
    closed, found = {}, []
    for entry in spool.journal.read(camera):
        at = datetime.fromisoformat(str(entry.fields["t"])).timestamp()
        if entry.event is Event.CLOSED:
            closed[entry.fields["segment"]] = at
        elif entry.event is Event.DELIVERED:
            found.append((at - closed[entry.fields["segment"]]) * 1000)
    return found


def measure(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {"sizes": {}}
    with worker(bench) as process:
        run = Run(bench, process)
        run.warm_up()
        for size in options.sizes:
            found["sizes"][size] = _one_size(bench, run, size, options.repeat)
            _show(size, found["sizes"][size])
        times = run.at_a_rate(count=options.paced, size=int(1.5 * MIB), rate=options.rate)
    found["close_to_confirmed_ms"] = summary(times)
    print(
        f"\nnew segments of 1.5 MiB at {options.rate:g} a second, closed to confirmed: "
        + ", ".join(f"{name} {value:.1f} ms" for name, value in summary(times).items() if name != "n")
    )
    return found


def _one_size(bench: Bench, run: Run, size: int, repeat: int) -> dict[str, list[dict[str, float]]]:
    count = COUNTS.get(size, OTHERWISE)
    content = video(size)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in (*RELAY, *SENDERS)}
    for _ in range(repeat):
        for name, done in results.items():
            before = bench.server.ask()
            if name in RELAY:
                cost = (
                    run.live(run.owe(count, content))
                    if name == RELAY[0]
                    else run.backlog(run.owe(count, content, age=AGE))
                )
            else:
                cost = race(
                    name,
                    bench.server.url,
                    count=count,
                    size=size,
                    processes=bench.processes,
                    folder=bench.folder,
                )
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


def _show(size: int, results: dict[str, list[dict[str, float]]]) -> None:
    bare = results["httpx"]
    rows = []
    for name, runs in results.items():
        pairs = list(zip(runs, bare, strict=True))
        rows.append(
            [
                name,
                spread([run["rate"] for run in runs], ".0f"),
                spread([run["rate"] / other["rate"] for run, other in pairs]),
                spread([run["cpu_ms"] for run in runs]),
                spread([run["cpu_ms"] / other["cpu_ms"] for run, other in pairs]),
                spread([100 * run["server_share"] for run in runs], ".0f", " %"),
            ]
        )
    header = ["", "segments/s", "to httpx", "CPU ms each", "to httpx", "server's CPU"]
    print(f"\n{size / MIB:g} MiB\n{table(header, rows)}", flush=True)


def parse_size(text: str) -> int:
    for unit, factor in UNITS.items():
        if text.endswith(unit):
            return int(float(text.removesuffix(unit)) * factor)
    raise argparse.ArgumentTypeError(f"found {text!r}; expected a size like 1.5MiB or 64KiB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = [64 * 1024, int(1.5 * MIB), 12 * MIB]
    parser.add_argument(
        "--sizes", type=lambda text: [parse_size(each) for each in text.split(",")], default=sizes
    )
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
