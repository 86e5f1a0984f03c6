"""An outage seen from the ingest: a trickle or a storm, and how soon live is current after it.

    python -m benchmarks.outage [--minutes 10] [--how refuse|reset|503|hang|all] [--cameras 8]

A real `up` with test cameras, at its default settings; the ingest is a sink that works for a while, then
fails in one of these ways, then works again:

    refuse  its port is closed
    reset   it takes the connection and the head of the request, and resets it
    503     it answers 503 to everything
    hang    it reads the request and answers when the outage is over

Requests are counted where the ingest reads their heads, whatever becomes of them. A closed port reads
nothing; then two counts stand in: the failures that the workers wrote down in the spool, and the refused
connections that the kernel counted for the whole machine, which are an upper bound.
"""

import argparse
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from benchmarks.bare import bare_rate
from benchmarks.figures import environment, environment_lines, write_figures
from benchmarks.outage_report import Found, Sample, show
from benchmarks.relay import TOKEN, Relay, running, wait_until
from capture.sink import Fault, FaultPlan, Hit, Sink, SinkEvent
from capture.spool import read_json

HOW = ("refuse", "reset", "503", "hang")
SAMPLE_SECONDS = 0.5
USAGE_EVERY = 4  # samples: reading the memory of all processes is dear
DRAIN_SECONDS = 300.0
BREAKER = "breaker.json"


class CountingPlan(FaultPlan):
    """Faults, and the moment of every request whose head was read."""

    def __init__(self) -> None:
        super().__init__()
        self.heads: list[float] = []

    def take(
        self, method: str, *, route: str, camera: str | None = None, sequence: int | None = None
    ) -> Hit | None:
        self.heads.append(time.time())
        return super().take(method, route=route, camera=camera, sequence=sequence)


@dataclass
class Watch:
    """Samples a relay from a thread of its own."""

    relay: Relay
    samples: list[Sample] = field(default_factory=list)
    failures: list[tuple[float, int]] = field(default_factory=list)
    refusals: list[tuple[float, int]] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, name="watch")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        failures, refused, usage = 0, refused_on_this_machine(), {}
        while not self._stop.wait(SAMPLE_SECONDS):
            now = time.time()
            noted = read_json(self.relay.spool.state / BREAKER).get("failures", 0)
            # A count that was reset began anew.
            self.failures.append((now, max(0, noted - failures)))
            if refused is not None:
                before, refused = refused, refused_on_this_machine()
                self.refusals.append((now, refused - before))
            failures = noted
            if len(self.samples) % USAGE_EVERY == 0:
                usage = self.relay.usage()
            ends = [segment.end.timestamp() for segment in self.relay.owed()]
            self.samples.append(Sample(now, self.relay.messages(), usage, ends))


def fault(how: str) -> Fault:
    """Return what the sink plays."""
    if how == "503":
        return Fault("status", status=503, method="any", path="any")
    if how == "reset":  # limited, so that it resets requests instead of closing the port
        return Fault("refuse", count=10**9, method="any", path="any")
    return Fault(how, method="any", path="any")


def refused_on_this_machine() -> int | None:
    """Return how many connections of this machine's processes failed so far; None where nobody counts."""
    try:
        lines = Path("/proc/net/snmp").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    names, values = (line.split() for line in lines if line.startswith("Tcp:"))
    return int(dict(zip(names, values, strict=True))["AttemptFails"])


def one(options: argparse.Namespace, how: str, folder: Path) -> Found:
    """Run one outage from the start of `up` to its end."""
    plan, events = CountingPlan(), list[SinkEvent]()
    with Sink(folder / "ingest", token=TOKEN, faults=plan, on_event=events.append) as sink:
        settings = {"RELAY_DEFAULTS__SEGMENT_SECONDS": str(options.segment)}
        relay = Relay(folder, sink.url, cameras=options.cameras, source=options.source, settings=settings)
        with running(relay), Watch(relay) as watch:
            found = Found(how, options, watch.samples, plan.heads, events, watch.failures, watch.refusals)
            found.settled_at = wait(relay, options.settle)
            found.down_at = wait(relay, options.before * 60)
            failing = fault(how)
            plan.add(failing)
            found.up_at = wait(relay, options.minutes * 60)
            found.owed_at_return = sum(1 for _ in relay.owed())
            plan.remove(failing)
            found.up_at = time.time()
            _until_drained(relay, found)
            found.watched_until = wait(relay, options.after)
            size = max(188, round(sum(e.bytes for e in events) / max(1, sum(e.bytes > 0 for e in events))))
            found.receipts = sink.receipts()
            found.exit_code = relay.stop()
        found.receipts = sink.receipts()
        found.audit_code, found.audit_words = relay.audit()
        found.owed_at_end = sum(1 for _ in relay.owed())
        found.bare_rate = bare_rate(sink.url, TOKEN, size=size, connections=2, seconds=3.0)
        found.segment_bytes = size
    return found


def wait(relay: Relay, seconds: float) -> float:
    """Let time pass while the relay runs; return the moment."""
    end = time.time() + seconds
    while time.time() < end:
        relay.check()
        time.sleep(min(0.2, max(0.0, end - time.time())))
    return time.time()


def _until_drained(relay: Relay, found: Found) -> None:
    def drained() -> bool:
        return all(segment.end.timestamp() > found.up_at for segment in relay.owed())

    wait_until(drained, seconds=DRAIN_SECONDS, what="the backlog was gone", check=relay.check)
    found.drained_at = time.time()


def main() -> int:
    options = _options()
    sys.stdout.reconfigure(line_buffering=True)  # each line as it comes, also into a file
    print(environment_lines())
    print(
        f"{options.cameras} cameras {options.source}, segments of {options.segment:g} s; "
        f"{options.before:g} min before, {options.minutes:g} min of outage",
    )
    codes, data = [], []
    for how in HOW if options.how == "all" else [options.how]:
        with tempfile.TemporaryDirectory(prefix="outage-", dir=options.folder) as folder:
            found = one(options, how, Path(folder))
        codes.append(show(found))
        data.append(found.as_data())
    write_figures(options.json, {"environment": environment(), "parameters": vars(options), "outages": data})
    return max(codes)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/outage", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--minutes", type=float, default=10.0, help="of outage  [10]")
    add("--before", type=float, default=1.0, help="minutes of normal work before it, to compare with  [1]")
    add("--settle", type=float, default=15.0, help="seconds after the start that do not count  [15]")
    add("--after", type=float, default=10.0, help="seconds to look on once the backlog is gone  [10]")
    add("--how", choices=[*HOW, "all"], default="all", help="the way it fails  [all, one after the other]")
    add("--cameras", type=int, default=8, help="[8]")
    add("--source", default="test:160x90@5", help="of each camera  [test:160x90@5]")
    add("--segment", type=float, default=2.0, help="seconds of a segment  [2]")
    add("--most-requests", type=float, default=30.0, help="in any minute of the outage  [30]")
    add("--current-within", type=float, default=10.0, help="seconds after the return  [10]")
    add("--folder", type=Path, help="where it runs  [the directory for temporary files]")
    add("--json", type=Path, metavar="FILE", help="write all that was measured")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
