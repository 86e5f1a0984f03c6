"""Segments over a line with a round-trip time, a limited rate and TLS: what keeping the connection is worth.

    python -m benchmarks.wan [--rate 20Mbit] [--rtts 0.02,0.08,0.2] [--size 262144] [--segments 40]
    python -m benchmarks.wan --outage    # after an outage: benchmarks/wan_outage.py

The same segments, one after the other, (a) by the relay's client, which keeps its connection, (b) by the same
client made anew for each segment, as a relay does that opens a connection each time, (c) by two and three
of (a) side by side, as a worker's processes are. Each gets the line for itself; the order changes with each
round. The ideal is the bytes divided by the line's rate. The line (benchmarks/line.py) knows no slow start:
a real one costs (b) more.
"""

import argparse
import sys
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.backlog import video
from benchmarks.certificate import certificate
from benchmarks.discard import discarding
from benchmarks.figures import MIB, environment, environment_lines, spread, table, write_figures
from benchmarks.line import line_process, parse_rate
from benchmarks.rate_cap import segments
from benchmarks.wan_outage import show_outages
from capture.claim import claim
from capture.ingest import Ingest, tls_context
from capture.segment import SegmentName, SessionName
from capture.settings import IngestSettings
from capture.spool import Spool

WAYS = {"kept": 1, "new for each": 1, "kept, two at once": 2, "kept, three at once": 3}


class Sender:
    """Sends owed segments, without ever settling them, so that they can be sent again."""

    def __init__(self, url: str, ca_file: Path, spool: Spool) -> None:
        self._settings = IngestSettings(url=url, ca_file=ca_file)
        self._tls = tls_context(ca_file)
        self._spool = spool

    def send(self, names: list[tuple[SessionName, SegmentName]], *, keep: bool) -> None:
        ingest = Ingest(self._settings, tls=self._tls)
        for each in names:
            found = claim(self._spool, *each)
            assert found is not None  # noqa: S101 - nobody else has it
            with found:
                outcome, _ = ingest.send_segment(found, "benchmark")
            if outcome.status != 204:
                raise RuntimeError(outcome.reason)
            if not keep:
                ingest.close()
                ingest = Ingest(self._settings, tls=self._tls)
        ingest.close()

    def at_once(self, names: list[tuple[SessionName, SegmentName]], lanes: int, *, keep: bool) -> float:
        """Return the seconds that it took."""
        threads = [
            threading.Thread(target=self.send, args=(names[lane::lanes],), kwargs={"keep": keep})
            for lane in range(lanes)
        ]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.monotonic() - began


def measure(folder: Path, options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    pem = certificate(folder)
    spool = Spool.open(folder / "spool", create=True)
    names = segments(spool, options.segments, video(options.size))
    ideal = options.segments * options.size / options.rate
    found: dict[str, dict[str, list[float]]] = {}
    with discarding(pem) as server:
        for rtt in options.rtts:
            with line_process(server.port, rate=options.rate, rtt=rtt) as port:
                sender = Sender(f"https://127.0.0.1:{port}", pem, spool)
                shares: dict[str, list[float]] = {name: [] for name in WAYS}
                for number in range(options.repeat):
                    ways = list(WAYS.items())
                    for name, lanes in ways[number % len(ways) :] + ways[: number % len(ways)]:
                        seconds = sender.at_once(names, lanes, keep="new" not in name)
                        shares[name].append(ideal / seconds)
            found[f"{rtt:g}"] = shares
    return found


def main() -> int:
    options = _options()
    if options.outage:
        return show_outages(options)
    print(f"{environment_lines()}\n{options.rate * 8 / 1e6:g} Mbit/s, {options.segments} segments, TLS\n")
    with tempfile.TemporaryDirectory(prefix="wan-") as name:
        found = measure(Path(name), options)
    rows = [
        [
            f"{float(rtt) * 1000:g} ms",
            *(spread([100 * share for share in shares[way]], ".0f") for way in WAYS),
        ]
        for rtt, shares in found.items()
    ]
    print("share of the line's rate that segments get, %\n")
    print(table(["round trip", *WAYS], rows))
    write_figures(options.json, {"environment": environment(), "shares": found})
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rate", type=parse_rate, default="20Mbit", help="of the line, upstream  [20Mbit]")
    add("--rtts", type=lambda text: [float(each) for each in text.split(",")], default="0.02,0.08,0.2")
    add("--repeat", type=int, help="rounds  [3; with --outage 1]")
    add("--size", type=int, default=MIB // 4, help="of a segment, in bytes  [262144]")
    add("--segments", type=int, default=40, help="for each measurement  [40]")
    add("--json", type=Path, metavar="FILE", help="write all that was measured")
    add("--outage", action="store_true", help="measure an outage; the rest is for it alone")
    add("--cameras", type=int, default=4, help="that record  [4]")
    add("--bitrate", type=parse_rate, default="0.8Mbit", help="of each camera  [0.8Mbit]")
    add("--segment", type=float, default=2.0, help="seconds of a segment  [2]")
    add("--minutes", type=float, default=10.0, help="of outage, on a clock scaled down  [10]")
    add("--settle", type=float, default=10.0, help="seconds after the start that do not count  [10]")
    add("--normal", type=float, default=30.0, help="seconds before the outage, to compare with  [30]")
    add("--concurrency", type=int, default=3, help="as of `up`  [3]")
    options = parser.parse_args()
    options.repeat = options.repeat or (1 if options.outage else 3)
    return options


if __name__ == "__main__":
    sys.exit(main())
