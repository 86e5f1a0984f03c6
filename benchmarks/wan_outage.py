"""After an outage, over a WAN: how soon all that is owed is gone, and what new video sees of it meanwhile.

    python -m benchmarks.wan --outage [--rate 20Mbit] [--rtts 0.02,0.08,0.2] [--cameras 4] [--bitrate 0.8Mbit]

For each round trip, with a fresh spool: broker, worker and beat of `up` (`capture.stack.Stack`), the agent's
messages, real files, TLS, a line of limited rate (benchmarks/line.py), a server that only counts. New video
goes on all the time. First as always: its close-to-confirmed times are the normal. Then the line is cut, and
what the cameras would have recorded in ten minutes is owed: the clock is scaled down, the files are written
at once with the names, times and sizes that they would have. When the workers have taken the cloud for down,
the line is mended; from that moment until nothing of before is owed is what it took. The ideal is what was
owed by then / (the line's rate - the new video's). Headers, TLS and the wait for a probe count against the
relay.

Times come from the journal, as in benchmarks/live_first.py. The line knows no slow start.
"""

import argparse
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path

from benchmarks.backlog import Backlog, video
from benchmarks.cameras import LiveCamera, beside_the_cameras, let_go_on
from benchmarks.certificate import certificate
from benchmarks.discard import discarding
from benchmarks.figures import environment, environment_lines, write_figures
from benchmarks.line import running_line
from benchmarks.relay import TOKEN, audit, moment, wait_until
from benchmarks.wan_outage_report import Drain, Sent, introduction, line_of, show
from capture.gate import Gate
from capture.handoff import Publisher
from capture.journal import Event
from capture.log import configure_logging
from capture.settings import Settings, load_settings
from capture.spool import Spool
from capture.stack import Stack

PATIENCE = 4.0  # times the ideal, and a minute
LEAST_OUTAGE = 8.0  # real seconds
FEW = 500  # segments that may be looked at one by one


class Site:
    """A spool with what `up` runs beside its cameras, and cameras that close a segment every so often."""

    def __init__(
        self,
        options: argparse.Namespace,
        folder: Path,
        settings: Settings,
        stack: Stack,
        publisher: Publisher,
    ) -> None:
        self.spool = Spool.open(folder / "spool")
        self._options = options
        self._folder = folder
        self._stack = stack
        self._settings = settings
        self._content = video(round(options.bitrate * options.segment))
        self._names = [f"cam{number}" for number in range(options.cameras)]
        dice = random.Random(1)  # noqa: S311 - when segments close
        self._cameras = [
            LiveCamera(self.spool, name, every=options.segment, dice=dice) for name in self._names
        ]
        self._publisher = publisher

    def live(self, until: Callable[[], bool], *, seconds: float, what: str = "") -> None:
        """Let the cameras go on until a condition holds, looked at now and then; or for so long."""
        end = time.monotonic() + seconds
        is_there = False

        def close(camera: LiveCamera) -> None:
            camera.close_one(self._content, self._publisher, self._settings)

        def look() -> bool:
            nonlocal is_there
            self._stack.check()
            is_there = until()
            return is_there

        let_go_on(self._cameras, close, is_over=lambda: time.monotonic() >= end, look=look)
        if what and not is_there:
            sys.exit(f"waited {seconds:.0f} s in vain until {what}")

    def owe(self) -> None:
        """Owe what the cameras record in the time of the outage."""
        minutes = timedelta(minutes=self._options.minutes)
        backlog = Backlog(
            self.spool.root,
            self._folder / "parked",
            cameras=self._names,
            content=self._content,
            seconds=self._options.segment,
            age=minutes,
            sessions_each=1,
        )
        backlog.fill(round(minutes.total_seconds() / self._options.segment) * len(self._names))

    def is_down(self) -> bool:
        """Tell whether the workers know of the outage."""
        return Gate(self.spool, self._settings.ingest).is_open()

    def whatever_is_owed(self) -> Callable[[], bool]:
        """Return what tells whether all that is owed by now is gone."""
        left = [
            self.spool.session_path(session) / name
            for session in self.spool.sessions()
            for name in self.spool.segment_names(session)
        ]

        def is_gone() -> bool:
            while left and not left[-1].exists():
                left.pop()
            if len(left) < FEW:
                left[:] = [path for path in left if path.exists()]
            return not left

        return is_gone

    def end(self) -> None:
        for camera in self._cameras:
            camera.end()

    def sent(self) -> list[Sent]:
        """Return every segment of the journal."""
        found: dict[tuple[str, str], Sent] = {}
        for camera in self.spool.journal.cameras():
            for entry in self.spool.journal.read(camera):
                key = str(entry.fields.get("session")), str(entry.fields.get("segment"))
                if entry.event in {Event.CLOSED, Event.RECOVERED}:
                    found[key] = Sent(camera, entry.fields["bytes"], moment(entry.fields))
                elif entry.event is Event.DELIVERED and key in found:
                    found[key] = replace(found[key], confirmed=moment(entry.fields))
        return list(found.values())


@contextmanager
def site(options: argparse.Namespace, folder: Path, port: int, ca_file: Path) -> Iterator[Site]:
    """Run one behind a port, and never leave it behind."""
    flags = {"--cloud": f"https://127.0.0.1:{port}", "--token": TOKEN, "--spool": str(folder / "spool")}
    settings = load_settings(flags, environ={"RELAY_INGEST__CA_FILE": str(ca_file)})
    configure_logging(secrets=settings.secrets())
    Spool.open(folder / "spool", create=True)
    with beside_the_cameras(settings, folder, concurrency=options.concurrency) as (stack, publisher):
        yield Site(options, folder, settings, stack, publisher)


def outage(options: argparse.Namespace, rtt: float, folder: Path, pem: Path) -> Drain:
    """Run one, from the start of the processes to their end."""
    with (
        discarding(pem) as server,
        running_line(server.port, rate=options.rate, rtt=rtt) as line,
        site(options, folder, line.port, pem) as here,
    ):
        here.live(lambda: False, seconds=options.settle)
        normal_from = time.time()
        here.live(lambda: False, seconds=options.normal)
        line.shut()
        shut_at, real = time.time(), min(LEAST_OUTAGE, options.minutes * 60)
        debts = threading.Thread(target=here.owe)
        debts.start()
        here.live(
            lambda: not debts.is_alive() and here.is_down() and time.time() - shut_at > real,
            seconds=300,
            what="the debts were written and the workers knew of the outage",
        )
        is_gone = here.whatever_is_owed()
        line.mend()
        mended_at = time.time()
        debt = options.cameras * options.bitrate * options.minutes * 60
        ideal = debt / (options.rate - options.cameras * options.bitrate)
        here.live(is_gone, seconds=60 + PATIENCE * ideal, what="the debts were gone")
        here.live(lambda: False, seconds=1.0)
        rest = here.whatever_is_owed()
        wait_until(rest, seconds=60, what="the last new video was gone")
        here.end()
    code, words = audit(folder / "spool")
    return Drain.of(
        here.sent(),
        rtt=rtt,
        rate=options.rate,
        normal=(normal_from, shut_at),
        mended_at=mended_at,
        problems=words[-1000:] if code else "",
    )


def show_outages(options: argparse.Namespace) -> int:
    """Measure and print them all; return the exit code."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr] # each line as it comes
    print(f"{environment_lines()}\n{introduction(options)}\n")
    drains = []
    for rtt in options.rtts:
        for _ in range(options.repeat):
            with tempfile.TemporaryDirectory(prefix="wan-outage-") as name:
                folder = Path(name)
                drains.append(outage(options, rtt, folder, certificate(folder)))
            print(line_of(drains[-1]))
    data = [asdict(drain) for drain in drains]
    write_figures(options.json, {"environment": environment(), "parameters": vars(options), "drains": data})
    return show(drains)
