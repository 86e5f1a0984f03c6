"""Live first: close-to-confirmed times of new segments without a backlog and with a very large one.

    python -m benchmarks.live_first [--segments 10000] [--rate 20Mbit] [--rtt 0.02]
    python -m benchmarks.live_first --loopback

Broker, workers and beat are those of `up` (`capture.stack.Stack`), the messages those of the agent
(`Publisher`, `upload_message`), the segments those of a `Session`; only ffmpeg is missing, which would take
the processors. The ingest is a process of its own behind a line of limited rate (benchmarks/line.py).

Without and with backlog take turns, A B A B, each with fresh processes on the same spool; before each B the
backlog is filled up again. A segment's time runs from the journal's `closed` line, written right after the
rename that makes it owed, to its `delivered` line. One that was not confirmed in the end counts as never.

The line's own rate is measured by plain httpx in the same run, with as many connections as `--concurrency`.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.backlog import Backlog, video
from benchmarks.bare import bare_rate
from benchmarks.cameras import CHECK_SECONDS, LiveCamera, beside_the_cameras, let_go_on
from benchmarks.figures import environment_lines
from benchmarks.ingest import Ingest, ingest_process
from benchmarks.line import line_process, parse_rate
from benchmarks.live_first_report import Phase, Report, mbit, overtaking, phase_line, turns
from benchmarks.relay import TOKEN, audit, confirmations
from capture.handoff import Publisher
from capture.log import configure_logging
from capture.settings import load_settings
from capture.spool import Spool
from capture.stack import Stack

CAMERAS = tuple(f"cam{number}" for number in range(8))
PATIENCE = 60.0  # seconds that the last live segments have to be confirmed

Key = tuple[str, str]  # session and segment


@dataclass(frozen=True)
class Lived:
    """The live segments that count, and between which moments they were closed."""

    closed: Sequence[Key]
    begun: float
    ended: float


class Bench:
    """One spool, one ingest, one line; the phases one after the other."""

    def __init__(self, options: argparse.Namespace, folder: Path, ingest: Ingest, port: int) -> None:
        self.options = options
        self.folder = folder
        self.ingest = ingest
        self.url = f"http://127.0.0.1:{port}"
        flags = {"--cloud": self.url, "--token": TOKEN, "--spool": str(folder / "spool")}
        self.settings = load_settings(flags, environ={})
        configure_logging(secrets=self.settings.secrets())
        self.spool = Spool.open(folder / "spool", create=True)
        self.content = video(options.size)
        self.backlog = Backlog(
            self.spool.root, folder / "parked", cameras=CAMERAS, content=self.content, seconds=options.every
        )

    def line_rate(self) -> float:
        """Measure what plain httpx gets through the line, in bytes per second."""
        found = bare_rate(
            self.url,
            TOKEN,
            size=len(self.content),
            connections=self.options.concurrency,
            seconds=self.options.bare_seconds,
        )
        self.ingest.arrivals()
        self.ingest.forget_bodies()
        return found

    def phase(self, number: int, *, with_backlog: bool) -> Phase:
        """Run one phase, from the start of the processes to their end."""
        if with_backlog:
            self.backlog.put_in()
            self.backlog.fill(self.options.segments)
        before = self.backlog.owed()
        with beside_the_cameras(self.settings, self.folder, concurrency=self.options.concurrency) as (
            stack,
            publisher,
        ):
            lived = self._live(stack, publisher, seed=number, with_backlog=with_backlog)
        after = self.backlog.owed()
        self.backlog.take_out()
        return self._sum_up(lived, before, after)

    def _live(self, stack: Stack, publisher: Publisher, *, seed: int, with_backlog: bool) -> Lived:
        """Close segments for a time; those before one was confirmed and while it settles do not count."""
        dice = random.Random(seed)  # noqa: S311 - when segments close, the same for A and B
        every, names = self.options.every, CAMERAS[: self.options.live_cameras]
        cameras = [LiveCamera(self.spool, camera, every=every, dice=dice) for camera in names]
        closed: list[tuple[float, Key]] = []
        # Workers take seconds to start, on a busy machine many.
        begun = time.time() + PATIENCE
        is_settling = False

        def close(camera: LiveCamera) -> None:
            closed.append((time.time(), camera.close_one(self.content, publisher, self.settings)))

        def look() -> bool:
            nonlocal begun, is_settling
            stack.check()
            if not is_settling and self._has_confirmed(closed):
                begun, is_settling = time.time() + self.options.settle, True
            return with_backlog and self.backlog.is_gone()

        let_go_on(cameras, close, is_over=lambda: time.time() >= begun + self.options.seconds, look=look)
        ended = time.time()
        self._wait([key for _, key in closed], stack)
        for camera in cameras:
            camera.end()
        return Lived([key for at, key in closed if at >= begun], begun, ended)

    def _has_confirmed(self, closed: Sequence[tuple[float, Key]]) -> bool:
        return any(not (self.spool.root / session / segment).exists() for _, (session, segment) in closed)

    def _wait(self, closed: Sequence[Key], stack: Stack) -> None:
        """Wait for the last live segments, for some time."""
        until = time.monotonic() + PATIENCE
        left = [self.spool.root / session / segment for session, segment in closed]
        while (left := [path for path in left if path.exists()]) and time.monotonic() < until:
            stack.check()
            time.sleep(CHECK_SECONDS)

    def _sum_up(self, lived: Lived, owed_before: int, owed_after: int) -> Phase:
        times = confirmations(self.spool)
        ends = [(times[key][0], times[key][1] or float("inf")) for key in lived.closed]
        arrivals = self.ingest.arrivals()
        self.ingest.forget_bodies()
        old = {(session.camera, session.id) for session in self.backlog.sessions}
        drained = [each for each in arrivals if (each.camera, each.session) in old]
        within = [each for each in arrivals if lived.begun <= each.at < lived.ended]
        drained_bytes = sum(each.bytes for each in within if (each.camera, each.session) in old)
        return Phase(
            backlog=owed_before > 0,
            waits=[(confirmed - closed) * 1000 for closed, confirmed in ends],
            seconds=lived.ended - lived.begun,
            live_bytes=sum(each.bytes for each in within) - drained_bytes,
            drained_bytes=drained_bytes,
            owed_before=owed_before,
            owed_after=owed_after,
            overtaking=overtaking(drained),
            apart=turns([each.camera for each in drained], CAMERAS, owed_before // len(CAMERAS)),
        )


def main() -> int:
    options = _options()
    sys.stdout.reconfigure(line_buffering=True)  # each line as it comes, also into a file
    with (
        tempfile.TemporaryDirectory(prefix="live-first-", dir=options.folder) as folder,
        ExitStack() as stack,
    ):
        ingest = stack.enter_context(ingest_process(Path(folder)))
        port = ingest.port
        if not options.loopback:
            port = stack.enter_context(line_process(port, rate=options.rate, rtt=options.rtt))
        bench = Bench(options, Path(folder), ingest, port)
        _introduce(options, bench)
        line_rate = bench.line_rate()
        print(f"plain httpx on {options.concurrency} connections: {mbit(line_rate)}\n")
        phases = []
        for number in range(options.repeat):
            for with_backlog in (False, True):
                phases.append(bench.phase(number, with_backlog=with_backlog))
                print(phase_line(phases[-1], line_rate))
        bench.backlog.put_in()
        problems = _conservation(bench)
    report = Report(options, phases, line_rate, problems)
    report.write(options.json)
    return report.show()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/live-first", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--segments", type=int, default=10_000, help="owed in the backlog, of 8 cameras  [10000]")
    add("--size", type=int, default=256 * 1024, help="bytes of each segment  [262144]")
    add("--live-cameras", type=int, default=4, help="cameras that go on  [4]")
    add("--every", type=float, help="seconds between two segments of a camera  [2; loopback 0.25]")
    add("--rate", type=parse_rate, default=parse_rate("20Mbit"), help="of the line, upstream  [20Mbit]")
    add("--rtt", type=float, default=0.02, help="round trip of the line in seconds  [0.02]")
    add("--loopback", action="store_true", help="no line: what the machine can do")
    add("--concurrency", type=int, default=3, help="as of `up`  [3]")
    add("--seconds", type=float, help="of each phase; with --loopback at most  [60; loopback 20]")
    add("--settle", type=float, help="seconds before that do not count  [10; loopback 3]")
    add("--repeat", type=int, default=3, help="how often A and B  [3]")
    add("--bare-seconds", type=float, default=5.0, help="of plain httpx  [5]")
    add("--least-share", type=float, default=0.7, help="of the rest of the line for the backlog  [0.7]")
    add("--folder", type=Path, help="where spool and ingest are made for the time  [the temporary one]")
    add("--json", type=Path, metavar="FILE", help="write all that was measured")
    options = parser.parse_args()
    for name, limited, loopback in (("every", 2.0, 0.25), ("seconds", 60.0, 20.0), ("settle", 10.0, 3.0)):
        if getattr(options, name) is None:
            setattr(options, name, loopback if options.loopback else limited)
    return options


def _introduce(options: argparse.Namespace, bench: Bench) -> None:
    print(environment_lines())
    line = (
        "none: loopback"
        if options.loopback
        else f"{mbit(options.rate)}, {options.rtt * 1000:g} ms round trip"
    )
    print(
        f"line {line}; backlog {options.segments} segments of {len(CAMERAS)} cameras, "
        f"{len(bench.content)} bytes each; live {options.live_cameras} cameras, a segment each every "
        f"{options.every:g} s; concurrency {options.concurrency}; {options.repeat} x 2 phases of "
        f"{options.seconds:g} s after {options.settle:g} s",
    )


def _conservation(bench: Bench) -> list[str]:
    """Say what is missing at the end; the phases moved sessions about, so look at it as a whole."""
    code, words = audit(bench.spool.root)
    problems = [f"audit ended with {code}: {words[-1000:]}"] if code else []
    times = confirmations(bench.spool)
    left = bench.spool.owed_count()
    confirmed = sum(at is not None for _, at in times.values())
    if len(times) != confirmed + left:
        problems.append(f"{len(times)} closed, {confirmed} confirmed, {left} owed")
    return problems


if __name__ == "__main__":
    sys.exit(main())
