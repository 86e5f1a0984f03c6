"""What it costs `recover` to choose a window of segments from very many, with and without a listing.

python -m benchmarks.recover_scale [--segments 100000] [--cameras 8] [--json FILE]
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.figures import environment, environment_lines, write_figures
from capture.recovery import Shortlist
from capture.session import Session
from capture.source import parse_source
from capture.spool import Spool


def main() -> None:
    parser = argparse.ArgumentParser(description="What one round of recover costs.")
    parser.add_argument("--segments", type=int, default=100_000)
    parser.add_argument("--cameras", type=int, default=8)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    options = parser.parse_args()
    print(environment_lines())
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        spool = Spool.open(Path(folder) / "spool", create=True)
        for share in (100, 10, 1):
            count = options.segments // share
            owe(spool, count, options.cameras)
            listing = [pick(Shortlist(spool)) for _ in range(5)]
            warm = Shortlist(spool)
            pick(warm)
            further = [pick(warm) for _ in range(5)]
            runs.append({"owed": count, "listing": listing, "further": further})
            print(f"{count:>8} owed: {words(listing)} with a listing, {words(further)} without; ", end="")
            print(f"a listing costs {median(listing) / count * 1e6:.2f} us for each")
    print(f"largest memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    write_figures(options.json, {"environment": environment(), "runs": runs[::-1]})


def owe(spool: Spool, count: int, cameras: int) -> None:
    """Bring the spool to `count` owed segments, by name alone: recover opens only what it picks."""
    for number in range(cameras):
        camera = f"cam{number}"
        known = spool.sessions(camera)
        if known:
            path = spool.session_path(known[0])
        else:
            session = Session.start(
                spool, camera, display_name=camera, source=parse_source("test:"), segment_seconds=2.0
            )
            path = session.path
        for sequence in range(count // cameras):
            (path / f"{sequence:08d}_20260601T120000.000Z_2000.ts").touch()


def pick(shortlist: Shortlist) -> float:
    """Return the seconds that it takes to choose one batch."""
    began = time.perf_counter()
    shortlist.pick(32, older_than=0.0)
    return time.perf_counter() - began


def words(seconds: list[float]) -> str:
    return f"{median(seconds) * 1e3:.1f} ms ({min(seconds) * 1e3:.1f} to {max(seconds) * 1e3:.1f})"


if __name__ == "__main__":
    main()
