"""How well `ingest.max_rate` is kept: several processes of one host send as fast as it lets them.

    python -m benchmarks.rate_cap [--rates 2Mbit,20Mbit,200Mbit] [--processes 4] [--seconds 30]

Half of the processes send new video, half a backlog, all with the relay's own client and limiter, to a server
that only counts. Prints the rate in each window of ten seconds as a share of what was set, and who got what.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.backlog import video
from benchmarks.cameras import begin, close_one
from benchmarks.discard import discarding
from benchmarks.figures import environment, environment_lines, spread, table, write_figures
from capture.claim import claim
from capture.ingest import Ingest
from capture.limiter import Limiter
from capture.segment import SegmentName, SessionName
from capture.settings import IngestSettings
from capture.spool import Spool
from capture.timetable import parse_timetable

SIZE = 500_000
WINDOW = 10
STEP = 1.0


def send(
    url: str, root: Path, names: tuple[SessionName, SegmentName], rate: str, *, until: float, is_live: bool
) -> int:
    """Send one segment again and again; return the bytes that were confirmed."""
    spool = Spool.open(root)
    found = claim(spool, *names)
    assert found is not None  # noqa: S101 - it was made for this process alone
    ingest = Ingest(IngestSettings(url=url, max_rate=rate), limit=Limiter(spool.state, parse_timetable(rate)))
    sent = 0
    with found:
        while time.time() < until:
            outcome, _ = ingest.send_segment(found, "benchmark", is_live=is_live)
            sent += found.size if outcome.status else 0
    return sent


def measure(rate: str, processes: int, seconds: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="rate-") as name, discarding() as server:
        spool = Spool.open(Path(name) / "spool", create=True)
        names = segments(spool, processes, video(SIZE))
        context = multiprocessing.get_context("spawn")
        with context.Pool(processes) as pool:
            until = time.time() + seconds + 3  # they need a moment to begin
            jobs = [
                pool.apply_async(
                    send,
                    (server.url, spool.root, each, rate),
                    {"until": until, "is_live": number % 2 == 0},
                )
                for number, each in enumerate(names)
            ]
            samples = []
            while time.time() < until:
                samples.append((time.monotonic(), server.ask()[3]))
                time.sleep(STEP)
            sent = [job.get(120) for job in jobs]
    shares = _windows(samples, parse_timetable(rate).slowest)
    live, backlog = sum(sent[::2]), sum(sent[1::2])
    return {"rate": rate, "shares": shares, "live": live, "backlog": backlog}


def segments(spool: Spool, count: int, content: bytes) -> list[tuple[SessionName, SegmentName]]:
    """Owe so many segments; return their names."""
    with begin(spool, "cam", 2.0) as session:
        return [
            (session.name, close_one(session, sequence, content, 2.0).segment)
            for sequence in range(1, count + 1)
        ]


def _windows(samples: Sequence[tuple[float, int]], rate: float) -> list[float]:
    """Return what was sent in each window, as a share of what the rate allows; from the first byte on."""
    begun = next(number for number, (_, size) in enumerate(samples) if size)
    steps = round(WINDOW / STEP)
    pairs = zip(samples[begun:], samples[begun + steps :], strict=False)
    return [(size - before) / (at - began) / rate for (began, before), (at, size) in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rates", default="2Mbit,20Mbit,200Mbit", help="to set, in turn")
    parser.add_argument("--processes", type=int, default=4, help="that send  [4]")
    parser.add_argument("--seconds", type=int, default=30, help="for each rate  [30]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    options = parser.parse_args()
    print(f"{environment_lines()}\n{options.processes} processes, {options.seconds} s each\n", flush=True)
    found = [measure(rate, options.processes, options.seconds) for rate in options.rates.split(",")]
    rows = [
        [
            each["rate"],
            spread([100 * share for share in each["shares"]], ".1f", " %"),  # type: ignore[attr-defined]
            f"{each['live'] / 1e6:.1f} MB",  # type: ignore[operator]
            f"{each['backlog'] / 1e6:.1f} MB",  # type: ignore[operator]
        ]
        for each in found
    ]
    print(table(["cap", "of it, in any ten seconds", "new video", "backlog"], rows))
    write_figures(options.json, {"environment": environment(), "caps": found})


if __name__ == "__main__":
    main()
