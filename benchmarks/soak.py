"""A long run at ten times the normal rate of segments: what grows, and what stays flat.

    python -m benchmarks.soak [--minutes 60] [--every 60] [--cameras 4] [--with-outages]

A real `up` with test cameras and segments of one second, where ten are normal, and the sink as ingest. Every
minute: resident and proportional memory, descriptors and threads of each process of `up` (the ingest lives
in this process and does not count), what the broker and the spool hold. At the end a trend for each process.

Memory is flat when its trend (Theil-Sen, after the warm-up) is below 2 MiB or 5 % an hour, whichever is
more; descriptors are when the medians of the first and of the last quarter are the same. A process that was
started again, like a worker's child after so many tasks, begins a new series. What lived for less than
twenty minutes after the warm-up is shown and not judged: its trend would be noise times a large number.

The ingest checks each digest, keeps its receipt and lets go of the bytes, so that the disk does not fill.
"""

import argparse
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from redis import Redis, RedisError

from benchmarks.figures import MIB, environment, environment_lines, write_figures
from benchmarks.processes import total_memory
from benchmarks.relay import TOKEN, Relay, pile, running, wait_until
from benchmarks.soak_report import Moment, Soak
from capture.sink import Fault, Sink

OUTAGES = (Fault("status", status=503, duration=20), Fault("refuse", duration=20), Fault("hang", duration=20))
DRAIN_SECONDS = 120.0
WIDTH = 7


class Observer:
    """Looks at a relay from outside."""

    def __init__(self, relay: Relay, sink: Sink) -> None:
        self._relay = relay
        self._sink = sink
        self._began = time.monotonic()

    def look(self) -> Moment:
        root = self._relay.root
        state = [path for path in (root / ".state").iterdir() if path.is_file()]
        journal = sum(path.stat().st_size for path in (root / "journal").glob("*/*.jsonl"))
        messages = self._relay.messages()
        return Moment(
            seconds=time.monotonic() - self._began,
            usage=list(self._relay.usage().values()),
            broker_bytes=self._broker_bytes(),
            messages=pile(messages) if messages is not None else None,
            state_files=len(state),
            sessions=len(self._relay.spool.sessions()),
            journal_bytes=journal,
            owed=sum(1 for _ in self._relay.owed()),
            stored=self._sink.counters.outcome("stored"),
        )

    def _broker_bytes(self) -> int | None:
        socket = self._relay.broker_socket()
        if socket is not None:
            with suppress(RedisError), Redis(unix_socket_path=str(socket), socket_timeout=2) as client:
                return int(client.info("memory")["used_memory"])
        return None


def run(options: argparse.Namespace, folder: Path) -> Soak:
    """Run it from the start of `up` to its end."""
    with Sink(folder / "ingest", token=TOKEN) as sink:
        settings = {"RELAY_DEFAULTS__SEGMENT_SECONDS": str(options.segment)}
        relay = Relay(folder, sink.url, cameras=options.cameras, source=options.source, settings=settings)
        soak = Soak(options)
        with running(relay):
            _watch(options, relay, sink, soak)
            sink.faults.clear()
            _until_current(relay, options)
            soak.exit_code = relay.stop()
        soak.audit_code, soak.audit_words = relay.audit()
        soak.count(relay.spool, sink.receipts())
    return soak


def _watch(options: argparse.Namespace, relay: Relay, sink: Sink, soak: Soak) -> None:
    observer, began = Observer(relay, sink), time.monotonic()
    outage = 1
    for number in range(1, int(options.minutes * 60 // options.every) + 1):
        while (left := began + number * options.every - time.monotonic()) > 0:
            relay.check()
            if options.with_outages and time.monotonic() >= began + outage * options.outage_every:
                sink.faults.add(OUTAGES[outage % len(OUTAGES)])
                outage += 1
            time.sleep(min(0.5, left))
        soak.moments.append(observer.look())
        _prune(sink.directory)
        _show(soak.moments[-1], first=number == 1)
    soak.outages = outage - 1


def _prune(directory: Path) -> None:
    """Remove the bodies of what is stored; receipts stay. The newest of each session may still be in use."""
    for session in directory.glob("[!.]*/*/"):
        for path in sorted(session.glob("*.ts"))[:-2]:
            path.unlink()


def _until_current(relay: Relay, options: argparse.Namespace) -> None:
    def few() -> bool:
        return sum(1 for _ in relay.owed()) <= options.cameras

    wait_until(few, seconds=DRAIN_SECONDS, what="the backlog was gone", check=relay.check)


def _cells(moment: Moment) -> dict[str, str]:
    """Return what one line shows, by the title of its column."""
    usage = moment.usage
    return {
        "min": f"{moment.seconds / 60:.1f}",
        "RSS MiB": f"{sum(each.rss for each in usage) / MIB:.1f}",
        "PSS MiB": f"{total_memory(usage) / MIB:.1f}",
        "fds": str(sum(each.fds for each in usage)),
        "threads": str(sum(each.threads for each in usage)),
        "processes": str(len(usage)),
        "broker KiB": "-" if moment.broker_bytes is None else f"{moment.broker_bytes / 1024:.0f}",
        "messages": "-" if moment.messages is None else str(moment.messages),
        "state": str(moment.state_files),
        "sessions": str(moment.sessions),
        "journal KiB": f"{moment.journal_bytes / 1024:.0f}",
        "owed": str(moment.owed),
        "stored": str(moment.stored),
    }


def _show(moment: Moment, *, first: bool) -> None:
    """Print one sample as it comes, the first below the titles."""
    cells = _cells(moment)
    if first:
        print("  ".join(title.rjust(WIDTH) for title in cells))
    print("  ".join(cell.rjust(max(WIDTH, len(title))) for title, cell in cells.items()))


def main() -> int:
    options = _options()
    sys.stdout.reconfigure(line_buffering=True)  # each line as it comes, also into a file
    print(environment_lines())
    print(
        f"{options.cameras} cameras {options.source}, segments of {options.segment:g} s, "
        f"{options.minutes:g} min, warm-up {options.warm_up:g} min, "
        f"{'with' if options.with_outages else 'no'} outages\n",
    )
    with tempfile.TemporaryDirectory(prefix="soak-", dir=options.folder) as folder:
        soak = run(options, Path(folder))
    write_figures(options.json, {"environment": environment(), "parameters": vars(options), **soak.as_data()})
    return soak.show()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--minutes", type=float, default=60.0, help="[60]")
    add("--every", type=float, default=60.0, help="seconds between two samples  [60]")
    add("--warm-up", type=float, default=10.0, help="minutes that do not count  [10]")
    add("--cameras", type=int, default=4, help="[4]")
    add("--source", default="test:160x90@5", help="of each camera  [test:160x90@5]")
    add("--segment", type=float, default=1.0, help="seconds of a segment  [1]")
    add("--with-outages", action="store_true", help="of 20 s: a closed port, a hang, 503, in turn")
    add("--outage-every", type=float, default=300.0, help="seconds from one outage to the next  [300]")
    add("--folder", type=Path, help="where it runs  [the directory for temporary files]")
    add("--json", type=Path, metavar="FILE", help="write all that was measured")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
