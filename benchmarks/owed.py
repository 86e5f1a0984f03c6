"""What a worker pays for each segment of a backlog, among few and among very many owed ones.

    python -m benchmarks.owed [--owed 10,100,1000,10000,100000] [--most 1000] [--repeat 3]

A spool owes so many small segments of eight cameras, whose sessions ended and are told. One worker with
`--processes` and recover send them to an ingest that only discards, until `--most` are gone; fewer are owed
again and again, for one round would be too short to be measured. Told for each segment: CPU of worker and
broker, and the time. With very many owed this holds the listings that recover makes of them.
"""

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from benchmarks.backlog import AGE, video
from benchmarks.cameras import begin
from benchmarks.figures import environment, environment_lines, spread, table, write_figures
from benchmarks.processes import CpuMeter
from benchmarks.relay import wait_until
from benchmarks.upload_workers import Bench, bench, worker
from capture.broker import queue_lengths
from capture.handoff import BACKLOG, LIVE, RECOVER, Message, publish, publisher_app
from capture.spool import Spool
from capture.upkeep import ENDED_NOTE

CAMERAS = 8
CONTENT = video(4096)
ROUNDS = 20
WAIT_SECONDS = 90.0


class Debtor:
    """A spool whose few sessions owe again and again, and the worker that sends it all."""

    def __init__(self, ready: Bench, process: psutil.Process) -> None:
        self._ready = ready
        self._process = process
        self._app = publisher_app(ready.settings)
        self._spool = Spool.open(ready.folder / "spool")
        self._sequence = 0
        self._paths = [self._session(f"cam{number}") for number in range(CAMERAS)]

    def _session(self, camera: str) -> Path:
        with begin(self._spool, camera, 2.0) as session:
            session.end()
        return session.path

    def owe(self, count: int) -> None:
        """Owe so many more, in turn of each camera."""
        old = time.time() - AGE.total_seconds()
        for number in range(count):
            if number % CAMERAS == 0:
                self._sequence += 1
            name = f"{self._sequence:08d}_20260601T120000.000Z_2000.ts"
            path = self._paths[number % CAMERAS] / name
            path.write_bytes(CONTENT)
            os.utime(path, (old, old))  # a young one would be left to its live message

    def warm_up(self) -> None:
        """Have every process send something, and the cloud told that all sessions are over."""
        self.owe(16 * CAMERAS)
        self._recover()
        wait_until(self._is_settled, seconds=WAIT_SECONDS, what="all was sent and no message is left")
        self._recover()
        wait_until(
            lambda: all((path / ENDED_NOTE).exists() for path in self._paths) and self._is_settled(),
            seconds=WAIT_SECONDS,
            what="the cloud was told of all sessions",
        )

    def _is_settled(self) -> bool:
        owing = any(self._spool.has_segments(name) for name in self._spool.sessions())
        url = self._ready.settings.broker.url.get_secret_value()
        return not owing and not any(queue_lengths(url, [LIVE, BACKLOG]).values())

    def send(self, owed: int, most: int) -> tuple[float, float, int]:
        """Owe, have so many sent; return the seconds, the CPU seconds of worker and broker, and how many."""
        requests = self._ready.server.ask()[1]  # nothing but segments is left to be told to the server
        self.owe(owed)
        meter, began = CpuMeter(self._process, self._ready.broker_pid), time.monotonic()
        self._recover()
        wait_until(
            lambda: self._ready.server.ask()[1] - requests >= most, seconds=WAIT_SECONDS, what=f"{most} sent"
        )
        seconds, sent = time.monotonic() - began, self._ready.server.ask()[1] - requests
        cpu = meter.used()
        return seconds, cpu.worker + cpu.broker, sent

    def _recover(self) -> None:
        publish(self._app, Message(RECOVER, (True, True)))


def measure(owed: int, options: argparse.Namespace) -> dict[str, float]:
    """Return what each segment cost while so many were owed at the beginning."""
    with bench(options.processes) as ready, worker(ready, children=options.processes) as process:
        debtor = Debtor(ready, process)
        debtor.warm_up()
        seconds = cpu = sent = 0.0
        most = min(owed, options.most)
        for _ in range(max(1, min(ROUNDS, options.most // most))):
            found = debtor.send(owed, most)
            seconds, cpu, sent = seconds + found[0], cpu + found[1], sent + found[2]
    return {"owed": owed, "sent": sent, "ms": 1000 * seconds / sent, "cpu_ms": 1000 * cpu / sent}


def show(found: Sequence[dict[str, float]]) -> None:
    rows = []
    for owed in dict.fromkeys(each["owed"] for each in found):
        runs = [each for each in found if each["owed"] == owed]
        rows.append(
            [f"{owed:.0f}", len(runs), *(spread([each[key] for each in runs]) for key in ("cpu_ms", "ms"))]
        )
    print(table(["owed", "n", "CPU ms for each", "ms for each"], rows))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--owed", default="10,100,1000,10000,100000", help="how many, in turn")
    parser.add_argument("--most", type=int, default=1000, help="of them to send  [1000]")
    parser.add_argument("--processes", type=int, default=2, help="of the worker  [2]")
    parser.add_argument("--repeat", type=int, default=3, help="rounds  [3]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    options = parser.parse_args()
    print(f"{environment_lines()}\n", flush=True)
    counts = [int(each) for each in options.owed.split(",")]
    found = [measure(count, options) for _ in range(options.repeat) for count in counts]
    show(found)
    write_figures(options.json, {"environment": environment(), "owed": found})


if __name__ == "__main__":
    main()
