"""The workers whose whole upload path is measured: the relay's, live and backlog, and a naive one."""

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

from benchmarks import naive
from benchmarks.backlog import AGE, Backlog, video
from benchmarks.cameras import begin, close_one
from benchmarks.discard import Discard, discarding
from benchmarks.processes import Cpu, CpuMeter
from benchmarks.relay import wait_until
from benchmarks.rivals import Cost
from capture.broker import EmbeddedBroker, RuntimeDir
from capture.handoff import BACKLOG, LIVE, RECOVER, Message, publish, publisher_app, upload_message
from capture.journal import Event
from capture.settings import Settings, load_settings
from capture.spool import Spool

ROOT = Path(__file__).parents[1]
WAIT_SECONDS = 90.0
LIVE_PATH, BACKLOG_PATH, NAIVE = "relay, live", "relay, backlog", "naive worker"


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
            "NAIVE_BROKER": broker.url,
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
def worker(
    bench: Bench, *, children: int, app: str = "tasks", queues: str = f"{LIVE},{BACKLOG}"
) -> Iterator[psutil.Process]:
    """Run a worker until the end of the block."""
    options = ["-Q", queues, "-c", str(children), "--loglevel=WARNING"]
    flags = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    with (bench.folder / "worker.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", app, "worker", *options, *flags],
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


def _all(cpu: Cpu) -> float:
    return cpu.worker + cpu.broker + cpu.own


class Run:
    """One measurement of the relay: what it owes, and what sending that used."""

    def __init__(self, bench: Bench, process: psutil.Process, *, children: int) -> None:
        self._bench = bench
        self._process = process
        self._children = children
        self._app = publisher_app(bench.settings)

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
            self._send_live(self.owe(4 * self._children, video(188)))

    def live(self, backlog: Backlog) -> Cost:
        return self._measure(backlog, self._send_live)

    def backlog(self, backlog: Backlog) -> Cost:
        return self._measure(backlog, self._send_backlog)

    def _measure(self, backlog: Backlog, send: Any) -> Cost:  # noqa: ANN401 - one of the two below
        count = backlog.owed()
        meter, began = CpuMeter(self._process, self._bench.broker_pid), time.monotonic()
        send(backlog)
        return Cost(count, time.monotonic() - began, _all(meter.used()))

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
        with begin(spool, "pace", 1.0) as session:
            began = time.monotonic()
            for sequence in range(1, count + 1):
                time.sleep(max(0.0, began + sequence / rate - time.monotonic()))
                owed = close_one(session, sequence, content, 1.0)
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


def relay_live(bench: Bench, size: int, count: int) -> Cost:
    with worker(bench, children=bench.processes) as process:
        run = Run(bench, process, children=bench.processes)
        run.warm_up()
        return run.live(run.owe(count, video(size)))


def relay_backlog(bench: Bench, size: int, count: int) -> Cost:
    children = bench.processes + 1  # one is never given to the backlog
    with worker(bench, children=children) as process:
        run = Run(bench, process, children=children)
        run.warm_up()
        return run.backlog(run.owe(count, video(size), age=AGE))


def naive_worker(bench: Bench, size: int, count: int) -> Cost:
    naive.app.conf.broker_url = bench.environment["NAIVE_BROKER"]
    with worker(bench, children=bench.processes, app="benchmarks.naive", queues=naive.QUEUE) as process:
        send_naively(bench, process, count=4 * bench.processes, content=video(188))  # it opens everything
        return send_naively(bench, process, count=count, content=video(size))


def send_naively(bench: Bench, process: psutil.Process, *, count: int, content: bytes) -> Cost:
    folder = bench.folder / "naive"
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number:08d}.ts" for number in range(count)]
    for path in paths:
        path.write_bytes(content)
    meter, began = CpuMeter(process, bench.broker_pid), time.monotonic()
    for path in paths:
        naive.app.send_task(
            naive.TASK, args=[f"{bench.server.url}/api/stream/ingest/naive", str(path)], queue=naive.QUEUE
        )
    wait_until(lambda: not any(folder.iterdir()), seconds=WAIT_SECONDS, what="everything was sent")
    return Cost(count, time.monotonic() - began, _all(meter.used()))


WAYS = {LIVE_PATH: relay_live, BACKLOG_PATH: relay_backlog, NAIVE: naive_worker}
